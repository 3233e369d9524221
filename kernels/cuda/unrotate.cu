/* unrotate.cu: turns the merged O back into the model's basis and rounds it to the activations' type.
 *
 * Math     y = H x / √D for each row, or y = x.
 * Layout   o [rows, D] f32, out [rows, D] act; out may be o (F32): a warp reads its row before it writes it.
 * Mapping  a warp a row, 4 rows a CTA (warp_head.h); without the rotation a thread 8 elements.
 * Cost     reads rows × D × 4 B, writes half of it in bf16: a token of 32 heads of 128 is 25 KB, the launch
 * of 2 to 3 us is all of it.
 * Numerics the CPU's bits in F32.
 * Limits   the rotation for D 64 and 128; below 2^31 elements.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { WARP = 32, ROWS_PER_CTA = 4, THREADS = 256 };

template <int D>
static __global__ void __launch_bounds__(WARP *ROWS_PER_CTA) unrotate_kernel(bs_unrotate_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int row = (int)(blockIdx.x * ROWS_PER_CTA + threadIdx.y);
    if (row >= a.n_rows) return;
    float x[D / WARP];
#pragma unroll
    for (int k = 0; k < D / WARP; k++) x[k] = a.o[(int64_t)row * D + threadIdx.x + WARP * k];
    bs_cuda_hadamard<D>(x);
#pragma unroll
    for (int k = 0; k < D / WARP; k++)
        bs_cuda_store_act(a.out, (int64_t)row * D + threadIdx.x + WARP * k, a.act, x[k]);
}

/* N elements a thread, 8 or 1: one of 16 bytes, or of 32, out. */
template <int N> static __global__ void __launch_bounds__(THREADS) convert_kernel(bs_unrotate_args a, int n)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= n) return;
    if constexpr (N == 1) {
        bs_cuda_store_act(a.out, i, a.act, a.o[i]);
    } else {
        const float4 x[2] = {*(const float4 *)(a.o + i), *(const float4 *)(a.o + i + 4)};
        if (a.act == BS_TYPE_F32) {
            *(float4 *)((float *)a.out + i) = x[0];
            *(float4 *)((float *)a.out + i + 4) = x[1];
            return;
        }
        bs_cuda_store_beside<N>(a.out, i, a.act, (const float *)x);
    }
}

bs_status bs_cuda_unrotate(bs_stream *stream, const bs_unrotate_args *args)
{
    const dim3 block(WARP, ROWS_PER_CTA);
    const unsigned n_ctas = ((unsigned)args->n_rows + ROWS_PER_CTA - 1) / ROWS_PER_CTA;
    const int64_t n = (int64_t)args->n_rows * args->dim;
    if (args->hadamard && args->dim != 64 && args->dim != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "unrotate: head size %d; GPU kernels exist for 64 and 128",
                       args->dim);
    if (n > INT32_MAX - 8 * THREADS)
        return bs_fail(BS_STATUS_RANGE, "unrotate: %d rows are too many for one launch", args->n_rows);
    if (!args->hadamard) {
        const bool wide = n % 8 == 0 && ((uintptr_t)args->o | (uintptr_t)args->out) % 16 == 0;
        const int64_t a_cta = THREADS * (wide ? 8 : 1);
        return bs_cuda_launch(stream, "unrotate", wide ? convert_kernel<8> : convert_kernel<1>,
                              dim3((unsigned)((n + a_cta - 1) / a_cta)), dim3(THREADS), 0, *args, (int)n);
    }
    return bs_cuda_launch(stream, "unrotate", args->dim == 128 ? unrotate_kernel<128> : unrotate_kernel<64>,
                          dim3(n_ctas), block, 0, *args);
}
