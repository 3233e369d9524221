/* gemm.h: what gemm.c asks of an instruction set. Private to kernels/cpu. */
#ifndef BS_CPU_GEMM_H
#define BS_CPU_GEMM_H

#include "kernels/kernels.h"

/* Dot products of whole blocks of one row with n_tokens rows of x.
 *   row     n_blocks blocks of `type`
 *   x       [n_tokens, ldx] f32, whole blocks (zeros where the view ends inside one)
 *   sums    [n_tokens, ld_sums] sum of x over each 32 elements: what a format's minimum multiplies
 *   y       [n_tokens] results, ldy apart */
typedef struct bs_row_args {
    bs_type type;
    int64_t n_blocks;
    const float *x, *sums;
    int64_t ldx, ld_sums, ldy;
    int n_tokens;
} bs_row_args;
typedef void bs_row_dot(const bs_row_args *args, const uint8_t *row, float *y);
typedef void bs_row_expand(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);

void bs_row_dot_scalar(const bs_row_args *args, const uint8_t *row, float *y);
void bs_row_dot_avx2(const bs_row_args *args, const uint8_t *row, float *y);
void bs_row_dot_avx512(const bs_row_args *args, const uint8_t *row, float *y);
/* Whole blocks to f32, the bits of bs_dequantize_row. */
void bs_row_expand_scalar(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);
void bs_row_expand_avx2(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);
void bs_row_expand_avx512(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);

#endif
