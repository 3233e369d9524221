/* gemm_scalar.c: the row kernels in plain C: a block is expanded, then multiplied. The reference of the
 * others. */
#include "kernels/cpu/gemm.h"

void bs_row_expand_scalar(bs_type type, const uint8_t *row, int64_t n_blocks, float *out)
{
    bs_dequantize_row(type, row, out, n_blocks * bs_type_block(type));
}

void bs_row_dot_scalar(const bs_row_args *a, const uint8_t *row, float *y)
{
    int block = bs_type_block(a->type), bytes = bs_type_block_bytes(a->type);
    for (int t = 0; t < a->n_tokens; t++) {
        double sum = 0;
        for (int64_t b = 0; b < a->n_blocks; b++) {
            float w[256];
            const float *x = a->x + t * a->ldx + b * block;
            bs_row_expand_scalar(a->type, row + b * bytes, 1, w);
            for (int i = 0; i < block; i++) sum += (double)w[i] * x[i];
        }
        y[t * a->ldy] = (float)sum;
    }
}
