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

static float squared_error(const float *x, int n, size_t stride, const group_params *p, int n_steps)
{
    float error[BS_PAGE_TOKENS];
    for (int i = 0; i < n; i++) {
        float value = x[(size_t)i * stride];
        float e = value - p->scale * (code_of(value, p, n_steps) + p->zero);
        error[i] = e * e;
    }
    return halving_sum(error, n);
}

static group_params choose_params(const float *x, int n, size_t stride, int n_steps, bool search)
{
    float m = x[0], M = x[0];
    for (int i = 1; i < n; i++) {
        m = fminf(m, x[(size_t)i * stride]);
        M = fmaxf(M, x[(size_t)i * stride]);
    }
    group_params best = params_of(m, M, n_steps);
    if (!search) return best;
    float best_error = squared_error(x, n, stride, &best, n_steps);
    for (int i = 1; i < BS_KV_N_RANGES; i++) {
        float w = (M - m) * 0.5f * (1.0f - BS_KV_RANGES[i]);
        group_params p = params_of(m + w, M - w, n_steps);
        float error = squared_error(x, n, stride, &p, n_steps);
        if (error < best_error) {
            best = p;
            best_error = error;
        }
    }
    return best;
}

/* Divides each token's K by its rounded root mean square. */
static void normalize(float *x, int head_dim, bs_f16 *norms)
{
    float squares[BS_MAX_HEAD_DIM];
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        float *row = x + token * head_dim;
        for (int d = 0; d < head_dim; d++) squares[d] = row[d] * row[d];
        float rms = sqrtf(halving_sum(squares, head_dim) / (float)head_dim);
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
    float x[BS_PAGE_TOKENS * BS_MAX_HEAD_DIM];
    for (int i = 0; i < BS_PAGE_TOKENS * d; i++) x[i] = bs_f16_to_f32(k[i]);
    if (l->k_norm) normalize(x, d, bs_cpu_k_norms(l, record));
    memset(record, 0, l->k_codes_bytes);

    /* along: the axis that groups run over; each of `across` has n_k_groups of them. */
    const int across = l->k_per_channel ? d : BS_PAGE_TOKENS;
    const size_t step_along = l->k_per_channel ? (size_t)d : 1,
                 step_across = l->k_per_channel ? 1 : (size_t)d;
    for (int group = 0; group < l->n_k_groups; group++) {
        for (int a = 0; a < across; a++) {
            const float *first = x + (size_t)(group * g) * step_along + (size_t)a * step_across;
            group_params p = choose_params(first, g, step_along, n_steps, false);
            bs_cpu_k_scales(l, record, group)[a] = p.s;
            bs_cpu_k_zeros(l, record, group)[a] = p.z;
            for (int i = 0; i < g; i++) {
                int along = group * g + i, token = l->k_per_channel ? along : a,
                    channel = l->k_per_channel ? a : along;
                set_k_code(l, record, token, channel, code_of(first[(size_t)i * step_along], &p, n_steps));
            }
        }
    }
}

void bs_cpu_quantize_v_scalar(const bs_cpu_kv_layout *l, bs_v_encoder encoder, const bs_f16 *v,
                              uint8_t *record)
{
    const int d = l->head_dim, g = l->v_group, n_steps = (1 << l->v_bits) - 1;
    const bool search = l->v_bits == 2 && encoder == BS_V_ENCODER_LEAST_SQUARES;
    memset(record + l->v_codes, 0, l->v_codes_bytes);
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        float x[BS_MAX_HEAD_DIM];
        for (int c = 0; c < d; c++) x[c] = bs_f16_to_f32(v[token * d + c]);
        for (int group = 0; group < l->n_v_groups; group++) {
            group_params p = choose_params(x + group * g, g, 1, n_steps, search);
            bs_cpu_v_scales(l, record, group)[token] = p.s;
            bs_cpu_v_zeros(l, record, group)[token] = p.z;
            for (int c = group * g; c < (group + 1) * g; c++)
                set_v_code(l, record, token, c, code_of(x[c], &p, n_steps));
        }
    }
}
