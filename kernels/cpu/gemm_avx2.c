/* gemm_avx2.c: the row kernels of gemm_simd.h with 8 floats a vector (AVX2, FMA, F16C). */
#include "kernels/cpu/gemm.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#define W               8
#define NAME(f)         f##_avx2
#define ROWS_OF(tokens) ((tokens) == 1 ? 4 : (tokens) == 2 ? 2 : 1)
#define TILE_TOKENS     3
typedef __m256 vec;
typedef int32_t vi __attribute__((vector_size(32)));

#define v_zero()       _mm256_setzero_ps()
#define v_set1(x)      _mm256_set1_ps(x)
#define v_load(p)      _mm256_loadu_ps(p)
#define v_store(p, v)  _mm256_storeu_ps(p, v)
#define v_add(a, b)    _mm256_add_ps(a, b)
#define v_mul(a, b)    _mm256_mul_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)

static inline float v_sum(vec v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#define v_set1_int(x) ((vi)_mm256_set1_epi32(x))
#define v_cvt(c)      _mm256_cvtepi32_ps((__m256i)(c))
#define v_lanes       ((vi){0, 1, 2, 3, 4, 5, 6, 7})

static inline __m128i bytes8(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}

static inline vi v_zx(const uint8_t *p)
{
    return (vi)_mm256_cvtepu8_epi32(bytes8(p));
}

static inline vi v_sx(const uint8_t *p)
{
    return (vi)_mm256_cvtepi8_epi32(bytes8(p));
}

static inline vec v_lo16(vi bytes)
{
    return v_cvt(bytes & 15);
}

/* The look-up takes the low three bits of each lane; codes above 8 are negative, 8 is a zero without sign. */
static inline vec v_fp4(vi codes)
{
    vec size = _mm256_permutevar8x32_ps(_mm256_setr_ps(0, 1, 2, 3, 4, 6, 8, 12), (__m256i)codes);
    return _mm256_xor_ps(size, (vec)((codes > 8) << 31));
}

/* y[0 … 3] = sums of the lanes of a … d. */
static inline void v_sum4(float *y, vec a, vec b, vec c, vec d)
{
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}

static inline vec v_f16(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline vec v_bf16(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

#include "kernels/quants.h"

/* Eight 16-bit words, `stride` bytes apart, as floats. */
static inline vec halves(const uint8_t *p, int stride)
{
    uint16_t h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], p + i * stride, sizeof *h);
    return _mm256_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3], (short)h[4],
                                          (short)h[5], (short)h[6], (short)h[7]));
}

/* Four pairs of words. */
static inline vec pairs(const uint8_t *p, int stride)
{
    int32_t pair[4];
    for (int i = 0; i < 4; i++) memcpy(&pair[i], p + i * stride, sizeof *pair);
    return _mm256_cvtph_ps(_mm_setr_epi32(pair[0], pair[1], pair[2], pair[3]));
}

/* Scales of n ≤ 16 blocks of 32, and what is added to each of their elements (0 behind the last). The blocks
 * begin with fp16 d, or d and m. */
static inline __attribute__((always_inline)) void scales_avx2(bs_type type, const uint8_t *blocks, int n,
                                                              float *d, float *m)
{
    const int stride = type == BS_TYPE_Q4_0   ? 18
                       : type == BS_TYPE_Q4_1 ? 20
                       : type == BS_TYPE_Q5_0 ? 22
                       : type == BS_TYPE_Q5_1 ? 24
                       : type == BS_TYPE_Q8_0 ? 34
                                              : 17; /* MXFP4 */
    int k = 0;
    for (; type != BS_TYPE_MXFP4 && n - k >= 8; k += 8) {
        const uint8_t *b = blocks + k * stride;
        if (bs_quant_has_min(type)) { /* d m d m … of blocks 0 1 | 2 3 and 4 5 | 6 7 */
            vec low = pairs(b, stride), high = pairs(b + 4 * stride, stride);
            __m256i ds = (__m256i)_mm256_shuffle_ps(low, high, 0x88),
                    ms = (__m256i)_mm256_shuffle_ps(low, high, 0xdd);
            _mm256_store_si256((__m256i *)(void *)(d + k), _mm256_permute4x64_epi64(ds, 0xd8));
            _mm256_store_si256((__m256i *)(void *)(m + k), _mm256_permute4x64_epi64(ms, 0xd8));
        } else {
            vec scale = halves(b, stride);
            _mm256_store_ps(d + k, scale);
            _mm256_store_ps(m + k, _mm256_mul_ps(scale, _mm256_set1_ps((float)bs_quant_bias(type))));
        }
    }
    for (; k < n; k++) {
        d[k] = bs_quant_scale(type, blocks + k * stride, 0, &m[k]);
        m[k] += d[k] * (float)bs_quant_bias(type);
    }
    for (; k < BS_GEMM_SUMS; k++) m[k] = 0;
}

#include "kernels/cpu/gemm_simd.h"
#endif
