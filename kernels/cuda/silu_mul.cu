/* silu_mul.cu: the gated unit between the two halves of the FFN.
 *
 * Math     out = gate / (1 + exp(−gate)) · up.
 * Layout   gate, up, out [T, n] act, ld and ld_out elements from row to row; out may be gate.
 * Mapping  a thread 16 bytes of a row (8 elements, 4 in F32) where rows and ld allow it, else one element.
 * Cost     3 × 2 B an element in bf16: 14,336 are 86 KB, the launch is all of it; 2,048 tokens are 176 MB, 38 us at
 * 4.66 TB/s.
 * Numerics f32; expf within 2 ulp; one rounding to act.
 * Limits   T below 65,536.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { THREADS = 128 };

struct alignas(16) halves {
    uint16_t x[8];
};

/* N elements of 16 bytes together, or 1. */
template <int N> static __global__ void __launch_bounds__(THREADS) silu_kernel(bs_silu_mul_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    const int64_t at = blockIdx.y * a.ld + i, to = blockIdx.y * a.ld_out + i;
    if (i >= a.n) return;
    if constexpr (N == 1) {
        const float gate = bs_cuda_load_act(a.gate, at, a.act), up = bs_cuda_load_act(a.up, at, a.act);
        bs_cuda_store_act(a.out, to, a.act, bs_cuda_silu(gate) * up);
    } else if constexpr (N == 4) {
        const float4 g = *(const float4 *)((const float *)a.gate + at);
        const float4 u = *(const float4 *)((const float *)a.up + at);
        *(float4 *)((float *)a.out + to) = make_float4(bs_cuda_silu(g.x) * u.x, bs_cuda_silu(g.y) * u.y,
                                                       bs_cuda_silu(g.z) * u.z, bs_cuda_silu(g.w) * u.w);
    } else {
        const halves g = *(const halves *)((const uint16_t *)a.gate + at);
        const halves u = *(const halves *)((const uint16_t *)a.up + at);
        halves y;
#pragma unroll
        for (int k = 0; k < N; k++)
            bs_cuda_store_act(y.x, k, a.act,
                              bs_cuda_silu(bs_cuda_load_act(g.x, k, a.act)) *
                                  bs_cuda_load_act(u.x, k, a.act));
        *(halves *)((uint16_t *)a.out + to) = y;
    }
}

bs_status bs_cuda_silu_mul(bs_stream *stream, const bs_silu_mul_args *args)
{
    if (args->n_tokens > 65535)
        return bs_fail(BS_STATUS_RANGE, "silu_mul: %d tokens are too many for one launch", args->n_tokens);
    const int wide = args->act == BS_TYPE_F32 ? 4 : 8;
    const uintptr_t addresses = (uintptr_t)args->gate | (uintptr_t)args->up | (uintptr_t)args->out;
    const bool aligned = addresses % 16 == 0 && (args->n | args->ld | args->ld_out) % wide == 0;
    const int64_t a_cta = (int64_t)THREADS * (aligned ? wide : 1);
    const dim3 grid((unsigned)((args->n + a_cta - 1) / a_cta), (unsigned)args->n_tokens);
    void (*kernel)(bs_silu_mul_args) = !aligned    ? silu_kernel<1>
                                       : wide == 4 ? silu_kernel<4>
                                                   : silu_kernel<8>;
    return bs_cuda_launch(stream, "silu_mul", kernel, grid, dim3(THREADS), 0, *args);
}
