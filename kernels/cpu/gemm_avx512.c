/* gemm_avx512.c: the row kernels of gemm_simd.h with 16 floats a vector (AVX-512 F, BW, VL, DQ). */
#include "kernels/cpu/gemm.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#define W               16
#define NAME(f)         f##_avx512
#define ROWS_OF(tokens) ((tokens) == 1 ? 4 : 2)
#define TILE_TOKENS     6
typedef __m512 vec;
typedef int32_t vi __attribute__((vector_size(64)));

#define v_zero()       _mm512_setzero_ps()
#define v_set1(x)      _mm512_set1_ps(x)
#define v_load(p)      _mm512_loadu_ps(p)
#define v_store(p, v)  _mm512_storeu_ps(p, v)
#define v_add(a, b)    _mm512_add_ps(a, b)
#define v_mul(a, b)    _mm512_mul_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_sum(v)       _mm512_reduce_add_ps(v)

#define v_set1_int(x) ((vi)_mm512_set1_epi32(x))
#define v_cvt(c)      _mm512_cvtepi32_ps((__m512i)(c))
#define v_lanes       ((vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})

static inline __m128i bytes16(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

static inline vi v_zx(const uint8_t *p)
{
    return (vi)_mm512_cvtepu8_epi32(bytes16(p));
}

static inline vi v_sx(const uint8_t *p)
{
    return (vi)_mm512_cvtepi8_epi32(bytes16(p));
}

/* The look-up takes the low four bits of each lane. */
static inline vec v_lo16(vi bytes)
{
    return _mm512_permutexvar_ps((__m512i)bytes,
                                 _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

static inline vec v_fp4(vi codes)
{
    return _mm512_permutexvar_ps((__m512i)codes,
                                 _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
}

/* y[0 … 3] = sums of the lanes of a … d. */
static inline void v_sum4(float *y, vec a, vec b, vec c, vec d)
{
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 s = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
}

static inline vec v_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline vec v_bf16(const uint8_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#include "kernels/quants.h"

/* Scales of n ≤ 16 blocks of 32, and what is added to each of their elements (0 behind the last). The blocks
 * begin with fp16 d, or d and m: words 0 and 1 of a stride that is a constant after inlining. Words are picked
 * from whole vectors, each block's from the one that holds it. */
static inline __attribute__((always_inline)) void scales_avx512(bs_type type, const uint8_t *blocks, int n,
                                                                float *d, float *m)
{
    const bool has_min = bs_quant_has_min(type);
    const int stride = type == BS_TYPE_Q4_0   ? 9
                       : type == BS_TYPE_Q4_1 ? 10
                       : type == BS_TYPE_Q5_0 ? 11
                       : type == BS_TYPE_Q5_1 ? 12
                                              : 17; /* Q8_0 */
    if (type == BS_TYPE_MXFP4) {
        for (int k = 0; k < n; k++) d[k] = bs_quant_half_power(blocks[17 * k]);
        return;
    }
    /* Word 0 of blocks 0 … 15, then word 1, where m is, by its place; `found` collects what stands there. */
    const __m512i place = _mm512_set_epi16(
        15 * stride + 1, 14 * stride + 1, 13 * stride + 1, 12 * stride + 1, 11 * stride + 1, 10 * stride + 1,
        9 * stride + 1, 8 * stride + 1, 7 * stride + 1, 6 * stride + 1, 5 * stride + 1, 4 * stride + 1,
        3 * stride + 1, 2 * stride + 1, stride + 1, 1, 15 * stride, 14 * stride, 13 * stride, 12 * stride,
        11 * stride, 10 * stride, 9 * stride, 8 * stride, 7 * stride, 6 * stride, 5 * stride, 4 * stride,
        3 * stride, 2 * stride, stride, 0);
    const __m512i holder = _mm512_srli_epi16(place, 5); /* place is taken modulo 32 */
    const int n_words = n * stride;
    __m512i found = _mm512_setzero_si512();
#pragma GCC unroll 9
    for (int v = 0; 32 * v < 16 * stride; v++) {
        __mmask32 wanted = _mm512_cmpeq_epi16_mask(holder, _mm512_set1_epi16((short)v));
        if (n_words >= 32 * (v + 1)) {
            found = _mm512_mask_permutexvar_epi16(found, wanted, place, _mm512_loadu_si512(blocks + 64 * v));
        } else {
            __mmask32 within = n_words > 32 * v ? (1u << (n_words - 32 * v)) - 1 : 0;
            __m512i words = _mm512_maskz_loadu_epi16(within, blocks + 64 * v);
            found = _mm512_mask_permutexvar_epi16(found, wanted, place, words);
            if (n_words <= 32 * (v + 1)) break;
        }
    }
    __m512 scale = _mm512_cvtph_ps(_mm512_castsi512_si256(found));
    _mm512_store_ps(d, scale);
    if (has_min) scale = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(found, 1));
    else scale = _mm512_mul_ps(scale, _mm512_set1_ps((float)bs_quant_bias(type)));
    _mm512_store_ps(m, _mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), scale));
}

#include "kernels/cpu/gemm_simd.h"
#endif
