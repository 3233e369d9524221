/* fuzz_gguf.c: the input is a GGUF file: opened, every key and tensor looked at; then as a model: described, cut into
 * shards, its tokenizer read and its chat template used. */
#include "src/model/chat.h"
#include "src/model/model_private.h"
#include "tests/fuzz/fuzz.h"
#include "src/model/gguf_private.h"

#include <string.h>

/* Reads the first and the last byte that a tensor claims. */
static void touch_tensors(const bs_gguf *gguf)
{
    for (int64_t i = 0; i < bs_gguf_n_tensors(gguf); i++) {
        const bs_tensor *t = bs_gguf_tensor_at(gguf, i);
        char name[65];
        const volatile uint8_t *data = t->data;
        FUZZ_CHECK(t->bytes > 0 && t->name.bytes < sizeof name);
        (void)data[0];
        (void)data[t->bytes - 1];
        memcpy(name, t->name.text, t->name.bytes);
        name[t->name.bytes] = 0;
        FUZZ_CHECK(bs_gguf_find_tensor(gguf, name) == t);
    }
}

/* Asks for every key as every kind. A key that fits one kind must not be there as another. */
static void ask_keys(const bs_gguf *gguf)
{
    for (int64_t i = 0; i < gguf->n_pairs; i++) {
        char key[256];
        bs_string string;
        const bs_string *strings;
        const int64_t *ints;
        int64_t n, number;
        double real;
        bool flag, found;
        size_t bytes = gguf->pairs[i].key.bytes;
        if (bytes >= sizeof key) continue;
        memcpy(key, gguf->pairs[i].key.text, bytes);
        key[bytes] = 0;
        int good = bs_gguf_get_int(gguf, key, INT64_MIN, INT64_MAX, &number, &found) == BS_STATUS_OK;
        bs_error_clear();
        good |= (bs_gguf_get_float(gguf, key, &real, &found) == BS_STATUS_OK) << 1;
        bs_error_clear();
        good |= (bs_gguf_get_bool(gguf, key, &flag, &found) == BS_STATUS_OK) << 2;
        bs_error_clear();
        if (bs_gguf_get_string(gguf, key, &string, &found) == BS_STATUS_OK) good |= 8;
        bs_error_clear();
        if (bs_gguf_get_strings(gguf, key, &strings, &n, &found) == BS_STATUS_OK) {
            good |= 16;
            for (int64_t j = 0; j < n; j++)
                FUZZ_CHECK((const uint8_t *)strings[j].text + strings[j].bytes <= gguf->map + gguf->bytes);
        }
        bs_error_clear();
        if (bs_gguf_get_ints(gguf, key, &ints, &n, &found) == BS_STATUS_OK) {
            good |= 32;
            for (int64_t j = 0; j < n; j++) (void)*(const volatile int64_t *)&ints[j];
        }
        bs_error_clear();
        FUZZ_CHECK((good & (good - 1)) == 0);
    }
}

static void use_tokenizer(const bs_model *model)
{
    bs_tokenizer *tokenizer;
    bs_tokens tokens = {0};
    bs_status status = bs_tokenizer_open(model, &tokenizer);
    if (status != BS_STATUS_OK) {
        fuzz_expect_line(status);
        return;
    }
    status = bs_tokenize(tokenizer, "The 12 ab\303\251\n", 12, true, &tokens);
    if (status == BS_STATUS_OK)
        status = bs_chat_tokenize(tokenizer, &(bs_chat_message){"user", "hi", 2}, 1, &tokens);
    if (status != BS_STATUS_OK) fuzz_expect_line(status);
    for (size_t i = 0; i < tokens.n; i++)
        FUZZ_CHECK(tokens.ids[i] >= 0 && tokens.ids[i] < bs_model_get_desc(model)->n_vocab);
    bs_tokens_free(&tokens);
    bs_tokenizer_close(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bs_gguf *gguf;
    bs_model *model;
    bs_status status = bs_gguf_open_bytes("input", data, size, &gguf);
    if (status == BS_STATUS_OK) {
        touch_tensors(gguf);
        ask_keys(gguf);
        status = bs_model_open_gguf(gguf, &model);
    }
    if (status != BS_STATUS_OK) {
        fuzz_expect_line(status);
        return 0;
    }
    fuzz_cut(model);
    use_tokenizer(model);
    bs_model_close(model);
    return 0;
}
