/* test_weights.c: the views of all ranks together are the model: dequantized and put side by side they give
 * each matrix of the file bit for bit, on grids that cut evenly, unevenly, inside blocks, and with empty
 * shards. */
#include "config.h"
#include "src/model/make_model.h"
#include "src/model/model_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define PATH "test_weights.tmp.gguf"

static bs_device *device;

static bs_model *make_and_open(bs_type type, bool tied)
{
    const bs_make_model_config config = {.seed = 7,
                                         .n_layers = 2,
                                         .n_hidden = 256,
                                         .n_heads = 12,
                                         .n_kv_heads = 6,
                                         .head_dim = 64,
                                         .n_ffn = 512,
                                         .n_vocab = 301,
                                         .context_length = 1000,
                                         .type = type,
                                         .tied_output = tied,
                                         .rope_freqs = true,
                                         .rope_theta = 10000};
    bs_model *model;
    bs_error_clear();
    if (bs_make_model(&config, PATH) != BS_STATUS_OK || bs_model_open(PATH, &model) != BS_STATUS_OK)
        fail_msg("%s", bs_error_message());
    return model;
}

/* A whole matrix as f32, and how often each element was covered. */
typedef struct sum {
    float *values;
    uint8_t *covered;
    int64_t n_rows, n_cols;
} sum;

static sum sum_of(const bs_tensor *tensor)
{
    sum s = {.n_rows = tensor->dims[1], .n_cols = tensor->dims[0]};
    size_t n = (size_t)(s.n_rows * s.n_cols);
    s.values = malloc(sizeof *s.values * n);
    s.covered = calloc(n, 1);
    assert_true(s.values && s.covered);
    memset(s.values, 0xff, sizeof *s.values * n);
    return s;
}

static void add_view(sum *s, const bs_weight *view, int64_t row0, int64_t col0)
{
    int64_t block = bs_type_block(view->type),
            span = (view->first_col + view->n_cols + block - 1) / block * block;
    float *row = malloc(sizeof *row * (size_t)(span + 1));
    assert_non_null(row);
    assert_in_range(view->first_col, 0, block - 1);
    for (int64_t r = 0; r < view->n_rows; r++) {
        const char *data = (const char *)view->data + (size_t)r * view->row_bytes;
        if (span > 0) assert_int_equal(bs_dequantize_row(view->type, data, row, span), BS_STATUS_OK);
        for (int64_t c = 0; c < view->n_cols; c++) {
            int64_t at = (row0 + r) * s->n_cols + col0 + c;
            s->values[at] = row[view->first_col + c];
            s->covered[at]++;
        }
    }
    free(row);
}

/* Every element `times` times, with the file's value; then gives the sum back. */
static void check_sum(sum *s, const bs_tensor *tensor, int times)
{
    int64_t n = s->n_rows * s->n_cols;
    float *wanted = malloc(sizeof *wanted * (size_t)n);
    assert_non_null(wanted);
    assert_int_equal(bs_dequantize_row(tensor->type, tensor->data, wanted, n), BS_STATUS_OK);
    assert_memory_equal(s->values, wanted, sizeof *wanted * (size_t)n);
    for (int64_t i = 0; i < n; i++) assert_int_equal(s->covered[i], times);
    free(wanted);
    free(s->values);
    free(s->covered);
}

typedef struct told {
    uint64_t done, total;
    int n;
} told;

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    told *t = context;
    assert_true(done >= t->done && done <= total && (t->n == 0 || total == t->total));
    *t = (told){done, total, t->n + 1};
}

static void check_vector(const float *placed, const bs_tensor *tensor)
{
    assert_int_equal(tensor->type, BS_TYPE_F32);
    assert_memory_equal(placed, tensor->data, tensor->bytes);
}

static bs_weights *place(const bs_model *model, const bs_grid *grid, bs_merge_method merge, bs_shard *shard)
{
    bs_weights *weights;
    told progress = {0};
    assert_int_equal(bs_shard_compute(model, grid, merge, shard), BS_STATUS_OK);
    size_t bytes = bs_device_allocated_bytes(device);
    uint64_t count = bs_device_allocation_count(device);
    assert_int_equal(bs_weights_place(model, device, shard, BS_TYPE_F32, on_progress, &progress, &weights),
                     BS_STATUS_OK);
    uint64_t vectors = 4 * 256 * 5 + 8 * 32; /* five norms, 32 frequencies */
    assert_int_equal(bs_device_allocation_count(device), count + 1);
    assert_in_range(bs_device_allocated_bytes(device) - bytes, vectors, vectors + 4096);
    const bs_tensor *table = model->embedding;
    uint64_t head = model->desc.tied_output ? (uint64_t)shard->vocab.n * (table->bytes / 301) : 0;
    assert_int_equal(bs_weights_step_bytes(weights),
                     bs_shard_weight_bytes(model, shard) - vectors - table->bytes + head);
    assert_int_equal(progress.done, progress.total);
    assert_int_equal(progress.total, bs_shard_weight_bytes(model, shard) - vectors);
    return weights;
}

static void check_vectors(const bs_model *model, const bs_weights *weights)
{
    const bs_model_desc *desc = bs_model_get_desc(model);
    for (int l = 0; l < desc->n_layers; l++) {
        const bs_layer_weights *w = bs_weights_layer(weights, l);
        check_vector(w->attn_norm, model->layers[l].attn_norm);
        check_vector(w->ffn_norm, model->layers[l].ffn_norm);
        assert_null(w->q_norm);
        assert_null(w->q_bias);
    }
    check_vector(bs_weights_output_norm(weights), model->output_norm);
    assert_memory_equal(bs_weights_inv_freq(weights), desc->inv_freq,
                        sizeof(double) * (size_t)(desc->n_rot / 2));
    sum table = sum_of(model->embedding);
    add_view(&table, bs_weights_embedding(weights), 0, 0);
    check_sum(&table, model->embedding, 1);
}

enum { Q, K, V, O, GATE, UP, DOWN, OUTPUT, N_MATRICES };

static void check_grid(const bs_model *model, int heads, int seq, bs_merge_method merge)
{
    const bs_model_layer *last = &model->layers[1];
    const bs_tensor *tensors[N_MATRICES] = {last->q,    last->k,  last->v,    last->o,
                                            last->gate, last->up, last->down, model->output};
    sum sums[N_MATRICES];
    for (int m = 0; m < N_MATRICES; m++) sums[m] = sum_of(tensors[m]);
    for (int r = 0; r < heads * seq; r++) {
        bs_grid grid = {.rank = r,
                        .size = heads * seq,
                        .heads = heads,
                        .seq = seq,
                        .head_shard = r / seq,
                        .seq_shard = r % seq};
        bs_shard shard;
        bs_weights *weights = place(model, &grid, merge, &shard);
        const bs_layer_weights *w = bs_weights_layer(weights, 1);
        add_view(&sums[Q], &w->q, 64 * shard.heads.first, 0);
        add_view(&sums[K], &w->k, 64 * shard.kv_heads.first, 0);
        add_view(&sums[V], &w->v, 64 * shard.kv_heads.first, 0);
        add_view(&sums[O], &w->o, 0, shard.o_cols.first);
        add_view(&sums[GATE], &w->gate, shard.ffn.first, 0);
        add_view(&sums[UP], &w->up, shard.ffn.first, 0);
        add_view(&sums[DOWN], &w->down, 0, shard.ffn.first);
        add_view(&sums[OUTPUT], bs_weights_output(weights), shard.vocab.first, 0);
        if (r == 0) check_vectors(model, weights);
        bs_weights_free(weights);
    }
    for (int m = 0; m < N_MATRICES; m++) {
        bool by_heads = m <= V || (m == O && merge == BS_MERGE_FOLD);
        check_sum(&sums[m], tensors[m], by_heads ? seq : 1);
    }
}

static void test_views_tile(void **state)
{
    static const bs_type types[] = {BS_TYPE_F32, BS_TYPE_Q8_0, BS_TYPE_Q4_1, BS_TYPE_Q4_K, BS_TYPE_Q6_K};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        bs_model *model = make_and_open(types[i], i % 2);
        check_grid(model, 1, 1, BS_MERGE_ALLREDUCE);
        check_grid(model, 2, 2, BS_MERGE_ALLGATHER);
        check_grid(model, 3, 1, BS_MERGE_ALLREDUCE);
        check_grid(model, 6, 2, BS_MERGE_FOLD); /* 128 columns a head shard: inside the blocks of Q4_K */
        check_grid(model, 6, 1, BS_MERGE_ALLREDUCE);
        check_grid(model, 1, 5, BS_MERGE_ALLREDUCE);
        bs_model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_views_tile)};
    const bs_device_config config = {.kind = BS_DEVICE_CPU, .n_threads = 1};
    if (bs_device_open(&config, &device) != BS_STATUS_OK) {
        bs_error_flush();
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_device_close(device);
    unlink(PATH);
    return failed;
}
