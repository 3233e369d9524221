/* bench_data.h: a cache as a decode finds it, of gigabytes, built in a second. Private to src/cli/bench*.c.
 *
 * Every page has a slot of its own, in shuffled order, but few pages have contents of their own: page
 * contents come from `n_sources` source slots, quantized (or copied, for f16 pages) again and again, and the
 * sources from a bank of random head pages. So the reference in fp64 needs each content once, and gigabytes
 * cost no host time.
 */
#ifndef BS_CLI_BENCH_DATA_H
#define BS_CLI_BENCH_DATA_H

#include "src/cli/bench.h"

/* Page e of the lists, e = page_start[b] … page_start[b + 1] − 1: sink, quantized, f16. */
typedef struct bs_bench_page {
    uint32_t slot;   /* in its pool */
    int32_t index;   /* global page number */
    uint16_t source; /* whose contents it has */
    bool quantized;
} bs_bench_page;

typedef struct bs_bench_seq {
    int32_t length, page_start, n_sink, n_quant, n_f16;
} bs_bench_seq;

/* Device addresses of the arrays that bs_attend_args takes. */
typedef struct bs_bench_tables {
    const int32_t *q_start, *q_pos0, *page_start, *page_index, *n_sink, *n_quant, *n_f16, *n_tokens;
    const uint32_t *page_slot;
} bs_bench_tables;

typedef struct bs_bench_cache {
    const bs_bench *bench;
    const bs_bench_case *item;
    bs_kv_shape shape;
    bs_kv_pools pools;
    bs_buffer *f16, *quant, *tables_at;
    bs_bench_tables tables;
    int n_sources, n_pages;
    bs_bench_seq *seqs;   /* [B] */
    bs_bench_page *pages; /* [n_pages] */
    bs_f16 *bank;         /* head pages, K [128][D] then V */
} bs_bench_cache;

/* Close it also where this failed. */
bs_status bs_bench_cache_open(const bs_bench *bench, const bs_bench_case *item, bs_bench_cache *cache);
void bs_bench_cache_close(bs_bench_cache *cache);

/* The f16 head page, K [128][D] then V [128][D], that source slot `source` holds for a layer and KV head. */
const bs_f16 *bs_bench_source(const bs_bench_cache *cache, int source, int layer, int kv_head);
/* Allocates a pool's f16 slots for n_sources sources and n_more other slots, and writes the sources, slots
 * 0 … n_sources − 1. For benches that need no pages. shape, item and bench are set. */
bs_status bs_bench_fill_sources(bs_bench_cache *cache, int n_sources, uint32_t n_more);
/* 0 … n − 1 in an order that the seed decides; n at most 2^32. */
void bs_bench_shuffle(uint32_t *order, uint32_t n, uint64_t seed);

/* Quantized pages and f16 tokens that the query tokens of one sequence of this length see. */
void bs_bench_visible(const bs_bench_case *item, const bs_kv_format *format, int64_t length,
                      int64_t *quant_pages, int64_t *f16_tokens);
/* Lengths of the sequences, [B]. */
void bs_bench_lengths(const bs_bench_case *item, int32_t *length);

/* ---- reference ---- */

/* One (token, query head) of an attend. */
typedef struct bs_bench_pair {
    int seq, token, head; /* token: among the sequence's query tokens */
    int layer;
} bs_bench_pair;

/* Attention of q [D] in fp64 over the dequantized pages of that sequence: o [D], natural-log lse. Contents
 * that many pages share are decoded and attended to once. */
bs_status bs_bench_reference(const bs_bench_cache *cache, bs_bench_pair pair, const float *q, double *o,
                             double *lse);

#endif
