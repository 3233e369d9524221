/* quantize.cu: whole f16 pages into quantized slots, the codes of docs/kv-format.md bit for bit.
 *
 * Math     x ~ s (c + z/16) by groups: K of tokens of a channel (kc) or channels of a token (kt), V of
 * channels of a token; with `norm` K is divided by its token's rounded root mean square first; at 2 bits V's
 * range is the one of nine with the least squared error. quantizer.h has the rules of a group.
 * Layout   f16 and quantized slots of kv_layout.h. Shared memory holds the tile as it lies in the slot, 16-
 * byte chunk c of a token at c ^ (token % 8), which makes every access below free of bank conflicts or
 * nearly so; a K tile of 32 channels keeps that up with its own exchange of chunks (byte_of).
 * Mapping  one launch; a CTA of 128 threads a tile of one (page, layer, head) and K or V:
 *   V        4096 values: 32 tokens of D 128, 64 of D 64; all groups of a token are inside
 *   K        32 channels x 128 tokens for kc; all of the part for kt and norm, which look along a token
 * A tile is fetched by 16-byte asynchronous copies, all at once. Then groups are measured (a thread reads 16
 * words of 2 values), their parameters go to the slot and, as factors, to shared memory; then codes are made
 * in the slot's order: a thread reads values by words and writes 8 or 16 bytes of codes.
 * Cost     a page and head of D 128 is 65,536 B read and 17,408 (int4 g128) or 12,544 (int2 g32 norm)
 * written: 1,024 pages x 8 heads are 679 MB = 146 us, or 640 MB = 137 us, at 4.66 TB/s. Instructions, from
 * SASS: 440 a thread of 32 values of K or V without norm and search, 14 a value, 124 us of issue slots for
 * these pages: bytes bind, narrowly. K with norm: about 24 a value. The search is 8 a value and range
 * (FMA.SAT, add, min, subtract, two FMAs, square, sum) and 50 a thread and range: 86 a value of V, 390 us for
 * these pages, so it is bound by instructions; one page of 32 layers x 8 heads is 12 us.
 * Numerics exact: order of the sums is the page's (values i and i + n/2, and so on).
 * Limits   any K and V widths of 8, 4, 2; D 64, 128; groups 32, 64, 128; 65,535 pages and as many (layer,
 * head) a launch.
 * NaN or infinity: the fault is recorded, what is written of that page and head means nothing.
 * Rejected A K tile of 32 channels for norm too, each reading whole tokens again: 2.5 times the reads of L2.
 * Choosing the range by half2 sums first and by exact ones among the near ones: half of the instructions are
 * still there, and lanes disagree about how many near ones there are.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/fault.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/quantize_tile.h"

enum { MAX_GRID_Y = 65535, MAX_GRID_Z = 65535 };

typedef struct job {
    bs_cuda_kv_layout layout;
    const uint8_t *f16_pool;
    uint8_t *quant_pool;
    const uint32_t *f16_slot, *quant_slot;
    bs_cuda_fault fault;
    unsigned k_tiles;          /* of a (page, layer, head); V's follow */
    unsigned k_shift, v_shift; /* log2 of the groups */
} job;

/* One CTA's work. */
typedef struct tile_job {
    const uint4 *part; /* K or V of the f16 page and head, from its first token */
    uint8_t *half;     /* K or V half of the record */
    uint32_t slot;
} tile_job;

static __device__ __noinline__ void report(const job &j, uint32_t slot, unsigned token, bool is_v)
{
    const int head = (int)blockIdx.y;
    bs_cuda_fault_set(j.fault, head / j.layout.n_kv_heads, head % j.layout.n_kv_heads, slot, (int)token,
                      is_v);
}

/* ---- V ---- */

template <unsigned D, int BITS, bool SEARCH>
static __device__ __forceinline__ void measure_v(const job &j, const tile_job &t, const void *tile,
                                                 float2 *factors, unsigned first_token)
{
    const unsigned shift = j.v_shift - 5;
    const row_place<D> at(0);
    uint32_t words[THREAD_WORDS];
    if (SEARCH) read_spread_row<D>(tile, at, shift, words);
    else read_row<D>(tile, at, words);
    const float2 range = bs_cuda_floats(measure_row(words, shift));
    const float m = range.x, M = -range.y;
    const bs_cuda_group g = SEARCH ? search_range(words, m, M, shift) : bs_cuda_group_of<BITS>(m, M);
    const unsigned token = first_token + at.token, group = at.part >> shift;
    if (at.part != group << shift) return;
    if (!is_finite(m) || !is_finite(M)) report(j, t.slot, token, true);
    factors[(at.token * (D / 32) >> shift) + group] = bs_cuda_code_factors<BITS>(g);
    uint8_t *z = t.half + j.layout.v_z + group * 256 + bs_cuda_kv_v_z((int)token);
    *(uint16_t *)(t.half + j.layout.v_s + group * 256 + bs_cuda_kv_token_byte((int)token)) = g.s;
    z[0] = (uint8_t)bs_cuda_kv_z_high(g.z);
    z[4] = (uint8_t)bs_cuda_kv_z_low(g.z);
}

/* Codes. A thread takes token r + 8e of 32, e = 0 … 3 (the bytes of a word), channels 2a and 2a + 1 of 8, and
 * of both 8 of a row tile (words h; one at 2 bits, which has 4 row tiles in a byte). */
template <unsigned D, int BITS>
static __device__ __forceinline__ void encode_v(const job &j, const tile_job &t, const void *tile,
                                                const float2 *factors, unsigned first_token)
{
    enum : unsigned {
        FIELDS = 8 / BITS,
        BLOCKS = D / 16 / FIELDS,
        HALVES = BITS == 2 ? 1 : 2,
        K_TILES = TILE_VALUES / D / 32,
        TURNS = BLOCKS * K_TILES * (2 / HALVES)
    };
    const unsigned r = threadIdx.x % 8, a = threadIdx.x / 8 % 4, shift = j.v_shift - 5;
#pragma unroll
    for (unsigned round = 0; round < TURNS / WARPS; round++) {
        const unsigned turn = threadIdx.x / 32 + round * WARPS;
        const unsigned block = turn % BLOCKS, k_tile = turn / BLOCKS % K_TILES, h0 = turn / BLOCKS / K_TILES;
        const unsigned first = byte_of<D>(k_tile * 32 + r, block * FIELDS * 2 + h0, a);
        uint32_t out[2][HALVES] = {};
#pragma unroll
        for (unsigned e = 0; e < 4; e++) {
            const float2 *of_token = factors + ((k_tile * 32 + e * 8 + r) * (D / 32) >> shift);
            uint32_t byte[2][HALVES] = {};
            float2 f;
#pragma unroll
            for (unsigned field = 0; field < FIELDS; field++) {
                if (field % 2 == 0) f = of_token[(block * FIELDS + field) / 2 >> shift];
#pragma unroll
                for (unsigned h = 0; h < HALVES; h++) {
                    const float2 x = bs_cuda_floats(
                        word_at(tile, (first ^ (field * 2 + h) << 4) + e * 8 * D * 2));
                    byte[0][h] += bs_cuda_code_bits<BITS>(x.x, f) << field * BITS;
                    byte[1][h] += bs_cuda_code_bits<BITS>(x.y, f) << field * BITS;
                }
            }
#pragma unroll
            for (unsigned i = 0; i < 2 * HALVES; i++)
                out[i / HALVES][i % HALVES] = __byte_perm(out[i / HALVES][i % HALVES],
                                                          byte[i / HALVES][i % HALVES],
                                                          (0x3210 & ~(15u << 4 * e)) | 4u << 4 * e);
        }
        const int run = first_token / 32 + k_tile; /* of 32 tokens: one word of each lane */
        uint8_t *at = t.half + (block * 4 + r % 2 * 2 + run / 2) * 512 + (2 * a * 4 + r / 2) * 16 +
                      (run % 2 * 2 + h0) * 4;
        if (HALVES == 2) {
            *(uint2 *)at = make_uint2(out[0][0], out[0][HALVES - 1]);
            *(uint2 *)(at + 64) = make_uint2(out[1][0], out[1][HALVES - 1]);
        } else {
            *(uint32_t *)at = out[0][0];
            *(uint32_t *)(at + 64) = out[1][0];
        }
    }
}

template <unsigned D, int BITS, bool SEARCH>
static __device__ __forceinline__ void quantize_v(const job &j, const tile_job &t, uint4 *tile,
                                                  unsigned first_token)
{
    float2 *factors = (float2 *)(tile + TILE_VALUES / 8);
    fetch<TILE_VALUES / 8>(tile, t.part + first_token * (D / 8));
    fetched();
    measure_v<D, BITS, SEARCH>(j, t, tile, factors, first_token);
    __syncthreads();
    encode_v<D, BITS>(j, t, tile, factors, first_token);
}

/* ---- K ---- */

/* Shared memory of a K tile of W channels, 32 or D. */
template <unsigned W> struct k_tile {
    uint4 *values;
    float2 *factors; /* kc: [group of tokens][32 channels]; kt: [token][group of channels] */
    float2 *norms;   /* [token] (n, 1/n) */

    __device__ __forceinline__ explicit k_tile(uint4 *memory)
        : values(memory), factors((float2 *)(memory + PAGE * W / 8)), norms(factors + 4 * PAGE)
    {
    }
    __device__ __forceinline__ float2 floats(unsigned byte, unsigned token, bool norm) const
    {
        float2 x = bs_cuda_floats(word_at(values, byte));
        if (norm) {
            const float2 n = norms[token];
            x.x = bs_cuda_divide(x.x, n.x, n.y);
            x.y = bs_cuda_divide(x.y, n.x, n.y);
        }
        return x;
    }
};

/* 32 channels from 32·channels of all tokens. Rows of 4 chunks have banks for two tokens, so their chunks are
 * exchanged by bits 1 and 2 of the token. */
template <unsigned D>
static __device__ __forceinline__ void fetch_channels(uint4 *tile, const uint4 *part, unsigned channels)
{
    const unsigned token = threadIdx.x / 4, chunk = threadIdx.x % 4;
    uint4 *to = tile + token * 4 + (chunk ^ (token >> 1 & 3));
    const uint4 *from = part + token * (D / 8) + ((channels * 4 + chunk) ^ (token & 7));
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
        __pipeline_memcpy_async(to + i * 32 * 4, from + i * 32 * (D / 8), sizeof *tile);
}

/* n and 1/n of all tokens. Pair p of a token's channels is word p % 8 / 2 of chunk 2·(p / 8) + p % 2. */
template <unsigned D>
static __device__ __forceinline__ void measure_norms(const job &j, const tile_job &t, const k_tile<D> &tile)
{
    enum : unsigned { LANES = D / 32, SHIFT = LANES / 2 };
#pragma unroll 1
    for (unsigned turn = 0; turn < PAGE / row_place<D>::TOKENS_A_TURN; turn++) {
        const row_place<D> at(turn);
        const unsigned first = byte_of<D>(at.token, at.part / 8 * 2 + at.part % 2, at.part % 8 / 2);
        float even[THREAD_WORDS], odd[THREAD_WORDS];
#pragma unroll
        for (unsigned i = 0; i < THREAD_WORDS; i++) {
            const unsigned p = LANES * i;
            const float2 x = bs_cuda_floats(
                word_at(tile.values, first ^ byte_of<D>(0, p / 8 * 2 + p % 2, p % 8 / 2)));
            even[i] = __fmul_rn(x.x, x.x);
            odd[i] = __fmul_rn(x.y, x.y);
        }
        const float sum = finish_sum(halving_sum(even), halving_sum(odd), SHIFT);
        if (at.part != 0) continue;
        if (!is_finite(sum)) report(j, t.slot, at.token, false);
        const __half n = __float2half_rn(fmaxf(__fsqrt_rn(__fmul_rn(sum, 1.0f / D)), 0x1p-14f));
        tile.norms[at.token] = make_float2(__half2float(n), bs_cuda_reciprocal(__half2float(n)));
        *(__half *)(t.half + j.layout.k_n + bs_cuda_kv_token_byte((int)at.token)) = n;
    }
}

/* Groups of channels of a token, all of the part. Dividing by n keeps the order, so it can wait. */
template <unsigned D, int BITS>
static __device__ __forceinline__ void measure_k_tokens(const job &j, const tile_job &t,
                                                        const k_tile<D> &tile)
{
    const unsigned shift = j.k_shift - 5;
#pragma unroll 1
    for (unsigned turn = 0; turn < PAGE / row_place<D>::TOKENS_A_TURN; turn++) {
        const row_place<D> at(turn);
        uint32_t words[THREAD_WORDS];
        read_row<D>(tile.values, at, words);
        const float2 range = bs_cuda_floats(measure_row(words, shift));
        float m = range.x, M = -range.y;
        const unsigned group = at.part >> shift;
        if (at.part != group << shift) continue;
        if (!is_finite(m) || !is_finite(M)) report(j, t.slot, at.token, false);
        if (j.layout.k_norm) {
            const float2 n = tile.norms[at.token];
            m = bs_cuda_divide(m, n.x, n.y);
            M = bs_cuda_divide(M, n.x, n.y);
        }
        const bs_cuda_group g = bs_cuda_group_of<BITS>(m, M);
        uint8_t *place = t.half + group * 256 + bs_cuda_kv_token_byte((int)at.token);
        tile.factors[(at.token * (D / 32) >> shift) + group] = bs_cuda_code_factors<BITS>(g);
        *(uint16_t *)(place + j.layout.k_s) = g.s;
        *(int16_t *)(place + j.layout.k_z) = g.z;
    }
}

/* A thread's share of measuring 32 channels: two channels of tokens 16·segment … + 15. In turn i it reads
 * token i ^ segment of them, so that the 8 segments of a warp meet other banks. */
typedef struct channel_place {
    unsigned segment, word, warp; /* word of chunk `warp` of the 32 channels' four */
} channel_place;

typedef struct value_range {
    float m, M;
} value_range;

template <unsigned W>
static __device__ __forceinline__ value_range measure_plain(const k_tile<W> &tile, unsigned first,
                                                            unsigned segments, bool odd)
{
    uint32_t min = word_at(tile.values, first), max = min;
#pragma unroll
    for (unsigned i = 1; i < 16; i++) {
        const uint32_t x = word_at(tile.values, first ^ byte_of<W>(i, 0, 0));
        min = bs_cuda_min(min, x);
        max = bs_cuda_max(max, x);
    }
    for (unsigned mask = 1; mask < segments; mask *= 2) {
        min = bs_cuda_min(min, bs_cuda_shuffle(min, (int)mask));
        max = bs_cuda_max(max, bs_cuda_shuffle(max, (int)mask));
    }
    const float2 low = bs_cuda_floats(min), high = bs_cuda_floats(max);
    return {odd ? low.y : low.x, odd ? high.y : high.x};
}

template <unsigned W>
static __device__ __forceinline__ value_range measure_normed(const k_tile<W> &tile, unsigned first,
                                                             unsigned first_token, unsigned segments,
                                                             bool odd)
{
    float2 low = make_float2(CUDART_INF_F, CUDART_INF_F), high = make_float2(-CUDART_INF_F, -CUDART_INF_F);
#pragma unroll 8
    for (unsigned i = 0; i < 16; i++) {
        const float2 x = tile.floats(first ^ byte_of<W>(i, 0, 0), first_token ^ i, true);
        low = make_float2(fminf(low.x, x.x), fminf(low.y, x.y));
        high = make_float2(fmaxf(high.x, x.x), fmaxf(high.y, x.y));
    }
    for (unsigned mask = 1; mask < segments; mask *= 2) {
        low.x = fminf(low.x, __shfl_xor_sync(0xffffffffu, low.x, (int)mask));
        low.y = fminf(low.y, __shfl_xor_sync(0xffffffffu, low.y, (int)mask));
        high.x = fmaxf(high.x, __shfl_xor_sync(0xffffffffu, high.x, (int)mask));
        high.y = fmaxf(high.y, __shfl_xor_sync(0xffffffffu, high.y, (int)mask));
    }
    return {odd ? low.y : low.x, odd ? high.y : high.x};
}

/* The first token of a group that is not finite in a channel: `first` is the byte of its word in token 0. */
template <unsigned W>
static __device__ __noinline__ unsigned bad_token(const void *tile, unsigned first, unsigned token, bool odd)
{
    while (token < PAGE - 1 &&
           (word_at(tile, first ^ byte_of<W>(token, 0, 0)) >> (odd ? 16 : 0) & 0x7c00) != 0x7c00)
        token++;
    return token;
}

/* Groups of tokens of 32 channels: those from chunk 4·sub of the tile, from 32·channels of the part. */
template <unsigned D, unsigned W, int BITS>
static __device__ __forceinline__ void
measure_k_channels(const job &j, const tile_job &t, const k_tile<W> &tile, unsigned sub, unsigned channels)
{
    const unsigned segment = threadIdx.x % 8, word = threadIdx.x / 8 % 4, warp = threadIdx.x / 32;
    const unsigned segments = 1u << (j.k_shift - 4), first_token = segment * 17;
    const unsigned first = byte_of<W>(first_token, 4 * sub + warp, word);
    const bool odd = segment % 2, norm = W != TILE_CHANNELS && j.layout.k_norm;
    const value_range range = norm ? measure_normed<W>(tile, first, first_token, segments, odd)
                                   : measure_plain<W>(tile, first, segments, odd);
    if ((segment & (segments - 1)) >= 2) return; /* two lanes of a group write, a channel each */
    const unsigned group = segment >> (j.k_shift - 4), e = segment % 2;
    const unsigned channel = warp / 2 * 16 + word * 4 + warp % 2 * 2 + e;
    if (!norm && !(is_finite(range.m) && is_finite(range.M)))
        report(j, t.slot,
               bad_token<W>(tile.values, byte_of<W>(0, 4 * sub + warp, word), group << j.k_shift, odd),
               false);
    const bs_cuda_group g = bs_cuda_group_of<BITS>(range.m, range.M);
    tile.factors[group * 32 + channel] = bs_cuda_code_factors<BITS>(g);
    uint8_t *params = t.half + group * 2 * D;
    uint8_t *z = params + j.layout.k_z + bs_cuda_kv_k_channel_z((int)(channels * 32 + channel));
    *(uint16_t *)(params + j.layout.k_s + bs_cuda_kv_k_channel_s((int)(channels * 32 + channel))) = g.s;
    z[0] = (uint8_t)bs_cuda_kv_z_high(g.z);
    z[4] = (uint8_t)bs_cuda_kv_z_low(g.z);
}

/* Codes of 32 channels. A thread takes tokens r and r + 8 of the row tiles that share bytes, and channels 4i
 * … 4i + 3 of both 16 (at 2 bits of one 16): the 16 (or 8) bytes that a lane of attend reads. */
template <unsigned D, unsigned W, int BITS, bool KC>
static __device__ __forceinline__ void encode_k(const job &j, const tile_job &t, const k_tile<W> &tile,
                                                unsigned sub, unsigned channels)
{
    enum : unsigned {
        FIELDS = 8 / BITS,
        BLOCKS = PAGE / 16 / FIELDS,
        HALVES = BITS == 2 ? 1 : 2,
        TURNS = BLOCKS * (2 / HALVES)
    };
    const unsigned r = threadIdx.x % 32 / 4, i = threadIdx.x % 4;
    const bool norm = W != TILE_CHANNELS && j.layout.k_norm;
#pragma unroll
    for (unsigned round = 0; round < TURNS / WARPS; round++) {
        const unsigned turn = threadIdx.x / 32 + round * WARPS, block = turn % BLOCKS, h0 = turn / BLOCKS;
        const unsigned first = byte_of<W>(r, 4 * sub + h0 * 2, i), block_token = block * FIELDS * 16;
        uint32_t out[2 * HALVES] = {};
        float4 of_channels[HALVES][2];
#pragma unroll
        for (unsigned field = 0; field < FIELDS; field++) {
#pragma unroll
            for (unsigned hq = 0; KC && field % 2 == 0 && hq < 2 * HALVES; hq++)
                of_channels[hq / 2][hq % 2] = *(const float4 *)(tile.factors +
                                                                (block_token + field * 16 >> j.k_shift) * 32 +
                                                                (h0 + hq / 2) * 16 + i * 4 + hq % 2 * 2);
#pragma unroll
            for (unsigned w = 0; w < 2; w++) {
                const unsigned above_r = block_token + field * 16 + w * 8, token = above_r + r;
                float2 f = {};
                if (!KC) f = tile.factors[token * (D / 32) + channels >> (j.k_shift - 5)];
#pragma unroll
                for (unsigned h = 0; h < HALVES; h++) {
                    uint32_t pair[2];
#pragma unroll
                    for (unsigned q = 0; q < 2; q++) {
                        const float2 x = tile.floats((first ^ (h * 2 + q) << 4) + above_r * (W * 2), token,
                                                     norm);
                        const float4 c = of_channels[h][q];
                        pair[q] = __byte_perm(bs_cuda_code_bits<BITS>(x.x, KC ? make_float2(c.x, c.y) : f),
                                              bs_cuda_code_bits<BITS>(x.y, KC ? make_float2(c.z, c.w) : f),
                                              0x0040);
                    }
                    out[w + 2 * h] |= __byte_perm(pair[0], pair[1], 0x5410) << field * BITS;
                }
            }
        }
        uint8_t *at = t.half + ((block * (D / 32) + channels) * 32 + r * 4 + i) * 16 + h0 * 8;
        if (HALVES == 2) *(uint4 *)at = make_uint4(out[0], out[1], out[2 * HALVES - 2], out[2 * HALVES - 1]);
        else *(uint2 *)at = make_uint2(out[0], out[1]);
    }
}

/* A K tile of 32 channels: kc without norm. */
template <unsigned D, int BITS>
static __device__ __forceinline__ void quantize_k_channels(const job &j, const tile_job &t, uint4 *memory,
                                                           unsigned channels)
{
    const k_tile<TILE_CHANNELS> tile(memory);
    fetch_channels<D>(memory, t.part, channels);
    fetched();
    measure_k_channels<D, TILE_CHANNELS, BITS>(j, t, tile, 0, channels);
    __syncthreads();
    encode_k<D, TILE_CHANNELS, BITS, true>(j, t, tile, 0, channels);
}

/* A whole part of K: kt, or norm. */
template <unsigned D, int BITS, bool KC>
static __device__ __forceinline__ void quantize_k_whole(const job &j, const tile_job &t, uint4 *memory)
{
    const k_tile<D> tile(memory);
    fetch<PAGE * D / 8>(memory, t.part);
    fetched();
    if (j.layout.k_norm) {
        measure_norms<D>(j, t, tile);
        __syncthreads();
    }
    if (!KC) {
        measure_k_tokens<D, BITS>(j, t, tile);
        __syncthreads();
    }
#pragma unroll 1
    for (unsigned sub = 0; sub < D / 32; sub++) {
        if (KC) {
            measure_k_channels<D, D, BITS>(j, t, tile, sub, sub);
            __syncthreads();
        }
        encode_k<D, D, BITS, KC>(j, t, tile, sub, sub);
        if (KC) __syncthreads(); /* the factors are written again */
    }
}

/* ---- launch ---- */

template <unsigned D, int BITS, bool WHOLE>
static __device__ __forceinline__ void quantize_k(const job &j, const tile_job &t, uint4 *memory)
{
    if constexpr (!WHOLE) quantize_k_channels<D, BITS>(j, t, memory, blockIdx.x);
    else if (j.layout.k_per_channel) quantize_k_whole<D, BITS, true>(j, t, memory);
    else quantize_k_whole<D, BITS, false>(j, t, memory);
}

/* Grid: tiles of a head, K's first; (layer, head); page. */
template <unsigned D, bool SEARCH, bool WHOLE>
static __global__ void __launch_bounds__(THREADS, SEARCH || WHOLE ? 6 : 12)
    quantize_kernel(const __grid_constant__ job j)
{
    extern __shared__ uint4 memory[];
    const bool is_v = blockIdx.x >= j.k_tiles;
    const unsigned page = blockIdx.z, head = blockIdx.y;
    tile_job t;
    t.slot = j.f16_slot[page];
    t.part = (const uint4 *)(j.f16_pool + bs_cuda_kv_f16_at(&j.layout, t.slot, 0, (int)head, is_v));
    t.half = j.quant_pool + bs_cuda_kv_record_at(&j.layout, j.quant_slot[page], 0, (int)head);
    if (!is_v) {
        if (j.layout.k_bits == 8) quantize_k<D, 8, WHOLE>(j, t, memory);
        else if (j.layout.k_bits == 4) quantize_k<D, 4, WHOLE>(j, t, memory);
        else quantize_k<D, 2, WHOLE>(j, t, memory);
        return;
    }
    t.half += j.layout.k_half;
    const unsigned first_token = (blockIdx.x - j.k_tiles) * (TILE_VALUES / D);
    if (SEARCH) quantize_v<D, 2, true>(j, t, memory, first_token);
    else if (j.layout.v_bits == 8) quantize_v<D, 8, false>(j, t, memory, first_token);
    else if (j.layout.v_bits == 4) quantize_v<D, 4, false>(j, t, memory, first_token);
    else quantize_v<D, 2, false>(j, t, memory, first_token);
}

template <unsigned D> static void launch(const job &j, bool search, dim3 grid, cudaStream_t stream)
{
    /* A tile and its factors: of 32 channels x 4 groups or as many of V; of 128 tokens x 4 groups, and norms.
     */
    const size_t small = TILE_VALUES * 2 + PAGE * sizeof(float2),
                 whole = PAGE * D * 2 + 5 * PAGE * sizeof(float2);
    if (j.k_tiles == 1 && search) quantize_kernel<D, true, true><<<grid, THREADS, whole, stream>>>(j);
    else if (j.k_tiles == 1) quantize_kernel<D, false, true><<<grid, THREADS, whole, stream>>>(j);
    else if (search) quantize_kernel<D, true, false><<<grid, THREADS, small, stream>>>(j);
    else quantize_kernel<D, false, false><<<grid, THREADS, small, stream>>>(j);
}

static unsigned log2_of(int group)
{
    return group == 128 ? 7 : group == 64 ? 6 : 5;
}

bs_status bs_cuda_quantize(bs_stream *stream, const bs_quantize_args *args)
{
    const bs_kv_pools *pools = args->pools;
    const bs_kv_format *format = &pools->shape->format;
    const int heads = pools->shape->n_layers * pools->shape->n_kv_heads, dim = pools->shape->head_dim;
    if (heads > MAX_GRID_Y || args->n_pages > MAX_GRID_Z)
        return bs_fail(BS_STATUS_RANGE,
                       "quantize: %d pages of %d (layer, KV head): 65535 of each fit a launch", args->n_pages,
                       heads);
    job j;
    j.layout = bs_cuda_kv_layout_of(pools->shape);
    j.f16_pool = (const uint8_t *)pools->f16_pool;
    j.quant_pool = (uint8_t *)pools->quant_pool;
    j.f16_slot = args->f16_slot;
    j.quant_slot = args->quant_slot;
    j.fault = bs_cuda_stream_fault(stream);
    j.k_tiles = format->k_per_channel && !format->k_norm ? (unsigned)dim / TILE_CHANNELS : 1;
    j.k_shift = log2_of(j.layout.k_group);
    j.v_shift = log2_of(j.layout.v_group);
    const bool search = format->v_bits == 2 && format->v_encoder == BS_V_ENCODER_LEAST_SQUARES;
    const dim3 grid(j.k_tiles + (unsigned)(PAGE * dim / TILE_VALUES), (unsigned)heads,
                    (unsigned)args->n_pages);
    if (dim == 128) launch<128>(j, search, grid, bs_cuda_stream(stream));
    else launch<64>(j, search, grid, bs_cuda_stream(stream));
    return bs_cuda_launched("quantize");
}
