/* quants.c: the block formats of weights, one block after the other: the scalar reference.
 *
 * Values are what the formats' authors define (ggml): x = d·c (Q8_0, Q4_0 with c − 8, Q5_0 with c − 16),
 * d·c + m (Q4_1, Q5_1), and for the 256-element formats d·scale·c − dmin·min (Q2_K, Q4_K, Q5_K), d·scale·(c −
 * 4) (Q3_K) and d·scale·(c − 32) (Q6_K), each product and sum rounded to f32 in that order. d, m, dmin are
 * fp16, little-endian. MXFP4 (OCP Microscaling Formats 1.0) is 2^(e − 127) times a number of 1 sign, 2
 * exponent and 1 mantissa bits; its table has twice these numbers, its d half of that power. Same bits as the
 * gguf package's dequantize (tests/kernels).
 */
#include "kernels/quants.h"

#include <math.h>
#include <string.h>

static void put_half(uint8_t *p, float x)
{
    bs_f16 h = bs_f32_to_f16(x);
    memcpy(p, &h, sizeof h);
}

static void q4_0_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[16 + i] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void q4_1_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b), m = bs_quant_half(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[16 + i] = d * (float)(b[4 + i] >> 4) + m;
    }
}

/* Code i of 32: four low bits of a byte and one of a word of high bits. */
static int code5(const uint8_t *high, const uint8_t *low, int i)
{
    uint32_t bits;
    memcpy(&bits, high, sizeof bits);
    return (i < 16 ? low[i] & 15 : low[i - 16] >> 4) | (int)(bits >> i & 1) << 4;
}

static void q5_0_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(code5(b + 2, b + 6, i) - 16);
}

static void q5_1_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b), m = bs_quant_half(b + 2);
    for (int i = 0; i < 32; i++) out[i] = d * (float)code5(b + 4, b + 8, i) + m;
}

static const int8_t fp4_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void mxfp4_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half_power(b[0]);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)fp4_doubled[b[1 + i] & 15];
        out[16 + i] = d * (float)fp4_doubled[b[1 + i] >> 4];
    }
}

static void q8_0_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

/* 16 scales and minima in a byte each; 64 bytes of 2-bit codes, 4 sub-blocks of 32 in each half of them. */
static void q2_k_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b + 80), dmin = bs_quant_half(b + 82);
    for (int i = 0; i < 256; i++) {
        float ds = d * (float)(b[i / 16] & 15), m = dmin * (float)(b[i / 16] >> 4);
        int code = b[16 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
        out[i] = ds * (float)code - m;
    }
}

static void q3_k_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b + 108);
    for (int i = 0; i < 256; i++) {
        int low = b[32 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3, high = b[i % 32] >> i / 32 & 1;
        out[i] = d * (float)bs_quant_q3_k_scale(b + 96, i / 16) * (float)((low | high << 2) - 4);
    }
}

static void q4_k_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b), dmin = bs_quant_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        bs_quant_q4_k_scale(b + 4, j, &scale, &min);
        float ds = d * (float)scale, m = dmin * (float)min;
        const uint8_t *q = b + 16 + 32 * (j / 2);
        for (int i = 0; i < 32; i++) out[32 * j + i] = ds * (float)(j % 2 ? q[i] >> 4 : q[i] & 15) - m;
    }
}

static void q5_k_to_f32(const uint8_t *b, float *out)
{
    float d = bs_quant_half(b), dmin = bs_quant_half(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        bs_quant_q4_k_scale(b + 4, j, &scale, &min);
        float ds = d * (float)scale, m = dmin * (float)min;
        const uint8_t *high = b + 16, *low = b + 48 + 32 * (j / 2);
        for (int i = 0; i < 32; i++) {
            int code = (j % 2 ? low[i] >> 4 : low[i] & 15) | (high[i] >> j & 1) << 4;
            out[32 * j + i] = ds * (float)code - m;
        }
    }
}

static void q6_k_to_f32(const uint8_t *b, float *out)
{
    const uint8_t *low = b, *high = b + 128;
    const int8_t *scales = (const int8_t *)(b + 192);
    float d = bs_quant_half(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, in = i % 128, quarter = in / 32, l = in % 32;
        int lo = low[64 * half + 32 * (quarter % 2) + l] >> 4 * (quarter / 2) & 15;
        int hi = high[32 * half + l] >> 2 * quarter & 3;
        out[i] = d * (float)scales[i / 16] * (float)((lo | hi << 4) - 32);
    }
}

bs_status bs_dequantize_row(bs_type type, const void *blocks, float *out, int64_t n)
{
    const uint8_t *b = blocks;
    if ((unsigned)type >= BS_TYPE_COUNT) return bs_fail(BS_STATUS_UNSUPPORTED, "weight type %d", (int)type);
    int block = bs_type_block(type), bytes = bs_type_block_bytes(type);
    if (n < 0 || n % block)
        return bs_fail(BS_STATUS_RANGE, "%s: %lld elements are no whole blocks of %d", bs_type_name(type),
                       (long long)n, block);
    for (int64_t i = 0; i < n; i += block, b += bytes, out += block) {
        switch (type) {
        case BS_TYPE_F32: memcpy(out, b, 4); break;
        case BS_TYPE_F16: *out = bs_quant_half(b); break;
        case BS_TYPE_BF16: {
            bs_bf16 h;
            memcpy(&h, b, sizeof h);
            *out = bs_bf16_to_f32(h);
            break;
        }
        case BS_TYPE_Q4_0: q4_0_to_f32(b, out); break;
        case BS_TYPE_Q4_1: q4_1_to_f32(b, out); break;
        case BS_TYPE_Q5_0: q5_0_to_f32(b, out); break;
        case BS_TYPE_Q5_1: q5_1_to_f32(b, out); break;
        case BS_TYPE_Q8_0: q8_0_to_f32(b, out); break;
        case BS_TYPE_Q2_K: q2_k_to_f32(b, out); break;
        case BS_TYPE_Q3_K: q3_k_to_f32(b, out); break;
        case BS_TYPE_Q4_K: q4_k_to_f32(b, out); break;
        case BS_TYPE_Q5_K: q5_k_to_f32(b, out); break;
        case BS_TYPE_Q6_K: q6_k_to_f32(b, out); break;
        case BS_TYPE_MXFP4: mxfp4_to_f32(b, out); break;
        default: break;
        }
    }
    return BS_STATUS_OK;
}

static int nearest_code(float x, float inverse, int max)
{
    float c = rintf(x * inverse);
    return c < 0 ? 0 : c > (float)max ? max : (int)c;
}

/* d, then m where it is not NULL, as fp16, replaced by what was stored. */
static uint8_t *put_scales(uint8_t *b, float *d, float *m)
{
    put_half(b, *d);
    *d = bs_quant_half(b);
    if (!m) return b + 2;
    put_half(b + 2, *m);
    *m = bs_quant_half(b + 2);
    return b + 4;
}

/* Codes (x − zero)/d of 32 values: low nibbles, before them the word of fifth bits where there is one. */
static void put_codes(const float *x, float zero, float d, int max, uint8_t *b)
{
    float inverse = d != 0 ? 1 / d : 0;
    uint32_t high = 0;
    uint8_t *low = max > 15 ? b + sizeof high : b;
    memset(low, 0, 16);
    for (int i = 0; i < 32; i++) {
        int code = nearest_code(x[i] - zero, inverse, max);
        low[i % 16] |= (uint8_t)((code & 15) << 4 * (i / 16));
        high |= (uint32_t)code >> 4 << i;
    }
    if (max > 15) memcpy(b, &high, sizeof high);
}

/* Q4_0, Q5_0: symmetric around the middle code; the value of largest magnitude gets code 0. */
static void f32_to_symmetric(const float *x, int max, uint8_t *b)
{
    float largest = 0, middle = (float)(max / 2 + 1);
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    float d = largest / -middle;
    b = put_scales(b, &d, NULL);
    put_codes(x, -middle * d, d, max, b);
}

/* Q4_1, Q5_1: from the smallest to the largest value. */
static void f32_to_range(const float *x, int max, uint8_t *b)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    float d = (high - low) / (float)max;
    b = put_scales(b, &d, &low);
    put_codes(x, low, d, max, b);
}

/* The power of two puts the largest value at 4 … 8 (6 is the largest number), codes are the nearest. */
static void f32_to_mxfp4(const float *x, uint8_t *b)
{
    float largest = 0;
    int exponent;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    frexpf(largest, &exponent);
    int e = largest > 0 ? exponent - 3 + 127 : 0;
    b[0] = (uint8_t)(e < 0 ? 0 : e);
    float d = bs_quant_half_power(b[0]);
    memset(b + 1, 0, 16);
    for (int i = 0; i < 32; i++) {
        int best = 0;
        for (int code = 1; code < 16; code++)
            if (fabsf(d * (float)fp4_doubled[code] - x[i]) < fabsf(d * (float)fp4_doubled[best] - x[i]))
                best = code;
        b[1 + i % 16] |= (uint8_t)(best << 4 * (i / 16));
    }
}

static void f32_to_q8_0(const float *x, uint8_t *b)
{
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(x[i]));
    float d = bs_f16_to_f32(bs_f32_to_f16(largest / 127)), inverse = d != 0 ? 1 / d : 0;
    put_half(b, d);
    for (int i = 0; i < 32; i++)
        b[2 + i] = (uint8_t)(int8_t)(nearest_code(x[i] + 127 * d, inverse, 254) - 127);
}

bs_status bs_quantize_row(bs_type type, const float *in, void *blocks, int64_t n)
{
    uint8_t *b = blocks;
    if ((unsigned)type >= BS_TYPE_COUNT || bs_type_block(type) == 256)
        return bs_fail(BS_STATUS_UNSUPPORTED, "no encoder for weight type %s", bs_type_name(type));
    int block = bs_type_block(type), bytes = bs_type_block_bytes(type);
    if (n < 0 || n % block)
        return bs_fail(BS_STATUS_RANGE, "%s: %lld elements are no whole blocks of %d", bs_type_name(type),
                       (long long)n, block);
    for (int64_t i = 0; i < n; i += block, b += bytes, in += block) {
        switch (type) {
        case BS_TYPE_F32: memcpy(b, in, 4); break;
        case BS_TYPE_F16: put_half(b, *in); break;
        case BS_TYPE_BF16: {
            bs_bf16 h = bs_f32_to_bf16(*in);
            memcpy(b, &h, sizeof h);
            break;
        }
        case BS_TYPE_Q4_0: f32_to_symmetric(in, 15, b); break;
        case BS_TYPE_Q4_1: f32_to_range(in, 15, b); break;
        case BS_TYPE_Q5_0: f32_to_symmetric(in, 31, b); break;
        case BS_TYPE_Q5_1: f32_to_range(in, 31, b); break;
        case BS_TYPE_Q8_0: f32_to_q8_0(in, b); break;
        case BS_TYPE_MXFP4: f32_to_mxfp4(in, b); break;
        default: break;
        }
    }
    return BS_STATUS_OK;
}
