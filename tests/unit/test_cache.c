/* test_cache.c: the cache's rules one by one: which pages are quantized at which step, what the device tables
 * say, sizes of pools, refusals, forks and reuses. test_cache_random.c drives all of it together.
 *
 * Linked with --wrap for malloc and friends, so that allocations in a step are seen.
 */
#include "tests/unit/cache_group.h"

#include <stdio.h>

/* ---- counting allocations ---------------------------------------------------------------------------- */

static uint64_t n_host_allocations;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    n_host_allocations++;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    n_host_allocations++;
    return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    n_host_allocations++;
    return __real_realloc(memory, bytes);
}

/* ---- when a page is quantized ------------------------------------------------------------------------ */

/* Kind of a page of a sequence of `end` tokens in a step with this base, from the definition. */
static bs_page_kind expected_kind(const bs_kv_format *format, int64_t page, int64_t end, int64_t base)
{
    if (page * 128 >= end) return BS_PAGE_NONE;
    if (format->k_bits == 16) return BS_PAGE_F16;
    if (page < format->n_sink) return BS_PAGE_SINK;
    return page < base / 128 - format->n_recent ? BS_PAGE_QUANT : BS_PAGE_F16;
}

static void check_pages(const group *g, int seq, int64_t end, int64_t base)
{
    for (int64_t page = 0; page <= end / 128 + 1; page++) {
        bs_page_view view = group_page(g, seq, page);
        assert_int_equal(view.kind, expected_kind(&g->config.shape.format, page, end, base));
        assert_int_equal(view.n_owners, view.kind != BS_PAGE_NONE);
    }
}

/* The tables of the step begun last, read back. */
typedef struct tables {
    int32_t q_start[17], q_pos0[16], page_start[17], n_sink[16], n_quant[16], n_f16[16], n_tokens[16];
    int32_t token_pos[4096], token_slot[4096], token_page[4096];
    uint32_t page_slot[4096], quantize_from[4096], quantize_to[4096];
    int32_t page_index[4096];
} tables;

static void read_table(const group *g, void *out, const void *table, int n, size_t room)
{
    assert_true((size_t)n * 4 <= room);
    memset(out, 0xee, room);
    assert_ok(bs_copy_to_host(g->stream, out, table, (size_t)n * 4));
}

static const tables *read_tables(const group *g, int shard)
{
    static tables t;
    const bs_cache_tables *d = bs_cache_get_tables(g->cache[shard]);
    int n_seqs = g->config.max_seqs, n_tokens = g->config.max_step_tokens;
    assert_int_equal(d->max_seqs, n_seqs);
    assert_int_equal(d->max_pages, bs_cache_get_memory(g->cache[shard])->max_pages);
    read_table(g, t.q_start, d->q_start, n_seqs + 1, sizeof t.q_start);
    read_table(g, t.q_pos0, d->q_pos0, n_seqs, sizeof t.q_pos0);
    read_table(g, t.page_start, d->page_start, n_seqs + 1, sizeof t.page_start);
    read_table(g, t.n_sink, d->n_sink, n_seqs, sizeof t.n_sink);
    read_table(g, t.n_quant, d->n_quant, n_seqs, sizeof t.n_quant);
    read_table(g, t.n_f16, d->n_f16, n_seqs, sizeof t.n_f16);
    read_table(g, t.n_tokens, d->n_tokens, n_seqs, sizeof t.n_tokens);
    read_table(g, t.token_pos, d->token_pos, n_tokens, sizeof t.token_pos);
    read_table(g, t.token_slot, d->token_slot, n_tokens, sizeof t.token_slot);
    read_table(g, t.token_page, d->token_page, n_tokens, sizeof t.token_page);
    read_table(g, t.page_slot, d->page_slot, t.page_start[n_seqs], sizeof t.page_slot);
    read_table(g, t.page_index, d->page_index, t.page_start[n_seqs], sizeof t.page_index);
    read_table(g, t.quantize_from, d->quantize_from, d->n_quantize, sizeof t.quantize_from);
    read_table(g, t.quantize_to, d->quantize_to, d->n_quantize, sizeof t.quantize_to);
    return &t;
}

/* One row against bs_cache_page. */
static void check_row(const group *g, int shard, const tables *t, int row, const bs_cache_step_seq *s)
{
    static const bs_page_kind order[] = {BS_PAGE_SINK, BS_PAGE_QUANT, BS_PAGE_F16};
    const int32_t counts[] = {t->n_sink[row], t->n_quant[row], t->n_f16[row]};
    int64_t end = s->pos0 + s->n_tokens;
    int32_t at = t->page_start[row];
    assert_int_equal(t->q_pos0[row], s->pos0);
    assert_int_equal(t->n_tokens[row], end);
    assert_int_equal(t->q_start[row + 1] - t->q_start[row], s->n_tokens);
    for (int k = 0; k < 3; k++) {
        int32_t n = 0;
        for (int64_t page = 0; page * 128 < end; page++) { /* ascending */
            bs_page_view view = bs_cache_page(g->cache[shard], s->seq, page);
            if (view.kind != order[k]) continue;
            assert_int_equal(t->page_index[at], page);
            assert_int_equal(t->page_slot[at++], view.slot);
            n++;
        }
        assert_int_equal(counts[k], n);
    }
    assert_int_equal(at, t->page_start[row + 1]);
    for (int i = 0; i < s->n_tokens; i++) {
        int32_t at_token = t->q_start[row] + i;
        bs_page_view view = bs_cache_page(g->cache[shard], s->seq, (s->pos0 + i) / 128);
        assert_int_equal(t->token_pos[at_token], s->pos0 + i);
        assert_int_equal(t->token_page[at_token], (s->pos0 + i) % 128);
        assert_int_equal(t->token_slot[at_token], view.kind == BS_PAGE_NONE ? -1 : (int32_t)view.slot);
        assert_true(view.kind != BS_PAGE_QUANT);
    }
}

static void check_tables(const group *g, const bs_cache_step_seq *seqs, int n_seqs)
{
    for (int shard = 0; shard < g->config.seq; shard++) {
        const tables *t = read_tables(g, shard);
        assert_int_equal(t->q_start[0], 0);
        assert_int_equal(t->page_start[0], 0);
        for (int row = 0; row < n_seqs; row++) check_row(g, shard, t, row, &seqs[row]);
        int n_tokens = t->q_start[n_seqs];
        assert_int_equal(bs_cache_get_tables(g->cache[shard])->n_step_tokens, n_tokens);
        for (int row = n_seqs; row < g->config.max_seqs; row++) {
            assert_int_equal(t->q_pos0[row], -1);
            assert_int_equal(t->n_sink[row] + t->n_quant[row] + t->n_f16[row] + t->n_tokens[row], 0);
            assert_int_equal(t->q_start[row + 1], n_tokens);
            assert_int_equal(t->page_start[row + 1], t->page_start[n_seqs]);
        }
        for (int i = n_tokens; i < g->config.max_step_tokens; i++) {
            assert_int_equal(t->token_pos[i], -1);
            assert_int_equal(t->token_slot[i], -1);
            assert_int_equal(t->token_page[i], 0);
        }
    }
}

/* Prefill of n tokens in random cuts, decode after it; every step against the definition. */
static void run_prompt(group *g, rng *r, int64_t n_prompt, int64_t n_decode, int max_cut)
{
    int64_t chunk = g->config.chunk_tokens, n = 0, base = 0;
    assert_ok(group_start(g, 0, (int)rng_below(r, (uint64_t)g->config.seq), n_prompt + n_decode));
    while (n < n_prompt + n_decode) {
        bs_cache_step_seq s = {0, n, 1, n < n_prompt};
        base = n;
        if (s.prefill) {
            int64_t most = chunk - n % chunk;
            if (most > n_prompt - n) most = n_prompt - n;
            if (most > max_cut) most = max_cut;
            s.n_tokens = 1 + (int)rng_below(r, (uint64_t)most);
            base = n / chunk * chunk;
        }
        assert_ok(group_begin(g, &s, 1));
        n += s.n_tokens;
        check_pages(g, 0, n, base);
        if (n < 300 || rng_below(r, 8) == 0) check_tables(g, &s, 1);
        group_end(g);
        check_pages(g, 0, n, base);
        assert_int_equal(bs_cache_seq_length(g->cache[0], 0), n);
        /* However it was cut, the prompt leaves the state of its last chunk. */
        if (n == n_prompt) check_pages(g, 0, n, (n - 1) / chunk * chunk);
    }
    group_free(g, 0);
    for (int i = 0; i < g->config.seq; i++) {
        const bs_cache_memory *m = bs_cache_get_memory(g->cache[i]);
        assert_int_equal(bs_cache_free_slots(g->cache[i], false), m->n_f16_slots);
        assert_int_equal(bs_cache_free_slots(g->cache[i], true), m->n_quant_slots);
    }
}

static void test_states(void **state)
{
    static const char *const formats[] = {"int4", "int4:s0:r0", "int2:s3:r5", "int8:s20:r1", "f16"};
    static const int shards[] = {1, 2, 3, 5}, chunks[] = {2048, 128, 384}, stripes[] = {8, 1, 3};
    static const int64_t prompts[] = {1, 127, 128, 129, 383, 384, 385, 2047, 2048, 2049, 4096, 4999, 5000};
    rng r = {0x5eed1};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
        for (int s = 0; s < 4; s++) {
            bs_cache_config config = group_config(formats[f], shards[s]);
            config.chunk_tokens = chunks[(s + (int)f) % 3];
            config.stripe_pages = stripes[(s + 2 * (int)f) % 3];
            group g;
            group_open(&g, &config);
            for (size_t p = 0; p < sizeof prompts / sizeof *prompts; p++) {
                int max_cut = p % 3 == 0 ? 2048 : p % 3 == 1 ? 300 : 97;
                run_prompt(&g, &r, prompts[p], p % 4 == 0 ? 300 : 3, max_cut);
            }
            for (int i = 0; i < 6; i++) run_prompt(&g, &r, 1 + (int64_t)rng_below(&r, 5000), 2, 2048);
            group_close(&g);
        }
}

/* A second prompt in the same sequence begins at its own first position. */
static void test_second_prompt(void **state)
{
    bs_cache_config config = group_config("int4", 2);
    group g;
    group_open(&g, &config);
    assert_ok(group_start(&g, 0, 1, 8192));
    group_step(&g, 0, 1000, true);
    check_pages(&g, 0, 1000, 0);
    group_step(&g, 0, 1, false);
    check_pages(&g, 0, 1001, 1000);
    group_step(&g, 0, 500, true); /* base 1001, not 0 */
    check_pages(&g, 0, 1501, 1001);
    group_step(&g, 0, 547, true);
    check_pages(&g, 0, 2048, 1001);
    group_step(&g, 0, 10, true);
    check_pages(&g, 0, 2058, 2048);
    group_step(&g, 0, 64, false);
    check_pages(&g, 0, 2122, 2058);
    group_close(&g);
}

/* Rows of several sequences, some of them quantizing, in one step. */
static void test_rows(void **state)
{
    bs_cache_config config = group_config("int4", 3);
    config.max_seqs = 5;
    config.max_prefill_seqs = 2;
    config.total_tokens = 5 * 8192;
    group g;
    group_open(&g, &config);
    for (int i = 0; i < 4; i++) assert_ok(group_start(&g, i, i % 3, 8192));
    group_step(&g, 0, 2048, true);
    group_step(&g, 2, 1280, true);
    group_step(&g, 2, 1, false);
    const bs_cache_step_seq seqs[] = {
        {3, 0, 200, true}, {0, 2048, 700, true}, {2, 1281, 1, false}, {1, 0, 1, false}};
    assert_ok(group_begin(&g, seqs, 4));
    check_tables(&g, seqs, 4);
    int n_quantize = 0;
    for (int shard = 0; shard < 3; shard++) {
        const tables *t = read_tables(&g, shard);
        const bs_cache_tables *d = bs_cache_get_tables(g.cache[shard]);
        for (int i = 0; i < d->n_quantize; i++, n_quantize++) { /* to: a quantized page of this step, once */
            int n_found = 0;
            for (int64_t page = 0; page < 16; page++) {
                bs_page_view view = bs_cache_page(g.cache[shard], 0, page);
                n_found += view.kind == BS_PAGE_QUANT && view.slot == t->quantize_to[i];
            }
            assert_int_equal(n_found, 1);
            for (int k = 0; k < t->page_start[4]; k++) { /* from: nobody's f16 page any more */
                bool is_f16 = true;
                for (int row = 0; row < 4; row++) {
                    int first = t->page_start[row] + t->n_sink[row];
                    if (k >= first && k < first + t->n_quant[row]) is_f16 = false;
                }
                assert_false(is_f16 && t->page_slot[k] == t->quantize_from[i]);
            }
        }
    }
    assert_int_equal(n_quantize, 13); /* pages 1 … 13 of sequence 0 */
    group_end(&g);
    assert_ok(group_begin(&g, NULL, 0));
    check_tables(&g, NULL, 0);
    group_end(&g);
    group_close(&g);
}

/* ---- memory ------------------------------------------------------------------------------------------ */

static void test_memory(void **state)
{
    static const struct {
        const char *format;
        int max_seqs, max_prefill_seqs;
        int64_t max_context, total_tokens;
        uint32_t n_f16, n_quant;
    } cases[] = {
        /* one shard: sink 1 + recent 2 + 2 (+ 2 × 16 − 2 in prefill); context − sink − recent */
        {"int4", 1, 1, 131072, 131072, 1 + 2 + 32, 1024 - 3},
        {"int4", 8, 1, 131072, 131072, 7 * 5 + 35, 1024 - 3},
        {"int4", 8, 3, 131072, 8 * 131072, 5 * 5 + 3 * 35, 8 * (1024 - 3)},
        {"int4:s0:r0", 4, 1, 4096, 16384, 3 * 2 + 32, 128},
        {"int4", 4, 1, 384, 4 * 384, 4 * 3, 0}, /* nothing is ever quantized */
        {"int4", 1, 1, 511, 511, 4, 0},
        {"int4", 1, 1, 512, 512, 4, 1},
        {"f16", 1, 1, 1000, 1000, 8, 0},
        {"f16", 4, 1, 1000, 2000, 19, 0}, /* ⌈n/128⌉ of 4 sequences with 2000 tokens together */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_cache_config config = group_config(cases[i].format, 1);
        config.max_seqs = cases[i].max_seqs;
        config.max_prefill_seqs = cases[i].max_prefill_seqs;
        config.max_context = cases[i].max_context;
        config.total_tokens = cases[i].total_tokens;
        group g;
        group_open(&g, &config);
        const bs_cache_memory *m = bs_cache_get_memory(g.cache[0]);
        assert_int_equal(m->n_f16_slots, cases[i].n_f16);
        assert_int_equal(m->n_quant_slots, cases[i].n_quant);
        assert_int_equal(m->f16_slot_bytes, 128 * 64 * 2 * 2);
        assert_int_equal(m->f16_pool_bytes, m->n_f16_slots * m->f16_slot_bytes);
        assert_int_equal(m->quant_pool_bytes, m->n_quant_slots * m->quant_slot_bytes);
        assert_int_equal(bs_device_allocated_bytes(g.device),
                         m->f16_pool_bytes + m->quant_pool_bytes + m->table_bytes);
        group_close(&g);
    }
}

static void test_memory_refusals(void **state)
{
    group g;
    bs_cache_config good = group_config("int4", 2),
                    bad[] = {good, good, good, good, good, good, good, good, good, good};
    static const char *const fields[] = {
        "seq 0",      "seq_shard 2",        "stripe_pages 0",    "chunk_tokens 200", "chunk_tokens 0",
        "max_seqs 0", "max_prefill_seqs 2", "max_step_tokens 0", "max_context 0",    "total_tokens 8193"};
    bad[0].seq = 0;
    bad[1].seq_shard = 2;
    bad[2].stripe_pages = 0;
    bad[3].chunk_tokens = 200;
    bad[4].chunk_tokens = 0;
    bad[5].max_seqs = 0;
    bad[6].max_prefill_seqs = 2;
    bad[7].max_step_tokens = 0;
    bad[8].max_context = 0;
    bad[9].total_tokens = 8193;
    group_open(&g, &good);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bs_cache_memory memory;
        bs_cache *cache = NULL;
        bs_error_clear();
        assert_int_equal(bs_cache_plan_memory(g.device, &bad[i], &memory), BS_STATUS_RANGE);
        assert_non_null(strstr(bs_error_message(), fields[i]));
        assert_int_equal(bs_cache_open(g.device, g.stream, &bad[i], &cache), BS_STATUS_RANGE);
        assert_null(cache);
    }
    bs_cache_config huge = good;
    huge.max_seqs = 1 << 16;
    huge.max_context = INT32_MAX;
    huge.total_tokens = (int64_t)huge.max_seqs * huge.max_context;
    bs_cache_memory memory;
    bs_error_clear();
    assert_int_equal(bs_cache_plan_memory(g.device, &huge, &memory), BS_STATUS_RANGE);
    assert_non_null(strstr(bs_error_message(), "total_tokens"));
    bs_error_clear();
    group_close(&g);
}

static void test_nothing_allocated(void **state)
{
    bs_cache_config config = group_config("int4", 2);
    config.max_seqs = 4;
    config.max_prefill_seqs = 2;
    config.total_tokens = 4 * 8192;
    group g;
    uint64_t before_open = n_host_allocations;
    group_open(&g, &config);
    assert_true(n_host_allocations > before_open + 10); /* they are counted */
    uint64_t host = n_host_allocations, device = bs_device_allocation_count(g.device);
    size_t bytes = bs_device_allocated_bytes(g.device);
    int64_t first_pos = 0;
    for (int round = 0; round < 3; round++) {
        assert_ok(group_start(&g, 0, round % 2, 4000));
        group_step(&g, 0, 2048, true);
        group_step(&g, 0, 900, true);
        for (int i = 0; i < 300; i++) group_step(&g, 0, 1, false);
        assert_ok(group_fork(&g, 0, 1, 4000));
        assert_ok(group_reuse(&g, 0, 2, 1500, 4000, &first_pos));
        group_step(&g, 2, 800, true);
        group_step(&g, 1, 1, false);
        for (int i = 0; i < 3; i++) group_free(&g, i);
    }
    assert_int_equal(n_host_allocations, host);
    assert_int_equal(bs_device_allocation_count(g.device), device);
    assert_int_equal(bs_device_allocated_bytes(g.device), bytes);
    group_close(&g);
}

/* Sequences driven so that all are at their greatest in one step: on one shard the last slot is then in use.
 */
static void run_worst_f16(const bs_cache_config *config, int start_s)
{
    bs_cache_step_seq seqs[8];
    const bs_kv_format *format = &config->shape.format;
    int n = config->max_seqs, m = config->max_prefill_seqs, chunk = config->chunk_tokens;
    int n_rounds = 3 + (format->n_sink + format->n_recent) * 128 / chunk;
    group g;
    group_open(&g, config);
    for (int i = 0; i < n; i++) assert_ok(group_start(&g, i, start_s, config->max_context));
    for (int i = m; i < n; i++) { /* in decode, at the end of a page in the last round */
        group_step(&g, i, chunk, true);
        for (int k = 0; k < 18; k++) group_step(&g, i, 64, false);
        for (int k = 0; k < 128 - (n_rounds - 1); k++) group_step(&g, i, 1, false);
    }
    for (int round = 0; round < n_rounds; round++) {
        for (int i = 0; i < n; i++) {
            int64_t length = bs_cache_seq_length(g.cache[0], i);
            seqs[i] = (bs_cache_step_seq){i, length, i < m ? chunk : 1, i < m};
        }
        assert_ok(group_begin(&g, seqs, n));
        if (config->seq == 1 && round == n_rounds - 1)
            assert_int_equal(bs_cache_free_slots(g.cache[0], false), 0);
        group_end(&g);
    }
    for (int i = 0; i < m && m + i < n; i++) { /* these go over to decode, others begin in their place */
        int64_t length = bs_cache_seq_length(g.cache[0], i);
        group_free(&g, m + i);
        assert_ok(group_start(&g, m + i, start_s, config->max_context));
        seqs[2 * i] = (bs_cache_step_seq){i, length, 1, false};
        seqs[2 * i + 1] = (bs_cache_step_seq){m + i, 0, chunk, true};
        if (i + 1 == m || m + i + 1 == n) {
            assert_ok(group_begin(&g, seqs, 2 * (i + 1)));
            group_end(&g);
        }
    }
    group_close(&g);
}

static void test_worst_f16(void **state)
{
    static const char *const formats[] = {"int4", "int4:s0:r0", "int4:s3:r5"};
    static const int shards[] = {1, 2, 5, 8}, chunks[] = {2048, 128, 1024};
    for (int f = 0; f < 3; f++)
        for (int s = 0; s < 4; s++)
            for (int m = 1; m <= 4; m++) {
                bs_cache_config config = group_config(formats[f], shards[s]);
                config.max_seqs = 4;
                config.max_prefill_seqs = m;
                config.chunk_tokens = chunks[(f + s + m) % 3];
                config.stripe_pages = f == 1 ? 3 : 8;
                config.max_context = 16384;
                config.total_tokens = 4 * 16384;
                config.max_step_tokens = 4 * 2048;
                for (int start = 0; start < shards[s]; start += 3) run_worst_f16(&config, start);
            }
}

/* The other worst step: m sequences go over to decode while m others begin a prompt, each window of f16 pages
 * in one stripe of the same shard. Stripes of 5 pages on 5 shards, chunks of 2 pages, recent 2: 5 pages =
 * recent + chunk + 1. */
static void test_worst_change(void **state)
{
    for (int m = 1; m <= 3; m++) {
        bs_cache_config config = group_config("int4", 5);
        config.stripe_pages = 5;
        config.chunk_tokens = 256;
        config.max_seqs = 2 * m;
        config.max_prefill_seqs = m;
        config.total_tokens = config.max_seqs * config.max_context;
        bs_cache_step_seq seqs[6];
        group g;
        group_open(&g, &config);
        for (int i = 0; i < 2 * m; i++) {
            assert_ok(group_start(&g, i, 0, config.max_context));
            int n_pages = i < m ? 28 : 54; /* the last two of shard 0's pages 25 … 29; of 50 … 54 */
            for (int k = 0; k < n_pages / 2; k++)
                group_step(&g, i, i < m && k == n_pages / 2 - 1 ? 255 : 256, true);
            if (i < m) group_step(&g, i, 1, false);
            seqs[i] = (bs_cache_step_seq){i, 128 * n_pages, i < m ? 256 : 1, i < m};
        }
        assert_ok(group_begin(&g, seqs, 2 * m));
        assert_int_equal(bs_cache_free_slots(g.cache[0], false), 0);
        group_end(&g);
        group_close(&g);
    }
}

/* The most slots of the quantized pool that `k` sequences of `n_pages` pages together can need on one shard,
 * starts chosen for the worst: by trying every split. */
static int64_t worst_split(const bs_cache_config *config, int k, int n_pages, int most_pages)
{
    static int64_t best[9][513];
    int spare = config->shape.format.n_sink + config->shape.format.n_recent;
    for (int i = 1; i <= k; i++)
        for (int n = 0; n <= n_pages; n++) {
            best[i][n] = i == 1 ? 0 : best[i - 1][n];
            for (int mine = spare + 1, owned; mine <= n && mine <= most_pages; mine++) {
                int64_t need = 0;
                for (int start = 0; start < config->seq; start++) {
                    owned = 0;
                    for (int p = config->shape.format.n_sink; p < mine - config->shape.format.n_recent; p++)
                        owned += bs_cache_page_owner(p, start, config->stripe_pages, config->seq) == 0;
                    if (owned > need) need = owned;
                }
                if (i > 1) need += best[i - 1][n - mine];
                if (need > best[i][n]) best[i][n] = need;
            }
        }
    return best[k][n_pages];
}

/* The quantized pool suffices for every split of total_tokens, and is not larger than the rule says it must.
 */
static void test_worst_quant(void **state)
{
    static const char *const formats[] = {"int4:s0:r0", "int4"};
    rng r = {0x5eed2};
    group g;
    bs_cache_config config = group_config("int4", 1);
    group_open(&g, &config);
    for (int i = 0; i < 60; i++) {
        config = group_config(formats[i % 2], 1 + (int)rng_below(&r, 6));
        config.stripe_pages = 1 + (int)rng_below(&r, 8);
        config.max_seqs = 1 + (int)rng_below(&r, 4);
        int most = 1 + (int)rng_below(&r, 40),
            n_pages = 1 + (int)rng_below(&r, (uint64_t)(config.max_seqs * most));
        config.max_context = 128 * most;
        config.total_tokens = 128 * n_pages;
        bs_cache_memory memory;
        assert_ok(bs_cache_plan_memory(g.device, &config, &memory));
        int64_t worst = worst_split(&config, config.max_seqs, n_pages, most);
        /* Sinks and recent pages are taken off once, not for each sequence. */
        int64_t spare = i % 2 ? 3 * (config.max_seqs - 1) : 0;
        assert_in_range(memory.n_quant_slots, worst, worst + spare);
    }
    group_close(&g);
}

/* ---- reservations and refusals ----------------------------------------------------------------------- */

/* Starts rotate so that shards fill evenly, short sequences too; what does not fit is refused. */
static void test_fits(void **state)
{
    bs_cache_config config = group_config("int4", 3);
    config.max_seqs = 6;
    config.total_tokens = 24 * 1024;
    group g;
    group_open(&g, &config);
    int start = -1;
    for (int i = 0; i < 6; i++) { /* nothing of these is ever quantized: only their pages tell shards apart */
        assert_true(bs_cache_fits(g.cache[0], 300, &start));
        assert_int_equal(start, i % 3);
        assert_ok(group_start(&g, i, start, 300));
    }
    assert_false(bs_cache_fits(g.cache[0], 1, &start)); /* no sequence slot */
    for (int i = 0; i < 6; i++) group_free(&g, i);
    assert_false(bs_cache_fits(g.cache[0], 0, NULL));
    assert_false(bs_cache_fits(g.cache[0], 8193, NULL));

    int n_started = 0;
    while (bs_cache_fits(g.cache[0], 8192, &start)) {
        for (int shard = 1; shard < 3; shard++) {
            int other = -1;
            assert_true(bs_cache_fits(g.cache[shard], 8192, &other));
            assert_int_equal(other, start);
        }
        assert_ok(group_start(&g, n_started++, start, 8192));
    }
    assert_in_range(n_started, 3, 5);
    for (int s = 0; s < 3; s++) {
        bs_error_clear();
        assert_int_equal(group_start(&g, 5, s, 8192), BS_STATUS_FULL);
    }
    assert_int_equal(group_start(&g, 0, 0, 100), BS_STATUS_RANGE); /* in use */
    assert_int_equal(group_start(&g, 6, 0, 100), BS_STATUS_RANGE);
    assert_int_equal(group_start(&g, -1, 0, 100), BS_STATUS_RANGE);
    assert_int_equal(group_start(&g, 5, 3, 100), BS_STATUS_RANGE);
    assert_int_equal(group_start(&g, 5, -1, 100), BS_STATUS_RANGE);
    assert_int_equal(group_start(&g, 5, 0, 0), BS_STATUS_RANGE);
    assert_int_equal(group_start(&g, 5, 0, 8193), BS_STATUS_RANGE);
    bs_error_clear();
    group_close(&g);
}

static void test_step_refusals(void **state)
{
    bs_cache_config config = group_config("int4", 2);
    config.max_seqs = 4;
    config.max_step_tokens = 2100;
    config.total_tokens = 4 * 8192;
    group g;
    group_open(&g, &config);
    for (int i = 0; i < 3; i++) assert_ok(group_start(&g, i, 0, i == 2 ? 3000 : 8192));
    group_step(&g, 0, 2048, true);
    group_step(&g, 0, 1, false);
    group_step(&g, 2, 1990, true);
    group_step(&g, 2, 1, false);
    const struct {
        bs_cache_step_seq seqs[2];
        int n;
        bs_status status;
        const char *field;
    } cases[] = {
        {{{0, 2048, 1, false}}, 1, BS_STATUS_RANGE, "sequence 0: pos0 2048: must be 2049"},
        {{{1, 1, 1, false}}, 1, BS_STATUS_RANGE, "sequence 1: pos0 1"},
        {{{3, 0, 1, false}}, 1, BS_STATUS_RANGE, "sequence 3: is not in use"},
        {{{4, 0, 1, false}}, 1, BS_STATUS_RANGE, "sequence 4"},
        {{{-1, 0, 1, false}}, 1, BS_STATUS_RANGE, "sequence -1"},
        {{{1, 0, 0, false}}, 1, BS_STATUS_RANGE, "n_tokens 0"},
        {{{1, 0, 65, false}}, 1, BS_STATUS_RANGE, "n_tokens 65"},
        {{{1, 0, 2049, true}}, 1, BS_STATUS_RANGE, "chunk of 2048"},
        {{{2, 1991, 58, true}}, 1, BS_STATUS_RANGE, "chunk of 2048"},
        {{{0, 2049, 53, false}, {1, 0, 2048, true}}, 2, BS_STATUS_RANGE, "n_tokens 2048"},
        {{{0, 2049, 1, false}, {0, 2049, 1, false}}, 2, BS_STATUS_RANGE, "sequence 0: twice"},
        {{{0, 2049, 1, true}, {1, 0, 7, true}}, 2, BS_STATUS_FULL, "2 sequences in prefill"},
        {{{0, 2049, 1, false}}, 5, BS_STATUS_RANGE, "n_seqs 5"},
        {{{0, 2049, 1, false}}, -1, BS_STATUS_RANGE, "n_seqs -1"},
    };
    uint32_t n_free[2][2];
    for (int k = 0; k < 4; k++) n_free[k / 2][k % 2] = bs_cache_free_slots(g.cache[k / 2], k % 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_error_clear();
        assert_int_equal(group_begin(&g, cases[i].seqs, cases[i].n), cases[i].status);
        assert_non_null(strstr(bs_error_message(), cases[i].field));
        assert_int_equal(bs_cache_step_end(g.cache[0], g.stream), BS_STATUS_RANGE); /* none is open */
        for (int k = 0; k < 4; k++)
            assert_int_equal(bs_cache_free_slots(g.cache[k / 2], k % 2), n_free[k / 2][k % 2]);
        check_pages(&g, 0, 2049, 2048);
        check_pages(&g, 1, 0, 0);
        check_pages(&g, 2, 1991, 1990);
    }
    bs_cache_step_seq next = {2, 1991, 57, true};
    assert_ok(group_begin(&g, &next, 1));
    assert_int_equal(group_begin(&g, &next, 1), BS_STATUS_RANGE); /* one is open */
    group_end(&g);
    group_step(&g, 2, 952, true);
    bs_error_clear();
    assert_int_equal(group_begin(&g, &(bs_cache_step_seq){2, 3000, 1, false}, 1), BS_STATUS_FULL);
    assert_non_null(strstr(bs_error_message(), "only 3000 are reserved"));
    bs_error_clear();
    group_close(&g);
}

/* ---- sharing ----------------------------------------------------------------------------------------- */

/* Fills the slots of a sequence's pages with their numbers + 1000 × tag, as if they had been written. */
static void mark_pages(const group *g, int seq, uint64_t tag)
{
    for (int64_t page = 0; page * 128 < bs_cache_seq_length(g->cache[0], seq); page++) {
        bs_page_view view = group_page(g, seq, page);
        bool quantized = view.kind == BS_PAGE_QUANT;
        uint64_t *words = group_slot(g, group_owner(g, seq, page), quantized, view.slot);
        for (size_t i = 0; i < group_slot_words(g, quantized); i++) words[i] = 1000 * tag + (uint64_t)page;
    }
}

static void check_mark(const group *g, int seq, int64_t page, uint64_t expected)
{
    bs_page_view view = group_page(g, seq, page);
    bool quantized = view.kind == BS_PAGE_QUANT;
    const uint64_t *words = group_slot(g, group_owner(g, seq, page), quantized, view.slot);
    for (size_t i = 0; i < group_slot_words(g, quantized); i++) assert_int_equal(words[i], expected);
}

static void test_fork(void **state)
{
    bs_cache_config config = group_config("int4:s2:r2", 2);
    config.max_seqs = 4;
    config.total_tokens = 4 * 8192;
    group g;
    group_open(&g, &config);
    assert_ok(group_start(&g, 0, 1, 8192));
    group_step(&g, 0, 2000, true);
    assert_int_equal(group_fork(&g, 0, 1, 8192), BS_STATUS_FULL); /* two in prefill */
    group_step(&g, 0, 1, false);
    mark_pages(&g, 0, 1);
    bs_error_clear();
    assert_int_equal(group_fork(&g, 0, 1, 2000), BS_STATUS_RANGE); /* shorter than what is copied */
    assert_int_equal(group_fork(&g, 0, 0, 4000), BS_STATUS_RANGE);
    assert_int_equal(group_fork(&g, 2, 1, 4000), BS_STATUS_RANGE);
    bs_error_clear();
    assert_ok(group_fork(&g, 0, 1, 4000));
    assert_int_equal(bs_cache_seq_start_shard(g.cache[0], 1), 1);
    assert_int_equal(bs_cache_seq_length(g.cache[1], 1), 2001);
    for (int64_t page = 0; page < 16; page++) { /* quantized: 2 … 12 */
        bs_page_view a = group_page(&g, 0, page), b = group_page(&g, 1, page);
        assert_int_equal(a.kind, expected_kind(&config.shape.format, page, 2001, 2000));
        assert_int_equal(b.kind, a.kind);
        assert_int_equal(b.n_owners, page < 13 ? 2 : 1);
        assert_int_equal(a.slot == b.slot, page < 13);
        check_mark(&g, 1, page, 1000 + (uint64_t)page);
    }
    /* Both go on alone; the source goes first. */
    group_step(&g, 1, 64, false);
    check_mark(&g, 0, 15, 1015);
    group_free(&g, 0);
    for (int64_t page = 0; page < 13; page++) {
        assert_int_equal(group_page(&g, 1, page).n_owners, 1);
        check_mark(&g, 1, page, 1000 + (uint64_t)page);
    }
    group_close(&g);
}

/* A sink page that is not complete will be written: it is copied. */
static void test_fork_of_open_sink(void **state)
{
    bs_cache_config config = group_config("int4:s3:r2", 1);
    config.max_seqs = 2;
    config.total_tokens = 2 * 8192;
    group g;
    group_open(&g, &config);
    for (int n = 127; n <= 129; n++) {
        assert_ok(group_start(&g, 0, 0, 1000));
        group_step(&g, 0, n - 1, true);
        group_step(&g, 0, 1, false);
        mark_pages(&g, 0, 7);
        assert_ok(group_fork(&g, 0, 1, 1000));
        assert_int_equal(group_page(&g, 1, 0).n_owners, n < 128 ? 1 : 2);
        check_mark(&g, 1, 0, 7000);
        if (n > 128) assert_int_equal(group_page(&g, 1, 1).n_owners, 1);
        group_free(&g, 0);
        group_free(&g, 1);
    }
    group_close(&g);
}

static void test_reuse(void **state)
{
    bs_cache_config config = group_config("int4", 2);
    config.max_seqs = 3;
    config.total_tokens = 3 * 8192;
    group g;
    group_open(&g, &config);
    assert_ok(group_start(&g, 0, 1, 8192));
    group_step(&g, 0, 2048, true);
    group_step(&g, 0, 1452, true); /* 3500 tokens; base 2048: quantized 1 … 13 */
    mark_pages(&g, 0, 1);
    static const int64_t cases[][2] = {/* n, kept pages */
                                       {0, 0},     {128, 0},   {383, 0},   {384, 1},   {511, 1},  {512, 2},
                                       {2047, 13}, {2048, 14}, {2176, 14}, {3500, 14}, {8000, 14}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t n = cases[i][0], kept = cases[i][1], first_pos = -1;
        int64_t base = kept ? 128 * (kept + 2) : 0;
        assert_int_equal(bs_cache_reusable(g.cache[0], 0, n), 128 * kept);
        assert_ok(group_reuse(&g, 0, 1, n, 8000, &first_pos));
        assert_int_equal(first_pos, 128 * kept);
        assert_int_equal(bs_cache_seq_length(g.cache[0], 1), first_pos);
        for (int64_t page = 0; page < kept; page++) {
            assert_int_equal(group_page(&g, 1, page).n_owners, 2);
            check_mark(&g, 1, page, 1000 + (uint64_t)page);
        }
        group_step(&g, 0, 1, false); /* the source goes on (and leaves prefill) */
        if (kept)
            assert_int_equal(group_begin(&g, &(bs_cache_step_seq){1, first_pos, 1, false}, 1),
                             BS_STATUS_RANGE);
        int64_t rest = 2048 - first_pos % 2048;
        group_step(&g, 1, (int)rest, true);
        for (int64_t page = 0; page * 128 < first_pos + rest; page++)
            assert_int_equal(group_page(&g, 1, page).kind,
                             expected_kind(&config.shape.format, page, first_pos + rest, base));
        group_step(&g, 1, 100, true);
        if (first_pos + rest > base) base = first_pos + rest;
        for (int64_t page = 0; page * 128 < first_pos + rest + 100; page++)
            assert_int_equal(group_page(&g, 1, page).kind,
                             expected_kind(&config.shape.format, page, first_pos + rest + 100, base));
        group_free(&g, 1);
        group_free(&g, 0); /* the same source again, in prefill's state */
        assert_ok(group_start(&g, 0, 1, 8192));
        group_step(&g, 0, 2048, true);
        group_step(&g, 0, 1452, true);
        mark_pages(&g, 0, 1);
    }
    int64_t first_pos = -1;
    assert_int_equal(group_reuse(&g, 0, 1, 500, 499, &first_pos), BS_STATUS_RANGE);
    assert_int_equal(group_reuse(&g, 0, 0, 500, 600, &first_pos), BS_STATUS_RANGE);
    assert_int_equal(group_reuse(&g, 2, 1, 500, 600, &first_pos), BS_STATUS_RANGE);
    assert_int_equal(group_reuse(&g, 0, 1, -1, 600, &first_pos), BS_STATUS_RANGE);
    assert_int_equal(first_pos, -1);
    bs_error_clear();
    /* A fork before the prompt is computed again: the kept pages need the reservation of their base. */
    assert_ok(group_reuse(&g, 0, 1, 2048, 8000, &first_pos));
    assert_int_equal(first_pos, 14 * 128);
    assert_int_equal(group_fork(&g, 1, 2, 2047), BS_STATUS_RANGE);
    assert_ok(group_fork(&g, 1, 2, 2048));
    bs_error_clear();
    group_close(&g);
}

/* An f16 format shares its complete pages. */
static void test_share_f16(void **state)
{
    bs_cache_config config = group_config("f16", 2);
    config.max_seqs = 3;
    config.total_tokens = 3 * 8192;
    group g;
    group_open(&g, &config);
    assert_ok(group_start(&g, 0, 0, 8192));
    group_step(&g, 0, 1999, true);
    group_step(&g, 0, 1, false);
    mark_pages(&g, 0, 1);
    assert_ok(group_fork(&g, 0, 1, 3000));
    for (int64_t page = 0; page < 16; page++) {
        assert_int_equal(group_page(&g, 1, page).n_owners, page < 15 ? 2 : 1);
        check_mark(&g, 1, page, 1000 + (uint64_t)page);
    }
    int64_t first_pos = -1;
    assert_ok(group_reuse(&g, 0, 2, 700, 3000, &first_pos));
    assert_int_equal(first_pos, 640);
    assert_int_equal(group_page(&g, 2, 4).n_owners, 3);
    group_step(&g, 2, 60, true);
    assert_int_equal(group_page(&g, 2, 5).n_owners, 1);
    group_close(&g);
}

static void test_used_bytes(void **state)
{
    bs_cache_config config = group_config("int4", 2);
    config.shape.n_layers = 3;
    config.shape.n_kv_heads = 2;
    config.max_seqs = 2;
    config.total_tokens = 2 * 8192;
    group g;
    group_open(&g, &config);
    uint64_t as_f16, sum = 0, sum_f16 = 0;
    assert_int_equal(bs_cache_used_bytes(g.cache[0], &as_f16), 0);
    assert_int_equal(as_f16, 0);
    assert_ok(group_start(&g, 0, 0, 8192));
    group_step(&g, 0, 1999, true);
    group_step(&g, 0, 1, false); /* 16 pages: sink, 1 … 12 quantized, 13 … 15 f16 */
    const uint64_t parts = 3 * 2, f16_page = parts * 128 * 64 * 2 * 2;
    const uint64_t quant_page = parts *
                                (2 * 128 * 64 / 2 + 64 * 4 + 128 * 4); /* codes, K's and V's parameters */
    for (int i = 0; i < 2; i++) {
        sum += bs_cache_used_bytes(g.cache[i], &as_f16);
        sum_f16 += as_f16;
    }
    assert_int_equal(sum, 4 * f16_page + 12 * quant_page);
    assert_int_equal(sum_f16, 2000 * parts * 64 * 2 * 2);
    assert_ok(group_fork(&g, 0, 1, 8192)); /* 3 pages more, of 80 + 2 × 128 tokens */
    group_step(&g, 1, 10, false);
    sum = sum_f16 = 0;
    for (int i = 0; i < 2; i++) {
        sum += bs_cache_used_bytes(g.cache[i], &as_f16);
        sum_f16 += as_f16;
    }
    assert_int_equal(sum, 7 * f16_page + 12 * quant_page);
    assert_int_equal(sum_f16, (2000 + 336 + 10) * parts * 64 * 2 * 2);
    group_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_second_prompt),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_refusals),
        cmocka_unit_test(test_nothing_allocated),
        cmocka_unit_test(test_worst_f16),
        cmocka_unit_test(test_worst_change),
        cmocka_unit_test(test_worst_quant),
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_step_refusals),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_fork_of_open_sink),
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_share_f16),
        cmocka_unit_test(test_used_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
