/* tokenizer_private.h: a tokenizer from plain arrays, for tests and for the GGUF reader, and what chat.c asks
 * of it. */
#ifndef BS_TOKENIZER_PRIVATE_H
#define BS_TOKENIZER_PRIVATE_H

#include "src/model/gguf.h"
#include "src/model/tokenizer.h"

/* The keys of tokenizer.ggml.*; everything is copied. */
typedef struct bs_tokenizer_source {
    bs_string pre;
    const bs_string *tokens;
    const int64_t *types; /* [n_tokens] tokenizer.ggml.token_type */
    int64_t n_tokens;
    const bs_string *merges;
    int64_t n_merges;
    int64_t bos, eos, eot;   /* −1: none */
    int add_bos;             /* −1: as the pre-tokenizer's family does */
    bs_string chat_template; /* text NULL: none */
} bs_tokenizer_source;

/* FORMAT or UNSUPPORTED, naming the key. */
bs_status bs_tokenizer_create(const bs_tokenizer_source *source, bs_tokenizer **out);
bs_status bs_tokenizer_open_gguf(const bs_gguf *gguf, bs_tokenizer **out);

/* Another template than the file's; copied. */
bs_status bs_tokenizer_set_chat_template(bs_tokenizer *tokenizer, const char *text, size_t bytes);
/* 0-terminated; "" when the file has none. */
const char *bs_tokenizer_chat_template(const bs_tokenizer *tokenizer);

#endif
