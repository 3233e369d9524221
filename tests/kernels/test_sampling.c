/* test_sampling.c: candidates and draws: a vocabulary cut over shards gives the token of one shard; the
 * generator's known answers; each cut by its definition. */
#include "kernels/philox.h"
#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 5003, ROWS = 3 };

static bs_device *device;
static bs_stream *stream;
static float logits[ROWS][VOCAB];

static float noise(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(int32_t)*seed * 0x1p-31f;
}

static void make_logits(uint32_t seed)
{
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < VOCAB; i++) logits[r][i] = floorf(noise(&seed) * 40) / 4; /* many ties */
}

/* Samples ROWS rows with the vocabulary cut into n_shards, one of them empty when n_shards > 2. */
static void sample(int n_shards, const bs_sampling *sampling, const uint64_t *const *seen, int32_t *token,
                   float *logprob)
{
    bool all = bs_sampling_needs_all(&sampling[0]);
    int n_out = all ? VOCAB : BS_MAX_CANDIDATES;
    bs_candidate *lists = malloc((size_t)(n_shards * ROWS * n_out) * sizeof *lists),
                 *scratch = malloc((size_t)(n_shards * n_out) * sizeof *scratch);
    float *lse = malloc((size_t)(n_shards * ROWS) * sizeof *lse), *copy = malloc(sizeof logits);
    int32_t position[ROWS] = {7, 8, 9}, draw[ROWS] = {0, 0, 1};
    int first = 0;
    for (int s = 0; s < n_shards; s++) {
        int last = s == n_shards - 1 ? VOCAB : n_shards > 2 && s == 1 ? first : VOCAB * (s + 1) / n_shards;
        int n = last - first;
        for (int r = 0; r < ROWS; r++) memcpy(copy + r * VOCAB, logits[r] + first, (size_t)n * sizeof(float));
        bs_candidates_args args = {.n_rows = ROWS,
                                   .logits = copy,
                                   .ld = VOCAB,
                                   .vocab0 = first,
                                   .n_vocab = n,
                                   .sampling = sampling,
                                   .seen = seen,
                                   .n_out = n_out,
                                   .out = lists + (size_t)s * ROWS * (size_t)n_out,
                                   .lse = lse + s * ROWS};
        assert_int_equal(bs_op_candidates(stream, &args), BS_STATUS_OK);
        first = last;
    }
    bs_sample_args args = {.n_rows = ROWS,
                           .n_shards = n_shards,
                           .n_per_shard = n_out,
                           .candidates = lists,
                           .lse = lse,
                           .shard_stride = (int64_t)ROWS * n_out,
                           .lse_stride = ROWS,
                           .sampling = sampling,
                           .position = position,
                           .draw = draw,
                           .scratch = scratch,
                           .token = token,
                           .logprob = logprob};
    assert_int_equal(bs_op_sample(stream, &args), BS_STATUS_OK);
    free(lists);
    free(scratch);
    free(lse);
    free(copy);
}

/* A greedy row's list is its best, the lowest id of equals, and padding; beside it a row that draws has its best 256, and
 * where all are asked for both have all. */
static void test_lists(void **state)
{
    enum { GREEDY, DRAWS };
    static bs_candidate out[2][VOCAB];
    bs_sampling sampling[2] = {{.top_p = 1, .repeat_penalty = 1},
                               {.temperature = 1, .top_p = 1, .repeat_penalty = 1}};
    float copy[2][VOCAB], lse[2];
    make_logits(4);
    int best = 0;
    for (int i = 1; i < VOCAB; i++)
        if (logits[0][i] > logits[0][best]) best = i;
    for (int all = 0; all < 2; all++) {
        const int n_out = all ? VOCAB : BS_MAX_CANDIDATES;
        for (int r = 0; r < 2; r++) memcpy(copy[r], logits[0], sizeof copy[r]);
        bs_candidate *list[2] = {out[0], out[0] + n_out};
        const bs_candidates_args args = {.n_rows = 2,
                                         .logits = copy[0],
                                         .ld = VOCAB,
                                         .vocab0 = 0,
                                         .n_vocab = VOCAB,
                                         .sampling = sampling,
                                         .n_out = n_out,
                                         .out = out[0],
                                         .lse = lse};
        assert_int_equal(bs_op_candidates(stream, &args), BS_STATUS_OK);
        assert_int_equal(list[GREEDY][0].id, best);
        assert_true(list[GREEDY][0].logit == logits[0][best]);
        for (int i = 1; i < n_out; i++) {
            const bs_candidate before = list[DRAWS][i - 1], c = list[DRAWS][i];
            assert_true(before.logit > c.logit || (before.logit == c.logit && before.id < c.id));
            assert_int_equal(list[GREEDY][i].id, all ? c.id : -1);
        }
        assert_int_equal(list[DRAWS][0].id, best);
        assert_true(lse[GREEDY] == lse[DRAWS]);
    }
}

static void fill(bs_sampling *sampling, bs_sampling like)
{
    for (int r = 0; r < ROWS; r++) sampling[r] = like;
}

static void test_philox(void **state)
{
    /* The first and third known answers that come with the paper's code (Random123, kat_vectors, philox4x32
     * 10). */
    uint32_t zero[4] = {0}, out[4];
    bs_philox(zero, zero, out);
    assert_int_equal(out[0], 0x6627e8d5);
    assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c);
    assert_int_equal(out[3], 0x9b00dbd8);
    uint32_t key[2] = {0xa4093822, 0x299f31d0}, counter[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
    bs_philox(key, counter, out);
    assert_int_equal(out[0], 0xd16cfe09);
    assert_int_equal(out[1], 0x94fdcceb);
    assert_int_equal(out[2], 0x5001e420);
    assert_int_equal(out[3], 0x24126ea1);
}

/* Any number of shards draws what one shard draws. */
static void test_shards(void **state)
{
    bs_sampling cases[] = {
        {.top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.8f, .top_k = 40, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1.3f, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.7f, .top_k = 300, .top_p = 0.9f, .min_p = 0.02f, .repeat_penalty = 1},
        {.temperature = 2.0f, .min_p = 0.05f, .top_p = 1, .repeat_penalty = 1}};
    int shards[] = {2, 3, 5, 8, 70};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (uint32_t seed = 1; seed < 6; seed++) {
            bs_sampling sampling[ROWS];
            int32_t want[ROWS], got[ROWS];
            float want_p[ROWS], got_p[ROWS];
            cases[c].seed = seed * 0x9E3779B97F4A7C15u;
            fill(sampling, cases[c]);
            make_logits(seed);
            sample(1, sampling, NULL, want, want_p);
            for (size_t s = 0; s < sizeof shards / sizeof shards[0]; s++) {
                sample(shards[s], sampling, NULL, got, got_p);
                for (int r = 0; r < ROWS; r++) {
                    assert_int_equal(got[r], want[r]);
                    assert_true(fabsf(got_p[r] - want_p[r]) <= 1e-5f);
                }
            }
        }
}

static void test_greedy(void **state)
{
    bs_sampling sampling[ROWS];
    int32_t token[ROWS];
    float logprob[ROWS];
    fill(sampling, (bs_sampling){.top_p = 1, .repeat_penalty = 1});
    make_logits(3);
    logits[0][4000] = logits[0][17] = 99; /* ties go to the lower id */
    sample(3, sampling, NULL, token, logprob);
    assert_int_equal(token[0], 17);
    for (int r = 0; r < ROWS; r++) {
        double z = 0;
        for (int i = 0; i < VOCAB; i++) z += exp((double)logits[r][i] - logits[r][token[r]]);
        assert_true(fabs(logprob[r] + log(z)) <= 1e-5);
    }
}

/* The penalty counts an id once and works on both signs: 17 was best and is seen, −1 and 2 become −2 and 1.
 */
static void test_penalty(void **state)
{
    uint64_t bitmap[(VOCAB + 63) / 64] = {0};
    const uint64_t *seen[ROWS] = {bitmap, bitmap, bitmap};
    int32_t ids[] = {17, -1, 17, 20}, token[ROWS];
    bs_sampling sampling[ROWS];
    assert_int_equal(bs_op_mark_seen(stream, bitmap, ids, 4), BS_STATUS_OK);
    fill(sampling, (bs_sampling){.top_p = 1, .repeat_penalty = 2});
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < VOCAB; i++) logits[r][i] = -5;
    for (int r = 0; r < ROWS; r++) logits[r][17] = 2;
    logits[0][30] = 1.5f;
    logits[1][30] = 0.5f;
    logits[2][17] = logits[2][20] = -1;
    logits[2][31] = -1.5f;
    sample(2, sampling, seen, token, NULL);
    assert_int_equal(token[0], 30);
    assert_int_equal(token[1], 17);
    assert_int_equal(token[2], 31);
}

/* What can be drawn: counts over many seeds against the definition, on a vocabulary of four live ids. */
static void test_cuts(void **state)
{
    const double p[4] = {0.5, 0.3, 0.15, 0.05};
    const struct {
        bs_sampling s;
        double want[4];
    } cases[] = {{{.temperature = 1, .top_p = 1, .repeat_penalty = 1}, {.5, .3, .15, .05}},
                 {{.temperature = 1, .top_k = 2, .top_p = 1, .repeat_penalty = 1}, {.625, .375, 0, 0}},
                 {{.temperature = 1, .top_p = 0.75f, .repeat_penalty = 1}, {.625, .375, 0, 0}},
                 {{.temperature = 1, .top_p = 0.85f, .repeat_penalty = 1}, {10. / 19, 6. / 19, 3. / 19, 0}},
                 {{.temperature = 1, .top_k = 3, .top_p = 0.84f, .repeat_penalty = 1}, {.625, .375, 0, 0}},
                 {{.temperature = 1, .min_p = 0.2f, .top_p = 1, .repeat_penalty = 1},
                  {10. / 19, 6. / 19, 3. / 19, 0}}};
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < VOCAB; i++) logits[r][i] = -200;
        for (int i = 0; i < 4; i++) logits[r][100 + 1000 * i] = (float)log(p[i]);
    }
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int n = 0, counts[4] = {0};
        for (uint64_t seed = 0; seed < 400; seed++) {
            bs_sampling sampling[ROWS];
            int32_t token[ROWS];
            fill(sampling, cases[c].s);
            for (int r = 0; r < ROWS; r++) sampling[r].seed = seed * 977 + (uint64_t)r * 7919;
            sample(2, sampling, NULL, token, NULL);
            for (int r = 0; r < ROWS; r++, n++) {
                assert_int_equal(token[r] % 1000, 100);
                counts[token[r] / 1000]++;
            }
        }
        for (int i = 0; i < 4; i++) {
            double want = cases[c].want[i], sigma = sqrt(n * want * (1 - want));
            if (!(fabs(counts[i] - n * want) <= 4 * sigma))
                fail_msg("case %d: id %d drawn %d times of %d, expected %g", (int)c, i, counts[i], n,
                         n * want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_philox),  cmocka_unit_test(test_lists),
                                       cmocka_unit_test(test_shards),  cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_penalty), cmocka_unit_test(test_cuts)};
    if (bs_device_open(&(bs_device_config){.n_threads = 1}, &device) != BS_STATUS_OK) return 1;
    if (bs_stream_create(device, &stream) != BS_STATUS_OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_stream_destroy(stream);
    bs_device_close(device);
    return failed;
}
