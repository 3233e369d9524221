/* silu_avx512.c: out = g / (1 + exp(−g)) · u in vectors of 16. With E = exp(−|g|) ≤ 1 the factor of g · u is 1 / (1 + E)
 * for g ≥ 0 and E / (1 + E) below: nothing overflows. */
#include "kernels/cpu/cpu_ops.h"

#include <string.h>

#if defined(__x86_64__)
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/vec_exp.h"

VEC vf silu(vf g, vf u)
{
    vf size = v_max(g, v_mul(g, v_set1(-1.0f))), one = v_set1(1.0f);
    vf e = v_exp(v_mul(size, v_set1(-1.0f)));
    vf share = v_pick_less(g, v_set1(0.0f), e, one) / v_add(one, e);
    return v_mul(v_mul(g, share), u);
}

VEC_OUTLINE void bs_cpu_silu_row_avx512(const float *gate, const float *up, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v_store(out + i, silu(v_load(gate + i), v_load(up + i)));
    if (i == n) return;
    float g[16] = {0}, u[16] = {0};
    memcpy(g, gate + i, (size_t)(n - i) * sizeof *g);
    memcpy(u, up + i, (size_t)(n - i) * sizeof *u);
    v_store(g, silu(v_load(g), v_load(u)));
    memcpy(out + i, g, (size_t)(n - i) * sizeof *g);
}
#endif
