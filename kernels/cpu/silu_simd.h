/* silu_simd.h: out = g / (1 + exp(−g)) · u in vectors. With E = exp(−|g|) ≤ 1 the factor of g · u is 1 / (1 + E) for
 * g ≥ 0 and E / (1 + E) below: nothing overflows. Included once by silu_avx2.c and once by silu_avx512.c, which define W,
 * the floats of a vector, and SILU_ROW, the function's name. */
#include "kernels/cpu/vec_exp.h"

#include <string.h>

VEC vf silu(vf g, vf u)
{
    vf size = v_max(g, v_mul(g, v_set1(-1.0f))), one = v_set1(1.0f);
    vf e = v_exp(v_mul(size, v_set1(-1.0f)));
    vf share = v_pick_less(g, v_set1(0.0f), e, one) / v_add(one, e);
    return v_mul(v_mul(g, share), u);
}

VEC_OUTLINE void SILU_ROW(const float *gate, const float *up, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + W <= n; i += W) v_store(out + i, silu(v_load(gate + i), v_load(up + i)));
    if (i == n) return;
    float g[W] = {0}, u[W] = {0};
    memcpy(g, gate + i, (size_t)(n - i) * sizeof *g);
    memcpy(u, up + i, (size_t)(n - i) * sizeof *u);
    v_store(g, silu(v_load(g), v_load(u)));
    memcpy(out + i, g, (size_t)(n - i) * sizeof *g);
}
