/* vocab.c: building and searching the token tables of vocab.h. */
#include "src/model/vocab.h"
#include "src/base/checked.h"
#include "src/model/utf8.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 1 << 24 };

/* The byte a character of GPT-2's alphabet stands for, −1 from outside. Bytes 33–126, 161–172 and 174–255
 * stand for themselves, the other 68 for U+0100 and up in their order. */
static int byte_of(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
    if (c < 256 || c >= 256 + 68) return -1;
    c -= 256;
    if (c < 33) return (int)c;            /* 0 … 32 */
    if (c < 67) return (int)c - 33 + 127; /* 127 … 160 */
    return 173;
}

/* U+2581 to spaces. */
static size_t unmap_spaces(const char *text, size_t bytes, char *out)
{
    size_t n = 0;
    for (size_t at = 0; at < bytes; n++) {
        bool space = bytes - at >= 3 && memcmp(text + at, "\xe2\x96\x81", 3) == 0;
        out[n] = space ? ' ' : text[at];
        at += space ? 3 : 1;
    }
    return n;
}

int bs_vocab_byte_of(const char *text, size_t bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)(16 * (high - digits) + (low - digits)) : -1;
}

size_t bs_vocab_unmap(bs_alphabet alphabet, const char *text, size_t bytes, char *out)
{
    size_t n = 0, length;
    if (alphabet == BS_ALPHABET_SPACES) return unmap_spaces(text, bytes, out);
    for (size_t at = 0; at < bytes; at += length) {
        uint32_t c = 0;
        bs_utf8_next(text + at, bytes - at, &length, &c);
        int byte = byte_of(c);
        if (byte < 0) {
            memcpy(out, text, bytes);
            return bytes;
        }
        out[n++] = (char)byte;
    }
    return n;
}

static uint32_t hash_bytes(const char *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

static bool token_is(const bs_vocab *vocab, int32_t id, const char *bytes, size_t n)
{
    return bs_vocab_length(vocab, id) == n && memcmp(vocab->bytes + vocab->start[id], bytes, n) == 0;
}

int32_t bs_vocab_find(const bs_vocab *vocab, const char *bytes, size_t n)
{
    if (n > vocab->longest) return -1;
    for (uint32_t slot = hash_bytes(bytes, n);; slot++) {
        int32_t id = vocab->slots[slot & vocab->slot_mask];
        if (id < 0 || token_is(vocab, id, bytes, n)) return id;
    }
}

static bs_status copy_tokens(bs_vocab *vocab, const bs_string *tokens, const int64_t *types)
{
    size_t at = 0;
    for (int i = 0; i < vocab->n; i++) {
        const bs_string *token = &tokens[i];
        if (types[i] < BS_TOKEN_NORMAL || types[i] > BS_TOKEN_BYTE)
            return bs_fail(BS_STATUS_FORMAT, "tokenizer.ggml.token_type[%d] is %" PRId64 ": must be 1 … 6", i,
                           types[i]);
        if (bs_utf8_valid_bytes(token->text, token->bytes) != token->bytes)
            return bs_fail(BS_STATUS_FORMAT, "tokenizer.ggml.tokens[%d] is not UTF-8", i);
        vocab->kind[i] = (uint8_t)types[i];
        vocab->start[i] = at;
        int byte = vocab->alphabet == BS_ALPHABET_SPACES && types[i] == BS_TOKEN_BYTE
                       ? bs_vocab_byte_of(token->text, token->bytes)
                       : -1;
        if (byte >= 0) {
            vocab->bytes[at++] = (char)byte;
        } else if (types[i] == BS_TOKEN_CONTROL || types[i] == BS_TOKEN_USER) {
            if (token->bytes) memcpy(vocab->bytes + at, token->text, token->bytes);
            at += token->bytes;
        } else {
            at += bs_vocab_unmap(vocab->alphabet, token->text, token->bytes, vocab->bytes + at);
        }
        if (at - vocab->start[i] > vocab->longest) vocab->longest = at - vocab->start[i];
    }
    vocab->start[vocab->n] = at;
    return BS_STATUS_OK;
}

static bs_status hash_tokens(bs_vocab *vocab)
{
    uint32_t n_slots = 16;
    while (n_slots < 2 * (uint32_t)vocab->n) n_slots *= 2;
    vocab->slots = malloc(n_slots * sizeof *vocab->slots);
    if (!vocab->slots) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %d tokens", vocab->n);
    memset(vocab->slots, 0xff, n_slots * sizeof *vocab->slots);
    vocab->slot_mask = n_slots - 1;
    for (int i = 0; i < vocab->n; i++) {
        const char *bytes = vocab->bytes + vocab->start[i];
        size_t n = bs_vocab_length(vocab, i);
        bool byte = vocab->kind[i] == BS_TOKEN_BYTE && vocab->alphabet == BS_ALPHABET_GPT2;
        if ((vocab->kind[i] != BS_TOKEN_NORMAL && !byte) || n == 0) continue;
        uint32_t slot = hash_bytes(bytes, n) & vocab->slot_mask;
        while (vocab->slots[slot] >= 0 && !token_is(vocab, vocab->slots[slot], bytes, n))
            slot = (slot + 1) & vocab->slot_mask;
        if (vocab->slots[slot] < 0) vocab->slots[slot] = i; /* of equal tokens the first */
    }
    return BS_STATUS_OK;
}

/* What qsort needs and has no argument for: bytes beside the id. */
typedef struct entry {
    const char *bytes;
    size_t n;
    int32_t id;
} entry;

static int compare_entries(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (order != 0) return order;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bs_status sort_added(const bs_vocab *vocab, bool control, bs_added_tokens *added)
{
    int n = 0;
    entry *entries = malloc(((size_t)vocab->n + 1) * sizeof *entries);
    if (!entries) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %d tokens", vocab->n);
    for (int i = 0; i < vocab->n; i++) {
        size_t bytes = bs_vocab_length(vocab, i);
        if (bytes == 0 ||
            !(vocab->kind[i] == BS_TOKEN_USER || (control && vocab->kind[i] == BS_TOKEN_CONTROL)))
            continue;
        entries[n++] = (entry){vocab->bytes + vocab->start[i], bytes, i};
    }
    qsort(entries, (size_t)n, sizeof *entries, compare_entries);
    added->ids = malloc(((size_t)n + 1) * sizeof *added->ids);
    for (int i = 0; added->ids && i < n; i++) {
        added->ids[i] = entries[i].id;
        added->begins[(unsigned char)entries[i].bytes[0]] = true;
    }
    added->n = n;
    free(entries);
    if (!added->ids) return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %d tokens", n);
    return BS_STATUS_OK;
}

bs_status bs_vocab_create(bs_alphabet alphabet, const bs_string *tokens, const int64_t *types, int64_t n,
                          bs_vocab *vocab)
{
    bs_status status = BS_STATUS_OK;
    uint64_t bytes = 1;
    memset(vocab, 0, sizeof *vocab);
    vocab->alphabet = alphabet;
    if (n < 1 || n > MAX_TOKENS)
        return bs_fail(BS_STATUS_FORMAT, "tokenizer.ggml.tokens has %" PRId64 " items: must be 1 … %d", n,
                       MAX_TOKENS);
    for (int64_t i = 0; i < n; i++)
        if (!bs_add_u64(bytes, tokens[i].bytes, &bytes))
            return bs_fail(BS_STATUS_FORMAT, "tokenizer.ggml.tokens");
    vocab->n = (int)n;
    vocab->bytes = malloc(bytes);
    vocab->start = malloc(((size_t)n + 1) * sizeof *vocab->start);
    vocab->kind = malloc((size_t)n);
    if (!vocab->bytes || !vocab->start || !vocab->kind) {
        status = bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %" PRId64 " tokens", n);
        goto err_free;
    }
    BS_TRY_GOTO(copy_tokens(vocab, tokens, types), err_free);
    BS_TRY_GOTO(hash_tokens(vocab), err_free);
    BS_TRY_GOTO(sort_added(vocab, false, &vocab->user), err_free);
    BS_TRY_GOTO(sort_added(vocab, true, &vocab->added), err_free);
    return BS_STATUS_OK;
err_free:
    bs_vocab_free(vocab);
    return status;
}

void bs_vocab_free(bs_vocab *vocab)
{
    free(vocab->bytes);
    free(vocab->start);
    free(vocab->kind);
    free(vocab->slots);
    free(vocab->user.ids);
    free(vocab->added.ids);
    memset(vocab, 0, sizeof *vocab);
}

/* First of added->ids[low … high) whose byte at `depth` is at least `byte`. All share the bytes before. */
static int lower_bound(const bs_vocab *vocab, const bs_added_tokens *added, int low, int high, size_t depth,
                       int byte)
{
    while (low < high) {
        int middle = low + (high - low) / 2;
        if ((unsigned char)vocab->bytes[vocab->start[added->ids[middle]] + depth] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Narrows the range of tokens that begin like the text byte by byte; in it, those that end here come first.
 */
int32_t bs_added_match(const bs_vocab *vocab, const bs_added_tokens *added, const char *text, size_t n)
{
    int32_t best = -1;
    int low = 0, high = added->n;
    for (size_t depth = 0;; depth++) {
        for (bool first = true; low < high && bs_vocab_length(vocab, added->ids[low]) == depth;
             low++, first = false)
            if (first) best = added->ids[low];
        if (low == high || depth == n) return best;
        int byte = (unsigned char)text[depth];
        low = lower_bound(vocab, added, low, high, depth, byte);
        high = lower_bound(vocab, added, low, high, depth, byte + 1);
    }
}

int32_t bs_added_find(const bs_vocab *vocab, const bs_added_tokens *added, const char *bytes, size_t n)
{
    int32_t id = bs_added_match(vocab, added, bytes, n);
    return id >= 0 && bs_vocab_length(vocab, id) == n ? id : -1;
}
