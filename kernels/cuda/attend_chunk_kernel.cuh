/* attend_chunk_kernel.cuh: attention of many query tokens over a slab of fp16 tiles, by Hopper's warpgroup products.
 *
 * Math     O = Σ p_t v_t / Σ p_t, LSE = ln Σ exp(scale·q·k_t) over the tokens of the slab's pages that a row may see;
 *          merged with what the slabs before left, by the one rule of DESIGN §3.
 * Layout   attend_chunk.cuh, wgmma.cuh. Rows of a sequence are (query token, query head of the KV head), tokens first,
 *          so that a page is read once for all of a KV head's query heads; 128 rows are a block.
 * Mapping  a CTA has one (KV head, block, split): two warpgroups of 64 rows with 240 registers and one that copies. A
 *          step is a page: S = Q Kᵀ (64 x 128 a warpgroup), softmax in registers, O += P V with P in registers. K's next
 *          product is issued before this page's P V, and its softmax runs beside that and beside the other
 *          warpgroup's products.
 * Cost     4·D operations a (row, token): 2,048 tokens of 32 heads of 128 over 128K are 4.4 TFLOP; at 790 TFLOP/s
 *          5.6 ms, at the 666 that the card holds 6.7. exp: one a (row, token), 16 a clock and SM, is half the time of the products.
 * Numerics q is scaled to [−1, 1] by a power of two a row and rounded to fp16; P is fp16, up to 2^8, all sums f32. A
 *          tensor core cuts what it adds to a sum off at its last bit; slabs bound how long such a sum gets.
 * Limits   head size 64 or 128; compute capability 9.0 (sm_90a).
 * Measured 2026-11-29, H200, that shape, dequantizing included: 7.85 ms at int4, 564 TFLOP/s, 85 % of a bf16 GEMM's 666 in
 *          the same run; the kernel alone 661 by ncu, tensor pipe 74 % busy at 1.66 GHz: the card's power bounds
 *          it. docs/kernels/prefill-attention.md. */
#ifndef BS_CUDA_ATTEND_CHUNK_KERNEL_CUH
#define BS_CUDA_ATTEND_CHUNK_KERNEL_CUH

#include "kernels/cuda/attend_chunk.cuh"
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    CHUNK_GROUPS = 2, /* warpgroups that compute */
    CHUNK_THREADS = 128 * (CHUNK_GROUPS + 1),
    CHUNK_STAGES = 2,
    CHUNK_P_SHIFT = 8, /* p is up to 2^this */
    CHUNK_PAGE = BS_PAGE_TOKENS
};
#define CHUNK_LN2   0.6931471805599453f
#define CHUNK_LOG2E 1.4426950408889634f

/* Named barriers, one a warpgroup; 0 is __syncthreads'. */
enum { CHUNK_ROWS_READY = 1 };

template <int D> struct alignas(1024) chunk_shared {
    uint8_t q[2 * CHUNK_ROWS * D]; /* tiles of 64 channels, 128 rows each */
    uint8_t k[CHUNK_STAGES][2 * CHUNK_PAGE * D];
    uint8_t v[CHUNK_STAGES][2 * CHUNK_PAGE * D];
    float gains[CHUNK_ROWS];
    int position[CHUNK_STAGES]; /* of K's page: global position of its first token, −1: no more pages */
    uint64_t k_there[CHUNK_STAGES], k_free[CHUNK_STAGES], v_there[CHUNK_STAGES], v_free[CHUNK_STAGES];
};

/* The CTA's share: rows and units. */
typedef struct chunk_job {
    int seq, kv_head, split;
    int row0,
        n_rows; /* of the sequence's rows of this KV head: this block's, and how many there are in all */
    int unit0, unit1; /* of the sequence: this split's in this slab */
    int lo, hi;       /* positions that any of the rows sees */
} chunk_job;

/* Rows' limits. Rows behind the last are as the last. */
static __device__ __forceinline__ int chunk_token_of(const chunk_params &p, const chunk_span &s, int row)
{
    return min(row / p.group, s.n_query - 1);
}

static __device__ __forceinline__ int chunk_hi(const chunk_span &s, int token)
{
    return min(s.seen, s.pos0 + token + 1);
}

static __device__ __forceinline__ int chunk_lo(const chunk_params &p, const chunk_span &s, int token)
{
    return p.window > 0 ? max(0, s.pos0 + token - p.window + 1) : 0;
}

/* False: nothing to do. The last rows, which see most, go first; neighbours in the grid read the same pages. */
static __device__ __forceinline__ bool chunk_find_job(const chunk_params &p, chunk_job *job, chunk_span *span)
{
    const int n_blocks = p.spans[p.max_seqs].block;
    int at = (int)blockIdx.x;
    if (at >= n_blocks * p.layout.n_kv_heads * p.n_splits) return false;
    job->split = at % p.n_splits;
    at /= p.n_splits;
    job->kv_head = at / n_blocks;
    const int block = n_blocks - 1 - at % n_blocks;
    job->seq = chunk_seq_of_block(p, block);
    *span = p.spans[job->seq];
    job->row0 = (block - span->block) * CHUNK_ROWS;
    job->n_rows = span->n_query * p.group;
    const int units = span->n[0] + span->n[1] + span->n[2];
    const int first = max(0, p.unit0 - span->unit), end = min(units, p.unit0 + p.n_units - span->unit);
    const int n = max(0, end - first);
    job->unit0 = first + (int)((int64_t)n * job->split / p.n_splits);
    job->unit1 = first + (int)((int64_t)n * (job->split + 1) / p.n_splits);
    const int last = min(job->row0 + CHUNK_ROWS, job->n_rows) - 1;
    job->lo = chunk_lo(p, *span, chunk_token_of(p, *span, job->row0));
    job->hi = chunk_hi(*span, chunk_token_of(p, *span, last));
    return true;
}

/* ---- the warp that copies ---- */

template <int D>
static __device__ __forceinline__ void chunk_copy(const chunk_params &p, const chunk_job &job,
                                                  const chunk_span &span, chunk_shared<D> &sh)
{
    constexpr uint32_t BYTES = chunk_tile_bytes(D);
    const int lane = threadIdx.x & 31;
    const uint64_t policy = evict_normal_policy();
    int stage = 0;
    uint32_t parity = 1; /* a fresh barrier has passed 1 */
    for (int base = job.unit0; base < job.unit1; base += 32) {
        const int unit = base + lane;
        int position = 0;
        bool seen = false;
        if (unit < job.unit1) {
            bool quant;
            position = p.page_index[chunk_entry_of(span, unit, &quant)] * CHUNK_PAGE;
            seen = position < job.hi && position + CHUNK_PAGE > job.lo;
        }
        for (uint32_t left = __ballot_sync(~0u, seen); left != 0; left &= left - 1) {
            const int which = __ffs((int)left) - 1;
            const int at = __shfl_sync(~0u, position, which);
            if (lane == 0) {
                const uint8_t *tile = p.tiles +
                                      ((size_t)(base + which + span.unit - p.unit0) * p.layout.n_kv_heads +
                                       job.kv_head) *
                                          (2 * (size_t)BYTES);
                const uint32_t k_there = smem_address(&sh.k_there[stage]),
                               v_there = smem_address(&sh.v_there[stage]);
                barrier_wait(smem_address(&sh.k_free[stage]), parity);
                sh.position[stage] = at;
                barrier_expect(k_there, BYTES);
                bulk_load(smem_address(sh.k[stage]), tile, BYTES, k_there, policy);
                barrier_wait(smem_address(&sh.v_free[stage]), parity);
                barrier_expect(v_there, BYTES);
                bulk_load(smem_address(sh.v[stage]), tile + BYTES, BYTES, v_there, policy);
            }
            __syncwarp();
            if (++stage == CHUNK_STAGES) stage = 0, parity ^= 1;
        }
    }
    if (lane == 0) {
        barrier_wait(smem_address(&sh.k_free[stage]), parity);
        sh.position[stage] = -1;
        barrier_arrive(smem_address(&sh.k_there[stage]));
    }
}

/* ---- q ---- */

/* A warp's 16 rows of q, each scaled by a power of two, into the tiles; and what a score of theirs is worth in log2. Eight
 * rows are under way together. WIDE: f32. */
template <int D, bool WIDE>
static __device__ __forceinline__ void chunk_put_q(const chunk_params &p, const chunk_job &job,
                                                   const chunk_span &span, chunk_shared<D> &sh)
{
    constexpr int C = D / 32, BATCH = 8, WORDS = WIDE ? C : C / 2; /* C: channels of a lane */
    const int lane = threadIdx.x & 31, first = threadIdx.x / 32 * 16;
    const float sign = p.scale < 0 ? -1.0f : 1.0f;
#pragma unroll 1
    for (int n0 = first; n0 < first + 16; n0 += BATCH) {
        uint32_t raw[BATCH][WORDS];
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            const int row = min(job.row0 + n0 + n, job.n_rows - 1), token = row / p.group;
            const int head = job.kv_head * p.group + row - token * p.group;
            const int64_t at = (int64_t)(span.q_start + token) * p.q_ld + (int64_t)head * D + C * lane;
            const uint8_t *from = static_cast<const uint8_t *>(p.q) + at * (WIDE ? 4 : 2);
            if constexpr (WORDS == 4) {
                const uint4 v = *reinterpret_cast<const uint4 *>(from);
                raw[n][0] = v.x, raw[n][1] = v.y, raw[n][2] = v.z, raw[n][3] = v.w;
            } else if constexpr (WORDS == 2) {
                const uint2 v = *reinterpret_cast<const uint2 *>(from);
                raw[n][0] = v.x, raw[n][1] = v.y;
            } else {
                raw[n][0] = *reinterpret_cast<const uint32_t *>(from);
            }
        }
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            float x[C];
#pragma unroll
            for (int c = 0; c < C; c++) {
                const uint32_t word = raw[n][WIDE ? c : c / 2];
                if (WIDE) x[c] = __uint_as_float(word);
                else if (p.act == BS_TYPE_BF16)
                    x[c] = __uint_as_float(c % 2 ? word & 0xffff0000u : word << 16);
                else x[c] = c % 2 ? __high2float(half2_of(word)) : __low2float(half2_of(word));
            }
            uint32_t most = 0; /* bits of |x| are in the order of their values, infinity and NaN on top */
#pragma unroll
            for (int c = 0; c < C; c++) most = max(most, __float_as_uint(x[c]) & 0x7fffffffu);
            most = __reduce_max_sync(~0u, most);
            const int e = max(27, min((int)(most >> 23) + 1, 247)); /* 2^(e−127) > most */
            const float shrink = sign * __int_as_float((254 - e) << 23);
            const uint32_t to = smem_address(sh.q) + chunk_tile_byte(n0 + n, C * lane);
            uint32_t pair[C / 2];
#pragma unroll
            for (int c = 0; c < C; c += 2)
                pair[c / 2] = bits_of(__floats2half2_rn(x[c] * shrink, x[c + 1] * shrink));
            if constexpr (C == 4)
                asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(pair[0]), "r"(pair[1])
                             : "memory");
            else asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(pair[0]) : "memory");
            float gain = fmaxf(__int_as_float(e << 23) * fabsf(p.scale) * CHUNK_LOG2E, 1e-35f);
            if (most >= 0x7f800000u) gain = NAN; /* so that the row's result is */
            if (lane == 0) sh.gains[n0 + n] = gain;
        }
    }
}

/* ---- softmax ---- */

/* A thread's two rows, r and r + 8 of its warp's 16: maximum (of q·k before gain), sum of p, and so on. */
typedef struct chunk_rows {
    float gain[2], most[2], sum[2];
    int lo[2], hi[2];
} chunk_rows;

/* Scores that a row may not see become −inf. Column of s[4j + 2x + c]: 8j + 2·(lane % 4) + c. */
static __device__ __forceinline__ void chunk_mask(float (&s)[64], const chunk_rows &rows, int position)
{
    const int at = position + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int j = 0; j < 64; j++) {
        const int x = j / 2 % 2, column = at + j / 4 * 8 + j % 2;
        if (column < rows.lo[x] || column >= rows.hi[x]) s[j] = -INFINITY;
    }
}

/* s becomes p; returns what earlier sums are worth now. */
static __device__ __forceinline__ void chunk_softmax(float (&s)[64], chunk_rows &rows, float (&keep)[2])
{
#pragma unroll
    for (int x = 0; x < 2; x++) {
        float most = rows.most[x];
#pragma unroll
        for (int j = 0; j < 16; j++) most = fmaxf(most, fmaxf(s[4 * j + 2 * x], s[4 * j + 2 * x + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float safe = most == -INFINITY ? 0 : most; /* nothing seen yet */
        keep[x] = exp2_fast((rows.most[x] - safe) * rows.gain[x]);
        rows.most[x] = most;
        const float base = CHUNK_P_SHIFT - safe * rows.gain[x];
        float sum = rows.sum[x] * keep[x];
#pragma unroll
        for (int j = 0; j < 16; j++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &y = s[4 * j + 2 * x + c];
                y = exp2_fast(fmaf(y, rows.gain[x], base));
                sum += y;
            }
        }
        rows.sum[x] = sum;
    }
}

/* p in fp16, in the order of A's registers: 16 tokens every four. */
static __device__ __forceinline__ void chunk_round(const float (&s)[64], uint32_t (&a)[8][4])
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[j][i] = bits_of(__floats2half2_rn(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]));
    }
}

template <int N> static __device__ __forceinline__ void chunk_keep(float (&o)[N], const float (&keep)[2])
{
    /* The maximum soon stays what it is. */
    if (!__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int j = 0; j < N; j++) o[j] *= keep[j / 2 % 2];
}

/* ---- products ---- */

/* s = q · kᵀ, begun. */
template <int D> static __device__ __forceinline__ void chunk_scores(float (&s)[64], uint64_t q, uint64_t k)
{
    constexpr uint64_t TILE = CHUNK_PAGE * 128 >> 4;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        const uint64_t at = d / 4 * TILE + d % 4 * 2;
        wgmma_128(s, q + at, k + at, d > 0);
    }
}

/* o += p · v, begun. */
template <int N>
static __device__ __forceinline__ void chunk_weigh(float (&o)[N], const uint32_t (&a)[8][4], uint64_t v)
{
#pragma unroll
    for (int t = 0; t < 8; t++) wgmma_sum(o, a[t], v + (uint64_t)t * (16 * 128 >> 4));
}

/* ---- the end of a slab ---- */

template <int D>
static __device__ __forceinline__ void chunk_leave(const chunk_params &p, const chunk_job &job,
                                                   const chunk_span &span, const chunk_rows &rows,
                                                   const float (&o)[D / 2], bool first)
{
    const int lane = threadIdx.x & 31, warp_row = threadIdx.x / 32 * 16 + lane / 4;
    const int row_base = p.n_splits > 1 ? p.q_start[0]
                                        : 0; /* states of splits count from the call's first row */
    float *const out = p.o + job.split * p.o_stride, *const out_lse = p.lse + job.split * p.lse_stride;
    float lse[2], mine[2], before[2];
    int64_t to[2];
#pragma unroll
    for (int x = 0; x < 2; x++) {
        const int row = job.row0 + warp_row + 8 * x, token = row / p.group;
        const int head = job.kv_head * p.group + row - token * p.group;
        to[x] = row < job.n_rows ? (int64_t)(span.q_start - row_base + token) * p.n_heads + head : -1;
        float sum = rows.sum[x];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        lse[x] = sum == 0 ? -INFINITY
                          : (rows.most[x] * rows.gain[x] - CHUNK_P_SHIFT + log2f(sum)) * CHUNK_LN2;
        mine[x] = sum == 0 ? 0 : 1 / sum;
        before[x] = 0;
        if (first || to[x] < 0) continue;
        const float other = out_lse[to[x]];
        if (sum == 0) to[x] = -1; /* it stays as it was */
        if (sum == 0 || other == -INFINITY) continue;
        const float most = fmaxf(lse[x], other), w = exp2f((lse[x] - most) * CHUNK_LOG2E),
                    w_other = exp2f((other - most) * CHUNK_LOG2E), total = w + w_other;
        lse[x] = most + log2f(total) * CHUNK_LN2;
        mine[x] *= w / total;
        before[x] = w_other / total;
    }
    __syncwarp(); /* a row's four lanes have read its LSE */
#pragma unroll
    for (int x = 0; x < 2; x++) {
        if (to[x] < 0) continue;
        if (lane % 4 == 0) out_lse[to[x]] = lse[x];
        float2 *const at = reinterpret_cast<float2 *>(out + to[x] * D + 2 * (lane & 3));
        float2 was[D / 8]; /* all under way before the first is waited for */
#pragma unroll
        for (int j = 0; j < D / 8; j++) was[j] = before[x] != 0 ? at[4 * j] : make_float2(0, 0);
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            float2 y = make_float2(0, 0);
            if (mine[x] != 0) y = make_float2(o[4 * j + 2 * x] * mine[x], o[4 * j + 2 * x + 1] * mine[x]);
            at[4 * j] = make_float2(fmaf(was[j].x, before[x], y.x), fmaf(was[j].y, before[x], y.y));
        }
    }
}

/* ---- the kernel ---- */

/* The page whose K a stage of the ring holds. A warp's first lane alone reads it: that lane frees the stage. */
static __device__ __forceinline__ int chunk_position(const int *position)
{
    int at = 0;
    if ((threadIdx.x & 31) == 0) at = *position;
    return __shfl_sync(~0u, at, 0);
}

/* A warp has done with a stage. */
static __device__ __forceinline__ void chunk_free(uint64_t *barrier)
{
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(smem_address(barrier));
}

template <int D>
static __device__ __forceinline__ void chunk_compute(const chunk_params &p, const chunk_job &job,
                                                     const chunk_span &span, chunk_shared<D> &sh, bool first)
{
    const int group = threadIdx.x / 128, lane = threadIdx.x & 31;
    if (p.act == BS_TYPE_F32) chunk_put_q<D, true>(p, job, span, sh);
    else chunk_put_q<D, false>(p, job, span, sh);
    fence_shared_async();
    named_wait(CHUNK_ROWS_READY + group, 128);
    chunk_rows rows;
#pragma unroll
    for (int x = 0; x < 2; x++) {
        const int row = threadIdx.x / 32 * 16 + lane / 4 + 8 * x,
                  token = chunk_token_of(p, span, job.row0 + row);
        rows.gain[x] = sh.gains[row];
        rows.most[x] = -INFINITY;
        rows.sum[x] = 0;
        rows.lo[x] = chunk_lo(p, span, token);
        rows.hi[x] = chunk_hi(span, token);
    }
    /* Positions that every row of the warpgroup sees. */
    const int row0 = job.row0 + group * 64;
    const int all_lo = chunk_lo(p, span, chunk_token_of(p, span, row0 + 63)),
              all_hi = chunk_hi(span, chunk_token_of(p, span, row0));
    const uint64_t q = wgmma_tile(smem_address(sh.q) + group * 64 * 128, 0);
    float o[D / 2];
#pragma unroll
    for (int j = 0; j < D / 2; j++) o[j] = 0;
    int stage = 0;
    uint32_t parity = 0;
    barrier_wait(smem_address(&sh.k_there[0]), 0);
    int position = chunk_position(&sh.position[0]);
    if (position >= 0) {
        float s[64], keep[2];
        uint32_t a[8][4];
        wgmma_fence();
        chunk_scores<D>(s, q, wgmma_tile(smem_address(sh.k[0]), 0));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(s);
        chunk_free(&sh.k_free[0]);
        if (position < all_lo || position + CHUNK_PAGE > all_hi) chunk_mask(s, rows, position);
        chunk_softmax(s, rows, keep);
        chunk_round(s, a);
        for (;;) {
            const int next = stage + 1 == CHUNK_STAGES ? 0 : stage + 1;
            const uint32_t next_parity = next == 0 ? parity ^ 1 : parity;
            barrier_wait(smem_address(&sh.k_there[next]), next_parity);
            position = chunk_position(&sh.position[next]);
            if (position < 0) break;
            wgmma_fence();
            chunk_scores<D>(s, q, wgmma_tile(smem_address(sh.k[next]), 0));
            wgmma_commit();
            barrier_wait(smem_address(&sh.v_there[stage]), parity);
            chunk_weigh(o, a, wgmma_tile(smem_address(sh.v[stage]), CHUNK_PAGE * 128));
            wgmma_commit();
            wgmma_wait<1>();
            wgmma_hold(s);
            chunk_free(&sh.k_free[next]);
            if (position < all_lo || position + CHUNK_PAGE > all_hi) chunk_mask(s, rows, position);
            chunk_softmax(s, rows, keep);
            wgmma_wait<0>();
            wgmma_hold(o);
            chunk_free(&sh.v_free[stage]);
            chunk_round(s, a);
            chunk_keep(o, keep);
            stage = next;
            parity = next_parity;
        }
        wgmma_fence();
        barrier_wait(smem_address(&sh.v_there[stage]), parity);
        chunk_weigh(o, a, wgmma_tile(smem_address(sh.v[stage]), CHUNK_PAGE * 128));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(o);
    }
    chunk_leave<D>(p, job, span, rows, o, first);
}

template <int D>
static __global__ void __launch_bounds__(CHUNK_THREADS, 1)
    chunk_kernel(const __grid_constant__ chunk_params p, bool first)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t dynamic[];
    chunk_shared<D> &sh = *reinterpret_cast<chunk_shared<D> *>(dynamic);
    chunk_job job;
    chunk_span span;
    if (!chunk_find_job(p, &job, &span)) return;
    if (job.unit0 == job.unit1 && !first) return; /* nothing new */
    if (threadIdx.x == 0) {
        for (int i = 0; i < CHUNK_STAGES; i++) {
            barrier_init(smem_address(&sh.k_there[i]), 1);
            barrier_init(smem_address(&sh.v_there[i]), 1);
            barrier_init(smem_address(&sh.k_free[i]), 4 * CHUNK_GROUPS); /* warps */
            barrier_init(smem_address(&sh.v_free[i]), 4 * CHUNK_GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= 128 * CHUNK_GROUPS) {
        give_registers<24>();
        if (threadIdx.x < 128 * CHUNK_GROUPS + 32) chunk_copy<D>(p, job, span, sh);
    } else {
        take_registers<240>();
        chunk_compute<D>(p, job, span, sh, first);
    }
#else
    __trap(); /* never launched: attend_chunk.cu asks the device, and configure the compiler */
#endif
}

template <int D>
static bs_status chunk_launch(const bs_stream *stream, const chunk_params *p, int max_blocks, bool first)
{
    auto *kernel = chunk_kernel<D>;
    const int smem = (int)sizeof(chunk_shared<D>);
    BS_TRY(bs_cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem),
                          "attend"));
    kernel<<<(unsigned)(max_blocks * p->layout.n_kv_heads * p->n_splits), CHUNK_THREADS, (size_t)smem,
             bs_cuda_stream(stream)>>>(*p, first);
    return bs_cuda_launched("attend");
}

#endif
