/* rmsnorm.cu: the residual's addition and RMSNorm in one pass.
 *
 * Math     x_out = x + add; out = x_out · gain / √(mean(x_out²) + eps).
 * Layout   x, add, x_out [T, n] f32 (x by rows[t] where given), gain [n] f32, out [T, n] act.
 * Mapping  a CTA a token. Its row stays in registers, up to 16 elements a thread of 1,024, beyond that it is read
 * again from the L1. gain, a weight, is fetched before the wait for the kernel before.
 * Cost     one token of 4,096: 16 KB each of x, add, x_out and gain, 8 KB of out: latency, not bandwidth, is the
 * time (about 2 us, most of it hidden behind the next kernel's weights). 2,048 tokens: 117 MB, 25 us at 4.66 TB/s.
 * Numerics squares and their sum in f32, in a fixed tree; 1/sqrtf, then two products; one rounding to act.
 * Limits   none; rows of 16-byte chunks are read as such, others by the element.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { WARP = 32, MAX_THREADS = 1024, KEPT = 4 }; /* chunks of a row that a thread keeps */

/* N elements of a row at a time: 4 or 1. */
template <int N> struct chunk {
    float x[N];
};

template <int N> static __device__ __forceinline__ chunk<N> load(const float *from, int i)
{
    chunk<N> c;
    if constexpr (N == 4) {
        const float4 v = ((const float4 *)from)[i];
        c.x[0] = v.x;
        c.x[1] = v.y;
        c.x[2] = v.z;
        c.x[3] = v.w;
    } else {
        c.x[0] = from[i];
    }
    return c;
}

template <int N> static __device__ __forceinline__ void store(float *to, int i, const chunk<N> &c)
{
    if constexpr (N == 4) ((float4 *)to)[i] = make_float4(c.x[0], c.x[1], c.x[2], c.x[3]);
    else to[i] = c.x[0];
}

template <int N>
static __device__ __forceinline__ void store_out(void *to, int64_t i, bs_type act, const chunk<N> &c)
{
    if constexpr (N == 4) {
        if (act == BS_TYPE_F32) {
            ((float4 *)to)[i] = make_float4(c.x[0], c.x[1], c.x[2], c.x[3]);
            return;
        }
        bs_cuda_store_beside<4>(to, 4 * i, act, c.x);
    } else {
        bs_cuda_store_act(to, i, act, c.x[0]);
    }
}

/* The sum of all threads' values, the same in each. */
static __device__ __forceinline__ float sum_cta(float x)
{
    __shared__ float sums[MAX_THREADS / WARP];
    const int n_warps = (int)blockDim.x / WARP, lane = threadIdx.x % WARP;
    x = bs_cuda_sum_warp(x);
    if (lane == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    return bs_cuda_sum_warp(lane < n_warps ? sums[lane] : 0);
}

template <int N> static __global__ void __launch_bounds__(MAX_THREADS) rmsnorm_kernel(bs_rmsnorm_args a)
{
    const int n_chunks = a.n / N, first = threadIdx.x, step = blockDim.x;
    chunk<N> x[KEPT], gain[KEPT];
    bs_cuda_release_next();
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (first + k * step < n_chunks) gain[k] = load<N>(a.gain, first + k * step);
    bs_cuda_wait_before();

    const int64_t t = blockIdx.x, row = a.rows ? a.rows[t] : t;
    const float *from = a.x + row * a.n, *add = a.add ? a.add + t * a.n : nullptr;
    float *sum = a.add ? a.x_out + t * a.n : nullptr;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (first + k * step >= n_chunks) break;
        x[k] = load<N>(from, first + k * step);
        if (!add) continue;
        const chunk<N> other = load<N>(add, first + k * step);
#pragma unroll
        for (int e = 0; e < N; e++) x[k].x[e] += other.x[e];
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (first + k * step >= n_chunks) break;
        if (add) store<N>(sum, first + k * step, x[k]);
#pragma unroll
        for (int e = 0; e < N; e++) squares += x[k].x[e] * x[k].x[e];
    }
    for (int i = first + KEPT * step; i < n_chunks; i += step) {
        chunk<N> c = load<N>(from, i);
        if (add) {
            const chunk<N> other = load<N>(add, i);
#pragma unroll
            for (int e = 0; e < N; e++) c.x[e] += other.x[e];
            store<N>(sum, i, c);
        }
#pragma unroll
        for (int e = 0; e < N; e++) squares += c.x[e] * c.x[e];
    }
    const float scale = 1 / sqrtf(sum_cta(squares) / (float)a.n + a.eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (first + k * step >= n_chunks) break;
#pragma unroll
        for (int e = 0; e < N; e++) x[k].x[e] = x[k].x[e] * scale * gain[k].x[e];
        store_out<N>(a.out, t * n_chunks + first + k * step, a.act, x[k]);
    }
    for (int i = first + KEPT * step; i < n_chunks;
         i += step) { /* a thread reads back what it wrote itself */
        chunk<N> c = load<N>(add ? sum : from, i);
        const chunk<N> g = load<N>(a.gain, i);
#pragma unroll
        for (int e = 0; e < N; e++) c.x[e] = c.x[e] * scale * g.x[e];
        store_out<N>(a.out, t * n_chunks + i, a.act, c);
    }
}

bs_status bs_cuda_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *args)
{
    const uintptr_t addresses = (uintptr_t)args->x | (uintptr_t)args->gain | (uintptr_t)args->add |
                                (uintptr_t)args->x_out | (uintptr_t)args->out;
    const bool aligned = addresses % 16 == 0 && args->n % 4 == 0;
    /* As few threads as keep the row in registers, so that the CTA finds room beside the next GEMV's. */
    const int n_chunks = aligned ? args->n / 4 : args->n;
    int threads = (n_chunks + KEPT * WARP - 1) / (KEPT * WARP) * WARP;
    if (threads < 256) threads = 256;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    return bs_cuda_launch(stream, "rmsnorm", aligned ? rmsnorm_kernel<4> : rmsnorm_kernel<1>,
                          dim3((unsigned)args->n_tokens), dim3((unsigned)threads), 0, *args);
}
