/* vec_avx2.h: the vectors of 8 that the kernels written for them share. */
#ifndef BS_CPU_VEC_AVX2_H
#define BS_CPU_VEC_AVX2_H

#include "src/base/half.h"

#include <immintrin.h>

#define VEC_OUTLINE __attribute__((target("avx2,fma,f16c")))
#define VEC         VEC_OUTLINE __attribute__((always_inline)) static inline

typedef __m256 vf;

VEC vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}

VEC vf v_load(const float *x)
{
    return _mm256_loadu_ps(x);
}

VEC void v_store(float *out, vf x)
{
    _mm256_storeu_ps(out, x);
}

VEC vf v_load_f16(const bs_f16 *x)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
}

VEC vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

VEC vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

VEC vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

/* b where either is NaN. */
VEC vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

/* x·2^n for a normal result. */
VEC vf v_scale2(vf x, vf n)
{
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(
                                _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}

/* 0 where a < b. */
VEC vf v_zero_below(vf x, vf a, vf b)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ), x);
}

/* a < b ? x : y, lane by lane. */
VEC vf v_pick_less(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

VEC vf v_rint(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif
