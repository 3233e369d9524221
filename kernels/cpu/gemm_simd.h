/* gemm_simd.h: row kernels over vectors of W floats, compiled once for each instruction set by gemm_avx2.c
 * and gemm_avx512.c, which define: W, vec and vi (W floats, W int32), NAME(f), ROWS_OF(tokens), TILE_TOKENS, the
 * primitives v_zero v_set1 v_load v_store v_add v_mul v_fma v_sum (horizontal) v_sum4 (of four, side by side)
 * v_zx v_sx (W bytes to int32) v_cvt (int32 to floats) v_fp4 (MXFP4's numbers, doubled, of codes) v_lo16
 * (floats of the low nibbles) v_f16 v_bf16 v_lanes (0 1 2 …), and NAME(scales).
 *
 * Codes are expanded in registers and never written; scales multiply a block's partial sum once: x = d·(c +
 * bias) + m becomes d·Σ c·x + (d·bias + m)·Σ x, and Σ x is shared by all rows. Activations stay f32.
 *
 * Q4_0 and Q4_1, the types that the speed is measured with, need one operation less for each byte B = l +
 * 16 h of two codes: Σ l·x + h·y = Σ l·(x − y/16) + B·y/16, so that B is used as it is and never shifted.
 * prepare leaves x − y/16 and y/16 in the place of x and y. No cancellation: each term is at most twice as
 * large as the true one's bound.
 *
 * Cost: a Q4_1 block of 32 weights is 20 B and, with W = 16 and one token, one widening, one conversion, one
 * table look-up and three FMAs, so three cycles on a core with two vector units: about 20 GB/s at 3 GHz. Four
 * rows side by side share the loads of x, hide the latency of their sums and end in one transposed reduction.
 */
#include "kernels/quants.h"

#define ALWAYS static inline __attribute__((always_inline))
#define CHUNKS (32 / W) /* vectors of 32 elements */
#ifndef PREFETCH
#define PREFETCH 8192
#endif
#define N_SCALE BS_GEMM_SUMS /* blocks whose scales are converted together */

/* bs_type_block and bs_type_block_bytes, known when this is compiled. */
ALWAYS int block_of(bs_type type)
{
    switch (type) {
#define X(TYPE, gguf, elements, block_bytes)                                                                 \
    case BS_TYPE_##TYPE: return elements;
        BS_TYPE_LIST(X)
#undef X
    default: return 1;
    }
}

ALWAYS int bytes_of(bs_type type)
{
    switch (type) {
#define X(TYPE, gguf, elements, block_bytes)                                                                 \
    case BS_TYPE_##TYPE: return block_bytes;
        BS_TYPE_LIST(X)
#undef X
    default: return 1;
    }
}

ALWAYS bool NAME(is_paired)(bs_type type)
{
    return type == BS_TYPE_Q4_0 || type == BS_TYPE_Q4_1;
}

/* ---- codes ---- */

/* 32 codes whose low nibbles are elements 0 … 15 and whose high ones are 16 … 31; vector i of them. */
ALWAYS vi NAME(nibbles)(const uint8_t *q, int i)
{
    return i < CHUNKS / 2 ? v_zx(q + W * i) & 15 : v_zx(q + W * (i - CHUNKS / 2)) >> 4;
}

/* Stored codes of vector i of sub-block j, as integers (not MXFP4). */
ALWAYS vi NAME(codes)(bs_type type, const uint8_t *b, int j, int i)
{
    const int at = W * i, half = j / 8, quarter = j % 8 / 2, l = j % 2 * 16 + at; /* of 16 sub-blocks */
    switch (type) {
    case BS_TYPE_Q4_0: return NAME(nibbles)(b + 2, i);
    case BS_TYPE_Q4_1: return NAME(nibbles)(b + 4, i);
    case BS_TYPE_Q5_0:
    case BS_TYPE_Q5_1: {
        int32_t high;
        memcpy(&high, b + (type == BS_TYPE_Q5_0 ? 2 : 4), sizeof high);
        vi bits = (v_set1_int(high) >> (v_lanes + at)) & 1;
        return NAME(nibbles)(b + (type == BS_TYPE_Q5_0 ? 6 : 8), i) | bits << 4;
    }
    case BS_TYPE_Q2_K: return v_zx(b + 16 + 32 * half + l) >> 2 * quarter & 3;
    case BS_TYPE_Q3_K:
        return (v_zx(b + 32 + 32 * half + l) >> 2 * quarter & 3) | (v_zx(b + l) >> j / 2 & 1) << 2;
    case BS_TYPE_Q4_K: return v_zx(b + 16 + j / 2 * 32 + at) >> j % 2 * 4 & 15;
    case BS_TYPE_Q5_K:
        return (v_zx(b + 48 + j / 2 * 32 + at) >> j % 2 * 4 & 15) | (v_zx(b + 16 + at) >> j & 1) << 4;
    case BS_TYPE_Q6_K:
        return (v_zx(b + 64 * half + quarter % 2 * 32 + l) >> quarter / 2 * 4 & 15) |
               (v_zx(b + 128 + 32 * half + l) >> 2 * quarter & 3) << 4;
    default: return v_sx(b + 2 + at); /* Q8_0 */
    }
}

ALWAYS vec NAME(floats)(bs_type type, const uint8_t *b, int j, int i)
{
    if (type == BS_TYPE_MXFP4) return v_fp4(NAME(nibbles)(b + 1, i));
    return v_cvt(NAME(codes)(type, b, j, i));
}

/* What multiplies the prepared x: codes, or low nibbles and whole bytes. */
ALWAYS void NAME(factors)(bs_type type, const uint8_t *b, vec *c)
{
    if (NAME(is_paired)(type)) {
        const uint8_t *q = b + (type == BS_TYPE_Q4_0 ? 2 : 4);
#pragma GCC unroll 4
        for (int i = 0; i < CHUNKS / 2; i++) {
            vi bytes = v_zx(q + W * i);
            c[i] = v_lo16(bytes);
            c[CHUNKS / 2 + i] = v_cvt(bytes);
        }
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < CHUNKS; i++) c[i] = NAME(floats)(type, b, 0, i);
}

/* ---- rows of 32-element blocks ---- */

/* n_rows rows with n_tokens tokens. */
ALWAYS void NAME(dot_rows)(bs_type type, const int n_rows, const int n_tokens, const bs_row_args *a,
                           const uint8_t *rows, const float *x, const float *sums, float *y)
{
    const int bytes = bytes_of(type);
    const bool shifted = bs_quant_has_min(type) || bs_quant_bias(type) != 0;
    vec acc[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < n_tokens; t++) acc[r][t] = v_zero();
    for (int64_t b0 = 0; b0 < a->n_blocks; b0 += N_SCALE) {
        const int n = a->n_blocks - b0 < N_SCALE ? (int)(a->n_blocks - b0) : N_SCALE;
        _Alignas(64) float d[4][N_SCALE], m[4][N_SCALE];
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *blocks = rows + (size_t)r * a->row_bytes + b0 * bytes;
            NAME(scales)(type, blocks, n, d[r], m[r]);
            for (int i = 0; i < n * bytes; i += 64) __builtin_prefetch(blocks + PREFETCH + i, 0, 3);
            for (int t = 0; t < n_tokens && shifted; t++)
#pragma GCC unroll 2
                for (int i = 0; i < N_SCALE; i += W)
                    acc[r][t] = v_fma(v_load(m[r] + i), v_load(sums + t * a->ld_sums + b0 + i), acc[r][t]);
        }
        for (int k = 0; k < n; k++) {
            const float *xb = x + 32 * (b0 + k);
#pragma GCC unroll 4
            for (int r = 0; r < n_rows; r++) {
                const vec scale = v_set1(d[r][k]);
                vec c[CHUNKS];
                NAME(factors)(type, rows + (size_t)r * a->row_bytes + (b0 + k) * bytes, c);
                if (n_tokens == 1) { /* the scale once a block */
                    vec p = v_mul(c[0], v_load(xb));
#pragma GCC unroll 4
                    for (int i = 1; i < CHUNKS; i++) p = v_fma(c[i], v_load(xb + W * i), p);
                    acc[r][0] = v_fma(scale, p, acc[r][0]);
                    continue;
                }
#pragma GCC unroll 4
                for (int i = 0; i < CHUNKS; i++) c[i] = v_mul(c[i], scale);
#pragma GCC unroll 4
                for (int t = 0; t < n_tokens; t++)
#pragma GCC unroll 4
                    for (int i = 0; i < CHUNKS; i++)
                        acc[r][t] = v_fma(c[i], v_load(xb + t * a->ldx + W * i), acc[r][t]);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; t++) {
        if (n_rows == 4) v_sum4(y + t * a->ldy, acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
#pragma GCC unroll 4
        for (int r = 0; r < n_rows && n_rows != 4; r++) y[t * a->ldy + r] = v_sum(acc[r][t]);
    }
}

/* ---- rows of 256-element blocks ---- */

ALWAYS void NAME(dot_subs)(bs_type type, const int n_tokens, const bs_row_args *a, const uint8_t *row,
                           const float *x, const float *sums, float *y)
{
    const int width = bs_quant_width(type), n_subs = 256 / width, bytes = bytes_of(type);
    vec sum[4];
    float rest[4] = {0};
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; t++) sum[t] = v_zero();
    for (int64_t b = 0; b < a->n_blocks; b++, row += bytes) {
#pragma GCC unroll 16
        for (int j = 0; j < n_subs; j++) {
            float min, d = bs_quant_scale(type, row, j, &min);
            min += d * (float)bs_quant_bias(type);
            vec c[CHUNKS], scale = v_set1(d);
#pragma GCC unroll 4
            for (int i = 0; i < width / W; i++) c[i] = NAME(floats)(type, row, j, i);
#pragma GCC unroll 4
            for (int t = 0; t < n_tokens; t++) {
                const float *xt = x + t * a->ldx + 256 * b + width * j;
                vec p = v_mul(c[0], v_load(xt));
#pragma GCC unroll 4
                for (int i = 1; i < width / W; i++) p = v_fma(c[i], v_load(xt + W * i), p);
                sum[t] = v_fma(scale, p, sum[t]);
                rest[t] += min * sums[t * a->ld_sums + n_subs * b + j];
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; t++) y[t * a->ldy] = v_sum(sum[t]) + rest[t];
}

/* ---- rows without blocks ---- */

/* W elements as floats. */
ALWAYS vec NAME(load_floats)(bs_type type, const uint8_t *from)
{
    return type == BS_TYPE_F32   ? v_load((const float *)(const void *)from)
           : type == BS_TYPE_F16 ? v_f16(from)
                                 : v_bf16(from);
}

/* F32, F16, BF16: n elements of n_rows side by side, so that their sums do not wait for each other; the tail is done
 * alone. */
ALWAYS void NAME(dot_floats)(bs_type type, const int n_rows, const int n_tokens, const bs_row_args *a,
                             const uint8_t *rows, const float *x, float *y)
{
    const int bytes = bytes_of(type);
    vec sum[4][4];
    int64_t n = a->n_blocks, i = 0;
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < n_tokens; t++) sum[r][t] = v_zero();
    for (; i + W <= n; i += W) {
        vec w[4];
#pragma GCC unroll 4
        for (int r = 0; r < n_rows; r++)
            w[r] = NAME(load_floats)(type, rows + (size_t)r * a->row_bytes + bytes * i);
#pragma GCC unroll 4
        for (int t = 0; t < n_tokens; t++) {
            vec xt = v_load(x + t * a->ldx + i);
#pragma GCC unroll 4
            for (int r = 0; r < n_rows; r++) sum[r][t] = v_fma(w[r], xt, sum[r][t]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) {
        float tail[W];
        bs_row_expand_scalar(type, rows + (size_t)r * a->row_bytes + bytes * i, n - i, tail);
#pragma GCC unroll 4
        for (int t = 0; t < n_tokens; t++) {
            float total = v_sum(sum[r][t]);
            for (int64_t j = i; j < n; j++) total += tail[j - i] * x[t * a->ldx + j];
            y[t * a->ldy + r] = total;
        }
    }
}

/* ---- which of them ---- */

/* The first of n_rows rows, as many as are done side by side; how many that was. */
ALWAYS int NAME(dot_some)(bs_type type, const int n_tokens, const bs_row_args *a, const uint8_t *rows,
                          int n_rows, const float *x, const float *sums, float *y)
{
    if (block_of(type) == 1 && n_rows >= ROWS_OF(n_tokens)) {
        NAME(dot_floats)(type, ROWS_OF(n_tokens), n_tokens, a, rows, x, y);
        return ROWS_OF(n_tokens);
    } else if (block_of(type) == 1) {
        NAME(dot_floats)(type, 1, n_tokens, a, rows, x, y);
    } else if (block_of(type) == 256) {
        NAME(dot_subs)(type, n_tokens, a, rows, x, sums, y);
    } else if (n_rows >= ROWS_OF(n_tokens)) {
        NAME(dot_rows)(type, ROWS_OF(n_tokens), n_tokens, a, rows, x, sums, y);
        return ROWS_OF(n_tokens);
    } else {
        NAME(dot_rows)(type, 1, n_tokens, a, rows, x, sums, y);
    }
    return 1;
}

/* Elements of a block and its bytes must be constants in the loops above: one function a type. */
#define X(TYPE, gguf, elements, block_bytes)                                                                 \
    static void NAME(dot_##TYPE)(const bs_row_args *a, const uint8_t *rows, int n_rows, int t, float *y)     \
    {                                                                                                        \
        const float *x = a->x + t * a->ldx, *sums = a->sums + t * a->ld_sums;                                \
        for (int r = 0, n; r < n_rows; r += n, rows += (size_t)n * a->row_bytes, y += n) {                   \
            switch (a->n_tokens - t) {                                                                       \
            case 1: n = NAME(dot_some)(BS_TYPE_##TYPE, 1, a, rows, n_rows - r, x, sums, y); break;           \
            case 2: n = NAME(dot_some)(BS_TYPE_##TYPE, 2, a, rows, n_rows - r, x, sums, y); break;           \
            case 3: n = NAME(dot_some)(BS_TYPE_##TYPE, 3, a, rows, n_rows - r, x, sums, y); break;           \
            default: n = NAME(dot_some)(BS_TYPE_##TYPE, 4, a, rows, n_rows - r, x, sums, y); break;          \
            }                                                                                                \
        }                                                                                                    \
    }
BS_TYPE_LIST(X)
#undef X

void NAME(bs_row_dot)(const bs_row_args *a, const uint8_t *rows, int n_rows, float *y)
{
    static void (*const dots[])(const bs_row_args *, const uint8_t *, int, int, float *) = {
#define X(TYPE, gguf, elements, block_bytes) NAME(dot_##TYPE),
        BS_TYPE_LIST(X)
#undef X
    };
    for (int t = 0; t < a->n_tokens; t += 4) dots[a->type](a, rows, n_rows, t, y + t * a->ldy);
}

/* ---- x ---- */

void NAME(bs_row_prepare)(bs_type type, int64_t n, const float *x, float *out, float *sums)
{
    const int width = bs_quant_width(type);
    const int64_t n_sums = n / width;
    for (int64_t b = 0; b < n_sums && sums; b++) {
        vec sum = v_load(x + width * b);
        for (int i = W; i < width; i += W) sum = v_add(sum, v_load(x + width * b + i));
        sums[b] = v_sum(sum);
    }
    for (int64_t b = n_sums; b % BS_GEMM_SUMS && sums; b++) sums[b] = 0;
    for (int64_t i = 0; i < n && NAME(is_paired)(type); i += 32)
        for (int l = 0; l < 16; l += W) {
            vec high = v_mul(v_load(x + i + 16 + l), v_set1(0.0625f));
            vec low = v_fma(v_load(x + i + 16 + l), v_set1(-0.0625f), v_load(x + i + l));
            v_store(out + i + l, low);
            v_store(out + i + 16 + l, high);
        }
    if (!NAME(is_paired)(type) && out != x) memcpy(out, x, (size_t)n * sizeof *x);
}

/* ---- blocks to floats ---- */

/* A product and a sum, each rounded: the reference's bits. */
ALWAYS void NAME(expand)(bs_type type, const uint8_t *row, int64_t n_blocks, float *out)
{
    const int width = bs_quant_width(type), bytes = bytes_of(type);
    const int n_subs = block_of(type) / width;
    for (int64_t b = 0; b < n_blocks; b++, row += bytes)
#pragma GCC unroll 16
        for (int j = 0; j < n_subs; j++, out += width) {
            float min, scale = bs_quant_scale(type, row, j, &min);
#pragma GCC unroll 4
            for (int i = 0; i < width / W; i++) {
                vec c = type == BS_TYPE_MXFP4 ? NAME(floats)(type, row, j, i)
                                              : v_cvt(NAME(codes)(type, row, j, i) + bs_quant_bias(type));
                vec x = v_mul(v_set1(scale), c);
                v_store(out + W * i, bs_quant_has_min(type) ? v_add(x, v_set1(min)) : x);
            }
        }
}

/* F32, F16, BF16: conversions are exact, so these are the reference's bits too. */
ALWAYS void NAME(expand_floats)(bs_type type, const uint8_t *row, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + W <= n; i += W) v_store(out + i, NAME(load_floats)(type, row + bytes_of(type) * i));
    bs_row_expand_scalar(type, row + bytes_of(type) * i, n - i, out + i);
}

void NAME(bs_row_expand)(bs_type type, const uint8_t *row, int64_t n_blocks, float *out)
{
    switch (type) {
#define X(TYPE, gguf, elements, block_bytes)                                                                 \
    case BS_TYPE_##TYPE:                                                                                     \
        if (elements > 1) NAME(expand)(BS_TYPE_##TYPE, row, n_blocks, out);                                  \
        else NAME(expand_floats)(BS_TYPE_##TYPE, row, n_blocks, out);                                        \
        break;
        BS_TYPE_LIST(X)
#undef X
    default: break;
    }
}

/* ---- floats by floats ---- */

/* R rows of w by T rows of x: dot products along k, so that neither is packed or transposed; R × T sums in
 * registers. */
ALWAYS void NAME(multiply)(const int R, const int T, const float *w, int64_t ld_w, const float *x,
                           int64_t ld_x, int64_t n, bool add, float *y, int64_t ld_y)
{
    vec acc[TILE_TOKENS][4];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[t][r] = v_zero();
    for (int64_t k = 0; k < n; k += W) {
        vec wk[4];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) wk[r] = v_load(w + r * ld_w + k);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            vec xk = v_load(x + t * ld_x + k);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) acc[t][r] = v_fma(wk[r], xk, acc[t][r]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        float sums[4], *out = y + t * ld_y;
        if (R == 4) v_sum4(sums, acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        else sums[0] = v_sum(acc[t][0]);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) out[r] = add ? out[r] + sums[r] : sums[r];
    }
}

#define MULTIPLY(R, T)                                                                                       \
    static void NAME(multiply_##R##_##T)(const float *w, int64_t ld_w, const float *x, int64_t ld_x,         \
                                         int64_t n, bool add, float *y, int64_t ld_y)                        \
    {                                                                                                        \
        NAME(multiply)(R, T, w, ld_w, x, ld_x, n, add, y, ld_y);                                             \
    }
typedef void NAME(multiply_fn)(const float *w, int64_t ld_w, const float *x, int64_t ld_x, int64_t n,
                               bool add, float *y, int64_t ld_y);
MULTIPLY(1, 1)
MULTIPLY(1, 2)
MULTIPLY(1, 3)
MULTIPLY(4, 1)
MULTIPLY(4, 2)
MULTIPLY(4, 3)
#if TILE_TOKENS > 3
MULTIPLY(1, 4)
MULTIPLY(1, 5)
MULTIPLY(1, 6)
MULTIPLY(4, 4)
MULTIPLY(4, 5)
MULTIPLY(4, 6)
#endif

void NAME(bs_tile_multiply)(const float *w, int64_t ld_w, int n_rows, const float *x, int64_t ld_x,
                            int n_tokens, int64_t n, bool add, float *y, int64_t ld_y)
{
    static NAME(multiply_fn) *const table[2][TILE_TOKENS] = {
#if TILE_TOKENS > 3
        {NAME(multiply_1_1), NAME(multiply_1_2), NAME(multiply_1_3), NAME(multiply_1_4), NAME(multiply_1_5),
         NAME(multiply_1_6)},
        {NAME(multiply_4_1), NAME(multiply_4_2), NAME(multiply_4_3), NAME(multiply_4_4), NAME(multiply_4_5),
         NAME(multiply_4_6)},
#else
        {NAME(multiply_1_1), NAME(multiply_1_2), NAME(multiply_1_3)},
        {NAME(multiply_4_1), NAME(multiply_4_2), NAME(multiply_4_3)},
#endif
    };
    for (int r = 0, step; r < n_rows; r += step) {
        step = n_rows - r >= 4 ? 4 : 1;
        for (int t = 0; t < n_tokens; t += TILE_TOKENS) {
            int T = n_tokens - t < TILE_TOKENS ? n_tokens - t : TILE_TOKENS;
            table[step == 4][T - 1](w + r * ld_w, ld_w, x + t * ld_x, ld_x, n, add, y + t * ld_y + r, ld_y);
        }
    }
}
