/* kv_draw.h: pages that are hard to quantize. */
#ifndef BS_TEST_KV_DRAW_H
#define BS_TEST_KV_DRAW_H

#include "tests/kernels/kv_fixture.h"

enum { KV_N_KINDS = 12, KV_MAX_D = 128 };

static inline float kv_draw_value(int kind, int token, int channel, uint64_t *state)
{
    double x = kv_normal(state);
    switch (kind) {
    case 0: return (float)x;
    case 11: return (float)ldexp(x, token * 7 % 37 - 26); /* tokens of all sizes */
    case 1: return (float)(channel % 7 - 3) * 0.37f;      /* constant along tokens */
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

/* Page of one kind. */
static inline void kv_draw_page(int kind, int d, uint64_t seed, uint16_t *page)
{
    uint64_t state = seed;
    for (int i = 0; i < BS_PAGE_TOKENS * d; i++) {
        float x = kv_draw_value(kind, i / d, i % d, &state);
        page[i] = kv_to_f16(x > 65504 ? 65504 : x < -65504 ? -65504 : x);
    }
}

#endif
