/* quantize_avx512.c: the quantizer with vectors of 16. The kernels are quantize_simd.h. */
#if defined(__x86_64__)
#include "kernels/cpu/vec_avx512.h"

#define VL         16
#define QUANTIZE_K bs_cpu_quantize_k_avx512
#define QUANTIZE_V bs_cpu_quantize_v_avx512

typedef int vi __attribute__((vector_size(64)));

VEC void v_storei(uint32_t *out, vi x)
{
    _mm512_storeu_si512(out, (__m512i)x);
}

VEC void v_store_f16(bs_f16 *out, vf x)
{
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

VEC void v_store_i16(int16_t *out, vf x)
{
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
}

VEC vf v_round_f16(vf x)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

VEC vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

VEC vf v_abs(vf x)
{
    return _mm512_abs_ps(x);
}

VEC vi v_cvt(vf x)
{
    return (vi)_mm512_cvtps_epi32(x);
}

VEC vf v_low(vf a, vf b)
{
    return __builtin_shuffle(a, b, (vi){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}

VEC vf v_high(vf a, vf b)
{
    return __builtin_shuffle(a, b, (vi){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

#include "kernels/cpu/quantize_simd.h"
#endif
