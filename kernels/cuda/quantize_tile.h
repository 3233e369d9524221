/* quantize_tile.h: a tile of K or V in the shared memory of a CTA of quantize.cu: fetching it, where its
 * words lie, and measuring groups that run along a token (V, and K per token). */
#ifndef BS_CUDA_QUANTIZE_TILE_H
#define BS_CUDA_QUANTIZE_TILE_H

#include "kernels/cuda/quantizer.h"

#include <cuda_pipeline.h>

enum {
    THREADS = 128,
    WARPS = 4,
    PAGE = BS_PAGE_TOKENS,
    TILE_CHANNELS = 32,      /* of a K tile for kc */
    TILE_VALUES = 32 * PAGE, /* of that one and of a V tile */
    SLICE_VALUES = 64 * 128, /* of a K tile for norm, 2 bits */
    FACTOR_STRIDE = 10,      /* of a warp's 8 factors of a lane i: other banks for other i */
    THREAD_WORDS = 16        /* words of 2 values that a thread reads when it measures */
};

static __device__ __forceinline__ bool is_finite(float x)
{
    return fabsf(x) < CUDART_INF_F;
}

static __device__ __forceinline__ void fetched()
{
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
}

/* The same for all but the fetches since the last commit. */
static __device__ __forceinline__ void fetched_before()
{
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
}

/* N chunks of 16 bytes, in order. */
template <unsigned N> static __device__ __forceinline__ void fetch(uint4 *tile, const uint4 *from)
{
#pragma unroll
    for (unsigned i = 0; i < N; i += THREADS)
        __pipeline_memcpy_async(tile + i + threadIdx.x, from + i + threadIdx.x, sizeof *tile);
}

/* Byte of a word of a tile whose rows are W channels of a token. Chunk c is the c-th of the part's own order:
 * V's channels ascend, chunk 2b + q of K holds channels 16b + 4i + 2q and + 1 in word i. The three arguments
 * have bits of their own, so byte_of(x ^ y) = byte_of(x) ^ byte_of(y): addresses differ by constants. */
template <unsigned W>
static __device__ __forceinline__ unsigned byte_of(unsigned token, unsigned chunk, unsigned word)
{
    const unsigned turn = W == TILE_CHANNELS ? token >> 1 & 3 : token & 7;
    return token * (W * 2) | (chunk ^ turn) << 4 | word << 2;
}

static __device__ __forceinline__ uint32_t word_at(const void *tile, unsigned byte)
{
    return *(const uint32_t *)((const char *)tile + byte);
}

/* A thread measures 32 channels of a token: lane = token % 8 + 8·(which 32 of D) + …, so that the lanes of a
 * group are 8 or 16 apart and the 8 lanes of a quarter warp meet all banks. */
template <unsigned D> struct row_place {
    enum { LANES = D / 32, TOKENS_A_TURN = THREADS / LANES };
    unsigned token, part;

    __device__ __forceinline__ explicit row_place(unsigned turn)
    {
        const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        part = lane / 8 % LANES;
        token = turn * TOKENS_A_TURN + warp * (TOKENS_A_TURN / WARPS) + lane / (8 * LANES) * 8 + lane % 8;
    }
};

/* The thread's own 32 channels. */
template <unsigned D>
static __device__ __forceinline__ void read_row(const void *tile, const row_place<D> &at,
                                                uint32_t words[THREAD_WORDS])
{
    const unsigned first = byte_of<D>(at.token, at.part * 4, 0);
#pragma unroll
    for (unsigned c = 0; c < 4; c++) {
        const uint4 x = *(const uint4 *)((const char *)tile + (first ^ c << 4));
        words[4 * c] = x.x;
        words[4 * c + 1] = x.y;
        words[4 * c + 2] = x.z;
        words[4 * c + 3] = x.w;
    }
}

/* (min, −max) of a group of 1 << shift lanes, the same in all of them. */
static __device__ __forceinline__ uint32_t measure_row(const uint32_t words[THREAD_WORDS], unsigned shift)
{
    uint32_t min = words[0], max = words[0];
#pragma unroll
    for (int j = 1; j < THREAD_WORDS; j++) {
        min = bs_cuda_min(min, words[j]);
        max = bs_cuda_max(max, words[j]);
    }
    uint32_t range = bs_cuda_range_of(min, max);
    if (shift > 0) range = bs_cuda_min(range, bs_cuda_shuffle(range, 8));
    if (shift > 1) range = bs_cuda_min(range, bs_cuda_shuffle(range, 16));
    return range;
}

#endif
