/* bench_gemv.c: y = W x as a decode step calls it: W in a weight file's blocks on a CPU, in 16 bits on a GPU.
 *
 * The matrix has a few random rows again and again, and as many copies of it as the rotation takes, so that
 * W comes from memory. Checked before: every 61st row of the first and the last copy, all tokens, in fp64
 * over the dequantized row, relative to the sum of |x| times the row's largest weight (codes and minima are
 * summed apart and may cancel). x has 16-bit numbers on a GPU, y is f32 on both. */
#include "config.h"

#include "src/cli/bench.h"
#include "src/model/make_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SOURCES = 64, CHECK_EVERY = 61 }; /* rows; 61 and 64 have no common factor */
#define TOLERANCE     1e-6                 /* f32 sums: tests/tolerances.h, TOL_GEMM */
#define TOLERANCE_GPU 2e-6                 /* TOL_GEMM_GPU */

typedef struct gemv {
    bs_bench *bench;
    const bs_bench_case *item;
    bs_buffer *weights, *x, *y, *workspace;
    size_t row_bytes, workspace_bytes;
    int n_calls;
    bs_type act;
    uint8_t *source;              /* the rows that W repeats */
    float *host_x, *host_y, *row; /* host_x: rounded to act; row: one of W, dequantized */
} gemv;

/* f32 numbers of a 16-bit float each, so that rounding them to act changes nothing. */
static float draw_x(uint64_t *seed)
{
    return (float)(int)(bs_bench_random(seed) % 255) * 0x1p-7f - 127 * 0x1p-7f;
}

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
                                      .act = g->act,
                                      .out_type = BS_TYPE_F32,
                                      .y = bs_buffer_at(g->y, 0),
                                      .ldy = c->n_rows,
                                      .workspace = g->workspace ? bs_buffer_at(g->workspace, 0) : NULL,
                                      .workspace_bytes = g->workspace_bytes});
}

/* The source rows, then what is there again until W is full. */
static bs_status fill_weights(gemv *g)
{
    const bs_bench_case *c = g->item;
    const size_t total = (size_t)g->n_calls * (size_t)c->n_rows * g->row_bytes;
    size_t done = N_SOURCES * g->row_bytes < total ? N_SOURCES * g->row_bytes : total;
    uint8_t *to = bs_buffer_at(g->weights, 0);
    for (int r = 0; r < N_SOURCES; r++)
        BS_TRY(bs_make_model_row((uint64_t)r, c->type, 1, c->n_cols, g->row,
                                 g->source + (size_t)r * g->row_bytes));
    BS_TRY(bs_copy_to_device(g->bench->stream, to, g->source, done));
    while (done < total) {
        const size_t n = done < total - done ? done : total - done; /* whole sources, but for the last */
        BS_TRY(bs_copy_on_device(g->bench->stream, to + done, to, n));
        done += n;
    }
    return bs_stream_sync(g->bench->stream);
}

static bs_status fill_x(gemv *g)
{
    const int64_t n = g->item->n_query * g->item->n_cols;
    const size_t bytes = (size_t)n * (size_t)bs_type_block_bytes(g->act);
    uint64_t seed = 5;
    for (int64_t i = 0; i < n; i++) g->host_x[i] = draw_x(&seed);
    void *x = malloc(bytes);
    if (!x) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for x");
    bs_status status = bs_quantize_row(g->act, g->host_x, x, n);
    if (status == BS_STATUS_OK) status = bs_copy_to_device(g->bench->stream, bs_buffer_at(g->x, 0), x, bytes);
    if (status == BS_STATUS_OK) status = bs_stream_sync(g->bench->stream);
    free(x);
    return status;
}

static bs_status check_row(const gemv *g, int64_t row)
{
    const bs_bench_case *c = g->item;
    for (int t = 0; t < c->n_query; t++) {
        const float *x = g->host_x + t * c->n_cols;
        const float got = g->host_y[t * c->n_rows + row];
        double want = 0, size = 0, largest = 0;
        for (int64_t i = 0; i < c->n_cols; i++) {
            want += (double)g->row[i] * x[i];
            size += fabs(x[i]);
            largest = fmax(largest, fabs(g->row[i]));
        }
        if (!(fabs(got - want) <= (g->bench->gpu ? TOLERANCE_GPU : TOLERANCE) * size * largest))
            return bs_fail(BS_STATUS_MISMATCH, "gemv: row %lld of token %d is %.9g, not %.9g", (long long)row,
                           t, got, want);
    }
    return BS_STATUS_OK;
}

static bs_status check(gemv *g, int call)
{
    const bs_bench_case *c = g->item;
    const size_t bytes = (size_t)(c->n_query * c->n_rows) * sizeof *g->host_y;
    memset(g->host_y, 0xff, bytes);
    BS_TRY(bs_copy_to_device(g->bench->stream, bs_buffer_at(g->y, 0), g->host_y, bytes));
    BS_TRY(queue_gemv(g, call));
    BS_TRY(bs_copy_to_host(g->bench->stream, g->host_y, bs_buffer_at(g->y, 0), bytes));
    BS_TRY(bs_stream_sync(g->bench->stream));
    for (int64_t r = 0; r < c->n_rows; r += CHECK_EVERY) {
        const uint8_t *blocks = g->source + (size_t)((call * c->n_rows + r) % N_SOURCES) * g->row_bytes;
        BS_TRY(bs_dequantize_row(c->type, blocks, g->row, c->n_cols));
        BS_TRY(check_row(g, r));
    }
    return BS_STATUS_OK;
}

static bs_status run(gemv *g, int number)
{
    const bs_bench_case *c = g->item;
    bs_device *device = g->bench->device;
    const size_t n_x = (size_t)(c->n_query * c->n_cols), n_y = (size_t)(c->n_query * c->n_rows);
    bs_bench_row row = {.item = c, .number = number, .mode = "plain", .bytes = bs_bench_bytes(c, NULL)};
    bs_bench_times overlap;
    g->act = g->bench->gpu ? c->type : BS_TYPE_F32;
    g->row_bytes = (size_t)(c->n_cols / bs_type_block(c->type)) * (size_t)bs_type_block_bytes(c->type);
    g->n_calls = 1 + (int)((g->bench->gpu ? BS_BENCH_ROTATE_GPU : BS_BENCH_ROTATE_CPU) / row.bytes);
    g->source = malloc(N_SOURCES * g->row_bytes);
    g->row = malloc((size_t)c->n_cols * sizeof *g->row);
    g->host_x = malloc(n_x * sizeof *g->host_x);
    g->host_y = malloc(n_y * sizeof *g->host_y);
    if (!g->source || !g->row || !g->host_x || !g->host_y)
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %lld rows", (long long)c->n_rows);
    BS_TRY(bs_buffer_alloc(device, (size_t)g->n_calls * (size_t)c->n_rows * g->row_bytes, "weights",
                           &g->weights));
    BS_TRY(bs_buffer_alloc(device, n_x * (size_t)bs_type_block_bytes(g->act), "x", &g->x));
    BS_TRY(bs_buffer_alloc(device, n_y * sizeof(float), "y", &g->y));
    g->workspace_bytes = bs_gemm_workspace_bytes(device, c->n_rows, c->n_cols, c->n_query);
    if (g->workspace_bytes > 0)
        BS_TRY(bs_buffer_alloc(device, g->workspace_bytes, "workspace", &g->workspace));
    BS_TRY(fill_weights(g));
    BS_TRY(fill_x(g));
    BS_TRY(check(g, 0));
    BS_TRY(check(g, g->n_calls - 1));
    BS_TRY(bs_bench_time(g->bench, queue_gemv, g, g->n_calls, &row.us, g->bench->gpu ? &overlap : NULL));
    BS_TRY(bs_bench_report(g->bench, &row));
    if (!g->bench->gpu) return BS_STATUS_OK;
    row.mode = "overlap";
    row.us = overlap;
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
    free(g.source);
    free(g.row);
    free(g.host_x);
    free(g.host_y);
    return status;
}
