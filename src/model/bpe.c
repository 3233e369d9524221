/* bpe.c: the merge table and the merging of one piece.
 *
 * A heap entry is rank << 32 | place, so the smallest number is the lowest rank and of equals the leftmost.
 * Entries are never removed when a neighbour changes: a symbol keeps the rank of its present pair, and an
 * entry with another rank is stale. That is exact: a pair has one rank, and a place whose symbols have grown
 * never gets its old pair back. An entry goes for each merge and at most two come, so twice the symbols is
 * room enough.
 */
#include "src/model/bpe.h"
#include "src/model/utf8.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NO_RANK UINT32_MAX /* also: no place */

enum { MAX_MERGES = 1 << 26 };

struct bs_merge_slot {
    int32_t left, right; /* left −1: empty */
    uint32_t rank;
    int32_t merged;
};

struct bs_symbol {
    int32_t id;
    uint32_t previous, next; /* places */
    uint32_t rank;           /* of (this, next); NO_RANK: they do not merge, or this one is gone */
    int32_t merged;
};

static uint32_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

/* The slot of a pair, or the empty one where it would go. */
static bs_merge_slot *find_merge(const bs_bpe *bpe, int32_t left, int32_t right)
{
    for (uint32_t i = hash_pair(left, right);; i++) {
        bs_merge_slot *slot = &bpe->slots[i & bpe->slot_mask];
        if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
    }
}

/* Id of part of a merge. A user-defined token may be a part too: some vocabularies call common words that. */
static int32_t find_part(const bs_vocab *vocab, const char *bytes, size_t n)
{
    int32_t id = bs_vocab_find(vocab, bytes, n);
    return id >= 0 ? id : bs_added_find(vocab, &vocab->added, bytes, n);
}

/* Parts of merge i. */
static bs_status split_merge(const bs_merges *merges, int64_t i, bs_string *left, bs_string *right)
{
    *left = merges->left[i];
    if (merges->right) {
        *right = merges->right[i];
    } else {
        const char *space = left->bytes > 2 ? memchr(left->text + 1, ' ', left->bytes - 2) : NULL;
        if (!space) return bs_fail(BS_STATUS_FORMAT, "%s[%" PRId64 "] is not two tokens", merges->name, i);
        size_t n = (size_t)(space - left->text);
        *right = (bs_string){space + 1, left->bytes - n - 1};
        left->bytes = n;
    }
    if (bs_utf8_valid_bytes(left->text, left->bytes) == left->bytes &&
        bs_utf8_valid_bytes(right->text, right->bytes) == right->bytes)
        return BS_STATUS_OK;
    return bs_fail(BS_STATUS_FORMAT, "%s[%" PRId64 "] is not UTF-8", merges->name, i);
}

static bs_status add_merge(bs_bpe *bpe, const bs_vocab *vocab, const bs_merges *merges, int64_t index,
                           char *room)
{
    bs_string a = {0}, b = {0};
    BS_TRY(split_merge(merges, index, &a, &b));
    size_t n_left = bs_vocab_unmap(vocab->alphabet, a.text, a.bytes, room);
    size_t n_right = bs_vocab_unmap(vocab->alphabet, b.text, b.bytes, room + n_left);
    int32_t left = find_part(vocab, room, n_left), right = find_part(vocab, room + n_left, n_right);
    int32_t merged = find_part(vocab, room, n_left + n_right);
    if (left < 0 || right < 0 || merged < 0)
        return bs_fail(BS_STATUS_FORMAT, "%s[%" PRId64 "]: %s is not in %s", merges->name, index,
                       left < 0    ? "its left part"
                       : right < 0 ? "its right part"
                                   : "its result",
                       merges->tokens_name);
    *find_merge(bpe, left, right) = (bs_merge_slot){left, right, (uint32_t)index, merged};
    return BS_STATUS_OK;
}

/* Bytes that the longest merge's two parts have. */
static size_t longest_merge(const bs_merges *merges)
{
    size_t longest = 1;
    for (int64_t i = 0; i < merges->n; i++) {
        size_t bytes = merges->left[i].bytes + (merges->right ? merges->right[i].bytes : 0);
        if (bytes > longest) longest = bytes;
    }
    return longest;
}

static void find_bytes(const bs_vocab *vocab, int32_t *byte_id)
{
    for (int i = 0; i < 256; i++)
        byte_id[i] = vocab->alphabet == BS_ALPHABET_GPT2 ? bs_vocab_find(vocab, &(char){(char)i}, 1) : -1;
    for (int32_t id = vocab->n - 1; id >= 0 && vocab->alphabet == BS_ALPHABET_SPACES; id--)
        if (vocab->kind[id] == BS_TOKEN_BYTE && bs_vocab_length(vocab, id) == 1)
            byte_id[(unsigned char)vocab->bytes[vocab->start[id]]] = id;
}

bs_status bs_bpe_create(const bs_vocab *vocab, const bs_merges *merges, bs_bpe *bpe)
{
    bs_status status = BS_STATUS_OK;
    uint32_t n_slots = 16;
    char *room = NULL;
    memset(bpe, 0, sizeof *bpe);
    bpe->vocab = vocab;
    if (merges->n < 0 || merges->n > MAX_MERGES)
        return bs_fail(BS_STATUS_FORMAT, "%s has %" PRId64 " items: must be 0 … %d", merges->name, merges->n,
                       MAX_MERGES);
    while (n_slots < 2 * (uint32_t)merges->n) n_slots *= 2;
    bpe->slots = malloc(n_slots * sizeof *bpe->slots);
    bpe->slot_mask = n_slots - 1;
    room = malloc(longest_merge(merges));
    if (!bpe->slots || !room) {
        status = bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %" PRId64 " merges", merges->n);
        goto err_free;
    }
    for (uint32_t i = 0; i < n_slots; i++) bpe->slots[i].left = -1;
    for (int64_t i = 0; i < merges->n; i++) BS_TRY_GOTO(add_merge(bpe, vocab, merges, i, room), err_free);
    find_bytes(vocab, bpe->byte_id);
    free(room);
    return BS_STATUS_OK;
err_free:
    free(room);
    bs_bpe_free(bpe);
    return status;
}

void bs_bpe_free(bs_bpe *bpe)
{
    free(bpe->slots);
    bpe->slots = NULL;
}

void bs_bpe_scratch_free(bs_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    memset(scratch, 0, sizeof *scratch);
}

static bs_status reserve(bs_bpe_scratch *scratch, size_t n)
{
    if (n <= scratch->capacity) return BS_STATUS_OK;
    size_t capacity = n < 256 ? 256 : n;
    bs_bpe_scratch_free(scratch);
    scratch->symbols = malloc(capacity * sizeof *scratch->symbols);
    scratch->heap = malloc(2 * capacity * sizeof *scratch->heap);
    if (!scratch->symbols || !scratch->heap) {
        bs_bpe_scratch_free(scratch);
        return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for a piece of %zu bytes", n);
    }
    scratch->capacity = capacity;
    return BS_STATUS_OK;
}

static void push_heap(bs_bpe_scratch *scratch, uint64_t entry)
{
    uint64_t *heap = scratch->heap;
    size_t i = scratch->n_heap++;
    for (; i > 0 && heap[(i - 1) / 2] > entry; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = entry;
}

static uint64_t pop_heap(bs_bpe_scratch *scratch)
{
    uint64_t *heap = scratch->heap, top = heap[0], last = heap[--scratch->n_heap];
    size_t i = 0, n = scratch->n_heap;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Looks up the pair (place, its next) and puts it into the heap if it merges. */
static void consider(const bs_bpe *bpe, bs_bpe_scratch *scratch, uint32_t place)
{
    struct bs_symbol *symbol = &scratch->symbols[place];
    symbol->rank = NO_RANK;
    if (symbol->next == NO_RANK) return;
    const bs_merge_slot *merge = find_merge(bpe, symbol->id, scratch->symbols[symbol->next].id);
    if (merge->left < 0) return;
    symbol->rank = merge->rank;
    symbol->merged = merge->merged;
    push_heap(scratch, (uint64_t)merge->rank << 32 | place);
}

static uint32_t put_symbol(bs_bpe_scratch *scratch, uint32_t n, int32_t id)
{
    if (id < 0) return n;
    scratch->symbols[n] = (struct bs_symbol){id, n ? n - 1 : NO_RANK, n + 1, NO_RANK, -1};
    return n + 1;
}

static uint32_t begin_piece(const bs_bpe *bpe, bs_bpe_scratch *scratch, const char *piece, size_t bytes)
{
    uint32_t n = 0;
    for (size_t i = 0, length; i < bytes; i += length) {
        int32_t character = -1;
        length = 1;
        if (bpe->vocab->alphabet == BS_ALPHABET_SPACES) {
            bs_utf8_next(piece + i, bytes - i, &length, NULL);
            character = bs_vocab_find(bpe->vocab, piece + i, length);
        }
        if (character >= 0) n = put_symbol(scratch, n, character);
        for (size_t j = i; character < 0 && j < i + length; j++)
            n = put_symbol(scratch, n, bpe->byte_id[(unsigned char)piece[j]]);
    }
    if (n) scratch->symbols[n - 1].next = NO_RANK;
    scratch->n_heap = 0;
    for (uint32_t i = 0; i < n; i++) consider(bpe, scratch, i);
    return n;
}

bs_status bs_bpe_encode(const bs_bpe *bpe, bs_bpe_scratch *scratch, const char *piece, size_t bytes,
                        bs_tokens *out)
{
    BS_TRY(reserve(scratch, bytes));
    struct bs_symbol *symbols = scratch->symbols;
    uint32_t n = begin_piece(bpe, scratch, piece, bytes);
    while (scratch->n_heap > 0) {
        uint64_t entry = pop_heap(scratch);
        struct bs_symbol *symbol = &symbols[(uint32_t)entry];
        if (symbol->rank != entry >> 32) continue; /* stale */
        struct bs_symbol *gone = &symbols[symbol->next];
        symbol->id = symbol->merged;
        symbol->next = gone->next;
        gone->rank = NO_RANK;
        if (symbol->next != NO_RANK) symbols[symbol->next].previous = (uint32_t)entry;
        if (symbol->previous != NO_RANK) consider(bpe, scratch, symbol->previous);
        consider(bpe, scratch, (uint32_t)entry);
    }
    for (uint32_t i = n ? 0 : NO_RANK; i != NO_RANK; i = symbols[i].next)
        BS_TRY(bs_tokens_push(out, symbols[i].id));
    return BS_STATUS_OK;
}
