/* quantize_simd.h: the quantizer for vectors of VL floats. quantize_avx2.c (VL 8) and quantize_avx512.c (VL
 * 16) define the operations below and include this; there is nothing else to keep equal between the two.
 *
 * Math: docs/kv-format.md, operation by operation (each vector operation is the scalar one in every lane), so
 * the bits are quantize_scalar.c's. Layout: works on tiles of 16 tokens, held twice: rows [token][D] as
 * stored, and columns [channel][token], their transpose. Whatever runs along an axis is then vertical: no sum
 * or minimum inside a vector.
 *
 *   range of a K kc group   rows      lanes are channels
 *   range of K kt and V     columns   lanes are tokens
 *   words of K              columns   lanes are tokens, fields channels
 *   words of V              rows      lanes are channels, fields tokens
 *   products of 2-bit K     columns   lanes are tokens
 *
 * Cost: about 20 operations a vector of K or V at 4 bits, of them 4 for the transposition; 2-bit K with norm
 * adds a pass of nine for the products that correct the norms.
 *
 * The includer defines: VL, VEC (the function attributes), vf, vi, and v_set1 v_load v_store v_load_f16
 * v_store_f16 v_store_i16 v_storei v_fma v_rint v_min v_max v_abs v_round_f16 v_cvt (to int32, nearest even)
 * v_low v_high (interleave the lower or upper halves of two vectors).
 */
#include <math.h>

#include "kernels/cpu/quantize.h"

enum { TILE = BS_CPU_LANES, N_TILES = BS_PAGE_TOKENS / TILE };

typedef struct params {
    vf s, z;         /* as stored, still f32 */
    vf inverse, nzf; /* 1/s, −z/16 */
} params;

/* What a tile's codes need, for kc [channel], else [group][TILE]. */
typedef struct factors {
    _Alignas(64) float inverse[BS_MAX_HEAD_DIM], nzf[BS_MAX_HEAD_DIM];  /* 1/s, −z/16 */
    _Alignas(64) float scale[BS_MAX_HEAD_DIM], offset[BS_MAX_HEAD_DIM]; /* a code stands for s·c + offset */
} factors;

VEC params params_of(vf m, vf M, float n_steps)
{
    vf s = v_max((M - m) / v_set1(n_steps), v_abs(m) / v_set1(BS_KV_ZERO_REACH));
    params p;
    p.s = v_round_f16(v_min(v_max(s, v_set1(BS_KV_MIN_SCALE)), v_set1(BS_KV_MAX_SCALE)));
    vf z = v_rint(v_set1(16.0f) * m / p.s);
    p.z = v_max(v_min(z, v_set1(BS_KV_MAX_ZERO)), v_set1(-BS_KV_MAX_ZERO));
    p.inverse = v_set1(1.0f) / p.s;
    p.nzf = p.z * v_set1(-0.0625f);
    return p;
}

/* Integer codes. Clamping before the rounding that the conversion does is the same as after it. */
VEC vi codes_of(vf x, vf inverse, vf nzf, vf n_steps)
{
    return v_cvt(v_max(v_min(v_fma(x, inverse, nzf), n_steps), v_set1(0.0f)));
}

VEC void widen_rows(const bs_f16 *tokens, int d, float *rows)
{
    for (int i = 0; i < TILE * d; i += VL) v_store(rows + i, v_load_f16(tokens + i));
}

/* cols[channel][TILE] of rows[TILE][d], in blocks of VL × VL. Interleaving vector i with i + VL/2 rotates the
 * bits of (row, column) by one place; log2 VL times exchanges the two. */
VEC void transpose_tile(const float *rows, int d, float *cols)
{
    for (int c = 0; c < d; c += VL) {
        for (int t = 0; t < TILE; t += VL) {
            vf a[VL], b[VL];
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) a[i] = v_load(rows + (t + i) * d + c);
#pragma GCC unroll 4
            for (int round = 1; round < VL; round *= 2) {
#pragma GCC unroll 16
                for (int i = 0; i < VL / 2; i++) {
                    b[2 * i] = v_low(a[i], a[i + VL / 2]);
                    b[2 * i + 1] = v_high(a[i], a[i + VL / 2]);
                }
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) a[i] = b[i];
            }
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) v_store(cols + (c + i) * TILE + t, a[i]);
        }
    }
}

/* Divides each row by its rounded root mean square; sums: [TILE] Σ k². */
VEC void normalize_rows(float *rows, int d, bs_f16 *norms, float *sums)
{
    float squares[BS_MAX_HEAD_DIM];
    for (int t = 0; t < TILE; t++) {
        float *row = rows + t * d;
        for (int c = 0; c < d; c += VL) v_store(squares + c, v_load(row + c) * v_load(row + c));
        int half = d / 2;
        for (; half >= VL; half /= 2)
            for (int c = 0; c < half; c += VL)
                v_store(squares + c, v_load(squares + c) + v_load(squares + c + half));
        for (; half > 0; half /= 2)
            for (int c = 0; c < half; c++) squares[c] += squares[c + half];
        sums[t] = squares[0];
        float rms = sqrtf(squares[0] / (float)d);
        norms[t] = bs_f32_to_f16(rms > BS_KV_MIN_SCALE ? rms : BS_KV_MIN_SCALE);
        vf n = v_set1(bs_f16_to_f32(norms[t]));
        for (int c = 0; c < d; c += VL) v_store(row + c, v_load(row + c) / n);
    }
}

/* Minimum and maximum over n channels of VL tokens. */
VEC void range_of(const float *cols, int n, vf *m, vf *M)
{
    vf low = v_load(cols), high = low;
    for (int c = 1; c < n; c++) {
        vf x = v_load(cols + c * TILE);
        low = v_min(low, x);
        high = v_max(high, x);
    }
    *m = low;
    *M = high;
}

/* Parameters of VL groups from their ranges, drawn in by `margin` of their width: s and z to meta (z `n_groups` behind
 * s), the rest to place i of f. */
VEC void set_params(vf m, vf M, float margin, int bits, bs_f16 *meta, int n_groups, factors *f, int i)
{
    const vf w = (M - m) * v_set1(margin);
    const params p = params_of(m + w, M - w, (float)((1 << bits) - 1));
    v_store_f16(meta, p.s);
    v_store_i16((int16_t *)meta + n_groups, p.z);
    v_store(f->inverse + i, p.inverse);
    v_store(f->nzf + i, p.nzf);
    v_store(f->scale + i, p.s);
    v_store(f->offset + i, p.s * (p.z * v_set1(0.0625f)));
}

/* Groups of g channels of a tile's tokens; meta has s [128] then z [128] of each. */
VEC void token_params(const float *cols, int d, int g, int bits, float margin, bs_f16 *meta, int token,
                      factors *f)
{
    for (int group = 0; group < d / g; group++) {
        for (int t = 0; t < TILE; t += VL) {
            vf m, M;
            range_of(cols + group * g * TILE + t, g, &m, &M);
            set_params(m, M, margin, bits, meta + group * 2 * BS_PAGE_TOKENS + token + t, BS_PAGE_TOKENS, f,
                       group * TILE + t);
        }
    }
}

/* A kc group's channels from their ranges; meta has s [d], then z [d]. */
VEC void channel_params(const float *low, const float *high, int d, int bits, float margin, bs_f16 *meta,
                        factors *f)
{
    for (int c = 0; c < d; c += VL)
        set_params(v_load(low + c), v_load(high + c), margin, bits, meta + c, d, f, c);
}

VEC void widen_range(const float *rows, int d, float *low, float *high)
{
    for (int c = 0; c < d; c += VL) {
        vf m = v_load(low + c), M = v_load(high + c);
        for (int t = 0; t < TILE; t++) {
            vf x = v_load(rows + t * d + c);
            m = v_min(m, x);
            M = v_max(M, x);
        }
        v_store(low + c, m);
        v_store(high + c, M);
    }
}

/* Norms of a tile's tokens of 2-bit K from Σ x·x̂ over all channels. */
VEC void correct_norms(const float *cols, int d, bool per_channel, int g, const factors *f, const float *sums,
                       bs_f16 *norms)
{
    const vf n_steps = v_set1(3.0f), zero = v_set1(0.0f), round = v_set1(BS_KV_PRODUCT_ROUND);
    float products[TILE];
    for (int t = 0; t < TILE; t += VL) {
        vf sum = zero;
        for (int c = 0; c < d; c++) {
            const int i = c / g * TILE + t;
            vf r = per_channel ? v_set1(f->inverse[c]) : v_load(f->inverse + i);
            vf z = per_channel ? v_set1(f->nzf[c]) : v_load(f->nzf + i);
            vf s = per_channel ? v_set1(f->scale[c]) : v_load(f->scale + i);
            vf o = per_channel ? v_set1(f->offset[c]) : v_load(f->offset + i);
            vf x = v_load(cols + c * TILE + t);
            vf code = v_max(v_min(v_rint(v_fma(x, r, z)), n_steps), zero);
            sum += v_fma(x, v_fma(s, code, o), round) - round;
        }
        v_store(products + t, sum);
    }
    for (int t = 0; t < TILE; t++) norms[t] = bs_cpu_kv_corrected_norm(norms[t], sums[t], products[t]);
}

/* K words of a tile. The highest field comes first. */
VEC void k_words(const float *cols, int d, const int bits, bool per_channel, int g, const factors *f,
                 uint32_t *words)
{
    const int fields = 32 / bits;
    const vf n_steps = v_set1((float)((1 << bits) - 1));
    for (int w = 0; w < d / fields; w++) {
        const int group = w * fields / g * TILE;
        for (int t = 0; t < TILE; t += VL) {
            vi word = v_cvt(v_set1(0.0f));
#pragma GCC unroll 16
            for (int j = fields - 1; j >= 0; j--) {
                const int c = w * fields + j;
                vf r = per_channel ? v_set1(f->inverse[c]) : v_load(f->inverse + group + t);
                vf z = per_channel ? v_set1(f->nzf[c]) : v_load(f->nzf + group + t);
                word = word << bits | codes_of(v_load(cols + c * TILE + t), r, z, n_steps);
            }
            v_storei(words + w * TILE + t, word);
        }
    }
}

/* V words of a tile. */
VEC void v_words(const float *rows, int d, const int bits, int g, const factors *f, uint32_t *words)
{
    const int fields = 32 / bits;
    const vf n_steps = v_set1((float)((1 << bits) - 1));
    for (int w = 0; w < TILE / fields; w++) {
        for (int c = 0; c < d; c += VL) {
            const int group = c / g * TILE;
            vi word = v_cvt(v_set1(0.0f));
#pragma GCC unroll 16
            for (int j = fields - 1; j >= 0; j--) {
                const int t = w * fields + j;
                vf r = v_set1(f->inverse[group + t]), z = v_set1(f->nzf[group + t]);
                word = word << bits | codes_of(v_load(rows + t * d + c), r, z, n_steps);
            }
            v_storei(words + w * d + c, word);
        }
    }
}

/* One compiled loop a width: the number of fields and the shift are constants in each. */
VEC_OUTLINE static void k_words_of_width(const bs_cpu_kv_layout *l, const float *cols, const factors *f,
                                         uint32_t *words)
{
    const int d = l->head_dim, g = l->k_group;
    const bool kc = l->k_per_channel;
    if (l->k_bits == 8) kc ? k_words(cols, d, 8, true, g, f, words) : k_words(cols, d, 8, false, g, f, words);
    else if (l->k_bits == 4)
        kc ? k_words(cols, d, 4, true, g, f, words) : k_words(cols, d, 4, false, g, f, words);
    else kc ? k_words(cols, d, 2, true, g, f, words) : k_words(cols, d, 2, false, g, f, words);
}

VEC_OUTLINE static void correct_norms_of(const bs_cpu_kv_layout *l, const float *cols, const factors *f,
                                         const float *sums, bs_f16 *norms)
{
    if (l->k_per_channel) correct_norms(cols, l->head_dim, true, l->k_group, f, sums, norms);
    else correct_norms(cols, l->head_dim, false, l->k_group, f, sums, norms);
}

VEC_OUTLINE static void v_words_of_width(const bs_cpu_kv_layout *l, const float *rows, const factors *f,
                                         uint32_t *words)
{
    const int d = l->head_dim, g = l->v_group;
    if (l->v_bits == 8) v_words(rows, d, 8, g, f, words);
    else if (l->v_bits == 4) v_words(rows, d, 4, g, f, words);
    else v_words(rows, d, 2, g, f, words);
}

VEC_OUTLINE void QUANTIZE_K(const bs_cpu_kv_layout *l, const bs_f16 *k, uint8_t *record)
{
    _Alignas(64) float rows[TILE * BS_MAX_HEAD_DIM], cols[N_TILES][TILE * BS_MAX_HEAD_DIM];
    _Alignas(64) float low[BS_MAX_HEAD_DIM], high[BS_MAX_HEAD_DIM];
    float sums[BS_PAGE_TOKENS];
    factors f;
    const int d = l->head_dim,
              tiles = l->k_per_channel ? l->k_group / TILE : 1; /* tiles that share parameters */
    const float margin = l->k_bits == 2 ? bs_cpu_kv_margin(l->k_group, !l->k_norm) : 0.0f;
    bs_f16 *norms = bs_cpu_k_norms(l, record);
    for (int first = 0; first < N_TILES; first += tiles) {
        for (int c = 0; c < d; c++) {
            low[c] = INFINITY;
            high[c] = -INFINITY;
        }
        for (int i = 0; i < tiles; i++) {
            const int token = (first + i) * TILE;
            widen_rows(k + token * d, d, rows);
            if (l->k_norm) normalize_rows(rows, d, norms + token, sums + token);
            if (l->k_per_channel) widen_range(rows, d, low, high);
            transpose_tile(rows, d, cols[i]);
        }
        if (l->k_per_channel)
            channel_params(low, high, d, l->k_bits, margin, bs_cpu_k_scales(l, record, first / tiles), &f);
        else
            token_params(cols[0], d, l->k_group, l->k_bits, margin, bs_cpu_k_scales(l, record, 0),
                         first * TILE, &f);
        for (int i = 0; i < tiles; i++) {
            const int token = (first + i) * TILE;
            k_words_of_width(l, cols[i], &f, bs_cpu_k_words(l, record, first + i, 0));
            if (l->k_norm && l->k_bits == 2) correct_norms_of(l, cols[i], &f, sums + token, norms + token);
        }
    }
}

VEC_OUTLINE void QUANTIZE_V(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v, uint8_t *record)
{
    _Alignas(64) float rows[TILE * BS_MAX_HEAD_DIM], cols[TILE * BS_MAX_HEAD_DIM];
    factors f;
    const int d = l->head_dim;
    const float margin = l->v_bits == 2 && encoder == BS_V_ENCODER_BEST ? bs_cpu_kv_margin(l->v_group, false)
                                                                        : 0.0f;
    for (int tile = 0; tile < N_TILES; tile++) {
        widen_rows(v + tile * TILE * d, d, rows);
        transpose_tile(rows, d, cols);
        token_params(cols, d, l->v_group, l->v_bits, margin, bs_cpu_v_scales(l, record, 0), tile * TILE, &f);
        v_words_of_width(l, rows, &f, bs_cpu_v_words(l, record, tile * TILE / l->v_fields, 0));
    }
}
