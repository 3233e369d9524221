/* test_forward.c: the engine's logits against a plain forward pass in f64, over the same dequantized weights.
 *
 * The other tests of the engine compare it with itself; this one knows what a llama is. The reference holds K
 * and V rounded to fp16, as the cache's pages do, and nothing else is rounded. Quantized formats are held to
 * it within what their bits allow, so that a lost rotation or norm is seen.
 */
#include "tests/tolerances.h"
#include "tests/unit/engine_fixture.h"

#include <math.h>

enum { N = 450 };

static fixture f;

/* ---- the reference ----------------------------------------------------------------------------------------
 */

/* y[row] = Σ W[row][i] x[i] for every token. */
static void multiply(const bs_weight *w, const double *x, double *y, int n_tokens)
{
    float *row = malloc((size_t)w->n_cols * sizeof *row);
    for (int64_t r = 0; r < w->n_rows; r++) {
        assert_ok(
            bs_dequantize_row(w->type, (const char *)w->data + (size_t)r * w->row_bytes, row, w->n_cols));
        for (int t = 0; t < n_tokens; t++) {
            double sum = 0;
            for (int64_t i = 0; i < w->n_cols; i++) sum += row[i] * x[t * w->n_cols + i];
            y[t * w->n_rows + r] = sum;
        }
    }
    free(row);
}

static void norm(const double *x, const float *gain, double *y, int n, double eps)
{
    for (int t = 0; t < N; t++) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += x[t * n + i] * x[t * n + i];
        for (int i = 0; i < n; i++) y[t * n + i] = x[t * n + i] / sqrt(sum / n + eps) * gain[i];
    }
}

static void rotate(const bs_model_desc *desc, double *x, int n_heads)
{
    for (int t = 0; t < N; t++)
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < desc->n_rot / 2; i++) {
                double *head = x + (t * n_heads + h) * desc->head_dim, angle = t * desc->inv_freq[i];
                double *a = head + (desc->rope_interleaved ? 2 * i : i);
                double *b = a + (desc->rope_interleaved ? 1 : desc->n_rot / 2), a0 = *a;
                *a = a0 * cos(angle) - *b * sin(angle);
                *b = *b * cos(angle) + a0 * sin(angle);
            }
}

static void round_f16(double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = bs_f16_to_f32(bs_f32_to_f16((float)x[i]));
}

/* o [N, H, D] of q, k, v; causal. */
static void attend(const bs_model_desc *desc, const double *q, const double *k, const double *v, double *o)
{
    int H = desc->n_heads, K = desc->n_kv_heads, D = desc->head_dim;
    double p[N];
    for (int t = 0; t < N; t++)
        for (int h = 0; h < H; h++) {
            double max = -INFINITY, sum = 0, *out = o + (t * H + h) * D;
            int kv = h / (H / K);
            for (int j = 0; j <= t; j++) {
                p[j] = 0;
                for (int d = 0; d < D; d++) p[j] += q[(t * H + h) * D + d] * k[(j * K + kv) * D + d];
                p[j] *= desc->attn_scale;
                max = fmax(max, p[j]);
            }
            for (int j = 0; j <= t; j++) sum += p[j] = exp(p[j] - max);
            for (int d = 0; d < D; d++) {
                out[d] = 0;
                for (int j = 0; j <= t; j++) out[d] += p[j] / sum * v[(j * K + kv) * D + d];
            }
        }
}

static double *new_rows(int n)
{
    return calloc((size_t)N * (size_t)n, sizeof(double));
}

/* The same bias [n] for every token; NULL: none. */
static void add_bias(double *x, const float *bias, int n)
{
    for (int i = 0; bias && i < N * n; i++) x[i] += bias[i % n];
}

static void add_rows(double *x, const double *y, int n)
{
    for (int i = 0; i < N * n; i++) x[i] += y[i];
}

/* logits [N, vocab] of ids. */
static void run_reference(const bs_weights *weights, const int32_t *ids, double *logits)
{
    const bs_model_desc *d = bs_model_get_desc(f.model);
    int q_cols = d->n_heads * d->head_dim, kv_cols = d->n_kv_heads * d->head_dim, n = d->n_hidden;
    double *x = new_rows(n), *y = new_rows(n), *normed = new_rows(n), *q = new_rows(q_cols),
           *o = new_rows(q_cols);
    double *k = new_rows(kv_cols), *v = new_rows(kv_cols), *gate = new_rows(d->n_ffn),
           *up = new_rows(d->n_ffn);
    float *row = malloc((size_t)n * sizeof *row);
    const bs_weight *table = bs_weights_embedding(weights);
    for (int t = 0; t < N; t++) {
        assert_ok(bs_dequantize_row(table->type,
                                    (const char *)table->data + (size_t)ids[t] * table->row_bytes, row, n));
        for (int i = 0; i < n; i++) x[t * n + i] = row[i];
    }
    for (int layer = 0; layer < d->n_layers; layer++) {
        const bs_layer_weights *w = bs_weights_layer(weights, layer);
        norm(x, w->attn_norm, normed, n, d->rms_eps);
        multiply(&w->q, normed, q, N);
        multiply(&w->k, normed, k, N);
        multiply(&w->v, normed, v, N);
        add_bias(q, w->q_bias, q_cols);
        add_bias(k, w->k_bias, kv_cols);
        add_bias(v, w->v_bias, kv_cols);
        rotate(d, q, d->n_heads);
        rotate(d, k, d->n_kv_heads);
        round_f16(k, (int64_t)N * kv_cols);
        round_f16(v, (int64_t)N * kv_cols);
        attend(d, q, k, v, o);
        multiply(&w->o, o, y, N);
        add_rows(x, y, n);
        norm(x, w->ffn_norm, normed, n, d->rms_eps);
        multiply(&w->gate, normed, gate, N);
        multiply(&w->up, normed, up, N);
        for (int i = 0; i < N * d->n_ffn; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        multiply(&w->down, gate, y, N);
        add_rows(x, y, n);
    }
    norm(x, bs_weights_output_norm(weights), normed, n, d->rms_eps);
    multiply(bs_weights_output(weights), normed, logits, N);
    double *all[] = {x, y, normed, q, o, k, v, gate, up};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    free(row);
}

/* ---- the engine against it --------------------------------------------------------------------------------
 */

static int32_t ids[N];
static double *reference;

/* Of the model that is open. */
static void make_reference(void)
{
    bs_shard shard;
    bs_weights *weights;
    reference = new_rows(f.n_vocab);
    assert_ok(bs_shard_compute(f.model, bs_comm_grid(f.comm), BS_MERGE_ALLREDUCE, &shard));
    assert_ok(bs_weights_place(f.model, f.device, &shard, BS_TYPE_F32, NULL, NULL, &weights));
    run_reference(weights, ids, reference);
    bs_weights_free(weights);
}

static int set_up(void **state)
{
    open_model(&f, "test_forward");
    make_ids(&f, 21, ids, N);
    make_reference();
    return 0;
}

static int tear_down(void **state)
{
    free(reference);
    close_model(&f);
    return 0;
}

/* With r0 pages 1 and 2 are quantized when the last tokens come. The worst position's relative L2 of a prompt
 * taken in steps of a chunk, and its last tokens by decode. */
static double worst_error(const char *kv, int chunk)
{
    bs_engine_config config = make_config(kv);
    double worst = 0;
    config.chunk_tokens = chunk;
    open_engine(&f, &config);
    begin_plan(&f);
    add_start(&f, 0, N, &greedy);
    run_plan(&f);
    for (int pos = 0, n; pos < N; pos += n) {
        bool decode = pos >= N - 20;
        n = decode ? 1 : N - 20 - pos < chunk ? N - 20 - pos : chunk;
        begin_plan(&f);
        add_tokens(&f, 0, pos, ids + pos, n, BS_PLAN_SEQ_ALL_LOGITS | (decode ? 0 : BS_PLAN_SEQ_PREFILL));
        const float *logits = run_plan(&f).logits;
        for (int t = 0; t < n; t++) {
            double error2 = 0, norm2 = 0;
            for (int i = 0; i < f.n_vocab; i++) {
                double want = reference[(pos + t) * f.n_vocab + i], e = logits[t * f.n_vocab + i] - want;
                error2 += e * e;
                norm2 += want * want;
            }
            if (!(sqrt(error2 / norm2) <= worst)) worst = sqrt(error2 / norm2);
        }
    }
    close_engine(&f);
    print_message("  %s: %.3g\n", kv, worst);
    return worst;
}

static void logits_are_the_references(void **state)
{
    static const struct {
        const char *kv;
        int chunk;
        double tolerance;
    } cases[] = {{"f16", 2048, TOL_ENGINE_REFERENCE},    {"f16", 128, TOL_ENGINE_REFERENCE},
                 {"int8:r0", 128, TOL_ENGINE_LOSS_INT8}, {"int4:kt:had:r0", 128, TOL_ENGINE_LOSS_INT4},
                 {"int4:r0", 128, TOL_ENGINE_LOSS_INT4}, {"k4v2:r0", 128, TOL_ENGINE_LOSS_K4V2},
                 {"int2:r0", 128, TOL_ENGINE_LOSS_INT2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_true(worst_error(cases[i].kv, cases[i].chunk) <= cases[i].tolerance);
}

/* Random models have memory of their own on a CPU too: q, k and v are one product there, with biases or without, and gate
 * and up one. */
static void joined_products_are_the_references(void **state)
{
    static const char *const names[] = {"random:tiny-d64", "random:tiny-qwen2"};
    bs_model *file = f.model;
    double *of_file = reference;
    for (int i = 0; i < 2; i++) {
        assert_ok(bs_model_open(names[i], &f.model));
        assert_int_equal(bs_model_get_desc(f.model)->n_vocab, f.n_vocab);
        make_reference();
        double worst = worst_error("f16", 128);
        free(reference);
        bs_model_close(f.model);
        f.model = file;
        reference = of_file;
        assert_true(worst <= TOL_ENGINE_REFERENCE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(logits_are_the_references),
                                       cmocka_unit_test(joined_products_are_the_references)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
