/* quantize_simd.h: the quantizer for vectors of VL floats. quantize_avx2.c (VL 8) and quantize_avx512.c (VL
 * 16) define the operations below and include this; there is nothing else to keep equal between the two.
 *
 * Math: docs/kv-format.md, operation by operation (each vector operation is the scalar one in every lane), so
 * the bits are quantize_scalar.c's. Layout: works on tiles of 16 tokens, held twice: rows [token][D] as
 * stored, and columns [channel][token], their transpose. Whatever runs along an axis is then vertical: no sum
 * or minimum inside a vector. range of a K kc group     rows      lanes are channels range of K kt and V
 * columns   lanes are tokens (the nine ranges of 2-bit V too) words of K                columns   lanes are
 * tokens, fields channels words of V                rows      lanes are channels, fields tokens Cost: about
 * 20 operations a vector of K or V at 4 bits, of them 4 for the transposition; 2-bit V adds nine passes of
 *   nine operations over a tile in L1.
 *
 * The includer defines: VL, VEC (the function attributes), vf, vi, and v_set1 v_load v_store v_load_f16
 * v_store_f16 v_store_i16 v_storei v_fma v_rint v_min v_max v_abs v_round_f16 v_cvt (to int32, nearest even)
 * v_pick_less (a < b ? x : y, lane by lane) v_low v_high (interleave the lower or upper halves of two
 * vectors).
 */
#include <math.h>

#include "kernels/cpu/quantize.h"

enum { TILE = BS_CPU_LANES, N_TILES = BS_PAGE_TOKENS / TILE };

typedef struct params {
    vf s, z;         /* as stored, still f32 */
    vf inverse, nzf; /* 1/s, −z/16 */
} params;

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

/* Divides each row by its rounded root mean square. */
VEC void normalize_rows(float *rows, int d, bs_f16 *norms)
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

VEC vf error_term(vf x, const params *p, vf zero, vf n_steps)
{
    vf code = v_max(v_min(v_rint(v_fma(x, p->inverse, p->nzf)), n_steps), v_set1(0.0f));
    vf e = x - p->s * (code + zero);
    return e * e;
}

/* Σ (x − s·(c + z/16))² over n channels, pairwise by halving: the first three levels (n/2, n/4, n/8) as each
 * x is read, the rest over the n/8 partial sums. */
VEC vf squared_error(const float *cols, int n, const params *p, vf n_steps)
{
    vf sums[BS_PAGE_TOKENS / 8], zero = p->z * v_set1(0.0625f);
    const int step = n / 8;
    for (int i = 0; i < step; i++) {
        vf e[8];
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) e[k] = error_term(v_load(cols + (i + k * step) * TILE), p, zero, n_steps);
        sums[i] = ((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7]));
    }
    for (int half = step / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

/* Best of the nine ranges, the earlier on ties. */
VEC params search_params(const float *cols, int n, vf m, vf M, float n_steps)
{
    const vf half_width = (M - m) * v_set1(0.5f), steps = v_set1(n_steps);
    params best = params_of(m, M, n_steps);
    vf best_error = squared_error(cols, n, &best, steps);
    for (int i = 1; i < BS_KV_N_RANGES; i++) {
        vf w = half_width * v_set1(1.0f - BS_KV_RANGES[i]);
        params p = params_of(m + w, M - w, n_steps);
        vf error = squared_error(cols, n, &p, steps);
        best.s = v_pick_less(error, best_error, p.s, best.s);
        best.z = v_pick_less(error, best_error, p.z, best.z);
        best_error = v_min(error, best_error);
    }
    best.inverse = v_set1(1.0f) / best.s;
    best.nzf = best.z * v_set1(-0.0625f);
    return best;
}

/* Parameters of the groups of g channels of a tile's tokens: to meta (s [128] then z [128] a group, at
 * `token`), and inverse and nzf as [group][TILE]. */
VEC void token_params(const float *cols, int d, int g, int bits, bool search, bs_f16 *meta, int token,
                      float *inverse, float *nzf)
{
    const float n_steps = (float)((1 << bits) - 1);
    for (int group = 0; group < d / g; group++) {
        bs_f16 *s = meta + group * 2 * BS_PAGE_TOKENS + token;
        for (int t = 0; t < TILE; t += VL) {
            const float *x = cols + group * g * TILE + t;
            vf m, M;
            range_of(x, g, &m, &M);
            params p = search ? search_params(x, g, m, M, n_steps) : params_of(m, M, n_steps);
            v_store_f16(s + t, p.s);
            v_store_i16((int16_t *)s + BS_PAGE_TOKENS + t, p.z);
            v_store(inverse + group * TILE + t, p.inverse);
            v_store(nzf + group * TILE + t, p.nzf);
        }
    }
}

/* Parameters of a kc group's channels from their ranges, to meta (s [d], then z [d]), inverse and nzf. */
VEC void channel_params(const float *low, const float *high, int d, int bits, bs_f16 *meta, float *inverse,
                        float *nzf)
{
    const float n_steps = (float)((1 << bits) - 1);
    for (int c = 0; c < d; c += VL) {
        params p = params_of(v_load(low + c), v_load(high + c), n_steps);
        v_store_f16(meta + c, p.s);
        v_store_i16((int16_t *)meta + d + c, p.z);
        v_store(inverse + c, p.inverse);
        v_store(nzf + c, p.nzf);
    }
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

/* K words of a tile. kc: inverse and nzf are [channel]; kt: [group][TILE]. The highest field comes first. */
VEC void k_words(const float *cols, int d, const int bits, bool per_channel, int g, const float *inverse,
                 const float *nzf, uint32_t *words)
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
                vf r = per_channel ? v_set1(inverse[c]) : v_load(inverse + group + t);
                vf z = per_channel ? v_set1(nzf[c]) : v_load(nzf + group + t);
                word = word << bits | codes_of(v_load(cols + c * TILE + t), r, z, n_steps);
            }
            v_storei(words + w * TILE + t, word);
        }
    }
}

/* V words of a tile; inverse and nzf are [group][TILE]. */
VEC void v_words(const float *rows, int d, const int bits, int g, const float *inverse, const float *nzf,
                 uint32_t *words)
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
                vf r = v_set1(inverse[group + t]), z = v_set1(nzf[group + t]);
                word = word << bits | codes_of(v_load(rows + t * d + c), r, z, n_steps);
            }
            v_storei(words + w * d + c, word);
        }
    }
}

/* One compiled loop a width: the number of fields and the shift are constants in each. */
VEC_OUTLINE static void k_words_of_width(const bs_cpu_kv_layout *l, const float *cols, const float *inverse,
                                         const float *nzf, uint32_t *words)
{
    const int d = l->head_dim, g = l->k_group;
    const bool kc = l->k_per_channel;
    if (l->k_bits == 8)
        kc ? k_words(cols, d, 8, true, g, inverse, nzf, words)
           : k_words(cols, d, 8, false, g, inverse, nzf, words);
    else if (l->k_bits == 4)
        kc ? k_words(cols, d, 4, true, g, inverse, nzf, words)
           : k_words(cols, d, 4, false, g, inverse, nzf, words);
    else
        kc ? k_words(cols, d, 2, true, g, inverse, nzf, words)
           : k_words(cols, d, 2, false, g, inverse, nzf, words);
}

VEC_OUTLINE static void v_words_of_width(const bs_cpu_kv_layout *l, const float *rows, const float *inverse,
                                         const float *nzf, uint32_t *words)
{
    const int d = l->head_dim, g = l->v_group;
    if (l->v_bits == 8) v_words(rows, d, 8, g, inverse, nzf, words);
    else if (l->v_bits == 4) v_words(rows, d, 4, g, inverse, nzf, words);
    else v_words(rows, d, 2, g, inverse, nzf, words);
}

VEC_OUTLINE void QUANTIZE_K(const bs_cpu_kv_layout *l, const bs_f16 *k, uint8_t *record)
{
    _Alignas(64) float rows[TILE * BS_MAX_HEAD_DIM], cols[N_TILES][TILE * BS_MAX_HEAD_DIM];
    _Alignas(64) float low[BS_MAX_HEAD_DIM], high[BS_MAX_HEAD_DIM];
    _Alignas(64) float inverse[BS_MAX_HEAD_DIM], nzf[BS_MAX_HEAD_DIM];
    const int d = l->head_dim,
              tiles = l->k_per_channel ? l->k_group / TILE : 1; /* tiles that share parameters */
    for (int first = 0; first < N_TILES; first += tiles) {
        for (int c = 0; c < d; c++) {
            low[c] = INFINITY;
            high[c] = -INFINITY;
        }
        for (int i = 0; i < tiles; i++) {
            const int token = (first + i) * TILE;
            widen_rows(k + token * d, d, rows);
            if (l->k_norm) normalize_rows(rows, d, bs_cpu_k_norms(l, record) + token);
            if (l->k_per_channel) widen_range(rows, d, low, high);
            transpose_tile(rows, d, cols[i]);
        }
        if (l->k_per_channel)
            channel_params(low, high, d, l->k_bits, bs_cpu_k_scales(l, record, first / tiles), inverse, nzf);
        else
            token_params(cols[0], d, l->k_group, l->k_bits, false, bs_cpu_k_scales(l, record, 0),
                         first * TILE, inverse, nzf);
        for (int i = 0; i < tiles; i++)
            k_words_of_width(l, cols[i], inverse, nzf, bs_cpu_k_words(l, record, first + i, 0));
    }
}

VEC_OUTLINE void QUANTIZE_V(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v, uint8_t *record)
{
    _Alignas(64) float rows[TILE * BS_MAX_HEAD_DIM], cols[TILE * BS_MAX_HEAD_DIM];
    _Alignas(64) float inverse[BS_MAX_HEAD_DIM], nzf[BS_MAX_HEAD_DIM];
    const int d = l->head_dim;
    const bool search = l->v_bits == 2 && encoder == BS_V_ENCODER_LEAST_SQUARES;
    for (int tile = 0; tile < N_TILES; tile++) {
        widen_rows(v + tile * TILE * d, d, rows);
        transpose_tile(rows, d, cols);
        token_params(cols, d, l->v_group, l->v_bits, search, bs_cpu_v_scales(l, record, 0), tile * TILE,
                     inverse, nzf);
        v_words_of_width(l, rows, inverse, nzf, bs_cpu_v_words(l, record, tile * TILE / l->v_fields, 0));
    }
}
