/* vec_exp.h: exp in vectors, behind vec_avx2.h or vec_avx512.h. */
#ifndef BS_CPU_VEC_EXP_H
#define BS_CPU_VEC_EXP_H

/* exp for x ≤ 0 to 1–2 ulp; 0 below −87, NaN stays. x = n·ln 2 + r, |r| ≤ ln 2 / 2; minimax polynomial of
 * degree 6 (relative error 3e-9). */
VEC vf v_exp(vf x)
{
    vf y = v_max(v_set1(-87.0f), x);
    vf n = v_rint(v_mul(y, v_set1(0x1.715476p+0f)));
    vf r = v_fma(n, v_set1(-0x1.62e400p-1f), y); /* ln 2 in two parts: the product with the first is exact */
    r = v_fma(n, v_set1(-0x1.7f7d1cp-20f), r);
    vf e = v_fma(r, v_set1(0x1.6db47ap-10f), v_set1(0x1.123b92p-7f));
    e = v_fma(e, r, v_set1(0x1.55545ep-5f));
    e = v_fma(e, r, v_set1(0x1.55548ep-3f));
    e = v_fma(e, r, v_set1(0.5f));
    e = v_fma(v_mul(e, r), r, r);
    e = v_add(e, v_set1(1.0f));
    return v_zero_below(v_scale2(e, n), x, v_set1(-87.0f));
}

#endif
