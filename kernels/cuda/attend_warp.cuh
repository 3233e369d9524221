/* attend_warp.cuh: the arithmetic of one warp over one page: scores, softmax, weighted sum, on integer tensor
 * cores.
 *
 * Codes c are the 16-row operand of mma.m16n8k32 as unsigned bytes; the 8 columns hold the factors, split
 * into two signed or unsigned bytes each, so that a factor has 15 or 16 bits and every sum is exact in int32.
 * R = 4: columns 2i and 2i + 1 are the high and low byte of row i; R = 8: a column a row, high and low in two
 * MMAs. A lane (4·r + i) meets the scores of rows i (R = 4) or 2i, 2i + 1 (R = 8) for tokens r + 8j.
 *
 * K per channel, x = s·(c + z/16): a_d = q_d·s_d is rounded once to unit·(h + l/254), unit a power of two
 * with |h| ≤ 120, and the *rounded* factor multiplies both c and z:
 *     S = unit/254 · (Σ (254 h + l) c + Σ (254 h + l) z / 16)
 * K per token: the same with s = 1, once a job (attend_put_factors), and s, z enter the score.
 *
 * V: w_t = p_t·s_t is rounded once to a 16-bit n_t = 256·high + low, p_t = 2^(S_t − max of the page) ≤ 1, in
 * units of 2^(e − 16), 2^e above every s of the page:
 *     O = unit · (Σ n c + Σ n z / 16)
 */
#ifndef BS_CUDA_ATTEND_WARP_CUH
#define BS_CUDA_ATTEND_WARP_CUH

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attend_ptx.cuh"

#define BS_LOG2E 1.4426950408889634f

/* Every variable of a warp that lives across pages. */
template <int D, int R, bool G32> struct attend_state {
    static constexpr int NR = R == 4 ? 1 : 2;        /* rows whose scores this lane holds */
    static constexpr int NG = G32 ? D / 32 : D / 64; /* groups of V at most */
    uint32_t q;              /* shared address of this lane's part of its column's q (attend_q_at) */
    float gain[NR];          /* of q: true q·scale·log2 e = q · gain */
    float m[NR], l[NR];      /* running maximum (log2), and this lane's part of the sum */
    float o[D / 16][2 * NR]; /* channels 16t + r, then + 8; of each NR rows */
    float zero[NG][NR];      /* what V's zeros add to all channels of a group */
};

/* Row tiles whose sums are made together: they share the words of their codes and surely a group; with 8 rows
 * no more than registers hold. */
static __host__ __device__ constexpr int attend_part(int fields, int rows, bool g32)
{
    return fields > 2 && (g32 || rows == 8) ? 2 : fields;
}

static __device__ __forceinline__ uint4 and4(uint4 a, uint32_t mask)
{
    return make_uint4(a.x & mask, a.y & mask, a.z & mask, a.w & mask);
}

/* Field `field` of the codes, as an operand scaled by 2^(field · BITS). RAW: the last field comes with the
 * others below it, whose sums are then taken off (below_top): three operations on sums for sixteen on codes.
 */
template <int BITS, bool RAW> static __device__ __forceinline__ uint4 field_of(uint4 codes, int field)
{
    if (BITS == 8 || (RAW && field == 8 / BITS - 1)) return codes;
    return and4(codes, (BITS == 4 ? 0x0f0f0f0fu : 0x03030303u) << (field * BITS));
}

static __device__ __forceinline__ float max_over_rows(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 16));
}

static __device__ __forceinline__ float sum_over_rows(float x)
{
    x += __shfl_xor_sync(~0u, x, 4);
    x += __shfl_xor_sync(~0u, x, 8);
    return x + __shfl_xor_sync(~0u, x, 16);
}

/* ---- q ---- */

/* q of a job lies in shared memory as fp16 in [−1, 1], 2·D bytes a row; lane (r, i) of column r needs the
 * channels 32k + 4i + 0 … 3 and + 16, 16 bytes for each k. They are at attend_q_at(row, i) with bits 4 and 5
 * turned by k, so that the 8 lanes of a phase meet 8 different banks. */
template <int D> static __device__ __forceinline__ uint32_t attend_q_at(uint32_t rows, int row, int i)
{
    const int twist = D == 128 ? (i >> 1) ^ (row & 1) << 1 : row & 1;
    return rows + (uint32_t)(row * 2 * D + i * (D / 2) + twist * 16);
}

template <int D> static __device__ __forceinline__ void attend_get_q(uint32_t at, uint4 (&q)[D / 32])
{
#pragma unroll
    for (int k = 0; k < D / 32; k++) q[k] = load_shared(at ^ (uint32_t)(16 * k));
}

static __device__ __forceinline__ __half2 word_of(const uint4 &v, int x)
{
    return half2_of(x == 0 ? v.x : x == 1 ? v.y : x == 2 ? v.z : v.w);
}

/* Words of a column's factors that one lane makes, in k tiles: with R = 4 the two lanes of a row, of its high
 * and its low column, make half of them each, both terms, and exchange what is not theirs. */
static __host__ __device__ constexpr int split_tiles(int dim, int rows)
{
    return dim / (rows == 4 ? 64 : 32);
}

/* First k tile of this lane's. */
template <int D, int R> static __device__ __forceinline__ uint32_t split_first()
{
    return R == 4 && (threadIdx.x & 4) ? D / 64 : 0;
}

/* Largest |q·s| of a row. */
template <int D, int R>
static __device__ __forceinline__ float largest_factor(const uint4 (&q)[split_tiles(D, R)],
                                                       const uint4 (&s)[split_tiles(D, R)])
{
    __half2 m2 = half2_splat(0);
#pragma unroll
    for (int k = 0; k < split_tiles(D, R); k++)
#pragma unroll
        for (int x = 0; x < 4; x++) m2 = __hmax2(m2, __habs2(__hmul2(word_of(q[k], x), word_of(s[k], x))));
    float most = fmaxf(__low2float(m2), __high2float(m2));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    return R == 4 ? fmaxf(most, __shfl_xor_sync(~0u, most, 4)) : most;
}

/* The factors of one group of K as bytes: w[0] high (R = 8) or this column's term (R = 4), w[1] low. s: of
 * this lane's k tiles, ones where K has no scale a channel. Returns unit / 254. */
template <int D, int R>
static __device__ __forceinline__ float split_q(uint32_t q_at, uint4 (&s)[split_tiles(D, R)],
                                                uint32_t (&w)[R == 4 ? 1 : 2][D / 32][2])
{
    constexpr int TILES = split_tiles(D, R);
    const uint32_t mine = q_at ^ 16 * split_first<D, R>();
    uint4 q[TILES];
#pragma unroll
    for (int k = 0; k < TILES; k++) q[k] = load_shared(mine ^ (uint32_t)(16 * k));
    float most = largest_factor<D, R>(q, s), more = 1.f / 254;
    if (__any_sync(~0u, most > 3800.f)) { /* beyond the magic numbers below: a smaller s, all columns alike */
        const __half2 less = half2_splat(0x2400); /* 2^-6 */
#pragma unroll
        for (int k = 0; k < TILES; k++)
            s[k] = make_uint4(
                bits_of(__hmul2(word_of(s[k], 0), less)), bits_of(__hmul2(word_of(s[k], 1), less)),
                bits_of(__hmul2(word_of(s[k], 2), less)), bits_of(__hmul2(word_of(s[k], 3), less)));
        most *= 1.f / 64;
        more = 64.f / 254;
    }
    /* 2^e > most / 120, so |a| / 2^e < 120. 1536·2^e rounds a to a multiple h of 2^e, and its low byte is h;
     * what is left, less than half of 2^e, is exact in fp16, and 254 times it over 2^e is l. */
    int e = (__float_as_int(most * (1.f / 120)) >> 23) - 126;
    e = max(-16, min(5, e));
    const __half2 high = half2_splat((uint32_t)((25 + e) << 10 | 0x200));
    const __half2 low = half2_splat((uint32_t)((17 + e) << 10 | 0x200)); /* 6·2^e */
    const __half2 grow = half2_splat(0x3bf0);                            /* 254 / 256 */
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        uint32_t h[4], l[4];
#pragma unroll
        for (int x = 0; x < 4; x++) {
            const __half2 a = word_of(q[k], x), f = word_of(s[k], x);
            const __half2 t = __hfma2(a, f, high);
            const __half2 rest = __hfma2(a, f, __hsub2(high, t));
            h[x] = bits_of(t);
            l[x] = bits_of(__hfma2(rest, grow, low));
        }
#pragma unroll
        for (int x = 0; x < 2; x++) {
            const uint32_t hs = __byte_perm(h[2 * x], h[2 * x + 1], 0x6420);
            const uint32_t ls = __byte_perm(l[2 * x], l[2 * x + 1], 0x6420);
            if constexpr (R == 4) {
                const bool is_low = threadIdx.x & 4;
                const uint32_t other = __shfl_xor_sync(~0u, is_low ? hs : ls, 4);
                w[0][k][x] = is_low ? other : hs;
                w[0][k + TILES][x] = is_low ? ls : other;
            } else {
                w[0][k][x] = hs;
                w[1][k][x] = ls;
            }
        }
    }
    return __int_as_float((127 + e) << 23) * more;
}

/* K per token: its factors are q alone, the same for all pages. One warp leaves each lane's words and unit. */
template <int D, int R>
static __device__ __forceinline__ void attend_put_factors(uint32_t rows, uint4 (*factors)[32], float *units)
{
    const int lane = threadIdx.x & 31;
    uint32_t w[R == 4 ? 1 : 2][D / 32][2];
    uint4 s[split_tiles(D, R)];
#pragma unroll
    for (int k = 0; k < split_tiles(D, R); k++)
        s[k] = make_uint4(0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u);
    units[lane] = split_q<D, R>(attend_q_at<D>(rows, (lane >> 2) / (R == 4 ? 2 : 1), lane & 3), s, w);
#pragma unroll
    for (int k = 0; k < D / 32; k += 2)
#pragma unroll
        for (int x = 0; x < (R == 4 ? 1 : 2); x++)
            factors[x * (D / 64) + k / 2][lane] = make_uint4(w[x][k][0], w[x][k][1], w[x][k + 1][0],
                                                             w[x][k + 1][1]);
}

/* split_q is done per column; scores need the unit of their own rows. */
template <int R> static __device__ __forceinline__ void unit_of_rows(float unit, float *mine)
{
    const int i = threadIdx.x & 3;
    mine[0] = __shfl_sync(~0u, unit, 8 * i);
    if (R == 8) mine[R == 8 ? 1 : 0] = __shfl_sync(~0u, unit, 8 * i + 4);
}

/* ---- scores of a quantized page ---- */

/* BASE·high + low of a tile's accumulators: [row of the tile: r, r + 8][my rows]. K's factors are in base 254, V's in
 * base 256. */
template <int R, int BASE>
static __device__ __forceinline__ void join(const int a[4], const int b[4], int n[2 * (R == 4 ? 1 : 2)])
{
    if (R == 4) {
        n[0] = a[0] * BASE + a[1];
        n[1] = a[2] * BASE + a[3];
    } else {
#pragma unroll
        for (int x = 0; x < (R == 4 ? 2 : 4); x++) n[x] = a[x] * BASE + b[x];
    }
}

/* Takes the sums of the fields below it off the sums of the top field. */
template <int PART, int N> static __device__ __forceinline__ void below_top(int (&sums)[PART][4])
{
#pragma unroll
    for (int j = 0; j < PART - 1; j++)
#pragma unroll
        for (int x = 0; x < N; x++) sums[PART - 1][x] -= sums[j][x];
}

/* Σ factor · z / 16 of my rows, in units of the joined sums. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void k_zeros(uint32_t at, const uint32_t (&w)[R == 4 ? 1 : 2][D / 32][2],
                                               float *bias)
{
    int a[4], b[4], n[4];
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        const uint4 z = load_shared(at + 64 * k + 16 * (threadIdx.x & 3));
        (k == 0 ? imma_ss_0 : imma_ss)(a, z, w[0][k][0], w[0][k][1]);
        if (R == 8) (k == 0 ? imma_ss_0 : imma_ss)(b, z, w[R == 4 ? 0 : 1][k][0], w[R == 4 ? 0 : 1][k][1]);
    }
    join<R, 254>(a, b, n); /* rows 0 … 7: high bytes of z, rows 8 … 15: low bytes */
    constexpr int NR = R == 4 ? 1 : 2;
#pragma unroll
    for (int x = 0; x < NR; x++) bias[x] = fmaf((float)n[x], 16.f, (float)n[NR + x] * 0.0625f);
}

template <int KB, int D, int R, bool G32>
static __device__ __forceinline__ void k_scores_per_channel(attend_state<D, R, G32> &st, uint32_t half,
                                                            const bs_cuda_kv_layout &l,
                                                            float (&sc)[8][2 * (R == 4 ? 1 : 2)])
{
    constexpr int NR = R == 4 ? 1 : 2, F = 8 / KB;
    constexpr int PART = attend_part(F, R, G32);
    constexpr bool RAW = F > 1 && PART == F;
    const int lane = threadIdx.x & 31;
    uint32_t w[R == 4 ? 1 : 2][D / 32][2];
    float factor[NR], bias[NR];
#pragma unroll
    for (int t0 = 0; t0 < 8; t0 += PART) {
        const bool fresh = G32 ? t0 * 16 % 32 == 0 : t0 == 0 || (t0 == 4 && l.k_group == 64);
        if (fresh) {
            if (G32) __syncwarp(); /* or ptxas makes the next groups' factors early, and spills */
            const uint32_t group = G32 ? t0 / 2 : t0 / 4;
            uint4 s[split_tiles(D, R)];
#pragma unroll
            for (int k = 0; k < split_tiles(D, R); k++)
                s[k] = load_shared(half + l.k_s + group * 2 * D + 64 * (split_first<D, R>() + k) +
                                   16 * (lane & 3));
            const float unit = split_q<D, R>(st.q, s, w);
            k_zeros<D, R, G32>(half + l.k_z + group * 2 * D, w, bias);
            unit_of_rows<R>(unit, factor);
#pragma unroll
            for (int x = 0; x < NR; x++) {
                factor[x] *= st.gain[x];
                bias[x] *= factor[x];
            }
        }
        int a[PART][4], b[PART][4];
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            const uint4 codes = load_shared(half + ((uint32_t)(t0 / F * (D / 32) + k) * 32 + lane) * 16);
#pragma unroll
            for (int j = 0; j < PART; j++) {
                const uint4 c = field_of<KB, RAW>(codes, (t0 + j) % F);
                (k == 0 ? imma_us_0 : imma_us)(a[j], c, w[0][k][0], w[0][k][1]);
                if (R == 8)
                    (k == 0 ? imma_us_0 : imma_us)(b[j], c, w[R == 4 ? 0 : 1][k][0], w[R == 4 ? 0 : 1][k][1]);
            }
        }
        int sums[PART][4];
#pragma unroll
        for (int j = 0; j < PART; j++) join<R, 254>(a[j], b[j], sums[j]);
        if (RAW) below_top<PART, 2 * NR>(sums);
#pragma unroll
        for (int j = 0; j < PART; j++) {
            const int *n = sums[j];
            const float shrink = 1.f / (1 << ((t0 + j) % F * KB));
#pragma unroll
            for (int x = 0; x < 2 * NR; x++)
                sc[t0 + j][x] = fmaf((float)n[x], factor[x % NR] * shrink, bias[x % NR]);
        }
    }
}

/* Value j of 16 fp16 in token order. */
static __device__ __forceinline__ float token_half(const uint4 v[2], int j)
{
    const uint32_t words[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
    const __half2 pair = half2_of(words[j / 2]);
    return j % 2 ? __high2float(pair) : __low2float(pair);
}

static __device__ __forceinline__ float token_int16(const uint4 v[2], int j)
{
    const uint32_t words[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
    return (float)((int)(words[j / 2] << (j % 2 ? 0 : 16)) >> 16);
}

static __device__ __forceinline__ void load_token_order(uint32_t at, uint4 v[2])
{
    const uint32_t mine = at + 32 * (threadIdx.x >> 2 & 7);
    v[0] = load_shared(mine);
    v[1] = load_shared(mine + 16);
}

template <int KB, int D, int R, bool G32>
static __device__ __forceinline__ void
k_scores_per_token(attend_state<D, R, G32> &st, uint32_t half, const bs_cuda_kv_layout &l, uint32_t factors,
                   const float *units, float (&sc)[8][2 * (R == 4 ? 1 : 2)])
{
    constexpr int NR = R == 4 ? 1 : 2, F = 8 / KB;
    const int lane = threadIdx.x & 31, tiles_of_group = l.k_group / 32;
    uint32_t w[R == 4 ? 1 : 2][D / 32][2];
    float factor[NR];
#pragma unroll
    for (int k = 0; k < D / 32; k += 2)
#pragma unroll
        for (int x = 0; x < (R == 4 ? 1 : 2); x++) {
            const uint4 f = load_shared(factors + (uint32_t)((x * (D / 64) + k / 2) * 32 + lane) * 16);
            w[x][k][0] = f.x, w[x][k][1] = f.y, w[x][k + 1][0] = f.z, w[x][k + 1][1] = f.w;
        }
    const float unit = units[lane];
    unit_of_rows<R>(unit, factor);
#pragma unroll
    for (int x = 0; x < NR; x++) factor[x] *= st.gain[x];
#pragma unroll
    for (int t = 0; t < 8; t++)
#pragma unroll
        for (int x = 0; x < 2 * NR; x++) sc[t][x] = 0;
    int qa[4] = {}, qb[4] = {}; /* Σ factor of the group so far: ones for codes */
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        const uint4 ones = make_uint4(0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u);
        imma_us(qa, ones, w[0][k][0], w[0][k][1]);
        if (R == 8) imma_us(qb, ones, w[R == 4 ? 0 : 1][k][0], w[R == 4 ? 0 : 1][k][1]);
        /* A group's tiles are summed one by one in the scores: exact sums per k tile, scaled by the group's
         * s. */
        const uint32_t group = (uint32_t)(k / tiles_of_group);
        uint4 s[2], z[2];
        load_token_order(half + l.k_s + group * 256, s);
        load_token_order(half + l.k_z + group * 256, z);
        int total[4];
        join<R, 254>(qa, qb, total);
        const bool last = (k + 1) % tiles_of_group == 0;
#pragma unroll
        for (int t0 = 0; t0 < 8; t0 += F) {
            const uint4 codes = load_shared(half + ((uint32_t)(t0 / F * (D / 32) + k) * 32 + lane) * 16);
#pragma unroll
            for (int j = 0; j < F; j++) {
                const uint4 c = field_of<KB, false>(codes, j);
                int a[4], b[4], n[4];
                imma_us_0(a, c, w[0][k][0], w[0][k][1]);
                if (R == 8) imma_us_0(b, c, w[R == 4 ? 0 : 1][k][0], w[R == 4 ? 0 : 1][k][1]);
                join<R, 254>(a, b, n);
                const float shrink = 1.f / (1 << (j * KB));
#pragma unroll
                for (int x = 0; x < 2 * NR; x++) {
                    const int token = 2 * (t0 + j) + x / NR;
                    float sum = (float)n[x] * shrink;
                    if (last) sum = fmaf(token_int16(z, token) * 0.0625f, (float)total[x % NR], sum);
                    sc[t0 + j][x] = fmaf(token_half(s, token) * factor[x % NR], sum, sc[t0 + j][x]);
                }
            }
        }
        if (last) {
#pragma unroll
            for (int x = 0; x < 4; x++) qa[x] = qb[x] = 0;
        }
    }
}

template <int R>
static __device__ __forceinline__ void apply_norm(uint32_t at, float (&sc)[8][2 * (R == 4 ? 1 : 2)])
{
    constexpr int NR = R == 4 ? 1 : 2;
    uint4 n[2];
    load_token_order(at, n);
#pragma unroll
    for (int t = 0; t < 8; t++)
#pragma unroll
        for (int x = 0; x < 2 * NR; x++) sc[t][x] *= token_half(n, 2 * t + x / NR);
}

/* ---- softmax ---- */

/* Raises the running maximum of my rows to at least `seen`. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void raise_maximum(attend_state<D, R, G32> &st, const float *seen)
{
    constexpr int NR = R == 4 ? 1 : 2;
    bool grows = false;
#pragma unroll
    for (int x = 0; x < NR; x++) grows |= seen[x] > st.m[x];
    if (!__any_sync(~0u, grows)) return;
#pragma unroll
    for (int x = 0; x < NR; x++) {
        const float m = fmaxf(st.m[x], seen[x]);
        const float alpha = st.m[x] == -INFINITY ? 0 : exp2_fast(st.m[x] - m); /* l and o are 0 before */
        st.m[x] = m;
        st.l[x] *= alpha;
#pragma unroll
        for (int t = 0; t < D / 16; t++) {
            st.o[t][x] *= alpha;
            st.o[t][NR + x] *= alpha;
        }
#pragma unroll
        for (int g = 0; g < st.NG; g++) st.zero[g][x] *= alpha;
    }
}

/* Scores become p = 2^(score − largest of the page); returns what p counts against the running maximum. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void softmax_page(attend_state<D, R, G32> &st,
                                                    float (&sc)[8][2 * (R == 4 ? 1 : 2)], float *weight)
{
    constexpr int NR = R == 4 ? 1 : 2;
    float most[NR];
#pragma unroll
    for (int x = 0; x < NR; x++) {
        most[x] = fmaxf(sc[0][x], sc[0][NR + x]);
#pragma unroll
        for (int t = 1; t < 8; t++) most[x] = fmaxf(most[x], fmaxf(sc[t][x], sc[t][NR + x]));
        most[x] = max_over_rows(most[x]);
    }
    raise_maximum(st, most);
#pragma unroll
    for (int x = 0; x < NR; x++) {
        const float base = most[x] == -INFINITY ? 0 : most[x];
        float sum = 0;
#pragma unroll
        for (int t = 0; t < 8; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sc[t][h * NR + x] = exp2_fast(sc[t][h * NR + x] - base);
                sum += sc[t][h * NR + x];
            }
        weight[x] = most[x] == -INFINITY ? 0 : exp2_fast(most[x] - st.m[x]);
        /* Nothing visible: sum is 0, or NaN if a q was; NaN must get through. */
        st.l[x] = fmaf(most[x] == -INFINITY ? 1 : weight[x], sum, st.l[x]);
    }
}

/* ---- weighted sum over a quantized page ---- */

/* Where the 16 bytes of column `column`, row r of the score tiles, lie in a plane of 1 KB: free of bank
 * conflicts for the stores (16 bytes of each of 4 columns and 2 rows together) and the loads (2 columns, 4
 * rows). */
static __device__ __forceinline__ uint32_t weight_place(int column, int r)
{
    const int chunk = (r & 1) * 4 + (r >> 1), twist = column >> 1 | (column & 1) << 2;
    return (uint32_t)(column * 128 + (chunk ^ twist) * 16);
}

/* This lane's places in its warp's planes: of row r in column 2i, and of its operands: column r, row 2i. The
 * next column is 128 further with bit 6 turned, the next row has bit 6 turned. */
typedef struct attend_weights {
    uint32_t store, load;
} attend_weights;

static __device__ __forceinline__ attend_weights weights_at(uint32_t planes)
{
    const int r = threadIdx.x >> 2 & 7, i = threadIdx.x & 3;
    return {planes + weight_place(2 * i, r), planes + weight_place(r, 2 * i)};
}

/* n_t of one group of V, as operands of its MMAs: high[κ] and low[κ] (R = 8), or this column's term in high
 * (R = 4). Adds the zeros' part. Returns unit: 2^(e − 16). */
template <int D, int R, bool G32>
static __device__ __forceinline__ float
split_weights(const float (&p)[8][2 * (R == 4 ? 1 : 2)], uint32_t s_at, uint32_t z_at, uint32_t visible,
              attend_weights buffer, uint32_t (&high)[4][2], uint32_t (&low)[4][2], float *zero)
{
    constexpr int NR = R == 4 ? 1 : 2;
    const int i = threadIdx.x & 3;
    uint4 s[2];
    load_token_order(s_at, s);
    if (visible != 0xffffu) { /* what nobody may see may be anything */
        uint32_t *words = reinterpret_cast<uint32_t *>(s);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (!(visible >> (2 * j) & 1)) words[j] &= 0xffff0000u;
            if (!(visible >> (2 * j + 1) & 1)) words[j] &= 0x0000ffffu;
        }
    }
    __half2 most = __hmax2(
        __hmax2(__hmax2(half2_of(s[0].x), half2_of(s[0].y)), __hmax2(half2_of(s[0].z), half2_of(s[0].w))),
        __hmax2(__hmax2(half2_of(s[1].x), half2_of(s[1].y)), __hmax2(half2_of(s[1].z), half2_of(s[1].w))));
    uint32_t top = max(bits_of(most) & 0xffff, bits_of(most) >> 16); /* all ≥ 0: their bits are in order */
    top = __reduce_max_sync(~0u, top);
    const int e = (int)(top >> 10) - 14;
    const float magic = __int_as_float((134 + e) << 23 | 0x400000); /* 1.5·2^(7+e): an ulp is 2^(e-16) */
    __syncwarp();
#pragma unroll
    for (int x = 0; x < NR; x++) {
        uint32_t lo[4], hi[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t n[4];
#pragma unroll
            for (int y = 0; y < 4; y++) {
                const int j = 4 * k + y;
                n[y] = __float_as_uint(fmaf(p[j / 2][j % 2 * NR + x], token_half(s, j), magic));
            }
            const uint32_t even = __byte_perm(n[0], n[1], 0x5140), odd = __byte_perm(n[2], n[3], 0x5140);
            lo[k] = __byte_perm(even, odd, 0x5410);
            hi[k] = __byte_perm(even, odd, 0x7632);
        }
        const uint32_t next = (buffer.store + 128) ^ 64; /* of column + 1 */
        store_shared(R == 8 && x == 1 ? next : buffer.store, make_uint4(hi[0], hi[1], hi[2], hi[3]));
        store_shared(R == 4 ? next : 1024 + (x == 1 ? next : buffer.store),
                     make_uint4(lo[0], lo[1], lo[2], lo[3]));
    }
    __syncwarp();
    const uint32_t from = buffer.load, from1 = buffer.load ^ 64;
    const uint4 even = load_shared(from), odd = load_shared(from1);
    high[0][0] = even.x, high[0][1] = even.y, high[1][0] = even.z, high[1][1] = even.w;
    high[2][0] = odd.x, high[2][1] = odd.y, high[3][0] = odd.z, high[3][1] = odd.w;
    if (R == 8) {
        const uint4 even1 = load_shared(1024 + from), odd1 = load_shared(1024 + from1);
        low[0][0] = even1.x, low[0][1] = even1.y, low[1][0] = even1.z, low[1][1] = even1.w;
        low[2][0] = odd1.x, low[2][1] = odd1.y, low[3][0] = odd1.z, low[3][1] = odd1.w;
    }
    int a[4], b[4], n[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint4 z = load_shared(z_at + 64 * k + 16 * i);
        (k == 0 ? imma_su_0 : imma_su)(a, z, high[k][0], high[k][1]);
        if (R == 8) (k == 0 ? imma_su_0 : imma_su)(b, z, low[k][0], low[k][1]);
    }
    join<R, 256>(a, b, n);
#pragma unroll
    for (int x = 0; x < NR; x++) zero[x] = fmaf((float)n[x], 16.f, (float)n[NR + x] * 0.0625f);
    return __int_as_float((127 - 16 + e) << 23);
}

/* visible: bit j says that anybody sees token r + 8j. */
template <int VB, int D, int R, bool G32>
static __device__ __forceinline__ void
v_sum(attend_state<D, R, G32> &st, uint32_t half, const bs_cuda_kv_layout &l,
      const float (&p)[8][2 * (R == 4 ? 1 : 2)], const float *weight, uint32_t visible, attend_weights buffer)
{
    constexpr int NR = R == 4 ? 1 : 2, F = 8 / VB;
    constexpr int PART = attend_part(F, R, G32);
    constexpr bool RAW = F > 1 && PART == F;
    const int lane = threadIdx.x & 31;
    uint32_t high[4][2], low[4][2];
    float factor[NR];
#pragma unroll
    for (int t0 = 0; t0 < D / 16; t0 += PART) {
        const bool fresh = G32 ? t0 % 2 == 0 : t0 == 0 || (t0 == 4 && l.v_group == 64);
        if (fresh) {
            const int group = G32 ? t0 / 2 : t0 / 4;
            float zero[NR];
            const float unit = split_weights<D, R, G32>(
                p, half + l.v_s + group * 256, half + l.v_z + group * 256, visible, buffer, high, low, zero);
#pragma unroll
            for (int x = 0; x < NR; x++) {
                factor[x] = weight[x] * unit;
                st.zero[group][x] = fmaf(factor[x], zero[x], st.zero[group][x]);
            }
        }
        int a[PART][4], b[PART][4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint4 codes = load_shared(half + ((uint32_t)(t0 / F * 4 + k) * 32 + lane) * 16);
#pragma unroll
            for (int j = 0; j < PART; j++) {
                const uint4 c = field_of<VB, RAW>(codes, (t0 + j) % F);
                (k == 0 ? imma_uu_0 : imma_uu)(a[j], c, high[k][0], high[k][1]);
                if (R == 8) (k == 0 ? imma_uu_0 : imma_uu)(b[j], c, low[k][0], low[k][1]);
            }
        }
        int sums[PART][4];
#pragma unroll
        for (int j = 0; j < PART; j++) join<R, 256>(a[j], b[j], sums[j]);
        if (RAW) below_top<PART, 2 * NR>(sums);
#pragma unroll
        for (int j = 0; j < PART; j++) {
            const int *n = sums[j];
            const float shrink = 1.f / (1 << ((t0 + j) % F * VB));
#pragma unroll
            for (int x = 0; x < 2 * NR; x++)
                st.o[t0 + j][x] = fmaf((float)n[x], factor[x % NR] * shrink, st.o[t0 + j][x]);
        }
    }
}

/* ---- 16 tokens of an f16 page ---- */

/* k, v: shared addresses of the first token's row, `position` its place in the sequence. My row x sees
 * positions lo[x] … hi[x] − 1, anybody any_lo … any_hi − 1. */
template <int D, int R, bool G32>
static __device__ __forceinline__ void f16_tile(attend_state<D, R, G32> &st, uint32_t k, uint32_t v,
                                                const int *lo, const int *hi, int any_lo, int any_hi,
                                                int position)
{
    constexpr int NR = R == 4 ? 1 : 2;
    const int lane = threadIdx.x & 31, r = lane >> 2;
    float c[4] = {};
    {
        const int row = lane & 15;
        uint4 q[D / 32];
        attend_get_q<D>(st.q, q);
#pragma unroll
        for (int u = 0; u < D / 16; u++) {
            const int chunk = (2 * u + (lane >> 4)) ^ (row & 7);
            const uint4 a = load_matrices(k + (uint32_t)(row * 2 * D + chunk * 16));
            if (u % 2 == 0) hmma(c, a, q[u / 2].x, q[u / 2].y);
            else hmma(c, a, q[u / 2].z, q[u / 2].w);
        }
    }
    /* c: [token r, r + 8][columns 2i, 2i + 1]; R = 4: both columns are row i. */
    float s[2][NR], most[NR];
#pragma unroll
    for (int x = 0; x < NR; x++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int token = position + r + 8 * h;
            s[h][x] = token >= lo[x] && token < hi[x] ? c[2 * h + x] * st.gain[x] : -INFINITY;
        }
        most[x] = max_over_rows(fmaxf(s[0][x], s[1][x]));
    }
    raise_maximum(st, most);
    uint32_t b[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        __half2 pair;
#pragma unroll
        for (int x = 0; x < NR; x++) {
            const float base = st.m[x] == -INFINITY ? 0 : st.m[x];
            const __half p = __float2half_rn(exp2_fast(s[h][x] - base));
            st.l[x] += __half2float(p);
            if (x == 0) pair = __half2half2(p);
            else pair = __halves2half2(__low2half(pair), p);
        }
        b[h] = transpose_matrix(bits_of(pair));
    }
    const bool all = any_lo <= position && any_hi >= position + 16;
    const int i = lane & 3;
#pragma unroll
    for (int t = 0; t < D / 16; t++) {
        const int row = (lane & 7) + (lane >> 4) * 8, chunk = (2 * t + (lane >> 3 & 1)) ^ (row & 7);
        uint4 a = load_matrices_transposed(v + (uint32_t)(row * 2 * D + chunk * 16));
        if (!all) { /* 0 · NaN is NaN: what nobody may see becomes 0 */
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t mask = 0;
                const int token = position + 2 * i + 8 * h;
                if (token >= any_lo && token < any_hi) mask |= 0xffffu;
                if (token + 1 >= any_lo && token + 1 < any_hi) mask |= 0xffff0000u;
                if (h == 0) a.x &= mask, a.y &= mask;
                else a.z &= mask, a.w &= mask;
            }
        }
        if constexpr (R == 4) {
            float d[4] = {st.o[t][0], 0, st.o[t][1], 0};
            hmma(d, a, b[0], b[1]);
            st.o[t][0] = d[0];
            st.o[t][1] = d[2];
        } else {
            hmma(st.o[t], a, b[0], b[1]);
        }
    }
}

#endif
