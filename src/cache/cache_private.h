/* cache_private.h: what the files of src/cache/ share: the cache's inside and the arithmetic of pages.
 *
 *   plan_memory.c  which pages a shard owns, how many slots that can be at worst, bytes
 *   pool.c         slots of one pool
 *   cache.c        opening, closing, looking inside
 *   sequence.c     reservations; start, free, fork, reuse
 *   step.c         what a step quantizes and which slots it takes
 *   tables.c       the device tables
 *   fill.c         sequences that begin with noise
 *   stage.c        what snapshots ask: states, lists of pages, pins, sequences that come from elsewhere
 *
 * A sequence keeps the slots of this shard's pages only, in page order: its list has one entry a page that is
 * owned. Where the kind of a page changes is three numbers (sink, quant_end, end), so a page's kind is never
 * stored.
 */
#ifndef BS_CACHE_PRIVATE_H
#define BS_CACHE_PRIVATE_H

#include "src/cache/cache.h"
#include "src/cache/pool.h"

/* ---- arithmetic of pages (plan_memory.c), pure ------------------------------------------------------- */

/* How the pages of a sequence that starts at some shard are dealt, seen from one shard. */
typedef struct bs_page_deal {
    int stripe_pages, seq;
    int first_stripe; /* the shard's first stripe, 0 … seq − 1; then every seq-th */
} bs_page_deal;
bs_page_deal bs_page_deal_of(const bs_cache_config *config, int shard, int start_s);
/* How many of the pages 0 … end − 1 the shard owns; for an owned page: its place in the shard's list. */
int64_t bs_page_deal_count(const bs_page_deal *deal, int64_t end);
/* Global page number of the list's i-th entry. */
int64_t bs_page_deal_page(const bs_page_deal *deal, int64_t i);
bool bs_page_deal_owns(const bs_page_deal *deal, int64_t page);
/* The most pages of first … end − 1 that any shard owns, for any start. */
int64_t bs_cache_worst_owned(const bs_cache_config *config, int64_t first, int64_t end);

static inline bool bs_cache_is_f16(const bs_cache_config *config)
{
    return config->shape.format.k_bits == 16;
}

/* The pages of a sequence of n_tokens that need slots of the pool that holds the context (quantized slots, or
 * f16 slots of an f16 format): first … end − 1. */
typedef struct bs_page_range {
    int64_t first, end;
} bs_page_range;
bs_page_range bs_cache_context_pages(const bs_cache_config *config, int64_t n_tokens);

/* ---- the cache --------------------------------------------------------------------------------------- */

/* The device tables, all of 4-byte entries, one after the other in one buffer. */
typedef enum bs_cache_table {
    BS_TABLE_Q_START,
    BS_TABLE_Q_POS0,
    BS_TABLE_PAGE_START,
    BS_TABLE_N_SINK,
    BS_TABLE_N_QUANT,
    BS_TABLE_N_F16,
    BS_TABLE_N_TOKENS,
    BS_TABLE_TOKEN_POS,
    BS_TABLE_TOKEN_SLOT,
    BS_TABLE_TOKEN_PAGE,
    BS_TABLE_PAGE_SLOT, /* from here on lists of which a step uses the beginning */
    BS_TABLE_PAGE_INDEX,
    BS_TABLE_QUANTIZE_FROM,
    BS_TABLE_QUANTIZE_TO,
    BS_TABLE_CLEAR_F16,
    BS_TABLE_CLEAR_QUANT,
    BS_TABLE_COUNT
} bs_cache_table;

typedef struct bs_cache_seq {
    bool used;
    bool staged;     /* its pages are being filled: not to be used yet */
    bool in_prompt;  /* prompt_base holds: since the first prefill step (or a reuse), until a decode step */
    bool prefilling; /* may hold f16 pages of a chunk: since the first prefill step, until a decode step */
    int start_s;
    int64_t length;      /* tokens written */
    int64_t end;         /* the same, with the open step's */
    int64_t n_reserved;  /* tokens it may grow to */
    int64_t prompt_base; /* least base of this prompt's steps */
    int64_t quant_end;   /* pages sink … quant_end − 1 are quantized; ≥ sink. Not for f16 formats */
    uint64_t step;       /* number of the last step it was in */
    bs_page_deal deal;   /* of this shard */
    uint32_t *slots;     /* this shard's pages of 0 … ⌈end/128⌉ − 1 */
} bs_cache_seq;

struct bs_cache {
    bs_device *device;
    bs_stream *stream; /* that forks copy on */
    bs_cache_config config;
    bs_cache_memory memory;
    bs_kv_pools pools;
    int n_sink, n_recent;                      /* 0 for f16 formats */
    uint64_t f16_page_bytes, quant_page_bytes; /* canonical, all layers and heads */

    bs_slot_pool f16_slots, quant_slots;
    bs_buffer *f16_buffer, *quant_buffer, *table_buffer;

    bs_cache_seq *seqs;  /* [max_seqs] */
    uint32_t *seq_slots; /* [max_seqs] × most pages a shard can own of a sequence */
    int n_used, n_prefilling;
    int64_t *n_context; /* [seq] reserved slots of the pool that holds the context, each shard's */
    int64_t *n_pages;   /* [seq] reserved pages of any kind: tells shards apart when n_context does not */

    /* The step begun last. */
    bool step_open;
    uint64_t step;
    bs_cache_step_seq *step_seqs; /* [max_seqs] */
    int n_step_seqs;
    int n_clear_f16, n_clear_quant;
    int32_t *staging;   /* host copy of the tables: the block of this step */
    int32_t *blocks[2]; /* steps take turns, so that one can be filled while the other is still being sent */
    size_t table_at[BS_TABLE_COUNT + 1]; /* first entry of each table */
    bs_cache_tables tables;
};

/* Where each table begins, and entries in all, given the slots of both pools (tables.c). */
size_t bs_cache_layout_tables(const bs_cache_config *config, const bs_cache_memory *memory,
                              size_t table_at[BS_TABLE_COUNT + 1]);
/* Points cache->tables at the device buffer. */
void bs_cache_bind_tables(bs_cache *cache);
/* Pages 0 … n − 1 are never written again (sequence.c). */
int64_t bs_cache_sealed_end(const bs_cache *cache, const bs_cache_seq *s);
/* Moves this shard's pages of quant_end … new_end − 1 to quantized slots, and notes in the staging what is to be quantized
 * from where to where, and which slots are to be cleared (step.c). They are complete and nobody else's. */
void bs_cache_quantize_pages(bs_cache *cache, bs_cache_seq *s, int64_t new_end);
/* The first n entries of a table from the staging to the device. */
bs_status bs_cache_send_table(bs_cache *cache, bs_stream *stream, bs_cache_table table, size_t n);
/* Fills the staging from the sequences' lists and sends it, then clears the slots taken by this step. */
bs_status bs_cache_send_tables(bs_cache *cache, bs_stream *stream);

static inline int32_t *bs_cache_staging(bs_cache *cache, bs_cache_table table)
{
    return cache->staging + cache->table_at[table];
}

static inline int64_t bs_cache_pages_of(int64_t n_tokens)
{
    return (n_tokens + BS_PAGE_TOKENS - 1) / BS_PAGE_TOKENS;
}

/* The sequence in slot `seq` or NULL (out of range, not in use). */
static inline bs_cache_seq *bs_cache_used_seq(const bs_cache *cache, int seq)
{
    if (seq < 0 || seq >= cache->config.max_seqs || !cache->seqs[seq].used) return NULL;
    return &cache->seqs[seq];
}

static inline bs_page_kind bs_cache_kind(const bs_cache *cache, const bs_cache_seq *s, int64_t page)
{
    if (bs_cache_is_f16(&cache->config)) return BS_PAGE_F16;
    return page < cache->n_sink ? BS_PAGE_SINK : page < s->quant_end ? BS_PAGE_QUANT : BS_PAGE_F16;
}

static inline bs_slot_pool *bs_cache_pool_of(bs_cache *cache, bs_page_kind kind)
{
    return kind == BS_PAGE_QUANT ? &cache->quant_slots : &cache->f16_slots;
}

#endif
