/* tokenizer_golden.h: reading tests/data/tokenizer.*.json, and the checks that the small vocabularies and
 * SmolLM2's own share. A failed check stops the cmocka test that called it. */
#ifndef BS_TOKENIZER_GOLDEN_H
#define BS_TOKENIZER_GOLDEN_H

#include "src/model/chat.h"
#include "src/model/tokenizer_private.h"

#include <jansson.h>

typedef struct golden {
    const char *name; /* "gpt2": tests/data/tokenizer.gpt2.json */
    json_t *texts, *root;
    bs_tokenizer *tokenizer; /* from the file's own vocabulary; NULL if it has none */
} golden;

/* False, with a line on stderr, if a file cannot be read. */
bool golden_load(const char *name, golden *out);
void golden_free(golden *golden);

/* A tokenizer from the golden vocabulary with another template. */
bs_tokenizer *golden_tokenizer(const golden *golden, const char *template);

/* Fail unless tokens are the ids of the JSON array; `what` and `index` name the case. */
void assert_ids(const bs_tokens *tokens, const json_t *ids, const char *what, size_t index);
/* All texts, as plain text and with special tokens parsed: the golden ids, and ids → bytes gives the text
 * again. */
void assert_golden_texts(const golden *golden, const bs_tokenizer *tokenizer);
/* All decode cases, pushed one by one, with and without special tokens. */
void assert_golden_decodes(const golden *golden, const bs_tokenizer *tokenizer);
/* Chats of one of the file's templates. */
void assert_golden_chats(const json_t *chats, const bs_tokenizer *tokenizer);

/* The bytes of all ids in a row are the text, less the bytes that the vocabulary lacks. */
void assert_round_trip(const bs_tokenizer *tokenizer, const bs_tokens *tokens, const char *text,
                       size_t bytes);

#endif
