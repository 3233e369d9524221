/* test_tokenizer.c: three pre-tokenizers with small vocabularies against the reference library, the property
 * that any text comes back from its ids, and what must be refused. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/model/pretokenize.h"
#include "src/model/utf8.h"
#include "tests/unit/tokenizer_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_GOLDEN = 3 };
static const char *const names[N_GOLDEN] = {"gpt2", "llama-bpe", "qwen2"};
static golden all[N_GOLDEN];

static void test_golden_texts(void **state)
{
    (void)state;
    for (int i = 0; i < N_GOLDEN; i++) assert_golden_texts(&all[i], all[i].tokenizer);
}

static void test_golden_decodes(void **state)
{
    (void)state;
    for (int i = 0; i < N_GOLDEN; i++) assert_golden_decodes(&all[i], all[i].tokenizer);
}

static void assert_golden_pieces(const golden *golden)
{
    const json_t *pre = json_object_get(golden->root, "pre"), *cuts = json_object_get(golden->root, "pieces");
    bs_pretokenizer *pretokenizer;
    bs_pieces *pieces;
    assert_int_equal(bs_pretokenizer_create(json_string_value(pre), json_string_length(pre), &pretokenizer),
                     0);
    assert_int_equal(bs_pieces_create(pretokenizer, &pieces), BS_STATUS_OK);
    assert_int_equal(json_array_size(cuts), json_array_size(golden->texts));
    for (size_t i = 0; i < json_array_size(cuts); i++) {
        const json_t *text = json_array_get(golden->texts, i), *wanted = json_array_get(cuts, i);
        size_t bytes = 1;
        bs_pieces_begin(pieces, json_string_value(text), json_string_length(text));
        for (size_t j = 0; bytes > 0; j++) {
            const char *piece;
            assert_int_equal(bs_pieces_next(pieces, &piece, &bytes), BS_STATUS_OK);
            if (bytes != (size_t)json_integer_value(json_array_get(wanted, j))) /* 0 behind the last */
                fail_msg("%s: text %zu, piece %zu has %zu bytes", golden->name, i, j, bytes);
        }
    }
    bs_pieces_free(pieces);
    bs_pretokenizer_free(pretokenizer);
}

/* Ids alone would not show a cut in another place where no merge crosses it. */
static void test_golden_pieces(void **state)
{
    (void)state;
    for (int i = 0; i < N_GOLDEN; i++) assert_golden_pieces(&all[i]);
    golden smollm;
    assert_true(golden_load("smollm", &smollm));
    assert_golden_pieces(&smollm);
    golden_free(&smollm);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Random bytes, of which what is not UTF-8 becomes '?'. Few leading bytes, so that characters do come up. */
static size_t random_text(uint64_t *seed, char *text, size_t most)
{
    size_t bytes = next_random(seed) % (most + 1), length;
    for (size_t i = 0; i < bytes; i++) {
        uint64_t r = next_random(seed);
        static const unsigned char leads[] = {0xc3, 0xcc, 0xe3, 0xe4, 0xf0, 0xe2, ' ', '\n'};
        text[i] = (char)(r % 4 == 0   ? leads[r >> 8 & 7]
                         : r % 4 == 1 ? 0x80 | (r >> 8 & 0x3f)
                                      : r >> 8 & 0xff);
    }
    for (size_t i = 0; i < bytes; i += length)
        if (bs_utf8_next(text + i, bytes - i, &length, NULL) != BS_UTF8_CHARACTER)
            memset(text + i, '?', length);
    return bytes;
}

static void test_random_round_trip(void **state)
{
    char text[301];
    uint64_t seed = 0x5eed;
    bs_tokens tokens = {0};
    (void)state;
    for (int i = 0; i < 6000; i++) {
        size_t bytes = random_text(&seed, text, sizeof text - 1);
        tokens.n = 0;
        assert_int_equal(bs_tokenize(all[i % N_GOLDEN].tokenizer, text, bytes, i & 1, &tokens), BS_STATUS_OK);
        assert_round_trip(all[i % N_GOLDEN].tokenizer, &tokens, text, bytes);
    }
    bs_tokens_free(&tokens);
}

/* A megabyte that is one piece: with a merge loop in O(n²) this is hours, not a fraction of a second. */
static void test_long_pieces(void **state)
{
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES);
    uint64_t seed = 99;
    bs_tokens tokens = {0};
    (void)state;
    assert_non_null(text);
    for (int kind = 0; kind < 5; kind++) {
        for (size_t i = 0; i < BYTES; i++)
            text[i] = kind == 4 ? "etaoinshr"[next_random(&seed) % 9] : "a \n="[kind];
        for (int i = 0; i < N_GOLDEN; i++) {
            tokens.n = 0;
            assert_int_equal(bs_tokenize(all[i].tokenizer, text, BYTES, false, &tokens), BS_STATUS_OK);
            assert_round_trip(all[i].tokenizer, &tokens, text, BYTES);
        }
    }
    bs_tokens_free(&tokens);
    free(text);
}

static void test_broken_utf8_is_refused(void **state)
{
    static const struct {
        const char *text;
        size_t bytes, bad;
    } cases[] = {{"abc\xff", 4, 3},          {"\x80", 1, 0},
                 {"\xc0\xaf", 2, 0},         {"a\xc3", 2, 1},
                 {"\xe0\x80\x80", 3, 0},     {"\xf0\x8f\xbf\xbf", 4, 0},
                 {"x\xed\xa0\x80", 4, 1},    {"\xf4\x90\x80\x80", 4, 0},
                 {"\xf0\x9f\x98", 3, 0},     {"12345678\xe6\x97z", 11, 8},
                 {"\xf5\x80\x80\x80", 4, 0}, {"<|im_end|>\xc3\xa9\xe9", 13, 12}};
    bs_tokens tokens = {0};
    (void)state;
    assert_int_equal(bs_tokens_push(&tokens, 7), BS_STATUS_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "byte %zu (0x%02x)", cases[i].bad,
                 (unsigned char)cases[i].text[cases[i].bad]);
        bs_error_clear();
        assert_int_equal(bs_tokenize(all[0].tokenizer, cases[i].text, cases[i].bytes, true, &tokens),
                         BS_STATUS_FORMAT);
        assert_non_null(strstr(bs_error_message(), wanted));
        assert_int_equal(tokens.n, 1);
    }
    bs_error_clear();
    bs_tokens_free(&tokens);
}

/* Every number written by the rule of UTF-8 is a character, but for surrogates and what is beyond U+10FFFF.
 */
static void test_utf8_of_every_code_point(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x120000; c++) {
        char text[4];
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, length = 99;
        uint32_t decoded = 0;
        if (n == 1) text[0] = (char)c;
        else text[0] = (char)(0xf00u >> n | c >> 6 * (n - 1));
        for (size_t i = 1; i < n; i++) text[i] = (char)(0x80 | (c >> 6 * (n - 1 - i) & 0x3f));
        bs_utf8_kind kind = bs_utf8_next(text, n, &length, &decoded);
        if ((c >= 0xd800 && c < 0xe000) || c > 0x10ffff) {
            assert_int_equal(kind, BS_UTF8_BROKEN);
            assert_int_equal(length, 1);
            continue;
        }
        assert_true(kind == BS_UTF8_CHARACTER && length == n && decoded == c);
        for (size_t cut = 1; cut < n; cut++) {
            assert_int_equal(bs_utf8_next(text, cut, &length, NULL), BS_UTF8_BEGINNING);
            assert_int_equal(length, cut);
        }
    }
}

static void test_special_tokens(void **state)
{
    const bs_tokenizer *chatml = all[0].tokenizer, *llama = all[1].tokenizer;
    int32_t end = bs_tokenizer_find(chatml, "<|im_end|>", 10),
            call = bs_tokenizer_find(chatml, "<tool_call>", 11);
    size_t bytes;
    (void)state;
    assert_true(end > 0 && call > 0);
    assert_true(bs_tokenizer_is_special(chatml, end) && !bs_tokenizer_is_special(chatml, call));
    assert_true(bs_tokenizer_is_end(chatml, end) && !bs_tokenizer_is_end(chatml, call));
    assert_true(bs_tokenizer_is_end(chatml, bs_tokenizer_find(chatml, "<|endoftext|>", 13)));
    assert_false(bs_tokenizer_is_end(chatml, bs_tokenizer_find(chatml, "<|im_start|>", 12)));
    assert_true(bs_tokenizer_is_end(llama, bs_tokenizer_find(llama, "<|eot_id|>", 10)));
    assert_true(bs_tokenizer_is_end(llama, bs_tokenizer_find(llama, "<|end_of_text|>", 15)));
    assert_true(bs_tokenizer_is_end(llama, bs_tokenizer_eos(llama)));
    assert_false(bs_tokenizer_is_end(llama, -1));
    assert_true(bs_tokenizer_adds_bos(llama) && !bs_tokenizer_adds_bos(chatml));
    assert_int_equal(bs_tokenizer_bos(llama), bs_tokenizer_find(llama, "<|begin_of_text|>", 17));
    assert_int_equal(bs_tokenizer_find(chatml, "<|im_end|", 9), -1);
    assert_int_equal(bs_tokenizer_find(chatml, "<|im_end|>x", 11), -1);
    assert_memory_equal(bs_tokenizer_token_bytes(chatml, end, &bytes), "<|im_end|>", 10);
    assert_int_equal(bytes, 10);
    bs_tokenizer_token_bytes(chatml, bs_tokenizer_n_vocab(chatml), &bytes);
    assert_int_equal(bytes, 0);
    assert_false(bs_tokenizer_is_special(chatml, -1));
}

static void test_detokenizer_edges(void **state)
{
    const bs_tokenizer *tokenizer = all[0].tokenizer;
    bs_detokenizer detokenizer;
    char *text = NULL;
    size_t bytes = 0;
    (void)state;
    bs_detokenizer_init(&detokenizer, tokenizer, false);
    assert_int_equal(bs_detokenizer_push(&detokenizer, -1, &text, &bytes), BS_STATUS_RANGE);
    assert_int_equal(bs_detokenizer_push(&detokenizer, bs_tokenizer_n_vocab(tokenizer), &text, &bytes),
                     BS_STATUS_RANGE);
    bs_error_clear();
    assert_null(text);
    /* A hidden token in the middle of a character does not break it. */
    assert_int_equal(
        bs_detokenizer_push(&detokenizer, bs_tokenizer_find(tokenizer, "\xc3", 1), &text, &bytes), 0);
    assert_string_equal(text, "");
    assert_int_equal(
        bs_detokenizer_push(&detokenizer, bs_tokenizer_find(tokenizer, "<|im_end|>", 10), &text, &bytes), 0);
    assert_string_equal(text, "");
    assert_int_equal(
        bs_detokenizer_push(&detokenizer, bs_tokenizer_find(tokenizer, "\xa9", 1), &text, &bytes), 0);
    assert_string_equal(text, "\xc3\xa9");
    assert_int_equal(
        bs_detokenizer_push(&detokenizer, bs_tokenizer_find(tokenizer, "\xe3", 1), &text, &bytes), 0);
    assert_int_equal(bytes, 2);
    assert_int_equal(bs_detokenizer_finish(&detokenizer, &text, &bytes), 0);
    assert_string_equal(text, "\xc3\xa9\xef\xbf\xbd");
    free(text);
}

#define STRING(s)                                                                                            \
    {                                                                                                        \
        s, sizeof s - 1                                                                                      \
    }

/* A vocabulary of four tokens, and what is made wrong in it. */
static bs_tokenizer_source tiny(void)
{
    static const bs_string tokens[] = {STRING("a"), STRING("b"), STRING("ab"), STRING("<end>")};
    static const int64_t types[] = {1, 1, 1, 3};
    static const bs_string merges[] = {STRING("a b")};
    return (bs_tokenizer_source){.pre = STRING("gpt-2"),
                                 .tokens = tokens,
                                 .types = types,
                                 .n_tokens = 4,
                                 .merges = merges,
                                 .n_merges = 1,
                                 .bos = -1,
                                 .eos = 3,
                                 .eot = -1,
                                 .add_bos = -1};
}

static void assert_refused(const bs_tokenizer_source *source, bs_status wanted, const char *words)
{
    bs_tokenizer *tokenizer = NULL;
    bs_error_clear();
    assert_int_equal(bs_tokenizer_create(source, &tokenizer), wanted);
    assert_null(tokenizer);
    if (!strstr(bs_error_message(), words)) fail_msg("\"%s\" lacks \"%s\"", bs_error_message(), words);
    bs_error_clear();
}

static void test_malformed_sources(void **state)
{
    static const int64_t bad_types[] = {1, 7, 1, 3}, no_b[] = {1, 5, 1, 3};
    static const bs_string bad_tokens[] = {STRING("a"), STRING("b"), STRING("\xc3"), STRING("<end>")};
    static const bs_string no_space[] = {STRING("ab")}, no_left[] = {STRING(" b")},
                                no_right[] = {STRING("a ")}, unknown[] = {STRING("a b"), STRING("ab a")},
                                broken[] = {STRING("a \xff")}, empty[] = {STRING("")};
    const struct {
        const bs_string *merges;
        int64_t n;
        const char *words;
    } merges[] = {{no_space, 1, "merges[0] is not two tokens"},
                  {no_left, 1, "merges[0]"},
                  {no_right, 1, "merges[0]"},
                  {unknown, 2, "merges[1]: its result"},
                  {broken, 1, "merges[0] is not UTF-8"},
                  {empty, 1, "merges[0]"},
                  {unknown, -1, "merges has -1"}};
    (void)state;
    for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++) {
        bs_tokenizer_source source = tiny();
        source.merges = merges[i].merges;
        source.n_merges = merges[i].n;
        assert_refused(&source, BS_STATUS_FORMAT, merges[i].words);
    }
    bs_tokenizer_source source = tiny();
    source.types = bad_types;
    assert_refused(&source, BS_STATUS_FORMAT, "token_type[1] is 7");
    source.types = no_b;
    assert_refused(&source, BS_STATUS_FORMAT, "merges[0]: its right part");
    source = tiny();
    source.tokens = bad_tokens;
    assert_refused(&source, BS_STATUS_FORMAT, "tokens[2] is not UTF-8");
    source = tiny();
    source.eos = 4;
    assert_refused(&source, BS_STATUS_FORMAT, "eos_token_id is 4");
    source = tiny();
    source.n_tokens = 0;
    source.eos = -1;
    assert_refused(&source, BS_STATUS_FORMAT, "tokens has 0 items");
}

static void test_pre_names(void **state)
{
    static const char *const known[] = {"gpt-2",  "phi-2",    "smollm", "llama-bpe",
                                        "llama3", "llama-v3", "qwen2",  "deepseek-r1-qwen"};
    static const char *const unknown[] = {"default", "", "gpt-", "gpt-22", "(none)", "tekken"};
    bs_tokenizer_source source = tiny();
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        bs_tokenizer *tokenizer = NULL;
        source.pre = (bs_string){known[i], strlen(known[i])};
        assert_int_equal(bs_tokenizer_create(&source, &tokenizer), BS_STATUS_OK);
        bs_tokenizer_close(tokenizer);
    }
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        char words[64];
        snprintf(words, sizeof words, "gpt2 with tokenizer.ggml.pre %s:", unknown[i]);
        source.pre = (bs_string){unknown[i], strlen(unknown[i])};
        assert_refused(&source, BS_STATUS_UNSUPPORTED, words);
    }
}

/* A vocabulary without some bytes drops them, and what is left of a piece merges as neighbours. */
static void test_missing_bytes(void **state)
{
    bs_tokenizer_source source = tiny();
    bs_tokenizer *tokenizer = NULL;
    bs_tokens tokens = {0};
    (void)state;
    assert_int_equal(bs_tokenizer_create(&source, &tokenizer), BS_STATUS_OK);
    assert_int_equal(bs_tokenize(tokenizer, "acb z<end>", 10, true, &tokens), BS_STATUS_OK);
    assert_int_equal(tokens.n, 2);
    assert_int_equal(tokens.ids[0], 2);
    assert_int_equal(tokens.ids[1], 3);
    bs_tokens_free(&tokens);
    bs_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_pieces),
        cmocka_unit_test(test_golden_texts),
        cmocka_unit_test(test_golden_decodes),
        cmocka_unit_test(test_random_round_trip),
        cmocka_unit_test(test_long_pieces),
        cmocka_unit_test(test_broken_utf8_is_refused),
        cmocka_unit_test(test_utf8_of_every_code_point),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_detokenizer_edges),
        cmocka_unit_test(test_malformed_sources),
        cmocka_unit_test(test_pre_names),
        cmocka_unit_test(test_missing_bytes),
    };
    bool loaded = true;
    for (int i = 0; i < N_GOLDEN; i++) loaded = golden_load(names[i], &all[i]) && loaded;
    int failed = loaded ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
    for (int i = 0; i < N_GOLDEN; i++) golden_free(&all[i]);
    return failed;
}
