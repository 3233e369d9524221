/* step.c: one step: which pages are quantized, which slots its tokens get (DESIGN §4, When a page is
 * quantized).
 *
 * A step is checked whole before anything changes, and what is checked is the same on every rank: positions,
 * reservations and the number of sequences in prefill. That this shard's pools then suffice follows
 * (plan_memory.c). A page to be quantized changes hands at the beginning of the step: its place in the list
 * gets the quantized slot, and the f16 slot waits in the quantize list until the step's end.
 */
#include "src/base/checked.h"
#include "src/cache/cache_private.h"

#include <assert.h>
#include <inttypes.h>

/* ---- checks ------------------------------------------------------------------------------------------ */

static bs_status check_position(const bs_cache *cache, const bs_cache_step_seq *t, const bs_cache_seq *s)
{
    int64_t chunk = cache->config.chunk_tokens;
    if (t->pos0 != s->length)
        return bs_fail(BS_STATUS_RANGE,
                       "cache step: sequence %d: pos0 %" PRId64 ": must be %" PRId64 ", its length", t->seq,
                       t->pos0, s->length);
    if (t->prefill && t->pos0 / chunk != (t->pos0 + t->n_tokens - 1) / chunk)
        return bs_fail(BS_STATUS_RANGE,
                       "cache step: sequence %d: n_tokens %d from %" PRId64 ": crosses a chunk of %d", t->seq,
                       t->n_tokens, t->pos0, cache->config.chunk_tokens);
    if (!t->prefill && t->n_tokens > BS_CACHE_MAX_DECODE_TOKENS)
        return bs_fail(BS_STATUS_RANGE, "cache step: sequence %d: n_tokens %d: must be 1 … %d in decode",
                       t->seq, t->n_tokens, BS_CACHE_MAX_DECODE_TOKENS);
    if (!t->prefill && s->in_prompt && t->pos0 < s->prompt_base)
        return bs_fail(BS_STATUS_RANGE,
                       "cache step: sequence %d: decode at %" PRId64 ": must be prefill up to %" PRId64,
                       t->seq, t->pos0, s->prompt_base);
    if (t->pos0 + t->n_tokens > s->n_reserved)
        return bs_fail(BS_STATUS_FULL,
                       "cache step: sequence %d: %" PRId64 " tokens: only %" PRId64 " are reserved", t->seq,
                       t->pos0 + t->n_tokens, s->n_reserved);
    return BS_STATUS_OK;
}

static bs_status check_step(bs_cache *cache, const bs_cache_step_seq *seqs, int n_seqs)
{
    const bs_cache_config *config = &cache->config;
    int64_t n_tokens = 0;
    int n_prefilling = cache->n_prefilling;
    if (cache->step_open) return bs_fail(BS_STATUS_RANGE, "cache step: the step before has not ended");
    if (n_seqs < 0 || n_seqs > config->max_seqs)
        return bs_fail(BS_STATUS_RANGE, "cache step: n_seqs %d: must be 0 … %d", n_seqs, config->max_seqs);
    cache->step++; /* a number no sequence bears yet */
    for (int i = 0; i < n_seqs; i++) {
        bs_cache_seq *s = bs_cache_used_seq(cache, seqs[i].seq);
        if (!s || s->staged)
            return bs_fail(BS_STATUS_RANGE, "cache step: sequence %d: is not %s", seqs[i].seq,
                           s ? "restored yet" : "in use");
        if (s->step == cache->step)
            return bs_fail(BS_STATUS_RANGE, "cache step: sequence %d: twice", seqs[i].seq);
        s->step = cache->step;
        n_tokens += seqs[i].n_tokens;
        if (seqs[i].n_tokens < 1 || n_tokens > config->max_step_tokens)
            return bs_fail(BS_STATUS_RANGE,
                           "cache step: sequence %d: n_tokens %d: must be 1 … what is left of %d",
                           seqs[i].seq, seqs[i].n_tokens, config->max_step_tokens);
        BS_TRY(check_position(cache, &seqs[i], s));
        n_prefilling += seqs[i].prefill - s->prefilling;
    }
    if (n_prefilling > config->max_prefill_seqs)
        return bs_fail(BS_STATUS_FULL, "cache step: %d sequences in prefill: must be %d or fewer",
                       n_prefilling, config->max_prefill_seqs);
    return BS_STATUS_OK;
}

/* ---- changes ----------------------------------------------------------------------------------------- */

void bs_cache_quantize_pages(bs_cache *cache, bs_cache_seq *s, int64_t new_end)
{
    int32_t *from = bs_cache_staging(cache, BS_TABLE_QUANTIZE_FROM);
    int32_t *to = bs_cache_staging(cache, BS_TABLE_QUANTIZE_TO);
    int32_t *clear = bs_cache_staging(cache, BS_TABLE_CLEAR_QUANT);
    int64_t end = bs_page_deal_count(&s->deal, new_end);
    assert(new_end * BS_PAGE_TOKENS <= s->length);
    for (int64_t i = bs_page_deal_count(&s->deal, s->quant_end); i < end; i++) {
        bool dirty;
        assert(cache->f16_slots.n_owners[s->slots[i]] == 1);
        from[cache->tables.n_quantize] = (int32_t)s->slots[i];
        s->slots[i] = bs_slot_pool_take(&cache->quant_slots, &dirty);
        to[cache->tables.n_quantize++] = (int32_t)s->slots[i];
        if (dirty) clear[cache->n_clear_quant++] = (int32_t)s->slots[i];
    }
    s->quant_end = new_end;
}

/* f16 slots for this shard's pages that begin with this step's tokens. */
static void add_pages(bs_cache *cache, bs_cache_seq *s)
{
    int32_t *clear = bs_cache_staging(cache, BS_TABLE_CLEAR_F16);
    int64_t end = bs_page_deal_count(&s->deal, bs_cache_pages_of(s->end));
    for (int64_t i = bs_page_deal_count(&s->deal, bs_cache_pages_of(s->length)); i < end; i++) {
        bool dirty;
        s->slots[i] = bs_slot_pool_take(&cache->f16_slots, &dirty);
        if (dirty) clear[cache->n_clear_f16++] = (int32_t)s->slots[i];
    }
}

static void begin_seq(bs_cache *cache, const bs_cache_step_seq *t)
{
    bs_cache_seq *s = &cache->seqs[t->seq];
    int64_t chunk = cache->config.chunk_tokens, base = t->pos0;
    if (t->prefill) {
        if (!s->in_prompt) s->prompt_base = t->pos0;
        base = bs_max_i64(s->prompt_base, t->pos0 / chunk * chunk);
    }
    cache->n_prefilling += t->prefill - s->prefilling;
    s->in_prompt = s->prefilling = t->prefill;
    s->end = t->pos0 + t->n_tokens;
    int64_t new_end = base / BS_PAGE_TOKENS - cache->n_recent;
    if (!bs_cache_is_f16(&cache->config) && new_end > s->quant_end)
        bs_cache_quantize_pages(cache, s, new_end);
    add_pages(cache, s);
}

bs_status bs_cache_step_begin(bs_cache *cache, bs_stream *stream, const bs_cache_step_seq *seqs, int n_seqs)
{
    BS_TRY(check_step(cache, seqs, n_seqs));
    cache->staging = cache->blocks[cache->staging == cache->blocks[0]];
    cache->tables.n_quantize = cache->tables.n_step_tokens = 0;
    cache->n_clear_f16 = cache->n_clear_quant = 0;
    cache->n_step_seqs = n_seqs;
    cache->step_open = true;
    for (int i = 0; i < n_seqs; i++) {
        cache->step_seqs[i] = seqs[i];
        cache->tables.n_step_tokens += seqs[i].n_tokens;
        begin_seq(cache, &seqs[i]);
    }
    return bs_cache_send_tables(cache, stream);
}

bs_status bs_cache_step_end(bs_cache *cache, bs_stream *stream)
{
    if (!cache->step_open) return bs_fail(BS_STATUS_RANGE, "cache step: none has begun");
    const int32_t *from = bs_cache_staging(cache, BS_TABLE_QUANTIZE_FROM);
    for (int i = 0; i < cache->tables.n_quantize; i++)
        bs_slot_pool_release(&cache->f16_slots, (uint32_t)from[i]);
    for (int i = 0; i < cache->n_step_seqs; i++) {
        bs_cache_seq *s = &cache->seqs[cache->step_seqs[i].seq];
        s->length = s->end;
    }
    cache->step_open = false;
    return BS_STATUS_OK;
}
