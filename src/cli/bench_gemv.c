/* bench_gemv.c: y = W x with W in a weight file's blocks, as a decode step calls it.
 *
 * The matrix has a few random rows again and again, and as many copies of it as the rotation takes, so that
 * blocks come from memory. Checked before: every 61st row of the first and the last copy, all tokens, in fp64
 * over the dequantized row, relative to the sum of |x| times the row's largest weight (codes and minima are
 * summed apart and may cancel). */
#include "config.h"

#include "src/cli/bench.h"
#include "src/model/make_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SOURCES = 64, CHECK_EVERY = 61 }; /* rows; 61 and 64 have no common factor */
#define TOLERANCE 1e-6                     /* f32 sums: tests/tolerances.h, TOL_GEMM */

typedef struct gemv {
    bs_bench *bench;
    const bs_bench_case *item;
    bs_buffer *weights, *x, *y, *workspace;
    size_t row_bytes, workspace_bytes;
    int n_calls;
} gemv;

static bs_status queue_gemv(void *context, int i)
{
    gemv *g = context;
    const bs_bench_case *c = g->item;
    const bs_weight w = {.type = c->type,
                         .data = bs_buffer_at(g->weights, (size_t)i * (size_t)c->n_rows * g->row_bytes),
                         .row_bytes = g->row_bytes,
                         .n_rows = c->n_rows,
                         .n_cols = c->n_cols};
    return bs_op_gemm(g->bench->stream,
                      &(bs_gemm_args){.w = &w,
                                      .x = bs_buffer_at(g->x, 0),
                                      .ldx = c->n_cols,
                                      .n_tokens = c->n_query,
                                      .act = BS_TYPE_F32,
                                      .out_type = BS_TYPE_F32,
                                      .y = bs_buffer_at(g->y, 0),
                                      .ldy = c->n_rows,
                                      .workspace = g->workspace ? bs_buffer_at(g->workspace, 0) : NULL,
                                      .workspace_bytes = g->workspace_bytes});
}

static bs_status fill(gemv *g)
{
    const bs_bench_case *c = g->item;
    float *scratch = malloc((size_t)c->n_cols * sizeof *scratch);
    uint8_t *source = malloc(N_SOURCES * g->row_bytes), *to = bs_buffer_at(g->weights, 0);
    float *x = bs_buffer_at(g->x, 0);
    uint64_t seed = 5;
    bs_status status = BS_STATUS_OK;
    if (!scratch || !source) {
        status = bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d rows", N_SOURCES);
        goto err_free;
    }
    for (int r = 0; r < N_SOURCES; r++)
        BS_TRY_GOTO(
            bs_make_model_row((uint64_t)r, c->type, 1, c->n_cols, scratch, source + (size_t)r * g->row_bytes),
            err_free);
    for (int64_t r = 0; r < g->n_calls * c->n_rows; r++)
        memcpy(to + (size_t)r * g->row_bytes, source + (size_t)(r % N_SOURCES) * g->row_bytes, g->row_bytes);
    for (int64_t i = 0; i < c->n_query * c->n_cols; i++)
        x[i] = (float)(int64_t)bs_bench_random(&seed) * 0x1p-63f;
err_free:
    free(scratch);
    free(source);
    return status;
}

static bs_status check_row(const gemv *g, const float *w, int64_t row)
{
    const bs_bench_case *c = g->item;
    for (int t = 0; t < c->n_query; t++) {
        const float *x = (const float *)bs_buffer_at(g->x, 0) + t * c->n_cols;
        const float got = ((const float *)bs_buffer_at(g->y, 0))[t * c->n_rows + row];
        double want = 0, size = 0, largest = 0;
        for (int64_t i = 0; i < c->n_cols; i++) {
            want += (double)w[i] * x[i];
            size += fabs(x[i]);
            largest = fmax(largest, fabs(w[i]));
        }
        if (!(fabs(got - want) <= TOLERANCE * size * largest))
            return bs_fail(BS_STATUS_MISMATCH, "gemv: row %lld of token %d is %.9g, not %.9g", (long long)row,
                           t, got, want);
    }
    return BS_STATUS_OK;
}

static bs_status check(gemv *g, int call)
{
    const bs_bench_case *c = g->item;
    bs_status status;
    float *row = malloc((size_t)c->n_cols * sizeof *row);
    if (!row) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for a row");
    memset(bs_buffer_at(g->y, 0), 0xff, bs_buffer_bytes(g->y));
    BS_TRY_GOTO(queue_gemv(g, call), err_row);
    for (int64_t r = 0; r < c->n_rows; r += CHECK_EVERY) {
        const uint8_t *blocks = bs_buffer_at(g->weights,
                                             ((size_t)call * (size_t)c->n_rows + (size_t)r) * g->row_bytes);
        BS_TRY_GOTO(bs_dequantize_row(c->type, blocks, row, c->n_cols), err_row);
        BS_TRY_GOTO(check_row(g, row, r), err_row);
    }
err_row:
    free(row);
    return status;
}

static bs_status run(gemv *g, int number)
{
    const bs_bench_case *c = g->item;
    bs_device *device = g->bench->device;
    bs_bench_row row = {.item = c, .number = number, .mode = "plain", .bytes = bs_bench_bytes(c, NULL)};
    g->row_bytes = (size_t)(c->n_cols / bs_type_block(c->type)) * (size_t)bs_type_block_bytes(c->type);
    g->n_calls = 1 + (int)(BS_BENCH_ROTATE_CPU / row.bytes);
    BS_TRY(bs_buffer_alloc(device, (size_t)g->n_calls * (size_t)c->n_rows * g->row_bytes, "weights",
                           &g->weights));
    BS_TRY(bs_buffer_alloc(device, (size_t)(c->n_query * c->n_cols) * sizeof(float), "x", &g->x));
    BS_TRY(bs_buffer_alloc(device, (size_t)(c->n_query * c->n_rows) * sizeof(float), "y", &g->y));
    g->workspace_bytes = bs_gemm_workspace_bytes(device, c->n_rows, c->n_cols, c->n_query);
    if (g->workspace_bytes > 0)
        BS_TRY(bs_buffer_alloc(device, g->workspace_bytes, "workspace", &g->workspace));
    BS_TRY(fill(g));
    BS_TRY(check(g, 0));
    BS_TRY(check(g, g->n_calls - 1));
    BS_TRY(bs_bench_time(g->bench, queue_gemv, g, g->n_calls, &row.us, NULL));
    return bs_bench_report(g->bench, &row);
}

bs_status bs_bench_gemv(bs_bench *bench, const bs_bench_case *item, int number)
{
    gemv g = {.bench = bench, .item = item};
    bs_status status = run(&g, number);
    bs_buffer_free(g.weights);
    bs_buffer_free(g.x);
    bs_buffer_free(g.y);
    bs_buffer_free(g.workspace);
    return status;
}
