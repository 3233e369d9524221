/* test_cache.c: the cache's rules one by one: which pages are quantized at which step, what the device tables
 * say, refusals, forks and reuses. test_cache_memory.c has the sizes, test_cache_random.c drives all of it.
 */
#include "tests/unit/cache_group.h"

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
