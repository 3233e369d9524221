/* stage.c: what snapshots ask of the cache: a sequence's state, its pages, pins on them, and sequences that come from
 * elsewhere.
 *
 * A staged sequence has its slots and its reservation, but no step may use it before it is published: a restore that
 * fails on one rank drops it on all, and nothing has changed. Its f16 pages are checked against what plan_memory.c sized
 * the pool for, so that taking them cannot fail.
 */
#include "src/base/checked.h"
#include "src/cache/cache_private.h"

#include <assert.h>
#include <inttypes.h>

bs_status bs_cache_seq_get_state(const bs_cache *cache, int seq, bs_cache_seq_state *out)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    if (!s || s->staged || cache->step_open)
        return bs_fail(BS_STATUS_RANGE, "cache: sequence %d: is not in use between two steps", seq);
    *out = (bs_cache_seq_state){.length = s->length,
                                .quant_end = bs_cache_is_f16(&cache->config) ? 0 : s->quant_end,
                                .prompt_base = s->in_prompt ? s->prompt_base : 0,
                                .start_s = s->start_s,
                                .in_prompt = s->in_prompt,
                                .prefilling = s->prefilling};
    return BS_STATUS_OK;
}

int64_t bs_cache_list_pages(const bs_cache *cache, int seq, int64_t first, int64_t end,
                            bs_cache_page_ref *out)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    if (!s) return 0;
    end = bs_min_i64(end, bs_cache_pages_of(s->length));
    if (end <= first) return 0;
    int64_t from = bs_page_deal_count(&s->deal, first), to = bs_page_deal_count(&s->deal, end);
    for (int64_t i = from; i < to; i++) {
        int64_t page = bs_page_deal_page(&s->deal, i);
        out[i - from] = (bs_cache_page_ref){page, bs_cache_kind(cache, s, page), s->slots[i]};
    }
    return to - from;
}

void bs_cache_pin(bs_cache *cache, const bs_cache_page_ref *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) bs_slot_pool_share(bs_cache_pool_of(cache, pages[i].kind), pages[i].slot);
}

void bs_cache_unpin(bs_cache *cache, const bs_cache_page_ref *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        bs_slot_pool_release(bs_cache_pool_of(cache, pages[i].kind), pages[i].slot);
}

/* Whether a sequence of this cache could be in this state between two steps. */
static bs_status check_state(const bs_cache *cache, const bs_cache_seq_state *t)
{
    const bs_cache_config *config = &cache->config;
    const int64_t n_chunk = config->chunk_tokens / BS_PAGE_TOKENS;
    const bool is_f16 = bs_cache_is_f16(config);
    if (t->length < 0 || t->length > config->max_context)
        return bs_fail(BS_STATUS_RANGE, "cache: restored length %" PRId64 ": must be 0 … %" PRId64, t->length,
                       config->max_context);
    if (is_f16 ? t->quant_end != 0
               : t->quant_end < cache->n_sink ||
                     (t->quant_end > cache->n_sink && t->quant_end > t->length / BS_PAGE_TOKENS))
        return bs_fail(BS_STATUS_RANGE, "cache: restored quant_end %" PRId64 ": not of %" PRId64 " tokens",
                       t->quant_end, t->length);
    if (t->prompt_base < 0 || t->prompt_base > config->max_context || (t->prefilling && !t->in_prompt))
        return bs_fail(BS_STATUS_RANGE, "cache: restored prompt_base %" PRId64 ": must be 0 … %" PRId64,
                       t->prompt_base, config->max_context);
    const int64_t n_f16 = bs_cache_pages_of(t->length) - bs_max_i64(t->quant_end, cache->n_sink);
    const int64_t most = cache->n_recent + (t->prefilling ? n_chunk + 1 : 2);
    if (!is_f16 && n_f16 > most)
        return bs_fail(BS_STATUS_RANGE, "cache: restored %" PRId64 " pages of f16: at most %" PRId64, n_f16,
                       most);
    if (t->prefilling && cache->n_prefilling == config->max_prefill_seqs)
        return bs_fail(BS_STATUS_FULL, "cache: a restored sequence would be one more than %d in prefill",
                       config->max_prefill_seqs);
    return BS_STATUS_OK;
}

bs_status bs_cache_seq_stage(bs_cache *cache, int seq, int64_t n_tokens, const bs_cache_seq_state *state)
{
    BS_TRY(check_state(cache, state));
    if (n_tokens < bs_max_i64(state->length, state->in_prompt ? state->prompt_base : 0))
        return bs_fail(BS_STATUS_RANGE, "cache: restore of %" PRId64 " tokens into %" PRId64 " reserved",
                       bs_max_i64(state->length, state->prompt_base), n_tokens);
    BS_TRY(bs_cache_seq_start(cache, seq, state->start_s, n_tokens));
    bs_cache_seq *s = &cache->seqs[seq];
    s->staged = true;
    s->in_prompt = state->in_prompt;
    s->prompt_base = state->prompt_base;
    s->prefilling = state->prefilling;
    cache->n_prefilling += s->prefilling;
    s->length = s->end = state->length;
    if (!bs_cache_is_f16(&cache->config)) s->quant_end = state->quant_end;
    const int64_t n = bs_page_deal_count(&s->deal, bs_cache_pages_of(s->length));
    for (int64_t i = 0; i < n; i++) {
        bool dirty; /* overwritten whole by whoever fills it */
        bs_page_kind kind = bs_cache_kind(cache, s, bs_page_deal_page(&s->deal, i));
        s->slots[i] = bs_slot_pool_take(bs_cache_pool_of(cache, kind), &dirty);
    }
    return BS_STATUS_OK;
}

void bs_cache_seq_publish(bs_cache *cache, int seq)
{
    bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    assert(s && s->staged);
    s->staged = false;
}
