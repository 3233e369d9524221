/* gemv.cu: y = x Wᵀ for up to 16 tokens, bound by reading W once.
 *
 * Math     y[t, r] = Σ_c x[t, c] · W[r, c] (+ bias[r]).
 * Layout   W [rows, cols] BF16 or F16, x of the same type; rows, row_bytes, ldx and cols in chunks of 16 bytes.
 * Mapping  a CTA an SM; tiles of 8 rows are dealt evenly, contiguous, and taken up to 4 at a time (a block). Its 8 warps
 * share the columns, 64 at a time in turns; each has a ring of stages of its own in shared memory, filled by cp.async
 * a cache line a row: no barrier but at a block's end. mma.m16n8k16 with the tokens as its 16 rows and a tile's rows
 * as its 8 columns: one 16-byte load of shared memory gives a lane the operands of two of them, because the order of
 * columns inside a sum is free as long as W and x agree. The warps' sums meet once a block.
 * Cost     rows × cols × 2 B of W; x comes from the L2 once a block: T/32 of W's bytes. Tensor cores: an mma for 128
 * weights, one in 13 clocks of an SM.
 * Overlap  the ring is filled with W before the wait for the kernel before, and x follows after it; two such CTAs fit an
 * SM, so that the next kernel's weights are on their way while this one ends.
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
    N_WARPS = 8,
    THREADS = N_WARPS * WARP,
    MAX_TOKENS = 16,
    TILE_ROWS = 8,
    MAX_TILES = 4, /* of a block */
    MAX_ROWS = TILE_ROWS * MAX_TILES,
    GROUP_COLS = 64, /* that a warp takes at a time: a cache line of a row */
    LINE = GROUP_COLS * 2,
    STEP_COLS = 32, /* of two mma */
    MAX_STAGES = 8,
    SMEM_BYTES = 112 * 1024, /* two CTAs an SM, of different launches */
    N_AHEAD = 0,
    BLOCK_TILES = 4,
};

typedef struct gemv_job {
    const uint8_t *w, *x;
    size_t row_bytes, ldx_bytes;
    const float *bias;
    void *y;
    int64_t ldy;
    int n_rows, n_cols, n_tokens;
    bs_type out_type;
    int block_tiles;                 /* at most, of a block */
    int x_at, stage_bytes, n_stages; /* of a warp's ring: lines of W, then of x */
    int n_ahead;                     /* groups behind the ring that go to the L2 before the wait */
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

/* ---- loads ---- */

/* Where a warp's next load comes from. */
typedef struct gemv_cursor {
    int block, group;
    gemv_rows rows;
} gemv_cursor;

static __device__ __forceinline__ void advance(const gemv_job &j, const gemv_part &p, int warp,
                                               gemv_cursor *c)
{
    c->group += N_WARPS;
    if (c->group * GROUP_COLS < j.n_cols) return;
    c->group = warp;
    if (++c->block < p.n_blocks) c->rows = rows_of_block(j, p, c->block);
}

static __device__ __forceinline__ void copy_16(uint32_t to, const uint8_t *from, bool inside)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
}

/* A group's lines of n rows, 4 rows an instruction. The halves of odd rows' lines are swapped, so that the lanes of two
 * rows that read 64 bytes each meet in no bank. Columns behind the last are zeros. */
static __device__ __forceinline__ void copy_lines(uint32_t to, const uint8_t *from, size_t ld, int n, int col,
                                                  int n_cols)
{
    const int lane = threadIdx.x % WARP, row = lane / 8, chunk = lane % 8;
    const bool inside = col + chunk * 8 < n_cols;
    from += (size_t)row * ld + (inside ? (size_t)col * 2 + chunk * 16 : 0);
    to += (uint32_t)(row * LINE + (chunk ^ (row & 1) << 2) * 16);
#pragma unroll 8
    for (int r = row; r < n; r += 4, from += 4 * ld, to += 4 * LINE) copy_16(to, from, inside);
}

static __device__ __forceinline__ void load_w(const gemv_job &j, const gemv_cursor &c, uint32_t stage)
{
    copy_lines(stage, j.w + (size_t)c.rows.first * j.row_bytes, j.row_bytes, c.rows.n, c.group * GROUP_COLS,
               j.n_cols);
}

static __device__ __forceinline__ void load_x(const gemv_job &j, int group, uint32_t stage)
{
    copy_lines(stage + (uint32_t)j.x_at, j.x, j.ldx_bytes, j.n_tokens, group * GROUP_COLS, j.n_cols);
}

static __device__ __forceinline__ void end_group()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most n groups of this thread's copies are on their way. */
static __device__ __forceinline__ void wait_for_groups(int n)
{
    switch (n) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
    case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 6;" ::: "memory"); break;
    }
}

/* ---- products ---- */

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

static __device__ __forceinline__ uint4 load_16(const uint8_t *at)
{
    return *(const uint4 *)at;
}

/* A stage's products. Lane (g, q) holds columns 8q … 8q + 7 of a step, of row g of each tile and of tokens g and g + 8:
 * two 32-bit registers of them are k 2q, 2q + 1 and 2q + 8, 2q + 9 of one mma, the other two of a second. */
template <typename T>
static __device__ __forceinline__ void multiply_stage(const gemv_job &j, const uint8_t *stage, int n_tiles,
                                                      float sums[MAX_TILES][4])
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int step = 0; step < GROUP_COLS / STEP_COLS; step++) {
        const uint8_t *w = stage + g * LINE + ((step * 4 + q) ^ (g & 1) << 2) * 16, *x = w + j.x_at;
        const uint4 low = g < j.n_tokens ? load_16(x) : zero;
        const uint4 high = g + 8 < j.n_tokens ? load_16(x + 8 * LINE) : zero;
        const uint32_t a[2][4] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int tile = 0; tile < MAX_TILES; tile++) {
            if (tile >= n_tiles) break;
            const uint4 b = load_16(w + tile * TILE_ROWS * LINE);
            multiply<T>(sums[tile], a[0], b.x, b.y);
            multiply<T>(sums[tile], a[1], b.z, b.w);
        }
    }
}

/* Adds up the warps' sums of a block, [warp][token][row] in `all`, and writes y. */
static __device__ void finish_block(const gemv_job &j, const gemv_rows &rows, int warp,
                                    const float sums[MAX_TILES][4], float *all)
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, width = j.n_tokens * MAX_ROWS;
    float2 *own = (float2 *)(all + warp * width + g * MAX_ROWS) + q;
    __syncthreads(); /* the block before has been read */
#pragma unroll
    for (int tile = 0; tile < MAX_TILES; tile++) {
        if (g < j.n_tokens) own[tile * TILE_ROWS / 2] = make_float2(sums[tile][0], sums[tile][1]);
        if (g + 8 < j.n_tokens)
            own[(8 * MAX_ROWS + tile * TILE_ROWS) / 2] = make_float2(sums[tile][2], sums[tile][3]);
    }
    __syncthreads();
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
    extern __shared__ __align__(128) uint8_t rings[];
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / WARP, 0);
    const uint8_t *const ring = rings + warp * j.n_stages * j.stage_bytes;
    const uint32_t ring_at = smem_address(ring);
    const gemv_part part = part_of_cta(j);
    const int n_groups = max((j.n_cols + GROUP_COLS - 1) / GROUP_COLS - warp + N_WARPS - 1, 0) / N_WARPS;
    const int n = n_groups * part.n_blocks, n_early = min(n, j.n_stages - 1);
    gemv_cursor next = {0, warp, rows_of_block(j, part, 0)};
    bs_cuda_release_next();
    for (int i = 0; i < n_early; i++, advance(j, part, warp, &next)) {
        load_w(j, next, ring_at + (uint32_t)(i * j.stage_bytes));
        end_group();
    }
    if (j.n_ahead > 0) {
        gemv_cursor ahead = next;
        for (int i = n_early; i < min(n, n_early + j.n_ahead); i++, advance(j, part, warp, &ahead))
            if ((int)threadIdx.x % WARP < ahead.rows.n)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(
                    j.w + (size_t)(ahead.rows.first + threadIdx.x % WARP) * j.row_bytes +
                    ahead.group * LINE));
    }
    bs_cuda_wait_before();
    for (int i = 0; i < n_early; i++)
        load_x(j, warp + i % n_groups * N_WARPS, ring_at + (uint32_t)(i * j.stage_bytes));
    end_group();
    wait_for_groups(0);
    float *const all = (float *)(rings + N_WARPS * j.n_stages * j.stage_bytes);
    int i = 0, stage = 0, free_stage = j.n_stages - 1;
    for (int block = 0; block < part.n_blocks; block++) {
        const gemv_rows rows = rows_of_block(j, part, block);
        const int n_tiles = (rows.n + TILE_ROWS - 1) / TILE_ROWS;
        float sums[MAX_TILES][4] = {};
        for (int k = 0; k < n_groups; k++, i++) {
            wait_for_groups(j.n_stages - 2);
            __syncwarp(); /* all lanes' copies are there, and all have read the stage before */
            if (i + j.n_stages - 1 < n) {
                const uint32_t to = ring_at + (uint32_t)(free_stage * j.stage_bytes);
                load_w(j, next, to);
                load_x(j, next.group, to);
                advance(j, part, warp, &next);
            }
            end_group(); /* also an empty one: they are counted */
            multiply_stage<T>(j, ring + stage * j.stage_bytes, n_tiles, sums);
            free_stage = stage;
            if (++stage == j.n_stages) stage = 0;
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
    j.out_type = a->out_type;
    j.n_ahead = N_AHEAD;
    j.block_tiles = (n_tiles + n_ctas - 1) / n_ctas;
    if (j.block_tiles > BLOCK_TILES) j.block_tiles = BLOCK_TILES;
    const int sums_bytes = N_WARPS * a->n_tokens * MAX_ROWS * 4;
    for (;; j.block_tiles /= 2) { /* one stage that is multiplied, one on its way */
        j.x_at = j.block_tiles * TILE_ROWS * LINE;
        j.stage_bytes = j.x_at + a->n_tokens * LINE;
        j.n_stages = (SMEM_BYTES - sums_bytes) / (N_WARPS * j.stage_bytes);
        if (j.n_stages >= 2) break;
    }
    if (j.n_stages > MAX_STAGES) j.n_stages = MAX_STAGES;
    const size_t smem_bytes = (size_t)(N_WARPS * j.n_stages * j.stage_bytes + sums_bytes);
    void (*kernel)(gemv_job) = w->type == BS_TYPE_BF16 ? gemv_kernel<__nv_bfloat16> : gemv_kernel<__half>;
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES),
        "gemv"));
    return bs_cuda_launch(stream, "gemv", kernel, dim3((unsigned)n_ctas), dim3(THREADS), smem_bytes, j);
}
