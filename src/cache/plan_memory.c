/* plan_memory.c: which pages a shard owns, and how many slots of each kind that can be at worst.
 *
 * Stripes of S pages are dealt to `seq` shards in turn, so of w consecutive pages one shard owns at most
 * S·⌊w / (S·seq)⌋ + min(w mod (S·seq), S), wherever the window begins. Every pool is sized by such windows:
 *
 * Context pool (quantized slots; f16 slots of an f16 format). k sequences share `total` pages. The first S
 * pages of a window may all be one shard's, each later stripe of its costs S·seq pages, so the worst split
 * gives every sequence its first S pages and the rest to any of them. Starts may then be chosen in any way: a
 * set of sequences within total_tokens always fits. The price over an even share is at most one stripe a
 * sequence.
 *
 * f16 pool of quantized formats. With c = C/128 pages a chunk, the f16 pages of one sequence during a step,
 * its sink apart, are consecutive, and at most
 *  - in decode: recent + open + one in transit (or the next one, into which a step's ≤ 64 tokens reach);
 *  - in prefill: recent + the chunk before, in transit, + this chunk;
 *  - in a prompt's first step and in the first decode after it: recent + one chunk + 1.
 * With at most m sequences in prefill between steps, the worst step has j of them go over to decode while j
 * others begin; it is worst at the least or the greatest j. (Two windows of the third kind can be more than
 * one of each other kind: what a shard owns of windows does not add up.)
 */
#include "src/base/checked.h"
#include "src/cache/cache_private.h"

#include <inttypes.h>

bs_page_deal bs_page_deal_of(const bs_cache_config *config, int shard, int start_s)
{
    int first = (shard - start_s) % config->seq;
    return (bs_page_deal){config->stripe_pages, config->seq, first < 0 ? first + config->seq : first};
}

int64_t bs_page_deal_count(const bs_page_deal *deal, int64_t end)
{
    int64_t stripe = deal->stripe_pages, cycle = stripe * deal->seq;
    int64_t in_last = end % cycle - stripe * deal->first_stripe;
    return end / cycle * stripe + bs_max_i64(0, bs_min_i64(in_last, stripe));
}

int64_t bs_page_deal_page(const bs_page_deal *deal, int64_t i)
{
    int64_t stripe = deal->stripe_pages;
    return (i / stripe * deal->seq + deal->first_stripe) * stripe + i % stripe;
}

bool bs_page_deal_owns(const bs_page_deal *deal, int64_t page)
{
    return page / deal->stripe_pages % deal->seq == deal->first_stripe;
}

int bs_cache_page_owner(int64_t page, int start_s, int stripe_pages, int seq)
{
    return (int)((page / stripe_pages + start_s) % seq);
}

int64_t bs_cache_worst_owned(const bs_cache_config *config, int64_t first, int64_t end)
{
    int64_t worst = 0;
    for (int start = 0; start < config->seq; start++) {
        bs_page_deal deal = bs_page_deal_of(config, 0, start);
        worst = bs_max_i64(worst, bs_page_deal_count(&deal, end) - bs_page_deal_count(&deal, first));
    }
    return worst;
}

/* The same for a window of n pages that may begin anywhere. */
static int64_t worst_window(const bs_cache_config *config, int64_t n)
{
    int64_t stripe = config->stripe_pages, cycle = stripe * config->seq;
    return n / cycle * stripe + bs_min_i64(n % cycle, stripe);
}

bs_page_range bs_cache_context_pages(const bs_cache_config *config, int64_t n_tokens)
{
    if (bs_cache_is_f16(config)) return (bs_page_range){0, bs_cache_pages_of(n_tokens)};
    const bs_kv_format *format = &config->shape.format;
    int64_t end = n_tokens / BS_PAGE_TOKENS - format->n_recent;
    return (bs_page_range){format->n_sink, bs_max_i64(format->n_sink, end)};
}

static int64_t worst_context_slots(const bs_cache_config *config)
{
    bs_page_range longest = bs_cache_context_pages(config, config->max_context);
    int64_t k = config->max_seqs, stripe = config->stripe_pages, total;
    if (bs_cache_is_f16(config)) /* Σ ⌈n/128⌉ */
        total = (config->total_tokens + k * (BS_PAGE_TOKENS - 1)) / BS_PAGE_TOKENS;
    else /* Σ (⌊n/128⌋ − recent − sink) over those that quantize anything, one at least */
        total = bs_cache_context_pages(config, config->total_tokens).end - longest.first;
    total = bs_min_i64(total, k * (longest.end - longest.first));
    int64_t slots = bs_min_i64(total, k * stripe);
    int64_t rest = total - slots, cycle = stripe * config->seq;
    slots += rest / cycle * stripe + bs_max_i64(0, rest % cycle - (cycle - stripe));
    return bs_min_i64(slots, k * bs_cache_worst_owned(config, longest.first, longest.end));
}

static int64_t worst_f16_slots(const bs_cache_config *config)
{
    const bs_kv_format *format = &config->shape.format;
    int64_t chunk = config->chunk_tokens / BS_PAGE_TOKENS, recent = format->n_recent;
    int64_t sink = bs_cache_worst_owned(config, 0, format->n_sink);
    int64_t most = bs_cache_worst_owned(config, 0, bs_cache_pages_of(config->max_context));
    int64_t decode = bs_min_i64(most, sink + worst_window(config, recent + 2));
    int64_t change = bs_min_i64(most, sink + worst_window(config, recent + chunk + 1));
    int64_t prefill = bs_min_i64(most, sink + worst_window(config, recent + 2 * chunk));
    prefill = bs_max_i64(prefill, change);
    int64_t n = config->max_seqs, m = config->max_prefill_seqs, n_change = bs_min_i64(m, n - m);
    return m * prefill + (n - m) * decode + bs_max_i64(0, n_change * (2 * change - prefill - decode));
}

static bs_status check_field(const char *field, int64_t value, int64_t min, int64_t max)
{
    if (value >= min && value <= max) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_RANGE, "cache: %s %" PRId64 ": must be %" PRId64 " … %" PRId64, field, value,
                   min, max);
}

static bs_status check_config(const bs_cache_config *c)
{
    const bs_kv_format *format = &c->shape.format;
    BS_TRY(check_field("seq", c->seq, 1, 1 << 20));
    BS_TRY(check_field("seq_shard", c->seq_shard, 0, c->seq - 1));
    BS_TRY(check_field("stripe_pages", c->stripe_pages, 1, 1 << 20));
    BS_TRY(check_field("chunk_tokens", c->chunk_tokens, BS_PAGE_TOKENS, 1 << 24));
    if (c->chunk_tokens % BS_PAGE_TOKENS != 0)
        return bs_fail(BS_STATUS_RANGE, "cache: chunk_tokens %d: must be a multiple of %d", c->chunk_tokens,
                       BS_PAGE_TOKENS);
    BS_TRY(check_field("max_seqs", c->max_seqs, 1, 1 << 16));
    BS_TRY(check_field("max_prefill_seqs", c->max_prefill_seqs, 1, c->max_seqs));
    BS_TRY(check_field("max_step_tokens", c->max_step_tokens, 1, 1 << 24));
    BS_TRY(check_field("max_context", c->max_context, 1, INT32_MAX));
    BS_TRY(check_field("total_tokens", c->total_tokens, 1, c->max_seqs * c->max_context));
    BS_TRY(check_field("sink", format->n_sink, 0, 1 << 16));
    return check_field("recent", format->n_recent, 0, 1 << 16);
}

bs_status bs_cache_plan_memory(const bs_device *device, const bs_cache_config *config, bs_cache_memory *out)
{
    bs_cache_memory m = {0};
    BS_TRY(check_config(config));
    BS_TRY(bs_kv_slot_bytes(device, &config->shape, &m.f16_slot_bytes, &m.quant_slot_bytes));
    int64_t context = worst_context_slots(config);
    int64_t n_f16 = bs_cache_is_f16(config) ? context : worst_f16_slots(config);
    int64_t n_quant = bs_cache_is_f16(config) ? 0 : context;
    /* Slots and places in page lists are i32 on the device. */
    if (n_f16 + n_quant > INT32_MAX || !bs_mul_u64((uint64_t)n_f16, m.f16_slot_bytes, &m.f16_pool_bytes) ||
        !bs_mul_u64((uint64_t)n_quant, m.quant_slot_bytes, &m.quant_pool_bytes))
        return bs_fail(BS_STATUS_RANGE, "cache: total_tokens %" PRId64 ": more pages than can be numbered",
                       config->total_tokens);
    m.n_f16_slots = (uint32_t)n_f16;
    m.n_quant_slots = (uint32_t)n_quant;
    m.max_pages = (int)(n_f16 + n_quant);
    size_t table_at[BS_TABLE_COUNT + 1];
    m.table_bytes = bs_cache_layout_tables(config, &m, table_at) * sizeof(int32_t);
    *out = m;
    return BS_STATUS_OK;
}
