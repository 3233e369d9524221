/* test_prefill_model.c: operations counted token by token, and times put together from chunks: sums where they were timed,
 * straight lines between them, the fitted line beyond. */
#include "src/cli/prefill_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fabs(want))) fail_msg("%.17g is not %.17g", got, want);
}

static void operations_are_counted(void **state)
{
    const bs_layer_desc layers[3] = {{0, true}, {100, true}, {1, true}};
    const bs_model_desc desc = {.n_layers = 3,
                                .n_hidden = 48,
                                .n_heads = 6,
                                .n_kv_heads = 2,
                                .head_dim = 8,
                                .n_ffn = 100,
                                .layers = layers};
    const int64_t firsts[] = {0, 1, 50, 99, 100, 101, 1000}, lengths[] = {1, 2, 49, 50, 51, 128, 300};
    near(bs_prefill_dense_flop(&desc, 5), 2.0 * 5 * 3 * (48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 100));
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < 7; k++) {
            double want = 0;
            for (int layer = 0; layer < 3; layer++)
                for (int64_t p = firsts[i]; p < firsts[i] + lengths[k]; p++) {
                    const int64_t window = layers[layer].window;
                    want += 4.0 * 6 * 8 * (double)(window > 0 && window < p + 1 ? window : p + 1);
                }
            near(bs_prefill_attend_flop(&desc, firsts[i], lengths[k]), want);
        }
}

/* Chunks of a machine whose tokens take 2 + 0.01 p ms. */
static bs_prefill_point exact(int64_t first, int64_t n)
{
    return (bs_prefill_point){first, n, (double)n * (2 + 0.01 * ((double)first + ((double)n - 1) / 2))};
}

static double exact_ms(int64_t first, int64_t end)
{
    return exact(first, end - first).ms;
}

static void a_line_is_found(void **state)
{
    const bs_prefill_point points[] = {exact(0, 100), exact(100, 100), exact(900, 100), exact(5000, 37)};
    const bs_prefill_line line = bs_prefill_fit(points, 4);
    near(line.token_ms, 2);
    near(line.pair_ms, 0.01);
    const bs_prefill_line one = bs_prefill_fit(points, 1), none = bs_prefill_fit(points, 0);
    near(one.token_ms, points[0].ms / 100);
    assert_true(one.pair_ms == 0 && none.token_ms == 0 && none.pair_ms == 0);
    /* Times that fall, or that would be below zero at the start, give neither a nor b below zero. */
    const bs_prefill_point falling[] = {{0, 10, 100}, {10, 10, 50}}, steep[] = {{100, 10, 1}, {200, 10, 100}};
    assert_true(bs_prefill_fit(falling, 2).pair_ms == 0 && bs_prefill_fit(falling, 2).token_ms == 7.5);
    assert_true(bs_prefill_fit(steep, 2).token_ms == 0 && bs_prefill_fit(steep, 2).pair_ms > 0);
}

static void totals_are_put_together(void **state)
{
    int64_t n;
    bs_prefill_point points[] = {exact(0, 100), exact(100, 100), exact(900, 100)};
    points[1].ms *= 3; /* what was timed is not smoothed */
    near(bs_prefill_total_ms(points, 2, 0, 200, &n), points[0].ms + points[1].ms);
    assert_int_equal(n, 200);
    near(bs_prefill_total_ms(points, 2, 0, 150, &n), points[0].ms + points[1].ms / 2);
    assert_int_equal(n, 150);
    points[1] = exact(100, 100);
    near(bs_prefill_total_ms(points, 3, 0, 1000, &n), exact_ms(0, 1000)); /* between 200 and 900 */
    assert_int_equal(n, 300);
    near(bs_prefill_total_ms(points, 3, 0, 50000, &n), exact_ms(0, 50000)); /* and behind 1,000 */
    assert_int_equal(n, 300);
    near(bs_prefill_total_ms(points + 2, 1, 0, 900, &n), 900 * points[2].ms / 100);
    assert_int_equal(n, 0);
    near(bs_prefill_total_ms(points + 1, 2, 0, 100, &n), exact_ms(0, 100)); /* and before */
    assert_true(bs_prefill_total_ms(points, 0, 0, 100, &n) == 0 && n == 0);
    assert_true(bs_prefill_total_ms(points, 3, 70, 70, &n) == 0 && n == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(operations_are_counted),
                                       cmocka_unit_test(a_line_is_found),
                                       cmocka_unit_test(totals_are_put_together)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
