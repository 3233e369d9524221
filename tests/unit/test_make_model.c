/* test_make_model.c: the models that tests are made of: the same bytes for the same seed, on every machine;
 * readable; with numbers of the promised size and a tokenizer whose merges hold together. */
#include "config.h"
#include "src/model/gguf.h"
#include "src/model/make_model.h"
#include "src/model/model.h"
#include "tests/tolerances.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define PATH "test_make_model.tmp.gguf"

static bs_make_model_config small(bs_type type)
{
    return (bs_make_model_config){.seed = 42,
                                  .n_layers = 2,
                                  .n_hidden = 256,
                                  .n_heads = 4,
                                  .n_kv_heads = 2,
                                  .head_dim = 64,
                                  .n_ffn = 512,
                                  .n_vocab = 300,
                                  .context_length = 1000,
                                  .type = type,
                                  .tied_output = true,
                                  .rope_theta = 10000};
}

static uint8_t *make_and_read(const bs_make_model_config *config, size_t *bytes)
{
    bs_error_clear();
    if (bs_make_model(config, PATH) != BS_STATUS_OK) fail_msg("%s", bs_error_message());
    FILE *f = fopen(PATH, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *bytes = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(*bytes);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, f), *bytes);
    fclose(f);
    return data;
}

static uint64_t fnv1a(const uint8_t *data, size_t n)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash;
}

static void test_same_bytes(void **state)
{
    bs_make_model_config config = small(BS_TYPE_F32);
    size_t n0, n1, n2;
    config.rope_freqs = true;
    uint8_t *first = make_and_read(&config, &n0), *again = make_and_read(&config, &n1);
    assert_int_equal(n0, n1);
    assert_memory_equal(first, again, n0);
    config.seed++;
    uint8_t *other = make_and_read(&config, &n2);
    assert_true(n2 != n0 || memcmp(first, other, n0) != 0);
    /* Of this seed and shape, worked out once: another machine, compiler or library must not change it. */
    uint64_t hash = fnv1a(first, n0);
    if (hash != 0xc7c57417f2910f25) fail_msg("the file's bytes hash to %016llx", (unsigned long long)hash);
    free(first);
    free(again);
    free(other);
}

/* The first layers of a deeper model are those of the shallower one. */
static void test_streams(void **state)
{
    bs_make_model_config config = small(BS_TYPE_F32);
    float wanted[256];
    for (int layers = 2; layers <= 3; layers++) {
        bs_model *model;
        config.n_layers = layers;
        config.tied_output = layers == 3;
        assert_int_equal(bs_make_model(&config, PATH), BS_STATUS_OK);
        assert_int_equal(bs_model_open(PATH, &model), BS_STATUS_OK);
        const bs_tensor *t = bs_gguf_find_tensor(bs_model_gguf(model), "blk.1.attn_k.weight");
        if (layers == 2) memcpy(wanted, t->data, sizeof wanted);
        else assert_memory_equal(wanted, t->data, sizeof wanted);
        bs_model_close(model);
    }
}

/* Mean 0 and the standard deviation that make_model.c plans, over the whole matrix, to 6 standard errors and
 * the rounding of the type. */
static void check_matrix(const bs_gguf *gguf, const char *name, double std)
{
    const bs_tensor *t = bs_gguf_find_tensor(gguf, name);
    assert_non_null(t);
    int64_t n = t->dims[0] * t->dims[1];
    float *values = malloc(sizeof *values * (size_t)n);
    assert_non_null(values);
    assert_int_equal(bs_dequantize_row(t->type, t->data, values, n), BS_STATUS_OK);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        assert_true(isfinite(values[i]));
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    double mean = sum / (double)n / std, deviation = sqrt(squares / (double)n) / std;
    if (!(fabs(mean) <= TOL_MAKE_MODEL_MEAN && fabs(deviation - 1) <= TOL_MAKE_MODEL_STD))
        fail_msg("%s in %s: mean %g, deviation %g of the planned one", name, bs_type_name(t->type), mean,
                 deviation);
    free(values);
}

static void test_every_type(void **state)
{
    for (int i = 0; i < 4 * BS_TYPE_COUNT; i++) {
        bs_make_model_config config = small((bs_type)(i / 4));
        config.tied_output = i & 1;
        config.rope_freqs = i & 2;
        bs_model *model;
        bs_error_clear();
        if (bs_make_model(&config, PATH) != BS_STATUS_OK || bs_model_open(PATH, &model) != BS_STATUS_OK)
            fail_msg("%s: %s", bs_type_name(config.type), bs_error_message());
        const bs_model_desc *d = bs_model_get_desc(model);
        const bs_gguf *gguf = bs_model_gguf(model);
        assert_int_equal(d->n_layers, 2);
        assert_int_equal(d->n_heads, 4);
        assert_int_equal(d->n_kv_heads, 2);
        assert_int_equal(d->head_dim, 64);
        assert_int_equal(d->n_vocab, 300);
        assert_int_equal(d->context_length, 1000);
        assert_int_equal(d->tied_output, config.tied_output);
        assert_int_equal(bs_gguf_find_tensor(gguf, "blk.0.ffn_up.weight")->type, config.type);
        assert_true(fabs(d->inv_freq[31] * pow(10000, 62.0 / 64) - 1) <= TOL_INV_FREQ || config.rope_freqs);
        assert_true(!config.rope_freqs || d->inv_freq[31] < 0.2 * pow(10000, -62.0 / 64));
        check_matrix(gguf, "token_embd.weight", 1);
        check_matrix(gguf, "blk.0.attn_q.weight", sqrt(1.5) / 16);
        check_matrix(gguf, "blk.1.attn_output.weight", 1 / 16.0);
        check_matrix(gguf, "blk.1.ffn_down.weight", 0.6 / sqrt(512));
        bs_model_close(model);
    }
}

static void test_shapes(void **state)
{
    bs_make_model_config config;
    bs_model *model;
    bs_error_clear();
    assert_int_equal(bs_make_model_shape("huge", &config), BS_STATUS_USAGE);
    assert_non_null(strstr(bs_error_message(), "huge"));
    bs_error_clear();
    assert_int_equal(bs_make_model_shape("tiny", &config), BS_STATUS_OK);
    assert_int_equal(bs_make_model(&config, PATH), BS_STATUS_OK);
    assert_int_equal(bs_model_open(PATH, &model), BS_STATUS_OK);
    const bs_model_desc *d = bs_model_get_desc(model);
    assert_true(d->n_heads == 32 && d->n_kv_heads == 8 && d->head_dim == 128 && d->n_layers == 4);
    assert_in_range(d->file_bytes, 1, 20 << 20);
    bs_model_close(model);
    assert_int_equal(bs_make_model_shape("smol", &config), BS_STATUS_OK);
    assert_true(config.n_kv_heads == 3 && config.head_dim == 64 && config.tied_output);
}

static bool same_text(bs_string a, const char *b, size_t bytes)
{
    return a.bytes == bytes && memcmp(a.text, b, bytes) == 0;
}

static int64_t find_token(const bs_string *tokens, int64_t n, const char *text, size_t bytes)
{
    for (int64_t i = 0; i < n; i++)
        if (same_text(tokens[i], text, bytes)) return i;
    return -1;
}

/* Each merge joins two earlier tokens into the token of its own place; no token comes twice. */
static void test_tokenizer(void **state)
{
    bs_make_model_config config = small(BS_TYPE_F32);
    bs_gguf *gguf;
    const bs_string *tokens, *merges;
    const int64_t *types;
    int64_t n, n_types, n_merges;
    config.n_vocab = 1200; /* into the tokens of three letters */
    assert_int_equal(bs_make_model(&config, PATH), BS_STATUS_OK);
    assert_int_equal(bs_gguf_open(PATH, &gguf), BS_STATUS_OK);
    assert_int_equal(bs_gguf_get_strings(gguf, "tokenizer.ggml.tokens", &tokens, &n, NULL), BS_STATUS_OK);
    assert_int_equal(bs_gguf_get_strings(gguf, "tokenizer.ggml.merges", &merges, &n_merges, NULL),
                     BS_STATUS_OK);
    assert_int_equal(bs_gguf_get_ints(gguf, "tokenizer.ggml.token_type", &types, &n_types, NULL),
                     BS_STATUS_OK);
    assert_int_equal(n, 1200);
    assert_int_equal(n_types, n);
    assert_int_equal(n_merges, n - 259);
    assert_true(same_text(tokens[2], "<|im_end|>", 10) && types[2] == 3 && types[3] == 1);
    assert_true(same_text(tokens[3 + 'A'], "A", 1) && same_text(tokens[3 + ' '], "\xc4\xa0", 2));
    assert_true(same_text(tokens[3 + 0xe9], "\xc3\xa9", 2) && same_text(tokens[3 + 0], "\xc4\x80", 2));
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(find_token(tokens, n, tokens[i].text, tokens[i].bytes), i);
    for (int64_t m = 0; m < n_merges; m++) {
        const char *text = merges[m].text, *space = memchr(text, ' ', merges[m].bytes);
        assert_non_null(space);
        size_t left = (size_t)(space - text), right = merges[m].bytes - left - 1;
        char joined[32];
        assert_in_range(find_token(tokens, n, text, left), 3, 258 + m);
        assert_in_range(find_token(tokens, n, space + 1, right), 3, 258 + m);
        memcpy(joined, text, left);
        memcpy(joined + left, space + 1, right);
        assert_int_equal(find_token(tokens, n, joined, left + right), 259 + m);
    }
    bs_gguf_close(gguf);
}

static void expect_refusal(const bs_make_model_config *config, const char *path, bs_status status,
                           const char *text)
{
    unlink(PATH);
    bs_error_clear();
    bs_status got = bs_make_model(config, path);
    if (got != status || !strstr(bs_error_message(), text))
        fail_msg("status %d, line \"%s\" (wanted %d, \"%s\")", got, bs_error_message(), status, text);
    assert_int_not_equal(access(PATH, F_OK), 0);
    assert_int_not_equal(access(PATH ".tmp", F_OK), 0);
    bs_error_clear();
}

static void test_refusals(void **state)
{
    bs_make_model_config c = small(BS_TYPE_Q4_K);
    c.n_hidden = 288;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "hidden width of the model to make is 288");
    c = small(BS_TYPE_Q8_0);
    c.n_ffn = 40;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "FFN width");
    c = small(BS_TYPE_F32);
    c.n_vocab = 258;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "vocabulary");
    c = small(BS_TYPE_F32);
    c.n_kv_heads = 3;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "query heads");
    c = small(BS_TYPE_F32);
    c.n_kv_heads = 0;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "KV heads");
    c = small(BS_TYPE_F32);
    c.head_dim = 96;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "head size");
    c = small((bs_type)BS_TYPE_COUNT);
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "type");
    c = small(BS_TYPE_F32);
    c.rope_theta = 0;
    expect_refusal(&c, PATH, BS_STATUS_RANGE, "theta");
    c = small(BS_TYPE_F32);
    expect_refusal(&c, "no/such/directory/m.gguf", BS_STATUS_IO, "no/such/directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_every_type), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_tokenizer),  cmocka_unit_test(test_refusals),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(PATH);
    return failed;
}
