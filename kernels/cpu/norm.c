/* norm.c: the small dense ops between the GEMMs: embedding rows, RMSNorm (with the residual's addition),
 * gated SiLU. A few percent of a step together; plain loops that the compiler vectorises, sums of squares in
 * double. */
#include "kernels/cpu/cpu_ops.h"

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

bs_status bs_cpu_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *a)
{
    for (int t = 0; t < a->n_tokens; t++) {
        const float *x = a->x + (int64_t)(a->rows ? a->rows[t] : t) * a->n;
        float *out = (float *)a->out + (int64_t)t * a->n;
        if (a->add) {
            const float *add = a->add + (int64_t)t * a->n;
            float *sum = a->x_out + (int64_t)t * a->n;
            for (int i = 0; i < a->n; i++) sum[i] = x[i] + add[i];
            x = sum;
        }
        double squares = 0;
        for (int i = 0; i < a->n; i++) squares += (double)x[i] * x[i];
        float scale = (float)(1 / sqrt(squares / a->n + a->eps));
        for (int i = 0; i < a->n; i++) out[i] = x[i] * scale * a->gain[i];
    }
    return BS_STATUS_OK;
}

bs_status bs_cpu_silu_mul(bs_stream *stream, const bs_silu_mul_args *a)
{
    for (int t = 0; t < a->n_tokens; t++) {
        const float *gate = (const float *)a->gate + t * a->ld, *up = (const float *)a->up + t * a->ld;
        float *out = (float *)a->out + t * a->ld_out;
        for (int64_t i = 0; i < a->n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    }
    return BS_STATUS_OK;
}
