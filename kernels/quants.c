/* quants.c: the block formats of weights, one block after the other: the scalar reference.
 *
 * Values are what the formats' authors define (ggml): x = d·c (Q8_0, Q4_0 with c − 8), d·c + m (Q4_1), and
 * for the 256-element formats d·scale·c − dmin·min (Q4_K) and d·scale·(c − 32) (Q6_K), each product and sum
 * rounded to f32 in that order. d, m, dmin are fp16, little-endian. Same bits as the gguf package's
 * dequantize (tests/kernels).
 */
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

static float half_at(const uint8_t *p)
{
    bs_f16 h;
    memcpy(&h, p, sizeof h);
    return bs_f16_to_f32(h);
}

static void put_half(uint8_t *p, float x)
{
    bs_f16 h = bs_f32_to_f16(x);
    memcpy(p, &h, sizeof h);
}

static void q4_0_to_f32(const uint8_t *b, float *out)
{
    float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[16 + i] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void q4_1_to_f32(const uint8_t *b, float *out)
{
    float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[16 + i] = d * (float)(b[4 + i] >> 4) + m;
    }
}

static void q8_0_to_f32(const uint8_t *b, float *out)
{
    float d = half_at(b);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

/* The 6-bit scale and minimum of sub-block j (0 … 7) in Q4_K's 12 bytes. */
static void q4_k_scale(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static void q4_k_to_f32(const uint8_t *b, float *out)
{
    float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        q4_k_scale(b + 4, j, &scale, &min);
        float ds = d * (float)scale, m = dmin * (float)min;
        const uint8_t *q = b + 16 + 32 * (j / 2);
        for (int i = 0; i < 32; i++) out[32 * j + i] = ds * (float)(j % 2 ? q[i] >> 4 : q[i] & 15) - m;
    }
}

static void q6_k_to_f32(const uint8_t *b, float *out)
{
    const uint8_t *low = b, *high = b + 128;
    const int8_t *scales = (const int8_t *)(b + 192);
    float d = half_at(b + 208);
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
        case BS_TYPE_F16: *out = half_at(b); break;
        case BS_TYPE_BF16: {
            bs_bf16 h;
            memcpy(&h, b, sizeof h);
            *out = bs_bf16_to_f32(h);
            break;
        }
        case BS_TYPE_Q4_0: q4_0_to_f32(b, out); break;
        case BS_TYPE_Q4_1: q4_1_to_f32(b, out); break;
        case BS_TYPE_Q8_0: q8_0_to_f32(b, out); break;
        case BS_TYPE_Q4_K: q4_k_to_f32(b, out); break;
        case BS_TYPE_Q6_K: q6_k_to_f32(b, out); break;
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

/* Symmetric around 8: the value of largest magnitude gets code 0 (−8). */
static void f32_to_q4_0(const float *x, uint8_t *b)
{
    float largest = 0;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    float d = bs_f16_to_f32(bs_f32_to_f16(largest / -8)), inverse = d != 0 ? 1 / d : 0;
    put_half(b, d);
    for (int i = 0; i < 16; i++)
        b[2 + i] = (uint8_t)(nearest_code(x[i] + 8 * d, inverse, 15) |
                             nearest_code(x[16 + i] + 8 * d, inverse, 15) << 4);
}

static void f32_to_q4_1(const float *x, uint8_t *b)
{
    float min = x[0], max = x[0];
    for (int i = 1; i < 32; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
    }
    float d = bs_f16_to_f32(bs_f32_to_f16((max - min) / 15)), inverse = d != 0 ? 1 / d : 0;
    put_half(b, d);
    put_half(b + 2, min);
    min = half_at(b + 2);
    for (int i = 0; i < 16; i++)
        b[4 + i] = (uint8_t)(nearest_code(x[i] - min, inverse, 15) |
                             nearest_code(x[16 + i] - min, inverse, 15) << 4);
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
    if ((unsigned)type >= BS_TYPE_COUNT || type == BS_TYPE_Q4_K || type == BS_TYPE_Q6_K)
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
            uint32_t u = bs_f32_bits(*in);
            bs_bf16 h = (bs_bf16)((u + 0x7fffu + (u >> 16 & 1)) >>
                                  16); /* nearest, ties to even; inputs are finite */
            memcpy(b, &h, sizeof h);
            break;
        }
        case BS_TYPE_Q4_0: f32_to_q4_0(in, b); break;
        case BS_TYPE_Q4_1: f32_to_q4_1(in, b); break;
        case BS_TYPE_Q8_0: f32_to_q8_0(in, b); break;
        default: break;
        }
    }
    return BS_STATUS_OK;
}
