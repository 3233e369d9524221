/* test_merge.c: merging partial softmax states.
 *
 * A softmax over n keys is cut into parts; any partition, merged by any of the three ways (merge, weigh + sum
 * + finish, fold + sum), must give the whole, computed in double. Empty parts carry NaN in O and must not
 * show.
 */
#include "tests/kernels/kv_fixture.h"
#include "tests/tolerances.h"

enum { MAX_PARTS = 8, ROWS = 7, D = 64, N_KEYS = 57 };

typedef struct states {
    int n_parts;
    float o[MAX_PARTS][ROWS][D], lse[MAX_PARTS][ROWS];
    double o_whole[ROWS][D], lse_whole[ROWS];
} states;

static bs_device *device;
static bs_stream *stream;

/* Keys of a row go to random parts; scores stand around `level` (± 1e4 in places). Rows 5 and 6: all but one
 * part empty, all empty. */
static void draw_states(states *x, int n_parts, double level, double spread, uint64_t *state)
{
    x->n_parts = n_parts;
    for (int row = 0; row < ROWS; row++) {
        double score[N_KEYS], sum[MAX_PARTS] = {0}, max = level + 20 * spread;
        int part[N_KEYS];
        static double o[MAX_PARTS][D], value[N_KEYS][D];
        memset(o, 0, sizeof o);
        for (int k = 0; k < N_KEYS; k++) {
            score[k] = level + spread * kv_normal(state);
            part[k] = row >= 5 ? n_parts - 1 : (int)(kv_random(state) % (uint64_t)n_parts);
            double w = row == 6 ? 0 : exp(score[k] - max);
            sum[part[k]] += w;
            for (int d = 0; d < D; d++) {
                value[k][d] = kv_normal(state);
                o[part[k]][d] += w * value[k][d];
            }
        }
        double total = 0, whole[D] = {0};
        for (int r = 0; r < n_parts; r++) {
            total += sum[r];
            x->lse[r][row] = sum[r] > 0 ? (float)(max + log(sum[r])) : -INFINITY;
            for (int d = 0; d < D; d++) {
                whole[d] += o[r][d];
                x->o[r][row][d] = sum[r] > 0 ? (float)(o[r][d] / sum[r]) : NAN;
            }
        }
        x->lse_whole[row] = total > 0 ? max + log(total) : -INFINITY;
        for (int d = 0; d < D; d++) x->o_whole[row][d] = total > 0 ? whole[d] / total : 0;
    }
}

/* Replaces the exact whole by the f32 states' own, so that what an f32 LSE of ±1e4 cannot hold is not held
 * against the merge. */
static void whole_of_states(states *x)
{
    for (int row = 0; row < ROWS; row++) {
        double max = -INFINITY, total = 0;
        for (int r = 0; r < x->n_parts; r++)
            if (x->lse[r][row] > max) max = x->lse[r][row];
        for (int d = 0; d < D; d++) x->o_whole[row][d] = 0;
        for (int r = 0; r < x->n_parts; r++) {
            if (x->lse[r][row] == -INFINITY) continue;
            double w = exp(x->lse[r][row] - max);
            total += w;
            for (int d = 0; d < D; d++) x->o_whole[row][d] += w * x->o[r][row][d];
        }
        for (int d = 0; d < D; d++) x->o_whole[row][d] = total > 0 ? x->o_whole[row][d] / total : 0;
        x->lse_whole[row] = total > 0 ? max + log(total) : -INFINITY;
    }
}

static void check(const states *x, float o[ROWS][D], const float *lse)
{
    for (int row = 0; row < ROWS; row++) {
        for (int d = 0; d < D; d++) {
            if (!(fabs(o[row][d] - x->o_whole[row][d]) <= TOL_MERGE_O))
                fail_msg("%d parts, row %d, %d: %.9g, not %.9g", x->n_parts, row, d, o[row][d],
                         x->o_whole[row][d]);
        }
        if (!lse) continue;
        double exact = x->lse_whole[row];
        if (isinf(exact)) assert_true(lse[row] == -INFINITY);
        else if (!(fabs(lse[row] - exact) <= TOL_MERGE_LSE * (1 + fabs(exact))))
            fail_msg("%d parts, row %d: LSE %.9g, not %.9g", x->n_parts, row, lse[row], exact);
    }
}

static void check_merge(const states *x)
{
    static float o[ROWS][D];
    float lse[ROWS];
    memset(o, KV_POISON, sizeof o);
    bs_merge_args all = {x->n_parts, ROWS, D, x->o[0][0], x->lse[0], ROWS * D, ROWS, o[0], lse};
    assert_int_equal(bs_op_merge(stream, &all), BS_STATUS_OK);
    check(x, o, lse);
    all.lse_out = NULL;
    assert_int_equal(bs_op_merge(stream, &all), BS_STATUS_OK);
    check(x, o, NULL);
}

/* Two merges, cut at every place, and a third of their results. */
static void check_merge_of_merges(const states *x)
{
    static float o[2][ROWS][D], out[ROWS][D];
    float lse[2][ROWS], lse_out[ROWS];
    for (int cut = 1; cut < x->n_parts; cut++) {
        memset(o, KV_POISON, sizeof o);
        bs_merge_args left = {cut, ROWS, D, x->o[0][0], x->lse[0], ROWS * D, ROWS, o[0][0], lse[0]};
        bs_merge_args right = {x->n_parts - cut, ROWS, D,       x->o[cut][0], x->lse[cut],
                               ROWS * D,         ROWS, o[1][0], lse[1]};
        bs_merge_args both = {2, ROWS, D, o[0][0], lse[0], ROWS * D, ROWS, out[0], lse_out};
        assert_int_equal(bs_op_merge(stream, &left), BS_STATUS_OK);
        assert_int_equal(bs_op_merge(stream, &right), BS_STATUS_OK);
        assert_int_equal(bs_op_merge(stream, &both), BS_STATUS_OK);
        check(x, out, lse_out);
    }
}

static void check_weigh_and_finish(const states *x)
{
    static float weighed[ROWS][D + 1], sum[ROWS][D + 1], o[ROWS][D];
    float max[ROWS], lse[ROWS];
    for (int row = 0; row < ROWS; row++) {
        max[row] = -INFINITY;
        for (int r = 0; r < x->n_parts; r++) max[row] = fmaxf(max[row], x->lse[r][row]);
    }
    memset(sum, 0, sizeof sum);
    for (int r = 0; r < x->n_parts; r++) {
        memset(weighed, KV_POISON, sizeof weighed);
        bs_merge_weigh_args args = {ROWS, D, x->o[r][0], x->lse[r], max, weighed[0]};
        assert_int_equal(bs_op_merge_weigh(stream, &args), BS_STATUS_OK);
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i <= D; i++) sum[row][i] += weighed[row][i];
    }
    memset(o, KV_POISON, sizeof o);
    bs_merge_finish_args args = {ROWS, D, sum[0], max, o[0], lse};
    assert_int_equal(bs_op_merge_finish(stream, &args), BS_STATUS_OK);
    check(x, o, lse);
}

static void check_fold(const states *x)
{
    static float sum[ROWS][D], o[ROWS][D];
    memset(sum, 0, sizeof sum);
    for (int r = 0; r < x->n_parts; r++) {
        memcpy(o, x->o[r], sizeof o);
        bs_merge_fold_args args = {x->n_parts, r, ROWS, D, x->lse[0], o[0]};
        assert_int_equal(bs_op_merge_fold(stream, &args), BS_STATUS_OK);
        for (int row = 0; row < ROWS; row++)
            for (int d = 0; d < D; d++) sum[row][d] += o[row][d];
    }
    check(x, sum, NULL);
}

static void test_partitions(void **cmocka_state)
{
    static states x;
    static const struct {
        double level, spread;
        bool large; /* the f32 nearest to such an LSE is too far from it for the tolerance */
    } kinds[] = {{0, 1, false}, {0, 3, false}, {3, 0, false}, {0, 40, true}, {1e4, 5, true}, {-1e4, 5, true}};
    uint64_t state = 70;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        for (int n_parts = 1; n_parts <= MAX_PARTS; n_parts++) {
            draw_states(&x, n_parts, kinds[i].level, kinds[i].spread, &state);
            if (kinds[i].large) whole_of_states(&x);
            else check_merge_of_merges(&x);
            check_merge(&x);
            check_weigh_and_finish(&x);
            check_fold(&x);
        }
    }
}

/* States whose LSE are 2e4 apart: the smaller has weight 0 and its NaN must not show. One state is itself,
 * bit for bit. */
static void test_extremes(void **cmocka_state)
{
    float o[2][D], out[D], lse[2] = {-1e4f, 1e4f}, lse_out;
    for (int d = 0; d < D; d++) {
        o[0][d] = NAN;
        o[1][d] = (float)d * 0.3f;
    }
    bs_merge_args args = {2, 1, D, o[0], lse, D, 1, out, &lse_out};
    assert_int_equal(bs_op_merge(stream, &args), BS_STATUS_OK);
    assert_memory_equal(out, o[1], sizeof out);
    assert_true(lse_out == 1e4f);
    bs_merge_args one = {1, 1, D, o[1], lse, D, 1, out, &lse_out};
    assert_int_equal(bs_op_merge(stream, &one), BS_STATUS_OK);
    assert_memory_equal(out, o[1], sizeof out);
    assert_true(lse_out == -1e4f);
}

/* A NaN LSE is a fault of attention and must not pass for an empty state. */
static void test_nan_shows(void **cmocka_state)
{
    float o[2][D] = {{0}}, out[D], lse[2] = {NAN, -INFINITY}, lse_out;
    bs_merge_args args = {2, 1, D, o[0], lse, D, 1, out, &lse_out};
    assert_int_equal(bs_op_merge(stream, &args), BS_STATUS_OK);
    assert_true(isnan(lse_out) && isnan(out[0]));
}

static int open_device(void **state)
{
    return kv_open_device(BS_ISA_AUTO, &device, &stream) ? 0 : -1;
}

static int close_device(void **state)
{
    kv_close_device(device, stream);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_partitions),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_nan_shows),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
