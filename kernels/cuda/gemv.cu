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
    MAX_TOKENS = 16,
    TILE_ROWS = 8,
    GROUP_COLS = 64, /* that a warp takes at a time: a cache line of a row */
    LINE = GROUP_COLS * 2,
    MAX_STAGES = 8,
    SMEM_BYTES = 112 * 1024, /* two CTAs an SM, of different launches */
    WARPS = 8
};

typedef struct gemv_job {
    const uint8_t *w, *x;
    size_t row_bytes, ldx_bytes;
    const float *bias;
    void *y;
    int64_t ldy;
    int n_rows, n_cols, n_tokens;
    bs_type out_type;
    int stage_bytes, n_stages; /* of a warp's ring: lines of W, then of x */
    bool overlap;
} gemv_job;

/* The part of a CTA: tiles first … first + n_tiles − 1, in n_blocks even blocks of at most NT. */
typedef struct gemv_part {
    int first, n_tiles, n_blocks;
} gemv_part;

template <int NT> static __device__ __forceinline__ gemv_part part_of_cta(const gemv_job &j)
{
    const int64_t n = (j.n_rows + TILE_ROWS - 1) / TILE_ROWS;
    gemv_part p;
    p.first = (int)(n * blockIdx.x / gridDim.x);
    p.n_tiles = (int)(n * (blockIdx.x + 1) / gridDim.x) - p.first;
    p.n_blocks = (p.n_tiles + NT - 1) / NT;
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

/* Lanes load a line of 4 rows together: lane / 8 is the row, lane % 8 the 16 bytes of its line. The halves of odd rows'
 * lines are swapped in shared memory, so that the lanes of two rows that read 64 bytes each meet in no bank. */
typedef struct gemv_cursor {
    const uint8_t *w; /* this lane's bytes of the next group's first row */
    int block, group;
    gemv_rows rows;
} gemv_cursor;

static __device__ __forceinline__ void begin_block(const gemv_job &j, const gemv_part &p, int warp, int block,
                                                   gemv_cursor *c)
{
    const int lane = threadIdx.x % WARP;
    c->block = block;
    c->group = warp;
    c->rows = rows_of_block(j, p, block);
    c->w = j.w + (size_t)(c->rows.first + lane / 8) * j.row_bytes + (size_t)(warp * LINE + lane % 8 * 16);
}

static __device__ __forceinline__ void advance(const gemv_job &j, const gemv_part &p, int warp,
                                               gemv_cursor *c)
{
    c->group += WARPS;
    c->w += WARPS * LINE;
    if (c->group * GROUP_COLS >= j.n_cols && c->block + 1 < p.n_blocks)
        begin_block(j, p, warp, c->block + 1, c);
}

static __device__ __forceinline__ void copy_16(uint32_t to, const uint8_t *from, uint32_t size)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
}

/* 16 where this lane's columns of the group exist, else 0: zeros are written. */
static __device__ __forceinline__ uint32_t size_at(const gemv_job &j, int group)
{
    return group * GROUP_COLS + (int)threadIdx.x % 8 * 8 < j.n_cols ? 16 : 0;
}

/* `to`: this lane's place in the stage. Rows that do not exist are left as they are: nobody looks at their sums. */
template <int NT>
static __device__ __forceinline__ void load_w(const gemv_job &j, const gemv_cursor &c, uint32_t to)
{
    const uint32_t size = size_at(j, c.group);
    const size_t ld = 4 * j.row_bytes;
    const uint8_t *from = c.w;
    if (c.rows.n == NT * TILE_ROWS) {
#pragma unroll
        for (int i = 0; i < NT * 2; i++, from += ld) copy_16(to + i * 4 * LINE, from, size);
        return;
    }
    const int n = c.rows.n - (int)threadIdx.x % WARP / 8;
#pragma unroll
    for (int i = 0; i < NT * 2; i++, from += ld)
        if (i * 4 < n) copy_16(to + i * 4 * LINE, from, size);
}

template <int NT> static __device__ __forceinline__ void load_x(const gemv_job &j, int group, uint32_t to)
{
    const int lane = threadIdx.x % WARP;
    const uint32_t size = size_at(j, group);
    const uint8_t *from = j.x + (size_t)(lane / 8) * j.ldx_bytes + (size_t)(group * LINE + lane % 8 * 16);
    to += NT * TILE_ROWS * LINE;
    for (int t = lane / 8; t < j.n_tokens; t += 4, from += 4 * j.ldx_bytes, to += 4 * LINE)
        copy_16(to, from, size);
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
static __device__ __forceinline__ void multiply(float c[4], uint4 a, uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float c[4], uint4 a, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

template <> __device__ __forceinline__ void multiply<__half>(float c[4], uint4 a, uint32_t b0, uint32_t b1)
{
    hmma(c, a, b0, b1);
}

/* A stage's products. Lane (g, q) holds columns 8q … 8q + 7 of a half line, of row g of each tile and of tokens g and
 * g + 8: two 32-bit registers of them are k 2q, 2q + 1 and 2q + 8, 2q + 9 of one mma, the other two of a second. */
template <typename T, int NT>
static __device__ __forceinline__ void multiply_stage(const gemv_job &j, const uint8_t *stage,
                                                      float sums[NT][4])
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const int at = g * LINE + (q ^ (g & 1) << 2) * 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint8_t *w = stage + (at ^ half * 64), *x = w + NT * TILE_ROWS * LINE;
        uint4 b[NT], low = make_uint4(0, 0, 0, 0), high = low;
#pragma unroll
        for (int tile = 0; tile < NT; tile++) b[tile] = *(const uint4 *)(w + tile * TILE_ROWS * LINE);
        if (g < j.n_tokens) low = *(const uint4 *)x;
        if (g + 8 < j.n_tokens) high = *(const uint4 *)(x + 8 * LINE);
        const uint4 a[2] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int tile = 0; tile < NT; tile++) multiply<T>(sums[tile], a[0], b[tile].x, b[tile].y);
#pragma unroll
        for (int tile = 0; tile < NT; tile++) multiply<T>(sums[tile], a[1], b[tile].z, b[tile].w);
    }
}

/* Adds up the warps' sums of a block, [warp][token][row] in `all`, and writes y. */
template <int NT>
static __device__ __forceinline__ void finish_block(const gemv_job &j, const gemv_rows &rows, int warp,
                                                    const float sums[NT][4], float *all)
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, n_rows = NT * TILE_ROWS,
              width = j.n_tokens * n_rows;
    float *own = all + warp * width + g * n_rows + 2 * q;
    __syncthreads(); /* the block before has been read */
#pragma unroll
    for (int tile = 0; tile < NT; tile++, own += TILE_ROWS) {
        if (g < j.n_tokens) *(float2 *)own = make_float2(sums[tile][0], sums[tile][1]);
        if (g + 8 < j.n_tokens) *(float2 *)(own + 8 * n_rows) = make_float2(sums[tile][2], sums[tile][3]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += WARPS * WARP) {
        const int token = i / n_rows, row = i % n_rows;
        if (row >= rows.n) continue;
        float sum = all[i];
#pragma unroll
        for (int w = 1; w < WARPS; w++) sum += all[w * width + i];
        if (j.bias) sum += j.bias[rows.first + row];
        bs_cuda_store_act(j.y, token * j.ldy + rows.first + row, j.out_type, sum);
    }
}

template <typename T, int NT>
static __global__ void __launch_bounds__(WARPS *WARP, 3) gemv_kernel(const __grid_constant__ gemv_job j)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* sent elsewhere */
    extern __shared__ __align__(128) uint8_t rings[];
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
    const uint8_t *const ring = rings + warp * j.n_stages * j.stage_bytes;
    const uint32_t to = smem_address(ring) +
                        (uint32_t)(lane / 8 * LINE + (lane % 8 ^ (lane / 8 & 1) << 2) * 16);
    const gemv_part part = part_of_cta<NT>(j);
    const int n_groups = max((j.n_cols + GROUP_COLS - 1) / GROUP_COLS - warp + WARPS - 1, 0) / WARPS;
    const int n = n_groups * part.n_blocks, n_early = min(n, j.n_stages - 1);
    gemv_cursor next;
    bs_cuda_release_next();
    begin_block(j, part, warp, 0, &next);
    for (int i = 0; i < n_early; i++, advance(j, part, warp, &next)) {
        /* Not all at once: the kernel before, and small ones between, must get their loads through. */
        if (j.overlap) wait_for_groups(0);
        load_w<NT>(j, next, to + (uint32_t)(i * j.stage_bytes));
        end_group();
    }
    bs_cuda_wait_before();
    for (int i = 0; i < n_early; i++)
        load_x<NT>(j, warp + i % n_groups * WARPS, to + (uint32_t)(i * j.stage_bytes));
    end_group();
    wait_for_groups(0);
    float *const all = (float *)(rings + WARPS * j.n_stages * j.stage_bytes);
    int left = n - n_early, stage = 0, free_stage = j.n_stages - 1;
    for (int block = 0; block < part.n_blocks; block++) {
        float sums[NT][4] = {};
        for (int k = 0; k < n_groups; k++) {
            wait_for_groups(j.n_stages - 2);
            __syncwarp(); /* all lanes' copies are there, and all have read the stage before */
            if (left > 0) {
                const uint32_t at = to + (uint32_t)(free_stage * j.stage_bytes);
                load_w<NT>(j, next, at);
                load_x<NT>(j, next.group, at);
                advance(j, part, warp, &next);
                left--;
            }
            end_group(); /* also an empty one: they are counted */
            multiply_stage<T, NT>(j, ring + stage * j.stage_bytes, sums);
            free_stage = stage;
            if (++stage == j.n_stages) stage = 0;
        }
        finish_block<NT>(j, rows_of_block(j, part, block), warp, sums, all);
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

template <int NT> static bs_status launch(bs_stream *stream, gemv_job *j, bs_type type, int n_ctas)
{
    static_assert((SMEM_BYTES - WARPS * MAX_TOKENS * NT * TILE_ROWS * 4) /
                          (WARPS * (NT * TILE_ROWS + MAX_TOKENS) * LINE) >=
                      2,
                  "a stage to fill while another is read");
    const int sums_bytes = WARPS * j->n_tokens * NT * TILE_ROWS * 4;
    j->stage_bytes = (NT * TILE_ROWS + j->n_tokens) * LINE;
    j->n_stages = (SMEM_BYTES - sums_bytes) / (WARPS * j->stage_bytes);
    if (j->n_stages > MAX_STAGES) j->n_stages = MAX_STAGES;
    const size_t smem_bytes = (size_t)(WARPS * j->n_stages * j->stage_bytes + sums_bytes);
    void (*kernel)(gemv_job) = type == BS_TYPE_BF16 ? gemv_kernel<__nv_bfloat16, NT>
                                                    : gemv_kernel<__half, NT>;
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024),
        "gemv"));
    return bs_cuda_launch(stream, "gemv", kernel, dim3((unsigned)n_ctas), dim3(WARPS * WARP), smem_bytes, *j);
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
    j.overlap = stream->overlap;
    if (n_tiles <= n_ctas) return launch<1>(stream, &j, w->type, n_ctas);
    return launch<4>(stream, &j, w->type, n_ctas);
}
