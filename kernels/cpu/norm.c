/* norm.c: the small dense ops between the GEMMs: embedding rows, RMSNorm (with the residual's addition),
 * gated SiLU, a token a part for the threads. A few percent of a step together; plain loops that the compiler
 * vectorises but for exp, sums of squares in double. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pool.h"

#include <math.h>
#include <string.h>

bs_status bs_cpu_embed(bs_stream *stream, const bs_embed_args *a)
{
    const bs_weight *w = a->table;
    for (int t = 0; t < a->n_tokens; t++) {
        if (a->tokens[t] < 0 || a->tokens[t] >= w->n_rows)
            return bs_fail(BS_STATUS_RANGE, "embed: token %d, the vocabulary has %lld", a->tokens[t],
                           (long long)w->n_rows);
        const char *row = (const char *)w->data + (size_t)a->tokens[t] * w->row_bytes;
        BS_TRY(bs_dequantize_row(w->type, row, a->x + (int64_t)t * w->n_cols, w->n_cols));
    }
    return BS_STATUS_OK;
}

static void norm_token(void *context, int t)
{
    enum { N_SUMS = 8 }; /* side by side, so that no addition waits for the one before it */
    const bs_rmsnorm_args *a = context;
    const float *x = a->x + (int64_t)(a->rows ? a->rows[t] : t) * a->n;
    float *out = (float *)a->out + (int64_t)t * a->n;
    if (a->add) {
        const float *add = a->add + (int64_t)t * a->n;
        float *sum = a->x_out + (int64_t)t * a->n;
        for (int i = 0; i < a->n; i++) sum[i] = x[i] + add[i];
        x = sum;
    }
    double squares[N_SUMS] = {0};
    int i = 0;
    for (; i + N_SUMS <= a->n; i += N_SUMS)
        for (int j = 0; j < N_SUMS; j++) squares[j] += (double)x[i + j] * x[i + j];
    for (; i < a->n; i++) squares[0] += (double)x[i] * x[i];
    for (int j = 1; j < N_SUMS; j++) squares[0] += squares[j];
    float scale = (float)(1 / sqrt(squares[0] / a->n + a->eps));
    for (i = 0; i < a->n; i++) out[i] = x[i] * scale * a->gain[i];
}

bs_status bs_cpu_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *a)
{
    bs_rmsnorm_args args = *a;
    bs_pool_run(bs_stream_pool(stream), a->n_tokens, norm_token, &args);
    return BS_STATUS_OK;
}

typedef struct silu_job {
    const bs_silu_mul_args *args;
    bs_isa isa;
} silu_job;

static void silu_token(void *context, int t)
{
    const silu_job *j = context;
    const bs_silu_mul_args *a = j->args;
    const float *gate = (const float *)a->gate + t * a->ld, *up = (const float *)a->up + t * a->ld;
    float *out = (float *)a->out + t * a->ld_out;
#if defined(__x86_64__)
    if (j->isa == BS_ISA_AVX512) {
        bs_cpu_silu_row_avx512(gate, up, a->n, out);
        return;
    }
    if (j->isa == BS_ISA_AVX2) {
        bs_cpu_silu_row_avx2(gate, up, a->n, out);
        return;
    }
#endif
    for (int64_t i = 0; i < a->n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

bs_status bs_cpu_silu_mul(bs_stream *stream, const bs_silu_mul_args *a)
{
    silu_job job = {a, stream->device->info.isa};
    bs_pool_run(bs_stream_pool(stream), a->n_tokens, silu_token, &job);
    return BS_STATUS_OK;
}
