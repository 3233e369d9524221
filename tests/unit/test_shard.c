/* test_shard.c: properties of every cut: each grid up to 24 ranks, several shapes and blocks. The shards'
 * ranges tile the whole exactly, begin at multiples of the unit, differ by at most one unit, and the first
 * ones are the larger. */
#include "config.h"
#include "src/model/model_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

enum { MAX_RANKS = 24 };

static const bs_shard_shape shapes[] = {
    {32, 8, 128, 14336, 128256, 32, 32, 32},    /* Llama-3.1-8B, Q4_1 */
    {32, 8, 128, 14336, 128256, 256, 256, 256}, /* the same, K-quants */
    {9, 3, 64, 1536, 49152, 32, 32, 32},        /* SmolLM2-135M */
    {9, 3, 64, 1536, 49152, 256, 256, 32},      /* a head cut inside a block */
    {9, 9, 64, 1000, 50257, 1, 1, 1},           /* last units short */
    {64, 1, 128, 31, 7, 1, 1, 1},               /* fewer units than ranks */
    {5, 5, 64, 97, 509, 1, 32, 1},
    {24, 24, 128, 8192, 32000, 256, 32, 256},
};

static int64_t unit_of(int block)
{
    return block < 32 ? 32 : block; /* lcm(32, block) of the blocks above */
}

/* ranges[0 … n) against [first, first + total): the properties at the top of this file. */
static void check_tiling(const bs_range *ranges, int n, int64_t first, int64_t total, int64_t unit)
{
    int64_t at = first, end = first + total, fewest = INT64_MAX, most = -1, before = INT64_MAX;
    for (int i = 0; i < n; i++) {
        assert_true(ranges[i].n >= 0);
        if (ranges[i].n > 0) {
            assert_int_equal(ranges[i].first, at);
            assert_true(at == first || at % unit == 0);
        }
        at += ranges[i].n;
        assert_true(ranges[i].first >= first && ranges[i].first + ranges[i].n <= end);
        int64_t units = ranges[i].n == 0 ? 0 : (at + unit - 1) / unit - ranges[i].first / unit;
        assert_true(units <= before);
        before = units;
        fewest = units < fewest ? units : fewest;
        most = units > most ? units : most;
    }
    assert_int_equal(at, end);
    assert_true(most - fewest <= 1);
}

static void check_grid(const bs_shard_shape *shape, int heads, int seq, bs_merge_method merge)
{
    bs_shard shards[MAX_RANKS];
    bs_range ranges[MAX_RANKS], o_cols[MAX_RANKS];
    int size = heads * seq;
    for (int r = 0; r < size; r++) {
        bs_grid grid = {
            .rank = r, .size = size, .heads = heads, .seq = seq, .head_shard = r / seq, .seq_shard = r % seq};
        bs_shard_cut(shape, &grid, merge, &shards[r]);
    }
    for (int r = 0; r < size; r++) ranges[r] = shards[r].ffn;
    check_tiling(ranges, size, 0, shape->n_ffn, unit_of(shape->ffn_block));
    for (int r = 0; r < size; r++) ranges[r] = shards[r].vocab;
    check_tiling(ranges, size, 0, shape->n_vocab, unit_of(shape->vocab_block));
    int64_t kv_at = 0, D = shape->head_dim, group = shape->n_heads / shape->n_kv_heads;
    for (int h = 0; h < heads; h++, kv_at += shape->n_kv_heads / heads) {
        bs_range kv = shards[h * seq].kv_heads, q = shards[h * seq].heads;
        assert_int_equal(kv.first, kv_at);
        assert_int_equal(kv.n, shape->n_kv_heads / heads);
        assert_int_equal(q.first, kv.first * group);
        assert_int_equal(q.n, kv.n * group);
        for (int s = 0; s < seq; s++) {
            const bs_shard *shard = &shards[h * seq + s];
            assert_true(shard->kv_heads.first == kv.first && shard->kv_heads.n == kv.n);
            assert_true(shard->heads.first == q.first && shard->heads.n == q.n);
            o_cols[s] = shard->o_cols;
            if (merge != BS_MERGE_FOLD) continue;
            assert_int_equal(shard->o_cols.first, q.first * D);
            assert_int_equal(shard->o_cols.n, q.n * D);
        }
        if (merge != BS_MERGE_FOLD) check_tiling(o_cols, seq, q.first * D, q.n * D, unit_of(shape->o_block));
    }
}

static void test_every_grid(void **state)
{
    int n_grids = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int heads = 1; heads <= MAX_RANKS; heads++)
            for (int seq = 1; heads * seq <= MAX_RANKS; seq++) {
                if (shapes[i].n_kv_heads % heads != 0) continue;
                check_grid(&shapes[i], heads, seq, BS_MERGE_ALLREDUCE);
                check_grid(&shapes[i], heads, seq, BS_MERGE_ALLGATHER);
                check_grid(&shapes[i], heads, seq, BS_MERGE_FOLD);
                n_grids++;
            }
    print_message("%d grids\n", n_grids);
}

/* Numbers worked out by hand, so that a wrong rule that keeps the properties is seen. */
static void test_known_cuts(void **state)
{
    bs_shard shard;
    bs_grid grid = {.rank = 5, .size = 6, .heads = 3, .seq = 2, .head_shard = 2, .seq_shard = 1};
    const bs_shard_shape smol = {9, 3, 64, 1536, 49152, 256, 32, 32};
    bs_shard_cut(&smol, &grid, BS_MERGE_ALLREDUCE, &shard);
    assert_true(shard.heads.first == 6 && shard.heads.n == 3);
    assert_true(shard.o_cols.first == 512 &&
                shard.o_cols.n == 64); /* 384 … 575: units 256 … 511 and 512 … 767 */
    assert_true(shard.ffn.first == 1280 && shard.ffn.n == 256); /* 48 units over 6 */
    grid = (bs_grid){.rank = 1, .size = 5, .heads = 1, .seq = 5, .seq_shard = 1};
    bs_shard_cut(&smol, &grid, BS_MERGE_ALLREDUCE, &shard);
    assert_true(shard.o_cols.first == 256 && shard.o_cols.n == 256); /* 3 units over 5 */
    assert_true(shard.ffn.first == 320 && shard.ffn.n == 320);       /* 10 10 10 9 9 units */
    grid = (bs_grid){.rank = 4, .size = 5, .heads = 1, .seq = 5, .seq_shard = 4};
    bs_shard_cut(&smol, &grid, BS_MERGE_ALLREDUCE, &shard);
    assert_int_equal(shard.o_cols.n, 0);
    assert_true(shard.ffn.first == 1248 && shard.ffn.n == 288);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_grid), cmocka_unit_test(test_known_cuts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
