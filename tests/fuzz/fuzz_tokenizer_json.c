/* fuzz_tokenizer_json.c: the input is a tokenizer.json, a NUL, and a tokenizer_config.json: opened from a directory of
 * their own, then a text is tokenized, taken back, and a chat written. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include "src/model/chat.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <unistd.h>

static char directory[] = "/tmp/fuzz-tokenizer-XXXXXX", json_path[64], config_path[64];

static void remove_directory(void)
{
    unlink(json_path);
    unlink(config_path);
    rmdir(directory);
}

static void write_file(const char *path, const uint8_t *data, size_t n)
{
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file && fwrite(data, 1, n, file) == n && fclose(file) == 0);
}

static void use(const bs_tokenizer *tokenizer)
{
    static const char text[] = "The 12 ab\303\251e\314\201 \342\226\201\n<s>";
    bs_tokens tokens = {0};
    bs_detokenizer detokenizer;
    char *back = NULL;
    size_t bytes = 0;
    bs_status status = bs_tokenize(tokenizer, text, sizeof text - 1, true, &tokens);
    if (status == BS_STATUS_OK)
        status = bs_chat_tokenize(tokenizer, &(bs_chat_message){"user", "hi", 2}, 1, &tokens);
    if (status != BS_STATUS_OK) fuzz_expect_line(status);
    bs_detokenizer_init(&detokenizer, tokenizer, true);
    for (size_t i = 0; i < tokens.n; i++)
        FUZZ_CHECK(bs_detokenizer_push(&detokenizer, tokens.ids[i], &back, &bytes) == BS_STATUS_OK);
    free(back);
    bs_tokens_free(&tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool made;
    bs_tokenizer *tokenizer;
    if (!made) {
        made = mkdtemp(directory) != NULL;
        FUZZ_CHECK(made);
        snprintf(json_path, sizeof json_path, "%s/tokenizer.json", directory);
        snprintf(config_path, sizeof config_path, "%s/tokenizer_config.json", directory);
        atexit(remove_directory);
    }
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    if (!end || end == data) return 0;
    write_file(json_path, data, (size_t)(end - data));
    write_file(config_path, end + 1, size - (size_t)(end - data) - 1);
    bs_status status = bs_tokenizer_open_hf(directory, &tokenizer);
    if (status != BS_STATUS_OK) {
        fuzz_expect_line(status);
        return 0;
    }
    use(tokenizer);
    bs_tokenizer_close(tokenizer);
    return 0;
}
