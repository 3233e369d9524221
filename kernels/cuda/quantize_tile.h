/* quantize_tile.h: a tile of K or V in the shared memory of a CTA of quantize.cu: fetching it, where its
 * words lie, and measuring groups that run along a token (V, and K per token), with the search of V's range.
 */
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
    THREAD_WORDS = 16,       /* words of 2 values that a thread reads when it measures */
    ROW_VALUES = 2 * THREAD_WORDS,
    N_RANGES = 9
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

/* Words lane + lanes·j of a group of 32·lanes channels, so that the halving sum's first four steps stay in a
 * thread. lanes = 1 << shift. */
template <unsigned D>
static __device__ __forceinline__ void read_spread_row(const void *tile, const row_place<D> &at,
                                                       unsigned shift, uint32_t words[THREAD_WORDS])
{
    const unsigned lane = at.part & ((1u << shift) - 1);
    const unsigned first = byte_of<D>(at.token, (at.part - lane) * 4, 0) ^ lane << 2;
    if (shift == 0) {
        read_row<D>(tile, at, words);
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < THREAD_WORDS; j++) words[j] = word_at(tile, first ^ j << (2 + shift));
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

/* Sum over a group whose lane holds residues 2·lane and 2·lane + 1 of it, modulo 2·lanes. */
static __device__ __forceinline__ float finish_sum(float even, float odd, unsigned shift)
{
    if (shift > 1) {
        even = __fadd_rn(even, __shfl_xor_sync(0xffffffffu, even, 16));
        odd = __fadd_rn(odd, __shfl_xor_sync(0xffffffffu, odd, 16));
    }
    if (shift > 0) {
        even = __fadd_rn(even, __shfl_xor_sync(0xffffffffu, even, 8));
        odd = __fadd_rn(odd, __shfl_xor_sync(0xffffffffu, odd, 8));
    }
    return __fadd_rn(even, odd);
}

/* Destroys x. By recursion, since x must stay in registers. */
template <int N = THREAD_WORDS> static __device__ __forceinline__ float halving_sum(float *x)
{
    if constexpr (N == 1) return x[0];
    else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) x[i] = __fadd_rn(x[i], x[i + N / 2]);
        return halving_sum<N / 2>(x);
    }
}

/* The rule's squared error of a group. x: a lane's even values, then its odd ones. */
static __device__ __forceinline__ float row_error(const float x[ROW_VALUES], const bs_cuda_group &g,
                                                  unsigned shift)
{
    const float2 factors = bs_cuda_code_factors<2>(g);
    float sums[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float e[THREAD_WORDS];
#pragma unroll
        for (int j = 0; j < THREAD_WORDS; j++)
            e[j] = bs_cuda_squared_error(x[half * THREAD_WORDS + j], g, factors);
        sums[half] = halving_sum(e);
    }
    return finish_sum(sums[0], sums[1], shift);
}

/* What some ranges gave: the margins (what a range takes off each end) of the best two, and the least three sums. */
typedef struct range_choice {
    float margin, next_margin;
    float least, second, third;
} range_choice;

static __device__ __forceinline__ void consider(range_choice *c, float margin, float sum)
{
    const bool better = sum < c->least;
    const float worse = fmaxf(sum, c->least), of_worse = better ? c->margin : margin;
    c->margin = better ? margin : c->margin;
    c->least = fminf(c->least, sum);
    c->next_margin = worse < c->second ? of_worse : c->next_margin;
    c->third = fminf(c->third, fmaxf(worse, c->second));
    c->second = fminf(c->second, worse);
}

/* The nine ranges by nearly the rule's sums: quantizer.h, "The search". The levels of the next range are made
 * while the sums of this one are: a chain of 150 clocks that nothing else would hide where a page is quantized
 * alone. */
template <unsigned SHIFT>
static __device__ __forceinline__ range_choice search_nearly(const float x[ROW_VALUES], float m, float M,
                                                             float half_width, const float margins[N_RANGES])
{
    range_choice choice = {0.0f, 0.0f, CUDART_INF_F, CUDART_INF_F, CUDART_INF_F};
    float w = 0.0f;
    bs_cuda_levels levels = bs_cuda_levels_of(m, M);
#pragma unroll 1
    for (int i = 1; i <= N_RANGES; i++) {
        const float next_w = __fmul_rn(half_width, margins[min(i, N_RANGES - 1)]);
        const bs_cuda_levels next = bs_cuda_levels_of(__fadd_rn(m, next_w), __fsub_rn(M, next_w));
        float sums[4] = {};
#pragma unroll
        for (int j = 0; j < ROW_VALUES; j++) {
            const float e = bs_cuda_distance(x[j], levels);
            sums[j % 4] = __fmaf_rn(e, e, sums[j % 4]);
        }
        consider(&choice, w, finish_sum(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]), SHIFT));
        levels = next;
        w = next_w;
    }
    return choice;
}

/* The margin of the best by the rule's own arithmetic: of the two that the search found, or of all nine. */
static __device__ __forceinline__ float search_exactly(const float x[ROW_VALUES], float m, float M,
                                                       float half_width, unsigned shift,
                                                       const float margins[N_RANGES],
                                                       const range_choice &near, bool all)
{
    const float wider = fminf(near.margin, near.next_margin), narrower = fmaxf(near.margin, near.next_margin);
    float best = 0.0f, least = CUDART_INF_F;
#pragma unroll 1
    for (int i = 0; i < (all ? N_RANGES : 2); i++) {
        const float w = all ? __fmul_rn(half_width, margins[i]) : i == 0 ? wider : narrower;
        const bs_cuda_group g = bs_cuda_group_of<2>(__fadd_rn(m, w), __fsub_rn(M, w));
        const float error = row_error(x, g, shift);
        if (i > 0 && !(error < least)) continue;
        least = error;
        best = w;
    }
    return best;
}

/* The range of nine with the least squared error, the wider on ties. margins: what they take off each end, in
 * half widths. */
static __device__ __forceinline__ bs_cuda_group search_range(const uint32_t words[THREAD_WORDS], float m,
                                                             float M, unsigned shift,
                                                             const float margins[N_RANGES])
{
    float x[ROW_VALUES];
#pragma unroll
    for (int j = 0; j < THREAD_WORDS; j++) {
        const float2 pair = bs_cuda_floats(words[j]);
        x[j] = pair.x;
        x[THREAD_WORDS + j] = pair.y;
    }
    const float width = __fsub_rn(M, m), half_width = __fmul_rn(width, 0.5f);
    const float reach = fmaxf(fabsf(m), fabsf(M));
    const range_choice near = shift == 0   ? search_nearly<0>(x, m, M, half_width, margins)
                              : shift == 1 ? search_nearly<1>(x, m, M, half_width, margins)
                                           : search_nearly<2>(x, m, M, half_width, margins);
    const bool decided = bs_cuda_search_decides(width, reach, 32u << shift, near.least, near.second);
    float w = near.margin;
    if (!__all_sync(0xffffffffu, decided)) {
        const bool two = bs_cuda_search_decides(width, reach, 32u << shift, near.least, near.third);
        const bool all = !__all_sync(0xffffffffu, two);
        const float exact = search_exactly(x, m, M, half_width, shift, margins, near, all);
        if (!decided) w = exact;
    }
    return bs_cuda_group_of<2>(__fadd_rn(m, w), __fsub_rn(M, w));
}

#endif
