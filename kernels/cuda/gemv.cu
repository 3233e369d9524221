/* gemv.cu: y = x Wᵀ for up to 16 tokens, bound by reading W once.
 *
 * Math     y[t, r] = Σ_c x[t, c] · W[r, c] (+ bias[r]); gated: y[t, r] = silu(the sum of row r) · (that of row r + rows / 2).
 * Layout   W [rows, cols] BF16 or F16, x of the same type; rows, row_bytes, ldx and cols in chunks of 16 bytes.
 * Mapping  a CTA an SM; tiles of 8 rows are dealt evenly, contiguous. A CTA's 8 warps share the columns, 64 at a time in
 * turns (a group); each has a ring of its own in shared memory, filled by cp.async a cache line a row: no barrier but at
 * a block's end. mma.m16n8k16 with the tokens as its 16 rows and a tile's rows as its 8 columns: one 16-byte load of
 * shared memory gives a lane the operands of two of them, because the order of columns inside a sum is free as long as
 * W and x agree. The warps' sums meet once a block: up to 7 quads of 4 tiles, so that x is read once for 224 rows. A slot
 * of the ring is a quad's lines of a group, 4 KB; x goes past it, straight into registers, a group ahead, for all quads.
 * Where a CTA has 3 quads or fewer, two of a cluster take twice the rows and half the columns each; their sums meet in
 * shared memory too. Gated, the rows of the two halves alternate, so that a thread has both sums.
 * Cost     rows × cols × 2 B of W; x comes from the L2 once a block: at 16 tokens, 1/14 of W's bytes (gate and up as one)
 * to 1/4 (o, down). Tensor cores: an mma for 128 weights, one in 13 clocks of an SM.
 * Overlap  the ring is filled with W before the wait for the kernel before, and x follows after it. A CTA has an SM's
 * shared memory to itself: where two fit, the SMs that fall free first get two and the last none.
 * Numerics products of act, sums in f32: 16 columns at a time in the tensor core, then over a warp's columns in order,
 * then over the warps in order, a cluster's first CTA first. The same bits run to run.
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
    WARPS = 8,
    QUAD = 4, /* tiles of a slot of W */
    QUAD_ROWS = QUAD * TILE_ROWS,
    SLOT_BYTES = QUAD_ROWS * LINE,
    N_SLOTS = 6,                   /* of a warp's ring */
    EARLY_UNITS = 1,               /* that are on their way when a warp asks for one more under overlap */
    MAX_QUADS = 7,                 /* that a block's sums stay in registers for */
    CLUSTER = 2,                   /* CTAs that share rows of a narrow part: 1, 2 or 4 */
    CLUSTER_QUADS = 3,             /* a part is narrow up to here */
    REGISTERS = 192,               /* a thread's: a norm of 256 threads fits beside */
    SUMS = MAX_TOKENS * TILE_ROWS, /* of a warp and a tile */
    SUMS_BYTES = 32 * 1024,
    SMEM_BYTES = WARPS * N_SLOTS * SLOT_BYTES + SUMS_BYTES
};

/* C CTAs of a cluster share a part's rows; their warps are dealt the columns as if they were one CTA's. Rows are counted as
 * they are dealt: of a gated product row 2i is row i of the matrix, row 2i + 1 that of the other half. */
typedef struct gemv_job {
    const uint8_t *w, *x;
    size_t row_bytes, ldx_bytes;
    size_t step_bytes,
        half_bytes; /* from a row to the next in the long run; gated: to the other half, else 0 */
    const float *bias;
    void *y;
    int64_t ldy;
    int n_rows, n_cols, n_tokens;
    bs_type out_type;
    bool overlap;
    int n_tiles, n_longer; /* of a part, and how many parts have one more */
    int block_rows;        /* full quads; a part's last block may have fewer */
} gemv_job;

/* What a warp does. Its next group is C · WARPS on. */
typedef struct gemv_part {
    int first_row, n_rows, first_group, n_groups;
} gemv_part;

template <int C> static __device__ __forceinline__ gemv_part part_of_warp(const gemv_job &j, int warp)
{
    const int index = (int)blockIdx.x / C, first = index * j.n_tiles + min(index, j.n_longer),
              end = first + j.n_tiles + (index < j.n_longer),
              n_groups = (j.n_cols + GROUP_COLS - 1) / GROUP_COLS;
    gemv_part p;
    p.first_row = first * TILE_ROWS;
    p.n_rows = min(end * TILE_ROWS, j.n_rows) - p.first_row;
    p.first_group = (int)blockIdx.x % C * WARPS + warp;
    p.n_groups = max(n_groups - p.first_group + C * WARPS - 1, 0) / (C * WARPS);
    return p;
}

/* ---- loads ---- */

static __device__ __forceinline__ void copy_16(uint32_t to, const uint8_t *from, uint32_t size)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
}

static __device__ __forceinline__ void end_group()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void wait_for_all_but()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* The unit that is loaded next: a quad's lines of a group. */
typedef struct gemv_cursor {
    const uint8_t *line, *w;  /* this lane's bytes of the block's first row, of the quad's */
    int k, n_cols;            /* which of the warp's groups; columns from this lane's to the last */
    int n_rows, n_block_rows; /* of the block, from the quad's first, from its own */
    int n_left;               /* of the part, from the block's first */
} gemv_cursor;

static __device__ __forceinline__ gemv_cursor first_unit(const gemv_job &j, const gemv_part &p)
{
    const int lane = threadIdx.x % WARP;
    gemv_cursor c;
    c.k = 0;
    c.n_left = p.n_rows;
    c.n_rows = c.n_block_rows = min(j.block_rows, p.n_rows);
    c.n_cols = j.n_cols - p.first_group * GROUP_COLS - lane % 8 * 8;
    c.line = j.w + (size_t)p.first_row * j.step_bytes + (size_t)(p.first_group * LINE + lane % 8 * 16);
    if (j.half_bytes > 0) c.line += (size_t)(lane / 16) * j.row_bytes + (size_t)(lane / 8 % 2) * j.half_bytes;
    else c.line += (size_t)(lane / 8) * j.row_bytes;
    c.w = c.line;
    return c;
}

/* One unit to `to`, this lane's place in the slot, and on to the next one. Lanes load a line of 4 rows together: lane / 8 is
 * the row, lane % 8 the 16 bytes of its line. The halves of odd rows' lines are swapped in shared memory, so that the lanes
 * of two rows that read 64 bytes each meet in no bank. Rows that do not exist are left as they
 * are: nobody looks at their sums. */
template <int C>
static __device__ __forceinline__ void load_unit(const gemv_job &j, const gemv_part &p, uint32_t to,
                                                 gemv_cursor *c)
{
    constexpr int STRIDE = C * WARPS;
    const uint32_t size = c->n_cols > 0 ? 16 : 0;
    const size_t ld = 4 * j.step_bytes;
    const uint8_t *from = c->w;
    if (c->n_rows >= QUAD_ROWS) {
#pragma unroll
        for (int i = 0; i < QUAD * 2; i++, from += ld) copy_16(to + i * 4 * LINE, from, size);
    } else {
#pragma unroll 1
        for (int row = (int)threadIdx.x % WARP / 8; row < c->n_rows; row += 4, from += ld, to += 4 * LINE)
            copy_16(to, from, size);
    }
    c->n_rows -= QUAD_ROWS;
    c->w = from; /* of a full quad: the next one */
    if (c->n_rows > 0) return;
    c->line += STRIDE * LINE;
    c->n_cols -= STRIDE * GROUP_COLS;
    if (++c->k == p.n_groups) {
        c->line += (size_t)c->n_block_rows * j.step_bytes - (size_t)(p.n_groups * STRIDE * LINE);
        c->n_cols += p.n_groups * STRIDE * GROUP_COLS;
        c->k = 0;
        c->n_left -= c->n_block_rows;
        c->n_block_rows = min(j.block_rows, c->n_left);
    }
    c->w = c->line;
    c->n_rows = c->n_block_rows;
}

/* x past the L1, which may have what was there before; zeros where it does not exist. */
static __device__ __forceinline__ uint4 load_16(const uint8_t *from, bool exists)
{
    uint4 v;
    asm volatile("{\n"
                 ".reg .pred exists;\n"
                 "setp.ne.u32 exists, %5, 0;\n"
                 "mov.u32 %0, 0;\n"
                 "mov.u32 %1, 0;\n"
                 "mov.u32 %2, 0;\n"
                 "mov.u32 %3, 0;\n"
                 "@exists ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(from), "r"((uint32_t)exists)
                 : "memory");
    return v;
}

/* A group's x in the registers of lane (g, q), which holds columns 8q … 8q + 7 of each half line, of tokens g and g + 8 and
 * of row g of a tile: two registers of them are k 2q, 2q + 1 and 2q + 8, 2q + 9 of one mma, the other two of a second. */
typedef struct group_x {
    uint4 low[2], high[2];
} group_x;

static __device__ __forceinline__ void load_group_of_x(const gemv_job &j, int group, group_x *x)
{
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const uint8_t *from = j.x + (size_t)g * j.ldx_bytes + (size_t)(group * LINE + q * 16);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool here = group * GROUP_COLS + half * 32 + q * 8 < j.n_cols;
        x->low[half] = load_16(from + half * 64, here && g < j.n_tokens);
        x->high[half] = load_16(from + half * 64 + 8 * j.ldx_bytes, here && g + 8 < j.n_tokens);
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

/* `at`: where this lane reads in the slot. */
template <typename T>
static __device__ __forceinline__ void multiply_unit(uint32_t at, const group_x &x, float sums[QUAD][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++, at ^= 64) {
        const uint4 low = x.low[half], high = x.high[half];
        const uint4 a[2] = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
        uint4 b[QUAD];
#pragma unroll
        for (int tile = 0; tile < QUAD; tile++) b[tile] = load_shared(at + tile * TILE_ROWS * LINE);
#pragma unroll
        for (int tile = 0; tile < QUAD; tile++) multiply<T>(sums[tile], a[0], b[tile].x, b[tile].y);
#pragma unroll
        for (int tile = 0; tile < QUAD; tile++) multiply<T>(sums[tile], a[1], b[tile].z, b[tile].w);
    }
}

/* ---- sums of all warps ---- */

/* A cluster's barrier is in two halves. A CTA's stores to another are released; that it has read is not, since the
 * sums that it read are used before it arrives. */
static __device__ __forceinline__ void cluster_arrive_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

static __device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

static __device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

/* The same place in the shared memory of CTA `rank` of the cluster. */
static __device__ __forceinline__ uint32_t address_in(uint32_t at, int rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

static __device__ __forceinline__ void put_pair(uint32_t at, float a, float b)
{
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(a), "f"(b) : "memory");
}

/* A thread's pair of sums over all warps, in order, and on to y. */
template <int N_WARPS, int WIDTH>
static __device__ __forceinline__ void write_sums(const gemv_job &j, const float *all, int token, int64_t row,
                                                  bool both)
{
    const float2 *from = (const float2 *)all + threadIdx.x;
    float2 sum = *from;
#pragma unroll
    for (int w = 1; w < N_WARPS; w++) {
        const float2 more = from[w * WIDTH / 2];
        sum.x += more.x;
        sum.y += more.y;
    }
    if (j.half_bytes > 0) {
        bs_cuda_store_act(j.y, token * j.ldy + row / 2, j.out_type, bs_cuda_silu(sum.x) * sum.y);
        return;
    }
    if (j.bias) {
        sum.x += j.bias[row];
        if (both) sum.y += j.bias[row + 1];
    }
    bs_cuda_store_act(j.y, token * j.ldy + row, j.out_type, sum.x);
    if (both) bs_cuda_store_act(j.y, token * j.ldy + row + 1, j.out_type, sum.y);
}

/* Adds up a block's sums of all warps and writes y, STEP quads at a time; of a quad, each CTA of a cluster adds up
 * its own tiles: [warp of the cluster][quad of the step][own tile][token][row of the tile] in `area`. A CTA alone has
 * two areas in turn, so that a barrier a step is enough. In a cluster, cluster_wait() ends what began when the others'
 * areas were last free, and at first when they started. */
template <int NQ, int C>
static __device__ __forceinline__ void finish_quads(const gemv_job &j, int first_row, int n_rows,
                                                    bool is_last, const float sums[NQ * QUAD][4], float *area,
                                                    int *turn)
{
    constexpr int STEP = C == 1 ? 1 : 2, OWN = QUAD / C, WIDTH = STEP * OWN * SUMS;
    static_assert((C == 1 ? 2 : C) * WARPS * WIDTH * 4 <= SUMS_BYTES, "room for the sums");
    static_assert(WIDTH / 2 <= WARPS * WARP, "two sums a thread");
    const int i = threadIdx.x, lane = i % WARP, rank = (int)blockIdx.x % C;
    /* Of the pair of sums that this thread adds up, of a row and the next: */
    const int tile = i / (SUMS / 2), token = i / (TILE_ROWS / 2) % MAX_TOKENS,
              row_of_step = tile / OWN * QUAD_ROWS + (rank * OWN + tile % OWN) * TILE_ROWS +
                            i % (TILE_ROWS / 2) * 2;
#pragma unroll
    for (int first = 0; first < NQ; first += STEP) {
        if (first * QUAD_ROWS >= n_rows) continue;
        float *const all = area + (C == 1 ? *turn * WARPS * WIDTH : 0);
        float *const own = all + (rank * WARPS + i / WARP) * WIDTH + 2 * lane; /* token lane / 4 */
        uint32_t there[C];
        if (C > 1) cluster_wait();
#pragma unroll
        for (int c = 0; c < C; c++) there[c] = C == 1 ? 0 : address_in(smem_address(own), c);
#pragma unroll
        for (int t = 0; t < STEP * QUAD; t++) {
            if (first * QUAD + t >= NQ * QUAD) continue;
            const float *sum = sums[first * QUAD + t];
            const int to = (t / QUAD * OWN + t % OWN) * SUMS;
            if (C == 1) {
                *(float2 *)(own + to) = make_float2(sum[0], sum[1]);
                if (j.n_tokens > 8) *(float2 *)(own + to + SUMS / 2) = make_float2(sum[2], sum[3]);
            } else {
                put_pair(there[t % QUAD / OWN] + to * 4, sum[0], sum[1]);
                if (j.n_tokens > 8) put_pair(there[t % QUAD / OWN] + (to + SUMS / 2) * 4, sum[2], sum[3]);
            }
        }
        if (C > 1) {
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
            *turn ^= 1;
        }
        const int row = first * QUAD_ROWS + row_of_step;
        if (i < WIDTH / 2 && token < j.n_tokens && row < n_rows)
            write_sums<C * WARPS, WIDTH>(j, all, token, first_row + row, row + 1 < n_rows);
        if (C > 1 && !(is_last && (first + STEP) * QUAD_ROWS >= n_rows)) cluster_arrive_relaxed();
    }
}

template <typename T, int NQ, int C> static __device__ __forceinline__ void run_gemv(const gemv_job &j)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t rings[];
    const int warp = __shfl_sync(~0u, (int)threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
    const uint32_t ring = smem_address(rings) + (uint32_t)(warp * N_SLOTS * SLOT_BYTES),
                   last_slot = ring + (N_SLOTS - 1) * SLOT_BYTES,
                   to = (uint32_t)(lane / 8 * LINE + (lane % 8 ^ (lane / 8 & 1) << 2) * 16),
                   at = (uint32_t)(lane / 4 * LINE + (lane % 4 ^ (lane / 4 & 1) << 2) * 16);
    const gemv_part part = part_of_warp<C>(j, warp);
    int n_left = part.n_groups * ((part.n_rows + QUAD_ROWS - 1) / QUAD_ROWS); /* units */
    gemv_cursor next = first_unit(j, part);
    group_x next_x = {};
    bs_cuda_release_next();
    if (C > 1) cluster_arrive_relaxed(); /* it has started */
#pragma unroll 1
    for (uint32_t slot = ring; slot < last_slot; slot += SLOT_BYTES) {
        /* Not all at once: the kernel before, and small ones between, must get their loads through. */
        if (j.overlap) wait_for_all_but<EARLY_UNITS>();
        if (n_left > 0) {
            load_unit<C>(j, part, slot + to, &next);
            n_left--;
        }
        end_group(); /* also an empty one: they are counted */
    }
    bs_cuda_wait_before();
    if (part.n_groups > 0) load_group_of_x(j, part.first_group, &next_x);
    float *const area = (float *)(rings + WARPS * N_SLOTS * SLOT_BYTES);
    uint32_t slot = ring, free_slot = last_slot;
    int turn = 0;
    for (int first_row = 0; first_row < part.n_rows; first_row += j.block_rows) {
        const int n_rows = min(j.block_rows, part.n_rows - first_row);
        const bool is_last = first_row + n_rows == part.n_rows;
        float sums[NQ * QUAD][4] = {};
        for (int k = 0; k < part.n_groups; k++) {
            const group_x x = next_x;
            const bool again = k + 1 == part.n_groups;
            if (!(again && is_last))
                load_group_of_x(j, part.first_group + (again ? 0 : k + 1) * C * WARPS, &next_x);
#pragma unroll
            for (int quad = 0; quad < NQ; quad++) {
                if (quad * QUAD_ROWS >= n_rows) break;
                wait_for_all_but<N_SLOTS - 2>();
                __syncwarp(); /* all lanes' copies are there, and all have read the slot before */
                if (n_left > 0) {
                    load_unit<C>(j, part, free_slot + to, &next);
                    n_left--;
                }
                end_group();
                multiply_unit<T>(slot + at, x, sums + quad * QUAD);
                free_slot = slot;
                slot = slot == last_slot ? ring : slot + SLOT_BYTES;
            }
        }
        finish_quads<NQ, C>(j, part.first_row + first_row, n_rows, is_last, sums, area, &turn);
    }
#endif
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CLUSTER_DIMS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_DIMS
#endif

template <typename T, int NQ>
static __global__ void __maxnreg__(REGISTERS) gemv_kernel(const __grid_constant__ gemv_job j)
{
    run_gemv<T, NQ, 1>(j);
}

template <typename T, int NQ>
static __global__ void CLUSTER_DIMS __maxnreg__(REGISTERS)
    gemv_cluster_kernel(const __grid_constant__ gemv_job j)
{
    run_gemv<T, NQ, CLUSTER>(j);
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

typedef void (*gemv_function)(gemv_job);

template <typename T> static gemv_function choose_kernel(int n_quads, bool in_clusters)
{
    if (n_quads <= 4) return in_clusters ? gemv_cluster_kernel<T, 4> : gemv_kernel<T, 4>;
    return in_clusters ? gemv_cluster_kernel<T, MAX_QUADS> : gemv_kernel<T, MAX_QUADS>;
}

static int divide_up(int a, int b)
{
    return (a + b - 1) / b;
}

/* A CTA an SM. Where that leaves a CTA few rows, x is much of what it reads: then clusters of CTAs share more rows. */
bs_status bs_cuda_gemv(bs_stream *stream, const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    const int n_tiles = divide_up((int)w->n_rows, TILE_ROWS);
    int n_sms;
    BS_TRY(bs_cuda_attribute(cudaDevAttrMultiProcessorCount, "gemv", &n_sms));
    const bool in_clusters = CLUSTER > 1 && n_sms >= CLUSTER &&
                             divide_up(n_tiles, n_sms * QUAD) <= CLUSTER_QUADS;
    const int a_part = in_clusters ? CLUSTER : 1;
    int n_parts = n_sms / a_part;
    if (n_parts > n_tiles) n_parts = n_tiles;
    const int n_quads = divide_up(divide_up(n_tiles, n_parts), QUAD);
    const int n_a_block = divide_up(n_quads, divide_up(n_quads, MAX_QUADS));
    gemv_job j = {};
    j.w = (const uint8_t *)bs_cuda_weight_data(w);
    j.x = (const uint8_t *)a->x;
    j.row_bytes = w->row_bytes;
    j.ldx_bytes = (size_t)a->ldx * 2;
    j.step_bytes = a->gated ? w->row_bytes / 2 : w->row_bytes;
    j.half_bytes = a->gated ? (size_t)(w->n_rows / 2) * w->row_bytes : 0;
    j.bias = a->bias;
    j.y = a->y;
    j.ldy = a->ldy;
    j.n_rows = (int)w->n_rows;
    j.n_cols = (int)w->n_cols;
    j.n_tokens = a->n_tokens;
    j.out_type = a->out_type;
    j.overlap = stream->overlap;
    j.n_tiles = n_tiles / n_parts;
    j.n_longer = n_tiles % n_parts;
    j.block_rows = n_a_block * QUAD_ROWS;
    const gemv_function kernel = w->type == BS_TYPE_BF16
                                     ? choose_kernel<__nv_bfloat16>(n_a_block, in_clusters)
                                     : choose_kernel<__half>(n_a_block, in_clusters);
    BS_TRY(bs_cuda_status(
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES),
        "gemv"));
    return bs_cuda_launch(stream, "gemv", kernel, dim3((unsigned)(n_parts * a_part)), dim3(WARPS * WARP),
                          SMEM_BYTES, j);
}
