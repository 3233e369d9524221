/* sequence.c: starting, freeing, forking and reusing sequences.
 *
 * A sequence reserves the context slots that it may come to need when it starts, on every shard; every rank
 * keeps the account of all shards, so all say "full" together and none later. Reservations take no notice of
 * sharing: whoever frees first, the pages that stay are covered by the reservation of those who stay. f16
 * slots of quantized formats need none: the pool holds what max_seqs sequences can use (plan_memory.c).
 */
#include "src/cache/cache_private.h"
#include "src/base/checked.h"

#include <assert.h>
#include <inttypes.h>

/* ---- reservations ------------------------------------------------------------------------------------ */

static int64_t count_range(const bs_page_deal *deal, bs_page_range range)
{
    return bs_page_deal_count(deal, range.end) - bs_page_deal_count(deal, range.first);
}

static int64_t n_context_slots(const bs_cache *cache)
{
    return bs_cache_is_f16(&cache->config) ? cache->memory.n_f16_slots : cache->memory.n_quant_slots;
}

/* Adds (sign 1) or takes back (−1) a sequence's reservation on every shard. */
static void reserve(bs_cache *cache, int start_s, int64_t n_tokens, int sign)
{
    bs_page_range range = bs_cache_context_pages(&cache->config, n_tokens);
    for (int shard = 0; shard < cache->config.seq; shard++) {
        bs_page_deal deal = bs_page_deal_of(&cache->config, shard, start_s);
        cache->n_context[shard] += sign * count_range(&deal, range);
        cache->n_pages[shard] += sign * bs_page_deal_count(&deal, bs_cache_pages_of(n_tokens));
    }
}

/* What would be left of the fullest shard (negative: it does not fit), and its pages of any kind. */
static int64_t room_left(const bs_cache *cache, int start_s, int64_t n_tokens, int64_t *most_pages)
{
    bs_page_range range = bs_cache_context_pages(&cache->config, n_tokens);
    int64_t room = INT64_MAX, most = 0;
    for (int shard = 0; shard < cache->config.seq; shard++) {
        bs_page_deal deal = bs_page_deal_of(&cache->config, shard, start_s);
        room = bs_min_i64(room, n_context_slots(cache) - cache->n_context[shard] - count_range(&deal, range));
        most = bs_max_i64(most,
                          cache->n_pages[shard] + bs_page_deal_count(&deal, bs_cache_pages_of(n_tokens)));
    }
    *most_pages = most;
    return room;
}

bool bs_cache_fits(const bs_cache *cache, int64_t n_tokens, int *best_start)
{
    if (n_tokens < 1 || n_tokens > cache->config.max_context || cache->n_used == cache->config.max_seqs)
        return false;
    int64_t best_room = -1, best_most = 0;
    int best = 0;
    for (int start = 0; start < cache->config.seq; start++) {
        int64_t most, room = room_left(cache, start, n_tokens, &most);
        if (room < best_room || (room == best_room && (room < 0 || most >= best_most))) continue;
        best = start;
        best_room = room;
        best_most = most;
    }
    if (best_room < 0) return false;
    if (best_start) *best_start = best;
    return true;
}

/* ---- start and free ---------------------------------------------------------------------------------- */

bs_status bs_cache_seq_start(bs_cache *cache, int seq, int start_s, int64_t n_tokens)
{
    const bs_cache_config *config = &cache->config;
    assert(!cache->step_open);
    if (seq < 0 || seq >= config->max_seqs)
        return bs_fail(BS_STATUS_RANGE, "cache: sequence %d: must be 0 … %d", seq, config->max_seqs - 1);
    if (cache->seqs[seq].used) return bs_fail(BS_STATUS_RANGE, "cache: sequence %d: is in use", seq);
    if (start_s < 0 || start_s >= config->seq)
        return bs_fail(BS_STATUS_RANGE, "cache: start_s %d: must be 0 … %d", start_s, config->seq - 1);
    if (n_tokens < 1 || n_tokens > config->max_context)
        return bs_fail(BS_STATUS_RANGE, "cache: n_tokens %" PRId64 ": must be 1 … %" PRId64 ", the context",
                       n_tokens, config->max_context);
    int64_t most;
    if (room_left(cache, start_s, n_tokens, &most) < 0)
        return bs_fail(BS_STATUS_FULL, "cache: %" PRId64 " tokens do not fit beside what is reserved",
                       n_tokens);
    reserve(cache, start_s, n_tokens, 1);
    cache->n_used++;
    bs_cache_seq *s = &cache->seqs[seq];
    *s = (bs_cache_seq){
        .used = true,
        .start_s = start_s,
        .n_reserved = n_tokens,
        .quant_end = cache->n_sink,
        .deal = bs_page_deal_of(config, config->seq_shard, start_s),
        .slots = s->slots,
    };
    return BS_STATUS_OK;
}

void bs_cache_seq_free(bs_cache *cache, int seq)
{
    bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    assert(!cache->step_open);
    if (!s) return;
    int64_t n_owned = bs_page_deal_count(&s->deal, bs_cache_pages_of(s->length));
    for (int64_t i = 0; i < n_owned; i++) {
        bs_page_kind kind = bs_cache_kind(cache, s, bs_page_deal_page(&s->deal, i));
        bs_slot_pool_release(bs_cache_pool_of(cache, kind), s->slots[i]);
    }
    reserve(cache, s->start_s, s->n_reserved, -1);
    cache->n_used--;
    cache->n_prefilling -= s->prefilling;
    s->used = false;
}

/* ---- sharing ----------------------------------------------------------------------------------------- */

/* Pages 0 … end − 1 that are never written again: complete sink pages and quantized ones; of an f16 format,
 * which has no other state to come, all complete pages. */
int64_t bs_cache_sealed_end(const bs_cache *cache, const bs_cache_seq *s)
{
    int64_t complete = s->length / BS_PAGE_TOKENS;
    if (bs_cache_is_f16(&cache->config)) return complete;
    return s->quant_end > cache->n_sink ? s->quant_end : bs_min_i64(cache->n_sink, complete);
}

/* Gives dst the pages 0 … end − 1 of src, which are sealed. */
static void share_pages(bs_cache *cache, const bs_cache_seq *src, bs_cache_seq *dst, int64_t end)
{
    int64_t n = bs_page_deal_count(&src->deal, end);
    for (int64_t i = 0; i < n; i++) {
        bs_page_kind kind = bs_cache_kind(cache, src, bs_page_deal_page(&src->deal, i));
        bs_slot_pool_share(bs_cache_pool_of(cache, kind), src->slots[i]);
        dst->slots[i] = src->slots[i];
    }
    dst->length = dst->end = end * BS_PAGE_TOKENS;
    if (end > cache->n_sink) dst->quant_end = end;
}

/* Copies the pages that may still be written or quantized. A slot that is overwritten whole needs no
 * clearing. */
static bs_status copy_pages(bs_cache *cache, const bs_cache_seq *src, bs_cache_seq *dst)
{
    size_t bytes = cache->memory.f16_slot_bytes;
    int64_t first = bs_page_deal_count(&src->deal, bs_cache_pages_of(dst->length));
    int64_t end = bs_page_deal_count(&src->deal, bs_cache_pages_of(src->length));
    for (int64_t i = first; i < end; i++) {
        bool dirty;
        dst->slots[i] = bs_slot_pool_take(&cache->f16_slots, &dirty);
        dst->length = dst->end = bs_min_i64(src->length,
                                            (bs_page_deal_page(&src->deal, i) + 1) * BS_PAGE_TOKENS);
        BS_TRY(bs_copy_on_device(cache->stream, bs_buffer_at(cache->f16_buffer, dst->slots[i] * bytes),
                                 bs_buffer_at(cache->f16_buffer, src->slots[i] * bytes), bytes));
    }
    dst->length = dst->end = src->length;
    return BS_STATUS_OK;
}

static bs_status find_source(const bs_cache *cache, int src, const bs_cache_seq **out)
{
    *out = bs_cache_used_seq(cache, src);
    if (*out && (*out)->staged)
        return bs_fail(BS_STATUS_RANGE, "cache: sequence %d: is not restored yet", src);
    return *out ? BS_STATUS_OK : bs_fail(BS_STATUS_RANGE, "cache: sequence %d: is not in use", src);
}

bs_status bs_cache_seq_fork(bs_cache *cache, int src, int dst, int64_t n_tokens)
{
    const bs_cache_seq *from;
    BS_TRY(find_source(cache, src, &from));
    /* A reused prompt that is not yet computed again holds pages up to its base. */
    int64_t least = from->in_prompt ? bs_max_i64(from->length, from->prompt_base) : from->length;
    if (n_tokens < least)
        return bs_fail(BS_STATUS_RANGE,
                       "cache: fork of sequence %d: n_tokens %" PRId64 ": must be %" PRId64 " or more", src,
                       n_tokens, least);
    if (from->prefilling && cache->n_prefilling == cache->config.max_prefill_seqs)
        return bs_fail(BS_STATUS_FULL, "cache: fork of sequence %d: would be one more than %d in prefill",
                       src, cache->config.max_prefill_seqs);
    BS_TRY(bs_cache_seq_start(cache, dst, from->start_s, n_tokens));
    bs_cache_seq *to = &cache->seqs[dst];
    to->in_prompt = from->in_prompt;
    to->prompt_base = from->prompt_base;
    to->prefilling = from->prefilling;
    cache->n_prefilling += to->prefilling;
    share_pages(cache, from, to, bs_cache_sealed_end(cache, from));
    bs_status status = copy_pages(cache, from, to);
    if (status != BS_STATUS_OK) bs_cache_seq_free(cache, dst);
    return status;
}

int64_t bs_cache_reusable(const bs_cache *cache, int src, int64_t n)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, src);
    if (!s || s->staged) return 0;
    int64_t kept = bs_min_i64(n, s->length) / BS_PAGE_TOKENS - cache->n_recent;
    return bs_max_i64(0, bs_min_i64(kept, bs_cache_sealed_end(cache, s))) * BS_PAGE_TOKENS;
}

bs_status bs_cache_seq_reuse(bs_cache *cache, int src, int dst, int64_t n, int64_t n_tokens,
                             int64_t *first_pos)
{
    const bs_cache_seq *from;
    BS_TRY(find_source(cache, src, &from));
    if (n < 0 || n > n_tokens)
        return bs_fail(BS_STATUS_RANGE,
                       "cache: reuse of %" PRId64 " tokens: must be 0 … %" PRId64 ", n_tokens", n, n_tokens);
    BS_TRY(bs_cache_seq_start(cache, dst, from->start_s, n_tokens));
    int64_t kept = bs_cache_reusable(cache, src, n) / BS_PAGE_TOKENS;
    bs_cache_seq *to = &cache->seqs[dst];
    share_pages(cache, from, to, kept);
    if (kept > 0) { /* else it is a prompt from the start */
        to->in_prompt = true;
        to->prompt_base = (kept + cache->n_recent) * BS_PAGE_TOKENS;
    }
    *first_pos = kept * BS_PAGE_TOKENS;
    return BS_STATUS_OK;
}
