/* quantizer.h: docs/kv-format.md's rules for one group, in device code: parameters, codes, squared errors.
 *
 * Every operation is an intrinsic with its rounding in the name, so nvcc contracts nothing. Rewritings, each
 * exact, make the rules cheap:
 *  - Division. With r = 1/b rounded, q = a·r, one correction by the remainder (two FMAs) gives a/b correctly
 *    rounded for all fp32 a where no step underflows and b = 3, 15, 255, 1790 or any normal fp16: tried for
 *    every pair of significands (8.6e9). So one reciprocal serves all divisions by a number.
 *  - clamp(rint(t), 0, N) with t/2^b instead of t: adding 1.5·2^(23−b) rounds to even where rint does, and the
 *    code is the low bits of the sum. Where the group's range is that of its values, nothing needs clamping:
 *    s ≥ (M − m)/N·(1 − 2^-11) and z is rint of 16·m/s, not clamped (|m|/s ≤ 1790·(1 + 2^-11)), so
 *    −1/32 ≤ t ≤ N·(1 + 2^-11) + 1/32 but for roundings below 2^-11, and N ≤ 255 leaves that below N + 1/2. For a range
 *    that is narrower, FFMA.SAT clamps to [0, 1] for nothing and a minimum turns code N + 1 into N.
 *
 * The search for V's range at 2 bits needs nine sums of squared errors of which only the least counts. Nearly
 * the same sums take 4 operations a value, not 9: the four levels lie at middle ± s/2 and ± 3·s/2, so
 * d = ||x − middle| − s| − s/2 is the distance to the nearest of them, no code is made, and d·d is added by an
 * FMA. docs/kernels/quantize.md proves how far the root of such a sum may be from the root of the rule's,
 * whatever the values: √n·2^-23·(reach + 2·width), and 2^-19 of itself. Where the least sum is further than
 * twice that below another, the rule prefers it too. Where it is not (a group in a thousand; ties), the rule's
 * own arithmetic decides.
 */
#ifndef BS_CUDA_QUANTIZER_H
#define BS_CUDA_QUANTIZER_H

#include <cuda_fp16.h>
#include <math_constants.h>

#include "kernels/kernels.h"

enum { BS_CUDA_MAX_ZERO = 28687 };

/* a / b, correctly rounded; r: b's reciprocal, correctly rounded (above: which a and b). */
static __device__ __forceinline__ float bs_cuda_divide(float a, float b, float r)
{
    float q = __fmul_rn(a, r);
    return __fmaf_rn(__fmaf_rn(-q, b, a), r, q);
}

/* 1 / x, correctly rounded, for normal fp16 x. What __frcp_rn does without its test for the rest of fp32. */
static __device__ __forceinline__ float bs_cuda_reciprocal(float x)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return __fmaf_rn(r, __fmaf_rn(-x, r, 1.0f), r);
}

typedef struct bs_cuda_group {
    uint16_t s; /* fp16 bits */
    int16_t z;
    float scale, recip, zero; /* s, 1/s, z/16 */
} bs_cuda_group;

template <int BITS> static __device__ __forceinline__ bs_cuda_group bs_cuda_group_of(float m, float M)
{
    const float n_steps = (1 << BITS) - 1, n_recip = 1.0f / n_steps, reach_recip = 1.0f / 1790.0f;
    float s = bs_cuda_divide(__fsub_rn(M, m), n_steps, n_recip);
    s = fmaxf(s, bs_cuda_divide(fabsf(m), 1790.0f, reach_recip));
    s = fminf(fmaxf(s, 0x1p-14f), 65504.0f);
    bs_cuda_group g;
    const __half rounded = __float2half_rn(s);
    g.s = __half_as_ushort(rounded);
    g.scale = __half2float(rounded);
    g.recip = bs_cuda_reciprocal(g.scale);
    int z = __float2int_rn(bs_cuda_divide(__fmul_rn(16.0f, m), g.scale, g.recip));
    z = max(-BS_CUDA_MAX_ZERO, min(BS_CUDA_MAX_ZERO, z));
    g.z = (int16_t)z;
    g.zero = __fmul_rn((float)z, 0.0625f);
    return g;
}

/* What an encoder needs of a group: (r, −z/16) / 2^b. */
template <int BITS> static __device__ __forceinline__ float2 bs_cuda_code_factors(const bs_cuda_group &g)
{
    const float unit = 1.0f / (1 << BITS);
    return make_float2(__fmul_rn(g.recip, unit), -__fmul_rn(g.zero, unit));
}

/* A float whose low 22 bits are the code. CLAMP: x may lie outside of the range that the group is of. */
template <int BITS, bool CLAMP>
static __device__ __forceinline__ float bs_cuda_code_sum(float x, float2 factors)
{
    const float round = 1.5f * (1 << (23 - BITS)), last = round + ((1 << BITS) - 1.0f) / (1 << BITS);
    const float t = __fmaf_rn(x, factors.x, factors.y);
    if (!CLAMP) return __fadd_rn(t, round);
    return fminf(__fadd_rn(__saturatef(t), round), last);
}

template <int BITS, bool CLAMP>
static __device__ __forceinline__ uint32_t bs_cuda_code_bits(float x, float2 factors)
{
    return (uint32_t)__float_as_int(bs_cuda_code_sum<BITS, CLAMP>(x, factors));
}

/* e·e of one value of a 2-bit group, as the rule has it. */
static __device__ __forceinline__ float bs_cuda_squared_error(float x, const bs_cuda_group &g, float2 factors)
{
    const float quarter = __fsub_rn(bs_cuda_code_sum<2, true>(x, factors), 1.5f * (1 << 21)); /* code / 4 */
    const float e = __fsub_rn(x, __fmul_rn(g.scale, __fmaf_rn(quarter, 4.0f, g.zero)));
    return __fmul_rn(e, e);
}

/* ---- the search ---- */

/* The four values that a 2-bit group can stand for: middle ± step/2, ± 3·step/2. */
typedef struct bs_cuda_levels {
    float middle, step, half_step;
} bs_cuda_levels;

/* Of the range (m, M), where bs_cuda_search_decides has any say: there s is (M − m)/3 and |z| < 2^13 − 48, so
 * that s·(z/16 + 3/2) is exact (11 + 13 bits). */
static __device__ __forceinline__ bs_cuda_levels bs_cuda_levels_of(float m, float M)
{
    const float round = 1.5f * (1 << 23);
    bs_cuda_levels l;
    l.step = __half2float(__float2half_rn(bs_cuda_divide(__fsub_rn(M, m), 3.0f, 1.0f / 3.0f)));
    l.half_step = __fmul_rn(l.step, 0.5f);
    const float q = bs_cuda_divide(m, l.step, bs_cuda_reciprocal(l.step));
    const float z = __fsub_rn(__fmaf_rn(q, 16.0f, round), round);
    l.middle = __fmul_rn(__fmaf_rn(z, 0.0625f, 1.5f), l.step);
    return l;
}

/* ± the distance of x from the nearest level. */
static __device__ __forceinline__ float bs_cuda_distance(float x, const bs_cuda_levels &l)
{
    const float outward = __fsub_rn(fabsf(__fsub_rn(x, l.middle)), l.step);
    return __fsub_rn(fabsf(outward), l.half_step);
}

/* Whether the rule prefers the range with the least sum of squared distances to all whose sums are at least
 * `other`. */
static __device__ __forceinline__ bool bs_cuda_search_decides(float width, float reach, unsigned n,
                                                              float least, float other)
{
    const float slack = (n > 64 ? 22.63f : n > 32 ? 16.0f : 11.32f) * 0x1p-23f * (reach + 2.0f * width);
    const bool sure = sqrtf(other) > sqrtf(least) * (1.0f + 0x1p-18f) + slack;
    const bool applies = width >= fmaxf(reach * 0x1p-6f, 0x1p-11f) && reach < CUDART_INF_F;
    return width == 0.0f || (applies && sure); /* width 0: all ranges are one, and the first is best */
}

/* Two fp16 numbers in a word. */
static __device__ __forceinline__ float2 bs_cuda_floats(uint32_t word)
{
    return __half22float2(*(const __half2 *)&word);
}

/* Least and negated greatest of a set of fp16 numbers, as a half2: one minimum joins two sets, and NaN stays.
 */
static __device__ __forceinline__ uint32_t bs_cuda_min(uint32_t a, uint32_t b)
{
    __half2 min = __hmin2_nan(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(const uint32_t *)&min;
}

static __device__ __forceinline__ uint32_t bs_cuda_max(uint32_t a, uint32_t b)
{
    __half2 max = __hmax2_nan(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(const uint32_t *)&max;
}

/* (min, −max) of all from the elementwise minimum and maximum of pairs. */
static __device__ __forceinline__ uint32_t bs_cuda_range_of(uint32_t min, uint32_t max)
{
    const uint32_t negated = max ^ 0x80008000u;
    return bs_cuda_min(__byte_perm(min, negated, 0x5410), __byte_perm(min, negated, 0x7632));
}

static __device__ __forceinline__ uint32_t bs_cuda_shuffle(uint32_t word, int lane_mask)
{
    return __shfl_xor_sync(0xffffffffu, word, lane_mask);
}

#endif
