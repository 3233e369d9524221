/* gemv.cu: y = x Wᵀ for up to 16 tokens, bound by reading W once.
 *
 * Math     y[t, r] = Σ_c x[t, c] · W[r, c] (+ bias[r]).
 * Layout   W [rows, cols] BF16 or F16, x of the same type; rows, row_bytes, ldx and cols in chunks of 16 bytes.
 * Mapping  a CTA an SM; tiles of 8 rows are dealt evenly, contiguous, and taken up to 4 at a time (a block). One warp
 * brings in chunks of the block's rows, and of x, by bulk copies into a ring of stages in shared memory; 8 warps
 * share a chunk's columns, 32 at a time. mma.m16n8k16 with the tokens as its 16 rows and a tile's rows as its 8
 * columns: one 16-byte load of shared memory gives a lane the operands of two of them, because the order of columns
 * inside a sum is free as long as W and x agree. The warps' sums meet once a block.
 * Cost     rows × cols × 2 B of W; x comes from the L2 once a block: T/32 of W's bytes or less. Tensor cores: an mma for
 * 128 weights, one in 13 clocks of an SM.
 * Overlap  the ring is filled with W before the wait for the kernel before, and x follows after it; two such kernels
 * fit an SM, so that the next one's weights are on their way while this one ends.
 * Numerics products of act, sums in f32: 16 columns at a time in the tensor core, then over a warp's columns in order,
 * then over the warps in order. The same bits run to run.
 * Limits   T ≤ 16; cols a multiple of 8, all addresses and strides of 16 bytes; compute capability 9.0. gemm.cu sends the
 * rest elsewhere.
 * Measured docs/kernels/gemv.md. */
#include "kernels/cuda/attend_ptx.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum {
    WARP = 32,
    N_WARPS = 8, /* that multiply; one more loads */
    THREADS = (N_WARPS + 1) * WARP,
    MAX_TOKENS = 16,
    TILE_ROWS = 8,
    MAX_TILES = 4, /* of a block */
    MAX_ROWS = TILE_ROWS * MAX_TILES,
    STEP_COLS = 32,
    MAX_STAGES = 16,
    ROW_PAD = 64,            /* bytes: rows g and g + 1 fall into different halves of the banks */
    CHUNK_BYTES = 16384,     /* of W in a stage, about */
    SMEM_BYTES = 112 * 1024, /* two CTAs an SM, of different launches */
    N_AHEAD = 0,
};

typedef struct gemv_job {
    const uint8_t *w, *x;
    size_t row_bytes, ldx_bytes;
    const float *bias;
    void *y;
    int64_t ldy;
    int n_rows, n_cols, n_tokens;
    bs_type out_type;
    int block_tiles, chunk_cols;            /* a stage: at most so many tiles, so many columns */
    int pitch, x_at, stage_bytes, n_stages; /* bytes from row to row of it, where x begins in it */
    int n_ahead;                            /* chunks behind the ring that go to the L2 before the wait */
} gemv_job;

/* The part of a CTA: tiles first … first + n_tiles − 1, in n_blocks even blocks. */
typedef struct gemv_part {
    int first, n_tiles, n_blocks;
} gemv_part;

static __device__ __forceinline__ gemv_part part_of_cta(const gemv_job &j)
{
    const int64_t n = (j.n_rows + TILE_ROWS - 1) / TILE_ROWS;
    gemv_part p;
    p.first = (int)(n * blockIdx.x / gridDim.x);
    p.n_tiles = (int)(n * (blockIdx.x + 1) / gridDim.x) - p.first;
    p.n_blocks = (p.n_tiles + j.block_tiles - 1) / j.block_tiles;
    return p;
}

/* Rows of a block. */
typedef struct gemv_rows {
    int first, n;
} gemv_rows;

static __device__ __forceinline__ gemv_rows rows_of_block(const gemv_job &j, const gemv_part &p, int block)
{
    const int first = (p.first + p.n_tiles * block / p.n_blocks) * TILE_ROWS;
    const int end = (p.first + p.n_tiles * (block + 1) / p.n_blocks) * TILE_ROWS;
    return {first, min(end, j.n_rows) - first};
}

/* ---- the warp that loads ---- */

typedef struct gemv_ring {
    uint32_t stages, there, free; /* shared memory: stages, barriers of each */
} gemv_ring;

/* n rows of `bytes` from one another's `ld` into a stage. A stage is there when W's and x's have arrived. */
static __device__ __forceinline__ void load_rows(uint32_t to, int pitch, const uint8_t *from, size_t ld,
                                                 int n, uint32_t bytes, uint32_t there, uint64_t policy)
{
    const int lane = threadIdx.x % WARP;
    if (lane == 0) barrier_expect(there, bytes * (uint32_t)n);
    __syncwarp();
    if (lane < n) bulk_load(to + (uint32_t)(lane * pitch), from + (size_t)lane * ld, bytes, there, policy);
}

/* Asks the L2 for n chunks from this one on. */
static __device__ void prefetch_chunks(const gemv_job &j, const gemv_part &p, int block, int chunk, int n,
                                       int n_chunks)
{
    const int lane = threadIdx.x % WARP;
    for (int i = 0; i < n; i++) {
        const gemv_rows rows = rows_of_block(j, p, block);
        const int col = chunk * j.chunk_cols;
        const uint8_t *from = j.w + (size_t)(rows.first + lane) * j.row_bytes + (size_t)col * 2;
        if (lane < rows.n)
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                         "r"((uint32_t)min(j.chunk_cols, j.n_cols - col) * 2)
                         : "memory");
        if (++chunk == n_chunks) {
            chunk = 0;
            block++;
        }
    }
}

/* Loads chunk after chunk of block after block. W of the first stages goes before the wait, their x behind it. */
static __device__ void run_loader(const gemv_job &j, const gemv_part &p, const gemv_ring &ring)
{
    const uint64_t once = evict_first_policy(), keep = evict_normal_policy();
    const int n_chunks = (j.n_cols + j.chunk_cols - 1) / j.chunk_cols, n = n_chunks * p.n_blocks;
    const int n_early = min(n, j.n_stages);
    int block = 0, chunk = 0, stage = 0, x_chunk = 0;
    uint32_t parity = 1; /* of `free`: a fresh barrier has passed the phase before its first */
    for (int i = 0; i < n + n_early; i++) {
        /* i: W of chunk i; from n_early on, x first of the early ones, then of each chunk with its W */
        if (i == n_early) {
            prefetch_chunks(j, p, block, chunk, min(j.n_ahead, n - n_early), n_chunks);
            bs_cuda_wait_before();
            asm volatile("fence.proxy.async;" ::: "memory");
            for (int e = 0; e < n_early; e++) {
                const uint32_t bytes = (uint32_t)min(j.chunk_cols, j.n_cols - x_chunk * j.chunk_cols) * 2;
                load_rows(ring.stages + (uint32_t)(e * j.stage_bytes + j.x_at), j.pitch,
                          j.x + (size_t)x_chunk * j.chunk_cols * 2, j.ldx_bytes, j.n_tokens, bytes,
                          ring.there + e * 8, keep);
                if (++x_chunk == n_chunks) x_chunk = 0;
            }
        }
        if (i >= n) break;
        if (i >= n_early) barrier_wait(ring.free + stage * 8, parity);
        const gemv_rows rows = rows_of_block(j, p, block);
        const int col = chunk * j.chunk_cols;
        const uint32_t bytes = (uint32_t)min(j.chunk_cols, j.n_cols - col) * 2;
        const uint32_t to = ring.stages + (uint32_t)(stage * j.stage_bytes), there = ring.there + stage * 8;
        load_rows(to, j.pitch, j.w + (size_t)rows.first * j.row_bytes + (size_t)col * 2, j.row_bytes, rows.n,
                  bytes, there, once);
        if (i >= n_early)
            load_rows(to + (uint32_t)j.x_at, j.pitch, j.x + (size_t)col * 2, j.ldx_bytes, j.n_tokens, bytes,
                      there, keep);
        if (++chunk == n_chunks) {
            chunk = 0;
            block++;
        }
        if (++stage == j.n_stages) {
            stage = 0;
            parity ^= 1;
        }
    }
}

/* ---- the warps that multiply ---- */

template <typename T>
static __device__ __forceinline__ void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float c[4], const uint32_t a[4], uint32_t b0,
                                                        uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<__half>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint4 load_16(const uint8_t *at, bool there)
{
    return there ? *(const uint4 *)at : make_uint4(0, 0, 0, 0);
}

/* This warp's steps of a chunk. Lane (g, q) holds columns 8q … 8q + 7 of a step, of row g of each tile and of tokens g
 * and g + 8: two 32-bit registers of them are k 2q, 2q + 1 and 2q + 8, 2q + 9 of one mma, the other two of a second. */
template <typename T>
static __device__ __forceinline__ void multiply_chunk(const gemv_job &j, const uint8_t *stage, int n_cols,
                                                      int n_tiles, int warp, float sums[MAX_TILES][4])
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const uint8_t *w = stage + g * j.pitch + q * 16, *x = stage + j.x_at + g * j.pitch + q * 16;
    for (int col = warp * STEP_COLS; col < n_cols; col += N_WARPS * STEP_COLS) {
        const bool inside = col + q * 8 < n_cols;
        const uint4 low = load_16(x + col * 2, inside && g < j.n_tokens);
        const uint4 high = load_16(x + col * 2 + 8 * j.pitch, inside && g + 8 < j.n_tokens);
        const uint32_t a[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int tile = 0; tile < MAX_TILES; tile++) {
            if (tile >= n_tiles) break;
            const uint4 b = load_16(w + col * 2 + tile * TILE_ROWS * j.pitch, inside);
            multiply<T>(sums[tile], a[0], b.x, b.y);
            multiply<T>(sums[tile], a[1], b.z, b.w);
        }
    }
}

/* Between the warps that multiply. */
static __device__ __forceinline__ void wait_for_warps()
{
    asm volatile("bar.sync 1, %0;" ::"n"(N_WARPS * WARP) : "memory");
}

/* Adds up the warps' sums of a block, [warp][token][row] in `all`, and writes y. */
static __device__ void finish_block(const gemv_job &j, const gemv_rows &rows, int warp,
                                    const float sums[MAX_TILES][4], float *all)
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, width = j.n_tokens * MAX_ROWS;
    float2 *own = (float2 *)(all + warp * width + g * MAX_ROWS) + q;
    wait_for_warps(); /* the block before has been read */
#pragma unroll
    for (int tile = 0; tile < MAX_TILES; tile++) {
        if (g < j.n_tokens) own[tile * TILE_ROWS / 2] = make_float2(sums[tile][0], sums[tile][1]);
        if (g + 8 < j.n_tokens)
            own[(8 * MAX_ROWS + tile * TILE_ROWS) / 2] = make_float2(sums[tile][2], sums[tile][3]);
    }
    wait_for_warps();
    for (int i = threadIdx.x; i < width; i += N_WARPS * WARP) {
        const int token = i / MAX_ROWS, row = i % MAX_ROWS;
        if (row >= rows.n) continue;
        float sum = all[i];
#pragma unroll
        for (int w = 1; w < N_WARPS; w++) sum += all[w * width + i];
        if (j.bias) sum += j.bias[rows.first + row];
        bs_cuda_store_act(j.y, token * j.ldy + rows.first + row, j.out_type, sum);
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS, 2) gemv_kernel(const __grid_constant__ gemv_job j)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* sent elsewhere */
    extern __shared__ __align__(128) uint8_t stages[];
    __shared__ uint64_t there[MAX_STAGES], free[MAX_STAGES];
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / WARP, 0);
    const gemv_part part = part_of_cta(j);
    const gemv_ring ring = {smem_address(stages), smem_address(there), smem_address(free)};
    bs_cuda_release_next();
    if (threadIdx.x < (unsigned)j.n_stages) {
        barrier_init(ring.there + threadIdx.x * 8, 2);
        barrier_init(ring.free + threadIdx.x * 8, N_WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (warp == N_WARPS) {
        run_loader(j, part, ring);
        return;
    }
    bs_cuda_wait_before(); /* y may still be read */
    float *const all = (float *)(stages + j.n_stages * j.stage_bytes);
    int stage = 0;
    uint32_t parity = 0;
    for (int block = 0; block < part.n_blocks; block++) {
        const gemv_rows rows = rows_of_block(j, part, block);
        const int n_tiles = (rows.n + TILE_ROWS - 1) / TILE_ROWS;
        float sums[MAX_TILES][4] = {};
        for (int col = 0; col < j.n_cols; col += j.chunk_cols) {
            barrier_wait(ring.there + stage * 8, parity);
            multiply_chunk<T>(j, stages + stage * j.stage_bytes, min(j.chunk_cols, j.n_cols - col), n_tiles,
                              warp, sums);
            __syncwarp();
            if (threadIdx.x % WARP == 0) barrier_arrive(ring.free + stage * 8);
            if (++stage == j.n_stages) {
                stage = 0;
                parity ^= 1;
            }
        }
        finish_block(j, rows, warp, sums, all);
    }
#endif
}

/* ---- launch ---- */

bool bs_cuda_gemv_takes(const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    const uintptr_t addresses = (uintptr_t)bs_cuda_weight_data(w) | (uintptr_t)a->x;
    return a->n_tokens <= MAX_TOKENS && w->type == a->act && w->type != BS_TYPE_F32 && w->n_cols > 0 &&
           w->n_cols % 8 == 0 && a->ldx % 8 == 0 && w->row_bytes % 16 == 0 && addresses % 16 == 0 &&
           w->n_cols <= INT32_MAX / 4 && w->n_rows <= INT32_MAX / 4;
}

bs_status bs_cuda_gemv(bs_stream *stream, const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    const int n_tiles = (int)((w->n_rows + TILE_ROWS - 1) / TILE_ROWS);
    int n_ctas;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "gemv", &n_ctas));
    if (n_ctas > n_tiles) n_ctas = n_tiles;
    gemv_job j;
    j.w = (const uint8_t *)bs_cuda_weight_data(w);
    j.x = (const uint8_t *)a->x;
    j.row_bytes = w->row_bytes;
    j.ldx_bytes = (size_t)a->ldx * 2;
    j.bias = a->bias;
    j.y = a->y;
    j.ldy = a->ldy;
    j.n_rows = (int)w->n_rows;
    j.n_cols = (int)w->n_cols;
    j.n_tokens = a->n_tokens;
    j.n_ahead = N_AHEAD;
    j.out_type = a->out_type;
    j.block_tiles = (n_tiles + n_ctas - 1) / n_ctas;
    if (j.block_tiles > MAX_TILES) j.block_tiles = MAX_TILES;
    if (j.block_tiles == 3) j.block_tiles = 4; /* a power of two of columns */
    j.chunk_cols = CHUNK_BYTES / (2 * TILE_ROWS * j.block_tiles);
    j.pitch = j.chunk_cols * 2 + ROW_PAD;
    j.x_at = j.block_tiles * TILE_ROWS * j.pitch;
    j.stage_bytes = j.x_at + a->n_tokens * j.pitch;
    const int sums_bytes = N_WARPS * a->n_tokens * MAX_ROWS * 4;
    j.n_stages = (SMEM_BYTES - 1024 - sums_bytes) / j.stage_bytes;
    if (j.n_stages > MAX_STAGES) j.n_stages = MAX_STAGES;
    const size_t smem_bytes = (size_t)(j.n_stages * j.stage_bytes + sums_bytes);
    void (*kernel)(gemv_job) = w->type == BS_TYPE_BF16 ? gemv_kernel<__nv_bfloat16> : gemv_kernel<__half>;
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES),
        "gemv"));
    return bs_cuda_launch(stream, "gemv", kernel, dim3((unsigned)n_ctas), dim3(THREADS), smem_bytes, j);
}
