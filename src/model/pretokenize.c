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
 * The patterns of a tokenizer.json are translated for the first reason; SmolLM's is then what the file says, two cuts.
 *
 * PCRE2 validates the whole subject at every match unless told not to: 10 s for 400 KB. The caller has
 * validated.
 */
#include "src/model/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>
#include <stdio.h>
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
    char name[64];
    bool ignore_merges, add_bos;
    int n_patterns;
    pcre2_code *patterns[BS_MAX_PATTERNS];
    pcre2_match_context *context;
};

/* What a pattern is cutting: text[at … end) is left of it. */
typedef struct level {
    size_t begin, at, end;
} level;

struct bs_pieces {
    const bs_pretokenizer *pretokenizer;
    pcre2_match_data *match;
    const char *text;
    level levels[BS_MAX_PATTERNS + 1]; /* of all patterns, and the text itself in front */
};

static const struct family *find_family(const char *pre, size_t bytes)
{
    for (int i = 0; i < N_FAMILIES; i++)
        for (int j = 0; j < N_NAMES && families[i].names[j]; j++)
            if (strlen(families[i].names[j]) == bytes && memcmp(families[i].names[j], pre, bytes) == 0)
                return &families[i];
    return NULL;
}

static bs_status compile(bs_pretokenizer *pretokenizer, const char *pattern)
{
    int error;
    PCRE2_SIZE where;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                     &error, &where, NULL);
    if (!code)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: pattern %d: PCRE2 error %d at %zu", pretokenizer->name,
                       pretokenizer->n_patterns, error, (size_t)where);
    /* Without a JIT (a hardened kernel may forbid it) matching is slower and otherwise the same. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    pretokenizer->patterns[pretokenizer->n_patterns++] = code;
    return BS_STATUS_OK;
}

static bs_status create(const char *name, const char *const *patterns, int n, bs_pretokenizer **out)
{
    bs_status status = BS_STATUS_OK;
    bs_pretokenizer *pretokenizer = calloc(1, sizeof *pretokenizer);
    if (pretokenizer) pretokenizer->context = pcre2_match_context_create(NULL);
    if (!pretokenizer || !pretokenizer->context) {
        free(pretokenizer);
        return bs_fail(BS_STATUS_NOMEM, "pre-tokenizer: out of memory");
    }
    snprintf(pretokenizer->name, sizeof pretokenizer->name, "%s", name);
    /* A long run of spaces backtracks once a character, so the limits on steps do not fit; time is linear all the
     * same. */
    pcre2_set_match_limit(pretokenizer->context, UINT32_MAX);
    for (int i = 0; i < n; i++) BS_TRY_GOTO(compile(pretokenizer, patterns[i]), err_free);
    *out = pretokenizer;
    return BS_STATUS_OK;
err_free:
    bs_pretokenizer_free(pretokenizer);
    return status;
}

const char *bs_pretokenizer_gpt2_pattern(void)
{
    return families[0].pattern;
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
    const char *pattern = family->pattern;
    BS_TRY(create(family->names[0], &pattern, 1, out));
    (*out)->ignore_merges = family->ignore_merges;
    (*out)->add_bos = family->add_bos;
    return BS_STATUS_OK;
}

/* Appends what the reference's \s or \S is here; false: it cannot be said. */
static bool put_white_space(char letter, bool in_class, char **out)
{
    const char *text = in_class ? WS : letter == 's' ? "[" WS "]" : "[^" WS "]";
    if (in_class && letter == 'S') return false;
    size_t n = strlen(text);
    memcpy(*out, text, n);
    *out += n;
    return true;
}

/* A pattern of the reference's syntax (Oniguruma) in PCRE2's: they agree on what tokenizers write but for white space,
 * and \h, which is refused. NULL: no memory; *bad is set when a pattern cannot be said. */
static char *translate(const char *pattern, bool *bad)
{
    char *copy = malloc(strlen(pattern) * sizeof WS + sizeof WS + 8), *end = copy;
    bool in_class = false;
    for (const char *from = pattern; copy && *from; from++) {
        if (*from == '\\' && from[1]) {
            char letter = *++from;
            if (letter == 'h' || letter == 'H') *bad = true;
            if (letter == 's' || letter == 'S') {
                if (!put_white_space(letter, in_class, &end)) *bad = true;
                continue;
            }
            *end++ = '\\';
        } else if (*from == '[') {
            if (in_class) *bad = true; /* a set in a set: other rules there */
            in_class = true;
        } else if (*from == ']') {
            in_class = false;
        }
        *end++ = *from;
    }
    if (copy) *end = 0;
    return copy;
}

bs_status bs_pretokenizer_create_patterns(const char *name, const char *const *patterns, int n,
                                          bs_pretokenizer **out)
{
    char *translated[BS_MAX_PATTERNS] = {0};
    bool bad = false, no_memory = false;
    bs_status status = BS_STATUS_OK;
    if (n > BS_MAX_PATTERNS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %d patterns: must be at most %d", name, n,
                       BS_MAX_PATTERNS);
    for (int i = 0; i < n && !bad; i++) {
        translated[i] = translate(patterns[i], &bad);
        no_memory = no_memory || !translated[i];
    }
    if (no_memory) status = bs_fail(BS_STATUS_NOMEM, "%s: out of memory", name);
    else if (bad)
        status = bs_fail(BS_STATUS_UNSUPPORTED, "%s: a pattern with \\h, [\\S] or a set in a set", name);
    else status = create(name, (const char *const *)translated, n, out);
    for (int i = 0; i < n; i++) free(translated[i]);
    return status;
}

void bs_pretokenizer_free(bs_pretokenizer *pretokenizer)
{
    if (!pretokenizer) return;
    pcre2_match_context_free(pretokenizer->context);
    for (int i = 0; i < pretokenizer->n_patterns; i++) pcre2_code_free(pretokenizer->patterns[i]);
    free(pretokenizer);
}

bool bs_pretokenizer_ignores_merges(const bs_pretokenizer *pretokenizer)
{
    return pretokenizer->ignore_merges;
}

bool bs_pretokenizer_adds_bos(const bs_pretokenizer *pretokenizer)
{
    return pretokenizer->add_bos;
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
    memset(pieces->levels, 0, sizeof pieces->levels);
    pieces->levels[0].end = bytes;
}

/* The next piece of a level: of its pattern in what is left there, or of the level in front, if nothing is. */
static bs_status next_at(bs_pieces *pieces, int i, size_t *begin, size_t *end)
{
    const bs_pretokenizer *pretokenizer = pieces->pretokenizer;
    level *l = &pieces->levels[i];
    if (i == 0) {
        *begin = l->at;
        *end = l->at = l->end;
        return BS_STATUS_OK;
    }
    if (l->at == l->end) {
        BS_TRY(next_at(pieces, i - 1, &l->begin, &l->end));
        l->at = l->begin;
    }
    *begin = l->at;
    *end = l->end;
    if (l->at == l->end) return BS_STATUS_OK;
    int n = pcre2_match(pretokenizer->patterns[i - 1], (PCRE2_SPTR)pieces->text + l->begin, l->end - l->begin,
                        l->at - l->begin, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, pieces->match,
                        pretokenizer->context);
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return bs_fail(BS_STATUS_INTERNAL, "pre-tokenizer %s: PCRE2 error %d at byte %zu", pretokenizer->name,
                       n, l->at);
    if (n >= 0) {
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(pieces->match);
        *end = l->begin + (l->begin + found[0] > l->at ? found[0] : found[1]);
    }
    l->at = *end;
    return BS_STATUS_OK;
}

bs_status bs_pieces_next(bs_pieces *pieces, const char **piece, size_t *bytes)
{
    size_t begin, end;
    BS_TRY(next_at(pieces, pieces->pretokenizer->n_patterns, &begin, &end));
    *piece = pieces->text + begin;
    *bytes = end - begin;
    return BS_STATUS_OK;
}
