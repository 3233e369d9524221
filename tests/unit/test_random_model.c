/* test_random_model.c: random:NAME: every shape of the table opens, and what a rank draws of a matrix is that part of what
 * one rank draws of all of it, on grids that cut evenly and unevenly. */
#include "config.h"
#include "src/model/model_private.h"
#include "src/model/shapes.h"
#include "tests/tolerances.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static bs_device *device;

static bs_model *open_model(const char *path)
{
    bs_model *model;
    bs_error_clear();
    if (bs_model_open(path, &model) != BS_STATUS_OK) fail_msg("%s", bs_error_message());
    assert_true(bs_model_is_random(model));
    return model;
}

static bs_weights *place(const bs_model *model, int heads, int seq, int rank, bs_merge_method merge,
                         bs_shard *shard)
{
    const bs_grid grid = {.rank = rank,
                          .size = heads * seq,
                          .heads = heads,
                          .seq = seq,
                          .head_shard = rank / seq,
                          .seq_shard = rank % seq};
    bs_weights *weights;
    assert_int_equal(bs_shard_compute(model, &grid, merge, shard), BS_STATUS_OK);
    size_t bytes = bs_device_allocated_bytes(device);
    assert_int_equal(bs_weights_place(model, device, shard, BS_TYPE_F32, NULL, NULL, &weights), BS_STATUS_OK);
    assert_int_equal(bs_device_allocated_bytes(device) - bytes, bs_shard_placed_bytes(model, device, shard));
    return weights;
}

/* part is rows row0 … and columns col0 … of whole. */
static void check_part(const bs_weight *whole, const bs_weight *part, int64_t row0, int64_t col0)
{
    assert_int_equal(part->type, BS_TYPE_BF16);
    for (int64_t r = 0; r < part->n_rows; r++)
        assert_memory_equal((const char *)part->data + (size_t)r * part->row_bytes,
                            (const char *)whole->data + (size_t)(row0 + r) * whole->row_bytes + 2 * col0,
                            2 * (size_t)part->n_cols);
}

/* placed is elements first … of a vector, where the model has one. */
static void check_vector(const bs_tensor *whole, const float *placed, int64_t first, int64_t n)
{
    assert_int_equal(!whole, !placed);
    if (whole) assert_memory_equal(placed, (const float *)whole->data + first, sizeof *placed * (size_t)n);
}

static void check_grid(const bs_model *model, const bs_weights *one, int heads, int seq,
                       bs_merge_method merge)
{
    const int64_t D = model->desc.head_dim;
    for (int rank = 0; rank < heads * seq; rank++) {
        bs_shard s;
        bs_weights *w = place(model, heads, seq, rank, merge, &s);
        check_part(bs_weights_embedding(one), bs_weights_embedding(w), 0, 0);
        check_part(bs_weights_output(one), bs_weights_output(w), s.vocab.first, 0);
        for (int l = 0; l < model->desc.n_layers; l++) {
            const bs_layer_weights *a = bs_weights_layer(one, l), *b = bs_weights_layer(w, l);
            check_part(&a->q, &b->q, s.heads.first * D, 0);
            check_part(&a->k, &b->k, s.kv_heads.first * D, 0);
            check_part(&a->v, &b->v, s.kv_heads.first * D, 0);
            check_part(&a->o, &b->o, 0, s.o_cols.first);
            check_part(&a->gate, &b->gate, s.ffn.first, 0);
            check_part(&a->up, &b->up, s.ffn.first, 0);
            check_part(&a->down, &b->down, 0, s.ffn.first);
            const bs_model_layer *layer = &model->layers[l];
            check_vector(layer->q_norm, b->q_norm, 0, D);
            check_vector(layer->k_norm, b->k_norm, 0, D);
            check_vector(layer->q_bias, b->q_bias, s.heads.first * D, s.heads.n * D);
            check_vector(layer->k_bias, b->k_bias, s.kv_heads.first * D, s.kv_heads.n * D);
            check_vector(layer->v_bias, b->v_bias, s.kv_heads.first * D, s.kv_heads.n * D);
        }
        bs_weights_free(w);
    }
}

static void every_rank_draws_its_part_of_the_whole(void **state)
{
    static const char *const names[] = {"random:tiny-d64", "random:tiny-qwen2:77", "random:tiny-qwen3"};
    for (int i = 0; i < 3; i++) {
        bs_model *model = open_model(names[i]);
        bs_shard all;
        bs_weights *one = place(model, 1, 1, 0, BS_MERGE_ALLREDUCE, &all);
        check_grid(model, one, 2, 1, BS_MERGE_ALLREDUCE);
        check_grid(model, one, 1, 3, BS_MERGE_ALLGATHER);
        check_grid(model, one, 2, 3, BS_MERGE_FOLD);
        bs_weights_free(one);
        bs_model_close(model);
    }
}

/* `next` begins where `first` ends. */
static void assert_follows(const bs_weight *first, const bs_weight *next)
{
    assert_int_equal(next->row_bytes, first->row_bytes);
    assert_ptr_equal(next->data, (const char *)first->data + (size_t)first->n_rows * first->row_bytes);
}

/* One product stands for three only with one bias for all or none, and without a norm of heads behind it. */
static void joins_respect_biases_and_norms(void **state)
{
    bs_model *plain = open_model("random:tiny-d64"), *biased = open_model("random:tiny-qwen2"),
             *normed = open_model("random:tiny-qwen3");
    bs_shard s;
    biased->layers[1].q_bias = biased->layers[1].k_bias = NULL; /* only v has one, as a file may say */
    bs_weights *w = place(plain, 1, 1, 0, BS_MERGE_ALLREDUCE, &s),
               *b = place(biased, 1, 1, 0, BS_MERGE_ALLREDUCE, &s),
               *n = place(normed, 1, 1, 0, BS_MERGE_ALLREDUCE, &s);
    const bs_layer_weights *l = bs_weights_layer(b, 0);
    assert_true(bs_weights_layer(w, 0)->qkv.n_rows > 0 && bs_weights_layer(w, 0)->gate_up.n_rows > 0);
    assert_int_equal(l->qkv.n_rows, l->q.n_rows + l->k.n_rows + l->v.n_rows);
    assert_ptr_equal(l->qkv.data, l->q.data);
    assert_follows(&l->q, &l->k);
    assert_follows(&l->k, &l->v);
    assert_int_equal(l->gate_up.n_rows, l->gate.n_rows + l->up.n_rows);
    assert_ptr_equal(l->gate_up.data, l->gate.data);
    assert_follows(&l->gate, &l->up);
    assert_ptr_equal(l->k_bias, l->q_bias + l->q.n_rows); /* their biases follow each other */
    assert_ptr_equal(l->v_bias, l->k_bias + l->k.n_rows);
    assert_int_equal(bs_weights_layer(b, 1)->qkv.n_rows, 0);
    assert_non_null(bs_weights_layer(b, 1)->v_bias);
    assert_int_equal(bs_weights_layer(n, 0)->qkv.n_rows, 0);
    bs_weights_free(n);
    bs_weights_free(b);
    bs_weights_free(w);
    bs_model_close(normed);
    bs_model_close(biased);
    bs_model_close(plain);
}

/* Deviations are what was planned, and neither two matrices nor two seeds are alike. */
static void numbers_are_of_their_size(void **state)
{
    bs_model *model = open_model("random:tiny-d128"), *other = open_model("random:tiny-d128:2");
    bs_shard s;
    bs_weights *w = place(model, 1, 1, 0, BS_MERGE_ALLREDUCE, &s),
               *v = place(other, 1, 1, 0, BS_MERGE_ALLREDUCE, &s);
    const bs_layer_weights *l = bs_weights_layer(w, 0);
    const struct {
        const bs_weight *view;
        double std;
    } cases[] = {{bs_weights_embedding(w), 1}, {&l->q, sqrt(1.5 / 256)},
                 {&l->k, sqrt(1.5 / 256)},     {&l->v, 1 / sqrt(256)},
                 {&l->o, 1 / sqrt(4096)},      {&l->gate, 1 / sqrt(256)},
                 {&l->down, 0.6 / sqrt(512)},  {bs_weights_output(w), 1 / sqrt(256)}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double squares = 0, n = (double)cases[i].view->n_rows * (double)cases[i].view->n_cols;
        const bs_bf16 *x = cases[i].view->data;
        for (int64_t e = 0; e < (int64_t)n; e++) squares += pow(bs_bf16_to_f32(x[e]), 2);
        assert_true(fabs(sqrt(squares / n) / cases[i].std - 1) < 0.02);
    }
    assert_memory_not_equal(l->k.data, l->v.data, 4096);
    assert_memory_not_equal(l->k.data, bs_weights_layer(w, 1)->k.data, 4096);
    assert_memory_not_equal(l->k.data, bs_weights_layer(v, 0)->k.data, 4096);
    bs_weights_free(v);
    bs_weights_free(w);
    bs_model_close(other);
    bs_model_close(model);
}

typedef struct moments {
    double mean, std, mean_size; /* size: without the sign */
} moments;

static moments moments_of(const bs_tensor *t)
{
    const float *x = t->data;
    const double n = (double)t->dims[0];
    double sum = 0, sizes = 0, squares = 0;
    for (int64_t i = 0; i < t->dims[0]; i++) {
        sum += x[i];
        sizes += fabs(x[i]);
        squares += (double)x[i] * x[i];
    }
    return (moments){sum / n, sqrt(squares / n - sum / n * (sum / n)), sizes / n};
}

/* Norms lie about 1, biases about 0; the last norm gives logits their scale, and half of its signs are turned. */
static void vectors_are_of_their_size(void **state)
{
    bs_model *untied = open_model("random:tiny-d128"), *tied = open_model("random:tiny-qwen2");
    const moments norm = moments_of(untied->layers[0].ffn_norm), bias = moments_of(tied->layers[1].q_bias),
                  last = moments_of(untied->output_norm), tied_last = moments_of(tied->output_norm);
    assert_true(fabs(norm.mean - 1) < 0.02 && fabs(norm.std / 0.05 - 1) < 0.2);
    assert_true(fabs(bias.mean) < 0.03 && fabs(bias.std / 0.1 - 1) < 0.2);
    assert_true(fabs(last.mean_size / 3 - 1) < 0.02 && fabs(last.mean) < 1);
    assert_true(fabs(tied_last.mean_size * sqrt(192) / 3 - 1) < 0.02 && fabs(tied_last.mean) < 0.1);
    bs_model_close(tied);
    bs_model_close(untied);
}

static void all_shapes_open(void **state)
{
    char path[128];
    int n = 0;
    for (; bs_model_shape_at(n); n++) {
        const bs_model_shape *s = bs_model_shape_at(n);
        snprintf(path, sizeof path, "random:%s", s->name);
        bs_model *model = open_model(path);
        const bs_model_desc *d = bs_model_get_desc(model);
        assert_int_equal(d->n_heads % d->n_kv_heads, 0);
        assert_true(d->head_dim == 64 || d->head_dim == 128);
        assert_int_equal(d->n_hidden % 32 + d->n_ffn % 32, 0);
        assert_int_equal(model->desc.layers[3 % d->n_layers].rope,
                         s->no_rope_interval == 0 || d->n_layers < 4);
        assert_int_equal(d->layers[d->n_layers - 1].window, s->window);
        const double slowest = pow(s->rope_theta, 2.0 / s->head_dim - 1); /* all of the factor is on it */
        const double factor = s->llama3_factor > 0 ? s->llama3_factor : 1;
        assert_true(fabs(d->inv_freq[s->head_dim / 2 - 1] / slowest * factor - 1) <= TOL_INV_FREQ);
        bs_model_close(model);
    }
    assert_true(n > 30);
    const struct {
        const char *name;
        int64_t n_params;
    } known[] = {{"llama-3.1-8b", 8030261248}, {"llama-3.1-70b", 70553706496}, {"llama-3.2-1b", 1235814400},
                 {"qwen3-8b", 8190735360},     {"qwen2.5-7b", 7615616512},     {"mistral-7b", 7248023552},
                 {"smollm2-135m", 134515008},  {"smollm3-3b", 3075098624}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        snprintf(path, sizeof path, "random:%s", known[i].name);
        bs_model *model = open_model(path);
        assert_int_equal(model->desc.n_params, known[i].n_params);
        bs_model_close(model);
    }
}

static void bad_names_are_refused(void **state)
{
    static const char *const bad[] = {
        "random:",           "random:llama",        "random:tiny-d64:",
        "random:tiny-d64:x", "random:tiny-d64:1:2", "random:tiny-d64:99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bs_model *model;
        assert_int_equal(bs_model_open(bad[i], &model), BS_STATUS_USAGE);
        assert_non_null(strstr(bs_error_message(), "llama-3.1-8b"));
        bs_error_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_rank_draws_its_part_of_the_whole),
                                       cmocka_unit_test(joins_respect_biases_and_norms),
                                       cmocka_unit_test(numbers_are_of_their_size),
                                       cmocka_unit_test(vectors_are_of_their_size),
                                       cmocka_unit_test(all_shapes_open),
                                       cmocka_unit_test(bad_names_are_refused)};
    if (bs_device_open(&(bs_device_config){.n_threads = 1}, &device) != BS_STATUS_OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_device_close(device);
    return failed;
}
