/* quants.h: what the blocks of weights hold beside codes, for those that expand codes in registers. Private to
 * kernels/. The layouts are kernels/quants.c's. */
#ifndef BS_QUANTS_H
#define BS_QUANTS_H

#include "kernels/kernels.h"

#include <string.h>

static inline float bs_quant_half(const uint8_t *p)
{
    bs_f16 h;
    memcpy(&h, p, sizeof h);
#ifdef __F16C__ /* in files of an instruction set, which include immintrin.h */
    return _cvtsh_ss(h);
#else
    return bs_f16_to_f32(h);
#endif
}

/* 2^(e − 128), MXFP4's half power; the two smallest are subnormal. */
static inline float bs_quant_half_power(uint8_t e)
{
    return bs_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* The 6-bit scale and minimum of sub-block j (0 … 7) in the 12 bytes of Q4_K and Q5_K. */
static inline void bs_quant_q4_k_scale(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* Scale j of 16 in Q3_K's 12 bytes: four low bits in the first 8 bytes, two high ones in the last 4. */
static inline int bs_quant_q3_k_scale(const uint8_t *s, int j)
{
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4, high = s[8 + j % 4] >> 2 * (j / 4) & 3;
    return (low | high << 4) - 32;
}

/* Elements that share a scale: 32, or 16 in some formats of 256. */
static inline int bs_quant_width(bs_type type)
{
    return type == BS_TYPE_Q2_K || type == BS_TYPE_Q3_K || type == BS_TYPE_Q6_K ? 16 : 32;
}

/* What is added to a stored code. */
static inline int bs_quant_bias(bs_type type)
{
    switch (type) {
    case BS_TYPE_Q4_0: return -8;
    case BS_TYPE_Q5_0: return -16;
    case BS_TYPE_Q3_K: return -4;
    case BS_TYPE_Q6_K: return -32;
    default: return 0;
    }
}

static inline bool bs_quant_has_min(bs_type type)
{
    return type == BS_TYPE_Q4_1 || type == BS_TYPE_Q5_1 || type == BS_TYPE_Q2_K || type == BS_TYPE_Q4_K ||
           type == BS_TYPE_Q5_K;
}

/* Sub-block j of a block: x = scale · (code + bias) + *min, *min 0 in a format without. */
static inline float bs_quant_scale(bs_type type, const uint8_t *b, int j, float *min)
{
    int scale, least;
    *min = 0;
    switch (type) {
    case BS_TYPE_Q4_1:
    case BS_TYPE_Q5_1: *min = bs_quant_half(b + 2); return bs_quant_half(b);
    case BS_TYPE_Q2_K:
        *min = -(bs_quant_half(b + 82) * (float)(b[j] >> 4));
        return bs_quant_half(b + 80) * (float)(b[j] & 15);
    case BS_TYPE_Q3_K: return bs_quant_half(b + 108) * (float)bs_quant_q3_k_scale(b + 96, j);
    case BS_TYPE_Q4_K:
    case BS_TYPE_Q5_K:
        bs_quant_q4_k_scale(b + 4, j, &scale, &least);
        *min = -(bs_quant_half(b + 2) * (float)least);
        return bs_quant_half(b) * (float)scale;
    case BS_TYPE_Q6_K: return bs_quant_half(b + 208) * (float)(int8_t)b[192 + j];
    case BS_TYPE_MXFP4: return bs_quant_half_power(b[0]);
    default: return bs_quant_half(b);
    }
}

#endif
