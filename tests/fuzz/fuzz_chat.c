/* fuzz_chat.c: a chat template, up to the first 0 byte, then messages: a byte for the role, text up to the next 0. */
#include "src/model/chat.h"
#include "src/model/utf8.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

enum { MOST = 16 };

static int read_messages(const char *at, const char *end, bs_chat_message messages[MOST])
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    int n = 0;
    while (at < end && n < MOST) {
        const char *stop = memchr(at, 0, (size_t)(end - at));
        if (!stop) stop = end;
        size_t bytes = (size_t)(stop - at);
        if (bytes > 0) messages[n++] = (bs_chat_message){roles[at[0] & 3], at + 1, bytes - 1};
        at = stop + 1;
    }
    return n;
}

/* A prompt opens as many turns as there are messages and one for the answer; at most the template adds its own. */
static void check_prompt(const bs_tokenizer *tokenizer, const bs_tokens *tokens, int n_messages)
{
    bool llama3 = bs_chat_family_of(tokenizer) == BS_CHAT_LLAMA3;
    int32_t begin = bs_tokenizer_find(tokenizer, llama3 ? "<|start_header_id|>" : "<|im_start|>",
                                      llama3 ? 19 : 12);
    int n_turns = 0;
    for (size_t i = 0; i < tokens->n; i++) n_turns += tokens->ids[i] == begin;
    FUZZ_CHECK(n_turns == n_messages + 1 || n_turns == n_messages + 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *zero = size ? memchr(text, 0, size) : NULL, *end = text + size;
    size_t bytes = zero ? (size_t)(zero - text) : size;
    bs_tokenizer *tokenizer = fuzz_tokenizer(size % FUZZ_FAMILIES);
    bs_chat_message messages[MOST];
    bs_tokens tokens = {0};
    int n = zero ? read_messages(zero + 1, end, messages) : 0;
    FUZZ_CHECK(bs_tokenizer_set_chat_template(tokenizer, text, bytes) == BS_STATUS_OK);
    bs_status status = bs_chat_tokenize(tokenizer, messages, n, &tokens);
    if (status == BS_STATUS_OK) {
        check_prompt(tokenizer, &tokens, n);
    } else {
        FUZZ_CHECK(tokens.n == 0);
        fuzz_expect_line(status);
    }
    bs_tokens_free(&tokens);
    return 0;
}
