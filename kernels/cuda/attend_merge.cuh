/* attend_merge.cuh: the end of a segment: warps become one state, and the states of a job's CTAs one result.
 *
 * A warp merges one row: first the CTA's warps from shared memory, then, if it is the last of the job's CTAs
 * to arrive at that row's counter, all of them from L2; always in the same order. There is no barrier of the
 * CTA: the other warps go on with the next segment.
 */
#ifndef BS_CUDA_ATTEND_MERGE_CUH
#define BS_CUDA_ATTEND_MERGE_CUH

#include "kernels/cuda/attend_load.cuh"
#include "kernels/cuda/warp_head.h"

/* Leaves a warp's (m, l, O) of R rows in shared memory. */
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

/* A lane's channels of a row's O: D/32 from D/32·lane on. */
template <int D> struct attend_piece {
    float x[D / 32];
};

template <int D>
static __device__ __forceinline__ attend_piece<D> attend_get_piece(const float *row, bool far)
{
    attend_piece<D> a;
    const float *at = row + (threadIdx.x & 31) * (D / 32);
    if constexpr (D == 128) {
        const float4 v = far ? __ldcg(reinterpret_cast<const float4 *>(at))
                             : *reinterpret_cast<const float4 *>(at);
        a.x[0] = v.x, a.x[1] = v.y, a.x[2] = v.z, a.x[3] = v.w;
    } else {
        const float2 v = far ? __ldcg(reinterpret_cast<const float2 *>(at))
                             : *reinterpret_cast<const float2 *>(at);
        a.x[0] = v.x, a.x[1] = v.y;
    }
    return a;
}

template <int D> static __device__ __forceinline__ void attend_put_piece(float *row, const attend_piece<D> &a)
{
    float *at = row + (threadIdx.x & 31) * (D / 32);
    if constexpr (D == 128) *reinterpret_cast<float4 *>(at) = make_float4(a.x[0], a.x[1], a.x[2], a.x[3]);
    else *reinterpret_cast<float2 *>(at) = make_float2(a.x[0], a.x[1]);
}

/* A row of O in the model's basis, as activations of 16 bits: what unrotate.cu makes of it. */
template <int D>
static __device__ __forceinline__ void attend_put_attended(const attend_params &p, int64_t row,
                                                           attend_piece<D> &a)
{
    constexpr int E = D / 32;
    uint16_t *to = (uint16_t *)p.attended + row * D + (threadIdx.x & 31) * E;
    if (p.hadamard) bs_cuda_hadamard_beside<D>(a.x);
    bs_cuda_store_beside<E>(to, 0, p.attended_type, a.x);
}

/* Merges n states of one row: (m, l) of state c at ml[stride·c], O at o + stride·c rows, those of state 0
 * `shift` rows further; FAR: in global memory. Every state has been written whole, so nothing needs to be
 * skipped: l = 0 comes with O = 0, and NaN must get through. Returns (m, l), and O · l in sum. */
template <int D, bool FAR>
static __device__ __forceinline__ float2 attend_sum_states(const float2 *ml, const float *o, int n,
                                                           int stride, int shift, attend_piece<D> &sum)
{
    constexpr int PITCH = attend_row_floats(D), BATCH = 8;
    const int lane = threadIdx.x & 31;
    float2 total = make_float2(-INFINITY, 0);
#pragma unroll
    for (int d = 0; d < D / 32; d++) sum.x[d] = 0;
#pragma unroll 1
    for (int c0 = 0; c0 < n; c0 += 32) {
        const int m = min(n - c0, 32);
        const int half = m > 16 ? 16 : 8, mine = lane & (2 * half - 1); /* up to 16: twice, a step less */
        float2 part = make_float2(-INFINITY, 0);
        if (mine < m) {
            const float2 *at = ml + (c0 + mine) * stride + (c0 + mine == 0 ? shift : 0);
            part = FAR ? __ldcg(at) : *at;
        }
        attend_piece<D> x[BATCH];
        /* A batch of states is on its way before the weights are known. */
#pragma unroll
        for (int y = 0; y < BATCH; y++)
            if (y < m)
                x[y] = attend_get_piece<D>(o + ((c0 + y) * stride + (c0 + y == 0 ? shift : 0)) * PITCH, FAR);
        float most = fmaxf(part.x, total.x);
#pragma unroll 1
        for (int d = half; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
        const float base = most == -INFINITY ? 0 : most, w = exp2_fast(part.x - base);
        const float before = exp2_fast(total.x - base);
        float l = w * part.y;
#pragma unroll 1
        for (int d = half; d > 0; d /= 2) l += __shfl_xor_sync(~0u, l, d);
        total = make_float2(most, fmaf(total.y, before, l));
#pragma unroll
        for (int d = 0; d < D / 32; d++) sum.x[d] *= before;
#pragma unroll 1
        for (int y0 = 0; y0 < m; y0 += BATCH) {
#pragma unroll
            for (int y = 0; y < BATCH; y++) {
                const float wy = __shfl_sync(~0u, w, (y0 + y) & 31);
                if (y0 + y < m) {
#pragma unroll
                    for (int d = 0; d < D / 32; d++) sum.x[d] = fmaf(wy, x[y].x[d], sum.x[d]);
                }
            }
#pragma unroll
            for (int y = 0; y < BATCH; y++)
                if (y0 + BATCH + y < m)
                    x[y] = attend_get_piece<D>(o + (c0 + y0 + BATCH + y) * stride * PITCH, FAR);
        }
    }
    return total;
}

/* One row of a segment, from the CTA's states in shared memory. `free`: a barrier that every lane arrives at
 * when it has read its part of them, 0 for none. */
template <int D, int R>
static __device__ __forceinline__ void attend_merge_row(const attend_params &p, const attend_merging &merging,
                                                        const attend_span &span,
                                                        const attend_segment &segment, const float2 *ml,
                                                        const float *o, int n_warps, int row, uint32_t free)
{
    constexpr int PITCH = attend_row_floats(D);
    const int lane = threadIdx.x & 31;
    attend_piece<D> sum;
    const int token = attend_token_of(p, segment.block, R, row);
    const int head = segment.kv_head * p.group + segment.block * R + row - token * p.group;
    const int64_t to = (int64_t)(span.q_start + token) * p.n_heads + head;
    float2 total = attend_sum_states<D, false>(ml + row, o + row * PITCH, n_warps, R, 0, sum);
    if (free != 0) barrier_arrive(free);
    if (!merging.whole) {
        const int mine = (int)(2 * blockIdx.x + (segment.first == 0));
        attend_put_piece<D>(p.part_o + (mine * R + row) * PITCH, sum);
        if (lane == 0) p.part_ml[mine * R + row] = total;
        __syncwarp();
        uint32_t before = 0;
        if (lane == 0) before = count_arrival(&p.arrived[merging.job * R + row]);
        if (__shfl_sync(~0u, before, 0) != merging.n - 1) return;
        if (lane == 0) p.arrived[merging.job * R + row] = 0;
        /* A run leaves a job that it began in its second place, any other in its first. */
        const int at = (int)(2 * merging.run0) * R + row;
        total = attend_sum_states<D, true>(p.part_ml + at, p.part_o + (int64_t)at * PITCH, (int)merging.n,
                                           2 * R, R, sum);
    }
    if (token >= span.n_query) return;
    const float scale = total.y == 0 ? 0 : 1 / total.y;
#pragma unroll
    for (int d = 0; d < D / 32; d++) sum.x[d] *= scale;
    if (p.attended) attend_put_attended<D>(p, to, sum);
    else attend_put_piece<D>(p.o + to * D, sum);
    if (lane == 0) p.lse[to] = total.y == 0 ? -INFINITY : (total.x + log2f(total.y)) * 0.6931471805599453f;
}

#endif
