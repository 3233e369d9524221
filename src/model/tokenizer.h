/* tokenizer.h: BPE from GGUF metadata or tokenizer.json: text to ids, ids to text, chat templates.
 *
 * Of GGUF the byte-level pre-tokenizers gpt-2, smollm, llama-bpe and qwen2, of tokenizer.json any that cut by patterns
 * (PCRE2, pretokenize.c), and SentencePiece's BPE with byte tokens. Text is validated as UTF-8 once. The same ids as the
 * `tokenizers` library (tests/data/tokenizer.*.json, hf-tokenizers). Immutable after opening; thread safe but for
 * bs_detokenizer, which is one stream's state.
 */
#ifndef BS_TOKENIZER_H
#define BS_TOKENIZER_H

#include "src/model/model.h"

typedef struct bs_tokenizer bs_tokenizer;

/* A growing array of ids; zero it before the first use, bs_tokens_free it after the last. */
typedef struct bs_tokens {
    int32_t *ids;
    size_t n, capacity;
} bs_tokens;
bs_status bs_tokens_push(bs_tokens *tokens, int32_t id);
void bs_tokens_free(bs_tokens *tokens);

/* Reads tokenizer.ggml.* and tokenizer.chat_template of the model's file, or tokenizer.json and tokenizer_config.json of
 * its directory. UNSUPPORTED names what is not known here. */
bs_status bs_tokenizer_open(const bs_model *model, bs_tokenizer **out);
/* Whether the model comes with one: a directory may lack tokenizer.json, random weights have none. */
bool bs_tokenizer_exists(const bs_model *model);
void bs_tokenizer_close(bs_tokenizer *tokenizer);

int bs_tokenizer_n_vocab(const bs_tokenizer *tokenizer);
/* −1 when the model has none. */
int32_t bs_tokenizer_bos(const bs_tokenizer *tokenizer);
int32_t bs_tokenizer_eos(const bs_tokenizer *tokenizer);
/* Whether generation ends at this id: eos, eot and the template's end of turn. */
bool bs_tokenizer_is_end(const bs_tokenizer *tokenizer, int32_t id);
/* Whether the file asks for bos before a prompt. */
bool bs_tokenizer_adds_bos(const bs_tokenizer *tokenizer);
/* Whether a text's first id may hold a space that the text does not have (SentencePiece). */
bool bs_tokenizer_prefixes_space(const bs_tokenizer *tokenizer);
/* Digest of what makes ids of a text and a text of ids: every token's bytes and kind, begin and end tokens, and the ids of a
 * sentence in which merges and pre-tokenizers differ. */
bs_status bs_tokenizer_sha256(const bs_tokenizer *tokenizer, uint8_t out[32]);
/* Id of a token by its exact text (special ones too), −1 if there is none. */
int32_t bs_tokenizer_find(const bs_tokenizer *tokenizer, const char *text, size_t bytes);

/* Appends the ids of text (UTF-8, `bytes` long, may hold NUL). parse_special: special tokens written out in the text
 * become their ids (prompts of a template), else they are plain text (what a user typed). No bos is added.
 * BS_STATUS_FORMAT names the first byte that is not UTF-8. */
bs_status bs_tokenize(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                      bs_tokens *out);

/* Bytes of one token, not 0-terminated; valid as long as the tokenizer. Special (control) tokens give their text. */
const char *bs_tokenizer_token_bytes(const bs_tokenizer *tokenizer, int32_t id, size_t *bytes);
bool bs_tokenizer_is_special(const bs_tokenizer *tokenizer, int32_t id);

/* Streaming decode: hands out whole UTF-8 characters only, holding back the beginning of one. Special tokens are left
 * out unless show_special. Invalid sequences come out as U+FFFD. */
typedef struct bs_detokenizer {
    const bs_tokenizer *tokenizer;
    bool show_special;
    bool
        strip_space; /* leaves out a space at the beginning, once; set it for ids of a whole text (prefixes_space) */
    unsigned char held[4];
    int n_held;
} bs_detokenizer;
void bs_detokenizer_init(bs_detokenizer *detokenizer, const bs_tokenizer *tokenizer, bool show_special);
/* Appends what id completes to *text (a 0-terminated heap string that grows; NULL at first) of *bytes length. */
bs_status bs_detokenizer_push(bs_detokenizer *detokenizer, int32_t id, char **text, size_t *bytes);
/* Gives out what is still held, as U+FFFD. */
bs_status bs_detokenizer_finish(bs_detokenizer *detokenizer, char **text, size_t *bytes);

#endif
