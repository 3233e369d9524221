/* cache_group.c: the caches of all sequence shards in one process. */
#include "tests/unit/cache_group.h"

#include <stdio.h>

void group_assert_ok(bs_status status, const char *call, const char *file, int line)
{
    if (status == BS_STATUS_OK) return;
    fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, call, bs_status_text(status), bs_error_message());
    _fail(file, line);
}

bs_cache_config group_config(const char *format, int seq)
{
    bs_cache_config config = {
        .shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 64},
        .seq = seq,
        .stripe_pages = 8,
        .chunk_tokens = 2048,
        .max_seqs = 1,
        .max_prefill_seqs = 1,
        .max_step_tokens = 2048,
        .max_context = 8192,
        .total_tokens = 8192,
    };
    assert_ok(bs_kv_format_parse(format, &config.shape.format));
    return config;
}

void group_open(group *g, const bs_cache_config *config)
{
    *g = (group){.config = *config};
    const bs_device_config device = {.kind = BS_DEVICE_CPU, .n_threads = 1, .isa = BS_ISA_AUTO};
    assert_ok(bs_device_open(&device, &g->device));
    assert_ok(bs_stream_create(g->device, &g->stream));
    for (int shard = 0; shard < config->seq; shard++) {
        bs_cache_config mine = *config;
        mine.seq_shard = shard;
        assert_ok(bs_cache_open(g->device, g->stream, &mine, &g->cache[shard]));
    }
}

void group_close(group *g)
{
    for (int shard = 0; shard < g->config.seq; shard++) bs_cache_close(g->cache[shard]);
    bs_stream_destroy(g->stream);
    bs_device_close(g->device);
}

/* All shards say the same. */
static bs_status agree(int shard, bs_status first, bs_status status)
{
    if (shard > 0) assert_int_equal(first, status);
    return status;
}

bs_status group_start(group *g, int seq, int start_s, int64_t n_tokens)
{
    bs_status status = BS_STATUS_OK;
    for (int i = 0; i < g->config.seq; i++)
        status = agree(i, status, bs_cache_seq_start(g->cache[i], seq, start_s, n_tokens));
    return status;
}

bs_status group_fork(group *g, int src, int dst, int64_t n_tokens)
{
    bs_status status = BS_STATUS_OK;
    for (int i = 0; i < g->config.seq; i++)
        status = agree(i, status, bs_cache_seq_fork(g->cache[i], src, dst, n_tokens));
    return status;
}

bs_status group_reuse(group *g, int src, int dst, int64_t n, int64_t n_tokens, int64_t *first_pos)
{
    bs_status status = BS_STATUS_OK;
    int64_t before = *first_pos;
    for (int i = 0; i < g->config.seq; i++) {
        int64_t pos = before;
        status = agree(i, status, bs_cache_seq_reuse(g->cache[i], src, dst, n, n_tokens, &pos));
        if (i > 0) assert_int_equal(pos, *first_pos);
        *first_pos = pos;
    }
    return status;
}

void group_free(group *g, int seq)
{
    for (int i = 0; i < g->config.seq; i++) bs_cache_seq_free(g->cache[i], seq);
}

bs_status group_begin(group *g, const bs_cache_step_seq *seqs, int n_seqs)
{
    bs_status status = BS_STATUS_OK;
    for (int i = 0; i < g->config.seq; i++)
        status = agree(i, status, bs_cache_step_begin(g->cache[i], g->stream, seqs, n_seqs));
    return status;
}

void group_end(group *g)
{
    for (int i = 0; i < g->config.seq; i++) assert_ok(bs_cache_step_end(g->cache[i], g->stream));
}

void group_step(group *g, int seq, int n_tokens, bool prefill)
{
    assert_ok(group_begin(
        g, &(bs_cache_step_seq){seq, bs_cache_seq_length(g->cache[0], seq), n_tokens, prefill}, 1));
    group_end(g);
}

int group_owner(const group *g, int seq, int64_t page)
{
    return bs_cache_page_owner(page, bs_cache_seq_start_shard(g->cache[0], seq), g->config.stripe_pages,
                               g->config.seq);
}

bs_page_view group_page(const group *g, int seq, int64_t page)
{
    int owner = group_owner(g, seq, page);
    for (int i = 0; i < g->config.seq; i++)
        if (i != owner) assert_int_equal(bs_cache_page(g->cache[i], seq, page).kind, BS_PAGE_NONE);
    return bs_cache_page(g->cache[owner], seq, page);
}

size_t group_slot_words(const group *g, bool quantized)
{
    const bs_cache_memory *m = bs_cache_get_memory(g->cache[0]);
    return (quantized ? m->quant_slot_bytes : m->f16_slot_bytes) / sizeof(uint64_t);
}

uint64_t *group_slot(const group *g, int shard, bool quantized, uint32_t slot)
{
    const bs_kv_pools *pools = bs_cache_pools(g->cache[shard]);
    assert_true(slot < (quantized ? pools->n_quant_slots : pools->n_f16_slots));
    return (uint64_t *)(quantized ? pools->quant_pool : pools->f16_pool) +
           slot * group_slot_words(g, quantized);
}

uint64_t rng_below(rng *r, uint64_t n)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return (r->state * 0x2545f4914f6cdd1dull >> 11) % n;
}
