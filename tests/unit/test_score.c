/* test_score.c: scores of logits against plain sums in f64, however the vocabulary is cut; ties, ends, values that are no
 * numbers; quantiles. */
#include "src/engine/score.h"
#include "tests/tolerances.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

enum { VOCAB = 1013, ROWS = 4, MAX_SHARDS = 5 };

static float logits[ROWS][VOCAB];

static float draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) * 0x1p-24f;
}

/* Row 0 is the reference; the others move away from it, the last one far; the spread is a model's. */
static void make_rows(uint64_t seed)
{
    for (int i = 0; i < VOCAB; i++) logits[0][i] = 30 * draw(&seed) * draw(&seed) - 12;
    for (int row = 1; row < ROWS; row++)
        for (int i = 0; i < VOCAB; i++)
            logits[row][i] = logits[row - 1][i] + (float)(row * row) * (draw(&seed) - 0.5f);
}

/* Shards end at ends[0] ≤ ends[1] … = VOCAB. */
static void score(const int *ends, int n_shards, int32_t next, bs_score *out)
{
    static double weights[VOCAB];
    bs_score_part parts[MAX_SHARDS][ROWS + 3]; /* room between the shards */
    for (int s = 0, first = 0; s < n_shards; first = ends[s++]) {
        const float *rows[ROWS];
        for (int row = 0; row < ROWS; row++) rows[row] = ends[s] > first ? logits[row] + first : NULL;
        bs_score_shard(rows, ROWS, (bs_range){first, ends[s] - first}, next, weights, parts[s]);
    }
    bs_score_merge(parts[0], n_shards, ROWS + 3, ROWS, out);
}

static double log_sum_exp(const float *x)
{
    long double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += expl((long double)x[i]);
    return (double)logl(sum);
}

static const int cuts[][MAX_SHARDS + 1] = {/* number of shards, then where they end */
                                           {1, VOCAB},
                                           {2, 500, VOCAB},
                                           {3, 0, 1, VOCAB},
                                           {4, 384, 384, 1000, VOCAB},
                                           {5, 200, 400, 600, VOCAB, VOCAB}};
enum { N_CUTS = sizeof cuts / sizeof *cuts };

static void any_cut_gives_the_plain_sums(void **state)
{
    for (int32_t next = 0; next < VOCAB; next += 337) {
        make_rows((uint64_t)next + 1);
        double lse[ROWS], kl[ROWS];
        for (int row = 0; row < ROWS; row++) {
            lse[row] = log_sum_exp(logits[row]);
            long double sum = 0;
            for (int i = 0; i < VOCAB; i++) {
                long double log_p = logits[0][i] - (long double)lse[0],
                            log_q = logits[row][i] - (long double)lse[row];
                sum += expl(log_p) * (log_p - log_q);
            }
            kl[row] = (double)sum;
        }
        assert_true(kl[1] > 1e-4 && kl[3] > 0.1); /* something to measure */
        for (int c = 0; c < N_CUTS; c++) {
            bs_score got[ROWS];
            score(cuts[c] + 1, cuts[c][0], next, got);
            for (int row = 0; row < ROWS; row++) {
                int best = 0;
                for (int i = 1; i < VOCAB; i++)
                    if (logits[row][i] > logits[row][best]) best = i;
                assert_true(got[row].finite);
                assert_int_equal(got[row].best, best);
                assert_true(fabs(got[row].nll - (lse[row] - logits[row][next])) <=
                            TOL_SCORE * fabs(lse[row]));
                assert_true(fabs(got[row].kl - kl[row]) <= TOL_SCORE * 10);
            }
            assert_true(got[0].kl == 0);
        }
    }
}

/* The lowest id wins, within a shard and over shards. */
static void ties_go_to_the_lowest_id(void **state)
{
    make_rows(3);
    logits[1][77] = logits[1][78] = logits[1][900] = 50;
    logits[2][0] = logits[2][VOCAB - 1] = 50;
    for (int c = 0; c < N_CUTS; c++) {
        bs_score got[ROWS];
        score(cuts[c] + 1, cuts[c][0], 5, got);
        assert_int_equal(got[1].best, 77);
        assert_int_equal(got[2].best, 0);
    }
}

static void what_is_no_number_is_told(void **state)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int b = 0; b < 3; b++)
        for (int c = 0; c < N_CUTS; c++) {
            bs_score got[ROWS];
            make_rows(9);
            logits[2][640] = bad[b];
            score(cuts[c] + 1, cuts[c][0], 5, got);
            assert_true(got[1].finite && got[3].finite);
            assert_false(got[2].finite);
            make_rows(9);
            logits[0][3] = bad[b];
            score(cuts[c] + 1, cuts[c][0], 5, got);
            assert_false(got[1].finite);
        }
}

/* As numpy's percentile counts by default. */
static void quantiles_are_linear_between_neighbours(void **state)
{
    float x[] = {5, 1, 4, 2, 3};
    assert_true(bs_score_quantile(x, 5, 0) == 1);
    assert_true(bs_score_quantile(x, 5, 0.5) == 3);
    assert_true(fabs(bs_score_quantile(x, 5, 0.9) - 4.6) < 1e-12);
    assert_true(bs_score_quantile(x, 5, 1) == 5);
    assert_true(bs_score_quantile(x, 1, 0.99) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_cut_gives_the_plain_sums),
                                       cmocka_unit_test(ties_go_to_the_lowest_id),
                                       cmocka_unit_test(what_is_no_number_is_told),
                                       cmocka_unit_test(quantiles_are_linear_between_neighbours)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
