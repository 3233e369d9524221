/* embed.cu: the tokens' rows of the embedding table, in f32.
 *
 * Math     x[t] = table[tokens[t]].
 * Layout   table [vocab, n] F32, F16 or BF16, row_bytes from row to row; x [T, n] f32.
 * Mapping  a CTA of 256 threads a token, an element a thread at a time.
 * Cost     T × n × (2 + 4) B: a token of 4,096 is 25 KB, the launch is all of it; 2,048 tokens are 50 MB, 11 us
 * at 4.66 TB/s.
 * Numerics exact.
 * Limits   a token outside the vocabulary gives a row of NaN, which append reports; the host checks ids before.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { THREADS = 256 };

typedef struct job {
    const uint8_t *table;
    size_t row_bytes;
    int64_t n_rows, n;
    bs_type type;
    const int32_t *tokens;
    float *x;
} job;

static __global__ void __launch_bounds__(THREADS) embed_kernel(job j)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int32_t token = j.tokens[blockIdx.x];
    float *x = j.x + (int64_t)blockIdx.x * j.n;
    const bool known = token >= 0 && token < j.n_rows;
    const uint8_t *row = j.table + (known ? (size_t)token * j.row_bytes : 0);
    for (int64_t i = threadIdx.x; i < j.n; i += THREADS)
        x[i] = known ? bs_cuda_load_act(row, i, j.type) : __int_as_float(0x7fffffff);
}

bs_status bs_cuda_embed(bs_stream *stream, const bs_embed_args *args)
{
    const bs_weight *w = args->table;
    if (!bs_cuda_is_float(w->type))
        return bs_fail(BS_STATUS_UNSUPPORTED, "embed: %s table; a GPU reads F32, F16 and BF16",
                       bs_type_name(w->type));
    const job j = {
        (const uint8_t *)w->data, w->row_bytes, w->n_rows, w->n_cols, w->type, args->tokens, args->x};
    return bs_cuda_launch(stream, "embed", embed_kernel, dim3((unsigned)args->n_tokens), dim3(THREADS), 0, j);
}
