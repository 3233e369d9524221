/* pretokenize.c: the patterns, and the walk over a text's matches.
 *
 * Source: the pre-tokenizers in the public tokenizer.json of GPT-2, SmolLM, Llama-3 and Qwen2. Two things
 * differ from those lines, and neither changes a piece:
 *
 * - White space is spelt out. The reference's \s is Unicode's White_Space; PCRE2's, with UCP, also holds
 * U+180E. \p{White_Space} would say it, but PCRE2 has had it only since 10.40.
 * - SmolLM cuts twice: every numeral (\p{N}) on its own, then GPT-2's pattern inside what lies between. Its
 * one pattern here takes a numeral without the space before it, and lets a run of spaces end at a numeral as
 * at the text's end, since that is where the second cut would see its text end.
 *
 * (?i:'s) matches U+017F too, in the reference as in PCRE2. PCRE2 10.42 knows Unicode 14, the reference 15
 * and later: letters and numerals assigned since then are cut as symbols. Qwen2's tokenizer.json asks for NFC
 * first; GGUF does not record it, and text is taken as it comes, so that ids give back the same bytes.
 *
 * PCRE2 validates the whole subject at every match unless told not to: 10 s for 400 KB. The caller has
 * validated.
 */
#include "src/model/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* White space, inside a class. */
#define WS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

#define GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+"
#define SYMBOLS    " ?[^" WS "\\p{L}\\p{N}]+"
#define SPACES     "[" WS "]+(?![^" WS "])|[" WS "]+"
/* Llama-3 and Qwen2 differ only in how many numerals go together. */
#define MODERN(numerals)                                                                                     \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numerals "|" SYMBOLS "[\\r\\n]*|[" WS      \
    "]*[\\r\\n]+|" SPACES

static const struct family {
    const char *names[4]; /* the first is the family's own */
    const char *pattern;
    bool ignore_merges, add_bos;
} families[] = {
    {{"gpt-2", "phi-2"}, GPT2_WORDS "| ?\\p{N}+|" SYMBOLS "|" SPACES, false, false},
    {{"smollm"}, GPT2_WORDS "|\\p{N}|" SYMBOLS "|[" WS "]+(?![^" WS "\\p{N}])|[" WS "]+", false, false},
    {{"llama-bpe", "llama3", "llama-v3"}, MODERN("\\p{N}{1,3}"), true, true},
    {{"qwen2", "deepseek-r1-qwen"}, MODERN("\\p{N}"), false, false},
};
enum { N_FAMILIES = sizeof families / sizeof families[0], N_NAMES = 4 };

struct bs_pretokenizer {
    const struct family *family;
    pcre2_code *code;
    pcre2_match_context *context;
};

struct bs_pieces {
    const bs_pretokenizer *pretokenizer;
    pcre2_match_data *match;
    const char *text;
    size_t bytes, at;
};

static const struct family *find_family(const char *pre, size_t bytes)
{
    for (int i = 0; i < N_FAMILIES; i++)
        for (int j = 0; j < N_NAMES && families[i].names[j]; j++)
            if (strlen(families[i].names[j]) == bytes && memcmp(families[i].names[j], pre, bytes) == 0)
                return &families[i];
    return NULL;
}

bs_status bs_pretokenizer_create(const char *pre, size_t bytes, bs_pretokenizer **out)
{
    const struct family *family = find_family(pre, bytes);
    if (!family)
        return bs_fail(
            BS_STATUS_UNSUPPORTED,
            "tokenizer.ggml.model gpt2 with tokenizer.ggml.pre %.*s: must be gpt-2, smollm, llama-bpe "
            "or qwen2",
            bytes > 64 ? 64 : (int)bytes, pre);
    bs_pretokenizer *pretokenizer = calloc(1, sizeof *pretokenizer);
    if (!pretokenizer) return bs_fail(BS_STATUS_NOMEM, "pre-tokenizer: out of memory");
    int error;
    PCRE2_SIZE where;
    pretokenizer->family = family;
    pretokenizer->code = pcre2_compile((PCRE2_SPTR)family->pattern, PCRE2_ZERO_TERMINATED,
                                       PCRE2_UTF | PCRE2_UCP, &error, &where, NULL);
    pretokenizer->context = pcre2_match_context_create(NULL);
    if (!pretokenizer->code || !pretokenizer->context) {
        bs_pretokenizer_free(pretokenizer);
        return bs_fail(BS_STATUS_INTERNAL, "pre-tokenizer %s: PCRE2 error %d at %zu", family->names[0], error,
                       (size_t)where);
    }
    /* Without a JIT (a hardened kernel may forbid it) matching is slower and otherwise the same. A long run
     * of spaces backtracks once a character, so the limits on steps do not fit; time is linear all the same.
     */
    (void)pcre2_jit_compile(pretokenizer->code, PCRE2_JIT_COMPLETE);
    pcre2_set_match_limit(pretokenizer->context, UINT32_MAX);
    *out = pretokenizer;
    return BS_STATUS_OK;
}

void bs_pretokenizer_free(bs_pretokenizer *pretokenizer)
{
    if (!pretokenizer) return;
    pcre2_match_context_free(pretokenizer->context);
    pcre2_code_free(pretokenizer->code);
    free(pretokenizer);
}

bool bs_pretokenizer_ignores_merges(const bs_pretokenizer *pretokenizer)
{
    return pretokenizer->family->ignore_merges;
}

bool bs_pretokenizer_adds_bos(const bs_pretokenizer *pretokenizer)
{
    return pretokenizer->family->add_bos;
}

bs_status bs_pieces_create(const bs_pretokenizer *pretokenizer, bs_pieces **out)
{
    bs_pieces *pieces = calloc(1, sizeof *pieces);
    if (pieces) pieces->match = pcre2_match_data_create(1, NULL);
    if (!pieces || !pieces->match) {
        free(pieces);
        return bs_fail(BS_STATUS_NOMEM, "pre-tokenizer: out of memory");
    }
    pieces->pretokenizer = pretokenizer;
    *out = pieces;
    return BS_STATUS_OK;
}

void bs_pieces_free(bs_pieces *pieces)
{
    if (!pieces) return;
    pcre2_match_data_free(pieces->match);
    free(pieces);
}

void bs_pieces_begin(bs_pieces *pieces, const char *text, size_t bytes)
{
    pieces->text = text;
    pieces->bytes = bytes;
    pieces->at = 0;
}

bs_status bs_pieces_next(bs_pieces *pieces, const char **piece, size_t *bytes)
{
    size_t begin = pieces->at, end = pieces->bytes;
    if (begin < end) {
        int n = pcre2_match(pieces->pretokenizer->code, (PCRE2_SPTR)pieces->text, pieces->bytes, begin,
                            PCRE2_NO_UTF_CHECK, pieces->match, pieces->pretokenizer->context);
        if (n < 0 && n != PCRE2_ERROR_NOMATCH)
            return bs_fail(BS_STATUS_INTERNAL, "pre-tokenizer %s: PCRE2 error %d at byte %zu",
                           pieces->pretokenizer->family->names[0], n, begin);
        if (n >= 0) {
            const PCRE2_SIZE *found = pcre2_get_ovector_pointer(pieces->match);
            /* The patterns match every character; were one skipped, it would be a piece of its own. */
            end = found[0] > begin ? found[0] : found[1];
        }
    }
    *piece = pieces->text + begin;
    *bytes = end - begin;
    pieces->at = end;
    return BS_STATUS_OK;
}
