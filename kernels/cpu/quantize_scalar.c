/* quantize_scalar.c: the quantizer as docs/kv-format.md reads, a group at a time. The reference of the SIMD
 * kernels and of other devices, and the path of machines without AVX2. */
#include <math.h>

#include "kernels/cpu/quantize.h"

typedef struct group_params {
    bs_f16 s;
    int16_t z;
    float scale, zero; /* s and z/16 as f32 */
} group_params;

static float clampf(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static group_params params_of(float m, float M, int n_steps)
{
    float s = fmaxf(fmaxf((M - m) / (float)n_steps, fabsf(m) / BS_KV_ZERO_REACH), BS_KV_MIN_SCALE);
    group_params p;
    p.s = bs_f32_to_f16(fminf(s, BS_KV_MAX_SCALE));
    p.scale = bs_f16_to_f32(p.s);
    p.z = (int16_t)clampf(rintf(16.0f * m / p.scale), -BS_KV_MAX_ZERO, BS_KV_MAX_ZERO);
    p.zero = (float)p.z / 16.0f;
    return p;
}

static float code_of(float x, const group_params *p, int n_steps)
{
    return clampf(rintf(fmaf(x, 1.0f / p->scale, -p->zero)), 0.0f, (float)n_steps);
}

/* Sum of n numbers (a power of two), i with i + n/2; destroys x. */
static float halving_sum(float *x, int n)
{
    for (int half = n / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* margin: taken off each end, a share of the width. */
static group_params measure(const float *x, int n, size_t stride, int n_steps, float margin)
{
    float m = x[0], M = x[0];
    for (int i = 1; i < n; i++) {
        m = fminf(m, x[(size_t)i * stride]);
        M = fmaxf(M, x[(size_t)i * stride]);
    }
    float w = (M - m) * margin;
    return params_of(m + w, M - w, n_steps);
}

/* Divides each token's K by its rounded root mean square; sums: [128] Σ k². */
static void normalize(float *x, int head_dim, bs_f16 *norms, float *sums)
{
    float squares[BS_MAX_HEAD_DIM];
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        float *row = x + token * head_dim;
        for (int d = 0; d < head_dim; d++) squares[d] = row[d] * row[d];
        sums[token] = halving_sum(squares, head_dim);
        float rms = sqrtf(sums[token] / (float)head_dim);
        norms[token] = bs_f32_to_f16(fmaxf(rms, BS_KV_MIN_SCALE));
        float n = bs_f16_to_f32(norms[token]);
        for (int d = 0; d < head_dim; d++) row[d] /= n;
    }
}

static void set_k_code(const bs_cpu_kv_layout *l, uint8_t *record, int token, int channel, float code)
{
    uint32_t *words = bs_cpu_k_words(l, record, token / BS_CPU_LANES, channel / l->k_fields);
    words[token % BS_CPU_LANES] |= (uint32_t)code << channel % l->k_fields * l->k_bits;
}

static void set_v_code(const bs_cpu_kv_layout *l, uint8_t *record, int token, int channel, float code)
{
    uint32_t *words = bs_cpu_v_words(l, record, token / l->v_fields, channel / BS_CPU_LANES);
    words[channel % BS_CPU_LANES] |= (uint32_t)code << token % l->v_fields * l->v_bits;
}

void bs_cpu_quantize_k_scalar(const bs_cpu_kv_layout *l, const bs_f16 *k, uint8_t *record)
{
    const int d = l->head_dim, g = l->k_group, n_steps = (1 << l->k_bits) - 1;
    const bool corrects = l->k_norm && l->k_bits == 2;
    const float margin = l->k_bits == 2 ? bs_cpu_kv_margin(g, !l->k_norm) : 0.0f;
    float x[BS_PAGE_TOKENS * BS_MAX_HEAD_DIM], sums[BS_PAGE_TOKENS], products[BS_PAGE_TOKENS] = {0};
    for (int i = 0; i < BS_PAGE_TOKENS * d; i++) x[i] = bs_f16_to_f32(k[i]);
    if (l->k_norm) normalize(x, d, bs_cpu_k_norms(l, record), sums);
    memset(record, 0, l->k_codes_bytes);

    /* along: the axis that groups run over; each of `across` has n_k_groups of them. */
    const int across = l->k_per_channel ? d : BS_PAGE_TOKENS;
    const size_t step_along = l->k_per_channel ? (size_t)d : 1,
                 step_across = l->k_per_channel ? 1 : (size_t)d;
    for (int group = 0; group < l->n_k_groups; group++) {
        for (int a = 0; a < across; a++) {
            const float *first = x + (size_t)(group * g) * step_along + (size_t)a * step_across;
            group_params p = measure(first, g, step_along, n_steps, margin);
            bs_cpu_k_scales(l, record, group)[a] = p.s;
            bs_cpu_k_zeros(l, record, group)[a] = p.z;
            const float offset = p.scale * p.zero;
            for (int i = 0; i < g; i++) {
                int along = group * g + i, token = l->k_per_channel ? along : a,
                    channel = l->k_per_channel ? a : along;
                float value = first[(size_t)i * step_along], code = code_of(value, &p, n_steps);
                set_k_code(l, record, token, channel, code);
                if (corrects)
                    products[token] += fmaf(value, fmaf(p.scale, code, offset), BS_KV_PRODUCT_ROUND) -
                                       BS_KV_PRODUCT_ROUND;
            }
        }
    }
    bs_f16 *norms = bs_cpu_k_norms(l, record);
    for (int token = 0; corrects && token < BS_PAGE_TOKENS; token++)
        norms[token] = bs_cpu_kv_corrected_norm(norms[token], sums[token], products[token]);
}

void bs_cpu_quantize_v_scalar(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v,
                              uint8_t *record)
{
    const int d = l->head_dim, g = l->v_group, n_steps = (1 << l->v_bits) - 1;
    const float margin = l->v_bits == 2 && encoder == BS_V_ENCODER_BEST ? bs_cpu_kv_margin(g, false) : 0.0f;
    memset(record + l->v_codes, 0, l->v_codes_bytes);
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        float x[BS_MAX_HEAD_DIM];
        for (int c = 0; c < d; c++) x[c] = bs_f16_to_f32(v[token * d + c]);
        for (int group = 0; group < l->n_v_groups; group++) {
            group_params p = measure(x + group * g, g, 1, n_steps, margin);
            bs_cpu_v_scales(l, record, group)[token] = p.s;
            bs_cpu_v_zeros(l, record, group)[token] = p.z;
            for (int c = group * g; c < (group + 1) * g; c++)
                set_v_code(l, record, token, c, code_of(x[c], &p, n_steps));
        }
    }
}
