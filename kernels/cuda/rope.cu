/* rope.cu: cos and sin of a step's positions, once for all layers.
 *
 * Math     (cos, sin) of position × inv_freq, times the attention factor; position −1: (1, 0).
 * Layout   [T, n_rot / 2, 2] f32.
 * Mapping  a thread a pair, 128 a CTA.
 * Cost     a decode token of 64 pairs is one launch, 2 to 3 us; 2,048 tokens are 131,072 f64 sincos, some
 * 10 us of the f64 pipe.
 * Numerics angle in f64 and both functions in f64 (within 2 ulp), rounded to f32 once: the CPU's bits but
 * where the f64 value lies within 2 ulp of a rounding boundary, once in 10^8 or so.
 * Limits   below 2^31 pairs.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/overlap.h"

enum { THREADS = 128 };

static __global__ void __launch_bounds__(THREADS) rope_table_kernel(bs_rope_table_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int n_pairs = a.n_rot / 2, i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= a.n_tokens * n_pairs) return;
    const int position = a.positions[i / n_pairs];
    float2 out = make_float2(1.0f, 0.0f);
    if (position >= 0) {
        double sine, cosine;
        sincos(__dmul_rn((double)position, a.inv_freq[i % n_pairs]), &sine, &cosine);
        out = make_float2(__fmul_rn((float)cosine, a.attention_factor),
                          __fmul_rn((float)sine, a.attention_factor));
    }
    a.cos_sin[2 * (int64_t)i] = out.x;
    a.cos_sin[2 * (int64_t)i + 1] = out.y;
}

bs_status bs_cuda_rope_table(bs_stream *stream, const bs_rope_table_args *args)
{
    const int64_t n = (int64_t)args->n_tokens * (args->n_rot / 2);
    if (n > INT32_MAX - THREADS)
        return bs_fail(BS_STATUS_RANGE, "rope_table: %d tokens are too many for one launch", args->n_tokens);
    return bs_cuda_launch(stream, "rope_table", rope_table_kernel,
                          dim3((unsigned)((n + THREADS - 1) / THREADS)), dim3(THREADS), 0, *args);
}
