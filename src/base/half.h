/* half.h: IEEE fp16 and bfloat16 as plain numbers.
 *
 * bs_f16 and bs_bf16 are the 16 bits. Conversions to fp16 round to nearest, ties to even, as F16C and the GPU do,
 * and overflow to infinity; from fp16 they are exact (subnormals included).
 */
#ifndef BS_HALF_H
#define BS_HALF_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bs_f16;
typedef uint16_t bs_bf16;

static inline uint32_t bs_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bs_f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float bs_f16_to_f32(bs_f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31) return bs_f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return bs_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float f = (float)mantissa * 0x1p-24f; /* zero or subnormal: exact */
    return bs_f32_from_bits(bs_f32_bits(f) | sign);
}

static inline bs_f16 bs_f32_to_f16(float f)
{
    uint32_t u = bs_f32_bits(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (bs_f16)(sign | 0x7e00u | (a >> 13 & 0x1ffu)); /* NaN stays NaN */
    if (a >= 0x477ff000u) return (bs_f16)(sign | 0x7c00u); /* ≥ 65520 rounds to infinity */
    if (a < 0x38800000u) {                                 /* subnormal or zero */
        /* Adding 0.5 puts the last fp16 bit at the last fp32 bit; the FPU rounds to even. */
        float t = bs_f32_from_bits(a) + 0.5f;
        return (bs_f16)(sign | (bs_f32_bits(t) - 0x3f000000u));
    }
    return (bs_f16)(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13));
}

static inline float bs_bf16_to_f32(bs_bf16 b)
{
    return bs_f32_from_bits((uint32_t)b << 16);
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline bs_bf16 bs_f32_to_bf16(float f)
{
    uint32_t u = bs_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (bs_bf16)(u >> 16 | 0x40u);
    return (bs_bf16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#endif
