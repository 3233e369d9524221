/* tokenizer.c: a tokenizer from a file's metadata, and text to ids.
 *
 * Text goes through three cuts: at added tokens (at each place the longest, from left to right), by the
 * family's pattern (pretokenize.c), and by merges within a piece (bpe.c). Added tokens are looked for in the
 * caller's text only as far as the caller allows: control tokens are a template's to write, never a user's.
 */
#include "src/base/sha256.h"
#include "src/model/bpe.h"
#include "src/model/nfc.h"
#include "src/model/tokenizer_private.h"
#include "src/model/utf8.h"

#include <stdlib.h>
#include <string.h>

/* A piece's places and a text's offsets stay far inside 32 bits. */
#define MAX_TEXT_BYTES ((size_t)1 << 31)

struct bs_tokenizer {
    bs_vocab vocab;
    bs_bpe bpe;
    bs_pretokenizer *pretokenizer;
    bool ignore_merges, add_bos, nfc;
    bs_prefix_space prefix_space;
    int32_t bos, eos;
    int32_t ends[BS_MAX_ENDS + 6];
    int n_ends;
    char *chat_template;
};

bs_status bs_tokens_push(bs_tokens *tokens, int32_t id)
{
    if (tokens->n == tokens->capacity) {
        size_t capacity = tokens->capacity ? 2 * tokens->capacity : 64;
        int32_t *ids = realloc(tokens->ids, capacity * sizeof *ids);
        if (!ids) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %zu tokens", capacity);
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->n++] = id;
    return BS_STATUS_OK;
}

void bs_tokens_free(bs_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (bs_tokens){0};
}

/* Ids that end an answer: the file's, and the ends of turn and text that the known families write. */
static void collect_ends(bs_tokenizer *tokenizer, const bs_tokenizer_source *source)
{
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"};
    if (tokenizer->eos >= 0) tokenizer->ends[tokenizer->n_ends++] = tokenizer->eos;
    if (source->eot >= 0) tokenizer->ends[tokenizer->n_ends++] = (int32_t)source->eot;
    for (int i = 0; i < source->n_ends; i++) tokenizer->ends[tokenizer->n_ends++] = (int32_t)source->ends[i];
    for (int i = 0; i < 4; i++) {
        int32_t id = bs_added_find(&tokenizer->vocab, &tokenizer->vocab.added, names[i], strlen(names[i]));
        if (id >= 0 && tokenizer->vocab.kind[id] == BS_TOKEN_CONTROL)
            tokenizer->ends[tokenizer->n_ends++] = id;
    }
}

static bs_status check_id(const char *key, int64_t id, int64_t n)
{
    if (id >= -1 && id < n) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_FORMAT, "tokenizer.ggml.%s is %lld: must be an id below %lld", key,
                   (long long)id, (long long)n);
}

static bs_status check_ids(const bs_tokenizer_source *source)
{
    BS_TRY(check_id("bos_token_id", source->bos, source->n_tokens));
    BS_TRY(check_id("eos_token_id", source->eos, source->n_tokens));
    return check_id("eot_token_id", source->eot, source->n_tokens);
}

bs_status bs_tokenizer_create(const bs_tokenizer_source *source, bs_tokenizer **out)
{
    bs_status status = BS_STATUS_OK;
    const bs_merges merges = {source->merges, source->merges_right, source->n_merges,
                              source->merges_name ? source->merges_name : "tokenizer.ggml.merges",
                              source->tokens_name ? source->tokens_name : "tokenizer.ggml.tokens"};
    bs_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) {
        bs_pretokenizer_free(source->pretokenizer);
        return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory");
    }
    tokenizer->pretokenizer = source->pretokenizer;
    BS_TRY_GOTO(check_ids(source), err_close);
    if (!tokenizer->pretokenizer)
        BS_TRY_GOTO(bs_pretokenizer_create(source->pre.text, source->pre.bytes, &tokenizer->pretokenizer),
                    err_close);
    BS_TRY_GOTO(
        bs_vocab_create(source->alphabet, source->tokens, source->types, source->n_tokens, &tokenizer->vocab),
        err_close);
    BS_TRY_GOTO(bs_bpe_create(&tokenizer->vocab, &merges, &tokenizer->bpe), err_close);
    BS_TRY_GOTO(
        bs_tokenizer_set_chat_template(tokenizer, source->chat_template.text, source->chat_template.bytes),
        err_close);
    tokenizer->prefix_space = source->prefix_space;
    tokenizer->nfc = source->nfc;
    tokenizer->ignore_merges = source->ignore_merges ||
                               bs_pretokenizer_ignores_merges(tokenizer->pretokenizer);
    tokenizer->add_bos = source->add_bos < 0 ? bs_pretokenizer_adds_bos(tokenizer->pretokenizer)
                                             : source->add_bos != 0;
    tokenizer->bos = (int32_t)source->bos;
    tokenizer->eos = (int32_t)source->eos;
    collect_ends(tokenizer, source);
    *out = tokenizer;
    return BS_STATUS_OK;
err_close:
    bs_tokenizer_close(tokenizer);
    return status;
}

static bs_status get_id(const bs_gguf *gguf, const char *key, int64_t *out)
{
    bool found;
    int64_t id = -1;
    BS_TRY(bs_gguf_get_int(gguf, key, 0, INT32_MAX, &id, &found));
    *out = found ? id : -1;
    return BS_STATUS_OK;
}

static bs_status check_model(const bs_gguf *gguf, bs_string *pre)
{
    bs_string model;
    bool found;
    BS_TRY(bs_gguf_get_string(gguf, "tokenizer.ggml.model", &model, NULL));
    BS_TRY(bs_gguf_get_string(gguf, "tokenizer.ggml.pre", pre, &found));
    if (!found) *pre = (bs_string){"(none)", 6};
    if (bs_string_is(model, "gpt2")) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED,
                   "tokenizer.ggml.model %.*s with tokenizer.ggml.pre %.*s: must be gpt2",
                   model.bytes > 64 ? 64 : (int)model.bytes, model.text,
                   pre->bytes > 64 ? 64 : (int)pre->bytes, pre->text);
}

static bs_status open_gguf(const bs_gguf *gguf, bs_tokenizer **out)
{
    bs_tokenizer_source source = {0};
    int64_t n_types;
    bool found, add_bos = false;
    BS_TRY(check_model(gguf, &source.pre));
    BS_TRY(bs_gguf_get_strings(gguf, "tokenizer.ggml.tokens", &source.tokens, &source.n_tokens, NULL));
    BS_TRY(bs_gguf_get_ints(gguf, "tokenizer.ggml.token_type", &source.types, &n_types, NULL));
    BS_TRY(bs_gguf_get_strings(gguf, "tokenizer.ggml.merges", &source.merges, &source.n_merges, NULL));
    if (n_types != source.n_tokens)
        return bs_fail(BS_STATUS_FORMAT,
                       "tokenizer.ggml.token_type has %lld items, tokenizer.ggml.tokens %lld",
                       (long long)n_types, (long long)source.n_tokens);
    BS_TRY(get_id(gguf, "tokenizer.ggml.bos_token_id", &source.bos));
    BS_TRY(get_id(gguf, "tokenizer.ggml.eos_token_id", &source.eos));
    BS_TRY(get_id(gguf, "tokenizer.ggml.eot_token_id", &source.eot));
    BS_TRY(bs_gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &add_bos, &found));
    source.add_bos = found ? add_bos : -1;
    BS_TRY(bs_gguf_get_string(gguf, "tokenizer.chat_template", &source.chat_template, &found));
    return bs_tokenizer_create(&source, out);
}

bs_status bs_tokenizer_open(const bs_model *model, bs_tokenizer **out)
{
    const bs_model_desc *desc = bs_model_get_desc(model);
    bs_tokenizer *tokenizer;
    if (bs_model_is_random(model))
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: has no tokenizer", bs_model_path(model));
    const bs_gguf *gguf = bs_model_gguf(model);
    BS_TRY(gguf ? open_gguf(gguf, &tokenizer) : bs_tokenizer_open_hf(bs_model_path(model), &tokenizer));
    int n = bs_tokenizer_n_vocab(tokenizer);
    if (n > desc->n_vocab) {
        bs_tokenizer_close(tokenizer);
        return bs_fail(BS_STATUS_MISMATCH, "%s has %d items, %s %d rows",
                       gguf ? "tokenizer.ggml.tokens" : "tokenizer.json's vocabulary", n,
                       gguf ? "token_embd.weight" : "model.embed_tokens.weight", desc->n_vocab);
    }
    *out = tokenizer;
    return BS_STATUS_OK;
}

bool bs_tokenizer_exists(const bs_model *model)
{
    if (bs_model_gguf(model)) return true;
    return !bs_model_is_random(model) && bs_tokenizer_exists_hf(bs_model_path(model));
}

void bs_tokenizer_close(bs_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    bs_pretokenizer_free(tokenizer->pretokenizer);
    bs_vocab_free(&tokenizer->vocab);
    bs_bpe_free(&tokenizer->bpe);
    free(tokenizer->chat_template);
    free(tokenizer);
}

int bs_tokenizer_n_vocab(const bs_tokenizer *tokenizer)
{
    return tokenizer->vocab.n;
}

int32_t bs_tokenizer_bos(const bs_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t bs_tokenizer_eos(const bs_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

bool bs_tokenizer_is_end(const bs_tokenizer *tokenizer, int32_t id)
{
    for (int i = 0; i < tokenizer->n_ends; i++)
        if (tokenizer->ends[i] == id) return true;
    return false;
}

bool bs_tokenizer_adds_bos(const bs_tokenizer *tokenizer)
{
    return tokenizer->add_bos && tokenizer->bos >= 0;
}

bool bs_tokenizer_prefixes_space(const bs_tokenizer *tokenizer)
{
    return tokenizer->prefix_space != BS_PREFIX_NONE;
}

int32_t bs_tokenizer_find(const bs_tokenizer *tokenizer, const char *text, size_t bytes)
{
    int32_t id = bs_added_find(&tokenizer->vocab, &tokenizer->vocab.added, text, bytes);
    return id >= 0 ? id : bs_vocab_find(&tokenizer->vocab, text, bytes);
}

const char *bs_tokenizer_token_bytes(const bs_tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    bool known = id >= 0 && id < tokenizer->vocab.n;
    *bytes = known ? bs_vocab_length(&tokenizer->vocab, id) : 0;
    return known ? tokenizer->vocab.bytes + tokenizer->vocab.start[id] : "";
}

bool bs_tokenizer_is_special(const bs_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocab.n && tokenizer->vocab.kind[id] == BS_TOKEN_CONTROL;
}

bs_status bs_tokenizer_set_chat_template(bs_tokenizer *tokenizer, const char *text, size_t bytes)
{
    char *copy = calloc(1, bytes + 1);
    if (!copy) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory");
    if (bytes) memcpy(copy, text, bytes);
    free(tokenizer->chat_template);
    tokenizer->chat_template = copy;
    return BS_STATUS_OK;
}

const char *bs_tokenizer_chat_template(const bs_tokenizer *tokenizer)
{
    return tokenizer->chat_template;
}

/* One call's state. */
typedef struct encoder {
    const bs_tokenizer *tokenizer;
    bs_pieces *pieces;
    bs_bpe_scratch scratch;
    bs_tokens *out;
} encoder;

/* Text without added tokens, as the pieces are cut. */
static bs_status encode_pieces(encoder *encoder, const char *text, size_t bytes)
{
    const bs_tokenizer *tokenizer = encoder->tokenizer;
    bs_pieces_begin(encoder->pieces, text, bytes);
    for (;;) {
        const char *piece;
        size_t n;
        BS_TRY(bs_pieces_next(encoder->pieces, &piece, &n));
        if (n == 0) return BS_STATUS_OK;
        int32_t whole = tokenizer->ignore_merges ? bs_vocab_find(&tokenizer->vocab, piece, n) : -1;
        if (whole >= 0) BS_TRY(bs_tokens_push(encoder->out, whole));
        else BS_TRY(bs_bpe_encode(&tokenizer->bpe, &encoder->scratch, piece, n, encoder->out));
    }
}

/* SentencePiece's: U+2581 is a space, and one may come in front. */
static bs_status encode_spaces(encoder *encoder, const char *text, size_t bytes, bool first)
{
    bs_prefix_space rule = encoder->tokenizer->prefix_space;
    char *copy = malloc(bytes + 1);
    if (!copy) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %zu bytes", bytes);
    size_t n = bs_vocab_unmap(BS_ALPHABET_SPACES, text, bytes, copy + 1);
    bool put = rule == BS_PREFIX_EVERY || (rule == BS_PREFIX_UNLESS && copy[1] != ' ') ||
               (rule == BS_PREFIX_FIRST && first && copy[1] != ' ');
    copy[0] = ' ';
    bs_status status = encode_pieces(encoder, copy + !put, n + put);
    free(copy);
    return status;
}

static bs_status encode_composed(encoder *encoder, const char *text, size_t bytes)
{
    char *composed;
    size_t n;
    BS_TRY(bs_nfc(text, bytes, &composed, &n));
    bs_status status = encode_pieces(encoder, composed, n);
    free(composed);
    return status;
}

/* Text without added tokens. */
static bs_status encode_plain(encoder *encoder, const char *text, size_t bytes, bool first)
{
    if (bytes == 0) return BS_STATUS_OK;
    if (encoder->tokenizer->vocab.alphabet == BS_ALPHABET_SPACES)
        return encode_spaces(encoder, text, bytes, first);
    if (encoder->tokenizer->nfc && bs_nfc_may_change(text, bytes))
        return encode_composed(encoder, text, bytes);
    return encode_pieces(encoder, text, bytes);
}

static bs_status encode(encoder *encoder, const bs_added_tokens *added, const char *text, size_t bytes,
                        bool first)
{
    const bs_vocab *vocab = &encoder->tokenizer->vocab;
    size_t plain = 0; /* text[plain … at) is not encoded yet */
    for (size_t at = 0; at < bytes;) {
        int32_t id = added->begins[(unsigned char)text[at]]
                         ? bs_added_match(vocab, added, text + at, bytes - at)
                         : -1;
        if (id < 0) {
            at++;
            continue;
        }
        BS_TRY(encode_plain(encoder, text + plain, at - plain, first && plain == 0));
        BS_TRY(bs_tokens_push(encoder->out, id));
        at += bs_vocab_length(vocab, id);
        plain = at;
    }
    return encode_plain(encoder, text + plain, bytes - plain, first && plain == 0);
}

bs_status bs_tokenize_part(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                           bool first, bs_tokens *out)
{
    if (bytes > MAX_TEXT_BYTES)
        return bs_fail(BS_STATUS_RANGE, "text of %zu bytes: must be at most %zu", bytes, MAX_TEXT_BYTES);
    size_t valid = bs_utf8_valid_bytes(text, bytes), before = out->n;
    if (valid < bytes)
        return bs_fail(BS_STATUS_FORMAT, "text: byte %zu (0x%02x) is not UTF-8", valid,
                       (unsigned char)text[valid]);
    encoder encoder = {.tokenizer = tokenizer, .out = out};
    BS_TRY(bs_pieces_create(tokenizer->pretokenizer, &encoder.pieces));
    const bs_added_tokens *added = parse_special ? &tokenizer->vocab.added : &tokenizer->vocab.user;
    bs_status status = encode(&encoder, added, text, bytes, first);
    if (status != BS_STATUS_OK) out->n = before;
    bs_bpe_scratch_free(&encoder.scratch);
    bs_pieces_free(encoder.pieces);
    return status;
}

bs_status bs_tokenize(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                      bs_tokens *out)
{
    return bs_tokenize_part(tokenizer, text, bytes, parse_special, true, out);
}

/* ---- digest ----------------------------------------------------------------------------------------------- */

bs_status bs_tokenizer_sha256(const bs_tokenizer *t, uint8_t out[32])
{
    static const char probe[] = "The year 2026 isn't over:\tna\xc3\xafve \xe6\xbc\xa2\xe5\xad\x97 12,345.67\r\n\n"
                                "  def f(x):  return x_1+\"A\" \xf0\x9f\x99\x82";
    bs_sha256_state state;
    bs_tokens ids = {0};
    bs_sha256_init(&state);
    for (int32_t id = 0; id < bs_tokenizer_n_vocab(t); id++) {
        size_t bytes;
        const char *text = bs_tokenizer_token_bytes(t, id, &bytes);
        const int32_t head[] = {(int32_t)bytes, bs_tokenizer_is_special(t, id), bs_tokenizer_is_end(t, id)};
        bs_sha256_update(&state, head, sizeof head);
        bs_sha256_update(&state, text, bytes);
    }
    const int32_t tail[] = {bs_tokenizer_bos(t), bs_tokenizer_eos(t), bs_tokenizer_adds_bos(t), bs_tokenizer_prefixes_space(t)};
    bs_sha256_update(&state, tail, sizeof tail);
    bs_status status = bs_tokenize(t, probe, sizeof probe - 1, true, &ids);
    if (status == BS_STATUS_OK) bs_sha256_update(&state, ids.ids, ids.n * sizeof *ids.ids);
    bs_tokens_free(&ids);
    BS_TRY(status);
    bs_sha256_final(&state, out);
    return BS_STATUS_OK;
}
