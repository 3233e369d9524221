/* detokenize.c: ids to text, one at a time, in whole characters.
 *
 * A token is bytes and may end inside a character, which is then held (three bytes at most) until a later
 * token ends it or breaks it. A token that is left out leaves the held bytes alone: the text is that of the
 * shown tokens' bytes in a row, so a stream gives what decoding the whole would.
 */
#include "src/model/tokenizer.h"
#include "src/model/utf8.h"

#include <stdlib.h>
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

void bs_detokenizer_init(bs_detokenizer *detokenizer, const bs_tokenizer *tokenizer, bool show_special)
{
    *detokenizer = (bs_detokenizer){.tokenizer = tokenizer, .show_special = show_special};
}

/* Room for n more bytes and the 0. */
static bs_status reserve(char **text, size_t bytes, size_t n)
{
    char *longer = realloc(*text, bytes + n + 1);
    if (!longer) return bs_fail(BS_STATUS_NOMEM, "detokenizer: out of memory for %zu bytes", bytes + n);
    longer[bytes] = 0;
    *text = longer;
    return BS_STATUS_OK;
}

static void append(char *text, size_t *bytes, const char *from, size_t n)
{
    memcpy(text + *bytes, from, n);
    *bytes += n;
    text[*bytes] = 0;
}

bs_status bs_detokenizer_push(bs_detokenizer *detokenizer, int32_t id, char **text, size_t *bytes)
{
    size_t n, length;
    if (id < 0 || id >= bs_tokenizer_n_vocab(detokenizer->tokenizer))
        return bs_fail(BS_STATUS_RANGE, "token id %d: must be 0 … %d", id,
                       bs_tokenizer_n_vocab(detokenizer->tokenizer) - 1);
    const char *token = bs_tokenizer_token_bytes(detokenizer->tokenizer, id, &n);
    if (bs_tokenizer_is_special(detokenizer->tokenizer, id) && !detokenizer->show_special) n = 0;
    if (detokenizer->strip_space && n > 0) {
        detokenizer->strip_space = false;
        if (token[0] == ' ') {
            token++;
            n--;
        }
    }
    /* Each byte, held ones too, becomes a U+FFFD at worst. */
    BS_TRY(reserve(text, *bytes, 3 * (n + (size_t)detokenizer->n_held)));
    for (size_t at = 0; at < n;) {
        if (detokenizer->n_held > 0) {
            /* One byte more decides whether the held ones still begin a character. */
            char *held = (char *)detokenizer->held;
            held[detokenizer->n_held] = token[at];
            bs_utf8_kind kind = bs_utf8_next(held, (size_t)detokenizer->n_held + 1, &length, NULL);
            if (kind == BS_UTF8_BROKEN) append(*text, bytes, REPLACEMENT, 3);
            else at++;
            if (kind == BS_UTF8_CHARACTER) append(*text, bytes, held, length);
            detokenizer->n_held = kind == BS_UTF8_BEGINNING ? (int)length : 0;
            continue;
        }
        bs_utf8_kind kind = bs_utf8_next(token + at, n - at, &length, NULL);
        if (kind == BS_UTF8_CHARACTER) append(*text, bytes, token + at, length);
        if (kind == BS_UTF8_BROKEN) append(*text, bytes, REPLACEMENT, 3);
        if (kind == BS_UTF8_BEGINNING) {
            memcpy(detokenizer->held, token + at, length);
            detokenizer->n_held = (int)length;
        }
        at += length;
    }
    return BS_STATUS_OK;
}

bs_status bs_detokenizer_finish(bs_detokenizer *detokenizer, char **text, size_t *bytes)
{
    BS_TRY(reserve(text, *bytes, 3));
    if (detokenizer->n_held > 0) append(*text, bytes, REPLACEMENT, 3);
    detokenizer->n_held = 0;
    return BS_STATUS_OK;
}
