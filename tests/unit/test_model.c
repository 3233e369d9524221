/* test_model.c: what a small llama file describes, and each way in which keys and tensors can disagree. */
#include "config.h"
#include "src/model/gguf.h"
#include "src/model/gguf_write.h"
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

#define PATH "test_model.tmp.gguf"

enum { LAYERS = 2, HIDDEN = 192, HEADS = 6, KV_HEADS = 2, D = 64, FFN = 96, VOCAB = 50 };

/* A key (value as an integer, a float or a text) or a tensor (n_cols, n_rows); DROP leaves it out of the
 * file. */
typedef enum kind { NONE, DROP, INT, FLOAT, TEXT, TENSOR } kind;
typedef struct item {
    const char *name;
    kind kind;
    int64_t value, rows; /* INT; or columns and rows */
    double real;
    const char *text;
    bs_type type;
} item;

#define DROPPED(key)                                                                                         \
    {                                                                                                        \
        .name = key, .kind = DROP                                                                            \
    }
#define INTEGER(key, number)                                                                                 \
    {                                                                                                        \
        .name = key, .kind = INT, .value = number                                                            \
    }
#define REAL(key, number)                                                                                    \
    {                                                                                                        \
        .name = key, .kind = FLOAT, .real = number                                                           \
    }
#define WORDS(key, words)                                                                                    \
    {                                                                                                        \
        .name = key, .kind = TEXT, .text = words                                                             \
    }
#define TYPED(key, n, m, t)                                                                                  \
    {                                                                                                        \
        .name = key, .kind = TENSOR, .value = n, .rows = m, .type = t                                        \
    }
#define MATRIX(key, n_cols, m) TYPED(key, n_cols, m, BS_TYPE_F32)

static const item base[] = {
    WORDS("general.architecture", "llama"),
    WORDS("general.name", "test"),
    INTEGER("llama.block_count", LAYERS),
    INTEGER("llama.context_length", 4096),
    INTEGER("llama.embedding_length", HIDDEN),
    INTEGER("llama.feed_forward_length", FFN),
    INTEGER("llama.attention.head_count", HEADS),
    INTEGER("llama.attention.head_count_kv", KV_HEADS),
    INTEGER("llama.attention.key_length", D),
    REAL("llama.attention.layer_norm_rms_epsilon", 1e-5),
    REAL("llama.rope.freq_base", 1e5),
    MATRIX("token_embd.weight", HIDDEN, VOCAB),
    MATRIX("output_norm.weight", HIDDEN, 0),
    MATRIX("blk.0.attn_norm.weight", HIDDEN, 0),
    MATRIX("blk.0.attn_q.weight", HIDDEN, HEADS *D),
    MATRIX("blk.0.attn_k.weight", HIDDEN, KV_HEADS *D),
    MATRIX("blk.0.attn_v.weight", HIDDEN, KV_HEADS *D),
    MATRIX("blk.0.attn_output.weight", HEADS *D, HIDDEN),
    MATRIX("blk.0.ffn_norm.weight", HIDDEN, 0),
    MATRIX("blk.0.ffn_gate.weight", HIDDEN, FFN),
    MATRIX("blk.0.ffn_up.weight", HIDDEN, FFN),
    MATRIX("blk.0.ffn_down.weight", FFN, HIDDEN),
    MATRIX("blk.1.attn_norm.weight", HIDDEN, 0),
    MATRIX("blk.1.attn_q.weight", HIDDEN, HEADS *D),
    MATRIX("blk.1.attn_k.weight", HIDDEN, KV_HEADS *D),
    MATRIX("blk.1.attn_v.weight", HIDDEN, KV_HEADS *D),
    MATRIX("blk.1.attn_output.weight", HEADS *D, HIDDEN),
    MATRIX("blk.1.ffn_norm.weight", HIDDEN, 0),
    MATRIX("blk.1.ffn_gate.weight", HIDDEN, FFN),
    MATRIX("blk.1.ffn_up.weight", HIDDEN, FFN),
    TYPED("blk.1.ffn_down.weight", FFN, HIDDEN, BS_TYPE_Q8_0),
};
enum { N_BASE = sizeof base / sizeof *base, MAX_ITEMS = N_BASE + 4 };

static void write_items(const item *items, int n)
{
    bs_gguf_writer *w;
    assert_int_equal(bs_gguf_writer_create(&w), BS_STATUS_OK);
    size_t data_bytes = 0;
    for (int i = 0; i < n; i++) {
        const item *it = &items[i];
        if (it->kind == INT) bs_gguf_put_u32(w, it->name, (uint32_t)it->value);
        if (it->kind == FLOAT) bs_gguf_put_f32(w, it->name, (float)it->real);
        if (it->kind == TEXT) bs_gguf_put_string(w, it->name, it->text);
        if (it->kind != TENSOR) continue;
        bs_gguf_add_tensor(w, it->name, it->type, it->value, it->rows);
        data_bytes += (size_t)(it->value / bs_type_block(it->type) * bs_type_block_bytes(it->type)) *
                      (size_t)(it->rows ? it->rows : 1);
    }
    float *ones = malloc(data_bytes + sizeof *ones);
    assert_non_null(ones);
    for (size_t i = 0; i < data_bytes / sizeof *ones + 1; i++) ones[i] = 4;
    assert_int_equal(bs_gguf_writer_begin(w, PATH), BS_STATUS_OK);
    assert_int_equal(bs_gguf_writer_data(w, ones, data_bytes), BS_STATUS_OK);
    assert_int_equal(bs_gguf_writer_finish(w), BS_STATUS_OK);
    bs_gguf_writer_free(w);
    free(ones);
}

/* The base file with up to three items replaced or added. */
static bs_status open_changed(const item *changes, int n_changes, bs_model **out)
{
    item items[MAX_ITEMS];
    int n = N_BASE;
    memcpy(items, base, sizeof base);
    for (int c = 0; c < n_changes && changes[c].kind != NONE; c++) {
        int i = 0;
        while (i < n && strcmp(items[i].name, changes[c].name) != 0) i++;
        if (i == n) n++;
        items[i] = changes[c];
    }
    write_items(items, n);
    bs_error_clear();
    return bs_model_open(PATH, out);
}

static void test_description(void **state)
{
    bs_model *model;
    assert_int_equal(open_changed(NULL, 0, &model), BS_STATUS_OK);
    const bs_model_desc *d = bs_model_get_desc(model);
    assert_string_equal(d->architecture, "llama");
    assert_string_equal(d->name, "test");
    assert_int_equal(d->n_layers, LAYERS);
    assert_int_equal(d->n_hidden, HIDDEN);
    assert_int_equal(d->n_heads, HEADS);
    assert_int_equal(d->n_kv_heads, KV_HEADS);
    assert_int_equal(d->head_dim, D);
    assert_int_equal(d->n_ffn, FFN);
    assert_int_equal(d->n_vocab, VOCAB);
    assert_int_equal(d->context_length, 4096);
    assert_true(d->rms_eps == 1e-5f);
    assert_true(d->attn_scale == 0.125f);
    assert_int_equal(d->layers[LAYERS - 1].window, 0);
    assert_true(d->tied_output && d->rope_interleaved);
    assert_int_equal(d->n_rot, D);
    assert_true(d->rope_attention_factor == 1.0f);
    int64_t per_layer = 2 * HIDDEN + 2 * HIDDEN * HEADS * D + 2 * HIDDEN * KV_HEADS * D + 3 * HIDDEN * FFN;
    assert_int_equal(d->n_params, VOCAB * HIDDEN + HIDDEN + LAYERS * per_layer);
    assert_int_equal(d->file_bytes, bs_gguf_file_bytes(bs_model_gguf(model)));
    for (int i = 0; i < D / 2; i++) {
        double wanted = exp(-2.0 * i / D * log(1e5));
        assert_true(fabs(d->inv_freq[i] / wanted - 1) <= TOL_INV_FREQ);
    }
    bs_model_close(model);
}

static void test_variants(void **state)
{
    bs_model *model;
    const item separate[] = {MATRIX("output.weight", HIDDEN, VOCAB), INTEGER("llama.vocab_size", VOCAB)};
    assert_int_equal(open_changed(separate, 2, &model), BS_STATUS_OK);
    assert_false(bs_model_get_desc(model)->tied_output);
    bs_model_close(model);

    const item linear[] = {WORDS("llama.rope.scaling.type", "linear"), REAL("llama.rope.scaling.factor", 4),
                           MATRIX("rope_freqs.weight", D / 2, 0)}; /* all 4, as all data of these files */
    assert_int_equal(open_changed(linear, 3, &model), BS_STATUS_OK);
    const bs_model_desc *d = bs_model_get_desc(model);
    assert_true(fabs(d->inv_freq[0] * 16 - 1) <= TOL_INV_FREQ);
    assert_int_equal(d->n_params % 2, 0); /* frequencies are no parameters; base is even */
    bs_model_close(model);

    const item yarn[] = {WORDS("llama.rope.scaling.type", "yarn"), REAL("llama.rope.scaling.factor", 4),
                         REAL("llama.rope.scaling.attn_factor", 0.5)};
    assert_int_equal(open_changed(yarn, 3, &model), BS_STATUS_OK);
    d = bs_model_get_desc(model);
    assert_int_equal(d->rope_kind, BS_ROPE_YARN);
    assert_true(d->rope_attention_factor == (float)(0.5 * (0.1 * log(4) + 1)));
    bs_model_close(model);

    const item old_linear[] = {REAL("llama.rope.scale_linear", 8)};
    assert_int_equal(open_changed(old_linear, 1, &model), BS_STATUS_OK);
    d = bs_model_get_desc(model);
    assert_int_equal(d->rope_kind, BS_ROPE_LINEAR);
    assert_true(fabs(d->inv_freq[0] * 8 - 1) <= TOL_INV_FREQ);
    bs_model_close(model);

    const item no_name[] = {DROPPED("general.name"), INTEGER("llama.rope.dimension_count", 32)};
    assert_int_equal(open_changed(no_name, 2, &model), BS_STATUS_OK);
    assert_string_equal(bs_model_get_desc(model)->name, PATH);
    assert_int_equal(bs_model_get_desc(model)->n_rot, 32);
    bs_model_close(model);

    char text[200];
    for (int i = 0; i < 198; i += 2) memcpy(text + i, "\xc3\xa9", 2);
    text[198] = 0;
    const item long_name[] = {WORDS("general.name", text)};
    assert_int_equal(open_changed(long_name, 1, &model), BS_STATUS_OK);
    assert_int_equal(strlen(bs_model_get_desc(model)->name), 126); /* no half a character */
    bs_model_close(model);
}

static void test_disagreements(void **state)
{
    static const struct {
        item changes[2];
        bs_status status;
        const char *field, *text;
    } cases[] = {
        {{WORDS("general.architecture", "mamba")}, BS_STATUS_UNSUPPORTED, "general.architecture", "mamba"},
        {{DROPPED("general.architecture")}, BS_STATUS_FORMAT, "general.architecture", "missing"},
        {{DROPPED("llama.block_count")}, BS_STATUS_FORMAT, "llama.block_count", "missing"},
        {{INTEGER("llama.block_count", 0)}, BS_STATUS_FORMAT, "llama.block_count", "is 0"},
        {{INTEGER("llama.block_count", 3)}, BS_STATUS_FORMAT, "blk.2.attn_norm.weight", "missing"},
        {{INTEGER("llama.block_count", 1)}, BS_STATUS_UNSUPPORTED, "blk.1.", "not one that"},
        {{INTEGER("llama.context_length", 0)}, BS_STATUS_FORMAT, "llama.context_length", "is 0"},
        {{INTEGER("llama.embedding_length", 128)}, BS_STATUS_FORMAT, "token_embd.weight", "[128, 50]"},
        {{REAL("llama.embedding_length", 192)}, BS_STATUS_FORMAT, "llama.embedding_length", "f32"},
        {{INTEGER("llama.feed_forward_length", 64)}, BS_STATUS_FORMAT, "blk.0.ffn_gate.weight", "[192, 64]"},
        {{INTEGER("llama.attention.head_count", 0)}, BS_STATUS_FORMAT, "llama.attention.head_count", "is 0"},
        {{INTEGER("llama.attention.head_count", 8)}, BS_STATUS_FORMAT, "blk.0.attn_q.weight", "[192, 512]"},
        {{INTEGER("llama.attention.head_count_kv", 4)}, BS_STATUS_FORMAT, "head_count_kv", "divide"},
        {{INTEGER("llama.attention.head_count_kv", 3)},
         BS_STATUS_FORMAT,
         "blk.0.attn_k.weight",
         "[192, 192]"},
        {{INTEGER("llama.attention.head_count_kv", 12)}, BS_STATUS_FORMAT, "head_count_kv", "1 … 6"},
        {{INTEGER("llama.attention.key_length", 80)}, BS_STATUS_UNSUPPORTED, "attention.key_length", "is 80"},
        {{DROPPED("llama.attention.key_length")}, BS_STATUS_UNSUPPORTED, "attention.key_length", "is 32"},
        {{DROPPED("llama.attention.key_length"), INTEGER("llama.embedding_length", 193)},
         BS_STATUS_FORMAT,
         "llama.attention.head_count",
         "divide"},
        {{INTEGER("llama.attention.value_length", 128)},
         BS_STATUS_UNSUPPORTED,
         "attention.value_length",
         "is 128"},
        {{INTEGER("llama.expert_count", 8)}, BS_STATUS_UNSUPPORTED, "llama.expert_count", "is 8"},
        {{INTEGER("llama.vocab_size", 49)}, BS_STATUS_FORMAT, "llama.vocab_size", "is 49"},
        {{DROPPED("llama.attention.layer_norm_rms_epsilon")}, BS_STATUS_FORMAT, "rms_epsilon", "missing"},
        {{REAL("llama.attention.layer_norm_rms_epsilon", -1)}, BS_STATUS_FORMAT, "rms_epsilon", "-1"},
        {{REAL("llama.rope.freq_base", 1)}, BS_STATUS_FORMAT, "llama.rope.freq_base", "is 1"},
        {{INTEGER("llama.rope.dimension_count", 63)}, BS_STATUS_FORMAT, "rope.dimension_count", "even"},
        {{INTEGER("llama.rope.dimension_count", 128)}, BS_STATUS_FORMAT, "rope.dimension_count", "2 … 64"},
        {{WORDS("llama.rope.scaling.type", "longrope")},
         BS_STATUS_UNSUPPORTED,
         "rope.scaling.type",
         "longrope"},
        {{WORDS("llama.rope.scaling.type", "yarn")}, BS_STATUS_FORMAT, "rope.scaling.factor", "missing"},
        {{WORDS("llama.rope.scaling.type", "yarn"), REAL("llama.rope.scaling.factor", 0.5)},
         BS_STATUS_FORMAT,
         "rope.scaling.factor",
         "is 0.5"},
        {{WORDS("general.architecture", "mixtral")},
         BS_STATUS_UNSUPPORTED,
         "general.architecture",
         "mixtral"},
        {{MATRIX("blk.0.attn_q.bias", 7, 0)}, BS_STATUS_FORMAT, "blk.0.attn_q.bias", "[7, 1, 1, 1]"},
        {{WORDS("llama.rope.scaling.type", "linear")}, BS_STATUS_FORMAT, "rope.scaling.factor", "missing"},
        {{WORDS("llama.rope.scaling.type", "linear"), REAL("llama.rope.scaling.factor", 0)},
         BS_STATUS_FORMAT,
         "rope.scaling.factor",
         "is 0"},
        {{MATRIX("rope_freqs.weight", 16, 0)}, BS_STATUS_FORMAT, "rope_freqs.weight", "[32, 1]"},
        {{TYPED("rope_freqs.weight", 32, 0, BS_TYPE_F16)}, BS_STATUS_UNSUPPORTED, "rope_freqs", "F16"},
        {{DROPPED("output_norm.weight")}, BS_STATUS_FORMAT, "output_norm.weight", "missing"},
        {{MATRIX("output.weight", HIDDEN, VOCAB + 1)}, BS_STATUS_FORMAT, "output.weight", "[192, 51, 1, 1]"},
        {{DROPPED("token_embd.weight")}, BS_STATUS_FORMAT, "token_embd.weight", "missing"},
        {{MATRIX("blk.1.ffn_down.weight", HIDDEN, FFN)},
         BS_STATUS_FORMAT,
         "blk.1.ffn_down.weight",
         "[96, 192]"},
        {{DROPPED("blk.1.attn_output.weight")}, BS_STATUS_FORMAT, "blk.1.attn_output.weight", "missing"},
        {{MATRIX("blk.0.attn_output.bias", HIDDEN, 0)},
         BS_STATUS_UNSUPPORTED,
         "blk.0.attn_output.bias",
         "not one that"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_model *model = (bs_model *)1;
        bs_status status = open_changed(cases[i].changes, 2, &model);
        const char *line = bs_error_message();
        if (status != cases[i].status || !strstr(line, cases[i].field) || !strstr(line, cases[i].text) ||
            !strstr(line, PATH) || model != (bs_model *)1)
            fail_msg("case %zu: status %d, line \"%s\" (wanted %d, \"%s\", \"%s\")", i, status, line,
                     cases[i].status, cases[i].field, cases[i].text);
    }
    bs_error_clear();
}

static void test_shards_of_a_model(void **state)
{
    bs_model *model;
    assert_int_equal(open_changed(NULL, 0, &model), BS_STATUS_OK);
    bs_shard shard;
    bs_grid grid = {.rank = 3, .size = 4, .heads = 2, .seq = 2, .head_shard = 1, .seq_shard = 1};
    assert_int_equal(bs_shard_compute(model, &grid, BS_MERGE_ALLREDUCE, &shard), BS_STATUS_OK);
    assert_true(shard.heads.first == 3 && shard.heads.n == 3 && shard.kv_heads.first == 1 &&
                shard.kv_heads.n == 1);
    assert_true(shard.o_cols.first == 288 && shard.o_cols.n == 96);
    assert_true(shard.ffn.n == 0);   /* 3 units of 32 over 4 ranks */
    assert_true(shard.vocab.n == 0); /* 2 units */
    uint64_t floats = VOCAB * HIDDEN + HIDDEN * (3 + 1 + 1) * D * LAYERS + HIDDEN * 96 * LAYERS;
    floats += HIDDEN * (2 * LAYERS + 1);
    assert_int_equal(bs_shard_weight_bytes(model, &shard), 4 * floats + 8 * D / 2);
    grid.heads = 4;
    grid.seq = 1;
    grid.head_shard = 3;
    grid.seq_shard = 0;
    bs_error_clear();
    assert_int_equal(bs_shard_compute(model, &grid, BS_MERGE_ALLREDUCE, &shard), BS_STATUS_RANGE);
    assert_non_null(strstr(bs_error_message(), "4 head shards"));
    grid.head_shard = 2;
    bs_error_clear();
    assert_int_equal(bs_shard_compute(model, &grid, BS_MERGE_ALLREDUCE, &shard), BS_STATUS_RANGE);
    bs_error_clear();
    bs_model_close(model);
}

static void test_real_model(void **state)
{
    const char *path = getenv("BITSHARD_TEST_MODEL");
    if (!path) {
        print_message("BITSHARD_TEST_MODEL is not set: no real model is opened\n");
        return;
    }
    bs_model *model;
    assert_int_equal(bs_model_open(path, &model), BS_STATUS_OK);
    const bs_model_desc *d = bs_model_get_desc(model);
    print_message("%s: %lld parameters, %d layers, %d heads on %d of %d\n", d->name, (long long)d->n_params,
                  d->n_layers, d->n_heads, d->n_kv_heads, d->head_dim);
    assert_int_equal(d->n_rot, d->head_dim);
    bs_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_description),   cmocka_unit_test(test_variants),
        cmocka_unit_test(test_disagreements), cmocka_unit_test(test_shards_of_a_model),
        cmocka_unit_test(test_real_model),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(PATH);
    return failed;
}
