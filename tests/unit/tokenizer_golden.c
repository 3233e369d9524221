/* tokenizer_golden.c: the shared checks of tokenizer_golden.h. BS_TEST_DATA is tests/data in the source tree.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/model/utf8.h"
#include "tests/unit/tokenizer_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *load(const char *name)
{
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/tokenizer.%s.json", BS_TEST_DATA, name);
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!json) fprintf(stderr, "%s:%d: %s\n", path, error.line, error.text);
    return json;
}

static bs_string string_of(const json_t *json)
{
    return (bs_string){json_string_value(json), json_string_length(json)};
}

static bs_string *strings_of(const json_t *array)
{
    size_t n = json_array_size(array);
    bs_string *strings = calloc(n + 1, sizeof *strings);
    for (size_t i = 0; strings && i < n; i++) strings[i] = string_of(json_array_get(array, i));
    return strings;
}

bs_tokenizer *golden_tokenizer(const golden *golden, const char *template)
{
    const json_t *tokens = json_object_get(golden->root, "tokens"),
                 *types = json_object_get(golden->root, "types");
    const json_t *merges = json_object_get(golden->root, "merges");
    bs_tokenizer_source source = {.pre = string_of(json_object_get(golden->root, "pre")),
                                  .tokens = strings_of(tokens),
                                  .n_tokens = (int64_t)json_array_size(tokens),
                                  .merges = strings_of(merges),
                                  .n_merges = (int64_t)json_array_size(merges),
                                  .bos = json_integer_value(json_object_get(golden->root, "bos")),
                                  .eos = json_integer_value(json_object_get(golden->root, "eos")),
                                  .eot = -1,
                                  .add_bos = -1,
                                  .chat_template = {template, template ? strlen(template) : 0}};
    int64_t *kinds = calloc((size_t)source.n_tokens + 1, sizeof *kinds);
    bs_tokenizer *tokenizer = NULL;
    for (int64_t i = 0; i < source.n_tokens; i++)
        kinds[i] = json_integer_value(json_array_get(types, (size_t)i));
    source.types = kinds;
    if (bs_tokenizer_create(&source, &tokenizer) != BS_STATUS_OK) bs_error_flush();
    free((void *)source.tokens);
    free((void *)source.merges);
    free(kinds);
    return tokenizer;
}

bool golden_load(const char *name, golden *out)
{
    *out = (golden){.name = name, .texts = load("texts"), .root = load(name)};
    if (!out->texts || !out->root) return false;
    if (!json_object_get(out->root, "tokens")) return true;
    out->tokenizer = golden_tokenizer(out, NULL);
    return out->tokenizer != NULL;
}

void golden_free(golden *golden)
{
    bs_tokenizer_close(golden->tokenizer);
    json_decref(golden->texts);
    json_decref(golden->root);
}

void assert_ids(const bs_tokens *tokens, const json_t *ids, const char *what, size_t index)
{
    bool same = tokens->n == json_array_size(ids);
    for (size_t i = 0; same && i < tokens->n; i++)
        same = tokens->ids[i] == (int32_t)json_integer_value(json_array_get(ids, i));
    if (same) return;
    fprintf(stderr, "%s %zu: got", what, index);
    for (size_t i = 0; i < tokens->n && i < 64; i++) fprintf(stderr, " %d", tokens->ids[i]);
    fprintf(stderr, "\nwanted");
    for (size_t i = 0; i < json_array_size(ids) && i < 64; i++)
        fprintf(stderr, " %d", (int)json_integer_value(json_array_get(ids, i)));
    fprintf(stderr, "\n");
    fail();
}

void assert_round_trip(const bs_tokenizer *tokenizer, const bs_tokens *tokens, const char *text, size_t bytes)
{
    size_t at = 0, n;
    bool lacks[256];
    for (int i = 0; i < 256; i++) lacks[i] = bs_tokenizer_find(tokenizer, &(char){(char)i}, 1) < 0;
    for (size_t i = 0; i < tokens->n; i++) {
        const char *token = bs_tokenizer_token_bytes(tokenizer, tokens->ids[i], &n);
        for (size_t j = 0; j < n; j++) {
            while (at < bytes && lacks[(unsigned char)text[at]]) at++;
            assert_true(at < bytes && token[j] == text[at]);
            at++;
        }
    }
    while (at < bytes && lacks[(unsigned char)text[at]]) at++;
    assert_int_equal(at, bytes);
}

/* Text out of a tokenizer's own ids is the text; that of a vocabulary without some bytes is told by the
 * bytes. */
static void assert_streams_back(const bs_tokenizer *tokenizer, const bs_tokens *tokens, const char *text,
                                size_t bytes)
{
    bs_detokenizer detokenizer;
    char *out = NULL;
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        if (bs_tokenizer_find(tokenizer, text + i, 1) < 0) return;
    bs_detokenizer_init(&detokenizer, tokenizer, true);
    for (size_t i = 0; i < tokens->n; i++) {
        assert_int_equal(bs_detokenizer_push(&detokenizer, tokens->ids[i], &out, &n), BS_STATUS_OK);
        assert_true(n <= bytes && memcmp(out, text, n) == 0);
        assert_int_equal(bs_utf8_valid_bytes(out, n), n);
    }
    assert_int_equal(bs_detokenizer_finish(&detokenizer, &out, &n), BS_STATUS_OK);
    assert_int_equal(n, bytes);
    assert_int_equal(out[n], 0);
    free(out);
}

void assert_golden_texts(const golden *golden, const bs_tokenizer *tokenizer)
{
    const json_t *plain = json_object_get(golden->root, "plain"),
                 *special = json_object_get(golden->root, "special");
    bs_tokens tokens = {0};
    assert_true(json_array_size(golden->texts) >= 500);
    assert_int_equal(json_array_size(golden->texts), json_array_size(plain));
    assert_true(json_object_size(special) > 10);
    for (size_t i = 0; i < json_array_size(golden->texts); i++) {
        bs_string text = string_of(json_array_get(golden->texts, i));
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        for (int parse = 0; parse < 2; parse++) {
            const json_t *ids = parse ? json_object_get(special, key) : NULL;
            tokens.n = 0;
            assert_int_equal(bs_tokenize(tokenizer, text.text, text.bytes, parse, &tokens), BS_STATUS_OK);
            assert_ids(&tokens, ids ? ids : json_array_get(plain, i), parse ? "special" : "plain", i);
            assert_round_trip(tokenizer, &tokens, text.text, text.bytes);
            assert_streams_back(tokenizer, &tokens, text.text, text.bytes);
        }
    }
    bs_tokens_free(&tokens);
}

void assert_golden_decodes(const golden *golden, const bs_tokenizer *tokenizer)
{
    const json_t *cases = json_object_get(golden->root, "decode"), *one;
    size_t index;
    assert_true(json_array_size(cases) >= 100);
    json_array_foreach(cases, index, one)
    {
        const json_t *ids = json_object_get(one, "ids");
        for (int shown = 0; shown < 2; shown++) {
            bs_string wanted = string_of(json_object_get(one, shown ? "shown" : "text"));
            bs_detokenizer detokenizer;
            char *text = NULL;
            size_t bytes = 0;
            bs_detokenizer_init(&detokenizer, tokenizer, shown);
            for (size_t i = 0; i < json_array_size(ids); i++) {
                int32_t id = (int32_t)json_integer_value(json_array_get(ids, i));
                assert_int_equal(bs_detokenizer_push(&detokenizer, id, &text, &bytes), BS_STATUS_OK);
                assert_int_equal(bs_utf8_valid_bytes(text, bytes), bytes);
            }
            assert_int_equal(bs_detokenizer_finish(&detokenizer, &text, &bytes), BS_STATUS_OK);
            if (bytes != wanted.bytes || memcmp(text, wanted.text, bytes) != 0)
                fail_msg("decode %zu: \"%s\", wanted \"%s\"", index, text, wanted.text);
            free(text);
        }
    }
}

void assert_golden_chats(const json_t *chats, const bs_tokenizer *tokenizer)
{
    bs_tokens tokens = {0};
    size_t index;
    const json_t *chat;
    assert_true(json_array_size(chats) >= 8);
    json_array_foreach(chats, index, chat)
    {
        const json_t *said = json_object_get(chat, "messages");
        bs_chat_message messages[8];
        int n = (int)json_array_size(said);
        assert_in_range(n, 1, 8);
        for (int i = 0; i < n; i++) {
            const json_t *message = json_array_get(said, (size_t)i);
            bs_string content = string_of(json_object_get(message, "content"));
            messages[i] = (bs_chat_message){json_string_value(json_object_get(message, "role")), content.text,
                                            content.bytes};
        }
        tokens.n = 0;
        assert_int_equal(bs_chat_tokenize(tokenizer, messages, n, &tokens), BS_STATUS_OK);
        assert_ids(&tokens, json_object_get(chat, "ids"), "chat", index);
    }
    bs_tokens_free(&tokens);
}
