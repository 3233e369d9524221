/* pretokenize.h: cuts text into the pieces that BPE merges within, by PCRE2 patterns: each pattern's matches are pieces
 * and so is what lies between them, and the next pattern cuts each of those pieces as a text of its own.
 *
 * A bs_pretokenizer is immutable and may be used by many threads; a bs_pieces is one thread's walk over
 * texts.
 */
#ifndef BS_PRETOKENIZE_H
#define BS_PRETOKENIZE_H

#include "src/base/status.h"

#include <stddef.h>

typedef struct bs_pretokenizer bs_pretokenizer;

/* By tokenizer.ggml.pre: gpt-2, smollm, llama-bpe, qwen2 and the names that converters gave to the same rules
 * (pretokenize.c). UNSUPPORTED names the model ("gpt2") and pre. */
bs_status bs_pretokenizer_create(const char *pre, size_t bytes, bs_pretokenizer **out);
/* By the patterns of a tokenizer.json, first to last; `name` (at most 63 bytes are kept) is what error lines call it. n 0:
 * the whole text is one piece. UNSUPPORTED says what is wrong with a pattern. */
enum { BS_MAX_PATTERNS = 8 };
bs_status bs_pretokenizer_create_patterns(const char *name, const char *const *patterns, int n,
                                          bs_pretokenizer **out);
/* The pattern of GPT-2, which tokenizer.json does not write out. */
const char *bs_pretokenizer_gpt2_pattern(void);
void bs_pretokenizer_free(bs_pretokenizer *pretokenizer);
/* Llama-3: a piece that is a token as it stands is not merged; bos comes before a prompt unless the file says
 * no. */
bool bs_pretokenizer_ignores_merges(const bs_pretokenizer *pretokenizer);
bool bs_pretokenizer_adds_bos(const bs_pretokenizer *pretokenizer);

typedef struct bs_pieces bs_pieces;

bs_status bs_pieces_create(const bs_pretokenizer *pretokenizer, bs_pieces **out);
void bs_pieces_free(bs_pieces *pieces);
/* Begins a text, which must be well-formed UTF-8 (not checked again) and stay until the walk ends. */
void bs_pieces_begin(bs_pieces *pieces, const char *text, size_t bytes);
/* The next piece, *bytes > 0; at the end *bytes is 0. The pieces in order are the text. */
bs_status bs_pieces_next(bs_pieces *pieces, const char **piece, size_t *bytes);

#endif
