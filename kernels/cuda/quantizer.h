/* quantizer.h: docs/kv-format.md's rules for one group, in device code: parameters, codes, squared errors.
 *
 * Every operation is an intrinsic with its rounding in the name, so nvcc contracts nothing. Three rewritings,
 * each exact, make the rules cheap:
 *  - Division. With r = 1/b rounded, q = a·r, one correction by the remainder (two FMAs) gives a/b correctly
 *    rounded for all fp32 a where no step underflows and b = 3, 15, 255, 1790 or any normal fp16: tried for
 *    every pair of significands (8.6e9). So one reciprocal serves all divisions by a number.
 *  - clamp(rint(t), 0, N) with t/2^b instead of t: FFMA.SAT clamps to [0, 1] for nothing, adding 1.5·2^(23−b)
 *    rounds to even where rint does, a minimum turns code N + 1 into N. The code is the low bits of the sum.
 *  - s·(c + z/16) is exact where |z| + 48 ≤ 2^13 (11 + 13 bits), so the error's product and difference are
 *    one FMA there. */
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

/* A float whose low 22 bits are the code. */
template <int BITS> static __device__ __forceinline__ float bs_cuda_code_sum(float x, float2 factors)
{
    const float round = 1.5f * (1 << (23 - BITS)), last = round + ((1 << BITS) - 1.0f) / (1 << BITS);
    return fminf(__fadd_rn(__saturatef(__fmaf_rn(x, factors.x, factors.y)), round), last);
}

template <int BITS> static __device__ __forceinline__ uint32_t bs_cuda_code_bits(float x, float2 factors)
{
    return (uint32_t)__float_as_int(bs_cuda_code_sum<BITS>(x, factors));
}

/* e·e of one value of a 2-bit group. EXACT: see above. */
template <bool EXACT>
static __device__ __forceinline__ float bs_cuda_squared_error(float x, const bs_cuda_group &g, float2 factors)
{
    const float quarter = __fsub_rn(bs_cuda_code_sum<2>(x, factors), 1.5f * (1 << 21)); /* code / 4 */
    const float y = __fmaf_rn(quarter, 4.0f, g.zero);
    const float e = EXACT ? __fmaf_rn(-g.scale, y, x) : __fsub_rn(x, __fmul_rn(g.scale, y));
    return __fmul_rn(e, e);
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
