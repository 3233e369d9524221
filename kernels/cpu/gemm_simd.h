/* gemm_simd.h: row kernels over vectors of W floats, compiled once for each instruction set by gemm_avx2.c
 * and gemm_avx512.c, which define: W, vec, TARGET, NAME(f), and the primitives v_zero v_set1 v_load v_store
 * v_add v_mul v_fma v_sum (horizontal), v_u8 v_i8 (W bytes to floats), v_lo v_hi (nibbles of W bytes to
 * floats), v_f16, v_bf16.
 *
 * Codes are expanded in registers and never written; scales multiply a block's partial sum once (x = d·c + m
 * becomes d·Σ c·x + m·Σ x, and Σ x is shared by all rows). Activations stay f32.
 *
 * Cost: a Q4_1 block of 32 weights is 20 B and, with W = 16, two loads, two expansions (3 instructions each)
 * and three FMAs; at one token the kernel is bound by memory when a core reads less than about 20 GB/s.
 */

#define CHUNKS (32 / W) /* vectors of 32 elements */

static inline float NAME(half_at)(const uint8_t *p)
{
    bs_f16 h;
    memcpy(&h, p, sizeof h);
    return _cvtsh_ss(h);
}

/* Expanded codes (without scale) of 32 elements: Q4_0 and Q4_1 give 0 … 15, Q8_0 −128 … 127. */
TARGET static inline void NAME(codes32)(bs_type type, const uint8_t *b, vec *c)
{
    if (type == BS_TYPE_Q8_0) {
        for (int i = 0; i < CHUNKS; i++) c[i] = v_i8(b + 2 + W * i);
        return;
    }
    const uint8_t *q = b + (type == BS_TYPE_Q4_1 ? 4 : 2);
    for (int i = 0; i < CHUNKS / 2; i++) {
        c[i] = v_lo(q + W * i);
        c[CHUNKS / 2 + i] = v_hi(q + W * i);
    }
}

/* One row of 32-element blocks for up to 4 tokens at a time. */
TARGET static inline __attribute__((always_inline)) void NAME(dot32)(bs_type type, int block_bytes,
                                                                     int n_tokens, const bs_row_args *a,
                                                                     const uint8_t *row, const float *x,
                                                                     const float *sums, float *y)
{
    vec sum[4];
    float rest[4] = {0};
    for (int t = 0; t < n_tokens; t++) sum[t] = v_zero();
    for (int64_t b = 0; b < a->n_blocks; b++, row += block_bytes) {
        vec c[CHUNKS];
        NAME(codes32)(type, row, c);
        float d = NAME(half_at)(row);
        float m = type == BS_TYPE_Q4_1 ? NAME(half_at)(row + 2) : type == BS_TYPE_Q4_0 ? -8 * d : 0;
        vec scale = v_set1(d);
        for (int t = 0; t < n_tokens; t++) {
            const float *xt = x + t * a->ldx + 32 * b;
            vec p = v_mul(c[0], v_load(xt));
            for (int i = 1; i < CHUNKS; i++) p = v_fma(c[i], v_load(xt + W * i), p);
            sum[t] = v_fma(scale, p, sum[t]);
            if (type != BS_TYPE_Q8_0) rest[t] += m * sums[t * a->ld_sums + b];
        }
    }
    for (int t = 0; t < n_tokens; t++) y[t * a->ldy] = v_sum(sum[t]) + rest[t];
}

/* 256 elements of Q4_K: 8 sub-blocks of 32 codes, each with a scale and a minimum. */
TARGET static inline __attribute__((always_inline)) void NAME(dot_q4_k)(int n_tokens, const bs_row_args *a,
                                                                        const uint8_t *row, const float *x,
                                                                        const float *sums, float *y)
{
    vec sum[4];
    float rest[4] = {0};
    for (int t = 0; t < n_tokens; t++) sum[t] = v_zero();
    for (int64_t b = 0; b < a->n_blocks; b++, row += 144) {
        float d = NAME(half_at)(row), dmin = NAME(half_at)(row + 2);
        const uint8_t *s = row + 4;
        for (int j = 0; j < 8; j++) {
            int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
            int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
            const uint8_t *q = row + 16 + 32 * (j / 2);
            vec c[CHUNKS], ds = v_set1(d * (float)scale);
            float m = dmin * (float)min;
            for (int i = 0; i < CHUNKS; i++) c[i] = j % 2 ? v_hi(q + W * i) : v_lo(q + W * i);
            for (int t = 0; t < n_tokens; t++) {
                const float *xt = x + t * a->ldx + 256 * b + 32 * j;
                vec p = v_mul(c[0], v_load(xt));
                for (int i = 1; i < CHUNKS; i++) p = v_fma(c[i], v_load(xt + W * i), p);
                sum[t] = v_fma(ds, p, sum[t]);
                rest[t] -= m * sums[t * a->ld_sums + 8 * b + j];
            }
        }
    }
    for (int t = 0; t < n_tokens; t++) y[t * a->ldy] = v_sum(sum[t]) + rest[t];
}

/* The 256 codes of a Q6_K block as signed bytes. */
TARGET static inline void NAME(q6_k_codes)(const uint8_t *b, int8_t *codes)
{
    for (int half = 0; half < 2; half++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *low = b + 64 * half, *high = b + 128 + 32 * half;
            int8_t *c = codes + 128 * half + l;
            c[0] = (int8_t)(((low[l] & 15) | (high[l] & 3) << 4) - 32);
            c[32] = (int8_t)(((low[l + 32] & 15) | (high[l] >> 2 & 3) << 4) - 32);
            c[64] = (int8_t)((low[l] >> 4 | (high[l] >> 4 & 3) << 4) - 32);
            c[96] = (int8_t)((low[l + 32] >> 4 | (high[l] >> 6) << 4) - 32);
        }
}

/* 256 elements of Q6_K: 16 sub-blocks of 16 codes. */
TARGET static inline __attribute__((always_inline)) void
NAME(dot_q6_k)(int n_tokens, const bs_row_args *a, const uint8_t *row, const float *x, float *y)
{
    vec sum[4];
    for (int t = 0; t < n_tokens; t++) sum[t] = v_zero();
    for (int64_t b = 0; b < a->n_blocks; b++, row += 210) {
        int8_t codes[256];
        float d = NAME(half_at)(row + 208);
        NAME(q6_k_codes)(row, codes);
        for (int j = 0; j < 16; j++) {
            vec c[16 / W], ds = v_set1(d * (float)(int8_t)row[192 + j]);
            for (int i = 0; i < 16 / W; i++) c[i] = v_i8((const uint8_t *)codes + 16 * j + W * i);
            for (int t = 0; t < n_tokens; t++) {
                const float *xt = x + t * a->ldx + 256 * b + 16 * j;
                vec p = v_mul(c[0], v_load(xt));
                for (int i = 1; i < 16 / W; i++) p = v_fma(c[i], v_load(xt + W * i), p);
                sum[t] = v_fma(ds, p, sum[t]);
            }
        }
    }
    for (int t = 0; t < n_tokens; t++) y[t * a->ldy] = v_sum(sum[t]);
}

/* F32, F16, BF16: n elements, padded to whole 32 by the caller's x but not by the row: the tail is done
 * alone. */
TARGET static inline __attribute__((always_inline)) void NAME(dot_float)(bs_type type, int n_tokens,
                                                                         const bs_row_args *a,
                                                                         const uint8_t *row, const float *x,
                                                                         float *y)
{
    vec sum[4];
    int64_t n = a->n_blocks, i = 0;
    for (int t = 0; t < n_tokens; t++) sum[t] = v_zero();
    for (; i + W <= n; i += W) {
        vec w = type == BS_TYPE_F32   ? v_load((const float *)(const void *)(row + 4 * i))
                : type == BS_TYPE_F16 ? v_f16(row + 2 * i)
                                      : v_bf16(row + 2 * i);
        for (int t = 0; t < n_tokens; t++) sum[t] = v_fma(w, v_load(x + t * a->ldx + i), sum[t]);
    }
    float tail[W];
    bs_row_expand_scalar(type, row + (type == BS_TYPE_F32 ? 4 : 2) * i, n - i, tail);
    for (int t = 0; t < n_tokens; t++) {
        float total = v_sum(sum[t]);
        for (int64_t j = i; j < n; j++) total += tail[j - i] * x[t * a->ldx + j];
        y[t * a->ldy] = total;
    }
}

TARGET static inline __attribute__((always_inline)) void NAME(dot_tokens)(int n_tokens, const bs_row_args *a,
                                                                          const uint8_t *row, const float *x,
                                                                          const float *sums, float *y)
{
    switch (a->type) {
    case BS_TYPE_Q4_0: NAME(dot32)(BS_TYPE_Q4_0, 18, n_tokens, a, row, x, sums, y); break;
    case BS_TYPE_Q4_1: NAME(dot32)(BS_TYPE_Q4_1, 20, n_tokens, a, row, x, sums, y); break;
    case BS_TYPE_Q8_0: NAME(dot32)(BS_TYPE_Q8_0, 34, n_tokens, a, row, x, sums, y); break;
    case BS_TYPE_Q4_K: NAME(dot_q4_k)(n_tokens, a, row, x, sums, y); break;
    case BS_TYPE_Q6_K: NAME(dot_q6_k)(n_tokens, a, row, x, y); break;
    case BS_TYPE_F16: NAME(dot_float)(BS_TYPE_F16, n_tokens, a, row, x, y); break;
    case BS_TYPE_BF16: NAME(dot_float)(BS_TYPE_BF16, n_tokens, a, row, x, y); break;
    default: NAME(dot_float)(BS_TYPE_F32, n_tokens, a, row, x, y); break;
    }
}

TARGET void NAME(bs_row_dot)(const bs_row_args *a, const uint8_t *row, float *y)
{
    for (int t = 0; t < a->n_tokens; t += 4) {
        const float *x = a->x + t * a->ldx, *sums = a->sums + t * a->ld_sums;
        switch (a->n_tokens - t) {
        case 1: NAME(dot_tokens)(1, a, row, x, sums, y + t * a->ldy); break;
        case 2: NAME(dot_tokens)(2, a, row, x, sums, y + t * a->ldy); break;
        case 3: NAME(dot_tokens)(3, a, row, x, sums, y + t * a->ldy); break;
        default: NAME(dot_tokens)(4, a, row, x, sums, y + t * a->ldy); break;
        }
    }
}

TARGET void NAME(bs_row_expand)(bs_type type, const uint8_t *row, int64_t n_blocks, float *out)
{
    if (type != BS_TYPE_Q4_0 && type != BS_TYPE_Q4_1 && type != BS_TYPE_Q8_0) {
        bs_row_expand_scalar(type, row, n_blocks, out);
        return;
    }
    for (int64_t b = 0; b < n_blocks; b++, row += bs_type_block_bytes(type), out += 32) {
        vec c[CHUNKS], d = v_set1(NAME(half_at)(row));
        NAME(codes32)(type, row, c);
        for (int i = 0; i < CHUNKS; i++) {
            vec code = type == BS_TYPE_Q4_0 ? v_add(c[i], v_set1(-8)) : c[i];
            vec x = v_mul(d, code); /* a product and a sum, each rounded: the reference's bits */
            v_store(out + W * i, type == BS_TYPE_Q4_1 ? v_add(x, v_set1(NAME(half_at)(row + 2))) : x);
        }
    }
}
