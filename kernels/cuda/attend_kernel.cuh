/* attend_kernel.cuh: attention of a step's query tokens over this shard's pages: one launch, splits merged
 * inside.
 *
 * Math     O = Σ p_t v_t / Σ p_t, LSE = ln Σ exp(scale·q·k_t) over the tokens a row may see; over quantized
 *          pages with integer tensor cores, as attend_warp.cuh says, over f16 pages with mma.m16n8k16.
 * Layout   kv_layout.h; q [T, H, D], O [T, H, D] f32, LSE [T, H] f32; page lists as kernels.h says.
 * Mapping  one CTA an SM, 7 to 15 warps and a dispatcher (attend_load.cuh); a warp owns whole pages, in turn,
 *          with a ring of a K and a V half that bulk copies fill, and its own (m, l, O); at the end of a segment
 *          a warp a row merges the warps of the CTA, and in the last CTA of a job the CTAs (attend_merge.cuh),
 *          in a fixed order: the same bits every time.
 * Cost     reads every byte of the visible pages once a block of rows, nothing else of size: 1M tokens of 8
 *          KV heads, D 128, are 1.14 GB at int4 g128: 246 µs at 4.64 TB/s; 0.61 GB at int2: 131 µs.
 * Numerics factors of codes have 15 and 16 bits, their sums are exact, everything between pages is f32.
 * Limits   q of f32 activations is rounded to fp16 (relative to a row's largest); head size 64 or 128; G and
 *          T any (blocks of 8 rows re-read the pages, and cost their arithmetic again); compute capability 9.0.
 * Measured 2026-11-28, H200 (a read of 4.64 TB/s), those two caches, G = 4, PDL: 257 µs (95.8 % of a read) and
 *          144 µs (90.3 to 91.3 %); what does not shrink with the cache is 7 µs, 10 without PDL. 8 rows at 2 bits:
 *          66 %. docs/perf/LOG.md, docs/kernels/decode-attention.md.
 */
#ifndef BS_CUDA_ATTEND_KERNEL_CUH
#define BS_CUDA_ATTEND_KERNEL_CUH

#include "kernels/cuda/attend_merge.cuh"
#include "kernels/cuda/overlap.h"

/* Positions [lo, hi) that this lane's rows see, and that anybody in the block does. Made anew where they are
 * needed: few pages do. */
template <int R> struct attend_limits {
    int lo[R == 4 ? 1 : 2], hi[R == 4 ? 1 : 2];
    int any_lo, any_hi;
};

template <int R>
static __device__ __forceinline__ attend_limits<R> attend_limits_of(const attend_params &p,
                                                                    const attend_span &span, int block)
{
    constexpr int NR = R == 4 ? 1 : 2;
    attend_limits<R> l;
#pragma unroll
    for (int x = 0; x < NR; x++) {
        const int token = attend_token_of(p, block, R, NR * (threadIdx.x & 3) + x);
        l.hi[x] = min(span.n_seen, span.pos0 + token + 1);
        l.lo[x] = p.window > 0 ? max(0, span.pos0 + token - p.window + 1) : 0;
    }
    l.any_lo = __reduce_min_sync(~0u, l.lo[0]);
    l.any_hi = __reduce_max_sync(~0u, l.hi[NR - 1]);
    return l;
}

/* Sets the scores of a quantized page that a row may not see to −inf; returns which of this lane's 16 tokens
 * anybody may see. */
template <int R>
static __device__ __forceinline__ uint32_t attend_mask(float (&sc)[8][2 * (R == 4 ? 1 : 2)], int position,
                                                       const attend_limits<R> &l)
{
    constexpr int NR = R == 4 ? 1 : 2;
    uint32_t visible = 0;
    const int first = position + (threadIdx.x >> 2 & 7);
#pragma unroll
    for (int j = 0; j < 16; j++) {
        const int at = first + 8 * j;
        if (at >= l.any_lo && at < l.any_hi) visible |= 1u << j;
#pragma unroll
        for (int x = 0; x < NR; x++)
            if (at < l.lo[x] || at >= l.hi[x]) sc[j / 2][j % 2 * NR + x] = -INFINITY;
    }
    return visible;
}

/* The state of a new segment: empty, with the job's q and gains. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void attend_start(attend_state<D, R, G32> &st,
                                                    const attend_jobs<D, R> &jobs, int number)
{
    constexpr int NR = R == 4 ? 1 : 2;
    const int lane = threadIdx.x & 31;
    st.q = attend_q_at<D>(smem_address(jobs.q[number & 1]), (lane >> 2) / (R == 4 ? 2 : 1), lane & 3);
#pragma unroll
    for (int x = 0; x < NR; x++) {
        st.gain[x] = jobs.gains[number & 1][NR * (lane & 3) + x];
        st.m[x] = -INFINITY;
        st.l[x] = 0;
#pragma unroll
        for (int t = 0; t < D / 16; t++) st.o[t][x] = st.o[t][NR + x] = 0;
#pragma unroll
        for (int g = 0; g < st.NG; g++) st.zero[g][x] = 0;
    }
}

/* The part of a CTA's shared memory whose size is known. Behind it, as launched: the warps' rings of two slots,
 * their states [warps][R][PITCH] f32, and the spans of all sequences. */
template <int D, int R, int WARPS> struct attend_shared {
    uint8_t weights[WARPS][R == 4 ? 1024 : 2048]; /* planes of attend_weights */
    attend_jobs<D, R> jobs;
    float2 ml[WARPS][R]; /* of the states */
    attend_queue queues[WARPS];
    uint64_t there[WARPS][2]; /* barriers of the rings: K half, V half */
    attend_plan plan;
};

template <int KB, int VB, int D, int R, bool G32>
static __global__ void __launch_bounds__(attend_max_warps(KB, VB, D, R) * 32 + 32, 1)
    attend_kernel(const __grid_constant__ attend_params p)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* refused at start elsewhere */
    constexpr int NR = R == 4 ? 1 : 2, PITCH = attend_row_floats(D);
    extern __shared__ __align__(128) uint8_t dynamic[];
    __shared__ __align__(128) attend_shared<D, R, attend_max_warps(KB, VB, D, R)> shared;
    static_assert(sizeof shared <= attend_fixed_bytes(D, R, attend_max_warps(KB, VB, D, R)),
                  "attend_fixed_bytes");
    const int n_warps = blockDim.x / 32 - 1, lane = threadIdx.x & 31; /* besides the dispatcher */
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / 32, 0); /* the compiler sees that it is uniform */
    float *const states = reinterpret_cast<float *>(dynamic + n_warps * 2 * p.stage_bytes);
    attend_span *const spans = reinterpret_cast<attend_span *>(states + n_warps * R * PITCH);
    attend_jobs<D, R> &jobs = shared.jobs;

    if (warp < n_warps) {
        if (lane < ATTEND_QUEUE) {
            barrier_init(smem_address(&shared.queues[warp].there[lane]), 1);
            barrier_init(smem_address(&shared.queues[warp].read[lane]), 1);
        }
        if (lane < 2) barrier_init(smem_address(&shared.there[warp][lane]), 1);
    } else if (lane == 0) { /* all lanes arrive */
        barrier_init(smem_address(&jobs.q_there[0]), 32);
        barrier_init(smem_address(&jobs.q_there[1]), 32);
        barrier_init(smem_address(&jobs.states_there[0]), 32 * n_warps);
        barrier_init(smem_address(&jobs.states_there[1]), 32 * n_warps);
        barrier_init(smem_address(&jobs.states_read), 32 * min(R, n_warps));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    attend_make_plan(p, spans, &shared.plan, R);
    if (shared.plan.first >= shared.plan.end) return;
    if (warp == n_warps) {
        attend_dispatch<D, R>(p, shared.plan, spans, shared.queues, jobs, n_warps);
        return;
    }
    const attend_weights weights = weights_at(smem_address(shared.weights[warp]));
    attend_ring ring;
    ring.queue = smem_address(&shared.queues[warp]);
    ring.k = smem_address(dynamic) + warp * 2 * p.stage_bytes;
    ring.there = smem_address(shared.there[warp]);
    ring.taken = 0;
    attend_entry entry = attend_take(ring);
    /* Before the kernel before has ended only quantized pages are complete (kernels.h says so); f16 pages and
     * q may come from it. */
    const bool early = p.overlap == 0 || (entry.tag & 3) >= UNIT_QUANT;
    if (early) attend_ask<R>(ring, entry, p, false);
    if (p.overlap) {
        bs_cuda_wait_before();
        /* The next kernel may take each SM as it falls free; it waits for this one by itself. */
        bs_cuda_release_next();
    }
    if (!early) attend_ask<R>(ring, entry, p, false);
    int number = 0; /* of the segment */
    attend_state<D, R, G32> st;
    barrier_wait(smem_address(&jobs.q_there[0]), 0);
    attend_start(st, jobs, number);
    /* Only now, with q here: loads wait behind all bytes that are on their way. */
    attend_ask<R>(ring, entry, p, true);
#pragma unroll 1
    for (uint32_t parity = 0;; parity ^= 1) {
#pragma unroll 1
        for (uint32_t ends = entry.tag >> 2; ends > 0; ends--) {
            const int odd = number & 1;
            /* The states of the segment before have been read. */
            if (number > 0) barrier_wait(smem_address(&jobs.states_read), odd ^ 1);
            attend_leave_state<D, R, G32>(st, p, shared.ml[warp], states + warp * R * PITCH);
            barrier_arrive(smem_address(&jobs.states_there[odd]));
            /* Rows go round the warps: merging is work that the others do not have. */
            int row = (warp - number * R) % n_warps;
            if (row < 0) row += n_warps;
            if (row < R) {
                const attend_segment s = jobs.segments[number & 3];
                const attend_merging merging = jobs.merging[number & 3];
                barrier_wait(smem_address(&jobs.states_there[odd]), number >> 1 & 1);
#pragma unroll 1
                for (; row < R; row += n_warps)
                    attend_merge_row<D, R>(p, merging, spans[s.seq], s, shared.ml[0], states, n_warps, row,
                                           row + n_warps >= R ? smem_address(&jobs.states_read) : 0);
            }
            if (ends == 1 && (entry.tag & 3) == UNIT_END) return;
            number++;
            barrier_wait(smem_address(&jobs.q_there[number & 1]), number >> 1 & 1);
            attend_start(st, jobs, number);
        }
        attend_entry next;
        barrier_wait(ring.there, parity);
        if ((entry.tag & 3) >= UNIT_QUANT) {
            float sc[8][2 * NR], weight[NR];
            if (p.layout.k_per_channel) k_scores_per_channel<KB, D, R, G32>(st, ring.k, p.layout, sc);
            else
                k_scores_per_token<KB, D, R, G32>(
                    st, ring.k, p.layout, smem_address(jobs.factors[number & 1]), jobs.units[number & 1], sc);
            if (p.layout.k_norm) apply_norm<R>(ring.k + p.layout.k_n, sc);
            next = attend_take(ring);
            attend_ask<R>(ring, next, p, false);
            uint32_t visible = 0xffffu;
            if ((entry.tag & 3) == UNIT_EDGE) {
                const attend_segment &s = jobs.segments[number & 3];
                visible = attend_mask<R>(sc, entry.position, attend_limits_of<R>(p, spans[s.seq], s.block));
            }
            softmax_page<D, R, G32>(st, sc, weight);
            barrier_wait(ring.there + 8, parity);
            v_sum<VB, D, R, G32>(st, ring.k + p.stage_bytes, p.layout, sc, weight, visible, weights);
        } else {
            barrier_wait(ring.there + 8, parity);
            const attend_segment &s = jobs.segments[number & 3];
            const attend_limits<R> l = attend_limits_of<R>(p, spans[s.seq], s.block);
#pragma unroll 1
            for (int t = 0; t < 1 << p.slice_log2; t += 16) {
                if (entry.position + t >= l.any_hi) break;
                f16_tile<D, R, G32>(st, ring.k + t * 2 * D, ring.k + p.stage_bytes + t * 2 * D, l.lo, l.hi,
                                    l.any_lo, l.any_hi, entry.position + t);
            }
            next = attend_take(ring);
            attend_ask<R>(ring, next, p, false);
        }
        __syncwarp();
        attend_ask<R>(ring, next, p, true);
        entry = next;
    }
#endif
}

template <int KB, int VB, int D, int R, bool G32>
static bs_status attend_launch(const attend_params *p, int n_ctas, int n_warps, size_t smem,
                               const bs_stream *stream)
{
    auto *kernel = attend_kernel<KB, VB, D, R, G32>;
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem), "attend"));
    const dim3 block((unsigned)n_warps * 32 + 32); /* and the dispatcher */
    return bs_cuda_launch(stream, "attend", kernel, dim3((unsigned)n_ctas), block, smem, *p);
}

template <int KB, int VB>
static bs_status attend_launch_pair(const attend_params *p, int rows, int n_ctas, int n_warps, size_t smem,
                                    const bs_stream *stream)
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
    return bs_cuda_status(cudaErrorInvalidValue, "attend");
}

#endif
