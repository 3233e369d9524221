/* kv_draw.h: pages that are hard to quantize, and a plain reading of docs/kv-format.md for one group, which
 * the hardest kind needs: groups whose best two ranges differ by nothing but the order of a sum. Shares no
 * line with kernels/. */
#ifndef BS_TEST_KV_DRAW_H
#define BS_TEST_KV_DRAW_H

#include "tests/kernels/kv_fixture.h"

enum { KV_N_KINDS = 12, KV_MAX_D = 128, KV_NEAR_TIES = 11 };

static inline int kv_ref_code(float x, uint16_t s, int16_t z, int bits)
{
    float r = 1.0f / kv_from_f16(s), c = nearbyintf(fmaf(x, r, -(float)z / 16.0f));
    int max = (1 << bits) - 1;
    return c < 0 ? 0 : c > (float)max ? max : (int)c;
}

static inline void kv_ref_params(float m, float M, int bits, uint16_t *s, int16_t *z)
{
    float a = (M - m) / (float)((1 << bits) - 1), b = fabsf(m) / 1790.0f, scale = a > b ? a : b;
    if (scale < ldexpf(1, -14)) scale = ldexpf(1, -14);
    *s = kv_to_f16(scale);
    if (*s == 0x7c00) *s = 0x7bff;
    float zero = nearbyintf(16.0f * m / kv_from_f16(*s));
    *z = (int16_t)(zero > 28687 ? 28687 : zero < -28687 ? -28687 : zero);
}

/* Parameters of a group from its range number `range` of nine. */
static inline void kv_ref_range_params(const float *x, int n, int bits, int range, uint16_t *s, int16_t *z)
{
    static const float shares[] = {1.f, .95f, .9f, .85f, .8f, .75f, .7f, .65f, .6f};
    float m = x[0], M = x[0];
    for (int i = 0; i < n; i++) {
        if (x[i] < m) m = x[i];
        if (x[i] > M) M = x[i];
    }
    float w = ((M - m) * 0.5f) * (1.0f - shares[range]);
    kv_ref_params(m + w, M - w, bits, s, z);
}

static inline float kv_draw_value(int kind, int token, int channel, uint64_t *state)
{
    double x = kv_normal(state);
    switch (kind) {
    case 0:
    case KV_NEAR_TIES: return (float)x;
    case 1: return (float)(channel % 7 - 3) * 0.37f; /* constant along tokens */
    case 2: return 0.0f;
    case 3: return (float)(1000.0 + x * 0.5) * (channel & 1 ? -1.0f : 1.0f); /* huge offset, tiny range */
    case 4: return kv_uniform(state) < 0.3 ? (x < 0 ? -65504.0f : 65504.0f) : (float)(x * 20000);
    case 5: return (float)(x * 0x1p-20);                              /* fp16 subnormals */
    case 6: return (float)(channel % 31 == 5 ? x * 4 + 60 : x * 0.2); /* outlier channels */
    case 7: return (float)(kv_random(state) % 31) * 0.5f - 4.0f;      /* many exact ties */
    case 10: return (float)((token % 5 - 2) * 600 + x); /* the same along channels: |z| of 7,000 and more */
    case 8: return kv_from_f16((uint16_t)(kv_random(state) % 0x7c00 | (kv_random(state) & 0x8000)));
    default:
        return token < 64 ? -0.0f : (float)(token % 3) * 0.125f; /* signed zeros, constant along channels */
    }
}

static inline double kv_exact_error(const float *x, int n, int range)
{
    uint16_t s;
    int16_t z;
    double sum = 0;
    kv_ref_range_params(x, n, 2, range, &s, &z);
    for (int i = 0; i < n; i++) {
        double e = x[i] - (double)kv_from_f16(s) * (kv_ref_code(x[i], s, z, 2) + z / 16.0);
        sum += e * e;
    }
    return sum;
}

/* By how much the squared errors of a group's best two ranges differ; *best and *second: which those are. */
static inline double kv_best_two(const float *x, int n, int *best, int *second)
{
    double error[9];
    for (int r = 0; r < 9; r++) error[r] = kv_exact_error(x, n, r);
    *best = error[1] < error[0];
    *second = !*best;
    for (int r = 2; r < 9; r++) {
        if (error[r] < error[*best]) {
            *second = *best;
            *best = r;
        } else if (error[r] < error[*second]) {
            *second = r;
        }
    }
    return error[*second] - error[*best];
}

/* A group whose two best ranges have errors that differ only by the rounding of the sum: the nearest tie of
 * 48 draws, whose values of falling size are then moved by fp16 steps until the difference is gone. Another
 * order of summation chooses otherwise in one of five to ten such groups; random data meets one in a million.
 */
static inline void kv_draw_near_tie(float *x, int n, uint64_t *state)
{
    double least = INFINITY;
    int best, second;
    for (int draw = 0; draw < 48; draw++) {
        float y[KV_MAX_D];
        for (int i = 0; i < n; i++)
            y[i] = kv_from_f16(kv_to_f16((float)ldexp(kv_normal(state), i < n / 2 ? 0 : -i % 16)));
        double d = kv_best_two(y, n, &best, &second);
        if (!(d < least)) continue;
        least = d;
        memcpy(x, y, (size_t)n * sizeof *x);
    }
    kv_best_two(x, n, &best, &second);
    for (int i = n / 2; i < n / 2 + 14; i++) {
        float kept = x[i], from = x[i];
        for (int step = -24; step <= 24; step++) {
            x[i] = kv_from_f16((uint16_t)(kv_to_f16(from) + step));
            double d = isfinite(x[i]) ? fabs(kv_exact_error(x, n, best) - kv_exact_error(x, n, second))
                                      : INFINITY;
            if (d < least) {
                least = d;
                kept = x[i];
            }
        }
        x[i] = kept;
    }
}

/* Page of one kind. Near ties: 16 groups of n channels, again and again. */
static inline void kv_draw_page(int kind, int d, int n, uint64_t seed, uint16_t *page)
{
    uint64_t state = seed;
    for (int i = 0; i < BS_PAGE_TOKENS * d; i++) {
        float x = kv_draw_value(kind, i / d, i % d, &state);
        page[i] = kv_to_f16(x > 65504 ? 65504 : x < -65504 ? -65504 : x);
    }
    for (int i = 0; kind == KV_NEAR_TIES && n > 0 && i < BS_PAGE_TOKENS * d; i += n) {
        float x[KV_MAX_D];
        if (i < 16 * n) kv_draw_near_tie(x, n, &state);
        for (int c = 0; c < n; c++) page[i + c] = i < 16 * n ? kv_to_f16(x[c]) : page[(i + c) % (16 * n)];
    }
}

#endif
