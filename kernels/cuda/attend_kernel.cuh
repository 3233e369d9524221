/* attend_kernel.cuh: attention of a step's query tokens over this shard's pages: one launch, splits merged
 * inside.
 *
 * Math     O = Σ p_t v_t / Σ p_t, LSE = ln Σ exp(scale·q·k_t) over the tokens a row may see; over quantized
 *          pages with integer tensor cores, as attend_warp.cuh says, over f16 pages with mma.m16n8k16.
 * Layout   kv_layout.h; q [T, H, D], O [T, H, D] f32, LSE [T, H] f32; page lists as kernels.h says.
 * Mapping  one CTA an SM, 8 or 12 warps; a warp owns whole pages (attend_plan.cuh), with a ring of halves of
 *          records that bulk copies fill, and its own (m, l, O); at the end of a segment the CTA merges its
 *          warps through shared memory, and the last CTA of a job merges the CTAs, in a fixed order: the same
 *          bits every time.
 * Cost     reads every byte of the visible pages once a block of rows, nothing else of size: 1M tokens of 8
 *          KV heads, D 128, are 1.14 GB at int4 g128: 246 µs at 4.64 TB/s; 0.61 GB at int2: 131 µs.
 * Numerics factors of codes have 15 and 16 bits, their sums are exact, everything between pages is f32.
 * Limits   q of f32 activations is rounded to fp16 (relative to a row's largest); head size 64 or 128; G and
 *          T any (blocks of 8 rows re-read the pages); compute capability 9.0.
 * Measured H200, those two caches, G = 4: 260 µs (95 % of a read) and 148 µs (88 %); fixed part 9 to 12 µs.
 *          docs/perf/LOG.md, docs/kernels/decode-attention.md.
 */
#ifndef BS_CUDA_ATTEND_KERNEL_CUH
#define BS_CUDA_ATTEND_KERNEL_CUH

#include "kernels/cuda/attend_plan.cuh"
#include "kernels/cuda/attend_warp.cuh"

/* What a ring slot holds, told beside its bytes. */
enum { UNIT_SKIP = 0, UNIT_QUANT = 1, UNIT_F16 = 2 };
typedef struct attend_note {
    int32_t kind, position; /* global position of the unit's first token */
} attend_note;

/* ---- loading ---- */

/* A warp's side of its ring. Each lane knows one of the next 32 units of the warp and issues it itself when
 * its turn comes; the list entries of the 32 after that are on their way. */
typedef struct attend_loader {
    uint32_t ring, barriers; /* shared addresses of slot 0 and its barrier */
    attend_note *notes;
    uint64_t policy;
    int slot;     /* the next to fill */
    int n, count; /* units issued and to issue of the segment */
    int ahead;    /* halves issued when the segment began */
    bool v_next;  /* unit n's K half is on its way, its V half is next */
    const uint8_t *from;
    attend_note note;   /* this lane's unit */
    int32_t index_next; /* page_index and page_slot of this lane's next unit */
    uint32_t page_next;
} attend_loader;

/* Unit → entry of the page list, −1 for a unit that stands for nothing. */
static __device__ __forceinline__ int attend_entry_of(const attend_params &p, const attend_span &span,
                                                      uint32_t unit, bool *quant, uint32_t *slice)
{
    const int slices = 7 - p.slice_log2;
    const uint32_t sink = (uint32_t)span.n[0] << slices;
    *quant = unit >= sink && unit - sink < (uint32_t)span.n[1];
    const uint32_t u = unit < sink ? unit : unit - sink - (*quant ? 0 : (uint32_t)span.n[1]);
    *slice = *quant ? 0 : u & ((1u << slices) - 1);
    const uint32_t entry = *quant ? u : u >> slices;
    const int part = unit < sink ? 0 : *quant ? 1 : 2;
    if (entry >= (uint32_t)span.n[part]) return -1;
    return span.first[part] + (int)entry;
}

/* This lane's share of the list entries of the units n … n + 31 of its warp. */
static __device__ __forceinline__ void attend_fetch(attend_loader &ld, const attend_params &p,
                                                    const attend_span &span, const attend_segment &segment,
                                                    int warp, int n_warps, int n)
{
    const uint32_t unit = segment.first + (uint32_t)(warp + n_warps * (n + (int)(threadIdx.x & 31)));
    bool quant;
    uint32_t slice;
    const int entry = unit < segment.end ? attend_entry_of(p, span, unit, &quant, &slice) : -1;
    ld.index_next = entry < 0 ? -1 : p.page_index[entry];
    ld.page_next = entry < 0 ? 0 : p.page_slot[entry];
}

/* Turns fetched entries into addresses, for units n … n + 31. */
static __device__ __forceinline__ void attend_resolve(attend_loader &ld, const attend_params &p,
                                                      const attend_span &span, const attend_segment &segment,
                                                      int warp, int n_warps, int n)
{
    const uint32_t unit = segment.first + (uint32_t)(warp + n_warps * (n + (int)(threadIdx.x & 31)));
    bool quant;
    uint32_t slice;
    attend_entry_of(p, span, unit, &quant, &slice);
    ld.note.position = ld.index_next * BS_PAGE_TOKENS + (int)(slice << p.slice_log2);
    if (quant) {
        ld.note.kind = UNIT_QUANT;
        ld.from = p.quant_pool + ld.page_next * p.layout.quant_slot +
                  (size_t)segment.kv_head * p.layout.record;
    } else {
        ld.note.kind = ld.index_next >= 0 && ld.note.position < span.n_seen ? UNIT_F16 : UNIT_SKIP;
        ld.from = p.f16_pool + ld.page_next * p.layout.f16_slot +
                  (size_t)segment.kv_head * 2 * p.layout.f16_page +
                  ((slice << p.slice_log2) * 2 * (uint32_t)p.layout.head_dim);
    }
}

/* Fills the next slot with the next half, if the segment has one. */
static __device__ __forceinline__ void attend_issue(attend_loader &ld, const attend_params &p,
                                                    const attend_span &span, const attend_segment &segment,
                                                    int warp, int n_warps)
{
    if (ld.n >= ld.count) return;
    if ((int)(threadIdx.x & 31) == (ld.n & 31)) {
        const uint32_t barrier = ld.barriers + 8 * ld.slot;
        uint32_t bytes = ld.v_next ? p.layout.v_half : p.layout.k_half, v_at = p.layout.k_half;
        if (ld.note.kind != UNIT_QUANT) {
            bytes = ld.note.kind == UNIT_SKIP ? 0 : (uint32_t)p.layout.head_dim * 2 << p.slice_log2;
            v_at = p.layout.f16_page;
        }
        ld.notes[ld.slot] = ld.note;
        barrier_expect(barrier, bytes);
        if (bytes > 0)
            bulk_load(ld.ring + ld.slot * p.stage_bytes, ld.from + (ld.v_next ? v_at : 0), bytes, barrier,
                      ld.policy);
    }
    if (++ld.slot == p.n_stages) ld.slot = 0;
    ld.ahead++;
    ld.v_next = !ld.v_next;
    if (!ld.v_next && (++ld.n & 31) == 0 && ld.n < ld.count) {
        attend_resolve(ld, p, span, segment, warp, n_warps, ld.n);
        attend_fetch(ld, p, span, segment, warp, n_warps, ld.n + 32);
    }
}

/* The loader at the start of a segment whose first entries are fetched: its first half is issued, if it may
 * be: f16 pages may come from the kernel before. */
static __device__ __forceinline__ void attend_begin(attend_loader &ld, const attend_params &p,
                                                    const attend_span &span, const attend_segment &segment,
                                                    int warp, int n_warps, bool f16_too)
{
    const int left = (int)(segment.end - segment.first) - warp;
    ld.count = left > 0 ? (left + n_warps - 1) / n_warps : 0;
    ld.n = ld.ahead = 0;
    ld.v_next = false;
    attend_resolve(ld, p, span, segment, warp, n_warps, 0);
    if (ld.count > 32) attend_fetch(ld, p, span, segment, warp, n_warps, 32);
    if (f16_too || __shfl_sync(~0u, ld.note.kind, 0) == UNIT_QUANT)
        attend_issue(ld, p, span, segment, warp, n_warps);
}

/* ---- rows ---- */

/* Token of the sequence that a row of the job belongs to; n_query and more: padding. */
static __device__ __forceinline__ int attend_token_of(const attend_params &p, int block, int rows, int row)
{
    const int at = block * rows + row;
    return p.group == 1 ? at : at / p.group;
}

/* This lane's column of q as it comes, 4 channels each. */
template <int D> struct attend_raw_q {
    uint4 x[D / 16]; /* f32 bits; 16-bit types in x and y until attend_take_q */
};

template <int D, int R>
static __device__ __forceinline__ void attend_load_q(attend_raw_q<D> &raw, const attend_params &p,
                                                     const attend_span &span, const attend_segment &segment)
{
    const int lane = threadIdx.x & 31;
    const int row = (lane >> 2) / (R == 4 ? 2 : 1), token = attend_token_of(p, segment.block, R, row);
    const int head = segment.kv_head * p.group + segment.block * R + row - token * p.group;
    const int64_t at = (int64_t)(span.q_start + token) * p.q_ld + (int64_t)head * D + 4 * (lane & 3);
    if (token >= span.n_query) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) raw.x[k] = make_uint4(0, 0, 0, 0);
    } else if (p.act == BS_TYPE_F32) {
        const uint4 *from = reinterpret_cast<const uint4 *>(static_cast<const float *>(p.q) + at);
#pragma unroll
        for (int k = 0; k < D / 16; k++) raw.x[k] = __ldcg(from + 4 * k);
    } else {
        const uint2 *from = reinterpret_cast<const uint2 *>(static_cast<const __half *>(p.q) + at);
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const uint2 v = __ldcg(from + 4 * k);
            raw.x[k] = make_uint4(v.x, v.y, 0, 0);
        }
    }
}

/* Brings q to [-1, 1] by a power of two, and empties the state. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void attend_take_q(attend_state<D, R, G32> &st, attend_raw_q<D> &raw,
                                                     const attend_params &p)
{
    constexpr int NR = R == 4 ? 1 : 2;
    uint4 *x = raw.x;
    if (p.act == BS_TYPE_BF16) {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            x[k] = make_uint4(x[k].x << 16, x[k].x & 0xffff0000u, x[k].y << 16, x[k].y & 0xffff0000u);
    } else if (p.act == BS_TYPE_F16) {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            x[k] = make_uint4(__float_as_uint(__low2float(half2_of(x[k].x))),
                              __float_as_uint(__high2float(half2_of(x[k].x))),
                              __float_as_uint(__low2float(half2_of(x[k].y))),
                              __float_as_uint(__high2float(half2_of(x[k].y))));
    }
    /* The bits of |x| are in the order of their values, infinity and NaN on top. */
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        most = max(max(max(most, x[k].x & 0x7fffffffu), max(x[k].y & 0x7fffffffu, x[k].z & 0x7fffffffu)),
                   x[k].w & 0x7fffffffu);
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    const int e = max(27, min((int)(most >> 23) + 1, 247)); /* 2^(e-127) > most */
    const float shrink = __int_as_float((254 - e) << 23);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        st.q[k / 2][k % 2 * 2] = __floats2half2_rn(__uint_as_float(x[k].x) * shrink,
                                                   __uint_as_float(x[k].y) * shrink);
        st.q[k / 2][k % 2 * 2 + 1] = __floats2half2_rn(__uint_as_float(x[k].z) * shrink,
                                                       __uint_as_float(x[k].w) * shrink);
    }
    float gain = __int_as_float(e << 23) * p.scale * BS_LOG2E;
    if (most >= 0x7f800000u) gain = NAN; /* so that the row's result is */
    unit_of_rows<R>(gain, st.gain);
#pragma unroll
    for (int y = 0; y < NR; y++) {
        st.m[y] = -INFINITY;
        st.l[y] = 0;
#pragma unroll
        for (int t = 0; t < D / 16; t++) st.o[t][y] = st.o[t][NR + y] = 0;
#pragma unroll
        for (int g = 0; g < st.NG; g++) st.zero[g][y] = 0;
    }
}

/* ---- merging ---- */

template <int D, int R, bool G32>
static __device__ __forceinline__ void attend_leave_state(attend_state<D, R, G32> &st, const attend_params &p,
                                                          float2 *ml, float *o)
{
    constexpr int NR = R == 4 ? 1 : 2, PITCH = attend_row_floats(D);
    const int lane = threadIdx.x & 31, r = lane >> 2, i = lane & 3;
    const bool one_group = p.layout.v_group >= D;
#pragma unroll
    for (int x = 0; x < NR; x++) {
        const int row = NR * i + x;
        const float l = sum_over_rows(st.l[x]);
        if (r == 0) ml[row] = make_float2(st.m[x], l);
#pragma unroll
        for (int t = 0; t < D / 16; t++) {
            const float zero = G32                  ? st.zero[t / 2 % st.NG][x]
                               : t < 4 || one_group ? st.zero[0][x]
                                                    : st.zero[st.NG - 1][x];
            o[row * PITCH + 16 * t + r] = st.o[t][x] + zero;
            o[row * PITCH + 16 * t + 8 + r] = st.o[t][NR + x] + zero;
        }
    }
}

/* What merging n states needs in shared memory. */
template <int D, int R> struct attend_merging {
    float w[R][ATTEND_MAX_CTAS];
    float2 ml[R];
    float4 sum[ATTEND_MAX_WARPS * 32]; /* a thread's slice of the states, when threads are more than quads */
    uint32_t last;
};

/* Weights of n states of R rows: 2^(m − largest). (m, l) of state c and a row are at ml[c · stride + row],
 * those of state 0 `shift` further. A warp a row. Every state has been written whole, so nothing needs to be
 * skipped: l = 0 comes with O = 0, and NaN must get through. */
template <int D, int R>
static __device__ __forceinline__ void attend_weigh(attend_merging<D, R> &out, const float2 *ml, int stride,
                                                    int shift, int n, int warp, int n_warps)
{
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int row = warp; row < R; row += n_warps) {
        float most = -INFINITY, sum = 0;
        float2 part = make_float2(-INFINITY, 0); /* this lane's last: all of them when n ≤ 32 */
#pragma unroll 1
        for (int c = lane; c < n; c += 32) {
            part = ml[c * stride + (c == 0 ? shift : 0) + row];
            most = fmaxf(most, part.x);
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
        const float base = most == -INFINITY ? 0 : most;
#pragma unroll 1
        for (int c = lane; c < n; c += 32) {
            if (n > 32) part = ml[c * stride + (c == 0 ? shift : 0) + row];
            const float w = exp2_fast(part.x - base);
            out.w[row][c] = w;
            sum = fmaf(w, part.y, sum);
        }
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0) out.ml[row] = make_float2(most, sum);
    }
}

/* The CTA's warps become one state: written out when it is the whole job, else left for the last CTA of the
 * job to merge with the others, in their order. */
template <int D, int R>
static __device__ __forceinline__ void attend_merge(const attend_params &p, const attend_plan &plan,
                                                    const attend_span &span, const attend_segment &segment,
                                                    const float2 *ml, const float *o, int warp, int n_warps,
                                                    attend_merging<D, R> &merging)
{
    constexpr int PITCH = attend_row_floats(D), QUADS = R * D / 4, BATCH = 8;
    const bool whole = segment.first == 0 && segment.end == segment.job_units;
    /* A thread sums one quad of outputs over the states of its slice: slice, slice + n_slices … */
    const int n_slices = max(1, (int)blockDim.x / QUADS), slice = threadIdx.x / QUADS;
    int n = n_warps, stride = R, shift = 0; /* of states, in rows */
#pragma unroll 1
    for (bool final = whole;; final = true) {
#pragma unroll 1
        for (int quad = threadIdx.x % QUADS, first = 1; quad < QUADS; quad += blockDim.x, first = 0) {
            const int row = quad / (D / 4), d = quad % (D / 4) * 4;
            const float *from = o + row * PITCH + d;
            float4 x[BATCH], sum = make_float4(0, 0, 0, 0);
            /* A batch of states is on its way before the weights are known. */
#pragma unroll 1
            for (int c0 = slice; (c0 < n && slice < n_slices) || first; c0 += BATCH * n_slices) {
#pragma unroll
                for (int y = 0; y < BATCH; y++) {
                    const int c = c0 + y * n_slices;
                    x[y] = make_float4(0, 0, 0, 0);
                    if (c < n && slice < n_slices)
                        x[y] = *reinterpret_cast<const float4 *>(from +
                                                                 (c * stride + (c == 0 ? shift : 0)) * PITCH);
                }
                if (first) {
                    attend_weigh<D, R>(merging, ml, stride, shift, n, warp, n_warps);
                    __syncthreads();
                    first = 0;
                }
#pragma unroll
                for (int y = 0; y < BATCH; y++) {
                    const int c = c0 + y * n_slices;
                    const float w = c < n && slice < n_slices ? merging.w[row][c] : 0;
                    sum.x = fmaf(w, x[y].x, sum.x);
                    sum.y = fmaf(w, x[y].y, sum.y);
                    sum.z = fmaf(w, x[y].z, sum.z);
                    sum.w = fmaf(w, x[y].w, sum.w);
                }
            }
            if (n_slices > 1) {
                if (slice < n_slices) merging.sum[threadIdx.x] = sum;
                __syncthreads();
                for (int other = 1; slice == 0 && other < n_slices; other++) {
                    const float4 more = merging.sum[other * QUADS + quad];
                    sum.x += more.x;
                    sum.y += more.y;
                    sum.z += more.z;
                    sum.w += more.w;
                }
            }
            if (slice > 0) continue;
            const float2 total = merging.ml[row];
            if (final) {
                const int token = attend_token_of(p, segment.block, R, row);
                const int head = segment.kv_head * p.group + segment.block * R + row - token * p.group;
                if (token >= span.n_query) continue;
                const int64_t to = (int64_t)(span.q_start + token) * p.n_heads + head;
                const float scale = total.y == 0 ? 0 : 1 / total.y;
                *reinterpret_cast<float4 *>(&p.o[to * D + d]) = make_float4(sum.x * scale, sum.y * scale,
                                                                            sum.z * scale, sum.w * scale);
                if (d == 0)
                    p.lse[to] = total.y == 0 ? -INFINITY : (total.x + log2f(total.y)) * 0.6931471805599453f;
            } else {
                const int mine = 2 * blockIdx.x + (segment.first == 0);
                *reinterpret_cast<float4 *>(&p.part_o[(mine * R + row) * PITCH + d]) = sum;
                if (d == 0) p.part_ml[mine * R + row] = total;
            }
        }
        if (final) return;
        __syncthreads();
        const uint32_t run0 = attend_run_of(plan, segment.job_start);
        n = (int)(attend_run_of(plan, segment.job_start + segment.job_units - 1) - run0) + 1;
        if (threadIdx.x == 0) {
            const int job = (span.q_start * p.group / R + segment.seq + segment.block) * p.layout.n_kv_heads +
                            segment.kv_head;
            __threadfence();
            const uint32_t before = atomicAdd(&p.arrived[job], 1);
            merging.last = before == (uint32_t)n - 1;
            if (merging.last) p.arrived[job] = 0;
            __threadfence();
        }
        __syncthreads();
        if (!merging.last) return;
        /* A run leaves a job that it began in its second place, any other in its first. */
        ml = p.part_ml + 2 * run0 * R;
        o = p.part_o + (int64_t)(2 * run0) * R * PITCH;
        stride = 2 * R;
        shift = R;
    }
}

/* ---- the kernel ---- */

/* Sets the scores of a quantized page that a row may not see to −inf; returns which of this lane's 16 tokens
 * anybody may see. */
template <int R>
static __device__ __forceinline__ uint32_t attend_mask(float (&sc)[8][2 * (R == 4 ? 1 : 2)], int position,
                                                       const int *lo, const int *hi, int any_lo, int any_hi)
{
    constexpr int NR = R == 4 ? 1 : 2;
    uint32_t visible = 0;
    const int first = position + (threadIdx.x >> 2 & 7);
#pragma unroll
    for (int j = 0; j < 16; j++) {
        const int at = first + 8 * j;
        if (at >= any_lo && at < any_hi) visible |= 1u << j;
#pragma unroll
        for (int x = 0; x < NR; x++)
            if (at < lo[x] || at >= hi[x]) sc[j / 2][j % 2 * NR + x] = -INFINITY;
    }
    return visible;
}

template <int KB, int VB, int D, int R, bool G32>
static __global__ void __launch_bounds__(attend_max_warps(KB, VB, R) * 32, 1)
    attend_kernel(const __grid_constant__ attend_params p)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* refused at start elsewhere */
    constexpr int NR = R == 4 ? 1 : 2, PITCH = attend_row_floats(D);
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ attend_plan plan;
    __shared__ attend_merging<D, R> merging;
    const int n_warps = blockDim.x / 32, lane = threadIdx.x & 31;
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0); /* the compiler sees that it is uniform */
    /* [ring of each warp][weights of each][state of each][its (m, l)][notes][barriers][spans] */
    uint8_t *at = shared + n_warps * p.n_stages * p.stage_bytes;
    const attend_weights weights = weights_at(smem_address(at) + warp * (R == 4 ? 1024 : 2048));
    at += n_warps * (R == 4 ? 1024 : 2048);
    float *const states = reinterpret_cast<float *>(at);
    at += n_warps * R * PITCH * 4;
    float2 *const states_ml = reinterpret_cast<float2 *>(at);
    at += n_warps * R * 8;
    attend_note *const notes = reinterpret_cast<attend_note *>(at);
    at += n_warps * p.n_stages * 8;
    const uint32_t barriers = smem_address(at);
    attend_span *const spans = reinterpret_cast<attend_span *>(at + n_warps * p.n_stages * 8);

    attend_loader ld;
    ld.ring = smem_address(shared) + warp * p.n_stages * p.stage_bytes;
    ld.barriers = barriers + warp * p.n_stages * 8;
    ld.notes = notes + warp * p.n_stages;
    ld.policy = rows_share_pages(p, R) ? evict_normal_policy() : evict_first_policy();
    ld.slot = 0;
    if (lane < p.n_stages) barrier_init(ld.barriers + 8 * lane, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    attend_make_plan(p, spans, &plan, R);
    uint32_t unit, end;
    attend_my_run(plan, &unit, &end);
    if (unit >= end) return;
    bool waited = p.overlap == 0;
    int use = 0;         /* slot to be consumed next */
    uint32_t parity = 0; /* of its barrier */
    attend_segment segment = attend_next_segment(spans, 0, unit, end);
    attend_fetch(ld, p, spans[segment.seq], segment, warp, n_warps, 0);
    attend_raw_q<D> raw;
    if (waited) attend_load_q<D, R>(raw, p, spans[segment.seq], segment);
    attend_begin(ld, p, spans[segment.seq], segment, warp, n_warps, waited);
#pragma unroll 1
    for (;;) {
        const attend_span &span = spans[segment.seq];
        if (!waited) {
            /* Quantized pages are complete (kernels.h says so); f16 pages and q may come from the kernel
             * before. */
            wait_for_kernel_before();
            /* The next kernel may take each SM as it falls free; it waits for this one by itself. */
            let_kernel_after_start();
            waited = true;
            attend_load_q<D, R>(raw, p, span, segment);
        }
        attend_state<D, R, G32> st;
        attend_take_q<D, R, G32>(st, raw, p);
        /* Only now, with q here: loads wait behind all bytes that are on their way. */
#pragma unroll 1
        while (ld.ahead < p.n_stages && ld.n < ld.count) attend_issue(ld, p, span, segment, warp, n_warps);
        /* Positions [lo, hi) that my rows see, that anybody in the block sees, and that all do. */
        int lo[NR], hi[NR];
#pragma unroll
        for (int x = 0; x < NR; x++) {
            const int token = attend_token_of(p, segment.block, R, NR * (lane & 3) + x);
            hi[x] = min(span.n_seen, span.pos0 + token + 1);
            lo[x] = p.window > 0 ? max(0, span.pos0 + token - p.window + 1) : 0;
        }
        const int any_lo = __reduce_min_sync(~0u, lo[0]), any_hi = __reduce_max_sync(~0u, hi[NR - 1]);
        const int all_lo = __reduce_max_sync(~0u, lo[NR - 1]), all_hi = __reduce_min_sync(~0u, hi[0]);

#pragma unroll 1
        for (int n = 0; n < ld.count; n++) {
            barrier_wait(ld.barriers + 8 * use, parity);
            const attend_note note = ld.notes[use];
            const uint32_t k_at = ld.ring + use * p.stage_bytes;
            if (++use == p.n_stages) use = 0, parity ^= 1;
            if (note.kind == UNIT_QUANT) {
                float sc[8][2 * NR], weight[NR];
                if (p.layout.k_per_channel) k_scores_per_channel<KB, D, R, G32>(st, k_at, p.layout, sc);
                else k_scores_per_token<KB, D, R, G32>(st, k_at, p.layout, sc);
                if (p.layout.k_norm) apply_norm<R>(k_at + p.layout.k_n, sc);
                __syncwarp();
                attend_issue(ld, p, span, segment, warp, n_warps);
                uint32_t visible = 0xffffu;
                if (note.position < all_lo || note.position + BS_PAGE_TOKENS > all_hi)
                    visible = attend_mask<R>(sc, note.position, lo, hi, any_lo, any_hi);
                softmax_page<D, R, G32>(st, sc, weight);
                barrier_wait(ld.barriers + 8 * use, parity);
                v_sum<VB, D, R, G32>(st, ld.ring + use * p.stage_bytes, p.layout, sc, weight, visible,
                                     weights);
            } else {
                barrier_wait(ld.barriers + 8 * use, parity);
                const uint32_t v_at = ld.ring + use * p.stage_bytes;
#pragma unroll 1
                for (int t = 0; note.kind == UNIT_F16 && t < 1 << p.slice_log2; t += 16) {
                    const int position = note.position + t;
                    if (position >= any_hi) break;
                    f16_tile<D, R, G32>(st, k_at + t * 2 * D, v_at + t * 2 * D, lo, hi, any_lo, any_hi,
                                        position);
                }
                __syncwarp();
                attend_issue(ld, p, span, segment, warp, n_warps);
            }
            if (++use == p.n_stages) use = 0, parity ^= 1;
            __syncwarp();
            attend_issue(ld, p, span, segment, warp, n_warps);
        }
        attend_leave_state<D, R, G32>(st, p, states_ml + warp * R, states + warp * R * PITCH);
        unit += segment.end - segment.first;
        const attend_segment done = segment;
        if (unit < end) { /* the next segment's data come while this one is merged */
            segment = attend_next_segment(spans, segment.seq, unit, end);
            attend_fetch(ld, p, spans[segment.seq], segment, warp, n_warps, 0);
            attend_load_q<D, R>(raw, p, spans[segment.seq], segment);
            attend_begin(ld, p, spans[segment.seq], segment, warp, n_warps, true);
        }
        __syncthreads();
        attend_merge<D, R>(p, plan, spans[done.seq], done, states_ml, states, warp, n_warps, merging);
        if (unit >= end) return;
        __syncthreads();
    }
#endif
}

template <int KB, int VB, int D, int R, bool G32>
static cudaError_t attend_launch(const attend_params *p, int n_ctas, int n_warps, size_t smem,
                                 cudaStream_t stream)
{
    auto *kernel = attend_kernel<KB, VB, D, R, G32>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_ctas);
    config.blockDim = dim3((unsigned)n_warps * 32);
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = p->overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, *p);
}

template <int KB, int VB>
static cudaError_t attend_launch_pair(const attend_params *p, int rows, int n_ctas, int n_warps, size_t smem,
                                      cudaStream_t stream)
{
    const bool g32 = p->layout.k_bits != 16 && (p->layout.k_group == 32 || p->layout.v_group == 32);
#define BS_CASE(D, R, G32)                                                                                   \
    if (p->layout.head_dim == D && rows == R && g32 == G32)                                                  \
        return attend_launch<KB, VB, D, R, G32>(p, n_ctas, n_warps, smem, stream);
    BS_CASE(64, 4, false)
    BS_CASE(64, 4, true)
    BS_CASE(64, 8, false)
    BS_CASE(64, 8, true)
    BS_CASE(128, 4, false)
    BS_CASE(128, 4, true)
    BS_CASE(128, 8, false)
    BS_CASE(128, 8, true)
#undef BS_CASE
    return cudaErrorInvalidValue;
}

#endif
