/* vec_avx512.h: the vectors of 16 that the kernels written for them share. */
#ifndef BS_CPU_VEC_AVX512_H
#define BS_CPU_VEC_AVX512_H

#include "src/base/half.h"

#include <immintrin.h>

#define VEC_OUTLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define VEC         VEC_OUTLINE __attribute__((always_inline)) static inline

typedef __m512 vf;

VEC vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}

VEC vf v_load(const float *x)
{
    return _mm512_loadu_ps(x);
}

VEC void v_store(float *out, vf x)
{
    _mm512_storeu_ps(out, x);
}

VEC vf v_load_f16(const bs_f16 *x)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
}

VEC vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

VEC vf v_rint(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif
