/* test_cache_memory.c: sizes of the pools. They are what the rules say, suffice at the worst (driven there,
 * or by trying every split of the tokens), and are not larger; nothing is allocated after opening.
 *
 * Linked with --wrap for malloc and friends, so that allocations in a step are seen.
 */
#include "tests/unit/cache_group.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_refusals),
        cmocka_unit_test(test_nothing_allocated),
        cmocka_unit_test(test_worst_f16),
        cmocka_unit_test(test_worst_change),
        cmocka_unit_test(test_worst_quant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
