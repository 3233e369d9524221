/* quantize_avx2.c: the quantizer with vectors of 8. The kernels are quantize_simd.h. */
#if defined(__x86_64__)
#include "kernels/cpu/vec_avx2.h"

#define VL         8
#define QUANTIZE_K bs_cpu_quantize_k_avx2
#define QUANTIZE_V bs_cpu_quantize_v_avx2

typedef int vi __attribute__((vector_size(32)));

VEC void v_storei(uint32_t *out, vi x)
{
    _mm256_storeu_si256((__m256i *)out, (__m256i)x);
}

VEC void v_store_f16(bs_f16 *out, vf x)
{
    _mm_storeu_si128((__m128i *)out, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

VEC void v_store_i16(int16_t *out, vf x)
{
    __m256i i = _mm256_cvtps_epi32(x);
    _mm_storeu_si128((__m128i *)out,
                     _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}

VEC vf v_round_f16(vf x)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

VEC vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

VEC vf v_abs(vf x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

VEC vi v_cvt(vf x)
{
    return (vi)_mm256_cvtps_epi32(x);
}

VEC vf v_low(vf a, vf b)
{
    return __builtin_shuffle(a, b, (vi){0, 8, 1, 9, 2, 10, 3, 11});
}

VEC vf v_high(vf a, vf b)
{
    return __builtin_shuffle(a, b, (vi){4, 12, 5, 13, 6, 14, 7, 15});
}

#include "kernels/cpu/quantize_simd.h"
#endif
