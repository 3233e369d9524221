/* tokenizer_private.h: a tokenizer from plain arrays, for tests and for the readers of GGUF and tokenizer.json, and what
 * chat.c asks of it. */
#ifndef BS_TOKENIZER_PRIVATE_H
#define BS_TOKENIZER_PRIVATE_H

#include "src/model/gguf.h"
#include "src/model/pretokenize.h"
#include "src/model/tokenizer.h"
#include "src/model/vocab.h"

/* Where a space is put in front of a text (SentencePiece's "dummy prefix"). */
typedef enum bs_prefix_space {
    BS_PREFIX_NONE,
    BS_PREFIX_FIRST,  /* of what the input begins with, unless that is a space or an added token */
    BS_PREFIX_UNLESS, /* of every stretch between added tokens that does not begin with one */
    BS_PREFIX_EVERY   /* of every stretch between added tokens */
} bs_prefix_space;

enum { BS_MAX_ENDS = 16 };

/* What a file says of its tokenizer; everything is copied but the pre-tokenizer. */
typedef struct bs_tokenizer_source {
    bs_string pre;                 /* tokenizer.ggml.pre, when there is no pretokenizer */
    bs_pretokenizer *pretokenizer; /* taken over, also on failure; NULL: by pre */
    bs_alphabet alphabet;
    bs_prefix_space prefix_space;
    bool nfc; /* text is composed first (nfc.h) */
    const bs_string *tokens;
    const int64_t *types; /* [n_tokens] bs_token_kind */
    int64_t n_tokens;
    const bs_string *merges;       /* "left right", or left parts of merges_right */
    const bs_string *merges_right; /* [n_merges] or NULL */
    int64_t n_merges;
    int64_t bos, eos, eot; /* −1: none */
    int64_t ends[BS_MAX_ENDS];
    int n_ends;                            /* of further ids that end an answer */
    int add_bos;                           /* −1: as the pre-tokenizer's family does */
    bool ignore_merges;                    /* false: as the family does */
    bs_string chat_template;               /* text NULL: none */
    const char *merges_name, *tokens_name; /* in error lines; NULL: GGUF's keys */
} bs_tokenizer_source;

/* FORMAT or UNSUPPORTED, naming the key. */
bs_status bs_tokenizer_create(const bs_tokenizer_source *source, bs_tokenizer **out);
/* tokenizer.json, tokenizer_config.json, generation_config.json and config.json of a directory. */
bs_status bs_tokenizer_open_hf(const char *directory, bs_tokenizer **out);
bool bs_tokenizer_exists_hf(const char *directory);

/* bs_tokenize of a text that is only a part of the input: `first` if the input begins with it. */
bs_status bs_tokenize_part(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                           bool first, bs_tokens *out);

/* Another template than the file's; copied. */
bs_status bs_tokenizer_set_chat_template(bs_tokenizer *tokenizer, const char *text, size_t bytes);
/* 0-terminated; "" when the file has none. */
const char *bs_tokenizer_chat_template(const bs_tokenizer *tokenizer);

#endif
