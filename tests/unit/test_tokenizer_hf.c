/* test_tokenizer_hf.c: tokenizers of Hugging Face directories against the reference library: each kind of pipeline, with
 * small vocabularies (tests/data/hf-tokenizers), and canonical composition. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/model/nfc.h"
#include "tests/unit/tokenizer_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_KINDS = 8 };
static const struct {
    const char *name;
    bs_chat_family family;
    bool adds_bos, spaces;
} kinds[N_KINDS] = {
    {"llama3", BS_CHAT_LLAMA3, true, false},     {"gpt2", BS_CHAT_CHATML, false, false},
    {"smollm", BS_CHAT_CHATML, false, false},    {"qwen2", BS_CHAT_CHATML, false, false},
    {"tekken", BS_CHAT_MISTRAL, true, false},    {"llama2", BS_CHAT_MISTRAL, true, true},
    {"mistral-v3", BS_CHAT_MISTRAL, true, true}, {"metaspace-split", BS_CHAT_MISTRAL, true, true}};
static bs_tokenizer *tokenizers[N_KINDS];
static json_t *texts, *goldens[N_KINDS];

static json_t *load(const char *name)
{
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s", BS_TEST_DATA, name);
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!json) fprintf(stderr, "%s:%d: %s\n", path, error.line, error.text);
    return json;
}

static bool open_all(void)
{
    texts = load("tokenizer.texts.json");
    for (int k = 0; k < N_KINDS; k++) {
        char path[4096];
        snprintf(path, sizeof path, "hf-tokenizers/%s/golden.json", kinds[k].name);
        goldens[k] = load(path);
        snprintf(path, sizeof path, "%s/hf-tokenizers/%s", BS_TEST_DATA, kinds[k].name);
        if (!goldens[k] || bs_tokenizer_open_hf(path, &tokenizers[k]) != BS_STATUS_OK) return false;
    }
    return texts != NULL;
}

static void test_texts(void **state)
{
    bs_tokens tokens = {0};
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        const json_t *plain = json_object_get(goldens[k], "plain"),
                     *special = json_object_get(goldens[k], "special");
        const json_t *more = json_object_get(goldens[k], "more");
        const size_t n = json_array_size(texts);
        assert_int_equal(json_array_size(plain), n + json_array_size(more));
        assert_true(json_object_size(special) > 2);
        for (size_t i = 0; i < json_array_size(plain); i++) {
            const json_t *text = i < n ? json_array_get(texts, i) : json_array_get(more, i - n);
            char key[24], what[48];
            snprintf(key, sizeof key, "%zu", i);
            for (int parse = 0; parse < 2; parse++) {
                const json_t *ids = parse ? json_object_get(special, key) : NULL;
                tokens.n = 0;
                assert_int_equal(bs_tokenize(tokenizers[k], json_string_value(text), json_string_length(text),
                                             parse, &tokens),
                                 BS_STATUS_OK);
                snprintf(what, sizeof what, "%s, %s", kinds[k].name, parse ? "special" : "plain");
                assert_ids(&tokens, ids ? ids : json_array_get(plain, i), what, i);
            }
        }
    }
    bs_tokens_free(&tokens);
}

/* What the post_processor puts in front is bos. */
static void test_bos(void **state)
{
    bs_tokens tokens = {0};
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        tokens.n = 0;
        assert_int_equal(bs_tokenizer_adds_bos(tokenizers[k]), kinds[k].adds_bos);
        if (kinds[k].adds_bos)
            assert_int_equal(bs_tokens_push(&tokens, bs_tokenizer_bos(tokenizers[k])), BS_STATUS_OK);
        assert_int_equal(bs_tokenize(tokenizers[k], "Hello", 5, true, &tokens), BS_STATUS_OK);
        assert_ids(&tokens, json_object_get(goldens[k], "hello"), kinds[k].name, 0);
        assert_int_equal(bs_tokenizer_prefixes_space(tokenizers[k]), kinds[k].spaces);
        assert_true(bs_tokenizer_is_end(tokenizers[k], bs_tokenizer_eos(tokenizers[k])));
    }
    bs_tokens_free(&tokens);
}

static void test_decodes(void **state)
{
    size_t index;
    const json_t *one;
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        const json_t *cases = json_object_get(goldens[k], "decode");
        assert_true(json_array_size(cases) >= 100);
        json_array_foreach(cases, index, one)
        {
            const json_t *ids = json_object_get(one, "ids");
            for (int shown = 0; shown < 2; shown++) {
                const json_t *wanted = json_object_get(one, shown ? "shown" : "text");
                bs_detokenizer detokenizer;
                char *text = NULL;
                size_t bytes = 0;
                bs_detokenizer_init(&detokenizer, tokenizers[k], shown);
                detokenizer.strip_space = kinds[k].spaces;
                for (size_t i = 0; i < json_array_size(ids); i++)
                    assert_int_equal(bs_detokenizer_push(&detokenizer,
                                                         (int32_t)json_integer_value(json_array_get(ids, i)),
                                                         &text, &bytes),
                                     BS_STATUS_OK);
                assert_int_equal(bs_detokenizer_finish(&detokenizer, &text, &bytes), BS_STATUS_OK);
                if (bytes != json_string_length(wanted) ||
                    memcmp(text, json_string_value(wanted), bytes) != 0)
                    fail_msg("%s, decode %zu: \"%s\", wanted \"%s\"", kinds[k].name, index, text,
                             json_string_value(wanted));
                free(text);
            }
        }
    }
}

static void test_chats(void **state)
{
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        const json_t *all = json_object_get(goldens[k], "chat");
        for (size_t t = 0; t < json_array_size(all); t++) {
            const json_t *one = json_array_get(all, t), *template = json_object_get(one, "template");
            assert_int_equal(bs_tokenizer_set_chat_template(tokenizers[k], json_string_value(template),
                                                            json_string_length(template)),
                             BS_STATUS_OK);
            assert_int_equal(bs_chat_family_of(tokenizers[k]), kinds[k].family);
            assert_golden_chats(json_object_get(one, "chats"), tokenizers[k]);
        }
    }
}

static void test_nfc(void **state)
{
    json_t *root = load("hf-tokenizers/nfc.json");
    const json_t *cases = json_object_get(root, "cases"), *one;
    size_t index, n;
    (void)state;
    assert_true(json_array_size(cases) > 300);
    json_array_foreach(cases, index, one)
    {
        const json_t *text = json_array_get(one, 0), *wanted = json_array_get(one, 1);
        char *composed;
        assert_int_equal(bs_nfc(json_string_value(text), json_string_length(text), &composed, &n),
                         BS_STATUS_OK);
        if (n != json_string_length(wanted) || memcmp(composed, json_string_value(wanted), n) != 0)
            fail_msg("case %zu: \"%.*s\", wanted \"%s\"", index, (int)n, composed, json_string_value(wanted));
        free(composed);
    }
    json_decref(root);
}

/* A million marks on one letter, in the wrong order: a sort that is quadratic takes hours. */
static void test_many_marks(void **state)
{
    enum { N = 1 << 20 };
    char *text = malloc(1 + 2 * N), *composed;
    size_t n;
    (void)state;
    assert_non_null(text);
    text[0] = 'q';
    for (int i = 0; i < N; i++)
        memcpy(text + 1 + 2 * i, i % 2 ? "\xcc\xa3" : "\xcc\x81", 2); /* class 220, 230 */
    assert_int_equal(bs_nfc(text, 1 + 2 * N, &composed, &n), BS_STATUS_OK);
    assert_int_equal(n, 1 + 2 * N);
    assert_memory_equal(composed + N - 1, "\xcc\xa3\xcc\x81", 4);
    free(composed);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts),   cmocka_unit_test(test_bos),
                                       cmocka_unit_test(test_decodes), cmocka_unit_test(test_chats),
                                       cmocka_unit_test(test_nfc),     cmocka_unit_test(test_many_marks)};
    int failed = 1;
    if (open_all()) failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_error_flush();
    for (int k = 0; k < N_KINDS; k++) {
        bs_tokenizer_close(tokenizers[k]);
        json_decref(goldens[k]);
    }
    json_decref(texts);
    return failed;
}
