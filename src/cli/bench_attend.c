/* bench_attend.c: one case of attend: builds its cache, runs every layer once, holds a few (token, head)
 * pairs to fp64, times, and sees that the timed runs, in a graph and overlapped, left the same bits.
 *
 * A call attends to one layer of the pool, call after call to the next, so that a rotation reads L layers and
 * each layer's bytes come from memory, as in a model. Layers have outputs of their own; workspace and page
 * lists are shared, as in a model. */
#include "config.h"

#include "src/cli/bench_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_PAIRS = 8, MIN_CALLS = 8 };
#define LONG_FLOP 1e12 /* of a call that takes milliseconds: one round is enough */

typedef struct attend {
    bs_bench *bench;
    bs_bench_cache cache;
    bs_buffer *q_at, *workspace, *o, *lse;
    float *q; /* [rows, D], each exact in bf16 */
    size_t rows, o_bytes, lse_bytes;
    float *first_o, *first_lse; /* of all layers, from the first run */
    float *o_host, *lse_host;
    bs_attend_args args;
} attend;

static bs_status queue_layer(void *context, int i)
{
    attend *a = context;
    const int layer = i % a->cache.shape.n_layers;
    bs_attend_args args = a->args;
    args.layer = layer;
    args.o += (size_t)layer * a->rows * (size_t)a->cache.shape.head_dim;
    args.lse += (size_t)layer * a->rows;
    return bs_op_attend(a->bench->stream, &args);
}

/* ---- set up ---- */

/* Values that bf16 and f32 both hold; f16 to 2^-24. */
static float draw_q(uint64_t *seed)
{
    uint64_t x = bs_bench_random(seed);
    int32_t sum = (int32_t)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48)) - 2 * 0xffff;
    return bs_f32_from_bits(bs_f32_bits((float)sum * (1.7320508f / 65536)) & 0xffff0000u);
}

static bs_status fill_q(attend *a)
{
    const bs_type act = bs_device_get_info(a->bench->device)->act_type;
    const size_t n = a->rows * (size_t)a->cache.shape.head_dim, bytes = n * (size_t)bs_type_block_bytes(act);
    uint64_t seed = 5;
    a->q = malloc(n * sizeof *a->q);
    void *q = malloc(bytes);
    bs_status status = BS_STATUS_OK;
    if (!a->q || !q) {
        status = bs_fail(BS_STATUS_NOMEM, "bench: no memory for q");
        goto err_q;
    }
    for (size_t i = 0; i < n; i++) a->q[i] = draw_q(&seed);
    BS_TRY_GOTO(bs_quantize_row(act, a->q, q, (int64_t)n), err_q);
    BS_TRY_GOTO(bs_buffer_alloc(a->bench->device, bytes, "q", &a->q_at), err_q);
    BS_TRY_GOTO(bs_copy_to_device(a->bench->stream, bs_buffer_at(a->q_at, 0), q, bytes), err_q);
    status = bs_stream_sync(a->bench->stream);
err_q:
    free(q);
    return status;
}

/* Outputs are NaN before a run. */
static bs_status poison_outputs(attend *a)
{
    memset(a->o_host, 0xff, a->o_bytes);
    memset(a->lse_host, 0xff, a->lse_bytes);
    BS_TRY(bs_copy_to_device(a->bench->stream, bs_buffer_at(a->o, 0), a->o_host, a->o_bytes));
    BS_TRY(bs_copy_to_device(a->bench->stream, bs_buffer_at(a->lse, 0), a->lse_host, a->lse_bytes));
    return bs_stream_sync(a->bench->stream);
}

static bs_status alloc_outputs(attend *a)
{
    const size_t layers = (size_t)a->cache.shape.n_layers;
    a->lse_bytes = layers * a->rows * sizeof(float);
    a->o_bytes = a->lse_bytes * (size_t)a->cache.shape.head_dim;
    BS_TRY(bs_buffer_alloc(a->bench->device, a->o_bytes, "O", &a->o));
    BS_TRY(bs_buffer_alloc(a->bench->device, a->lse_bytes, "LSE", &a->lse));
    a->first_o = malloc(a->o_bytes);
    a->first_lse = malloc(a->lse_bytes);
    a->o_host = malloc(a->o_bytes);
    a->lse_host = malloc(a->lse_bytes);
    if (!a->first_o || !a->first_lse || !a->o_host || !a->lse_host)
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %zu bytes of O", a->o_bytes);
    return poison_outputs(a);
}

static bs_status set_up(attend *a, const bs_bench_case *c)
{
    BS_TRY(bs_bench_cache_open(a->bench, c, &a->cache));
    a->rows = (size_t)c->n_seqs * (size_t)c->n_query * (size_t)c->n_heads;
    BS_TRY(fill_q(a));
    BS_TRY(alloc_outputs(a));
    const int max_tokens = c->n_seqs * c->n_query, max_pages = a->cache.n_pages;
    const bs_bench_tables *t = &a->cache.tables;
    size_t bytes = bs_attend_workspace_bytes(a->bench->device, &a->cache.shape, c->n_heads, c->n_seqs,
                                             max_tokens, max_pages);
    BS_TRY(bs_buffer_alloc(a->bench->device, bytes, "workspace", &a->workspace));
    a->args = (bs_attend_args){.pools = &a->cache.pools,
                               .max_seqs = c->n_seqs,
                               .max_tokens = max_tokens,
                               .max_pages = max_pages,
                               .n_heads = c->n_heads,
                               .q = bs_buffer_at(a->q_at, 0),
                               .q_ld = (int64_t)c->n_heads * c->head_dim,
                               .act = bs_device_get_info(a->bench->device)->act_type,
                               .q_start = t->q_start,
                               .q_pos0 = t->q_pos0,
                               .page_start = t->page_start,
                               .page_slot = t->page_slot,
                               .page_index = t->page_index,
                               .n_sink = t->n_sink,
                               .n_quant = t->n_quant,
                               .n_f16 = t->n_f16,
                               .n_tokens = t->n_tokens,
                               .scale = (float)(1 / sqrt(c->head_dim)),
                               .window = c->window,
                               .workspace = bs_buffer_at(a->workspace, 0),
                               .workspace_bytes = bytes,
                               .o = bs_buffer_at(a->o, 0),
                               .lse = bs_buffer_at(a->lse, 0)};
    return BS_STATUS_OK;
}

static void tear_down(attend *a)
{
    bs_bench_cache_close(&a->cache);
    bs_buffer_free(a->q_at);
    bs_buffer_free(a->workspace);
    bs_buffer_free(a->o);
    bs_buffer_free(a->lse);
    free(a->q);
    free(a->first_o);
    free(a->first_lse);
    free(a->o_host);
    free(a->lse_host);
}

/* ---- checks ---- */

static bs_status fetch(attend *a, float *o, float *lse)
{
    BS_TRY(bs_copy_to_host(a->bench->stream, o, bs_buffer_at(a->o, 0), a->o_bytes));
    BS_TRY(bs_copy_to_host(a->bench->stream, lse, bs_buffer_at(a->lse, 0), a->lse_bytes));
    return bs_stream_sync(a->bench->stream);
}

/* Pairs spread over sequences, query tokens, heads and layers, the corners among them. */
static bs_bench_pair pick_pair(const attend *a, int i)
{
    const bs_bench_case *c = a->cache.item;
    const double at = (double)i / (N_PAIRS - 1);
    return (bs_bench_pair){.seq = (int)(at * (c->n_seqs - 1)),
                           .token = c->n_query - 1 - i % c->n_query,
                           .head = i == 0 ? 0 : (int)(at * (c->n_heads - 1)),
                           .layer = a->cache.shape.n_layers - 1 - i % a->cache.shape.n_layers};
}

/* Raises the row's errors to this pair's. NaN raises them, too. */
static bs_status check_pair(const attend *a, bs_bench_pair pair, bs_bench_row *row)
{
    const bs_bench_case *c = a->cache.item;
    const size_t d = (size_t)c->head_dim,
                 at = (size_t)(pair.seq * c->n_query + pair.token) * (size_t)c->n_heads + (size_t)pair.head,
                 out = (size_t)pair.layer * a->rows + at;
    double o[BS_MAX_HEAD_DIM], lse, error = 0, norm = 0;
    BS_TRY(bs_bench_reference(&a->cache, pair, a->q + at * d, o, &lse));
    for (size_t i = 0; i < d; i++) {
        error += pow(a->first_o[out * d + i] - o[i], 2);
        norm += pow(o[i], 2);
    }
    error = sqrt(error / norm);
    double error_lse = fabs(a->first_lse[out] - lse);
    if (!(error <= row->error_o)) row->error_o = error;
    if (!(error_lse <= row->error_lse)) row->error_lse = error_lse;
    if (error <= BS_BENCH_TOL_O && error_lse <= BS_BENCH_TOL_LSE) return BS_STATUS_OK;
    return bs_fail(
        BS_STATUS_MISMATCH,
        "layer %d, sequence %d, token %d, head %d: O is off by %.2e (%.0e is allowed), LSE by %.2e (%.0e)",
        pair.layer, pair.seq, pair.token, pair.head, error, BS_BENCH_TOL_O, error_lse, BS_BENCH_TOL_LSE);
}

static bs_status check(attend *a, bs_bench_row *row)
{
    for (int layer = 0; layer < a->cache.shape.n_layers; layer++) BS_TRY(queue_layer(a, layer));
    BS_TRY(fetch(a, a->first_o, a->first_lse));
    for (int i = 0; i < N_PAIRS; i++) BS_TRY(check_pair(a, pick_pair(a, i), row));
    row->checked_o = true;
    return poison_outputs(a);
}

static bs_status check_same_bits(attend *a)
{
    BS_TRY(fetch(a, a->o_host, a->lse_host));
    if (memcmp(a->o_host, a->first_o, a->o_bytes) == 0 &&
        memcmp(a->lse_host, a->first_lse, a->lse_bytes) == 0)
        return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "a timed run gave other bits than the first");
}

/* ---- the case ---- */

static bs_status run(attend *a, const bs_bench_case *c, int number)
{
    const bool chunk = bs_bench_is_chunk(a->bench, c);
    bs_bench_row row = {.item = c, .number = number, .flop = chunk ? bs_bench_flop(c) : 0};
    bs_bench_times overlap;
    BS_TRY(set_up(a, c));
    BS_TRY(check(a, &row));
    const int n_layers = a->cache.shape.n_layers, min_calls = row.flop > LONG_FLOP ? 1 : MIN_CALLS,
              n_calls = a->bench->gpu ? (min_calls + n_layers - 1) / n_layers * n_layers : n_layers;
    if (chunk) BS_TRY(bs_bench_gemm_ceiling(a->bench));
    BS_TRY(bs_bench_time(a->bench, queue_layer, a, n_calls, &row.us, a->bench->gpu ? &overlap : NULL));
    BS_TRY(check_same_bits(a));
    row.bytes = bs_bench_bytes(c, &a->cache.shape.format);
    row.mode = "plain";
    BS_TRY(bs_bench_report(a->bench, &row));
    if (!a->bench->gpu) return BS_STATUS_OK;
    row.mode = "overlap";
    row.us = overlap;
    return bs_bench_report(a->bench, &row);
}

bs_status bs_bench_attend(bs_bench *bench, const bs_bench_case *item, int number)
{
    attend a = {.bench = bench};
    bs_status status = run(&a, item, number);
    tear_down(&a);
    return status;
}
