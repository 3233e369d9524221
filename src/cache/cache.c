/* cache.c: opening and closing the cache, and looking inside. All memory is taken here: two pools and one
 * buffer of tables on the device, a few arrays on the host.
 */
#include "src/cache/cache_private.h"

#include <stdlib.h>

static bs_status alloc_buffer(bs_device *device, uint64_t bytes, const char *what, bs_buffer **out)
{
    return bytes == 0 ? BS_STATUS_OK : bs_buffer_alloc(device, bytes, what, out);
}

static bs_status open_buffers(bs_cache *cache)
{
    const bs_cache_memory *m = &cache->memory;
    BS_TRY(alloc_buffer(cache->device, m->f16_pool_bytes, "f16 pool", &cache->f16_buffer));
    BS_TRY(alloc_buffer(cache->device, m->quant_pool_bytes, "quantized pool", &cache->quant_buffer));
    BS_TRY(alloc_buffer(cache->device, m->table_bytes, "cache tables", &cache->table_buffer));
    cache->pools = (bs_kv_pools){
        .shape = &cache->config.shape,
        .f16_pool = bs_buffer_at(cache->f16_buffer, 0),
        .quant_pool = cache->quant_buffer ? bs_buffer_at(cache->quant_buffer, 0) : NULL,
        .n_f16_slots = m->n_f16_slots,
        .n_quant_slots = m->n_quant_slots,
    };
    return BS_STATUS_OK;
}

static bs_status open_arrays(bs_cache *cache)
{
    const bs_cache_config *config = &cache->config;
    size_t n_seqs = (size_t)config->max_seqs, n_shards = (size_t)config->seq;
    size_t most = (size_t)bs_cache_worst_owned(config, 0, bs_cache_pages_of(config->max_context));
    BS_TRY(bs_slot_pool_open(&cache->f16_slots, cache->memory.n_f16_slots));
    BS_TRY(bs_slot_pool_open(&cache->quant_slots, cache->memory.n_quant_slots));
    cache->seqs = calloc(n_seqs, sizeof *cache->seqs);
    cache->seq_slots = calloc(n_seqs * most, sizeof *cache->seq_slots);
    cache->step_seqs = calloc(n_seqs, sizeof *cache->step_seqs);
    cache->n_context = calloc(n_shards, sizeof *cache->n_context);
    cache->n_pages = calloc(n_shards, sizeof *cache->n_pages);
    if (!cache->seqs || !cache->seq_slots || !cache->step_seqs || !cache->n_context || !cache->n_pages)
        return bs_fail(BS_STATUS_NOMEM, "cache: no memory for the lists of %zu pages", n_seqs * most);
    for (size_t i = 0; i < n_seqs; i++) cache->seqs[i].slots = cache->seq_slots + i * most;
    for (int i = 0; i < 2; i++) {
        void *block;
        BS_TRY(bs_host_alloc(cache->device, cache->memory.table_bytes, "cache tables", &block));
        cache->blocks[i] = block;
    }
    cache->staging = cache->blocks[0];
    return BS_STATUS_OK;
}

bs_status bs_cache_open(bs_device *device, bs_stream *stream, const bs_cache_config *config, bs_cache **out)
{
    bs_status status;
    bs_cache_memory memory;
    BS_TRY(bs_cache_plan_memory(device, config, &memory));
    bs_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return bs_fail(BS_STATUS_NOMEM, "cache: no memory");
    cache->device = device;
    cache->stream = stream;
    cache->config = *config;
    cache->memory = memory;
    if (!bs_cache_is_f16(config)) {
        cache->n_sink = config->shape.format.n_sink;
        cache->n_recent = config->shape.format.n_recent;
    }
    bs_kv_page_bytes page = bs_kv_canonical_bytes(&config->shape.format, config->shape.head_dim);
    uint64_t n_parts = (uint64_t)config->shape.n_layers * (uint64_t)config->shape.n_kv_heads;
    cache->f16_page_bytes = page.f16 * n_parts;
    cache->quant_page_bytes = (page.k + page.k_meta + page.v + page.v_meta) * n_parts;
    BS_TRY_GOTO(open_arrays(cache), err_close);
    BS_TRY_GOTO(open_buffers(cache), err_close);
    bs_cache_bind_tables(cache);
    *out = cache;
    return BS_STATUS_OK;

err_close:
    bs_cache_close(cache);
    return status;
}

void bs_cache_close(bs_cache *cache)
{
    if (!cache) return;
    bs_buffer_free(cache->table_buffer);
    bs_buffer_free(cache->quant_buffer);
    bs_buffer_free(cache->f16_buffer);
    for (int i = 0; i < 2; i++) bs_host_free(cache->device, cache->blocks[i]);
    free(cache->n_pages);
    free(cache->n_context);
    free(cache->step_seqs);
    free(cache->seq_slots);
    free(cache->seqs);
    bs_slot_pool_close(&cache->quant_slots);
    bs_slot_pool_close(&cache->f16_slots);
    free(cache);
}

const bs_kv_pools *bs_cache_pools(const bs_cache *cache)
{
    return &cache->pools;
}

const bs_cache_memory *bs_cache_get_memory(const bs_cache *cache)
{
    return &cache->memory;
}

const bs_cache_tables *bs_cache_get_tables(const bs_cache *cache)
{
    return &cache->tables;
}

int64_t bs_cache_seq_length(const bs_cache *cache, int seq)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    return s ? s->length : -1;
}

int bs_cache_seq_start_shard(const bs_cache *cache, int seq)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    return s ? s->start_s : -1;
}

bs_page_view bs_cache_page(const bs_cache *cache, int seq, int64_t page)
{
    const bs_cache_seq *s = bs_cache_used_seq(cache, seq);
    if (!s || page < 0 || page >= bs_cache_pages_of(s->end) || !bs_page_deal_owns(&s->deal, page))
        return (bs_page_view){.kind = BS_PAGE_NONE};
    bs_page_view view = {bs_cache_kind(cache, s, page), s->slots[bs_page_deal_count(&s->deal, page)], 0};
    const bs_slot_pool *pool = view.kind == BS_PAGE_QUANT ? &cache->quant_slots : &cache->f16_slots;
    view.n_owners = (int)pool->n_owners[view.slot];
    return view;
}

uint32_t bs_cache_free_slots(const bs_cache *cache, bool quantized)
{
    return quantized ? cache->quant_slots.n_free : cache->f16_slots.n_free;
}

uint64_t bs_cache_used_bytes(const bs_cache *cache, uint64_t *as_f16)
{
    uint64_t n_f16 = cache->f16_slots.n_slots - cache->f16_slots.n_free;
    uint64_t n_quant = cache->quant_slots.n_slots - cache->quant_slots.n_free;
    /* A page in use is full of tokens but for the last of each sequence, which is never shared. */
    uint64_t n_tokens = (n_f16 + n_quant) * BS_PAGE_TOKENS;
    for (int i = 0; i < cache->config.max_seqs; i++) {
        const bs_cache_seq *s = &cache->seqs[i];
        int64_t rest = s->used ? s->end % BS_PAGE_TOKENS : 0;
        if (rest && bs_page_deal_owns(&s->deal, s->end / BS_PAGE_TOKENS))
            n_tokens -= BS_PAGE_TOKENS - (uint64_t)rest;
    }
    *as_f16 = n_tokens * (cache->f16_page_bytes / BS_PAGE_TOKENS);
    return n_f16 * cache->f16_page_bytes + n_quant * cache->quant_page_bytes;
}
