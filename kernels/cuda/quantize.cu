/* quantize.cu: whole f16 pages into quantized slots, the codes of docs/kv-format.md bit for bit.
 *
 * Math     x ~ s (c + z/16) by groups: K of tokens of a channel (kc) or channels of a token (kt), V of
 * channels of a token; with `norm` K is divided by its token's rounded root mean square first; at 2 bits V's
 * range is the one of nine with the least squared error. quantizer.h has the rules of a group.
 * Layout   f16 and quantized slots of kv_layout.h. Shared memory holds the tile as it lies in the slot, 16-
 * byte chunk c of a token at c ^ (token % 8), which makes every access below free of bank conflicts or
 * nearly so; a K tile of 32 channels keeps that up with its own exchange of chunks (k_tile::at).
 * Mapping  one launch; a CTA of 128 threads a tile of one (page, layer, head) and K or V:
 *   V        4096 values: 32 tokens of D 128, 64 of D 64; all groups of a token are inside
 *   K        32 channels x 128 tokens for kc; all of the part for kt and norm, which look along a token
 * A tile is fetched by 16-byte asynchronous copies, all at once. Then groups are measured (a thread reads 16
 * words of 2 values), their parameters go to the slot and, as factors, to shared memory; then codes are made
 * in the slot's order: a thread reads values by words and writes 8 or 16 bytes of codes.
 * Cost     a page and head of D 128 is 65,536 B read and 17,408 (int4 g128) or 9,984 (int2 g32 norm)
 * written: 1,024 pages x 8 heads are 679 MB = 146 us, or 619 MB = 133 us, at 4.66 TB/s. Instructions: about
 * 11 a value without norm and search, 68 % of the issue slots at that speed. The search is 72 a value of V
 * (8 a range: FMA.SAT, add, min, subtract, two FMAs, square, sum) plus parameters: 326 us of issue slots for
 * these pages, so instructions bind it, not bytes; one page of 32 layers x 8 heads is 10 us.
 * Numerics exact: order of the sums is the page's (values i and i + n/2, and so on).
 * Limits   any K and V widths of 8, 4, 2; D 64, 128; groups 32, 64, 128; tiles of a launch below 2^31.
 * NaN or infinity: the fault is recorded, what is written of that page and head means nothing.
 * Rejected A K tile of 32 channels for norm too, each reading whole tokens again: 2.5 times the reads of L2.
 * Choosing the range by half2 sums first and by exact ones among the near ones: half of the instructions are
 * still there, and lanes disagree about how many near ones there are.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/fault.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/quantizer.h"

#include <cuda_pipeline.h>

enum {
    THREADS = 128,
    WARPS = 4,
    PAGE = BS_PAGE_TOKENS,
    TILE_CHANNELS = 32,      /* of a K tile for kc */
    TILE_VALUES = 32 * PAGE, /* of the other tiles, and of that one */
    THREAD_WORDS = 16,       /* words of 2 values that a thread reads when it measures */
    N_RANGES = 9,
    EXACT_ZERO = (1 << 13) - 48, /* |z| up to which s·(c + z/16) is exact at 2 bits */
    MAX_GRID = 0x7fffffff
};

typedef struct job {
    bs_cuda_kv_layout layout;
    const uint8_t *f16_pool;
    uint8_t *quant_pool;
    const uint32_t *f16_slot, *quant_slot;
    bs_cuda_fault fault;
    int k_tiles, v_tiles; /* tiles of a (page, layer, head) */
} job;

/* One CTA's work. */
typedef struct tile_job {
    const uint4 *part; /* K or V of the f16 page and head, from its first token */
    uint8_t *half;     /* K or V half of the record */
    int layer, kv_head;
    uint32_t slot;
} tile_job;

static __device__ void report(const job &j, const tile_job &t, int token, bool is_v)
{
    bs_cuda_fault_set(j.fault, t.layer, t.kv_head, t.slot, token, is_v);
}

static __device__ bool is_finite(float x)
{
    return fabsf(x) < CUDART_INF_F;
}

/* n chunks of 16 bytes, in order. */
static __device__ void fetch(uint4 *tile, const uint4 *from, int n)
{
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        __pipeline_memcpy_async(tile + i, from + i, sizeof *tile);
}

static __device__ void fetched()
{
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
}

/* ---- groups along a token (V, and K per token) ---- */

/* A tile of whole tokens. Chunk c is the c-th of the part's own order, in which V's channels ascend. */
template <int D> static __device__ __forceinline__ int word_at(int token, int chunk, int word)
{
    return token * (D / 2) + ((chunk ^ (token & 7)) << 2) + word;
}

/* A thread measures 32 channels of a token: lane = token % 8 + 8·(which 32 of D) + …, so that the lanes of a
 * group are 8 or 16 apart and the 8 lanes of a quarter warp meet all banks. `turn` goes on by 4 warps. */
template <int D> struct row_place {
    enum { LANES = D / 32, TOKENS_A_TURN = THREADS / LANES };
    int token, part;

    __device__ explicit row_place(int turn)
    {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, octets = 4 / LANES;
        part = lane / 8 % LANES;
        token = lane % 8 + 8 * (lane / (8 * LANES) + octets * (warp + WARPS * turn));
    }
};

/* 16 words of a group of 32·lanes channels, of which this thread is number `lane`: word lane + lanes·j of the
 * group, j = 0 … 15. So the halving sum's first four steps stay in a thread. */
template <int D>
static __device__ void read_row(const uint32_t *tile, const row_place<D> &at, int lanes,
                                uint32_t words[THREAD_WORDS])
{
    const int lane = at.part % lanes, first_chunk = (at.part - lane) * 4;
    if (lanes == 1) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint4 x = *(const uint4 *)(tile + word_at<D>(at.token, first_chunk + c, 0));
            words[4 * c] = x.x;
            words[4 * c + 1] = x.y;
            words[4 * c + 2] = x.z;
            words[4 * c + 3] = x.w;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < THREAD_WORDS; j++) {
        const int word = lane + lanes * j;
        words[j] = tile[word_at<D>(at.token, first_chunk + word / 4, word % 4)];
    }
}

/* (min, −max) of a group, the same in all its lanes. */
static __device__ uint32_t measure_row(const uint32_t words[THREAD_WORDS], int lanes)
{
    uint32_t min = words[0], max = words[0];
#pragma unroll
    for (int j = 1; j < THREAD_WORDS; j++) {
        min = bs_cuda_min(min, words[j]);
        max = bs_cuda_max(max, words[j]);
    }
    uint32_t range = bs_cuda_range_of(min, max);
    if (lanes > 1) range = bs_cuda_min(range, bs_cuda_shuffle(range, 8));
    if (lanes > 2) range = bs_cuda_min(range, bs_cuda_shuffle(range, 16));
    return range;
}

/* Sum over a group whose lane holds residues 2·lane and 2·lane + 1 of it, modulo 2·lanes. */
static __device__ __forceinline__ float finish_sum(float even, float odd, int lanes)
{
    if (lanes > 2) {
        even = __fadd_rn(even, __shfl_xor_sync(0xffffffffu, even, 16));
        odd = __fadd_rn(odd, __shfl_xor_sync(0xffffffffu, odd, 16));
    }
    if (lanes > 1) {
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

template <bool EXACT>
static __device__ __forceinline__ float
row_error(const float even[THREAD_WORDS], const float odd[THREAD_WORDS], const bs_cuda_group &g, int lanes)
{
    const float2 factors = bs_cuda_code_factors<2>(g);
    float e[THREAD_WORDS], o[THREAD_WORDS];
#pragma unroll
    for (int j = 0; j < THREAD_WORDS; j++) e[j] = bs_cuda_squared_error<EXACT>(even[j], g, factors);
    const float even_sum = halving_sum(e);
#pragma unroll
    for (int j = 0; j < THREAD_WORDS; j++) o[j] = bs_cuda_squared_error<EXACT>(odd[j], g, factors);
    return finish_sum(even_sum, halving_sum(o), lanes);
}

/* The range of nine with the least squared error, the wider on ties. */
static __device__ bs_cuda_group search_range(const uint32_t words[THREAD_WORDS], float m, float M, int lanes)
{
    static const float shares[N_RANGES] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f, 0.6f};
    float even[THREAD_WORDS], odd[THREAD_WORDS];
#pragma unroll
    for (int j = 0; j < THREAD_WORDS; j++) {
        const float2 x = bs_cuda_floats(words[j]);
        even[j] = x.x;
        odd[j] = x.y;
    }
    const float half_width = __fmul_rn(__fsub_rn(M, m), 0.5f);
    bs_cuda_group best = {};
    float least = CUDART_INF_F;
#pragma unroll 1
    for (int i = 0; i < N_RANGES; i++) {
        const float w = __fmul_rn(half_width, __fsub_rn(1.0f, shares[i]));
        const bs_cuda_group g = bs_cuda_group_of<2>(__fadd_rn(m, w), __fsub_rn(M, w));
        const bool exact = __all_sync(0xffffffffu, abs(g.z) <= EXACT_ZERO);
        const float error = exact ? row_error<true>(even, odd, g, lanes)
                                  : row_error<false>(even, odd, g, lanes);
        if (i > 0 && !(error < least)) continue;
        least = error;
        best = g;
    }
    return best;
}

/* ---- V ---- */

template <int D, int BITS, bool SEARCH>
static __device__ void measure_v(const job &j, const tile_job &t, const uint32_t *tile, float2 *factors,
                                 int first_token)
{
    const int lanes = j.layout.v_group / 32, n_groups = D / j.layout.v_group;
    const row_place<D> at(0);
    uint32_t words[THREAD_WORDS];
    read_row<D>(tile, at, lanes, words);
    const float2 range = bs_cuda_floats(measure_row(words, lanes));
    const float m = range.x, M = -range.y;
    const bs_cuda_group g = SEARCH ? search_range(words, m, M, lanes) : bs_cuda_group_of<BITS>(m, M);
    if (at.part % lanes != 0) return;
    const int token = first_token + at.token, group = at.part / lanes;
    if (!is_finite(m) || !is_finite(M)) report(j, t, token, true);
    factors[at.token * n_groups + group] = bs_cuda_code_factors<BITS>(g);
    uint8_t *z = t.half + j.layout.v_z + group * 256 + bs_cuda_kv_v_z(token);
    *(uint16_t *)(t.half + j.layout.v_s + group * 256 + bs_cuda_kv_token_byte(token)) = g.s;
    z[0] = (uint8_t)bs_cuda_kv_z_high(g.z);
    z[4] = (uint8_t)bs_cuda_kv_z_low(g.z);
}

/* Codes. A thread takes token r + 8e of 32, e = 0 … 3 (the bytes of a word), channels 2a and 2a + 1 of 8, and
 * of both 8 of a row tile (words h; one at 2 bits, which has 4 row tiles in a byte). */
template <int D, int BITS>
static __device__ void encode_v(const job &j, const tile_job &t, const uint32_t *tile, const float2 *factors,
                                int first_token)
{
    enum {
        FIELDS = 8 / BITS,
        BLOCKS = D / 16 / FIELDS,
        HALVES = BITS == 2 ? 1 : 2,
        TOKENS = TILE_VALUES / D
    };
    const int r = threadIdx.x % 8, a = threadIdx.x / 8 % 4, n_groups = D / j.layout.v_group;
    for (int turn = (int)threadIdx.x / 32; turn < BLOCKS * (TOKENS / 32) * (2 / HALVES); turn += WARPS) {
        const int block = turn % BLOCKS, k_tile = turn / BLOCKS % (TOKENS / 32);
        const int h0 = turn / BLOCKS / (TOKENS / 32);
        uint32_t out[2][HALVES] = {};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int token = k_tile * 32 + 8 * e + r;
            uint32_t byte[2][HALVES] = {};
            float2 f;
#pragma unroll
            for (int field = 0; field < FIELDS; field++) {
                const int row_tile = block * FIELDS + field;
                if (field % 2 == 0) f = factors[token * n_groups + row_tile * 16 / j.layout.v_group];
#pragma unroll
                for (int h = 0; h < HALVES; h++) {
                    const float2 x = bs_cuda_floats(tile[word_at<D>(token, row_tile * 2 + h0 + h, a)]);
                    byte[0][h] += bs_cuda_code_bits<BITS>(x.x, f) << field * BITS;
                    byte[1][h] += bs_cuda_code_bits<BITS>(x.y, f) << field * BITS;
                }
            }
#pragma unroll
            for (int i = 0; i < 2 * HALVES; i++)
                out[i / HALVES][i % HALVES] = __byte_perm(out[i / HALVES][i % HALVES],
                                                          byte[i / HALVES][i % HALVES],
                                                          0x3210 & ~(15 << 4 * e) | 4 << 4 * e);
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

template <int D, int BITS, bool SEARCH>
static __device__ void quantize_v(const job &j, const tile_job &t, uint4 *tile, int first_token)
{
    float2 *factors = (float2 *)(tile + TILE_VALUES / 8);
    fetch(tile, t.part + first_token * (D / 8), TILE_VALUES / 8);
    fetched();
    measure_v<D, BITS, SEARCH>(j, t, (const uint32_t *)tile, factors, first_token);
    __syncthreads();
    encode_v<D, BITS>(j, t, (const uint32_t *)tile, factors, first_token);
}

/* ---- K ---- */

/* Shared memory of a K tile of W channels, 32 or D, and how its words lie. Chunk 2b + q of the part holds
 * channels 16b + 4i + 2q and + 1 of a token in word i. */
template <int W> struct k_tile {
    uint32_t *words;
    float2 *factors; /* kc: [group of tokens][32 channels]; kt: [token][group of channels] */
    float2 *norms;   /* [token] (n, 1/n) */

    __device__ explicit k_tile(uint4 *memory)
        : words((uint32_t *)memory), factors((float2 *)(memory + PAGE * W / 8)), norms(factors + 4 * PAGE)
    {
    }
    __device__ __forceinline__ uint32_t at(int token, int chunk, int word) const
    {
        if (W == 32) return words[token * 16 + ((chunk ^ (token >> 1 & 3)) << 2) + word];
        return words[word_at<W>(token, chunk, word)];
    }
    __device__ __forceinline__ float2 floats(int token, int chunk, int word, bool norm) const
    {
        float2 x = bs_cuda_floats(at(token, chunk, word));
        if (norm) {
            const float2 n = norms[token];
            x.x = bs_cuda_divide(x.x, n.x, n.y);
            x.y = bs_cuda_divide(x.y, n.x, n.y);
        }
        return x;
    }
};

/* 32 channels from 32·which of all tokens. */
template <int D> static __device__ void fetch_channels(uint4 *tile, const uint4 *part, int which)
{
    for (int i = (int)threadIdx.x; i < PAGE * 4; i += THREADS) {
        const int token = i / 4, chunk = i % 4;
        __pipeline_memcpy_async(tile + token * 4 + (chunk ^ (token >> 1 & 3)),
                                part + token * (D / 8) + ((which * 4 + chunk) ^ (token & 7)), sizeof *tile);
    }
}

/* n and 1/n of all tokens. Word p of a token's 2p-th and next channel is word p % 8 / 2 of chunk 2·(p / 8) +
 * p % 2. */
template <int D> static __device__ void measure_norms(const job &j, const tile_job &t, const k_tile<D> &tile)
{
    enum { LANES = row_place<D>::LANES };
    for (int turn = 0; turn < PAGE / row_place<D>::TOKENS_A_TURN; turn++) {
        const row_place<D> at(turn);
        float even[THREAD_WORDS], odd[THREAD_WORDS];
#pragma unroll
        for (int i = 0; i < THREAD_WORDS; i++) {
            const int p = at.part + LANES * i;
            const float2 x = bs_cuda_floats(tile.at(at.token, p / 8 * 2 + p % 2, p % 8 / 2));
            even[i] = __fmul_rn(x.x, x.x);
            odd[i] = __fmul_rn(x.y, x.y);
        }
        const float sum = finish_sum(halving_sum(even), halving_sum(odd), LANES);
        if (at.part != 0) continue;
        if (!is_finite(sum)) report(j, t, at.token, false);
        const float rms = __fsqrt_rn(__fmul_rn(sum, 1.0f / D));
        const __half n = __float2half_rn(fmaxf(rms, 0x1p-14f));
        tile.norms[at.token] = make_float2(__half2float(n), __frcp_rn(__half2float(n)));
        *(__half *)(t.half + j.layout.k_n + bs_cuda_kv_token_byte(at.token)) = n;
    }
}

/* Groups of channels of a token, all of the part. Dividing by n keeps the order, so it can wait. */
template <int D, int BITS>
static __device__ void measure_k_tokens(const job &j, const tile_job &t, const k_tile<D> &tile)
{
    const int lanes = j.layout.k_group / 32, n_groups = D / j.layout.k_group;
    for (int turn = 0; turn < PAGE / row_place<D>::TOKENS_A_TURN; turn++) {
        const row_place<D> at(turn);
        uint32_t words[THREAD_WORDS];
        read_row<D>(tile.words, at, lanes, words);
        const float2 range = bs_cuda_floats(measure_row(words, lanes));
        float m = range.x, M = -range.y;
        if (at.part % lanes != 0) continue;
        if (!is_finite(m) || !is_finite(M)) report(j, t, at.token, false);
        if (j.layout.k_norm) {
            const float2 n = tile.norms[at.token];
            m = bs_cuda_divide(m, n.x, n.y);
            M = bs_cuda_divide(M, n.x, n.y);
        }
        const bs_cuda_group g = bs_cuda_group_of<BITS>(m, M);
        const int group = at.part / lanes;
        uint8_t *place = t.half + group * 256 + bs_cuda_kv_token_byte(at.token);
        tile.factors[at.token * n_groups + group] = bs_cuda_code_factors<BITS>(g);
        *(uint16_t *)(place + j.layout.k_s) = g.s;
        *(int16_t *)(place + j.layout.k_z) = g.z;
    }
}

/* First token of a group that is not finite in a channel. */
template <int W> static __device__ int bad_token(const k_tile<W> &tile, int first, int chunk, int word, int e)
{
    int token = first;
    while (token < PAGE - 1 && (tile.at(token, chunk, word) >> 16 * e & 0x7c00) != 0x7c00) token++;
    return token;
}

/* Groups of tokens of 32 channels from chunk 4·sub of the tile, 32·channels of the part. A thread reads two
 * channels of 16 tokens, each lane of eight from another token on, so that they meet other banks. */
template <int D, int W, int BITS>
static __device__ void measure_k_channels(const job &j, const tile_job &t, const k_tile<W> &tile, int sub,
                                          int channels)
{
    const int segment = threadIdx.x % 8, word = threadIdx.x / 8 % 4, warp = threadIdx.x / 32;
    const int chunk = 4 * sub + warp, segments = j.layout.k_group / 16, e = segment % 2;
    float m, M;
    if (j.layout.k_norm) {
        float2 low = make_float2(CUDART_INF_F, CUDART_INF_F),
               high = make_float2(-CUDART_INF_F, -CUDART_INF_F);
#pragma unroll 8
        for (int i = 0; i < 16; i++) {
            const float2 x = tile.floats(segment * 16 + (i + segment) % 16, chunk, word, true);
            low = make_float2(fminf(low.x, x.x), fminf(low.y, x.y));
            high = make_float2(fmaxf(high.x, x.x), fmaxf(high.y, x.y));
        }
        for (int mask = 1; mask < segments; mask *= 2) {
            low.x = fminf(low.x, __shfl_xor_sync(0xffffffffu, low.x, mask));
            low.y = fminf(low.y, __shfl_xor_sync(0xffffffffu, low.y, mask));
            high.x = fmaxf(high.x, __shfl_xor_sync(0xffffffffu, high.x, mask));
            high.y = fmaxf(high.y, __shfl_xor_sync(0xffffffffu, high.y, mask));
        }
        m = e ? low.y : low.x;
        M = e ? high.y : high.x;
    } else {
        uint32_t min = tile.at(segment * 16 + segment, chunk, word), max = min;
#pragma unroll
        for (int i = 1; i < 16; i++) {
            const uint32_t x = tile.at(segment * 16 + (i + segment) % 16, chunk, word);
            min = bs_cuda_min(min, x);
            max = bs_cuda_max(max, x);
        }
        for (int mask = 1; mask < segments; mask *= 2) {
            min = bs_cuda_min(min, bs_cuda_shuffle(min, mask));
            max = bs_cuda_max(max, bs_cuda_shuffle(max, mask));
        }
        m = e ? bs_cuda_floats(min).y : bs_cuda_floats(min).x;
        M = e ? bs_cuda_floats(max).y : bs_cuda_floats(max).x;
    }
    if (segment % segments >= 2) return; /* two lanes of a group write, a channel each */
    const int group = segment / segments, channel = warp / 2 * 16 + word * 4 + warp % 2 * 2 + e;
    if (!j.layout.k_norm && !(is_finite(m) && is_finite(M)))
        report(j, t, bad_token(tile, group * j.layout.k_group, chunk, word, e), false);
    const bs_cuda_group g = bs_cuda_group_of<BITS>(m, M);
    tile.factors[group * 32 + channel] = bs_cuda_code_factors<BITS>(g);
    uint8_t *params = t.half + group * 2 * D;
    uint8_t *z = params + j.layout.k_z + bs_cuda_kv_k_channel_z(channels * 32 + channel);
    *(uint16_t *)(params + j.layout.k_s + bs_cuda_kv_k_channel_s(channels * 32 + channel)) = g.s;
    z[0] = (uint8_t)bs_cuda_kv_z_high(g.z);
    z[4] = (uint8_t)bs_cuda_kv_z_low(g.z);
}

/* Codes of 32 channels. A thread takes tokens r and r + 8 of the row tiles that share bytes, and channels 4i
 * … 4i + 3 of both 16 (at 2 bits of one 16): the 16 (or 8) bytes that a lane of attend reads. */
template <int D, int W, int BITS>
static __device__ void encode_k(const job &j, const tile_job &t, const k_tile<W> &tile, int sub, int channels)
{
    enum { FIELDS = 8 / BITS, BLOCKS = PAGE / 16 / FIELDS, HALVES = BITS == 2 ? 1 : 2 };
    const int r = threadIdx.x % 32 / 4, i = threadIdx.x % 4, n_groups = D / j.layout.k_group;
    const bool kc = j.layout.k_per_channel, norm = j.layout.k_norm;
    for (int turn = (int)threadIdx.x / 32; turn < BLOCKS * (2 / HALVES); turn += WARPS) {
        const int block = turn % BLOCKS, h0 = turn / BLOCKS;
        uint32_t out[2 * HALVES] = {};
        float4 of_channels[HALVES][2];
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
            const int row_tile = block * FIELDS + field;
#pragma unroll
            for (int hq = 0; kc && field % 2 == 0 && hq < 2 * HALVES; hq++)
                of_channels[hq / 2][hq % 2] = *(const float4 *)(tile.factors +
                                                                row_tile * 16 / j.layout.k_group * 32 +
                                                                (h0 + hq / 2) * 16 + i * 4 + hq % 2 * 2);
#pragma unroll
            for (int w = 0; w < 2; w++) {
                const int token = row_tile * 16 + w * 8 + r;
                float2 f = {};
                if (!kc) f = tile.factors[token * n_groups + channels * 32 / j.layout.k_group];
#pragma unroll
                for (int h = 0; h < HALVES; h++) {
                    uint32_t pair[2];
#pragma unroll
                    for (int q = 0; q < 2; q++) {
                        const float2 x = tile.floats(token, 4 * sub + (h0 + h) * 2 + q, i, norm);
                        const float4 c = of_channels[h][q];
                        pair[q] = __byte_perm(bs_cuda_code_bits<BITS>(x.x, kc ? make_float2(c.x, c.y) : f),
                                              bs_cuda_code_bits<BITS>(x.y, kc ? make_float2(c.z, c.w) : f),
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
template <int D, int BITS>
static __device__ void quantize_k_channels(const job &j, const tile_job &t, uint4 *memory, int channels)
{
    const k_tile<TILE_CHANNELS> tile(memory);
    fetch_channels<D>(memory, t.part, channels);
    fetched();
    measure_k_channels<D, TILE_CHANNELS, BITS>(j, t, tile, 0, channels);
    __syncthreads();
    encode_k<D, TILE_CHANNELS, BITS>(j, t, tile, 0, channels);
}

/* A whole part of K: kt, or norm. */
template <int D, int BITS>
static __device__ void quantize_k_whole(const job &j, const tile_job &t, uint4 *memory)
{
    const k_tile<D> tile(memory);
    fetch(memory, t.part, PAGE * D / 8);
    fetched();
    if (j.layout.k_norm) {
        measure_norms<D>(j, t, tile);
        __syncthreads();
    }
    if (!j.layout.k_per_channel) measure_k_tokens<D, BITS>(j, t, tile);
    for (int sub = 0; sub < D / 32; sub++) {
        if (j.layout.k_per_channel) measure_k_channels<D, D, BITS>(j, t, tile, sub, sub);
        __syncthreads();
        encode_k<D, D, BITS>(j, t, tile, sub, sub);
        __syncthreads(); /* the factors are written again */
    }
}

template <int D, int BITS>
static __device__ void quantize_k(const job &j, const tile_job &t, uint4 *memory, int which)
{
    if (j.k_tiles == 1) quantize_k_whole<D, BITS>(j, t, memory);
    else quantize_k_channels<D, BITS>(j, t, memory, which);
}

/* ---- launch ---- */

template <int D, bool SEARCH>
static __global__ void __launch_bounds__(THREADS, SEARCH ? 6 : 8) quantize_kernel(job j)
{
    extern __shared__ uint4 memory[];
    const int tiles = j.k_tiles + j.v_tiles, tile = (int)blockIdx.x % tiles, unit = (int)blockIdx.x / tiles;
    const int heads = j.layout.n_layers * j.layout.n_kv_heads, page = unit / heads, head = unit % heads;
    const bool is_v = tile >= j.k_tiles;
    tile_job t;
    t.layer = head / j.layout.n_kv_heads;
    t.kv_head = head % j.layout.n_kv_heads;
    t.slot = j.f16_slot[page];
    t.part = (const uint4 *)(j.f16_pool + bs_cuda_kv_f16_at(&j.layout, t.slot, t.layer, t.kv_head, is_v));
    t.half = j.quant_pool + bs_cuda_kv_record_at(&j.layout, j.quant_slot[page], t.layer, t.kv_head);
    if (!is_v) {
        if (j.layout.k_bits == 8) quantize_k<D, 8>(j, t, memory, tile);
        else if (j.layout.k_bits == 4) quantize_k<D, 4>(j, t, memory, tile);
        else quantize_k<D, 2>(j, t, memory, tile);
        return;
    }
    t.half += j.layout.k_half;
    const int first_token = (tile - j.k_tiles) * (TILE_VALUES / D);
    if (SEARCH) quantize_v<D, 2, true>(j, t, memory, first_token);
    else if (j.layout.v_bits == 8) quantize_v<D, 8, false>(j, t, memory, first_token);
    else if (j.layout.v_bits == 4) quantize_v<D, 4, false>(j, t, memory, first_token);
    else quantize_v<D, 2, false>(j, t, memory, first_token);
}

template <int D> static void launch(const job &j, bool search, unsigned n_tiles, cudaStream_t stream)
{
    /* The tile, factors of 128 tokens x 4 groups, or of 32 channels x 4; norms. */
    const bool whole = j.k_tiles == 1;
    const size_t bytes = whole ? PAGE * D * 2 + 5 * PAGE * sizeof(float2)
                               : TILE_VALUES * 2 + PAGE * sizeof(float2);
    if (search) quantize_kernel<D, true><<<n_tiles, THREADS, bytes, stream>>>(j);
    else quantize_kernel<D, false><<<n_tiles, THREADS, bytes, stream>>>(j);
}

bs_status bs_cuda_quantize(bs_stream *stream, const bs_quantize_args *args)
{
    const bs_kv_pools *pools = args->pools;
    const bs_kv_format *format = &pools->shape->format;
    job j;
    j.layout = bs_cuda_kv_layout_of(pools->shape);
    j.f16_pool = (const uint8_t *)pools->f16_pool;
    j.quant_pool = (uint8_t *)pools->quant_pool;
    j.f16_slot = args->f16_slot;
    j.quant_slot = args->quant_slot;
    j.fault = bs_cuda_stream_fault(stream);
    j.k_tiles = format->k_per_channel && !format->k_norm ? pools->shape->head_dim / TILE_CHANNELS : 1;
    j.v_tiles = PAGE * pools->shape->head_dim / TILE_VALUES;
    const int64_t n_tiles = (int64_t)args->n_pages * j.layout.n_layers * j.layout.n_kv_heads *
                            (j.k_tiles + j.v_tiles);
    if (n_tiles > MAX_GRID)
        return bs_fail(BS_STATUS_RANGE, "quantize: %d pages are too many for one launch", args->n_pages);
    const bool search = format->v_bits == 2 && format->v_encoder == BS_V_ENCODER_LEAST_SQUARES;
    if (pools->shape->head_dim == 128) launch<128>(j, search, (unsigned)n_tiles, bs_cuda_stream(stream));
    else launch<64>(j, search, (unsigned)n_tiles, bs_cuda_stream(stream));
    return bs_cuda_launched("quantize");
}
