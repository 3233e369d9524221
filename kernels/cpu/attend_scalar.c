/* attend_scalar.c: one page of attention in plain C: the visible tokens are dequantized, then multiplied. For
 * machines without AVX2, and to read before attend_simd.h. */
#include "kernels/cpu/attend_tile.h"

#include <math.h>

static float k_value(const bs_attend_page *page, int token, int channel)
{
    const bs_cpu_kv_layout *l = page->layout;
    uint32_t word = bs_cpu_k_words(l, page->record, token / BS_CPU_LANES,
                                   channel / l->k_fields)[token % BS_CPU_LANES];
    uint32_t code = word >> channel % l->k_fields * l->k_bits & ((1u << l->k_bits) - 1);
    int group = (l->k_per_channel ? token : channel) / l->k_group, i = l->k_per_channel ? channel : token;
    float s = bs_f16_to_f32(bs_cpu_k_scales(l, page->record, group)[i]);
    float x = s * ((float)code + bs_cpu_k_zeros(l, page->record, group)[i] / 16.0f);
    return l->k_norm ? x * bs_f16_to_f32(bs_cpu_k_norms(l, page->record)[token]) : x;
}

static float v_value(const bs_attend_page *page, int token, int channel)
{
    const bs_cpu_kv_layout *l = page->layout;
    uint32_t word = bs_cpu_v_words(l, page->record, token / l->v_fields,
                                   channel / BS_CPU_LANES)[channel % BS_CPU_LANES];
    uint32_t code = word >> token % l->v_fields * l->v_bits & ((1u << l->v_bits) - 1);
    int group = channel / l->v_group;
    float s = bs_f16_to_f32(bs_cpu_v_scales(l, page->record, group)[token]);
    return s * ((float)code + bs_cpu_v_zeros(l, page->record, group)[token] / 16.0f);
}

/* Tokens first … end − 1 of both tiles, each [token][D] here. */
static void fill_tiles(const bs_attend_page *page, const bs_attend_block *b)
{
    int dim = page->layout->head_dim;
    for (int t = page->first; t < page->end; t++)
        for (int d = 0; d < dim; d++) {
            b->k_tile[t * dim + d] = page->record ? k_value(page, t, d) : bs_f16_to_f32(page->k[t * dim + d]);
            b->v_tile[t * dim + d] = page->record ? v_value(page, t, d) : bs_f16_to_f32(page->v[t * dim + d]);
        }
}

static void fold_row(const bs_attend_page *page, const bs_attend_block *b, int r)
{
    int dim = page->layout->head_dim;
    int lo = b->lo[r] > 0 ? b->lo[r] : 0, hi = b->hi[r] < BS_PAGE_TOKENS ? b->hi[r] : BS_PAGE_TOKENS;
    if (lo >= hi) return;
    float max = b->m[r], *o = b->o + r * dim;
    for (int t = lo; t < hi; t++) {
        double sum = 0;
        for (int d = 0; d < dim; d++) sum += (double)b->q[r * dim + d] * b->k_tile[t * dim + d];
        b->s[t] = (float)sum;
        max = fmaxf(max, b->s[t]);
    }
    float alpha = b->m[r] == -INFINITY ? 0 : expf(b->m[r] - max);
    b->l[r] *= alpha;
    for (int d = 0; d < dim; d++) o[d] *= alpha;
    for (int t = lo; t < hi; t++) {
        float p = expf(b->s[t] - max);
        b->l[r] += p;
        for (int d = 0; d < dim; d++) o[d] += p * b->v_tile[t * dim + d];
    }
    b->m[r] = max;
}

void bs_cpu_attend_page_scalar(const bs_attend_page *page, const bs_attend_block *b)
{
    fill_tiles(page, b);
    for (int r = 0; r < b->n_rows; r++) fold_row(page, b, r);
}
