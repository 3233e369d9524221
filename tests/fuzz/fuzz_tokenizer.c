/* fuzz_tokenizer.c: text to ids and back, ids to text, and vocabularies of all kinds.
 *
 * The first byte chooses: bits 0 and 1 the family, bit 2 special tokens, bits 3 and 4 what the rest is: text (0, 1), ids
 * of two bytes each (2), or a vocabulary (3): lines "0 … 9 TOKEN" with the token's type, "m MERGE", and anything else is
 * a piece to encode.
 */
#include "src/model/bpe.h"
#include "src/model/utf8.h"
#include "src/model/vocab.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void detokenize(const bs_tokenizer *tokenizer, const int32_t *ids, size_t n, bool show_special,
                       char **text, size_t *bytes)
{
    bs_detokenizer detokenizer;
    bs_detokenizer_init(&detokenizer, tokenizer, show_special);
    for (size_t i = 0; i < n; i++) {
        bs_status status = bs_detokenizer_push(&detokenizer, ids[i], text, bytes);
        if (status != BS_STATUS_OK) fuzz_expect_line(status);
        FUZZ_CHECK(!*text || bs_utf8_valid_bytes(*text, *bytes) == *bytes); /* whole characters at any time */
    }
    FUZZ_CHECK(bs_detokenizer_finish(&detokenizer, text, bytes) == BS_STATUS_OK);
    FUZZ_CHECK(bs_utf8_valid_bytes(*text, *bytes) == *bytes && (*text)[*bytes] == 0);
}

static void try_text(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special)
{
    bs_tokens tokens = {0};
    char *back = NULL;
    size_t n = 0;
    bs_status status = bs_tokenize(tokenizer, text, bytes, parse_special, &tokens);
    if (status != BS_STATUS_OK) {
        FUZZ_CHECK(bs_utf8_valid_bytes(text, bytes) < bytes && tokens.n == 0);
        fuzz_expect_line(status);
    } else {
        detokenize(tokenizer, tokens.ids, tokens.n, true, &back, &n);
        FUZZ_CHECK(n == bytes && memcmp(back, text, bytes) == 0); /* the vocabulary has every byte */
        for (size_t i = 0; !parse_special && i < tokens.n; i++)
            FUZZ_CHECK(!bs_tokenizer_is_special(tokenizer, tokens.ids[i]));
    }
    free(back);
    bs_tokens_free(&tokens);
}

static void try_ids(const bs_tokenizer *tokenizer, const uint8_t *data, size_t size, bool show_special)
{
    enum { MOST = 512 };
    int32_t ids[MOST];
    size_t n = 0, bytes = 0;
    char *text = NULL;
    for (; n < MOST && 2 * n + 1 < size; n++) ids[n] = (data[2 * n] | data[2 * n + 1] << 8) % 300 - 2;
    detokenize(tokenizer, ids, n, show_special, &text, &bytes);
    free(text);
}

static void encode_pieces(const bs_bpe *bpe, const bs_vocab *vocab, const bs_string *pieces, int n)
{
    bs_bpe_scratch scratch = {0};
    bs_tokens tokens = {0};
    for (int i = 0; i < n; i++) {
        if (pieces[i].bytes == 0) continue;
        FUZZ_CHECK(bs_bpe_encode(bpe, &scratch, pieces[i].text, pieces[i].bytes, &tokens) == BS_STATUS_OK);
        for (size_t at = 0; at < pieces[i].bytes; at++) {
            int32_t id = bs_added_match(vocab, &vocab->added, pieces[i].text + at, pieces[i].bytes - at);
            FUZZ_CHECK(id < 0 || bs_vocab_length(vocab, id) <= pieces[i].bytes - at);
        }
    }
    for (size_t i = 0; i < tokens.n; i++) FUZZ_CHECK(tokens.ids[i] >= 0 && tokens.ids[i] < vocab->n);
    bs_bpe_scratch_free(&scratch);
    bs_tokens_free(&tokens);
}

static void try_vocabulary(const char *text, size_t bytes)
{
    enum { MOST = 128 };
    bs_string tokens[MOST], merges[MOST], pieces[MOST];
    int64_t types[MOST];
    int n_tokens = 0, n_merges = 0, n_pieces = 0;
    for (size_t at = 0; at < bytes;) {
        const char *line = text + at, *end = memchr(line, '\n', bytes - at);
        size_t n = end ? (size_t)(end - line) : bytes - at;
        at += n + 1;
        if (n > 0 && line[0] >= '0' && line[0] <= '9' && n_tokens < MOST) {
            types[n_tokens] = line[0] - '0';
            tokens[n_tokens++] = (bs_string){line + 1, n - 1};
        } else if (n > 0 && line[0] == 'm' && n_merges < MOST) {
            merges[n_merges++] = (bs_string){line + 1, n - 1};
        } else if (n_pieces < MOST) {
            pieces[n_pieces++] = (bs_string){line, n};
        }
    }
    bs_vocab vocab;
    bs_bpe bpe;
    bs_status status = bs_vocab_create(BS_ALPHABET_GPT2, tokens, types, n_tokens, &vocab);
    if (status != BS_STATUS_OK) {
        fuzz_expect_line(status);
        return;
    }
    status = bs_bpe_create(
        &vocab, &(bs_merges){merges, NULL, n_merges, "tokenizer.ggml.merges", "tokenizer.ggml.tokens"}, &bpe);
    if (status == BS_STATUS_OK) {
        encode_pieces(&bpe, &vocab, pieces, n_pieces);
        bs_bpe_free(&bpe);
    } else {
        fuzz_expect_line(status);
    }
    bs_vocab_free(&vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const bs_tokenizer *tokenizer = fuzz_tokenizer(data[0] & 3);
    bool special = data[0] & 4;
    switch (data[0] >> 3 & 3) {
    case 2: try_ids(tokenizer, data + 1, size - 1, special); break;
    case 3: try_vocabulary((const char *)data + 1, size - 1); break;
    default: try_text(tokenizer, (const char *)data + 1, size - 1, special);
    }
    return 0;
}
