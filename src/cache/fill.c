/* fill.c: a sequence that begins with tokens nobody computed: noise, in the pages where tokens would be.
 *
 * Pages come to be as in a decode: written to f16 slots, then quantized by the same op, a few at a time, as the f16 pool
 * has room for. So every format holds valid codes, each page differs, and what follows is a step like any other. Rejected:
 * copying a few quantized slots again and again, which saves a tenth of a second of a GPU at a million tokens.
 */
#include "src/base/checked.h"
#include "src/cache/cache_private.h"

#include <inttypes.h>

/* This shard's pages first … end − 1 to f16 slots, as far as there are any; *end is where it stopped. */
static bs_status draw_pages(bs_cache *cache, bs_stream *stream, bs_cache_seq *s, int64_t first, int64_t *end,
                            const bs_cache_noise *noise)
{
    for (int64_t page = first; page < *end; page++) {
        if (!bs_page_deal_owns(&s->deal, page)) continue;
        if (cache->f16_slots.n_free == 0) {
            *end = page;
            break;
        }
        bool dirty; /* overwritten whole */
        uint32_t *slot = &s->slots[bs_page_deal_count(&s->deal, page)];
        *slot = bs_slot_pool_take(&cache->f16_slots, &dirty);
        BS_TRY(bs_op_random_page(stream, &(bs_random_page_args){.pools = &cache->pools,
                                                                .slot = *slot,
                                                                .page = page,
                                                                .first_kv_head = noise->first_kv_head,
                                                                .seed = noise->seed}));
    }
    return BS_STATUS_OK;
}

/* Quantizes up to new_end, and waits: the lists in staging are used again. No slot is cleared: all are overwritten whole. */
static bs_status quantize(bs_cache *cache, bs_stream *stream, bs_cache_seq *s, int64_t new_end)
{
    const int32_t *from = bs_cache_staging(cache, BS_TABLE_QUANTIZE_FROM);
    cache->tables.n_quantize = cache->n_clear_quant = 0;
    bs_cache_quantize_pages(cache, s, new_end);
    const int n = cache->tables.n_quantize;
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_QUANTIZE_FROM, (size_t)n));
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_QUANTIZE_TO, (size_t)n));
    BS_TRY(bs_op_quantize(stream, &(bs_quantize_args){&cache->pools, n, cache->tables.quantize_from,
                                                      cache->tables.quantize_to}));
    for (int i = 0; i < n; i++) bs_slot_pool_release(&cache->f16_slots, (uint32_t)from[i]);
    return bs_stream_sync(stream);
}

bs_status bs_cache_seq_fill(bs_cache *cache, bs_stream *stream, int seq, int64_t n_tokens,
                            const bs_cache_noise *noise)
{
    bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    if (cache->step_open || !s || s->in_prompt || s->length % BS_PAGE_TOKENS != 0)
        return bs_fail(BS_STATUS_RANGE, "cache: fill of sequence %d: is not between whole pages of noise",
                       seq);
    if (n_tokens < s->length || n_tokens > s->n_reserved)
        return bs_fail(BS_STATUS_RANGE,
                       "cache: fill of sequence %d: n_tokens %" PRId64 ": must be %" PRId64 " … %" PRId64,
                       seq, n_tokens, s->length, s->n_reserved);
    BS_TRY(bs_stream_sync(stream)); /* a step before may still read the tables */
    while (s->length < n_tokens) {
        int64_t first = bs_cache_pages_of(s->length), end = bs_cache_pages_of(n_tokens);
        BS_TRY(draw_pages(cache, stream, s, first, &end, noise));
        if (end == first)
            return bs_fail(BS_STATUS_INTERNAL, "cache: fill of sequence %d: no f16 slot for page %" PRId64,
                           seq, first);
        s->length = s->end = bs_min_i64(n_tokens, end * BS_PAGE_TOKENS);
        int64_t new_end = (s->length - 1) / BS_PAGE_TOKENS -
                          cache->n_recent; /* what the last token's step left */
        if (!bs_cache_is_f16(&cache->config) && new_end > s->quant_end)
            BS_TRY(quantize(cache, stream, s, new_end));
    }
    return BS_STATUS_OK;
}
