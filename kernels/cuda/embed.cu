/* embed.cu: the tokens' rows of the embedding table, in f32.
 *
 * Math     x[t] = table[tokens[t]].
 * Layout   table [vocab, n] F32, F16 or BF16, row_bytes from row to row; x [T, n] f32.
 * Mapping  CTAs of 256 threads a token, 8 elements a thread: one load of 16 bytes where table and rows allow it.
 * Cost     T × n × (2 + 4) B: a token of 4,096 is 25 KB, the launch is all of it; 2,048 tokens are 50 MB, 11 us
 * at 4.66 TB/s.
 * Numerics exact.
 * Limits   a token outside the vocabulary gives a row of NaN, which append reports; the host checks ids before.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { THREADS = 256, CHUNK = 8, PIECE = THREADS * CHUNK /* elements of a CTA */ };

typedef struct job {
    const uint8_t *table;
    size_t row_bytes;
    int64_t n_rows, n;
    bs_type type;
    const int32_t *tokens;
    float *x;
    bool wide; /* a chunk is one load */
} job;

static __global__ void __launch_bounds__(THREADS) embed_kernel(job j)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    const int32_t token = j.tokens[blockIdx.x];
    const int64_t first = (int64_t)blockIdx.y * PIECE + (int)threadIdx.x * CHUNK;
    float *x = j.x + (int64_t)blockIdx.x * j.n;
    if (first >= j.n) return;
    const bool known = token >= 0 && token < j.n_rows;
    const uint8_t *row = j.table + (known ? (size_t)token * j.row_bytes : 0);
    if (known && j.wide) {
        alignas(16) uint16_t raw[CHUNK];
        *(uint4 *)raw = *(const uint4 *)(row + 2 * first);
        float4 *to = (float4 *)(x + first);
#pragma unroll
        for (int k = 0; k < CHUNK; k += 4)
            to[k / 4] = make_float4(bs_cuda_load_act(raw, k, j.type), bs_cuda_load_act(raw, k + 1, j.type),
                                    bs_cuda_load_act(raw, k + 2, j.type),
                                    bs_cuda_load_act(raw, k + 3, j.type));
        return;
    }
    for (int64_t i = first; i < min(first + CHUNK, j.n); i++)
        x[i] = known ? bs_cuda_load_act(row, i, j.type) : __int_as_float(0x7fffffff);
}

bs_status bs_cuda_embed(bs_stream *stream, const bs_embed_args *args)
{
    const bs_weight *w = args->table;
    if (!bs_cuda_is_float(w->type))
        return bs_fail(BS_STATUS_UNSUPPORTED, "embed: %s table; a GPU reads F32, F16 and BF16",
                       bs_type_name(w->type));
    const uintptr_t addresses = (uintptr_t)w->data | (uintptr_t)args->x | w->row_bytes;
    const bool wide = w->type != BS_TYPE_F32 && w->n_cols % CHUNK == 0 && addresses % 16 == 0;
    const int64_t n_pieces = (w->n_cols + PIECE - 1) / PIECE;
    if (n_pieces > 65535) return bs_fail(BS_STATUS_RANGE, "embed: %lld channels", (long long)w->n_cols);
    const job j = {
        (const uint8_t *)w->data, w->row_bytes, w->n_rows, w->n_cols, w->type, args->tokens, args->x, wide};
    return bs_cuda_launch(stream, "embed", embed_kernel, dim3((unsigned)args->n_tokens, (unsigned)n_pieces),
                          dim3(THREADS), 0, j);
}
