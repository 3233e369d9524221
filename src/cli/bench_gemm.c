/* bench_gemm.c: what a GPU's matrix units do at their best here: y = x Wᵀ of 8192³ in bf16, by the library that the engine
 * uses. Random numbers, because zeros are faster. Measured anew before each case that is held to it: a card that has been
 * working is slower than one that has not.
 *
 * Checked by a few elements in fp64. */
#include "config.h"

#include "src/cli/bench.h"
#include "src/cli/prefill_model.h"

#include <math.h>
#include <stdlib.h>

enum { N = 8192, N_CALLS = 8, N_CHECKED = 4 };
#define TOLERANCE 0x1p-7 /* the bf16 result is rounded by 2^-9 */

typedef struct product {
    bs_bench *bench;
    bs_buffer *w, *x, *y, *workspace;
    size_t workspace_bytes;
} product;

static bs_status queue_product(void *context, int i)
{
    product *p = context;
    (void)i;
    const bs_weight w = {.type = BS_TYPE_BF16,
                         .data = bs_buffer_at(p->w, 0),
                         .row_bytes = (size_t)N * 2,
                         .n_rows = N,
                         .n_cols = N};
    return bs_op_gemm(p->bench->stream,
                      &(bs_gemm_args){.w = &w,
                                      .x = bs_buffer_at(p->x, 0),
                                      .ldx = N,
                                      .n_tokens = N,
                                      .act = BS_TYPE_BF16,
                                      .out_type = BS_TYPE_BF16,
                                      .y = bs_buffer_at(p->y, 0),
                                      .ldy = N,
                                      .workspace = p->workspace ? bs_buffer_at(p->workspace, 0) : NULL,
                                      .workspace_bytes = p->workspace_bytes});
}

static bs_status fill(product *p, bs_buffer *matrix, uint32_t tensor)
{
    return bs_op_random_fill(p->bench->stream, &(bs_random_fill_args){.type = BS_TYPE_BF16,
                                                                      .out = bs_buffer_at(matrix, 0),
                                                                      .row_bytes = (size_t)N * 2,
                                                                      .n_rows = N,
                                                                      .n_cols = N,
                                                                      .ld = N,
                                                                      .seed = 3,
                                                                      .tensor = tensor,
                                                                      .std = 1});
}

/* One element of y against its row of x and of W; rows is room for both. */
static bs_status check(product *p, int64_t token, int64_t row, uint16_t *rows)
{
    const size_t bytes = (size_t)N * sizeof *rows;
    bs_stream *stream = p->bench->stream;
    uint16_t got;
    double want = 0, size = 0;
    BS_TRY(bs_copy_to_host(stream, rows, bs_buffer_at(p->x, (size_t)token * bytes), bytes));
    BS_TRY(bs_copy_to_host(stream, rows + N, bs_buffer_at(p->w, (size_t)row * bytes), bytes));
    BS_TRY(bs_copy_to_host(stream, &got, bs_buffer_at(p->y, (size_t)token * bytes + (size_t)row * 2), 2));
    BS_TRY(bs_stream_sync(stream));
    for (int i = 0; i < N; i++) {
        const double term = (double)bs_f32_from_bits((uint32_t)rows[i] << 16) *
                            bs_f32_from_bits((uint32_t)rows[N + i] << 16);
        want += term;
        size += term * term;
    }
    const double y = bs_f32_from_bits((uint32_t)got << 16);
    if (fabs(y - want) <= TOLERANCE * sqrt(size)) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "gemm: element %lld of token %lld is %.6g, not %.6g", (long long)row,
                   (long long)token, y, want);
}

static bs_status measure(product *p)
{
    bs_device *device = p->bench->device;
    const size_t bytes = (size_t)N * N * 2;
    bs_bench_times us;
    BS_TRY(bs_buffer_alloc(device, bytes, "W", &p->w));
    BS_TRY(bs_buffer_alloc(device, bytes, "x", &p->x));
    BS_TRY(bs_buffer_alloc(device, bytes, "y", &p->y));
    p->workspace_bytes = bs_gemm_workspace_bytes(device, N, N, N);
    if (p->workspace_bytes > 0)
        BS_TRY(bs_buffer_alloc(device, p->workspace_bytes, "workspace", &p->workspace));
    BS_TRY(fill(p, p->w, 0));
    BS_TRY(fill(p, p->x, 1));
    BS_TRY(queue_product(p, 0));
    uint16_t *rows = malloc(2 * (size_t)N * sizeof *rows);
    if (!rows) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for two rows");
    bs_status status = BS_STATUS_OK;
    for (int i = 0; i < N_CHECKED && status == BS_STATUS_OK; i++)
        status = check(p, i * (N - 1) / (N_CHECKED - 1), N - 1 - i * 1013, rows);
    free(rows);
    BS_TRY(status);
    BS_TRY(bs_bench_time(p->bench, queue_product, p, N_CALLS, &us, NULL));
    p->bench->gemm_tflop_s = 2.0 * N * N * N / us.median * 1e-6;
    return BS_STATUS_OK;
}

bs_status bs_bench_gemm_ceiling(bs_bench *bench)
{
    product p = {.bench = bench};
    bs_status status = measure(&p);
    bs_buffer_free(p.w);
    bs_buffer_free(p.x);
    bs_buffer_free(p.y);
    bs_buffer_free(p.workspace);
    return status;
}

bool bs_bench_is_chunk(const bs_bench *bench, const bs_bench_case *c)
{
    return bench->gpu && c->op == BS_BENCH_ATTEND && c->n_query >= BS_BENCH_CHUNK;
}

double bs_bench_flop(const bs_bench_case *c)
{
    const double pairs = bs_prefill_seen_pairs(c->window, c->context - c->n_query, c->n_query);
    return 4.0 * c->head_dim * c->n_heads * c->n_seqs * pairs;
}
