/* cache.h: pages, pools, sequences: which slot of which pool holds which 128 tokens of which sequence.
 *
 * Bookkeeping is host-side, deterministic and the same on all ranks of a job (every rank keeps the reservations of
 * every shard, and the page lists of its own); only the bytes differ. The cache owns both pools and the device tables
 * that attend, append and quantize read. DESIGN §3 (stripes) and §4 (when a page is quantized, sharing) are the rules.
 *
 * Life of a step, called with the same arguments on every rank:
 *   bs_cache_step_begin  makes room for the new tokens, decides what is quantized now, fills the device tables
 *   (the engine: quantize op, then for each layer append and attend, with bs_cache_tables)
 *   bs_cache_step_end    frees the f16 slots whose pages were quantized; freed slots are zeroed before reuse
 *
 * Nothing is allocated after bs_cache_open. Pages are counted: a page is shared by the sequences forked from it and
 * freed with the last. Only quantized and complete sink pages are shared, and those are never written; an f16 format,
 * whose pages never change once complete, shares all complete ones.
 *
 * Refusals (RANGE, FULL) depend on the arguments and on what all ranks know alike, never on this shard's pools, so all
 * ranks refuse together. Sequences are started and freed between steps.
 */
#ifndef BS_CACHE_H
#define BS_CACHE_H

#include "kernels/kernels.h"

/* Tokens of one sequence in one decode step (speculation): more could need one f16 page more than the pool has. */
enum { BS_CACHE_MAX_DECODE_TOKENS = 64 };

typedef struct bs_cache bs_cache;

typedef struct bs_cache_config {
    bs_kv_shape shape;  /* this rank's KV heads */
    int seq, seq_shard; /* of the grid */
    int stripe_pages;   /* 8: stripes of 1024 tokens */
    int chunk_tokens;   /* C: 2048; 128 for eval; a multiple of 128 */
    int max_seqs;       /* sequence slots, B_max */
    int max_prefill_seqs; /* how many of them may be in prefill at once, 1 … max_seqs; a sequence is in prefill from
                             its first prefill step until its next decode step begins, or until it is freed */
    int max_step_tokens;  /* ΣT_max, all sequences of a step */
    int64_t max_context;  /* tokens of one sequence */
    int64_t total_tokens; /* tokens of all sequences together, ≤ max_seqs × max_context */
} bs_cache_config;

/* What the cache will take on this shard. */
typedef struct bs_cache_memory {
    uint32_t n_f16_slots, n_quant_slots;
    size_t f16_slot_bytes, quant_slot_bytes;
    uint64_t f16_pool_bytes, quant_pool_bytes, table_bytes;
    int max_pages; /* length of the page lists, for attend's workspace */
} bs_cache_memory;
/* Pure arithmetic, for --dry-run and for opening. BS_STATUS_RANGE names the field. */
bs_status bs_cache_plan_memory(const bs_device *device, const bs_cache_config *config, bs_cache_memory *out);

/* Takes all memory. `stream` is where forks copy; it must outlive the cache. Not collective. */
bs_status bs_cache_open(bs_device *device, bs_stream *stream, const bs_cache_config *config, bs_cache **out);
void bs_cache_close(bs_cache *cache);
const bs_kv_pools *bs_cache_pools(const bs_cache *cache);
const bs_cache_memory *bs_cache_get_memory(const bs_cache *cache);

/* ---- sequences -------------------------------------------------------------------------------------------- */
/* `seq` is a slot 0 … max_seqs − 1, chosen by rank 0. */

/* Whether a sequence that may grow to n_tokens fits beside what is reserved already, on every shard, for some start;
 * *best_start (may be NULL) gets the start that leaves most room, and evens the shards' pages where that is the same.
 * Sequences whose n_tokens add up to total_tokens or less fit whatever their starts. */
bool bs_cache_fits(const bs_cache *cache, int64_t n_tokens, int *best_start);
/* Takes the slot and reserves pages for n_tokens. BS_STATUS_FULL when it does not fit, RANGE for a bad slot. */
bs_status bs_cache_seq_start(bs_cache *cache, int seq, int start_s, int64_t n_tokens);
/* What bs_cache_seq_fill draws. */
typedef struct bs_cache_noise {
    uint64_t seed;
    int first_kv_head; /* of the model: the one that is this rank's first */
} bs_cache_noise;
/* A sequence that has no tokens, or whole pages of an earlier fill, gets tokens of noise up to n_tokens, in the state in
 * which decoding them would have left it: K and V of mean 0 and standard deviation 1, the same for a seed on every grid.
 * For benches. Not for a decode step: it waits for the stream. RANGE beyond the reservation or behind real tokens. */
bs_status bs_cache_seq_fill(bs_cache *cache, bs_stream *stream, int seq, int64_t n_tokens,
                            const bs_cache_noise *noise);
/* Frees the slot: pages without another owner go back to the pools (zeroed before reuse). */
void bs_cache_seq_free(bs_cache *cache, int seq);
/* dst becomes a copy of src at its present length, reserved for n_tokens: shares quantized and sink pages, copies the
 * f16 recent and open ones, inherits start_s. n_tokens: no less than src's length, and the base of its prompt (reuse).
 * Stream-ordered. FULL also when src is in prefill and dst would be one more than max_prefill_seqs. */
bs_status bs_cache_seq_fork(bs_cache *cache, int src, int dst, int64_t n_tokens);
/* How many tokens of a prefix of n of src can be taken over: the end of the kept pages, 128·(⌊n/128⌋ − recent) after
 * n is cut so that those pages are quantized (or sink) already; 0 when that is less than a page. */
int64_t bs_cache_reusable(const bs_cache *cache, int src, int64_t n);
/* dst starts with the kept pages of src's first n tokens; the prompt is computed again from position *first_pos on,
 * with the base of DESIGN §4, Sharing: by prefill steps up to that base at least. n ≤ n_tokens. */
bs_status bs_cache_seq_reuse(bs_cache *cache, int src, int dst, int64_t n, int64_t n_tokens,
                             int64_t *first_pos);

int64_t bs_cache_seq_length(const bs_cache *cache, int seq); /* tokens written; −1: slot not in use */
int bs_cache_seq_start_shard(const bs_cache *cache, int seq);

/* ---- steps ------------------------------------------------------------------------------------------------ */

typedef struct bs_cache_step_seq {
    int seq;
    int64_t pos0; /* = its length now */
    int n_tokens; /* prefill: crosses no multiple of chunk_tokens; decode: ≤ BS_CACHE_MAX_DECODE_TOKENS */
    bool prefill; /* base b = max(first position of its prompt, C·⌊pos0/C⌋); else b = pos0 */
} bs_cache_step_seq;

/* Device tables of the step begun last. Row i of the per-sequence tables is the i-th bs_cache_step_seq; rows beyond
 * are unused slots (q_pos0 −1, nothing to see). */
typedef struct bs_cache_tables {
    const int32_t *q_start, *q_pos0, *page_start;
    const uint32_t *page_slot;
    const int32_t *page_index;
    const int32_t *n_sink, *n_quant, *n_f16, *n_tokens;
    int max_seqs, max_pages;
    const int32_t *token_pos; /* [ΣT] position of each token; −1 beyond n_step_tokens */
    const int32_t *token_slot,
        *token_page; /* [ΣT] append's f16_slot and page_token; slot −1 beyond, or not owned */
    int n_quantize;  /* host: pages to quantize before this step's attention */
    const uint32_t *quantize_from, *quantize_to;
    int n_step_tokens; /* host: tokens of this step */
} bs_cache_tables;

/* BS_STATUS_RANGE for a wrong position or a crossed chunk, FULL when a reservation or max_prefill_seqs is exceeded; the
 * cache is unchanged then. Stream-ordered: tables are sent from host memory of the cache's own, in turns, so what was
 * queued by the step_begin before the last must be done; the last may still be running. An error of the device leaves the
 * step open. */
bs_status bs_cache_step_begin(bs_cache *cache, bs_stream *stream, const bs_cache_step_seq *seqs, int n_seqs);
const bs_cache_tables *bs_cache_get_tables(const bs_cache *cache);
/* This shard's pages in rows row … row + n − 1 of that step: how long that part of the page lists is. Rows beyond the
 * step's have none. */
int bs_cache_step_pages(const bs_cache *cache, int row, int n);
bs_status bs_cache_step_end(bs_cache *cache, bs_stream *stream);

/* ---- looking inside (snapshots, tests, summaries) ----------------------------------------------------------- */

typedef enum bs_page_kind { BS_PAGE_NONE, BS_PAGE_SINK, BS_PAGE_QUANT, BS_PAGE_F16 } bs_page_kind;
typedef struct bs_page_view {
    bs_page_kind kind; /* NONE: another shard's, or beyond the end */
    uint32_t slot;     /* in the pool of its kind */
    int n_owners;
} bs_page_view;
bs_page_view bs_cache_page(const bs_cache *cache, int seq, int64_t page);
/* Which sequence shard owns a page of a sequence that starts at start_s. Pure. */
int bs_cache_page_owner(int64_t page, int start_s, int stripe_pages, int seq);
uint32_t bs_cache_free_slots(const bs_cache *cache, bool quantized);
/* Canonical bytes of all slots in use on this rank, shared ones once, open pages whole: f16 pages as f16, quantized
 * pages with their parameters. *as_f16: the tokens in those slots (2·D·2 bytes a layer and KV head each; shared ones
 * once). Between steps. */
uint64_t bs_cache_used_bytes(const bs_cache *cache, uint64_t *as_f16);

/* ---- snapshots -------------------------------------------------------------------------------------------- */

/* What a sequence's bookkeeping is, the same on every rank; with the bytes of its pages it is the whole sequence. */
typedef struct bs_cache_seq_state {
    int64_t length;      /* tokens written */
    int64_t quant_end;   /* pages sink … quant_end − 1 are quantized; ≥ sink. 0 for an f16 format */
    int64_t prompt_base; /* least base of this prompt's steps, while in_prompt */
    int start_s;
    bool in_prompt;  /* in a prompt, or behind it with no decode step yet */
    bool prefilling; /* may hold f16 pages of a chunk */
} bs_cache_seq_state;
/* RANGE when the slot is not in use, or a step is open. */
bs_status bs_cache_seq_get_state(const bs_cache *cache, int seq, bs_cache_seq_state *out);

typedef struct bs_cache_page_ref {
    int64_t page;
    bs_page_kind kind;
    uint32_t slot; /* in the pool of its kind */
} bs_cache_page_ref;
/* This shard's pages among first … end − 1, ascending; gives how many. out: room for all of them (end − first is
 * enough). Beyond the sequence's end there are none. */
int64_t bs_cache_list_pages(const bs_cache *cache, int seq, int64_t first, int64_t end,
                            bs_cache_page_ref *out);
/* One more owner of sealed pages, so that they stay as they are whatever becomes of the sequence; and one fewer. The pool
 * counts on sequences alone: one with pinned pages is not freed before they are unpinned (a restart could find no slot).
 * Local. */
void bs_cache_pin(bs_cache *cache, const bs_cache_page_ref *pages, int64_t n);
void bs_cache_unpin(bs_cache *cache, const bs_cache_page_ref *pages, int64_t n);

/* A sequence that comes from elsewhere: takes the slot, reserves n_tokens, and takes fresh slots for all of this shard's
 * pages of the state; the caller fills them (bs_cache_list_pages, bs_op_unpack), each whole. Until it is published no
 * step, fork or reuse may use it; bs_cache_seq_free drops it. Same arguments on all ranks. RANGE for a state that this
 * cache could not be in, FULL as bs_cache_seq_start or when it would be one more than max_prefill_seqs in prefill. */
bs_status bs_cache_seq_stage(bs_cache *cache, int seq, int64_t n_tokens, const bs_cache_seq_state *state);
void bs_cache_seq_publish(bs_cache *cache, int seq);

#endif
