/* tokenizer.c: a tokenizer from a file's metadata, and text to ids.
 *
 * Text goes through three cuts: at added tokens (at each place the longest, from left to right), by the
 * family's pattern (pretokenize.c), and by merges within a piece (bpe.c). Added tokens are looked for in the
 * caller's text only as far as the caller allows: control tokens are a template's to write, never a user's.
 */
#include "src/model/bpe.h"
#include "src/model/pretokenize.h"
#include "src/model/tokenizer_private.h"
#include "src/model/utf8.h"
#include "src/model/vocab.h"

#include <stdlib.h>
#include <string.h>

/* A piece's places and a text's offsets stay far inside 32 bits. */
#define MAX_TEXT_BYTES ((size_t)1 << 31)

enum { MAX_ENDS = 6 };

struct bs_tokenizer {
    bs_vocab vocab;
    bs_bpe bpe;
    bs_pretokenizer *pretokenizer;
    bool ignore_merges, add_bos;
    int32_t bos, eos;
    int32_t ends[MAX_ENDS];
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
static void collect_ends(bs_tokenizer *tokenizer, int64_t eot)
{
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"};
    if (tokenizer->eos >= 0) tokenizer->ends[tokenizer->n_ends++] = tokenizer->eos;
    if (eot >= 0) tokenizer->ends[tokenizer->n_ends++] = (int32_t)eot;
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

bs_status bs_tokenizer_create(const bs_tokenizer_source *source, bs_tokenizer **out)
{
    bs_status status = BS_STATUS_OK;
    BS_TRY(check_id("bos_token_id", source->bos, source->n_tokens));
    BS_TRY(check_id("eos_token_id", source->eos, source->n_tokens));
    BS_TRY(check_id("eot_token_id", source->eot, source->n_tokens));
    bs_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory");
    BS_TRY_GOTO(bs_pretokenizer_create(source->pre.text, source->pre.bytes, &tokenizer->pretokenizer),
                err_close);
    BS_TRY_GOTO(bs_vocab_create(source->tokens, source->types, source->n_tokens, &tokenizer->vocab),
                err_close);
    BS_TRY_GOTO(bs_bpe_create(&tokenizer->vocab, source->merges, source->n_merges, &tokenizer->bpe),
                err_close);
    BS_TRY_GOTO(
        bs_tokenizer_set_chat_template(tokenizer, source->chat_template.text, source->chat_template.bytes),
        err_close);
    tokenizer->ignore_merges = bs_pretokenizer_ignores_merges(tokenizer->pretokenizer);
    tokenizer->add_bos = source->add_bos < 0 ? bs_pretokenizer_adds_bos(tokenizer->pretokenizer)
                                             : source->add_bos != 0;
    tokenizer->bos = (int32_t)source->bos;
    tokenizer->eos = (int32_t)source->eos;
    collect_ends(tokenizer, source->eot);
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
    if (model.bytes == 4 && memcmp(model.text, "gpt2", 4) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED,
                   "tokenizer.ggml.model %.*s with tokenizer.ggml.pre %.*s: must be gpt2",
                   model.bytes > 64 ? 64 : (int)model.bytes, model.text,
                   pre->bytes > 64 ? 64 : (int)pre->bytes, pre->text);
}

bs_status bs_tokenizer_open_gguf(const bs_gguf *gguf, bs_tokenizer **out)
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
    BS_TRY(bs_tokenizer_open_gguf(bs_model_gguf(model), &tokenizer));
    int n = bs_tokenizer_n_vocab(tokenizer);
    if (n > desc->n_vocab) {
        bs_tokenizer_close(tokenizer);
        return bs_fail(BS_STATUS_MISMATCH, "tokenizer.ggml.tokens has %d items, token_embd.weight %d rows", n,
                       desc->n_vocab);
    }
    *out = tokenizer;
    return BS_STATUS_OK;
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

/* Text without added tokens. */
static bs_status encode_plain(encoder *encoder, const char *text, size_t bytes)
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

static bs_status encode(encoder *encoder, const bs_added_tokens *added, const char *text, size_t bytes)
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
        BS_TRY(encode_plain(encoder, text + plain, at - plain));
        BS_TRY(bs_tokens_push(encoder->out, id));
        at += bs_vocab_length(vocab, id);
        plain = at;
    }
    return encode_plain(encoder, text + plain, bytes - plain);
}

bs_status bs_tokenize(const bs_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                      bs_tokens *out)
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
    bs_status status = encode(&encoder, added, text, bytes);
    if (status != BS_STATUS_OK) out->n = before;
    bs_bpe_scratch_free(&encoder.scratch);
    bs_pieces_free(encoder.pieces);
    return status;
}
