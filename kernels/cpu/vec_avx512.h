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

VEC vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

VEC vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

/* b where either is NaN. */
VEC vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

/* x·2^n */
VEC vf v_scale2(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}

/* 0 where a < b. */
VEC vf v_zero_below(vf x, vf a, vf b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}

/* a < b ? x : y, lane by lane. */
VEC vf v_pick_less(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

VEC vf v_rint(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif
