/* gemm_scalar.c: the row kernels in plain C: a block is expanded, then multiplied. The reference of the
 * others. */
#include "kernels/cpu/gemm.h"

void bs_row_expand_scalar(bs_type type, const uint8_t *row, int64_t n_blocks, float *out)
{
    bs_dequantize_row(type, row, out, n_blocks * bs_type_block(type));
}

static float dot_row(const bs_row_args *a, const uint8_t *row, const float *x)
{
    int block = bs_type_block(a->type), bytes = bs_type_block_bytes(a->type);
    double sum = 0;
    for (int64_t b = 0; b < a->n_blocks; b++) {
        float w[256];
        bs_row_expand_scalar(a->type, row + b * bytes, 1, w);
        for (int i = 0; i < block; i++) sum += (double)w[i] * x[b * block + i];
    }
    return (float)sum;
}

void bs_row_dot_scalar(const bs_row_args *a, const uint8_t *rows, int n_rows, float *y)
{
    for (int r = 0; r < n_rows; r++, rows += a->row_bytes)
        for (int t = 0; t < a->n_tokens; t++) y[t * a->ldy + r] = dot_row(a, rows, a->x + t * a->ldx);
}
