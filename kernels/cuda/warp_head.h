/* warp_head.h: one head vector of D in the registers of a warp: channel lane + 32·k is x[k] of that lane.
 * The Hadamard of docs/kv-format.md (strides 1 … 16 are shuffles, 32 and 64 stay in a lane), and activations
 * of any type. Operations carry their rounding, so nvcc contracts nothing. */
#ifndef BS_CUDA_WARP_HEAD_H
#define BS_CUDA_WARP_HEAD_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/kernels.h"

static __device__ __forceinline__ float bs_cuda_load_act(const void *x, int64_t i, bs_type act)
{
    if (act == BS_TYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)x)[i]);
    if (act == BS_TYPE_F16) return __half2float(((const __half *)x)[i]);
    return ((const float *)x)[i];
}

static __device__ __forceinline__ void bs_cuda_store_act(void *x, int64_t i, bs_type act, float value)
{
    if (act == BS_TYPE_BF16) ((__nv_bfloat16 *)x)[i] = __float2bfloat16_rn(value);
    else if (act == BS_TYPE_F16) ((__half *)x)[i] = __float2half_rn(value);
    else ((float *)x)[i] = value;
}

/* E values to elements first, first + 1, … as activations of 16 bits, by one store, to which they must be aligned. */
template <int E>
static __device__ __forceinline__ void bs_cuda_store_beside(void *to, int64_t first, bs_type act,
                                                            const float *x)
{
    alignas(16) uint16_t y[E];
    uint16_t *at = (uint16_t *)to + first;
#pragma unroll
    for (int k = 0; k < E; k++) bs_cuda_store_act(y, k, act, x[k]);
    if constexpr (E == 8) *(uint4 *)at = *(const uint4 *)y;
    else if constexpr (E == 4) *(uint2 *)at = *(const uint2 *)y;
    else *(uint32_t *)at = *(const uint32_t *)y;
    static_assert(E == 2 || E == 4 || E == 8, "a store");
}

static __device__ __forceinline__ float bs_cuda_silu(float x)
{
    return x / (1 + expf(-x));
}

/* Sum of all lanes, by halving; the same in each. */
template <typename T> static __device__ __forceinline__ T bs_cuda_sum_warp(T x)
{
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) x += __shfl_xor_sync(0xffffffffu, x, stride);
    return x;
}

/* The f32 nearest 1/√D. */
template <int D> static __device__ __forceinline__ constexpr float bs_cuda_hadamard_scale()
{
    static_assert(D == 64 || D == 128, "the scale");
    return D == 64 ? 0.125f : 0.08838834764831845f;
}

/* x ← H x / √D. All lanes of the warp. */
template <int D> static __device__ __forceinline__ void bs_cuda_hadamard(float x[D / 32])
{
    const int lane = threadIdx.x % 32;
    const float scale = bs_cuda_hadamard_scale<D>();
#pragma unroll
    for (int stride = 1; stride < 32; stride *= 2) {
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            const float other = __shfl_xor_sync(0xffffffffu, x[k], stride);
            x[k] = lane & stride ? __fsub_rn(other, x[k]) : __fadd_rn(x[k], other);
        }
    }
#pragma unroll
    for (int stride = 1; stride < D / 32; stride *= 2) {
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            if (k & stride) continue;
            const float u = x[k], v = x[k + stride];
            x[k] = __fadd_rn(u, v);
            x[k + stride] = __fsub_rn(u, v);
        }
    }
#pragma unroll
    for (int k = 0; k < D / 32; k++) x[k] = __fmul_rn(x[k], scale);
}

/* The same sums in the same order where a lane's channels stand side by side, D/32 from D/32 · lane on: strides below that
 * stay in a lane. */
template <int D> static __device__ __forceinline__ void bs_cuda_hadamard_beside(float x[D / 32])
{
    constexpr int E = D / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int stride = 1; stride < E; stride *= 2) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            if (k & stride) continue;
            const float u = x[k], v = x[k + stride];
            x[k] = __fadd_rn(u, v);
            x[k + stride] = __fsub_rn(u, v);
        }
    }
#pragma unroll
    for (int stride = 1; stride < 32; stride *= 2) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            const float other = __shfl_xor_sync(0xffffffffu, x[k], stride);
            x[k] = lane & stride ? __fsub_rn(other, x[k]) : __fadd_rn(x[k], other);
        }
    }
#pragma unroll
    for (int k = 0; k < E; k++) x[k] = __fmul_rn(x[k], bs_cuda_hadamard_scale<D>());
}

#endif
