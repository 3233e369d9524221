/* gemm.h: what gemm.c asks of an instruction set. Private to kernels/cpu. */
#ifndef BS_CPU_GEMM_H
#define BS_CPU_GEMM_H

#include "kernels/kernels.h"

enum {
    BS_GEMM_ROWS = 4,  /* rows of W that are multiplied side by side */
    BS_GEMM_SUMS = 16, /* sums of a row of x come in whole multiples of this, the last ones 0 */
};

/* Operands of row kernels, all in whole blocks.
 *   x       [n_tokens, ldx] f32 (zeros where the view ends inside a block), as bs_row_prepare left it
 *   sums    [n_tokens, ld_sums] sum of x over each bs_quant_width elements: what minimum and bias multiply
 *   y       [n_tokens] results, ldy apart, of each of the rows, which stand side by side */
typedef struct bs_row_args {
    bs_type type;
    int64_t n_blocks;
    size_t row_bytes; /* from a row of W to the next */
    const float *x, *sums;
    int64_t ldx, ld_sums, ldy;
    int n_tokens;
} bs_row_args;

/* Dot products of n_rows ≤ BS_GEMM_ROWS rows with all tokens. */
typedef void bs_row_dot(const bs_row_args *args, const uint8_t *rows, int n_rows, float *y);
/* One token's x as this instruction set wants it (out may equal x), and its sums; sums NULL: a type without
 * blocks. */
typedef void bs_row_prepare(bs_type type, int64_t n, const float *x, float *out, float *sums);
/* Whole blocks to f32, the bits of bs_dequantize_row. */
typedef void bs_row_expand(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);

/* y[t][r] = Σ_k x[t][k]·w[r][k], or that added to y: n_tokens rows of x with n_rows rows of floats, n a
 * multiple of 32. */
typedef void bs_tile_multiply(const float *w, int64_t ld_w, int n_rows, const float *x, int64_t ld_x,
                              int n_tokens, int64_t n, bool add, float *y, int64_t ld_y);

bs_row_dot bs_row_dot_scalar, bs_row_dot_avx2, bs_row_dot_avx512;
bs_row_prepare bs_row_prepare_avx2,
    bs_row_prepare_avx512; /* the scalar path takes x as it is, without sums */
bs_row_expand bs_row_expand_scalar, bs_row_expand_avx2, bs_row_expand_avx512;
bs_tile_multiply bs_tile_multiply_avx2, bs_tile_multiply_avx512;

#endif
