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
#include <sys/stat.h>
#include <unistd.h>

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

/* What may not stay composed is twice as long. */
static void test_long_composed(void **state)
{
    enum { N = 5000 };
    char *text = malloc(3 * N), *composed;
    size_t n;
    (void)state;
    assert_non_null(text);
    for (int i = 0; i < N; i++) memcpy(text + 3 * i, "\xe0\xa5\x98", 3); /* U+0958 */
    assert_int_equal(bs_nfc(text, 3 * N, &composed, &n), BS_STATUS_OK);
    assert_int_equal(n, 6 * N);
    for (int i = 0; i < N; i++) assert_memory_equal(composed + 6 * i, "\xe0\xa4\x95\xe0\xa4\xbc", 6);
    free(composed);
    free(text);
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

/* ---- directories made here --------------------------------------------------------------------------------
 */

#define DIRECTORY "test_tokenizer_hf.tmp"
enum { N_FILES = 5 };
static const char *const files[N_FILES] = {DIRECTORY "/tokenizer.json", DIRECTORY "/tokenizer_config.json",
                                           DIRECTORY "/generation_config.json", DIRECTORY "/config.json",
                                           DIRECTORY "/chat_template.jinja"};

/* Opens a directory of these files; NULL: the file is not there. */
static bs_status open_files(const json_t *tokenizer, const char *config, const char *generation,
                            const char *model, const char *jinja, bs_tokenizer **out)
{
    const char *const texts_of[N_FILES] = {NULL, config, generation, model, jinja};
    mkdir(DIRECTORY, 0700);
    assert_int_equal(json_dump_file(tokenizer, files[0], 0), 0);
    for (int i = 1; i < N_FILES; i++) {
        unlink(files[i]);
        if (!texts_of[i]) continue;
        FILE *file = fopen(files[i], "w");
        assert_non_null(file);
        assert_true(fputs(texts_of[i], file) >= 0);
        assert_int_equal(fclose(file), 0);
    }
    bs_error_clear();
    bs_status status = bs_tokenizer_open_hf(DIRECTORY, out);
    for (int i = 0; i < N_FILES; i++) unlink(files[i]);
    rmdir(DIRECTORY);
    return status;
}

static json_t *load_kind(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "hf-tokenizers/%s/tokenizer.json", name);
    json_t *root = load(path);
    assert_non_null(root);
    return root;
}

/* A further token of two that are there, behind all merges. */
static void add_token(json_t *root, const char *left, const char *right, const char *text, int id)
{
    json_t *model = json_object_get(root, "model");
    assert_int_equal(json_object_set_new(json_object_get(model, "vocab"), text, json_integer(id)), 0);
    if (left)
        assert_int_equal(
            json_array_append_new(json_object_get(model, "merges"), json_pack("[ss]", left, right)), 0);
}

static void assert_opens(const json_t *root, const char *config, const char *generation, const char *model,
                         const char *jinja, bs_tokenizer **out)
{
    if (open_files(root, config, generation, model, jinja, out) != BS_STATUS_OK)
        fail_msg("%s", bs_error_message());
}

/* Digits, each alone or all of a number: seen where the vocabulary has a token of two. */
static void test_digits(void **state)
{
    bs_tokens tokens = {0};
    (void)state;
    for (int single = 0; single < 2; single++) {
        json_t *root = load_kind("smollm");
        bs_tokenizer *tokenizer;
        add_token(root, "1", "2", "12", 1300);
        json_t *digits = json_array_get(
            json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers"), 0);
        assert_int_equal(json_object_set_new(digits, "individual_digits", json_boolean(single)), 0);
        assert_opens(root, "{}", NULL, NULL, NULL, &tokenizer);
        tokens.n = 0;
        assert_int_equal(bs_tokenize(tokenizer, "12", 2, false, &tokens), BS_STATUS_OK);
        assert_int_equal(tokens.n, 1 + single);
        bs_tokenizer_close(tokenizer);
        json_decref(root);
    }
    bs_tokens_free(&tokens);
}

/* generation_config.json says what ends an answer; config.json only where that does not. */
static void test_ends(void **state)
{
    static const struct {
        const char *generation, *model;
        bool ends[3]; /* of ids 65, 66, 67 */
    } cases[] = {{"{\"eos_token_id\": [65, 66]}", "{\"eos_token_id\": 67}", {true, true, false}},
                 {"{\"eos_token_id\": 66}", NULL, {false, true, false}},
                 {"{\"eos_token_id\": null}", "{\"eos_token_id\": 67}", {false, false, true}},
                 {"{}", "{\"eos_token_id\": [65, 67]}", {true, false, true}},
                 {NULL, "{\"eos_token_id\": 67}", {false, false, true}},
                 {NULL, NULL, {false, false, false}}};
    json_t *root = load_kind("gpt2");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_tokenizer *tokenizer;
        assert_opens(root, NULL, cases[i].generation, cases[i].model, NULL, &tokenizer);
        for (int id = 0; id < 3; id++)
            assert_int_equal(bs_tokenizer_is_end(tokenizer, 65 + id), cases[i].ends[id]);
        bs_tokenizer_close(tokenizer);
    }
    json_decref(root);
}

/* add_bos_token counts more than the post_processor. */
static void test_add_bos(void **state)
{
    static const struct {
        const char *kind, *config;
        bool adds;
    } cases[] = {
        {"llama3", "{}", true},
        {"llama3", "{\"add_bos_token\": false}", false},
        {"smollm", "{\"bos_token\": \"<|im_start|>\"}", false},
        {"smollm", "{\"bos_token\": {\"content\": \"<|im_start|>\"}, \"add_bos_token\": true}", true}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *root = load_kind(cases[i].kind);
        bs_tokenizer *tokenizer;
        assert_opens(root, cases[i].config, NULL, NULL, NULL, &tokenizer);
        assert_int_equal(bs_tokenizer_adds_bos(tokenizer), cases[i].adds);
        bs_tokenizer_close(tokenizer);
        json_decref(root);
    }
}

/* Of named templates the default counts, and a file of its own comes before them. */
static void test_template_sources(void **state)
{
    static const char named[] = "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, "
                                "{\"name\": \"default\", \"template\": \"D\"}]}";
    static const struct {
        const char *config, *jinja, *wanted;
    } cases[] = {{named, NULL, "D"},
                 {named, "J", "J"},
                 {"{\"chat_template\": \"C\"}", NULL, "C"},
                 {"{\"chat_template\": \"C\"}", "J", "J"},
                 {"{}", NULL, ""}};
    json_t *root = load_kind("gpt2");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_tokenizer *tokenizer;
        assert_opens(root, cases[i].config, NULL, NULL, cases[i].jinja, &tokenizer);
        assert_string_equal(bs_tokenizer_chat_template(tokenizer), cases[i].wanted);
        bs_tokenizer_close(tokenizer);
    }
    json_decref(root);
}

/* In SentencePiece's alphabet a token with a real space is never found: the other of the same bytes is. */
static void test_space_token(void **state)
{
    json_t *root = load_kind("llama2");
    bs_tokenizer *tokenizer;
    bs_tokens tokens = {0};
    (void)state;
    add_token(root, NULL, NULL, "\u2581a b", 1300);
    add_token(root, "\u2581a", "\u2581b", "\u2581a\u2581b", 1301);
    assert_opens(root, "{}", NULL, NULL, NULL, &tokenizer);
    assert_int_equal(bs_tokenize(tokenizer, "a b", 3, false, &tokens), BS_STATUS_OK);
    assert_int_equal(tokens.n, 1);
    assert_int_equal(tokens.ids[0], 1301);
    bs_tokens_free(&tokens);
    bs_tokenizer_close(tokenizer);
    json_decref(root);
}

static void test_refusals(void **state)
{
    bs_tokenizer *tokenizer;
    json_t *root = load_kind("llama2");
    (void)state;
    json_object_del(json_object_get(json_object_get(root, "model"), "vocab"), "<0x0A>");
    assert_int_equal(open_files(root, "{}", NULL, NULL, NULL, &tokenizer), BS_STATUS_UNSUPPORTED);
    assert_non_null(strstr(bs_error_message(), "no <0x0A>"));
    json_decref(root);
    for (int behind = 0; behind < 2; behind++) {
        root = load_kind("llama2");
        json_t *single = json_object_get(json_object_get(root, "post_processor"), "single");
        assert_int_equal(
            json_array_insert_new(single, behind ? 2 : 0,
                                  json_pack("{s{ss}}", "SpecialToken", "id", behind ? "</s>" : "<s>")),
            0);
        assert_int_equal(open_files(root, "{}", NULL, NULL, NULL, &tokenizer), BS_STATUS_UNSUPPORTED);
        assert_non_null(
            strstr(bs_error_message(), behind ? "puts </s> behind a text" : "puts <s> too in front of"));
        json_decref(root);
    }
    bs_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts),
                                       cmocka_unit_test(test_bos),
                                       cmocka_unit_test(test_decodes),
                                       cmocka_unit_test(test_chats),
                                       cmocka_unit_test(test_nfc),
                                       cmocka_unit_test(test_many_marks),
                                       cmocka_unit_test(test_long_composed),
                                       cmocka_unit_test(test_digits),
                                       cmocka_unit_test(test_ends),
                                       cmocka_unit_test(test_add_bos),
                                       cmocka_unit_test(test_template_sources),
                                       cmocka_unit_test(test_space_token),
                                       cmocka_unit_test(test_refusals)};
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
