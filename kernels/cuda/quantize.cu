/* quantize.cu: whole f16 pages into quantized slots, the codes of docs/kv-format.md bit for bit.
 *
 * Math     x ~ s (c + z/16) by groups: K of tokens of a channel (kc) or channels of a token (kt), V of
 * channels of a token; with `norm` K is divided by its token's rounded root mean square first; at 2 bits the
 * ranges are drawn in, and then K's norms corrected by what the codes stand for. quantizer.h has the rules.
 * Layout   f16 and quantized slots of kv_layout.h. Shared memory holds the tile as it lies in the slot, 16-
 * byte chunk c of a token at c ^ (token % 8), which makes every access below free of bank conflicts or
 * nearly so; a K tile of 32 channels keeps that up with its own exchange of chunks (byte_of).
 * Mapping  one launch; a CTA of 128 threads a tile of one (page, layer, head) and K or V:
 *   V        4,096 values: 32 tokens of D 128, 64 of D 64; all groups of a token are inside
 *   K        per channel without norm 32 channels x 128 tokens; with norm, 2 bits and g ≤ 64 8,192 values: 64
 *            tokens of D 128, 128 of D 64; the rest (per token; norm with g128 or more bits) all of the part
 * A tile is fetched by 16-byte asynchronous copies, all at once; with many pages a CTA takes two tiles of V
 * and fetches the second behind the first. Then groups are measured and their parameters go to shared
 * memory, as factors for the codes and as the slot wants them; then codes are made in the slot's order, 8 or
 * 16 bytes a store. At 2 bits with norm a warp keeps 64 tokens of 16 channels of K in registers from the
 * division to the codes: 8 groups, whose ranges 14 exchanges leave one to a lane, which makes its parameters;
 * the products that correct the norms are integers, added by 6 exchanges and one atomic a token and warp.
 * Cost     a page and head of D 128 is 65,536 B read and 17,408 (int4 g128) or 12,544 (int2 g32 norm)
 * written: 1,024 pages x 8 heads are 679 MB = 146 us, or 640 MB = 138 us, at 4.64 TB/s. Instructions a value
 * of K of 2 bits with norm: about 24, 4.5 of them the products; of V 15; an instruction a value is 4.07 us of
 * issue slots. Stores count by sectors: parameters stored one by one cost L2 more than the codes.
 * Numerics exact: order of the sums is the page's (values i and i + n/2, and so on); quantizer.h says what is
 * done otherwise, and why the bits are the same.
 * Limits   any K and V widths of 8, 4, 2; D 64, 128; groups 32, 64, 128; 65,535 pages and as many (layer,
 * head) a launch.
 * NaN or infinity: the fault is recorded, what is written of that page and head means nothing.
 * Measured one H200, 2026-11-28, 1,024 pages x 8 heads: int4 179 us (83 % of a read of 4.54 TB/s), int2 209
 * (67 %), int4vint2 247 (58 %); one page x 8 heads 2.8 and 3.9 us.
 * docs/kernels/quantize.md has the rest, and what was tried and dropped. */
#include "kernels/cuda/fault.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/quantize_tile.h"

enum {
    MAX_GRID_Y = 65535,
    MAX_GRID_Z = 65535,
    MANY_HEADS = 2048, /* from so many (page, layer, head) on */
    V_RUN = 2          /* a CTA of K_SLICES takes so many tiles of V */
};

typedef struct job {
    bs_cuda_kv_layout layout;
    const uint8_t *f16_pool;
    uint8_t *quant_pool;
    const uint32_t *f16_slot, *quant_slot;
    bs_cuda_fault fault;
    unsigned k_tiles;          /* of a (page, layer, head); V's follow */
    unsigned v_run;            /* tiles of V of a CTA */
    unsigned k_shift, v_shift; /* log2 of the groups */
    float k_margin, v_margin;  /* taken off each end of a range of 2 bits, a share of its width */
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

/* Parameters of V on their way to the slot: for 32 tokens, a group and r = token % 8 the 8 bytes of s and those
 * of z, token r + 8e at place e, which lie together there. A store of each alone would cost L2 as much as 32
 * bytes of codes. */
typedef struct v_params {
    uint16_t s[4];
    int8_t z_high[4], z_low[4];
} v_params;

/* After a barrier. */
template <unsigned D>
static __device__ __forceinline__ void store_v_params(const job &j, const tile_job &t, const v_params *params,
                                                      unsigned first_token)
{
    const unsigned half = threadIdx.x % 2, r = threadIdx.x / 2 % 8, set = threadIdx.x / 16,
                   n_groups = D / 32 >> (j.v_shift - 5), group = set & (n_groups - 1),
                   token = first_token + set / n_groups * 32 + r;
    if (set >= TILE_VALUES / D / 32 * n_groups) return;
    uint8_t *at = t.half + group * 256 +
                  (half ? j.layout.v_z + bs_cuda_kv_v_z((int)token)
                        : j.layout.v_s + bs_cuda_kv_token_byte((int)token));
    *(uint2 *)at = ((const uint2 *)params)[threadIdx.x];
}

template <unsigned D, int BITS>
static __device__ __forceinline__ void measure_v(const job &j, const tile_job &t, const void *tile,
                                                 float2 *factors, v_params *params, unsigned first_token)
{
    const unsigned shift = j.v_shift - 5;
    const row_place<D> at(0);
    uint32_t words[THREAD_WORDS];
    read_row<D>(tile, at, words);
    const float2 range = bs_cuda_floats(measure_row(words, shift));
    const float m = range.x, M = -range.y;
    const bs_cuda_group g = bs_cuda_group_of<BITS>(m, M, j.v_margin);
    const unsigned token = first_token + at.token, group = at.part >> shift;
    if (at.part != group << shift) return;
    if (!is_finite(m) || !is_finite(M)) report(j, t.slot, token, true);
    factors[(at.token * (D / 32) >> shift) + group] = bs_cuda_code_factors<BITS>(g);
    v_params *p = params + ((at.token / 32 * (D / 32) >> shift) + group) * 8 + at.token % 8;
    const unsigned e = at.token / 8 % 4;
    p->s[e] = g.s;
    p->z_high[e] = bs_cuda_kv_z_high(g.z);
    p->z_low[e] = bs_cuda_kv_z_low(g.z);
}

/* Codes. A thread takes token r + 8e of 32, e = 0 … 3 (the bytes of a word), channels 2a and 2a + 1 of 8, and
 * of both 8 of a row tile (words h; one at 2 bits, which has 4 row tiles in a byte: there lanes differ in h and
 * warps in r's lowest bit, so that a store fills 8 bytes of 16). */
template <unsigned D, int BITS, bool CLAMP>
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
    const unsigned lane = threadIdx.x % 32, a = lane / 8, shift = j.v_shift - 5;
#pragma unroll
    for (unsigned round = 0; round < TURNS / WARPS; round++) {
        const unsigned turn = threadIdx.x / 32 + round * WARPS;
        const unsigned block = turn % BLOCKS, k_tile = turn / BLOCKS % K_TILES, odd = turn / BLOCKS / K_TILES;
        const unsigned r = HALVES == 2 ? lane % 8 : lane % 4 * 2 + odd, h0 = HALVES == 2 ? 0 : lane / 4 % 2;
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
                    byte[0][h] += bs_cuda_code_bits<BITS, CLAMP>(x.x, f) << field * BITS;
                    byte[1][h] += bs_cuda_code_bits<BITS, CLAMP>(x.y, f) << field * BITS;
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

/* Tiles index·v_run … of V; where they are more than one, each is fetched while the one before is quantized. */
template <unsigned D, int BITS, bool CLAMP>
static __device__ __forceinline__ void quantize_v(const job &j, const tile_job &t, uint4 *memory,
                                                  unsigned index)
{
    enum : unsigned { CHUNKS = TILE_VALUES / 8, TOKENS = TILE_VALUES / D };
    const unsigned n = j.v_run;
    float2 *factors = (float2 *)(memory + (n > 1 ? 2 : 1) * CHUNKS);
    v_params *params = (v_params *)(factors + TILE_VALUES / 32);
    const uint4 *from = t.part + index * n * CHUNKS;
    fetch<CHUNKS>(memory, from);
#pragma unroll 1
    for (unsigned i = 0; i < n; i++) {
        const unsigned first_token = (index * n + i) * TOKENS;
        const uint4 *tile = memory + i % 2 * CHUNKS;
        if (i + 1 < n) {
            __pipeline_commit();
            fetch<CHUNKS>(memory + (i + 1) % 2 * CHUNKS, from + (i + 1) * CHUNKS);
            fetched_before();
        } else {
            fetched();
        }
        measure_v<D, BITS>(j, t, tile, factors, params, first_token);
        __syncthreads();
        store_v_params<D>(j, t, params, first_token);
        encode_v<D, BITS, CLAMP>(j, t, tile, factors, first_token);
        if (i + 1 < n) __syncthreads();
    }
}

/* ---- K ---- */

/* What corrects a token's norm: Σ k² and, in 2⁻¹³, Σ x·x̂ so far. */
typedef struct token_sums {
    float squares;
    int32_t products;
} token_sums;

/* Shared memory of a K tile of W channels, 32 or D. */
template <unsigned W> struct k_tile {
    uint4 *values;
    float2 *factors;    /* kc: [group of tokens][32 channels]; kt: [token][group of channels] */
    float2 *norms;      /* [token] (n, 1/n) */
    float2 *stands_for; /* 2 bits with norm: bs_cuda_value_factors, as factors */
    token_sums *sums;   /* and [token] */

    __device__ __forceinline__ explicit k_tile(uint4 *memory)
        : values(memory), factors((float2 *)(memory + PAGE * W / 8)), norms(factors + 4 * PAGE),
          stands_for(norms + PAGE), sums((token_sums *)(stands_for + 4 * PAGE))
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

/* n and 1/n of N tokens of a tile, from `first_token` of the page. Two lanes a token: lane q has chunks 2b + q,
 * in which word i is channels 16b + 4i + 2q and + 1, so that all steps of the sum but one stay in a lane. A
 * square is exact in fp32, so the first step is one FMA. CORRECT: n goes to the slot later (store_norm). */
template <unsigned D, unsigned N, bool CORRECT>
static __device__ __forceinline__ void measure_norms(const job &j, const tile_job &t, const uint4 *values,
                                                     float2 *norms, token_sums *sums_of, unsigned first_token)
{
    enum : unsigned { HALF = D / 32, TOKENS_A_TURN = THREADS / 2 };
    const unsigned lane = threadIdx.x % 32, q = lane / 8 % 2;
#pragma unroll 1
    for (unsigned turn = 0; turn < N / TOKENS_A_TURN; turn++) {
        const unsigned token = turn * TOKENS_A_TURN + threadIdx.x / 32 * 16 + lane / 16 * 8 + lane % 8;
        const unsigned first = byte_of<D>(token, q, 0);
        float sums[HALF][8];
#pragma unroll
        for (unsigned b = 0; b < HALF; b++) {
            const uint4 low = *(const uint4 *)((const char *)values + (first ^ b << 5)),
                        high = *(const uint4 *)((const char *)values + (first ^ (b + HALF) << 5));
            const uint32_t x[4] = {low.x, low.y, low.z, low.w}, y[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const float2 u = bs_cuda_floats(x[i]), v = bs_cuda_floats(y[i]);
                sums[b][2 * i] = __fmaf_rn(u.x, u.x, __fmul_rn(v.x, v.x));
                sums[b][2 * i + 1] = __fmaf_rn(u.y, u.y, __fmul_rn(v.y, v.y));
            }
        }
#pragma unroll
        for (unsigned half = HALF / 2; half > 0; half /= 2)
#pragma unroll
            for (unsigned b = 0; b < half; b++)
#pragma unroll
                for (unsigned k = 0; k < 8; k++) sums[b][k] = __fadd_rn(sums[b][k], sums[b + half][k]);
        float *s = sums[0];
#pragma unroll
        for (unsigned half = 4; half > 1; half /= 2)
#pragma unroll
            for (unsigned k = 0; k < half; k++) s[k] = __fadd_rn(s[k], s[k + half]);
        s[0] = __fadd_rn(s[0], __shfl_xor_sync(0xffffffffu, s[0], 8));
        s[1] = __fadd_rn(s[1], __shfl_xor_sync(0xffffffffu, s[1], 8));
        const float sum = __fadd_rn(s[0], s[1]);
        if (q != 0) continue;
        if (!is_finite(sum)) report(j, t.slot, first_token + token, false);
        const __half n = __float2half_rn(fmaxf(__fsqrt_rn(__fmul_rn(sum, 1.0f / D)), 0x1p-14f));
        norms[token] = make_float2(__half2float(n), bs_cuda_reciprocal(__half2float(n)));
        if (CORRECT) sums_of[token] = {sum, 0};
        else *(__half *)(t.half + j.layout.k_n + bs_cuda_kv_token_byte((int)(first_token + token))) = n;
    }
}

/* The corrected norm of a token, when all its products are in. */
static __device__ __forceinline__ void store_norm(const job &j, const tile_job &t, float2 norm,
                                                  const token_sums &sums, unsigned token)
{
    *(__half *)(t.half + j.layout.k_n + bs_cuda_kv_token_byte((int)token)) = bs_cuda_corrected_norm(
        norm.x, sums.squares, sums.products);
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
        const bs_cuda_group g = bs_cuda_group_of<BITS>(m, M, j.k_margin);
        uint8_t *place = t.half + group * 256 + bs_cuda_kv_token_byte((int)at.token);
        const unsigned index = (at.token * (D / 32) >> shift) + group;
        tile.factors[index] = bs_cuda_code_factors<BITS>(g);
        if (BITS == 2 && j.layout.k_norm) tile.stands_for[index] = bs_cuda_value_factors(g);
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
    const bs_cuda_group g = bs_cuda_group_of<BITS>(range.m, range.M, j.k_margin);
    tile.factors[group * 32 + channel] = bs_cuda_code_factors<BITS>(g);
    if (BITS == 2 && norm) tile.stands_for[group * 32 + channel] = bs_cuda_value_factors(g);
    uint8_t *params = t.half + group * 2 * D;
    uint8_t *z = params + j.layout.k_z + bs_cuda_kv_k_channel_z((int)(channels * 32 + channel));
    *(uint16_t *)(params + j.layout.k_s + bs_cuda_kv_k_channel_s((int)(channels * 32 + channel))) = g.s;
    z[0] = (uint8_t)bs_cuda_kv_z_high(g.z);
    z[4] = (uint8_t)bs_cuda_kv_z_low(g.z);
}

/* Codes of 32 channels. A thread takes tokens r and r + 8 of the row tiles that share bytes, and channels 4i
 * … 4i + 3 of both 16 (at 2 bits of one 16): the 16 (or 8) bytes that a lane of attend reads. At 2 bits with
 * norm its tokens' products go to their sums: integers, so their order does not matter. */
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
                const unsigned of_token = token * (D / 32) + channels >> (j.k_shift - 5);
                float2 f = {};
                if (!KC) f = tile.factors[of_token];
                uint32_t products = 0;
#pragma unroll
                for (unsigned h = 0; h < HALVES; h++) {
                    uint32_t pair[2];
#pragma unroll
                    for (unsigned q = 0; q < 2; q++) {
                        const float2 x = tile.floats((first ^ (h * 2 + q) << 4) + above_r * (W * 2), token,
                                                     norm);
                        const float4 c = of_channels[h][q];
                        const float low = bs_cuda_code_sum<BITS, BITS == 2>(x.x,
                                                                            KC ? make_float2(c.x, c.y) : f),
                                    high = bs_cuda_code_sum<BITS, BITS == 2>(x.y,
                                                                             KC ? make_float2(c.z, c.w) : f);
                        pair[q] = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x0040);
                        if (BITS > 2 || !norm) continue;
                        const float2 *of = tile.stands_for +
                                           (KC ? (block_token + field * 16 >> j.k_shift) * 32 +
                                                     (h0 + h) * 16 + i * 4 + q * 2
                                               : of_token);
                        products += bs_cuda_product(x.x, low, of[0]);
                        products += bs_cuda_product(x.y, high, of[KC ? 1 : 0]);
                    }
                    out[w + 2 * h] |= __byte_perm(pair[0], pair[1], 0x5410) << field * BITS;
                }
                if (BITS == 2 && norm)
                    atomicAdd(&tile.sums[token].products, (int)(products - 4 * bs_cuda_product_bias));
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
        measure_norms<D, PAGE, BITS == 2>(j, t, tile.values, tile.norms, tile.sums, 0);
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
    if (BITS > 2 || !j.layout.k_norm) return;
    if (!KC) __syncthreads();
    store_norm(j, t, tile.norms[threadIdx.x], tile.sums[threadIdx.x], threadIdx.x);
}

/* ---- K of 2 bits per channel with norm, groups of at most 64 tokens ---- */

/* One value of a pair, from the lane whose number differs in `bit`: the lane with that bit gives the first and
 * keeps the second. */
static __device__ __forceinline__ float exchange(float first, float second, unsigned bit, float *kept)
{
    const bool upper = threadIdx.x & bit;
    *kept = upper ? second : first;
    return __shfl_xor_sync(0xffffffffu, upper ? first : second, (int)bit);
}

/* Ranges of 8 groups from each lane's share of them; lane 4·r + i keeps group r. */
static __device__ __forceinline__ value_range join_ranges(float low[8], float high[8])
{
#pragma unroll
    for (unsigned half = 4; half > 0; half /= 2) {
#pragma unroll
        for (unsigned v = 0; v < half; v++) {
            float kept;
            const float below = exchange(low[v], low[v + half], 4 * half, &kept);
            low[v] = fminf(kept, below);
            const float above = exchange(high[v], high[v + half], 4 * half, &kept);
            high[v] = fmaxf(kept, above);
        }
    }
    return {low[0], high[0]};
}

/* 64 tokens of 16 channels by a warp, everything between the division and the codes in registers: lane
 * 4·r + i has tokens r + 8w + 16f and channels 4i + c, the 8 bytes of codes that it writes. Ranges are of 32
 * tokens, joined for groups of 64. Its products of token r + 8w + 16f are added to products[2f + w]. */
template <unsigned D>
static __device__ __forceinline__ uint2 quantize_block(const job &j, const uint4 *values, const float2 *norms,
                                                       float2 *factors, uint8_t *params, unsigned half,
                                                       unsigned first_byte, uint32_t products[8])
{
    const unsigned lane = threadIdx.x % 32, r = lane / 4, i = lane % 4;
    float x[4][2][4], low[8], high[8]; /* [field][w][c]; [field / 2][c] */
#pragma unroll
    for (unsigned f = 0; f < 4; f++) {
#pragma unroll
        for (unsigned w = 0; w < 2; w++) {
            const float2 n = norms[f * 16 + w * 8 + r];
#pragma unroll
            for (unsigned q = 0; q < 2; q++) {
                const float2 pair = bs_cuda_floats(
                    word_at(values, (first_byte ^ q << 4) + (f * 16 + w * 8) * D * 2));
                x[f][w][2 * q] = bs_cuda_divide(pair.x, n.x, n.y);
                x[f][w][2 * q + 1] = bs_cuda_divide(pair.y, n.x, n.y);
            }
        }
    }
#pragma unroll
    for (unsigned v = 0; v < 8; v++) {
        const unsigned f = v / 4 * 2, c = v % 4;
        low[v] = fminf(fminf(x[f][0][c], x[f][1][c]), fminf(x[f + 1][0][c], x[f + 1][1][c]));
        high[v] = fmaxf(fmaxf(x[f][0][c], x[f][1][c]), fmaxf(x[f + 1][0][c], x[f + 1][1][c]));
    }
    value_range range = join_ranges(low, high);
    if (j.k_shift == 6) {
        range.m = fminf(range.m, __shfl_xor_sync(0xffffffffu, range.m, 16));
        range.M = fmaxf(range.M, __shfl_xor_sync(0xffffffffu, range.M, 16));
    }
    const bs_cuda_group g = bs_cuda_group_of<2>(range.m, range.M, j.k_margin);
    uint8_t *place = params + r / 4 * 128 + i * 16 + half * 8;
    *(uint16_t *)(place + r % 4 * 2) = g.s;
    place[64 + r % 4] = (uint8_t)bs_cuda_kv_z_high(g.z);
    place[68 + r % 4] = (uint8_t)bs_cuda_kv_z_low(g.z);
    __syncwarp(); /* the factors of the block before are read */
    float2 *stands_for = factors + WARPS * 4 * FACTOR_STRIDE;
    factors[i * FACTOR_STRIDE + r] = bs_cuda_code_factors<2>(g);
    stands_for[i * FACTOR_STRIDE + r] = bs_cuda_value_factors(g);
    __syncwarp();
    uint32_t bytes[2][4] = {};
#pragma unroll
    for (unsigned f = 0; f < 4; f++) {
#pragma unroll
        for (unsigned c = 0; c < 4; c += 2) {
            const unsigned at = i * FACTOR_STRIDE + f / 2 * 4 + c;
            const float4 of = *(const float4 *)(factors + at), to = *(const float4 *)(stands_for + at);
#pragma unroll
            for (unsigned w = 0; w < 2; w++) {
                const float low = bs_cuda_code_sum<2, false>(x[f][w][c], make_float2(of.x, of.y)),
                            high = bs_cuda_code_sum<2, false>(x[f][w][c + 1], make_float2(of.z, of.w));
                bytes[w][c] += __float_as_uint(low) << 2 * f;
                bytes[w][c + 1] += __float_as_uint(high) << 2 * f;
                products[2 * f + w] += bs_cuda_product(x[f][w][c], low, make_float2(to.x, to.y)) +
                                       bs_cuda_product(x[f][w][c + 1], high, make_float2(to.z, to.w));
            }
        }
    }
    uint32_t words[2];
#pragma unroll
    for (unsigned w = 0; w < 2; w++)
        words[w] = __byte_perm(__byte_perm(bytes[w][0], bytes[w][1], 0x0040),
                               __byte_perm(bytes[w][2], bytes[w][3], 0x0040), 0x5410);
    return make_uint2(words[0], words[1]);
}

/* Each lane's shares of 8 tokens' products, of 32 values of each: lane 4·r + i adds the sums of tokens
 * r + 8w + 16i to `sums`. */
static __device__ __forceinline__ void add_products(uint32_t products[8], token_sums *sums)
{
    const unsigned lane = threadIdx.x % 32, r = lane / 4, i = lane % 4;
#pragma unroll
    for (unsigned half = 4; half > 1; half /= 2) {
        const bool upper = i & half / 2;
#pragma unroll
        for (unsigned v = 0; v < half; v++) {
            const uint32_t kept = upper ? products[v + half] : products[v],
                           sent = upper ? products[v] : products[v + half];
            products[v] = kept + bs_cuda_shuffle(sent, (int)half / 2);
        }
    }
#pragma unroll
    for (unsigned w = 0; w < 2; w++)
        atomicAdd(&sums[i * 16 + w * 8 + r].products, (int)(products[w] - 32 * bs_cuda_product_bias));
}

/* A slice of K: SLICE_VALUES / D tokens. A warp takes 64 tokens of 32 channels, 16 at a time. */
template <unsigned D>
static __device__ __forceinline__ void quantize_k_slice(const job &j, const tile_job &t, uint4 *memory,
                                                        unsigned index)
{
    enum : unsigned { TOKENS = SLICE_VALUES / D };
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % (D / 32),
                   tokens = warp / (D / 32) * 64, first_token = index * TOKENS,
                   block = (first_token + tokens) / 64;
    float2 *norms = (float2 *)(memory + SLICE_VALUES / 8),
           *factors = norms + TOKENS + warp * 4 * FACTOR_STRIDE;
    token_sums *sums = (token_sums *)(norms + TOKENS + 2 * WARPS * 4 * FACTOR_STRIDE);
    uint4 *params = (uint4 *)(sums + TOKENS) + warp * 16;
    fetch<SLICE_VALUES / 8>(memory, t.part + first_token * (D / 8));
    fetched();
    measure_norms<D, TOKENS, true>(j, t, memory, norms, sums, first_token);
    __syncthreads();
    uint2 words[2];
    uint32_t products[8] = {};
#pragma unroll
    for (unsigned h = 0; h < 2; h++)
        words[h] = quantize_block<D>(j, memory, norms + tokens, factors, (uint8_t *)params, h,
                                     byte_of<D>(tokens + lane / 4, part * 4 + 2 * h, lane % 4), products);
    add_products(products, sums + tokens);
    *(uint4 *)(t.half + ((block * (D / 32) + part) * 32 + lane) * 16) = make_uint4(words[0].x, words[0].y,
                                                                                   words[1].x, words[1].y);
    /* Of each group of 64 or 2 × 32 tokens 4 chunks of s and 4 of z. */
    const unsigned n_groups = 64 >> j.k_shift, group = lane / 8;
    if (group < n_groups)
        *(uint4 *)(t.half + (lane / 4 % 2 ? j.layout.k_z : j.layout.k_s) +
                   (block * n_groups + group) * 2 * D + part * 64 + lane % 4 * 16) = params[lane];
    __syncthreads();
    if (threadIdx.x < TOKENS)
        store_norm(j, t, norms[threadIdx.x], sums[threadIdx.x], first_token + threadIdx.x);
}

/* ---- launch ---- */

/* How a CTA takes K. */
enum k_path {
    K_CHANNELS, /* per channel, no norm: 32 channels of all tokens */
    K_SLICES,   /* per channel, norm, 2 bits of both, groups of at most 64: SLICE_VALUES / D tokens */
    K_WHOLE     /* the rest: all of it */
};

template <unsigned D, int BITS, k_path PATH>
static __device__ __forceinline__ void quantize_k(const job &j, const tile_job &t, uint4 *memory)
{
    if constexpr (PATH == K_CHANNELS) quantize_k_channels<D, BITS>(j, t, memory, blockIdx.x);
    else if (j.layout.k_per_channel) quantize_k_whole<D, BITS, true>(j, t, memory);
    else quantize_k_whole<D, BITS, false>(j, t, memory);
}

/* Grid: tiles of a head, K's first; (layer, head); page. */
template <unsigned D, k_path PATH>
static __global__ void __launch_bounds__(THREADS, PATH == K_SLICES  ? 7
                                                  : PATH == K_WHOLE ? 6
                                                                    : 12)
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
        if (PATH == K_SLICES) quantize_k_slice<D>(j, t, memory, blockIdx.x);
        else if (j.layout.k_bits == 8) quantize_k<D, 8, PATH>(j, t, memory);
        else if (j.layout.k_bits == 4) quantize_k<D, 4, PATH>(j, t, memory);
        else quantize_k<D, 2, PATH>(j, t, memory);
        return;
    }
    t.half += j.layout.k_half;
    const unsigned index = blockIdx.x - j.k_tiles;
    if (PATH == K_SLICES) quantize_v<D, 2, false>(j, t, memory, index);
    else if (j.layout.v_bits == 2) quantize_v<D, 2, true>(j, t, memory, index);
    else if (j.layout.v_bits == 4) quantize_v<D, 4, false>(j, t, memory, index);
    else quantize_v<D, 8, false>(j, t, memory, index);
}

/* Shared memory: a tile of V, or two, with its factors; or of K, with them (of 4 groups a channel or token) and norms,
 * at 2 bits both twice. */
template <unsigned D> static void launch(const job &j, k_path path, cudaStream_t stream, dim3 grid)
{
    const size_t factor = sizeof(float2),
                 v = (j.v_run > 1 ? 2 : 1) * TILE_VALUES * 2 + TILE_VALUES / 32 * factor +
                     TILE_VALUES / 128 * sizeof(v_params),
                 slice = SLICE_VALUES * 2 + 2 * (SLICE_VALUES / D + WARPS * 4 * FACTOR_STRIDE) * factor +
                         WARPS * 256,
                 whole = PAGE * D * 2 + (j.layout.k_bits == 2 ? 10 : 5) * PAGE * factor;
    if (path == K_CHANNELS) quantize_kernel<D, K_CHANNELS><<<grid, THREADS, v, stream>>>(j);
    else if (path == K_SLICES)
        quantize_kernel<D, K_SLICES><<<grid, THREADS, slice, stream>>>(j); /* v is less */
    else quantize_kernel<D, K_WHOLE><<<grid, THREADS, whole, stream>>>(j);
}

static unsigned log2_of(int group)
{
    return group == 128 ? 7 : group == 64 ? 6 : 5;
}

/* What 2-bit groups of 1 << shift values lose at each end. */
static float margin_of(unsigned shift, bool k_without_norm)
{
    const float margin = shift == 5 ? 0.075f : shift == 6 ? 0.1f : 0.125f;
    return k_without_norm ? margin * 0.5f : margin;
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
    const k_path path = !format->k_per_channel                                              ? K_WHOLE
                        : !format->k_norm                                                   ? K_CHANNELS
                        : format->k_bits == 2 && format->v_bits == 2 && format->group <= 64 ? K_SLICES
                                                                                            : K_WHOLE;
    j.k_shift = log2_of(j.layout.k_group);
    j.v_shift = log2_of(j.layout.v_group);
    j.k_margin = margin_of(j.k_shift, !format->k_norm);
    j.v_margin = format->v_encoder == BS_V_ENCODER_BEST ? margin_of(j.v_shift, false) : 0.0f;
    const unsigned v_tiles = (unsigned)(PAGE * dim / TILE_VALUES);
    j.k_tiles = path == K_CHANNELS ? (unsigned)dim / TILE_CHANNELS
                : path == K_SLICES ? (unsigned)(PAGE * dim / SLICE_VALUES)
                                   : 1;
    j.v_run = path == K_SLICES && (size_t)heads * (size_t)args->n_pages >= MANY_HEADS ? V_RUN : 1;
    const dim3 grid(j.k_tiles + v_tiles / j.v_run, (unsigned)heads, (unsigned)args->n_pages);
    if (dim == 128) launch<128>(j, path, bs_cuda_stream(stream), grid);
    else launch<64>(j, path, bs_cuda_stream(stream), grid);
    return bs_cuda_launched("quantize");
}
