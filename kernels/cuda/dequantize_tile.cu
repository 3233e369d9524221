/* dequantize_tile.cu: pages, quantized and f16, become fp16 tiles that attend_chunk_kernel.cuh multiplies as they are.
 *
 * Math     x = s · (c + z/16), K times its token's n with `norm`, in f32, then fp16, ±65504 at most. What no query token
 *          of the call sees (behind the end, before every window) is 0, whatever the page holds.
 * Layout   in: kv_layout.h; out: [unit][KV head][K, V] tiles of attend_chunk.cuh.
 * Mapping  a CTA of 8 warps makes both tiles of one (page, KV head) in shared memory and sends each off as one bulk
 *          copy. K: a lane has 4 neighbouring channels of a token, 8 bytes. V: a lane has two neighbouring tokens of a
 *          channel; movmatrix turns 8 x 8 of them into pairs of channels. No two lanes of a store meet in a bank.
 * Cost     a page and head at D = 128: 17 KB read at int4, 64 KB written, 32,768 elements of about 6 instructions: 128K
 *          tokens of 8 heads write 537 MB (0.13 ms at 4.2 TB/s) and take 0.06 ms of arithmetic.
 * Numerics two roundings of f32 (three with norm) and the one to fp16.
 * Limits   head size 64 or 128; compute capability 9.0 (bulk copies).
 * Measured 2026-11-29, H200, 208 pages of 8 heads, D 128: 47 us at int4 (138 MB), 57 at f16 (218 MB). docs/perf/LOG.md. */
#include "kernels/cuda/attend_chunk.cuh"
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, PAGE = BS_PAGE_TOKENS };

/* Where one CTA's page lies and what of it is seen. */
typedef struct tile_job {
    const uint8_t *from; /* its K half, or K page */
    uint8_t *to;         /* its K tile */
    int seen0, seen;     /* tokens of the page that somebody sees */
    bool quant;
} tile_job;

static __device__ tile_job find_job(const chunk_params &p, int unit, int kv_head)
{
    tile_job job = {};
    const chunk_span &span = p.spans[chunk_seq_of_unit(p, unit)];
    const int entry = chunk_entry_of(span, unit - span.unit, &job.quant);
    const int64_t slot = p.page_slot[entry];
    const int position = p.page_index[entry] * PAGE;
    job.seen0 = span.seen0 - position;
    job.seen = span.seen - position;
    if (job.quant) job.from = p.quant_pool + slot * p.layout.quant_slot + (size_t)kv_head * p.layout.record;
    else job.from = p.f16_pool + slot * p.layout.f16_slot + (size_t)kv_head * 2 * p.layout.f16_page;
    job.to = p.tiles + ((size_t)(unit - p.unit0) * p.layout.n_kv_heads + kv_head) * 2 *
                           chunk_tile_bytes(p.layout.head_dim);
    return job;
}

/* ---- numbers ---- */

/* 2^19 − z/16, exact; a float of 2^19 counts sixteenths in its last bit. */
static __device__ __forceinline__ float zero_of(int z)
{
    return 524288.0f - (float)z * 0.0625f;
}

/* Zeros of four codes from the high and the low bytes of z. */
static __device__ __forceinline__ void zeros_of(uint32_t high, uint32_t low, float (&zero)[4])
{
#pragma unroll
    for (int e = 0; e < 4; e++)
        zero[e] = zero_of(256 * (int8_t)(high >> 8 * e & 255) + (int8_t)(low >> 8 * e & 255));
}

/* s · (c + z/16) of the code at `shift`: 2^19 + c by its bits, so the sum is exact. */
template <int BITS>
static __device__ __forceinline__ float value_of(uint32_t word, int shift, float scale, float zero)
{
    constexpr uint32_t MASK = ((1u << BITS) - 1) << 4;
    const uint32_t code = (shift >= 4 ? word >> (shift - 4) : word << (4 - shift)) & MASK;
    return scale * (__uint_as_float(0x49000000u | code) - zero);
}

/* A pair in fp16, within its range. */
static __device__ __forceinline__ uint32_t pair_of(float a, float b)
{
    uint32_t pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
    return pair;
}

static __device__ __forceinline__ float half_at(uint32_t pair, int which)
{
    return which ? __high2float(half2_of(pair)) : __low2float(half2_of(pair));
}

static __device__ __forceinline__ uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

static __device__ __forceinline__ uint32_t pair_at(const uint8_t *at)
{
    return __ldg(reinterpret_cast<const uint32_t *>(at));
}

static __device__ __forceinline__ uint4 quad_at(const uint8_t *at)
{
    return __ldg(reinterpret_cast<const uint4 *>(at));
}

static __device__ __forceinline__ void put_8(uint32_t at, uint32_t a, uint32_t b)
{
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(at), "r"(a), "r"(b) : "memory");
}

static __device__ __forceinline__ void put_4(uint32_t at, uint32_t a)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(a) : "memory");
}

/* ---- K ---- */

/* Scales and zeros of a lane's channels: [half of 32][channel of 4]. */
typedef struct k_factors {
    float scale[2][4], zero[2][4];
} k_factors;

static __device__ __forceinline__ void k_channel_factors(const bs_cuda_kv_layout &l, const uint8_t *half,
                                                         int group, int k_tile, int i, k_factors &f)
{
    const uint32_t at = (uint32_t)(group * 2 * l.head_dim + (k_tile * 4 + i) * 16);
    const uint4 s = quad_at(half + l.k_s + at), z = quad_at(half + l.k_z + at);
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int e = 0; e < 4; e++) f.scale[h][e] = half_at(word_of(s, 2 * h + e / 2), e % 2);
        zeros_of(word_of(z, 2 * h), word_of(z, 2 * h + 1), f.zero[h]);
    }
}

/* A warp keeps its 32 channels from block to block. */
template <int BITS, bool PER_CHANNEL>
static __device__ __forceinline__ void dequantize_k(const bs_cuda_kv_layout &l, const tile_job &job,
                                                    uint32_t tile)
{
    constexpr int FIELDS = 8 / BITS;
    const int lane = threadIdx.x & 31, r = lane >> 2, i = lane & 3, k_tiles = l.head_dim / 32;
    const int k_tile = threadIdx.x / 32 % k_tiles, n_blocks = PAGE * l.head_dim * BITS / 8 / 512;
    const uint32_t to = tile + chunk_tile_byte(r, k_tile * 32 + 4 * i);
    k_factors f;
    int group = -1;
    for (int b = threadIdx.x / 32; b < n_blocks; b += WARPS) {
        const uint4 codes = quad_at(job.from + b * 512 + lane * 16);
#pragma unroll
        for (int j = 0; j < FIELDS; j++) {
            const int t16 = b / k_tiles * FIELDS + j; /* tile of 16 tokens */
            uint32_t s = 0, z = 0, n = 0x3c003c00u;   /* of tokens r and r + 8 */
            if (PER_CHANNEL) {
                if (t16 * 16 / l.k_group != group) {
                    group = t16 * 16 / l.k_group;
                    k_channel_factors(l, job.from, group, k_tile, i, f);
                }
            } else {
                const uint32_t at = (uint32_t)(k_tile * 32 / l.k_group * 256 + r * 32 + t16 * 4);
                s = pair_at(job.from + l.k_s + at);
                z = pair_at(job.from + l.k_z + at);
            }
            if (l.k_norm) n = pair_at(job.from + l.k_n + r * 32 + t16 * 4);
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const int token = t16 * 16 + w % 2 * 8 + r;
                const uint32_t word = word_of(codes, w);
                const float norm = half_at(n, w % 2), scale = half_at(s, w % 2),
                            zero = zero_of((int16_t)(w % 2 ? z >> 16 : z & 0xffff));
                float x[4];
#pragma unroll
                for (int e = 0; e < 4; e++)
                    x[e] = value_of<BITS>(word, 8 * e + j * BITS, PER_CHANNEL ? f.scale[w / 2][e] : scale,
                                          PER_CHANNEL ? f.zero[w / 2][e] : zero);
                if (l.k_norm) {
#pragma unroll
                    for (int e = 0; e < 4; e++) x[e] *= norm;
                }
                const bool seen = token >= job.seen0 && token < job.seen;
                /* 16 channels on: two chunks, 2 being a bit that no lane's chunk has. */
                put_8((to ^ (uint32_t)(w / 2 * 32)) + (uint32_t)(t16 * 2048 + w % 2 * 1024),
                      seen ? pair_of(x[0], x[1]) : 0, seen ? pair_of(x[2], x[3]) : 0);
            }
        }
    }
}

template <int BITS>
static __device__ __forceinline__ void dequantize_k(const bs_cuda_kv_layout &l, const tile_job &job,
                                                    uint32_t tile)
{
    if (l.k_per_channel) dequantize_k<BITS, true>(l, job, tile);
    else dequantize_k<BITS, false>(l, job, tile);
}

/* ---- V ---- */

/* A piece is FIELDS tiles of 16 channels of 32 tokens; a warp keeps its tokens from piece to piece. */
template <int BITS>
static __device__ __forceinline__ void dequantize_v(const bs_cuda_kv_layout &l, const tile_job &job,
                                                    uint32_t tile)
{
    constexpr int FIELDS = 8 / BITS;
    const int lane = threadIdx.x & 31, r = lane >> 2, i = lane & 3;
    const int q = threadIdx.x / 64 % 2, w2 = threadIdx.x / 32 % 2, token0 = q * 64 + w2 * 32;
    const uint8_t *half = job.from + l.k_half;
    const int n_pieces = l.head_dim / 16 / FIELDS * 4;
    float scale[2][4], zero[2][4]; /* of tokens 8 e + 2 i and 8 e + 2 i + 1 */
    int group = -1;
    bool seen[4]; /* of tokens 8 e + r, the lane's behind the transposition */
#pragma unroll
    for (int e = 0; e < 4; e++) seen[e] = token0 + 8 * e + r >= job.seen0 && token0 + 8 * e + r < job.seen;
    for (int piece = threadIdx.x / 32; piece < n_pieces; piece += WARPS) {
        const int block = piece / 4;
        uint32_t codes[2][2]; /* [token of a pair][8 channels of 16] */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint8_t *at = half + (block * 4 + q + 2 * h) * 512 + lane * 16 + w2 * 8;
            const uint2 pair = __ldg(reinterpret_cast<const uint2 *>(at));
            codes[h][0] = pair.x;
            codes[h][1] = pair.y;
        }
#pragma unroll
        for (int j = 0; j < FIELDS; j++) {
            const int c16 = block * FIELDS + j; /* tile of 16 channels */
            if (c16 * 16 / l.v_group != group) {
                group = c16 * 16 / l.v_group;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const uint2 s = __ldg(reinterpret_cast<const uint2 *>(
                        half + l.v_s + group * 256 + (2 * i + h) * 32 + q * 16 + w2 * 8));
                    const uint2 z = __ldg(reinterpret_cast<const uint2 *>(
                        half + l.v_z + group * 256 + ((q + 2 * h) * 4 + i) * 16 + w2 * 8));
#pragma unroll
                    for (int e = 0; e < 4; e++) scale[h][e] = half_at(e < 2 ? s.x : s.y, e % 2);
                    zeros_of(z.x, z.y, zero[h]);
                }
            }
            const uint32_t to = tile + chunk_tile_byte(token0 + r, c16 * 16 + 2 * i);
#pragma unroll
            for (int e = 0; e < 4; e++) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const float even = value_of<BITS>(codes[0][c], 8 * e + j * BITS, scale[0][e], zero[0][e]);
                    const float odd = value_of<BITS>(codes[1][c], 8 * e + j * BITS, scale[1][e], zero[1][e]);
                    const uint32_t x = transpose_matrix(pair_of(even, odd));
                    put_4((to ^ (uint32_t)(c * 16)) + (uint32_t)(e * 1024), seen[e] ? x : 0);
                }
            }
        }
    }
}

/* ---- f16 pages ---- */

/* Chunks of 8 channels change their place, and channels of K theirs among 16. */
static __device__ __forceinline__ void copy_f16(const bs_cuda_kv_layout &l, const tile_job &job,
                                                uint32_t k_tile, uint32_t v_tile)
{
    const int n16 = l.head_dim / 16;
    for (int at = threadIdx.x; at < PAGE * n16; at += THREADS) {
        const int token = at / n16, c = at % n16 * 2;
        const bool seen = token >= job.seen0 && token < job.seen;
        const uint8_t *row = job.from + token * l.head_dim * 2;
        const uint32_t first = (uint32_t)((c ^ (token & 7)) * 16), second = first ^ 16;
        uint4 a = make_uint4(0, 0, 0, 0), b = a, v0 = a, v1 = a;
        if (seen) {
            a = quad_at(row + first);
            b = quad_at(row + second);
            v0 = quad_at(row + l.f16_page + first);
            v1 = quad_at(row + l.f16_page + second);
        }
        const uint32_t to = chunk_tile_byte(token, 8 * c);
        store_shared(k_tile + to, make_uint4(a.x, b.x, a.y, b.y));
        store_shared(k_tile + (to ^ 16), make_uint4(a.z, b.z, a.w, b.w));
        store_shared(v_tile + to, v0);
        store_shared(v_tile + (to ^ 16), v1);
    }
}

/* ---- the kernel ---- */

/* What the CTA has left in shared memory goes to its place in one copy, by one thread, and is there when that returns. */
static __device__ void send(uint8_t *to, uint32_t from, uint32_t bytes)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* the launcher asks for it */
    fence_shared_async();
    __syncthreads();
    if (threadIdx.x != 0) return;
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;\n"
                 "cp.async.bulk.wait_group 0;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
#endif
}

static __global__ void __launch_bounds__(THREADS) dequantize_kernel(const __grid_constant__ chunk_params p)
{
    extern __shared__ __align__(128) uint8_t shared[];
    const int unit = p.unit0 + (int)blockIdx.x / p.layout.n_kv_heads,
              kv_head = (int)blockIdx.x % p.layout.n_kv_heads;
    if (unit >= p.spans[p.max_seqs].unit) return;
    const tile_job job = find_job(p, unit, kv_head);
    const uint32_t bytes = chunk_tile_bytes(p.layout.head_dim), k_tile = smem_address(shared),
                   v_tile = k_tile + bytes;
    if (!job.quant) {
        copy_f16(p.layout, job, k_tile, v_tile);
    } else {
        if (p.layout.k_bits == 2) dequantize_k<2>(p.layout, job, k_tile);
        else if (p.layout.k_bits == 4) dequantize_k<4>(p.layout, job, k_tile);
        else dequantize_k<8>(p.layout, job, k_tile);
        if (p.layout.v_bits == 2) dequantize_v<2>(p.layout, job, v_tile);
        else if (p.layout.v_bits == 4) dequantize_v<4>(p.layout, job, v_tile);
        else dequantize_v<8>(p.layout, job, v_tile);
    }
    send(job.to, k_tile, 2 * bytes);
}

bs_status bs_cuda_dequantize_tiles(const bs_stream *stream, const chunk_params *p)
{
    const size_t smem = 2 * (size_t)chunk_tile_bytes(p->layout.head_dim);
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute(dequantize_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem),
        "attend"));
    dequantize_kernel<<<(unsigned)(p->n_units * p->layout.n_kv_heads), THREADS, smem,
                        bs_cuda_stream(stream)>>>(*p);
    return bs_cuda_launched("attend");
}
