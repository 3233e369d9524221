/* bpe.h: byte-pair encoding of one piece: the tokens of its bytes (of its characters, in SentencePiece's alphabet), merged
 * in the order of the merge list.
 *
 * Of all neighbours that the list can merge, the pair of the lowest rank goes first, the leftmost of equals,
 * until none is left (Sennrich et al. 2016; byte level, Radford et al. 2019). A linked list of symbols and a
 * heap of candidate pairs make that O(n log n); looking for the best pair again after every merge is simpler
 * and takes hours for a megabyte without a space.
 */
#ifndef BS_BPE_H
#define BS_BPE_H

#include "src/model/tokenizer.h"
#include "src/model/vocab.h"

typedef struct bs_merge_slot bs_merge_slot;

/* Best first; in the vocabulary's alphabet. */
typedef struct bs_merges {
    const bs_string *left;  /* or "left right", where right is NULL */
    const bs_string *right; /* [n] or NULL */
    int64_t n;
    const char *name, *tokens_name; /* what error lines call them */
} bs_merges;

typedef struct bs_bpe {
    const bs_vocab *vocab; /* for the characters of SPACES */
    bs_merge_slot *slots;  /* hash of (left, right) */
    uint32_t slot_mask;
    int32_t byte_id[256]; /* −1: not in the vocabulary */
} bs_bpe;

/* FORMAT names the merge whose parts or result are no tokens. The vocabulary must live as long. On failure bpe is
 * freed. */
bs_status bs_bpe_create(const bs_vocab *vocab, const bs_merges *merges, bs_bpe *bpe);
void bs_bpe_free(bs_bpe *bpe);

/* Room for one piece, kept from piece to piece; zero it before the first use. */
typedef struct bs_bpe_scratch {
    struct bs_symbol *symbols;
    uint64_t *heap;
    size_t capacity, n_heap;
} bs_bpe_scratch;
void bs_bpe_scratch_free(bs_bpe_scratch *scratch);

/* Appends the piece's ids. Bytes the vocabulary lacks vanish, as they do in the reference (SmolLM2 lacks six
 * control characters and the lead bytes of unassigned planes). */
bs_status bs_bpe_encode(const bs_bpe *bpe, bs_bpe_scratch *scratch, const char *piece, size_t bytes,
                        bs_tokens *out);

#endif
