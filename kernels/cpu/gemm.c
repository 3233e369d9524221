/* gemm.c: y = x Wᵀ (+ bias) with W in the file's blocks.
 *
 * Few tokens: each row of W is read once from memory and multiplied with all of them, codes expanded in
 * registers (gemm_simd.h). Many tokens: a panel of rows is expanded to f32 in a thread's own part of the
 * workspace, small enough to stay in the second cache, and multiplied with all tokens, some of them at a time,
 * whose x stays in the first. The crossover is where expanding a row once costs less than expanding its codes
 * for every four tokens: measured, docs/perf/LOG.md.
 *
 * Not a CBLAS where there are vector kernels of ours (docs/adr/0006): OpenBLAS takes a CPU that is younger than
 * itself for one of 2004, and its threads are not ours. Machines without such kernels use it.
 *
 * A view that begins or ends inside a block (a cut at a head) is made whole by padding x with zeros instead
 * of cutting the block: weights of the file are finite, so a foreign weight times zero adds nothing.
 *
 * Threads take ranges of rows, so the result does not depend on how many there are.
 */
#include "config.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/pool.h"
#include "src/base/checked.h"

#include <string.h>

#ifdef HAVE_CBLAS
#include <cblas.h>
#endif
#include <stdatomic.h>

enum {
    MAX_BLOCK = 256,
    ROWS_PER_PART = 32,
    TILES_FROM_TOKENS = 12,
    PANEL_ROWS = 32,         /* of W that a thread expands and multiplies at a time */
    MAX_DEPTH = 640,         /* elements of a row that are multiplied at a time */
    X_FLOATS = 8 * 1024,     /* of x beside them in the first cache */
    TILE_FLOATS = 96 * 1024, /* of W for a CBLAS */
    MIN_TILE_ROWS = 16,
};

/* Sums of a row of n elements at most: 16 elements each, the last ones filled up. */
static int64_t max_sums(int64_t n)
{
    return (n / 16 + BS_GEMM_SUMS - 1) / BS_GEMM_SUMS * BS_GEMM_SUMS;
}

static int64_t padded_cols(int64_t n_cols)
{
    return (n_cols + 2 * MAX_BLOCK - 1) / MAX_BLOCK * MAX_BLOCK + MAX_BLOCK;
}

static int64_t tile_rows(int64_t n_cols)
{
    return bs_max_i64(MIN_TILE_ROWS, TILE_FLOATS / bs_max_i64(padded_cols(n_cols), 1));
}

/* x padded to whole blocks and prepared, its sums, and one tile. */
size_t bs_cpu_gemm_workspace(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens)
{
    int64_t cols = padded_cols(n_cols), floats = (int64_t)n_tokens * (cols + max_sums(cols));
    if (n_tokens >= TILES_FROM_TOKENS)
        floats += bs_max_i64(device->info.n_threads * PANEL_ROWS, bs_min_i64(n_rows, tile_rows(n_cols))) *
                  cols;
    return (size_t)floats * sizeof(float) + 64;
}

/* The operands as the row kernels want them: whole blocks. */
typedef struct job {
    const bs_gemm_args *args;
    const uint8_t *data;
    const float *x;
    int64_t ldx, n_blocks, n_padded; /* n_padded: n_blocks × block, for panels at least a multiple of 32 */
    bs_row_args row;
    bs_row_dot *dot;
    bs_row_prepare *make_ready; /* NULL: x as it is */
    bs_row_expand *expand;
    bs_tile_multiply *multiply; /* NULL: a CBLAS, or dot */
    float *panels;
    int n_panels;
    atomic_int n_taken;
} job;

static void choose_kernels(job *j, bs_isa isa)
{
    j->dot = bs_row_dot_scalar;
    j->expand = bs_row_expand_scalar;
#if defined(__x86_64__)
    if (isa == BS_ISA_AVX2) {
        j->dot = bs_row_dot_avx2;
        j->make_ready = bs_row_prepare_avx2;
        j->expand = bs_row_expand_avx2;
        j->multiply = bs_tile_multiply_avx2;
    } else if (isa == BS_ISA_AVX512) {
        j->dot = bs_row_dot_avx512;
        j->make_ready = bs_row_prepare_avx512;
        j->expand = bs_row_expand_avx512;
        j->multiply = bs_tile_multiply_avx512;
    }
#endif
}

static void prepare(job *j, const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    int64_t block = bs_type_block(w->type), T = a->n_tokens;
    j->args = a;
    j->data = w->data;
    j->n_blocks = (w->first_col + w->n_cols + block - 1) / block;
    j->n_padded = j->n_blocks * block;
    if (T >= TILES_FROM_TOKENS && j->multiply) j->n_padded = (j->n_padded + 31) / 32 * 32;
    j->x = a->x;
    j->ldx = a->ldx;
    if (w->n_cols == j->n_padded) return;
    for (int64_t t = 0; t < T; t++) {
        float *to = (float *)a->workspace + t * j->n_padded;
        memset(to, 0, (size_t)j->n_padded * sizeof *to);
        memcpy(to + w->first_col, (const float *)a->x + t * a->ldx, (size_t)w->n_cols * sizeof *to);
    }
    j->x = a->workspace;
    j->ldx = j->n_padded;
}

static void add_bias(const bs_gemm_args *a, int64_t first, int64_t last)
{
    for (int t = 0; a->bias && t < a->n_tokens; t++)
        for (int64_t r = first; r < last; r++) ((float *)a->y)[t * a->ldy + r] += a->bias[r];
}

static void run_rows(void *context, int part)
{
    const job *j = context;
    const bs_gemm_args *a = j->args;
    int64_t first = (int64_t)part * ROWS_PER_PART, last = bs_min_i64(first + ROWS_PER_PART, a->w->n_rows);
    for (int64_t r = first; r < last; r += BS_GEMM_ROWS)
        j->dot(&j->row, j->data + (size_t)r * a->w->row_bytes, (int)bs_min_i64(BS_GEMM_ROWS, last - r),
               (float *)a->y + r);
    add_bias(a, first, last);
}

/* x in the form that the row kernels want, and its sums, in the workspace, where padded x is already. */
static void make_ready(job *j)
{
    const bs_type type = j->args->w->type;
    const int64_t ld_sums = max_sums(j->n_padded), T = j->args->n_tokens;
    float *x = j->args->workspace, *sums = x + T * j->n_padded;
    for (int64_t t = 0; t < T; t++)
        j->make_ready(type, j->n_padded, j->x + t * j->ldx, x + t * j->n_padded, sums + t * ld_sums);
    j->x = x;
    j->ldx = j->n_padded;
    j->row.sums = sums;
    j->row.ld_sums = ld_sums;
}

static void run_gemv(const bs_stream *stream, job *j)
{
    const bs_gemm_args *a = j->args;
    j->row = (bs_row_args){.type = a->w->type,
                           .n_blocks = j->n_blocks,
                           .row_bytes = a->w->row_bytes,
                           .ldy = a->ldy,
                           .n_tokens = a->n_tokens};
    if (j->make_ready && bs_type_block(a->w->type) > 1) make_ready(j);
    j->row.x = j->x;
    j->row.ldx = j->ldx;
    bs_pool_run(bs_stream_pool(stream), (int)bs_ceil_div(a->w->n_rows, ROWS_PER_PART), run_rows, j);
}

/* One thread's scratch, one panel of W after the other. */
static void run_panels(void *context, int part)
{
    job *j = context;
    const bs_gemm_args *a = j->args;
    float *panel = j->panels + (int64_t)part * PANEL_ROWS * j->n_padded;
    const int64_t n_depths = bs_ceil_div(j->n_padded, MAX_DEPTH);
    const int64_t depth = (bs_ceil_div(j->n_padded, n_depths) + 31) / 32 * 32;
    const int64_t tokens = bs_max_i64(6, X_FLOATS / depth / 6 * 6),
                  filled = j->n_blocks * bs_type_block(a->w->type);
    for (int64_t i; (i = atomic_fetch_add(&j->n_taken, 1)) < j->n_panels;) {
        const int64_t first = i * PANEL_ROWS, n_rows = bs_min_i64(PANEL_ROWS, a->w->n_rows - first);
        for (int64_t r = 0; r < n_rows; r++) {
            float *row = panel + r * j->n_padded;
            j->expand(a->w->type, j->data + (size_t)(first + r) * a->w->row_bytes, j->n_blocks, row);
            memset(row + filled, 0, (size_t)(j->n_padded - filled) * sizeof *row);
        }
        for (int64_t k = 0; k < j->n_padded; k += depth)
            for (int64_t t = 0; t < a->n_tokens; t += tokens)
                j->multiply(panel + k, j->n_padded, (int)n_rows, j->x + t * j->ldx + k, j->ldx,
                            (int)bs_min_i64(tokens, a->n_tokens - t), bs_min_i64(depth, j->n_padded - k),
                            k > 0, (float *)a->y + t * a->ldy + first, a->ldy);
        add_bias(a, first, first + n_rows);
    }
}

/* Where tiles begin: behind x, if that was padded. */
static float *tiles_of(const job *j)
{
    return (float *)j->args->workspace + (j->x == j->args->workspace ? j->args->n_tokens * j->n_padded : 0);
}

static void run_gemm(const bs_stream *stream, job *j)
{
    bs_pool *pool = bs_stream_pool(stream);
    j->panels = tiles_of(j);
    j->n_panels = (int)bs_ceil_div(j->args->w->n_rows, PANEL_ROWS);
    bs_pool_run(pool, bs_pool_threads(pool), run_panels, j);
}

#ifdef HAVE_CBLAS
typedef struct expansion {
    const job *j;
    float *tile;
    int64_t first, last;
} expansion;

enum { EXPAND_ROWS = 8 };

static void run_expand(void *context, int part)
{
    const expansion *e = context;
    const job *j = e->j;
    int64_t first = e->first + (int64_t)part * EXPAND_ROWS, last = bs_min_i64(first + EXPAND_ROWS, e->last);
    for (int64_t r = first; r < last; r++)
        j->expand(j->args->w->type, j->data + (size_t)r * j->args->w->row_bytes, j->n_blocks,
                  e->tile + (r - e->first) * j->n_padded);
}

static void run_tiles(const bs_stream *stream, job *j)
{
    const bs_gemm_args *a = j->args;
    float *tile = tiles_of(j);
    int64_t rows = tile_rows(a->w->n_cols);
    for (int64_t first = 0; first < a->w->n_rows; first += rows) {
        int64_t last = bs_min_i64(first + rows, a->w->n_rows);
        expansion e = {j, tile, first, last};
        bs_pool_run(bs_stream_pool(stream), (int)bs_ceil_div(last - first, EXPAND_ROWS), run_expand, &e);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, a->n_tokens, (int)(last - first),
                    (int)j->n_padded, 1, j->x, (int)j->ldx, tile, (int)j->n_padded, 0, (float *)a->y + first,
                    (int)a->ldy);
        add_bias(a, first, last);
    }
}
#endif

bs_status bs_cpu_gemm(bs_stream *stream, const bs_gemm_args *a)
{
    job j = {0};
    if (a->w->n_cols == 0) {
        for (int t = 0; t < a->n_tokens; t++)
            memset((float *)a->y + t * a->ldy, 0, (size_t)a->w->n_rows * sizeof(float));
        add_bias(a, 0, a->w->n_rows);
        return BS_STATUS_OK;
    }
    choose_kernels(&j, stream->device->info.isa); /* never more than this machine has */
    prepare(&j, a);
    if (a->n_tokens >= TILES_FROM_TOKENS && j.multiply) {
        run_gemm(stream, &j);
        return BS_STATUS_OK;
    }
#ifdef HAVE_CBLAS
    if (a->n_tokens >= TILES_FROM_TOKENS) {
        run_tiles(stream, &j);
        return BS_STATUS_OK;
    }
#endif
    run_gemv(stream, &j);
    return BS_STATUS_OK;
}
