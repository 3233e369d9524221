/* test_forced.c: a given text through an engine: the same logits as plans by hand, one text after the other, and each
 * shard's own logits where they are not gathered. */
#include "src/engine/forced.h"
#include "tests/unit/engine_fixture.h"

enum { N = 500, CHUNK = 128, STEP = 100 };

static fixture f;

static int set_up(void **state)
{
    open_model(&f, "test_forced");
    return 0;
}

static int tear_down(void **state)
{
    close_model(&f);
    return 0;
}

static bs_engine_config small_config(const char *kv)
{
    bs_engine_config config = make_config(kv);
    config.chunk_tokens = CHUNK;
    config.max_step_tokens = STEP;
    config.max_seqs = config.max_prefill_seqs = 1;
    config.max_context = config.total_tokens = N;
    return config;
}

static void take(const bs_step_result *result, int64_t pos, float *logits)
{
    memcpy(logits + pos * f.n_vocab, result->logits,
           (size_t)result->n_logit_rows * (size_t)f.n_vocab * sizeof *logits);
}

/* Steps of 100 and 28: to the next multiple of 128. */
static void by_hand(const int32_t *ids, float *logits)
{
    for (int pos = 0, n; pos < N; pos += n) {
        n = pos % CHUNK == 0 ? STEP : CHUNK - STEP;
        if (n > N - pos) n = N - pos;
        begin_plan(&f);
        if (pos == 0) add_start(&f, 0, N, &greedy);
        add_tokens(&f, 0, pos, ids + pos, n, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_ALL_LOGITS);
        bs_step_result result = run_plan(&f);
        take(&result, pos, logits);
    }
}

static void by_forced(bs_forced *forced, const int32_t *ids, float *logits)
{
    bs_forced_begin(forced, N);
    for (int64_t pos; (pos = bs_forced_position(forced)) < N;) {
        bs_step_result result;
        int n = bs_forced_next(forced, N);
        assert_ok(
            bs_forced_step(forced, ids + pos, n, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_ALL_LOGITS, &result));
        assert_int_equal(result.n_logit_rows, n);
        take(&result, pos, logits);
    }
}

/* Twice the same text, another between them; a rank alone has all ids in its shard. */
static void text_after_text(void **state)
{
    size_t bytes = (size_t)N * (size_t)f.n_vocab * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    int32_t ids[N], other[N];
    bs_forced *forced;
    make_ids(&f, 11, ids, N);
    make_ids(&f, 12, other, N);
    for (int shard = 0; shard < 2; shard++) {
        bs_engine_config config = small_config("int2:s0:r0");
        open_engine(&f, &config);
        by_hand(ids, want);
        close_engine(&f);
        config.shard_logits = shard;
        open_engine(&f, &config);
        bs_range vocab = bs_engine_vocab(f.engine);
        assert_true(vocab.first == 0 && vocab.n == f.n_vocab);
        assert_ok(bs_forced_open(f.engine, &forced));
        for (int turn = 0; turn < 3; turn++) {
            memset(got, 0xff, bytes);
            by_forced(forced, turn == 1 ? other : ids, got);
            if (turn == 1) assert_memory_not_equal(got, want, bytes);
            else assert_memory_equal(got, want, bytes);
        }
        bs_forced_close(forced);
        close_engine(&f);
    }
    free(got);
    free(want);
}

/* On three ranks: rank 0 gathers nothing, the others keep what is theirs. */
static void shards_share_the_memory(void **state)
{
    for (int rank = 0; rank < 3; rank++) {
        bs_engine_config config = small_config("int4");
        bs_grid grid = {.rank = rank, .size = 3, .heads = 1, .seq = 3, .seq_shard = rank};
        bs_engine_memory none, all, own;
        bs_shard shard;
        assert_ok(bs_shard_compute(f.model, &grid, config.merge, &shard));
        assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &all));
        config.shard_logits = true;
        assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &own));
        config.all_logits = false;
        assert_ok(bs_engine_plan_memory(f.model, f.device, &grid, &config, &none));
        uint64_t host = (uint64_t)STEP * (uint64_t)shard.vocab.n * sizeof(float);
        assert_true(own.logits_bytes >= none.logits_bytes + host);
        assert_true(own.logits_bytes <= none.logits_bytes + 2 * host + 65536);
        assert_true(rank > 0 || all.logits_bytes > own.logits_bytes + host);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(text_after_text),
                                       cmocka_unit_test(shards_share_the_memory)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
