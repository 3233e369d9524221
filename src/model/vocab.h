/* vocab.h: the tokens of a vocabulary as bytes, and finding them.
 *
 * Files write a normal token in an alphabet and an added one as it is; here both are plain bytes, in one block. Normal tokens are found by hash. Added tokens
 * (control and user-defined) are found where they stand in a text: among those that match at a place the
 * longest.
 */
#ifndef BS_VOCAB_H
#define BS_VOCAB_H

#include "src/model/tensor.h"

/* tokenizer.ggml.token_type */
typedef enum bs_token_kind {
    BS_TOKEN_NORMAL = 1,
    BS_TOKEN_UNKNOWN,
    BS_TOKEN_CONTROL,
    BS_TOKEN_USER,
    BS_TOKEN_UNUSED,
    BS_TOKEN_BYTE
} bs_token_kind;

/* How normal tokens are written. */
typedef enum bs_alphabet {
    BS_ALPHABET_GPT2,  /* a printable character for each of the 256 bytes */
    BS_ALPHABET_SPACES /* SentencePiece's: characters, U+2581 for a space, and byte tokens <0x00> … <0xFF> */
} bs_alphabet;

/* Added tokens in the order of their bytes, and which bytes one begins with. */
typedef struct bs_added_tokens {
    int32_t *ids;
    int n;
    bool begins[256];
} bs_added_tokens;

typedef struct bs_vocab {
    bs_alphabet alphabet;
    int n;
    char *bytes;
    size_t *start; /* [n + 1] */
    uint8_t *kind; /* [n] bs_token_kind */
    size_t longest;
    int32_t *slots; /* hash of the normal tokens (of SPACES without the byte tokens); −1: empty */
    uint32_t slot_mask;
    bs_added_tokens user;  /* split off any text */
    bs_added_tokens added; /* user-defined and control, for text that may hold special tokens */
} bs_vocab;

/* Copies everything. FORMAT names the token that is not UTF-8 or has an unknown type. On failure vocab is
 * freed. */
bs_status bs_vocab_create(bs_alphabet alphabet, const bs_string *tokens, const int64_t *types, int64_t n,
                          bs_vocab *vocab);
void bs_vocab_free(bs_vocab *vocab);

static inline size_t bs_vocab_length(const bs_vocab *vocab, int32_t id)
{
    return vocab->start[id + 1] - vocab->start[id];
}

/* The normal token of these bytes, −1 if there is none; the same among added tokens. */
int32_t bs_vocab_find(const bs_vocab *vocab, const char *bytes, size_t n);
int32_t bs_added_find(const bs_vocab *vocab, const bs_added_tokens *added, const char *bytes, size_t n);
/* The longest added token at the beginning of a text, −1 if there is none. */
int32_t bs_added_match(const bs_vocab *vocab, const bs_added_tokens *added, const char *text, size_t n);

/* Bytes that a normal token's text stands for, written to out (as long as the text); their number. GPT-2's: text
 * with a character from outside the alphabet stands for itself, as in the reference. Text is UTF-8. */
size_t bs_vocab_unmap(bs_alphabet alphabet, const char *text, size_t bytes, char *out);
/* The byte of a byte token's text, −1: it is none. */
int bs_vocab_byte_of(const char *text, size_t bytes);

#endif
