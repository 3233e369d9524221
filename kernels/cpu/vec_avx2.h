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

VEC vf v_rint(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif
