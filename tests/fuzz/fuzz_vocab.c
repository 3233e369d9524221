/* fuzz_vocab.c: the small vocabulary of the fuzz targets, and their check of error lines. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

static const char *const families[FUZZ_FAMILIES] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};

/* "left right" in GPT-2's alphabet; \304\240 is the space's letter. */
static const char *const merges[] = {"t h",
                                     "th e",
                                     "\304\240 the",
                                     "i n",
                                     "in g",
                                     "a b",
                                     "ab ab",
                                     "1 2",
                                     "12 3",
                                     "\n \n",
                                     "e r",
                                     "' s",
                                     "\304\240 \304\240",
                                     "\303\203 \302\251"};
static const char *const specials[] = {
    "<|endoftext|>",     "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",   "<tool>",     "<tool> <|im_"};
enum {
    N_MERGES = sizeof merges / sizeof merges[0],
    N_SPECIALS = sizeof specials / sizeof specials[0],
    N_CONTROL = 6, /* of the specials; the rest are user-defined */
    N_TOKENS = 256 + N_MERGES + N_SPECIALS
};

/* The letter of a byte: itself where it can be printed, the others in a row from U+0100 on. */
static size_t put_letter(int byte, char *out)
{
    int shifted = 0, code = byte;
    for (int i = 0; i <= byte; i++) {
        bool printable = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (i == byte && !printable) code = 0x100 + shifted;
        shifted += !printable;
    }
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
}

static bs_tokenizer *make_tokenizer(const char *pre)
{
    static char letters[256][2], joined[N_MERGES][32];
    static char newlines[] = "\304\212 \304\212";
    bs_string tokens[N_TOKENS], pairs[N_MERGES];
    int64_t types[N_TOKENS];
    int n = 0;
    for (int byte = 0; byte < 256; byte++)
        tokens[n++] = (bs_string){letters[byte], put_letter(byte, letters[byte])};
    for (int i = 0; i < N_MERGES; i++) {
        const char *merge = strcmp(merges[i], "\n \n") == 0 ? newlines : merges[i],
                   *space = strchr(merge, ' ');
        int bytes = snprintf(joined[i], sizeof joined[i], "%.*s%s", (int)(space - merge), merge, space + 1);
        pairs[i] = (bs_string){merge, strlen(merge)};
        tokens[n++] = (bs_string){joined[i], (size_t)bytes};
    }
    for (int i = 0; i < N_SPECIALS; i++) tokens[n++] = (bs_string){specials[i], strlen(specials[i])};
    for (int i = 0; i < n; i++) types[i] = i < 256 + N_MERGES ? 1 : i < 256 + N_MERGES + N_CONTROL ? 3 : 4;
    bs_tokenizer_source source = {.pre = {pre, strlen(pre)},
                                  .tokens = tokens,
                                  .types = types,
                                  .n_tokens = n,
                                  .merges = pairs,
                                  .n_merges = N_MERGES,
                                  .bos = n - N_SPECIALS,
                                  .eos = n - N_SPECIALS,
                                  .eot = -1,
                                  .add_bos = -1};
    bs_tokenizer *tokenizer = NULL;
    FUZZ_CHECK(bs_tokenizer_create(&source, &tokenizer) == BS_STATUS_OK);
    return tokenizer;
}

bs_tokenizer *fuzz_tokenizer(int family)
{
    static bs_tokenizer *made[FUZZ_FAMILIES];
    if (!made[family]) made[family] = make_tokenizer(families[family]);
    return made[family];
}

void fuzz_expect_line(bs_status status)
{
    FUZZ_CHECK(status != BS_STATUS_OK && status != BS_STATUS_INTERNAL && bs_error_message()[0]);
    bs_error_clear();
}
