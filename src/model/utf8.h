/* utf8.h: telling well-formed UTF-8 from the rest, one character at a time.
 *
 * Both users need the same rule: text is checked once before PCRE2 sees it (which then skips its own check),
 * and the streaming detokenizer must know whether bytes are a character, may still become one, or never will.
 * "Never" is counted in maximal subparts (Unicode 15, section 3.9), so that replacement gives what other
 * decoders give.
 */
#ifndef BS_UTF8_H
#define BS_UTF8_H

#include <stddef.h>
#include <stdint.h>

typedef enum bs_utf8_kind {
    BS_UTF8_CHARACTER, /* *length bytes are one character */
    BS_UTF8_BEGINNING, /* the text ends inside a character: *length bytes may become one */
    BS_UTF8_BROKEN     /* *length bytes (1 … 3) are a maximal subpart: one U+FFFD */
} bs_utf8_kind;

/* What text[0 …] begins with; bytes ≥ 1. code_point (may be NULL) is set for a character only. */
bs_utf8_kind bs_utf8_next(const char *text, size_t bytes, size_t *length, uint32_t *code_point);

/* How many leading bytes are well-formed: `bytes` if all are. */
size_t bs_utf8_valid_bytes(const char *text, size_t bytes);

#endif
