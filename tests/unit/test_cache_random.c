/* test_cache_random.c: ten thousand steps a scenario, with sequences that start, grow, fork, reuse and end at
 * random, on all shards, against a naive model that knows pages one by one and the rules as docs/kv-format.md
 * states them.
 *
 * Checked all along: every page's kind, slot and owners; no slot held twice; free counts (no leak); slots are
 * zero when they are given out, and a page's bytes never change while anyone holds it (pages are marked by
 * their number); starts that must fit do, refusals are the model's, and nothing admitted fails later. Pools
 * that run dry assert in the cache.
 */
#include "tests/unit/cache_group.h"

#include <stdio.h>

enum { N_OPS = 15000, MAX_SEQS = 8, MAX_PAGES = 64, MAX_SLOTS = 4096, STRIDE = 61 };

typedef struct page {
    uint64_t id; /* what its slot is marked with; never 0 */
    int n_owners, shard;
    bool quantized, sealed;
    uint32_t slot;
} page;

typedef struct sequence {
    bool used, in_prompt, prefilling;
    int start_s;
    int64_t length, n_reserved, base, prompt_end;
    page *pages[MAX_PAGES];
} sequence;

typedef struct world {
    group g;
    rng r;
    int start_s; /* of every sequence, −1: any */
    sequence seqs[MAX_SEQS];
    uint64_t next_id;
    uint64_t holder[GROUP_MAX_SHARDS][2]
                   [MAX_SLOTS]; /* id of the page in each slot of [shard][quantized], 0: free */
    int64_t n_live[GROUP_MAX_SHARDS][2];
    int64_t n_refused, n_full, n_forks, n_reuses, n_tokens;
} world;

static bool is_f16(const world *w)
{
    return w->g.config.shape.format.k_bits == 16;
}

static int n_recent(const world *w)
{
    return is_f16(w) ? 0 : w->g.config.shape.format.n_recent;
}

static int n_sink(const world *w)
{
    return is_f16(w) ? 0 : w->g.config.shape.format.n_sink;
}

static int count_prefilling(const world *w)
{
    int n = 0;
    for (int i = 0; i < MAX_SEQS; i++) n += w->seqs[i].used && w->seqs[i].prefilling;
    return n;
}

/* ---- slots and marks --------------------------------------------------------------------------------- */

static void check_slot(const world *w, const page *p, uint64_t expected)
{
    const uint64_t *words = group_slot(&w->g, p->shard, p->quantized, p->slot);
    size_t n = group_slot_words(&w->g, p->quantized);
    for (size_t i = 0; i < n; i += STRIDE) assert_int_equal(words[i], expected);
    assert_int_equal(words[n - 1], expected);
}

static void mark_slot(const world *w, const page *p)
{
    uint64_t *words = group_slot(&w->g, p->shard, p->quantized, p->slot);
    size_t n = group_slot_words(&w->g, p->quantized);
    for (size_t i = 0; i < n; i += STRIDE) words[i] = p->id;
    words[n - 1] = p->id;
}

/* The page has just been given this slot, which must hold `before`. */
static void take_slot(world *w, page *p, uint32_t slot, uint64_t before)
{
    p->slot = slot;
    assert_int_equal(w->holder[p->shard][p->quantized][slot], 0);
    w->holder[p->shard][p->quantized][slot] = p->id;
    w->n_live[p->shard][p->quantized]++;
    check_slot(w, p, before);
    mark_slot(w, p);
}

static void leave_slot(world *w, const page *p)
{
    assert_int_equal(w->holder[p->shard][p->quantized][p->slot], p->id);
    w->holder[p->shard][p->quantized][p->slot] = 0;
    w->n_live[p->shard][p->quantized]--;
}

/* A new page of a sequence, in the slot that the cache says. */
static page *add_page(world *w, int seq, int64_t index, uint64_t before)
{
    page *p = calloc(1, sizeof *p);
    bs_page_view view = group_page(&w->g, seq, index);
    assert_non_null(p);
    assert_int_equal(view.kind, !is_f16(w) && index < n_sink(w) ? BS_PAGE_SINK : BS_PAGE_F16);
    *p = (page){.id = ++w->next_id, .n_owners = 1, .shard = group_owner(&w->g, seq, index)};
    take_slot(w, p, view.slot, before);
    return p;
}

static void drop_page(world *w, page *p)
{
    if (--p->n_owners > 0) return;
    check_slot(w, p, p->id);
    leave_slot(w, p);
    free(p);
}

/* ---- checks ------------------------------------------------------------------------------------------ */

static void check_sequence(const world *w, int seq)
{
    const sequence *s = &w->seqs[seq];
    assert_int_equal(bs_cache_seq_length(w->g.cache[0], seq), s->used ? s->length : -1);
    if (!s->used) return;
    for (int64_t i = 0; i * 128 < s->length; i++) {
        const page *p = s->pages[i];
        bs_page_view view = group_page(&w->g, seq, i);
        assert_int_equal(view.kind, p->quantized    ? BS_PAGE_QUANT
                                    : i < n_sink(w) ? BS_PAGE_SINK
                                                    : BS_PAGE_F16);
        assert_int_equal(view.slot, p->slot);
        assert_int_equal(view.n_owners, p->n_owners);
        check_slot(w, p, p->id);
    }
    assert_int_equal(group_page(&w->g, seq, (s->length + 127) / 128).kind, BS_PAGE_NONE);
}

static void check_counts(const world *w)
{
    for (int shard = 0; shard < w->g.config.seq; shard++) {
        const bs_cache *cache = w->g.cache[shard];
        const bs_cache_memory *m = bs_cache_get_memory(cache);
        assert_int_equal(bs_cache_free_slots(cache, false), m->n_f16_slots - w->n_live[shard][0]);
        assert_int_equal(bs_cache_free_slots(cache, true), m->n_quant_slots - w->n_live[shard][1]);
    }
}

static void check_bytes(const world *w)
{
    const bs_kv_format *format = &w->g.config.shape.format;
    bs_kv_page_bytes b = bs_kv_canonical_bytes(format, w->g.config.shape.head_dim);
    uint64_t bytes = 0, as_f16 = 0, expected = 0, expected_f16 = 0;
    for (int shard = 0; shard < w->g.config.seq; shard++) {
        uint64_t part;
        bytes += bs_cache_used_bytes(w->g.cache[shard], &part);
        as_f16 += part;
        expected += (uint64_t)w->n_live[shard][0] * b.f16;
        expected += (uint64_t)w->n_live[shard][1] * (b.k + b.k_meta + b.v + b.v_meta);
        expected_f16 += (uint64_t)(w->n_live[shard][0] + w->n_live[shard][1]) * b.f16;
    }
    for (int i = 0; i < MAX_SEQS; i++) /* open pages are not full */
        if (w->seqs[i].used && w->seqs[i].length % 128)
            expected_f16 -= (uint64_t)(128 - w->seqs[i].length % 128) * (b.f16 / 128);
    assert_int_equal(bytes, expected);
    assert_int_equal(as_f16, expected_f16);
}

/* ---- reservations ------------------------------------------------------------------------------------ */

/* Slots of the pool that holds the context that a sequence of n tokens may need on a shard, page by page. */
static int64_t need(const world *w, int shard, int start_s, int64_t n_tokens)
{
    int64_t n = 0, end = is_f16(w) ? (n_tokens + 127) / 128 : n_tokens / 128 - n_recent(w);
    for (int64_t i = n_sink(w); i < end; i++)
        n += bs_cache_page_owner(i, start_s, w->g.config.stripe_pages, w->g.config.seq) == shard;
    return n;
}

/* What is left of the fullest shard with one more sequence. */
static int64_t room(const world *w, int start_s, int64_t n_tokens)
{
    const bs_cache_memory *m = bs_cache_get_memory(w->g.cache[0]);
    int64_t least = INT64_MAX;
    for (int shard = 0; shard < w->g.config.seq; shard++) {
        int64_t left = (is_f16(w) ? m->n_f16_slots : m->n_quant_slots) - need(w, shard, start_s, n_tokens);
        for (int i = 0; i < MAX_SEQS; i++)
            if (w->seqs[i].used) left -= need(w, shard, w->seqs[i].start_s, w->seqs[i].n_reserved);
        if (left < least) least = left;
    }
    return least;
}

static int64_t sum_reserved(const world *w)
{
    int64_t n = 0;
    for (int i = 0; i < MAX_SEQS; i++) n += w->seqs[i].used ? w->seqs[i].n_reserved : 0;
    return n;
}

/* bs_cache_fits against every start; gives whether it fits. */
static bool check_fits(const world *w, int64_t n_tokens, int *best)
{
    int64_t most = -1;
    int n_used = 0;
    bool fits = bs_cache_fits(w->g.cache[w->g.config.seq - 1], n_tokens, best);
    for (int i = 0; i < MAX_SEQS; i++) n_used += w->seqs[i].used;
    for (int start = 0; start < w->g.config.seq; start++)
        if (room(w, start, n_tokens) > most) most = room(w, start, n_tokens);
    assert_int_equal(fits, most >= 0 && n_used < w->g.config.max_seqs);
    if (fits) assert_int_equal(room(w, *best, n_tokens), most);
    return fits;
}

/* ---- operations -------------------------------------------------------------------------------------- */

static int pick(world *w, bool used)
{
    int n = w->g.config.max_seqs, first = (int)rng_below(&w->r, (uint64_t)n);
    for (int i = 0; i < n; i++)
        if (w->seqs[(first + i) % n].used == used) return (first + i) % n;
    return -1;
}

static int64_t random_size(world *w)
{
    uint64_t most = (uint64_t)w->g.config.max_context;
    return 1 + (int64_t)rng_below(&w->r, rng_below(&w->r, 4) == 0 ? 300 : most);
}

static void begin_sequence(sequence *s, int start_s, int64_t n_tokens)
{
    *s = (sequence){.used = true, .start_s = start_s, .n_reserved = n_tokens};
}

/* Where the prompt that is computed next ends; the rest are answers. */
static void choose_prompt(world *w, sequence *s)
{
    int64_t least = s->in_prompt && s->base > s->length ? s->base : s->length;
    s->prompt_end = least + (int64_t)rng_below(&w->r, (uint64_t)(s->n_reserved - least + 1));
}

static void op_start(world *w)
{
    int seq = pick(w, false), start_s = w->start_s, best = -1;
    int64_t n_tokens = random_size(w);
    bool fits = check_fits(w, n_tokens, &best);
    if (seq < 0) return;
    if (start_s < 0)
        start_s = fits && rng_below(&w->r, 2) ? best : (int)rng_below(&w->r, (uint64_t)w->g.config.seq);
    bool full = room(w, start_s, n_tokens) < 0;
    if (sum_reserved(w) + n_tokens <= w->g.config.total_tokens) assert_false(full);
    bs_error_clear();
    assert_int_equal(group_start(&w->g, seq, start_s, n_tokens), full ? BS_STATUS_FULL : BS_STATUS_OK);
    w->n_full += full;
    if (full) return;
    begin_sequence(&w->seqs[seq], start_s, n_tokens);
    choose_prompt(w, &w->seqs[seq]);
}

static void op_free(world *w)
{
    int seq = pick(w, true);
    if (seq < 0) return;
    sequence *s = &w->seqs[seq];
    check_sequence(w, seq);
    group_free(&w->g, seq);
    for (int64_t i = 0; i * 128 < s->length; i++) drop_page(w, s->pages[i]);
    s->used = false;
}

/* Pages that a fork may share, first to last. */
static int64_t count_sealed(const world *w, const sequence *s)
{
    int64_t n = 0;
    while ((n + 1) * 128 <= s->length && (is_f16(w) || n < n_sink(w) || s->pages[n]->quantized)) n++;
    return n;
}

static void share_page(sequence *to, const sequence *from, int64_t i)
{
    to->pages[i] = from->pages[i];
    to->pages[i]->n_owners++;
    to->pages[i]->sealed = true;
}

static void op_fork(world *w)
{
    int src = pick(w, true), dst = pick(w, false);
    if (src < 0 || dst < 0) return;
    const sequence *from = &w->seqs[src];
    int64_t n_tokens = random_size(w);
    int64_t least = from->in_prompt && from->base > from->length ? from->base : from->length;
    bs_status expected = n_tokens < least ? BS_STATUS_RANGE
                         : from->prefilling && count_prefilling(w) == w->g.config.max_prefill_seqs
                             ? BS_STATUS_FULL
                         : room(w, from->start_s, n_tokens) < 0 ? BS_STATUS_FULL
                                                                : BS_STATUS_OK;
    bs_error_clear();
    assert_int_equal(group_fork(&w->g, src, dst, n_tokens), expected);
    w->n_refused += expected != BS_STATUS_OK;
    if (expected != BS_STATUS_OK) return;
    w->n_forks++;
    sequence *to = &w->seqs[dst];
    begin_sequence(to, from->start_s, n_tokens);
    to->in_prompt = from->in_prompt;
    to->prefilling = from->prefilling;
    to->base = from->base;
    to->length = from->length;
    int64_t n_sealed = count_sealed(w, from);
    for (int64_t i = 0; i * 128 < from->length; i++)
        if (i < n_sealed) share_page(to, from, i);
        else to->pages[i] = add_page(w, dst, i, from->pages[i]->id);
    choose_prompt(w, to);
}

static void op_reuse(world *w)
{
    int src = pick(w, true), dst = pick(w, false);
    if (src < 0 || dst < 0) return;
    const sequence *from = &w->seqs[src];
    int64_t n_tokens = random_size(w), n = (int64_t)rng_below(&w->r, (uint64_t)n_tokens + 1), first_pos = -1;
    int64_t kept = (n < from->length ? n : from->length) / 128 - n_recent(w), sealed = count_sealed(w, from);
    if (kept > sealed) kept = sealed;
    if (kept < 0) kept = 0;
    assert_int_equal(bs_cache_reusable(w->g.cache[0], src, n), kept * 128);
    bool full = room(w, from->start_s, n_tokens) < 0;
    bs_error_clear();
    assert_int_equal(group_reuse(&w->g, src, dst, n, n_tokens, &first_pos),
                     full ? BS_STATUS_FULL : BS_STATUS_OK);
    w->n_refused += full;
    if (full) return;
    w->n_reuses++;
    assert_int_equal(first_pos, kept * 128);
    sequence *to = &w->seqs[dst];
    begin_sequence(to, from->start_s, n_tokens);
    to->length = first_pos;
    to->in_prompt = kept > 0;
    to->base = kept > 0 ? 128 * (kept + n_recent(w)) : 0;
    for (int64_t i = 0; i < kept; i++) share_page(to, from, i);
    choose_prompt(w, to);
}

/* ---- steps ------------------------------------------------------------------------------------------- */

/* This sequence's part of a step; false when it is at its end. */
static bool choose_part(world *w, int seq, bs_cache_step_seq *out)
{
    sequence *s = &w->seqs[seq];
    int64_t chunk = w->g.config.chunk_tokens, most;
    if (s->length == s->n_reserved) return false;
    if (s->length >= s->prompt_end && rng_below(&w->r, 100) == 0) choose_prompt(w, s); /* a new prompt */
    bool prefill = s->length < s->prompt_end;
    if (prefill) {
        most = chunk - s->length % chunk;
        if (most > s->prompt_end - s->length) most = s->prompt_end - s->length;
    } else {
        most = rng_below(&w->r, 8) == 0 ? BS_CACHE_MAX_DECODE_TOKENS : 1;
        if (most > s->n_reserved - s->length) most = s->n_reserved - s->length;
    }
    int64_t n = rng_below(&w->r, 2) ? most : 1 + (int64_t)rng_below(&w->r, (uint64_t)most);
    *out = (bs_cache_step_seq){seq, s->length, (int)n, prefill};
    return true;
}

static int choose_step(world *w, bs_cache_step_seq *parts)
{
    int n = 0, left = w->g.config.max_step_tokens;
    bool keep_out = rng_below(&w->r, 50) != 0; /* else too many may go into prefill */
    int n_prefilling = count_prefilling(w);
    for (int i = 0; i < w->g.config.max_seqs; i++) {
        const sequence *s = &w->seqs[i];
        if (!s->used || rng_below(&w->r, 4) == 0 || !choose_part(w, i, &parts[n]) || parts[n].n_tokens > left)
            continue;
        int change = parts[n].prefill - s->prefilling;
        if (keep_out && change > 0 && n_prefilling >= w->g.config.max_prefill_seqs) continue;
        n_prefilling += change;
        left -= parts[n++].n_tokens;
    }
    return n;
}

/* The model's half of bs_cache_step_begin: takes over slots of new and newly quantized pages, checking them.
 * Old f16 slots go to `left`, to be left at the step's end. */
static int begin_part(world *w, const bs_cache_step_seq *t, page *left)
{
    sequence *s = &w->seqs[t->seq];
    int64_t chunk = w->g.config.chunk_tokens, base = t->pos0, n_left = 0;
    if (t->prefill) {
        if (!s->in_prompt) s->base = t->pos0;
        base = t->pos0 / chunk * chunk;
        if (s->base > base) base = s->base;
    }
    s->in_prompt = s->prefilling = t->prefill;
    for (int64_t i = n_sink(w); !is_f16(w) && i < base / 128 - n_recent(w); i++) {
        page *p = s->pages[i];
        if (p->quantized) continue;
        assert_int_equal(p->n_owners, 1);
        assert_false(p->sealed);
        check_slot(w, p, p->id);
        left[n_left++] = *p;
        bs_page_view view = group_page(&w->g, t->seq, i);
        assert_int_equal(view.kind, BS_PAGE_QUANT);
        p->quantized = true;
        take_slot(w, p, view.slot, 0);
    }
    int64_t end = t->pos0 + t->n_tokens;
    for (int64_t i = (t->pos0 + 127) / 128; i * 128 < end; i++) s->pages[i] = add_page(w, t->seq, i, 0);
    for (int64_t i = t->pos0 / 128; i * 128 < end; i++) { /* what is written is nobody else's */
        assert_int_equal(s->pages[i]->n_owners, 1);
        assert_false(s->pages[i]->sealed || s->pages[i]->quantized);
    }
    return (int)n_left;
}

static void op_step(world *w)
{
    static page left[MAX_SEQS * MAX_PAGES];
    bs_cache_step_seq parts[MAX_SEQS];
    int n = choose_step(w, parts), n_left = 0, n_prefilling = count_prefilling(w);
    for (int i = 0; i < n; i++) n_prefilling += parts[i].prefill - w->seqs[parts[i].seq].prefilling;
    bool full = n_prefilling > w->g.config.max_prefill_seqs;
    bs_error_clear();
    assert_int_equal(group_begin(&w->g, parts, n), full ? BS_STATUS_FULL : BS_STATUS_OK);
    w->n_refused += full;
    if (full) return;
    for (int i = 0; i < n; i++) n_left += begin_part(w, &parts[i], left + n_left);
    for (int i = 0; i < n_left; i++) check_slot(w, &left[i], left[i].id); /* still there to be read */
    check_counts(w);
    group_end(&w->g);
    for (int i = 0; i < n_left; i++) leave_slot(w, &left[i]);
    for (int i = 0; i < n; i++) {
        w->seqs[parts[i].seq].length += parts[i].n_tokens;
        w->n_tokens += parts[i].n_tokens;
    }
}

/* ---- runs -------------------------------------------------------------------------------------------- */

typedef struct scenario {
    const char *format;
    int seq, stripe_pages, chunk_tokens, max_seqs, max_prefill_seqs, start_s;
    int64_t max_context, total_tokens;
} scenario;

static void run(const scenario *c, uint64_t seed)
{
    static world w;
    memset(&w, 0, sizeof w);
    w.r.state = seed;
    w.start_s = c->start_s;
    bs_cache_config config = group_config(c->format, c->seq);
    config.stripe_pages = c->stripe_pages;
    config.chunk_tokens = c->chunk_tokens;
    config.max_seqs = c->max_seqs;
    config.max_prefill_seqs = c->max_prefill_seqs;
    config.max_context = c->max_context;
    config.total_tokens = c->total_tokens;
    config.max_step_tokens = c->max_prefill_seqs * c->chunk_tokens + 64 * c->max_seqs;
    group_open(&w.g, &config);
    assert_true(bs_cache_get_memory(w.g.cache[0])->n_f16_slots <= MAX_SLOTS);
    for (int i = 0; i < N_OPS; i++) {
        uint64_t what = rng_below(&w.r, 100);
        if (what < 70) op_step(&w);
        else if (what < 80) op_start(&w);
        else if (what < 85) op_fork(&w);
        else if (what < 90) op_reuse(&w);
        else op_free(&w);
        check_counts(&w);
        check_sequence(&w, (int)rng_below(&w.r, (uint64_t)config.max_seqs));
        if (i % 16 == 0) check_bytes(&w);
    }
    printf("%-12s seed %llu: %lld tokens, %lld forks, %lld reuses, %lld starts and %lld others refused\n",
           c->format, (unsigned long long)seed, (long long)w.n_tokens, (long long)w.n_forks,
           (long long)w.n_reuses, (long long)w.n_full, (long long)w.n_refused);
    assert_true(w.n_tokens > N_OPS && w.n_forks > 20 && w.n_reuses > 20 && w.n_refused > 0);
    while (pick(&w, true) >= 0) op_free(&w);
    for (int shard = 0; shard < config.seq; shard++)
        assert_int_equal(w.n_live[shard][0] + w.n_live[shard][1], 0);
    check_counts(&w);
    check_bytes(&w);
    group_close(&w.g);
}

static void test_random(void **state)
{
    static const scenario scenarios[] = {
        /* format, seq, stripe, chunk, seqs, prefills, start_s, context, total */
        {"int4", 1, 8, 2048, 6, 2, 0, 8000, 24000},      {"int4", 2, 8, 512, 8, 1, -1, 6000, 20000},
        {"int4:s0:r0", 3, 2, 384, 5, 3, -1, 5000, 9000}, {"int2:s3:r5", 5, 8, 1024, 8, 4, 0, 8192, 12000},
        {"int8:s1:r2", 5, 1, 128, 8, 8, 3, 4000, 8000},  {"k4v2:s9:r17", 2, 3, 256, 7, 2, -1, 8000, 20000},
        {"f16", 3, 8, 512, 8, 2, -1, 4000, 5000},
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) run(&scenarios[i], 0xc0ffee + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
