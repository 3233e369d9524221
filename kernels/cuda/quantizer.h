/* quantizer.h: docs/kv-format.md's rules for one group, in device code: parameters, codes, a token's norm.
 *
 * Every operation is an intrinsic with its rounding in the name, so nvcc contracts nothing. Rewritings, each
 * exact, make the rules cheap:
 *  - Division. With r = 1/b rounded, q = a·r, one correction by the remainder (two FMAs) gives a/b correctly
 *    rounded for all fp32 a where no step underflows and b = 3, 15, 255, 1790 or any normal fp16: tried for
 *    every pair of significands (8.6e9). So one reciprocal serves all divisions by a number.
 *  - clamp(rint(t), 0, N) with t/2^b instead of t: adding 1.5·2^(23−b) rounds to even where rint does, and the
 *    code is the low bits of the sum. Where the group's range is that of its values, nothing needs clamping:
 *    s ≥ (M − m)/N·(1 − 2^-11) and z is rint of 16·m/s, not clamped (|m|/s ≤ 1790·(1 + 2^-11)), so
 *    −1/32 ≤ t ≤ N·(1 + 2^-11) + 1/32 but for roundings below 2^-11, and N ≤ 255 leaves that below N + 1/2. A share e
 *    taken off each end at 2 bits adds 3e/(1 − 2e) below and above: 0.375 for e = 0.1, which still rounds to 0 or 3; 1/2
 *    for e = 1/8, groups of 128, which does not. There FFMA.SAT clamps to [0, 1] for nothing and a minimum
 *    turns code 4 into 3.
 *  - A token's products of 2-bit K are whole numbers of 2^-13, so they are added as integers: the low bits of
 *    fmaf(x, x^, 1536).
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

/* Of the range (m, M), drawn in by `margin` of its width at each end: 0 but for 2 bits. */
template <int BITS>
static __device__ __forceinline__ bs_cuda_group bs_cuda_group_of(float m, float M, float margin)
{
    if (BITS == 2) {
        const float w = __fmul_rn(__fsub_rn(M, m), margin);
        m = __fadd_rn(m, w);
        M = __fsub_rn(M, w);
    }
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

/* A float whose low 22 bits are the code. CLAMP: a 2-bit group of 128 values needs it, others may have it. */
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
    return __float_as_uint(bs_cuda_code_sum<BITS, CLAMP>(x, factors));
}

/* What a 2-bit code stands for: (4s, s·(z/16)), to multiply c/4 by and to add. */
static __device__ __forceinline__ float2 bs_cuda_value_factors(const bs_cuda_group &g)
{
    return make_float2(__fmul_rn(4.0f, g.scale), __fmul_rn(g.scale, g.zero));
}

/* x·x^ in the low bits, in 2^-13 over bs_cuda_product_bias; sum: bs_cuda_code_sum of x. */
static __device__ __forceinline__ uint32_t bs_cuda_product(float x, float sum, float2 factors)
{
    const float quarter = __fsub_rn(sum, 1.5f * (1 << 21));
    return __float_as_uint(__fmaf_rn(x, __fmaf_rn(quarter, factors.x, factors.y), 1536.0f));
}

/* Bits of 1536. */
enum : uint32_t { bs_cuda_product_bias = 0x44c00000 };

/* The norm of a token of 2-bit K: S = sum of k^2, and the sum of its products. */
static __device__ __forceinline__ __half bs_cuda_corrected_norm(float n, float S, int32_t products)
{
    const float B = __fmul_rn(__int2float_rn(products), 0x1p-13f); /* exact */
    const float e = __fdiv_rn(__fdiv_rn(S, n), B);
    const bool near = e >= 0.5f * n && e <= 2.0f * n;
    return __float2half_rn(near ? fminf(fmaxf(e, 0x1p-14f), 65504.0f) : n);
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
