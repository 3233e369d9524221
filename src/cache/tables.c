/* tables.c: the device tables of a step: filled in host staging, sent in a few copies.
 *
 * One buffer holds all tables. Its head (rows of sequences, rows of tokens) is small and sent whole, unused
 * rows too, so that a CUDA graph made for the largest step finds what it needs; of each list behind it the
 * part in use is sent.
 */
#include "src/base/checked.h"
#include "src/cache/cache_private.h"

/* ---- layout ------------------------------------------------------------------------------------------ */

size_t bs_cache_layout_tables(const bs_cache_config *config, const bs_cache_memory *memory,
                              size_t table_at[BS_TABLE_COUNT + 1])
{
    enum { ALIGN = 32 }; /* entries: 128 bytes */
    size_t n_seqs = (size_t)config->max_seqs, n_tokens = (size_t)config->max_step_tokens;
    size_t n_pages = (size_t)memory->max_pages;
    /* Each sequence of a step of T tokens begins at most 1 + its tokens/128 pages. */
    size_t n_new = (size_t)bs_min_i64(memory->n_f16_slots,
                                      config->max_step_tokens / BS_PAGE_TOKENS + config->max_seqs);
    size_t n_quantize = (size_t)bs_min_i64(memory->n_f16_slots, memory->n_quant_slots);
    const size_t length[BS_TABLE_COUNT] = {
        [BS_TABLE_Q_START] = n_seqs + 1,       [BS_TABLE_Q_POS0] = n_seqs,
        [BS_TABLE_PAGE_START] = n_seqs + 1,    [BS_TABLE_N_SINK] = n_seqs,
        [BS_TABLE_N_QUANT] = n_seqs,           [BS_TABLE_N_F16] = n_seqs,
        [BS_TABLE_N_TOKENS] = n_seqs,          [BS_TABLE_TOKEN_POS] = n_tokens,
        [BS_TABLE_TOKEN_SLOT] = n_tokens,      [BS_TABLE_TOKEN_PAGE] = n_tokens,
        [BS_TABLE_PAGE_SLOT] = n_pages,        [BS_TABLE_PAGE_INDEX] = n_pages,
        [BS_TABLE_QUANTIZE_FROM] = n_quantize, [BS_TABLE_QUANTIZE_TO] = n_quantize,
        [BS_TABLE_CLEAR_F16] = n_new,          [BS_TABLE_CLEAR_QUANT] = n_quantize,
    };
    size_t at = 0;
    for (int i = 0; i < BS_TABLE_COUNT; i++) {
        table_at[i] = at;
        at += (length[i] + ALIGN - 1) / ALIGN * ALIGN;
    }
    table_at[BS_TABLE_COUNT] = at;
    return at;
}

static void *device_table(const bs_cache *cache, bs_cache_table table)
{
    return bs_buffer_at(cache->table_buffer, cache->table_at[table] * sizeof(int32_t));
}

void bs_cache_bind_tables(bs_cache *cache)
{
    bs_cache_layout_tables(&cache->config, &cache->memory, cache->table_at);
    cache->tables = (bs_cache_tables){
        .q_start = device_table(cache, BS_TABLE_Q_START),
        .q_pos0 = device_table(cache, BS_TABLE_Q_POS0),
        .page_start = device_table(cache, BS_TABLE_PAGE_START),
        .page_slot = device_table(cache, BS_TABLE_PAGE_SLOT),
        .page_index = device_table(cache, BS_TABLE_PAGE_INDEX),
        .n_sink = device_table(cache, BS_TABLE_N_SINK),
        .n_quant = device_table(cache, BS_TABLE_N_QUANT),
        .n_f16 = device_table(cache, BS_TABLE_N_F16),
        .n_tokens = device_table(cache, BS_TABLE_N_TOKENS),
        .max_seqs = cache->config.max_seqs,
        .max_pages = cache->memory.max_pages,
        .token_pos = device_table(cache, BS_TABLE_TOKEN_POS),
        .token_slot = device_table(cache, BS_TABLE_TOKEN_SLOT),
        .token_page = device_table(cache, BS_TABLE_TOKEN_PAGE),
        .quantize_from = device_table(cache, BS_TABLE_QUANTIZE_FROM),
        .quantize_to = device_table(cache, BS_TABLE_QUANTIZE_TO),
    };
}

/* ---- filling ----------------------------------------------------------------------------------------- */

/* Appends this shard's pages of a sequence to the page lists, from entry `at` on; gives the end. The
 * sequence's own list is in the order wanted: sink, quantized, f16. */
static int32_t fill_pages(bs_cache *cache, const bs_cache_seq *s, int32_t at)
{
    int32_t *slot = bs_cache_staging(cache, BS_TABLE_PAGE_SLOT);
    int32_t *index = bs_cache_staging(cache, BS_TABLE_PAGE_INDEX);
    int64_t n = bs_page_deal_count(&s->deal, bs_cache_pages_of(s->end));
    for (int64_t i = 0; i < n; i++, at++) {
        slot[at] = (int32_t)s->slots[i];
        index[at] = (int32_t)bs_page_deal_page(&s->deal, i);
    }
    return at;
}

/* Row of one sequence; its pages and tokens begin where the row before ended. */
static void fill_row(bs_cache *cache, int row)
{
    const bs_cache_step_seq *t = &cache->step_seqs[row];
    const bs_cache_seq *s = &cache->seqs[t->seq];
    int32_t *q_start = bs_cache_staging(cache, BS_TABLE_Q_START) + row;
    int32_t *page_start = bs_cache_staging(cache, BS_TABLE_PAGE_START) + row;
    q_start[1] = q_start[0] + t->n_tokens;
    page_start[1] = fill_pages(cache, s, page_start[0]);

    int64_t pages = bs_cache_pages_of(s->end), sink = bs_min_i64(cache->n_sink, pages);
    int64_t quant = bs_cache_is_f16(&cache->config) ? 0 : bs_min_i64(s->quant_end, pages);
    int32_t n_sink = (int32_t)bs_page_deal_count(&s->deal, sink);
    int32_t n_quant = (int32_t)bs_page_deal_count(&s->deal, quant) - n_sink;
    bs_cache_staging(cache, BS_TABLE_N_SINK)[row] = n_sink;
    bs_cache_staging(cache, BS_TABLE_N_QUANT)[row] = n_quant;
    bs_cache_staging(cache, BS_TABLE_N_F16)[row] = page_start[1] - page_start[0] - n_sink - n_quant;
    bs_cache_staging(cache, BS_TABLE_Q_POS0)[row] = (int32_t)t->pos0;
    bs_cache_staging(cache, BS_TABLE_N_TOKENS)[row] = (int32_t)s->end;
}

static void fill_tokens(bs_cache *cache, int row)
{
    const bs_cache_step_seq *t = &cache->step_seqs[row];
    const bs_cache_seq *s = &cache->seqs[t->seq];
    int first = bs_cache_staging(cache, BS_TABLE_Q_START)[row];
    int32_t *pos = bs_cache_staging(cache, BS_TABLE_TOKEN_POS) + first;
    int32_t *slot = bs_cache_staging(cache, BS_TABLE_TOKEN_SLOT) + first;
    int32_t *place = bs_cache_staging(cache, BS_TABLE_TOKEN_PAGE) + first;
    for (int i = 0; i < t->n_tokens; i++) {
        int64_t page = (t->pos0 + i) / BS_PAGE_TOKENS;
        pos[i] = (int32_t)(t->pos0 + i);
        place[i] = (int32_t)((t->pos0 + i) % BS_PAGE_TOKENS);
        if (i > 0 && place[i] != 0) /* the page of the token before */
            slot[i] = slot[i - 1];
        else
            slot[i] = bs_page_deal_owns(&s->deal, page)
                          ? (int32_t)s->slots[bs_page_deal_count(&s->deal, page)]
                          : -1;
    }
}

static void fill_unused(bs_cache *cache)
{
    int n_seqs = cache->n_step_seqs, n_tokens = cache->tables.n_step_tokens;
    for (int row = n_seqs; row < cache->config.max_seqs; row++) {
        bs_cache_staging(cache, BS_TABLE_Q_START)[row + 1] = n_tokens;
        bs_cache_staging(cache, BS_TABLE_PAGE_START)[row + 1] = bs_cache_staging(cache,
                                                                                 BS_TABLE_PAGE_START)[n_seqs];
        bs_cache_staging(cache, BS_TABLE_N_SINK)[row] = 0;
        bs_cache_staging(cache, BS_TABLE_N_QUANT)[row] = 0;
        bs_cache_staging(cache, BS_TABLE_N_F16)[row] = 0;
        bs_cache_staging(cache, BS_TABLE_Q_POS0)[row] = -1;
        bs_cache_staging(cache, BS_TABLE_N_TOKENS)[row] = 0;
    }
    for (int i = n_tokens; i < cache->config.max_step_tokens; i++) {
        bs_cache_staging(cache, BS_TABLE_TOKEN_POS)[i] = -1;
        bs_cache_staging(cache, BS_TABLE_TOKEN_SLOT)[i] = -1;
        bs_cache_staging(cache, BS_TABLE_TOKEN_PAGE)[i] = 0;
    }
}

int bs_cache_step_pages(const bs_cache *cache, int row, int n)
{
    const int32_t *start = cache->staging + cache->table_at[BS_TABLE_PAGE_START];
    return (int)(start[row + n] - start[row]);
}

/* ---- sending ----------------------------------------------------------------------------------------- */

bs_status bs_cache_send_table(bs_cache *cache, bs_stream *stream, bs_cache_table table, size_t n)
{
    if (n == 0) return BS_STATUS_OK;
    return bs_copy_to_device(stream, device_table(cache, table), bs_cache_staging(cache, table),
                             n * sizeof(int32_t));
}

static bs_status clear(bs_cache *cache, bs_stream *stream, bool quantized, int n)
{
    bs_cache_table table = quantized ? BS_TABLE_CLEAR_QUANT : BS_TABLE_CLEAR_F16;
    if (n == 0) return BS_STATUS_OK;
    BS_TRY(bs_cache_send_table(cache, stream, table, (size_t)n));
    return bs_op_clear_slots(stream, &(bs_clear_slots_args){.pools = &cache->pools,
                                                            .quantized = quantized,
                                                            .n = n,
                                                            .slot = device_table(cache, table)});
}

bs_status bs_cache_send_tables(bs_cache *cache, bs_stream *stream)
{
    bs_cache_staging(cache, BS_TABLE_Q_START)[0] = bs_cache_staging(cache, BS_TABLE_PAGE_START)[0] = 0;
    for (int row = 0; row < cache->n_step_seqs; row++) {
        fill_row(cache, row);
        fill_tokens(cache, row);
    }
    fill_unused(cache);
    size_t n_pages = (size_t)bs_cache_staging(cache, BS_TABLE_PAGE_START)[cache->n_step_seqs];
    size_t n_quantize = (size_t)cache->tables.n_quantize;
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_Q_START, cache->table_at[BS_TABLE_PAGE_SLOT]));
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_PAGE_SLOT, n_pages));
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_PAGE_INDEX, n_pages));
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_QUANTIZE_FROM, n_quantize));
    BS_TRY(bs_cache_send_table(cache, stream, BS_TABLE_QUANTIZE_TO, n_quantize));
    BS_TRY(clear(cache, stream, false, cache->n_clear_f16));
    return clear(cache, stream, true, cache->n_clear_quant);
}
