/* attend_simd.h: one page of attention in vectors, included once per instruction set. Private to
 * kernels/cpu/.
 *
 * The includer defines LANES, VEC (always inline) and VEC_OUTLINE with its target attribute, ATTEND_PAGE, the
 * types vf and vi, the v_… primitives, CODE_NV (vectors side by side for R rows of codes), PANEL (vectors
 * side by side in the tile products) and code_mid (what v_unpack takes off a code).
 *
 * Two ways:
 *  - Few rows (decode): codes → sums. v_unpack turns field j of 16 words into 16 floats u = c − mid and every
 * row adds x·u, x one broadcast number. K: x = q·s and the zero's share Σ q·s·z is one number a row and group
 * (kc), or S = s·(Σ q·u + z·Σ q) a token (kt). V: x = p·s, and Σ p·s·z is one number a row and group. Here z
 * stands for z/16 + mid: codes about their middle make sums that do not grow and then cancel. f16 pages: K in
 * dot products along the head, four tokens joined by one horizontal sum; V like codes.
 *  - Many rows (prefill): the page is dequantized once into two f32 tiles in L2, K transposed, and R × PANEL
 *    register blocks run over them at the speed of an sgemm.
 * Numerics: f32; sums of at most 128 terms are added to the running O once a page, so errors do not grow with
 * S beyond the rounding of that addition.
 */
#include <math.h>

#include "kernels/cpu/vec_exp.h"

enum {
    PAGE = BS_PAGE_TOKENS,
    MAX_R = 8, /* rows of one call of the inner loop */
    MAX_NV = 4,
    GROUP_LD = MAX_R * PAGE, /* of block->factor */
};

/* ---- softmax ---- */

/* One row's scores of tokens first … end − 1 become p; m and l move on. Returns what O and l were scaled by.
 */
VEC float softmax_row(float *s, int first, int end, int lo, int hi, bool masked, float *m, float *l)
{
    const int t0 = first & ~(LANES - 1);
    if (masked && lo >= hi) { /* none of this page's tokens */
        for (int t = t0; t < end; t += LANES) v_store(s + t, v_set1(0.0f));
        return 1.0f;
    }
    vf top = v_set1(-INFINITY);
    for (int t = t0; t < end; t += LANES) {
        vf x = v_load(s + t);
        if (masked) {
            x = v_keep_range(x, t, lo, hi, v_set1(-INFINITY));
            v_store(s + t, x);
        }
        top = v_max(top, x);
    }
    float max = v_hmax(top);
    if (*m > max) max = *m;
    vf shift = v_set1(-max), total = v_set1(0.0f);
    for (int t = t0; t < end; t += LANES) {
        vf p = v_exp(v_add(v_load(s + t), shift));
        v_store(s + t, p);
        total = v_add(total, p);
    }
    float alpha = max == *m ? 1.0f : expf(*m - max);
    *l = *l * alpha + v_hsum(total);
    *m = max;
    return alpha;
}

/* Rows row0 … row0 + n − 1, whose scores are s[0 … n − 1]. */
VEC_OUTLINE static void softmax_rows(const bs_attend_page *page, const bs_attend_block *b, int row0, int n,
                                     int first, int end)
{
    for (int i = 0; i < n; i++) {
        int r = row0 + i;
        float *s = b->s + i * PAGE;
        b->alpha[r] = page->full ? softmax_row(s, 0, PAGE, 0, PAGE, false, &b->m[r], &b->l[r])
                                 : softmax_row(s, first, end, b->lo[r], b->hi[r], true, &b->m[r], &b->l[r]);
    }
}

/* ---- codes to sums ---- */

/* sum[r][lane of NV vectors] = Σ_i x[r][i]·u_i for n_steps words of 32/bits fields each. Words of 16 lanes
 * stand tile_stride apart, those of the next fields `step` further. The vectors may belong to two groups (NQ
 * 2), whose x are GROUP_LD apart. */
typedef void dot_fn(const uint32_t *words, size_t tile_stride, size_t step, int n_steps, const float *x,
                    ptrdiff_t next, float *sum);

VEC void dot_codes(const uint32_t *words, size_t tile_stride, size_t step, int n_steps, const float *x,
                   ptrdiff_t next, float *sum, const int bits, const int R, const int NV, const int NQ)
{
    const int n_fields = 32 / bits;
    vf acc[MAX_R][MAX_NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[r][v] = v_set1(0.0f);
    for (int i = 0; i < n_steps; i++, words += step, x += n_fields) {
        vi w[MAX_NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            const uint32_t *at = words + (size_t)(v * LANES / 16) * tile_stride + v * LANES % 16;
            w[v] = v_load_words(at, bits);
            __builtin_prefetch((const char *)at + next, 0, 2);
        }
#pragma GCC unroll 16
        for (int j = 0; j < n_fields; j++) {
            vf u[MAX_NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) u[v] = v_unpack(w[v], bits, j);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int h = 0; h < NQ; h++) {
                    vf broadcast = v_set1(x[h * GROUP_LD + r * PAGE + j]);
#pragma GCC unroll 4
                    for (int v = h * NV / NQ; v < (h + 1) * NV / NQ; v++)
                        acc[r][v] = v_fma(u[v], broadcast, acc[r][v]);
                }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) v_store(sum + (r * NV + v) * LANES, acc[r][v]);
}

#define DOT(BITS, R)                                                                                         \
    VEC_OUTLINE static void dot_##BITS##_##R(const uint32_t *w, size_t tile_stride, size_t step,             \
                                             int n_steps, const float *x, ptrdiff_t next, float *sum)        \
    {                                                                                                        \
        dot_codes(w, tile_stride, step, n_steps, x, next, sum, BITS, R, CODE_NV(R), 1);                      \
    }
#define DOT_TWO_GROUPS(BITS, R)                                                                              \
    VEC_OUTLINE static void dot2_##BITS##_##R(const uint32_t *w, size_t tile_stride, size_t step,            \
                                              int n_steps, const float *x, ptrdiff_t next, float *sum)       \
    {                                                                                                        \
        dot_codes(w, tile_stride, step, n_steps, x, next, sum, BITS, R, CODE_NV(R), 2);                      \
    }
#define DOT_ROWS(X, BITS)                                                                                    \
    X(BITS, 1)                                                                                               \
    X(BITS, 2)                                                                                               \
    X(BITS, 3)                                                                                               \
    X(BITS, 4)                                                                                               \
    X(BITS, 6)                                                                                               \
    X(BITS, 8)
DOT_ROWS(DOT, 2)
DOT_ROWS(DOT, 4)
DOT_ROWS(DOT, 8)
#define DOT_NAMES(BITS)                                                                                      \
    {                                                                                                        \
        dot_##BITS##_1, dot_##BITS##_2, dot_##BITS##_3, dot_##BITS##_4, dot_##BITS##_6, dot_##BITS##_8       \
    }
static dot_fn *const dot_table[3][6] = {DOT_NAMES(2), DOT_NAMES(4), DOT_NAMES(8)};
#if CODE_NV(1) * LANES > 32
DOT_ROWS(DOT_TWO_GROUPS, 2)
DOT_ROWS(DOT_TWO_GROUPS, 4)
DOT_ROWS(DOT_TWO_GROUPS, 8)
#define DOT2_NAMES(BITS)                                                                                     \
    {                                                                                                        \
        dot2_##BITS##_1, dot2_##BITS##_2, dot2_##BITS##_3, dot2_##BITS##_4, dot2_##BITS##_6, dot2_##BITS##_8 \
    }
static dot_fn *const dot2_table[3][6] = {DOT2_NAMES(2), DOT2_NAMES(4), DOT2_NAMES(8)};
#else
#define dot2_table dot_table /* never wider than a group of 32 */
#endif

/* How n rows of codes are computed: R ≥ n rows (the rest is padding) by `width` lanes. */
typedef struct code_plan {
    dot_fn *dot;
    int n_rows, width;
} code_plan;

static code_plan plan_codes(int n, int bits, int group)
{
    static const int rows_of[MAX_R + 1] = {0, 1, 2, 3, 4, 6, 6, 8, 8};
    static const int index_of[MAX_R + 1] = {0, 0, 1, 2, 3, 4, 4, 5, 5};
    int rows = rows_of[n], width = CODE_NV(rows) * LANES, b = bits == 2 ? 0 : bits == 4 ? 1 : 2;
    dot_fn *dot = width > group ? dot2_table[b][index_of[n]] : dot_table[b][index_of[n]];
    return (code_plan){dot, rows, width};
}

/* n of a page's s and z/16 + mid into scale and zero; `folded` makes the zero s·(z/16 + mid). */
VEC void load_parameters(const bs_f16 *s, const int16_t *z, int n, float mid, bool folded, ptrdiff_t next,
                         float *scale, float *zero)
{
    for (int i = 0; i < n; i += LANES) {
        vf vs = v_load_f16(s + i), vz = v_fma(v_load_i16(z + i), v_set1(0.0625f), v_set1(mid));
        __builtin_prefetch((const char *)(s + i) + next, 0, 2);
        __builtin_prefetch((const char *)(z + i) + next, 0, 2);
        v_store(scale + i, vs);
        v_store(zero + i, folded ? v_mul(vs, vz) : vz);
    }
}

VEC_OUTLINE static void load_k_parameters(const bs_attend_page *page, const bs_attend_block *b, bool folded)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int axis = l->k_per_channel ? l->head_dim : PAGE;
    for (int g = 0; g < l->n_k_groups; g++)
        load_parameters(bs_cpu_k_scales(l, page->record, g), bs_cpu_k_zeros(l, page->record, g), axis,
                        code_mid(l->k_bits), folded, page->next, b->scale + g * axis, b->zero + g * axis);
}

VEC_OUTLINE static void load_v_parameters(const bs_attend_page *page, const bs_attend_block *b, bool folded)
{
    const bs_cpu_kv_layout *l = page->layout;
    for (int g = 0; g < l->n_v_groups; g++)
        load_parameters(bs_cpu_v_scales(l, page->record, g), bs_cpu_v_zeros(l, page->record, g), PAGE,
                        code_mid(l->v_bits), folded, page->next, b->scale + g * PAGE, b->zero + g * PAGE);
}

/* kc: factor[g][r] = q·s, shift[g][r] = Σ q·s·z. */
VEC void fold_k_per_channel(const bs_attend_page *page, const bs_attend_block *b, const float *q, int n_rows)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int dim = l->head_dim;
    for (int g = page->first / l->k_group; g * l->k_group < page->end; g++) {
        for (int r = 0; r < n_rows; r++) {
            vf total = v_set1(0.0f);
            for (int d = 0; d < dim; d += LANES) {
                vf x = v_mul(v_load(q + r * dim + d), v_load(b->scale + g * dim + d));
                v_store(b->factor + g * GROUP_LD + r * PAGE + d, x);
                total = v_fma(x, v_load(b->zero + g * dim + d), total);
            }
            b->shift[g * MAX_R + r] = v_hsum(total);
        }
    }
}

/* kt: factor[0][r] = q, shift[g][r] = Σ q over the group's channels. */
VEC void fold_k_per_token(const bs_attend_page *page, const bs_attend_block *b, const float *q, int n_rows)
{
    const bs_cpu_kv_layout *l = page->layout;
    for (int r = 0; r < n_rows; r++)
        for (int g = 0; g < l->n_k_groups; g++) {
            vf total = v_set1(0.0f);
            for (int d = g * l->k_group; d < (g + 1) * l->k_group; d += LANES) {
                vf x = v_load(q + r * l->head_dim + d);
                v_store(b->factor + r * PAGE + d, x);
                total = v_add(total, x);
            }
            b->shift[g * MAX_R + r] = v_hsum(total);
        }
}

/* Scores of n ≤ 8 rows from row0. */
VEC_OUTLINE static void score_codes(const bs_attend_page *page, const bs_attend_block *b, int row0, int n)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int dim = l->head_dim, n_words = dim / l->k_fields;
    const size_t tile_stride = (size_t)n_words * BS_CPU_LANES;
    const bool kc = l->k_per_channel;
    const code_plan plan = plan_codes(n, l->k_bits, kc ? l->k_group : PAGE);
    const float *q = b->q + row0 * dim;
    const bs_f16 *norms = bs_cpu_k_norms(l, page->record);
    if (kc) fold_k_per_channel(page, b, q, plan.n_rows);
    else fold_k_per_token(page, b, q, plan.n_rows);
    for (int t = page->first & -plan.width; t < page->end; t += plan.width) {
        const uint32_t *words = bs_cpu_k_words(l, page->record, t / BS_CPU_LANES, 0) + t % BS_CPU_LANES;
        const int n_parts = kc ? 1 : l->n_k_groups, part_words = n_words / n_parts;
        for (int g = 0; g < n_parts; g++) {
            const float *x = kc ? b->factor + t / l->k_group * GROUP_LD : b->factor + g * l->k_group;
            plan.dot(words + g * part_words * BS_CPU_LANES, tile_stride, BS_CPU_LANES, part_words, x,
                     page->next, b->sum);
            for (int r = 0; r < n; r++)
                for (int v = 0; v < plan.width; v += LANES) {
                    float *out = b->s + (row0 + r) * PAGE + t + v;
                    vf y = v_load(b->sum + r * plan.width + v);
                    if (kc) {
                        y = v_add(y, v_set1(b->shift[(t + v) / l->k_group * MAX_R + r]));
                    } else {
                        const float *s = b->scale + g * PAGE + t + v, *z = b->zero + g * PAGE + t + v;
                        y = v_mul(v_load(s), v_fma(v_load(z), v_set1(b->shift[g * MAX_R + r]), y));
                        if (g > 0) y = v_add(y, v_load(out));
                    }
                    if (l->k_norm && g == n_parts - 1) y = v_mul(y, v_load_f16(norms + t + v));
                    v_store(out, y);
                }
        }
    }
}

/* V: factor[g][r] = p·s, shift[g][r] = Σ p·s·z. Parameters of tokens that no row sees may be NaN: selected
 * away. */
VEC void fold_v(const bs_attend_page *page, const bs_attend_block *b, int row0, int n_rows)
{
    const bool whole = page->end - page->first == PAGE;
    const int t0 = page->first & -16, t1 = (page->end + 15) & -16;
    const vf none = v_set1(0.0f);
    for (int g = 0; g < page->layout->n_v_groups; g++)
        for (int r = 0; r < n_rows; r++) {
            const float *p = b->s + (row0 + r) * PAGE, *s = b->scale + g * PAGE, *z = b->zero + g * PAGE;
            float *out = b->factor + g * GROUP_LD + r * PAGE;
            vf total = none;
            for (int t = t0; t < t1; t += LANES) {
                vf x = v_mul(v_load(p + t), v_load(s + t)), y = v_mul(x, v_load(z + t));
                if (!whole) {
                    x = v_keep_range(x, t, page->first, page->end, none);
                    y = v_keep_range(y, t, page->first, page->end, none);
                }
                v_store(out + t, x);
                total = v_add(total, y);
            }
            b->shift[g * MAX_R + r] = v_hsum(total);
        }
}

/* O = alpha·O + p·V for n ≤ 8 rows from row0. */
VEC_OUTLINE static void add_codes(const bs_attend_page *page, const bs_attend_block *b, int row0, int n)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int dim = l->head_dim, group = l->v_group;
    const code_plan plan = plan_codes(n, l->v_bits, group);
    const int word0 = page->first / l->v_fields, n_words = (page->end - 1) / l->v_fields + 1 - word0;
    fold_v(page, b, row0, plan.n_rows);
    for (int c = 0; c < dim; c += plan.width) {
        plan.dot(bs_cpu_v_words(l, page->record, word0, 0) + c, BS_CPU_LANES, (size_t)dim, n_words,
                 b->factor + c / group * GROUP_LD + word0 * l->v_fields, page->next, b->sum);
        for (int r = 0; r < n; r++)
            for (int v = 0; v < plan.width; v += LANES) {
                float *o = b->o + (row0 + r) * dim + c + v;
                vf y = v_add(v_load(b->sum + r * plan.width + v),
                             v_set1(b->shift[(c + v) / group * MAX_R + r]));
                v_store(o, v_fma(v_load(o), v_set1(b->alpha[row0 + r]), y));
            }
    }
}

/* ---- f16 and f32 products ---- */

/* out[r][lane of PANEL vectors] = Σ_k x[r][k]·mat[k][lane], or alpha[r]·out + that. */
typedef void panel_fn(const void *mat, size_t ld, const float *x, size_t x_ld, int n, float *out,
                      size_t out_ld, const float *alpha, ptrdiff_t next);

VEC void multiply_panel(const void *mat, size_t ld, const float *x, size_t x_ld, int n, float *out,
                        size_t out_ld, const float *alpha, ptrdiff_t next, const int R, const bool half)
{
    vf acc[6][PANEL];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL; v++) acc[r][v] = v_set1(0.0f);
    for (int k = 0; k < n; k++) {
        vf y[PANEL];
        if (half) __builtin_prefetch((const char *)((const bs_f16 *)mat + (size_t)k * ld) + next, 0, 2);
#pragma GCC unroll 4
        for (int v = 0; v < PANEL; v++)
            y[v] = half ? v_load_f16((const bs_f16 *)mat + (size_t)k * ld + v * LANES)
                        : v_load((const float *)mat + (size_t)k * ld + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            vf broadcast = v_set1(x[(size_t)r * x_ld + (size_t)k]);
#pragma GCC unroll 4
            for (int v = 0; v < PANEL; v++) acc[r][v] = v_fma(y[v], broadcast, acc[r][v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL; v++) {
            float *at = out + (size_t)r * out_ld + v * LANES;
            v_store(at, alpha ? v_fma(v_load(at), v_set1(alpha[r]), acc[r][v]) : acc[r][v]);
        }
}

#define PANEL_FN(NAME, R, HALF)                                                                              \
    VEC_OUTLINE static void NAME(const void *mat, size_t ld, const float *x, size_t x_ld, int n, float *out, \
                                 size_t out_ld, const float *alpha, ptrdiff_t next)                          \
    {                                                                                                        \
        multiply_panel(mat, ld, x, x_ld, n, out, out_ld, alpha, next, R, HALF);                              \
    }
PANEL_FN(panel_1, 1, false)
PANEL_FN(panel_2, 2, false)
PANEL_FN(panel_3, 3, false)
PANEL_FN(panel_4, 4, false)
PANEL_FN(panel_5, 5, false)
PANEL_FN(panel_6, 6, false)
PANEL_FN(half_1, 1, true)
PANEL_FN(half_2, 2, true)
PANEL_FN(half_3, 3, true)
PANEL_FN(half_4, 4, true)
PANEL_FN(half_5, 5, true)
PANEL_FN(half_6, 6, true)
static panel_fn *const panel_table[2][6] = {{panel_1, panel_2, panel_3, panel_4, panel_5, panel_6},
                                            {half_1, half_2, half_3, half_4, half_5, half_6}};

/* Four tokens' dot products with R rows of q, into s[r][0 … 3]. */
VEC void dot_half(const bs_f16 *k, int dim, const float *q, float *s, ptrdiff_t next, const int R)
{
    vf acc[HALF_ROWS][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) acc[r][t] = v_set1(0.0f);
    for (int d = 0; d < dim; d += LANES) {
        vf y[4];
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
            y[t] = v_load_f16(k + t * dim + d);
            __builtin_prefetch((const char *)(k + t * dim + d) + next, 0, 2);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vf x = v_load(q + r * dim + d);
#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) acc[r][t] = v_fma(x, y[t], acc[r][t]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) v_store_sums(s + r * PAGE, acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

VEC_OUTLINE static void score_half(const bs_attend_page *page, const bs_attend_block *b, int row0, int n)
{
    const int dim = page->layout->head_dim;
    for (int r = row0; r < row0 + n; r += HALF_ROWS) {
        const float *q = b->q + r * dim;
        const int rows = row0 + n - r < HALF_ROWS ? row0 + n - r : HALF_ROWS;
        const ptrdiff_t next = r == row0 ? page->next : 0;
        for (int t = page->first & -4; t < page->end; t += 4) {
            const bs_f16 *k = page->k + t * dim;
            float *s = b->s + r * PAGE + t;
            switch (rows) {
            case 1: dot_half(k, dim, q, s, next, 1); break;
            case 2: dot_half(k, dim, q, s, next, 2); break;
            case 3: dot_half(k, dim, q, s, next, 3); break;
            default: dot_half(k, dim, q, s, next, HALF_ROWS); break;
            }
        }
    }
}

VEC_OUTLINE static void add_half(const bs_attend_page *page, const bs_attend_block *b, int row0, int n)
{
    const int dim = page->layout->head_dim;
    for (int r = row0; r < row0 + n; r += 6) {
        panel_fn *multiply = panel_table[1][(row0 + n - r < 6 ? row0 + n - r : 6) - 1];
        for (int c = 0; c < dim; c += PANEL * LANES)
            multiply(page->v + page->first * dim + c, (size_t)dim, b->s + r * PAGE + page->first, PAGE,
                     page->end - page->first, b->o + r * dim + c, (size_t)dim, b->alpha + r, page->next);
    }
}

/* ---- tiles ---- */

/* K of tokens first … end − 1 to k_tile [D, 128]; whole vectors of tokens. */
VEC void fill_k_codes(const bs_attend_page *page, const bs_attend_block *b, const int bits)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int n_fields = 32 / bits, dim = l->head_dim;
    for (int t = page->first & -LANES; t < page->end; t += LANES) {
        const uint32_t *words = bs_cpu_k_words(l, page->record, t / BS_CPU_LANES, 0) + t % BS_CPU_LANES;
        const vf norm = l->k_norm ? v_load_f16(bs_cpu_k_norms(l, page->record) + t) : v_set1(1.0f);
        const int row = t / l->k_group * dim; /* kc */
        for (int d = 0; d < dim; d += n_fields, words += BS_CPU_LANES) {
            const vi w = v_load_words(words, bits);
            const int at = d / l->k_group * PAGE + t; /* kt */
#pragma GCC unroll 16
            for (int j = 0; j < n_fields; j++) {
                vf s = l->k_per_channel ? v_set1(b->scale[row + d + j]) : v_load(b->scale + at);
                vf z = l->k_per_channel ? v_set1(b->zero[row + d + j]) : v_load(b->zero + at);
                v_store(b->k_tile + (d + j) * PAGE + t, v_mul(norm, v_fma(v_unpack(w, bits, j), s, z)));
            }
        }
    }
}

VEC void fill_v_codes(const bs_attend_page *page, const bs_attend_block *b, const int bits)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int n_fields = 32 / bits, dim = l->head_dim;
    for (int t = page->first / n_fields * n_fields; t < page->end; t += n_fields)
        for (int c = 0; c < dim; c += LANES) {
            const vi w = v_load_words(bs_cpu_v_words(l, page->record, t / n_fields, 0) + c, bits);
            const int at = c / l->v_group * PAGE + t;
#pragma GCC unroll 16
            for (int j = 0; j < n_fields; j++)
                v_store(b->v_tile + (t + j) * dim + c,
                        v_fma(v_unpack(w, bits, j), v_set1(b->scale[at + j]), v_set1(b->zero[at + j])));
        }
}

VEC_OUTLINE static void fill_tiles(const bs_attend_page *page, const bs_attend_block *b)
{
    const bs_cpu_kv_layout *l = page->layout;
    const int dim = l->head_dim;
    if (!page->record) {
        for (int t = page->first & -LANES; t < page->end; t += LANES)
            for (int d = 0; d < dim; d += LANES)
                v_transpose_f16(page->k + t * dim + d, dim, b->k_tile + d * PAGE + t, PAGE);
        for (int i = page->first * dim; i < page->end * dim; i += LANES)
            v_store(b->v_tile + i, v_load_f16(page->v + i));
        return;
    }
    load_k_parameters(page, b, true);
    if (l->k_bits == 2) fill_k_codes(page, b, 2);
    else if (l->k_bits == 4) fill_k_codes(page, b, 4);
    else fill_k_codes(page, b, 8);
    load_v_parameters(page, b, true);
    if (l->v_bits == 2) fill_v_codes(page, b, 2);
    else if (l->v_bits == 4) fill_v_codes(page, b, 4);
    else fill_v_codes(page, b, 8);
}

/* n rows from row0 against the tiles. Rows ascend in position, so the first and last row bound what they see.
 */
VEC_OUTLINE static void multiply_tiles(const bs_attend_page *page, const bs_attend_block *b, int row0, int n)
{
    const int dim = page->layout->head_dim, width = PANEL * LANES;
    const int first = page->full || b->lo[row0] < 0 ? 0 : b->lo[row0];
    const int end = page->full || b->hi[row0 + n - 1] > PAGE ? PAGE : b->hi[row0 + n - 1];
    if (first >= end) return;
    for (int t = first & -width; t < end; t += width)
        for (int r = 0; r < n; r += 6)
            panel_table[0][n - r < 6 ? n - r - 1 : 5](b->k_tile + t, PAGE, b->q + (row0 + r) * dim,
                                                      (size_t)dim, dim, b->s + r * PAGE + t, PAGE, NULL, 0);
    softmax_rows(page, b, row0, n, first, end);
    for (int c = 0; c < dim; c += width)
        for (int r = 0; r < n; r += 6)
            panel_table[0][n - r < 6 ? n - r - 1 : 5](
                b->v_tile + first * dim + c, (size_t)dim, b->s + r * PAGE + first, PAGE, end - first,
                b->o + (row0 + r) * dim + c, (size_t)dim, b->alpha + row0 + r, 0);
}

/* ---- a page ---- */

/* Rows of one pass over the codes; only the last pass of a block may need padding rows. */
static int pass_rows(int left)
{
    return left >= 11 ? 8 : left >= 9 ? 6 : left;
}

VEC_OUTLINE void ATTEND_PAGE(const bs_attend_page *page, const bs_attend_block *b)
{
    const int n_rows = b->n_rows;
    if (n_rows > BS_ATTEND_DIRECT_ROWS) {
        fill_tiles(page, b);
        for (int r = 0; r < n_rows; r += BS_ATTEND_TILE_ROWS)
            multiply_tiles(page, b, r, n_rows - r < BS_ATTEND_TILE_ROWS ? n_rows - r : BS_ATTEND_TILE_ROWS);
        return;
    }
    if (!page->record) {
        score_half(page, b, 0, n_rows);
        softmax_rows(page, b, 0, n_rows, page->first, page->end);
        add_half(page, b, 0, n_rows);
        return;
    }
    load_k_parameters(page, b, false);
    for (int r = 0, n; r < n_rows; r += n) score_codes(page, b, r, n = pass_rows(n_rows - r));
    softmax_rows(page, b, 0, n_rows, page->first, page->end);
    load_v_parameters(page, b, false);
    for (int r = 0, n; r < n_rows; r += n) add_codes(page, b, r, n = pass_rows(n_rows - r));
}
