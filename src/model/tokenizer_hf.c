/* tokenizer_hf.c: a tokenizer from a Hugging Face directory.
 *
 * tokenizer.json describes a pipeline of the `tokenizers` library. Two kinds of it are known here, which is what the
 * supported models use: byte-level BPE (pre-tokenizers Split, Digits and ByteLevel) and SentencePiece's BPE (U+2581 for
 * a space, written as a normalizer or as the pre-tokenizer Metaspace, and byte tokens for characters without one). Every
 * other step is refused by its type, since leaving it out would give other ids; the decoder follows from the kind.
 *
 * Not done: added tokens that are looked for in normalized text (`normalized`), and white space around them (lstrip,
 * rstrip, single_word: refused where true).
 *
 * Special ids come from tokenizer_config.json (bos_token, eos_token, add_bos_token), ends of an answer also from
 * generation_config.json and config.json (eos_token_id, one or many).
 */
#include "config.h"
#include "src/model/json_file.h"
#include "src/model/map.h"
#include "src/model/tokenizer_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_TOKENIZER_BYTES = 64 << 20,
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_HOLES = 1 << 16, /* ids that no token has */
    MAX_ID = 1 << 24,
};

typedef struct reader {
    const char *directory;
    char *path, *config_path; /* of tokenizer.json, tokenizer_config.json */
    char *other_path;         /* of another file, while it is read */
    size_t path_bytes;        /* room in each */
    char *merges_name;        /* in error lines */
    json_t *root, *config, *vocab;
    char *template_text; /* of chat_template.jinja, when that is where it is */
    bs_json model;       /* tokenizer.json's model */
    bs_tokenizer_source source;
    bs_string *tokens, *left, *right;
    int64_t *types;
    const char *patterns[BS_MAX_PATTERNS];
    int n_patterns;
    bool byte_level;
} reader;

static bs_status no_memory(const reader *r)
{
    return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its tokenizer", r->directory);
}

/* "type" of a step; `where` names it. */
static bs_status get_type(const reader *r, const char *where, json_t *step, bs_string *out)
{
    const bs_json json = {r->path, where, step};
    if (!json_is_object(step))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %s: must be an object", r->path, where,
                       bs_json_type_name(step));
    return bs_json_get_string(&json, "type", out, NULL);
}

static bs_status unknown_step(const reader *r, const char *where, bs_string type)
{
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %stype is %.*s: not supported here", r->path, where,
                   bs_json_shown(type), type.text);
}

/* A flag that must have this value, or be missing. */
static bs_status expect_flag(const reader *r, const char *where, json_t *object, const char *key, bool wanted)
{
    const bs_json json = {r->path, where, object};
    bool value = wanted, found;
    BS_TRY(bs_json_get_bool(&json, key, &value, &found));
    if (value == wanted) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s%s is %s: not supported here", r->path, where, key,
                   value ? "true" : "false");
}

/* ---- normalizer and pre-tokenizer -------------------------------------------------------------------------
 */

static bs_status expect_text(const reader *r, const char *where, json_t *object, const char *key,
                             const char *wanted)
{
    const bs_json json = {r->path, where, object};
    bs_string text;
    BS_TRY(bs_json_get_string(&json, key, &text, NULL));
    if (bs_string_is(text, wanted)) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s%s is \"%.*s\": must be \"%s\"", r->path, where, key,
                   bs_json_shown(text), text.text, wanted);
}

static bs_status read_normalizer(reader *r, json_t *step, const char *where)
{
    bs_string type;
    json_t *steps = NULL, *item;
    size_t index;
    if (!step || json_is_null(step)) return BS_STATUS_OK;
    BS_TRY(get_type(r, where, step, &type));
    const bs_json json = {r->path, where, step};
    if (bs_string_is(type, "Sequence")) {
        if (strcmp(where, "normalizer.") != 0) return unknown_step(r, where, type);
        BS_TRY(bs_json_get_array(&json, "normalizers", &steps, NULL));
        json_array_foreach(steps, index, item) BS_TRY(read_normalizer(r, item, "normalizer.normalizers."));
        return BS_STATUS_OK;
    }
    if (bs_string_is(type, "NFC")) {
        r->source.nfc = true;
        return BS_STATUS_OK;
    }
    if (bs_string_is(type, "Prepend")) {
        r->source.prefix_space = BS_PREFIX_EVERY;
        return expect_text(r, where, step, "prepend", "\u2581");
    }
    if (bs_string_is(type, "Replace")) {
        json_t *pattern;
        r->source.alphabet = BS_ALPHABET_SPACES;
        BS_TRY(bs_json_get_object(&json, "pattern", &pattern, NULL));
        BS_TRY(expect_text(r, "normalizer.pattern.", pattern, "String", " "));
        return expect_text(r, where, step, "content", "\u2581");
    }
    return unknown_step(r, where, type);
}

static bs_status add_pattern(reader *r, const char *pattern)
{
    if (r->n_patterns == BS_MAX_PATTERNS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: pre_tokenizer has more than %d steps", r->path,
                       BS_MAX_PATTERNS);
    r->patterns[r->n_patterns++] = pattern;
    return BS_STATUS_OK;
}

static bs_status read_split(reader *r, json_t *step, const char *where)
{
    const bs_json json = {r->path, where, step};
    bs_string regex;
    json_t *pattern;
    BS_TRY(bs_json_get_object(&json, "pattern", &pattern, NULL));
    const bs_json inner = {r->path, "pre_tokenizer.pattern.", pattern};
    BS_TRY(bs_json_get_string(&inner, "Regex", &regex, NULL));
    if (strlen(regex.text) != regex.bytes)
        return bs_fail(BS_STATUS_FORMAT, "%s: pre_tokenizer.pattern.Regex has a NUL", r->path);
    BS_TRY(expect_text(r, where, step, "behavior", "Isolated"));
    BS_TRY(expect_flag(r, where, step, "invert", false));
    return add_pattern(r, regex.text);
}

static bs_status read_byte_level(reader *r, json_t *step, const char *where)
{
    const bs_json json = {r->path, where, step};
    bool found, use_regex = true;
    r->byte_level = true;
    BS_TRY(expect_flag(r, where, step, "add_prefix_space", false));
    BS_TRY(bs_json_get_bool(&json, "use_regex", &use_regex, &found));
    return use_regex ? add_pattern(r, bs_pretokenizer_gpt2_pattern()) : BS_STATUS_OK;
}

static bs_status read_metaspace(reader *r, json_t *step, const char *where)
{
    const bs_json json = {r->path, where, step};
    bs_string scheme = {"always", 6};
    bool found, split = true, prefix = true;
    r->source.alphabet = BS_ALPHABET_SPACES;
    BS_TRY(expect_text(r, where, step, "replacement", "\u2581"));
    BS_TRY(bs_json_get_bool(&json, "split", &split, &found));
    BS_TRY(bs_json_get_bool(&json, "add_prefix_space", &prefix, &found));
    if (!prefix) scheme = (bs_string){"never", 5};
    BS_TRY(bs_json_get_string(&json, "prepend_scheme", &scheme, &found));
    if (bs_string_is(scheme, "always")) r->source.prefix_space = BS_PREFIX_UNLESS;
    else if (bs_string_is(scheme, "first")) r->source.prefix_space = BS_PREFIX_FIRST;
    else if (!bs_string_is(scheme, "never"))
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %sprepend_scheme is %.*s: must be always, first or never",
                       r->path, where, bs_json_shown(scheme), scheme.text);
    return split ? add_pattern(r, " [^ ]*|[^ ]+") : BS_STATUS_OK;
}

static bs_status read_pre_tokenizer(reader *r, json_t *step, const char *where)
{
    bs_string type;
    json_t *steps = NULL, *item;
    size_t index;
    if (!step || json_is_null(step)) return BS_STATUS_OK;
    BS_TRY(get_type(r, where, step, &type));
    const bs_json json = {r->path, where, step};
    if (r->byte_level || r->source.prefix_space == BS_PREFIX_UNLESS ||
        r->source.prefix_space == BS_PREFIX_FIRST)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %stype %.*s comes behind the step that must be the last",
                       r->path, where, bs_json_shown(type), type.text);
    if (bs_string_is(type, "Sequence") && strcmp(where, "pre_tokenizer.") == 0) {
        BS_TRY(bs_json_get_array(&json, "pretokenizers", &steps, NULL));
        json_array_foreach(steps, index, item)
            BS_TRY(read_pre_tokenizer(r, item, "pre_tokenizer.pretokenizers."));
        return BS_STATUS_OK;
    }
    if (bs_string_is(type, "Split")) return read_split(r, step, where);
    if (bs_string_is(type, "ByteLevel")) return read_byte_level(r, step, where);
    if (bs_string_is(type, "Metaspace")) return read_metaspace(r, step, where);
    if (bs_string_is(type, "Digits")) {
        bool found, single = false;
        BS_TRY(bs_json_get_bool(&json, "individual_digits", &single, &found));
        return add_pattern(r, single ? "\\p{N}" : "\\p{N}+");
    }
    return unknown_step(r, where, type);
}

static bs_status read_pipeline(reader *r)
{
    BS_TRY(read_normalizer(r, json_object_get(r->root, "normalizer"), "normalizer."));
    BS_TRY(read_pre_tokenizer(r, json_object_get(r->root, "pre_tokenizer"), "pre_tokenizer."));
    if (r->byte_level == (r->source.alphabet == BS_ALPHABET_SPACES) ||
        (r->byte_level && r->source.prefix_space != BS_PREFIX_NONE))
        return bs_fail(
            BS_STATUS_UNSUPPORTED,
            "%s: neither a byte-level pre_tokenizer nor one that writes a space as U+2581 (or both)",
            r->path);
    return bs_pretokenizer_create_patterns(r->path, r->patterns, r->n_patterns, &r->source.pretokenizer);
}

/* ---- vocabulary -------------------------------------------------------------------------------------------
 */

/* Puts a token at its id. */
static bs_status put_token(reader *r, const char *where, bs_string text, int64_t id, bs_token_kind kind)
{
    if (id < 0 || id >= r->source.n_tokens)
        return bs_fail(BS_STATUS_FORMAT, "%s: id of %s %.*s is %" PRId64 ": must be 0 … %" PRId64, r->path,
                       where, bs_json_shown(text), text.text, id, r->source.n_tokens - 1);
    if (r->tokens[id].text && !bs_string_equal(r->tokens[id], text))
        return bs_fail(BS_STATUS_FORMAT, "%s: id of %s %.*s is %" PRId64 ", which %.*s has too", r->path,
                       where, bs_json_shown(text), text.text, id, bs_json_shown(r->tokens[id]),
                       r->tokens[id].text);
    r->tokens[id] = text;
    r->types[id] = kind;
    return BS_STATUS_OK;
}

/* Of a SentencePiece vocabulary a token with a space in it is never found: text has U+2581 there. */
static bs_token_kind kind_of(const reader *r, bs_string text)
{
    if (r->byte_level) return BS_TOKEN_NORMAL;
    if (bs_vocab_byte_of(text.text, text.bytes) >= 0) return BS_TOKEN_BYTE;
    return memchr(text.text, ' ', text.bytes) ? BS_TOKEN_UNUSED : BS_TOKEN_NORMAL;
}

/* One more than the largest id. */
static bs_status count_ids(reader *r, const json_t *added)
{
    const char *text;
    json_t *value;
    size_t index, n = json_object_size(r->vocab) + json_array_size(added);
    int64_t most = -1;
    json_object_foreach(r->vocab, text, value)
    {
        if (!json_is_integer(value))
            return bs_fail(BS_STATUS_FORMAT, "%s: model.vocab has an id that is %s: must be an integer",
                           r->path, bs_json_type_name(value));
        if (json_integer_value(value) > most) most = json_integer_value(value);
    }
    json_array_foreach(added, index, value)
    {
        const json_t *id = json_object_get(value, "id");
        if (!json_is_integer(id))
            return bs_fail(BS_STATUS_FORMAT, "%s: added_tokens[%zu].id is no integer", r->path, index);
        if (json_integer_value(id) > most) most = json_integer_value(id);
    }
    if (most < 0 || most >= MAX_ID || most >= (int64_t)n + MAX_HOLES)
        return bs_fail(BS_STATUS_FORMAT, "%s: the largest id is %" PRId64 " for %zu tokens", r->path, most,
                       n);
    r->source.n_tokens = most + 1;
    return BS_STATUS_OK;
}

static bs_status read_added(reader *r, json_t *added)
{
    json_t *value;
    size_t index;
    json_array_foreach(added, index, value)
    {
        char where[48];
        snprintf(where, sizeof where, "added_tokens[%zu].", index);
        const bs_json json = {r->path, where, value};
        bs_string text;
        bool special = false, found;
        BS_TRY(bs_json_get_string(&json, "content", &text, NULL));
        BS_TRY(bs_json_get_bool(&json, "special", &special, &found));
        BS_TRY(expect_flag(r, where, value, "single_word", false));
        BS_TRY(expect_flag(r, where, value, "lstrip", false));
        BS_TRY(expect_flag(r, where, value, "rstrip", false));
        BS_TRY(put_token(r, "added token", text, json_integer_value(json_object_get(value, "id")),
                         special ? BS_TOKEN_CONTROL : BS_TOKEN_USER));
    }
    return BS_STATUS_OK;
}

static bs_status read_vocab(reader *r)
{
    const bs_json json = {r->path, "", r->root};
    json_t *added = NULL, *value;
    const char *text;
    bool found;
    BS_TRY(bs_json_get_object(&r->model, "vocab", &r->vocab, NULL));
    BS_TRY(bs_json_get_array(&json, "added_tokens", &added, &found));
    BS_TRY(count_ids(r, added));
    r->tokens = calloc((size_t)r->source.n_tokens, sizeof *r->tokens);
    r->types = calloc((size_t)r->source.n_tokens, sizeof *r->types);
    if (!r->tokens || !r->types) return no_memory(r);
    json_object_foreach(r->vocab, text, value)
    {
        bs_string token = {text, strlen(text)};
        BS_TRY(put_token(r, "token", token, json_integer_value(value), kind_of(r, token)));
    }
    BS_TRY(read_added(r, added));
    for (int64_t id = 0; id < r->source.n_tokens; id++) {
        if (r->tokens[id].text) continue;
        r->tokens[id] = (bs_string){"", 0};
        r->types[id] = BS_TOKEN_UNUSED;
    }
    r->source.tokens = r->tokens;
    r->source.types = r->types;
    return BS_STATUS_OK;
}

/* SentencePiece's kind needs all 256 byte tokens: then no text is without ids. */
static bs_status check_byte_tokens(const reader *r)
{
    bool has[256] = {false};
    for (int64_t id = 0; id < r->source.n_tokens; id++)
        if (r->types[id] == BS_TOKEN_BYTE)
            has[bs_vocab_byte_of(r->tokens[id].text, r->tokens[id].bytes)] = true;
    for (int i = 0; i < 256; i++)
        if (!has[i])
            return bs_fail(BS_STATUS_UNSUPPORTED, "%s: model.vocab has no <0x%02X>: byte_fallback needs it",
                           r->path, i);
    return BS_STATUS_OK;
}

/* "a b" or ["a", "b"]. */
static bs_status read_merges(reader *r)
{
    json_t *merges = NULL, *merge;
    size_t index;
    BS_TRY(bs_json_get_array(&r->model, "merges", &merges, NULL));
    size_t n = json_array_size(merges);
    bool pairs = json_is_array(json_array_get(merges, 0));
    r->left = calloc(n + 1, sizeof *r->left);
    r->right = calloc(n + 1, sizeof *r->right);
    if (!r->left || !r->right) return no_memory(r);
    json_array_foreach(merges, index, merge)
    {
        r->left[index] = bs_json_string(pairs ? json_array_get(merge, 0) : merge);
        r->right[index] = bs_json_string(pairs ? json_array_get(merge, 1) : NULL);
        if (!r->left[index].text || (pairs && (!r->right[index].text || json_array_size(merge) != 2)))
            return bs_fail(BS_STATUS_FORMAT, "%s: model.merges[%zu] is not %s", r->path, index,
                           pairs ? "two strings, as the first is" : "a string, as the first is");
    }
    r->source.merges = r->left;
    r->source.merges_right = pairs ? r->right : NULL;
    r->source.n_merges = (int64_t)n;
    return BS_STATUS_OK;
}

static bs_status expect_empty(const reader *r, const char *key)
{
    const json_t *value = json_object_get(r->model.object, key);
    if (!value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0))
        return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: model.%s is set: not supported here", r->path, key);
}

static bs_status read_model(reader *r)
{
    const bs_json json = {r->path, "", r->root};
    bs_string type = {"BPE", 3};
    json_t *model = NULL;
    bool found, fallback = false;
    BS_TRY(bs_json_get_object(&json, "model", &model, NULL));
    r->model = (bs_json){r->path, "model.", model};
    BS_TRY(bs_json_get_string(&r->model, "type", &type, &found));
    if (!bs_string_is(type, "BPE")) return unknown_step(r, "model.", type);
    BS_TRY(expect_empty(r, "dropout"));
    BS_TRY(expect_empty(r, "continuing_subword_prefix"));
    BS_TRY(expect_empty(r, "end_of_word_suffix"));
    BS_TRY(bs_json_get_bool(&r->model, "byte_fallback", &fallback, &found));
    BS_TRY(bs_json_get_bool(&r->model, "ignore_merges", &r->source.ignore_merges, &found));
    BS_TRY(read_pipeline(r));
    if (fallback == r->byte_level)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: model.byte_fallback is %s: not with this pre_tokenizer",
                       r->path, fallback ? "true" : "false");
    BS_TRY(read_vocab(r));
    if (!r->byte_level) BS_TRY(check_byte_tokens(r));
    return read_merges(r);
}

/* ---- special tokens ---------------------------------------------------------------------------------------
 */

/* Id of a token by its text (a JSON string's, so 0-terminated), −1 if there is none. */
static int64_t find_token(const reader *r, bs_string text)
{
    json_t *added = json_object_get(r->root, "added_tokens"), *value;
    size_t index;
    json_array_foreach(added, index, value)
    {
        if (bs_string_equal(bs_json_string(json_object_get(value, "content")), text))
            return json_integer_value(json_object_get(value, "id"));
    }
    const json_t *id = json_object_get(r->vocab, text.text);
    return id ? json_integer_value(id) : -1;
}

/* bos_token or eos_token of tokenizer_config.json: a string, or an object with its content. */
static bs_status read_special(const reader *r, const char *key, int64_t *out)
{
    const json_t *value = json_object_get(r->config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    if (!value || json_is_null(value)) return BS_STATUS_OK;
    if (!json_is_string(value))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %s: must be a token's text", r->config_path, key,
                       bs_json_type_name(value));
    *out = find_token(r, bs_json_string(value));
    if (*out >= 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_FORMAT, "%s: %s is %.*s: not a token of tokenizer.json", r->config_path, key,
                   bs_json_shown(bs_json_string(value)), json_string_value(value));
}

/* A TemplateProcessing may put a token in front of a text, which is bos; one behind the text is refused. */
static bs_status read_template(reader *r, json_t *step)
{
    json_t *single = json_object_get(step, "single"), *item;
    size_t index;
    bool behind = false;
    json_array_foreach(single, index, item)
    {
        const json_t *token = json_object_get(json_object_get(item, "SpecialToken"), "id");
        bs_string text = bs_json_string(token);
        if (json_object_get(item, "Sequence")) behind = true;
        if (!text.text) continue;
        if (behind || r->source.add_bos == 1)
            return bs_fail(BS_STATUS_UNSUPPORTED,
                           "%s: post_processor puts %.*s %s a text: only one token in front is known here",
                           r->path, bs_json_shown(text), text.text, behind ? "behind" : "too in front of");
        r->source.bos = find_token(r, text);
        if (r->source.bos < 0)
            return bs_fail(BS_STATUS_FORMAT, "%s: post_processor's %.*s is not a token", r->path,
                           bs_json_shown(text), text.text);
        r->source.add_bos = 1;
    }
    return BS_STATUS_OK;
}

static bs_status read_post_processor(reader *r, json_t *step, bool inside)
{
    bs_string type;
    json_t *item;
    size_t index;
    if (!step || json_is_null(step)) return BS_STATUS_OK;
    BS_TRY(get_type(r, "post_processor.", step, &type));
    if (bs_string_is(type, "TemplateProcessing")) return read_template(r, step);
    if (bs_string_is(type, "ByteLevel")) return BS_STATUS_OK; /* offsets only */
    if (!bs_string_is(type, "Sequence") || inside) return unknown_step(r, "post_processor.", type);
    json_array_foreach(json_object_get(step, "processors"), index, item)
        BS_TRY(read_post_processor(r, item, true));
    return BS_STATUS_OK;
}

/* eos_token_id: an id or a list of them. True in *found if there was any. */
static bs_status take_ends(reader *r, const json_t *value, bool *found)
{
    size_t n = json_is_array(value) ? json_array_size(value) : value && !json_is_null(value) ? 1 : 0;
    *found = n > 0;
    if (n > BS_MAX_ENDS)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: eos_token_id has %zu ids: at most %d", r->other_path, n,
                       BS_MAX_ENDS);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        int64_t number = json_integer_value(id);
        if (!json_is_integer(id) || number < 0 || number >= MAX_ID)
            return bs_fail(BS_STATUS_FORMAT, "%s: eos_token_id is %s%" PRId64 ": must be an id",
                           r->other_path, json_is_integer(id) ? "" : "no integer, ", number);
        if (number < r->source.n_tokens)
            r->source.ends[r->source.n_ends++] = number; /* the rest cannot be generated as text */
    }
    return BS_STATUS_OK;
}

/* Those of a file of the directory, which may be missing. */
static bs_status read_ends(reader *r, const char *name, bool *found)
{
    json_t *root = NULL;
    snprintf(r->other_path, r->path_bytes, "%s/%s", r->directory, name);
    BS_TRY(bs_json_load(r->other_path, MAX_CONFIG_BYTES, &root, found));
    bs_status status = take_ends(r, json_object_get(root, "eos_token_id"), found);
    json_decref(root);
    return status;
}

static bs_status read_specials(reader *r)
{
    const bs_json json = {r->config_path, "", r->config};
    bool found, add_bos = false;
    r->source.bos = r->source.eos = r->source.eot = -1;
    r->source.add_bos = 0;
    BS_TRY(read_special(r, "bos_token", &r->source.bos));
    BS_TRY(read_special(r, "eos_token", &r->source.eos));
    BS_TRY(read_post_processor(r, json_object_get(r->root, "post_processor"), false));
    BS_TRY(bs_json_get_bool(&json, "add_bos_token", &add_bos, &found));
    if (found) r->source.add_bos = add_bos;
    BS_TRY(read_ends(r, "generation_config.json", &found));
    if (!found) BS_TRY(read_ends(r, "config.json", &found));
    if (r->source.eos < 0 && r->source.n_ends > 0) r->source.eos = r->source.ends[0];
    return BS_STATUS_OK;
}

/* ---- chat template ----------------------------------------------------------------------------------------
 */

/* chat_template of tokenizer_config.json: text, or a list of named ones of which "default" counts. */
static bs_status read_config_template(reader *r)
{
    const json_t *value = json_object_get(r->config, "chat_template");
    json_t *item;
    size_t index;
    if (json_is_array(value)) json_array_foreach(value, index, item)
        {
            const json_t *name = json_object_get(item, "name");
            if (!json_is_string(name) || strcmp(json_string_value(name), "default") != 0) continue;
            r->source.chat_template = bs_json_string(json_object_get(item, "template"));
            return BS_STATUS_OK;
        }
    if (!value || json_is_null(value) || json_is_array(value)) return BS_STATUS_OK;
    if (!json_is_string(value))
        return bs_fail(BS_STATUS_FORMAT, "%s: chat_template is %s: must be a string", r->config_path,
                       bs_json_type_name(value));
    r->source.chat_template = bs_json_string(value);
    return BS_STATUS_OK;
}

/* A file of its own comes first. */
static bs_status read_chat_template(reader *r, const char *jinja_path)
{
    bs_map map = {0};
    if (access(jinja_path, F_OK) != 0) return read_config_template(r);
    BS_TRY(bs_map_open(jinja_path, "a template is needed", &map));
    bs_status status = BS_STATUS_OK;
    if (map.n > MAX_CONFIG_BYTES)
        status = bs_fail(BS_STATUS_FORMAT, "%s: %" PRIu64 " bytes: more than %d", jinja_path, map.n,
                         MAX_CONFIG_BYTES);
    else if (!(r->template_text = malloc((size_t)map.n))) status = no_memory(r);
    else
        r->source.chat_template = (bs_string){memcpy(r->template_text, map.bytes, (size_t)map.n),
                                              (size_t)map.n};
    bs_map_close(&map);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

static bs_status read_directory(reader *r)
{
    bool found;
    snprintf(r->path, r->path_bytes, "%s/tokenizer.json", r->directory);
    snprintf(r->config_path, r->path_bytes, "%s/tokenizer_config.json", r->directory);
    snprintf(r->merges_name, r->path_bytes, "%s: model.merges", r->path);
    BS_TRY(bs_json_load(r->path, MAX_TOKENIZER_BYTES, &r->root, NULL));
    BS_TRY(read_model(r));
    BS_TRY(bs_json_load(r->config_path, MAX_CONFIG_BYTES, &r->config, &found));
    BS_TRY(read_specials(r));
    snprintf(r->other_path, r->path_bytes, "%s/chat_template.jinja", r->directory);
    BS_TRY(read_chat_template(r, r->other_path));
    r->source.merges_name = r->merges_name;
    r->source.tokens_name = "model.vocab";
    return BS_STATUS_OK;
}

bs_status bs_tokenizer_open_hf(const char *directory, bs_tokenizer **out)
{
    reader r = {.directory = directory, .path_bytes = strlen(directory) + 64};
    r.path = malloc(r.path_bytes);
    r.config_path = malloc(r.path_bytes);
    r.other_path = malloc(r.path_bytes);
    r.merges_name = malloc(r.path_bytes);
    bool room = r.path && r.config_path && r.other_path && r.merges_name;
    bs_status status = room ? read_directory(&r) : no_memory(&r);
    if (status == BS_STATUS_OK) status = bs_tokenizer_create(&r.source, out);
    else bs_pretokenizer_free(r.source.pretokenizer);
    json_decref(r.root);
    json_decref(r.config);
    free(r.template_text);
    free(r.tokens);
    free(r.types);
    free(r.left);
    free(r.right);
    free(r.path);
    free(r.config_path);
    free(r.other_path);
    free(r.merges_name);
    return status;
}

bool bs_tokenizer_exists_hf(const char *directory)
{
    size_t bytes = strlen(directory) + sizeof "/tokenizer.json";
    char *path = malloc(bytes);
    if (path) snprintf(path, bytes, "%s/tokenizer.json", directory);
    bool exists = !path || access(path, F_OK) == 0; /* no memory: let opening say so */
    free(path);
    return exists;
}
