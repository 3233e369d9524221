/* test_sampling_gpu.c: candidates, sample and mark_seen of a GPU against the CPU's: the same logits, ids and order,
 * the same tokens; log-sum-exps within a few roundings. */
#include "tests/kernels/dense_fixture.h"
#include "tests/tolerances.h"

enum { ROWS = 3, N_WORDS = 300000 / 64 + 1, VOCAB0 = 1000 };

/* How the logits of a row look. */
typedef enum kind { PLAIN, TIES, EQUAL, MASKED, NONE, N_KINDS } kind;

static float draw_logit(kind kind, uint64_t *seed)
{
    const double u = kv_uniform(seed), x = 8 * kv_normal(seed);
    switch (kind) {
    case PLAIN: return (float)x;
    case TIES: return floorf((float)x) / 4; /* also −0 */
    case EQUAL: return -1.25f;
    case MASKED: return u < 0.9 ? -INFINITY : (float)x;
    default: return -INFINITY;
    }
}

typedef struct candidates_data {
    bs_sampling sampling[ROWS];
    uint64_t seen[ROWS][N_WORDS];
} candidates_data;

/* Results of one side, on the host. */
typedef struct candidates_result {
    float *logits, *lse;
    bs_candidate *out;
} candidates_result;

static candidates_result run_candidates(gpu_side *side, const candidates_data *d, const float *logits,
                                        int n_vocab, int n_out, bool penalty)
{
    const int64_t ld = n_vocab + 5;
    const uint64_t *seen[ROWS];
    for (int r = 0; r < ROWS; r++) seen[r] = dense_put(side, d->seen[r], sizeof d->seen[r]);
    bs_candidates_args args = {.n_rows = ROWS,
                               .logits = dense_put(side, logits, (size_t)(ROWS * ld) * 4),
                               .ld = ld,
                               .vocab0 = VOCAB0,
                               .n_vocab = n_vocab,
                               .sampling = dense_put(side, d->sampling, sizeof d->sampling),
                               .n_out = n_out,
                               .out = dense_put(side, NULL, (size_t)(ROWS * n_out) * sizeof(bs_candidate)),
                               .lse = dense_put(side, NULL, ROWS * 4)};
    if (penalty) args.seen = dense_put(side, seen, sizeof seen);
    assert_int_equal(bs_op_candidates(side->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
    candidates_result r = {dense_get(side, args.logits, (size_t)(ROWS * ld) * 4),
                           dense_get(side, args.lse, ROWS * 4),
                           dense_get(side, args.out, (size_t)(ROWS * n_out) * sizeof(bs_candidate))};
    return r;
}

static void free_result(candidates_result *r)
{
    free(r->logits);
    free(r->lse);
    free(r->out);
}

static void check_candidates(gpu_side *sides, kind kind, int n_vocab, int n_out, bool penalty, uint64_t seed)
{
    static candidates_data d;
    const int64_t ld = n_vocab + 5;
    float *logits = malloc((size_t)(ROWS * ld) * 4);
    candidates_result result[GPU_N_SIDES];
    assert_non_null(logits);
    for (int64_t i = 0; i < ROWS * ld; i++) logits[i] = i % ld < n_vocab ? draw_logit(kind, &seed) : NAN;
    for (int r = 0; r < ROWS; r++) {
        d.sampling[r] = (bs_sampling){
            .temperature = (float)r * 0.7f, .top_p = 1, .repeat_penalty = 1 + 0.3f * (float)r};
        for (int i = 0; i < N_WORDS; i++)
            d.seen[r][i] = (uint64_t)(kv_uniform(&seed) * 0x1p60) & 0x1111111111111111u;
    }
    for (int s = 0; s < GPU_N_SIDES; s++)
        result[s] = run_candidates(&sides[s], &d, logits, n_vocab, n_out, penalty);
    const candidates_result *cpu = &result[GPU_CPU_SIDE], *gpu = &result[GPU_GPU_SIDE];
    for (int r = 0; r < ROWS; r++) {
        if (memcmp(cpu->logits + r * ld, gpu->logits + r * ld, (size_t)ld * 4) != 0)
            fail_msg("kind %d, %d ids, row %d: other logits", (int)kind, n_vocab, r);
        for (int i = 0; i < n_out; i++) {
            const bs_candidate want = cpu->out[r * n_out + i], got = gpu->out[r * n_out + i];
            if (want.id != got.id || want.logit != got.logit)
                fail_msg("kind %d, %d ids, %d out, row %d: candidate %d is %d (%.9g), not %d (%.9g)",
                         (int)kind, n_vocab, n_out, r, i, got.id, got.logit, want.id, want.logit);
        }
        const float want = cpu->lse[r], got = gpu->lse[r];
        if (!(want == got || fabsf(got - want) <= TOL_LSE_GPU * fmaxf(1, fabsf(want))))
            fail_msg("kind %d, %d ids, row %d: log-sum-exp %.9g, not %.9g", (int)kind, n_vocab, r, got, want);
    }
    for (int s = 0; s < GPU_N_SIDES; s++) free_result(&result[s]);
    free(logits);
    dense_free();
}

static void test_candidates(void **state)
{
    static const int sizes[] = {1, 100, 255, 256, 257, 4096, 4097, 5003, 40000, 0};
    for (int i = 0; i < (gpu_short ? 5 : 10); i++)
        for (kind kind = 0; kind < N_KINDS; kind++) {
            check_candidates(*state, kind, sizes[i], 256, (i + (int)kind) % 2,
                             (uint64_t)(i * 10 + (int)kind));
            check_candidates(*state, kind, sizes[i], sizes[i] + 3, (i + (int)kind) % 2 == 0, (uint64_t)i);
            check_candidates(*state, kind, sizes[i], 7, true, (uint64_t)i);
        }
}

/* Whole vocabularies: one and two rounds of merging, parts of 4,096 and more. */
static void test_candidates_large(void **state)
{
    static const int sizes[] = {128256, 151936, 262144, 270001};
    for (int i = 0; i < (gpu_short ? 1 : 4); i++) {
        check_candidates(*state, i % 2 ? TIES : PLAIN, sizes[i], 256, true, (uint64_t)i);
        check_candidates(*state, i % 2 ? PLAIN : TIES, sizes[i], sizes[i], true, (uint64_t)i);
    }
}

/* The line of a logit that is not a number is the CPU's; what cannot be done is refused by name. */
static void test_faults(void **state)
{
    gpu_side *gpu = (gpu_side *)*state + GPU_GPU_SIDE;
    float logits[ROWS * 500] = {0};
    bs_sampling sampling[ROWS] = {{.repeat_penalty = 1, .top_p = 1}};
    logits[500 + 123] = NAN;
    bs_candidates_args args = {.n_rows = ROWS,
                               .logits = dense_put(gpu, logits, sizeof logits),
                               .ld = 500,
                               .vocab0 = VOCAB0,
                               .n_vocab = 500,
                               .sampling = dense_put(gpu, sampling, sizeof sampling),
                               .n_out = 256,
                               .out = dense_put(gpu, NULL, ROWS * 500 * sizeof(bs_candidate)),
                               .lse = dense_put(gpu, NULL, ROWS * 4)};
    assert_int_equal(bs_op_candidates(gpu->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_check(gpu->stream), BS_STATUS_NUMERIC);
    assert_string_equal(bs_error_message(), "logit of token 1123 is not a number");
    bs_error_clear();
    assert_int_equal(bs_stream_check(gpu->stream), BS_STATUS_OK);
    args.n_out = 300;
    assert_int_equal(bs_op_candidates(gpu->stream, &args), BS_STATUS_RANGE);
    assert_string_equal(bs_error_message(),
                        "candidates: n_out 300; must be at most 256, or the whole shard of 500");
    bs_error_clear();
    dense_free();
}

static void test_mark_seen(void **state)
{
    int32_t ids[700];
    uint64_t bitmap[N_WORDS], seed = 4;
    void *result[GPU_N_SIDES];
    for (int i = 0; i < 700; i++) ids[i] = (int32_t)(kv_uniform(&seed) * N_WORDS * 64) - 1;
    ids[3] = -1;
    ids[4] = ids[5] ^ 1; /* one word */
    for (int i = 0; i < N_WORDS; i++) bitmap[i] = (uint64_t)i;
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_side *side = (gpu_side *)*state + s;
        uint64_t *to = dense_put(side, bitmap, sizeof bitmap);
        assert_int_equal(bs_op_mark_seen(side->stream, to, dense_put(side, ids, sizeof ids), 700),
                         BS_STATUS_OK);
        result[s] = dense_get(side, to, sizeof bitmap);
    }
    assert_memory_equal(result[GPU_CPU_SIDE], result[GPU_GPU_SIDE], sizeof bitmap);
    for (int s = 0; s < GPU_N_SIDES; s++) free(result[s]);
    dense_free();
}

/* ---- sample ---- */

static int by_rank(const void *pa, const void *pb)
{
    const bs_candidate *a = pa, *b = pb;
    if ((a->id < 0) != (b->id < 0)) return a->id < 0 ? 1 : -1;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

/* Sorted lists of n_shards shards; every third shard is half empty, the second one quite when there are more than two. */
static bs_candidate *draw_lists(int n_shards, int n_per_shard, bool ties, uint64_t *seed)
{
    bs_candidate *lists = malloc((size_t)(n_shards * ROWS * n_per_shard) * sizeof *lists);
    assert_non_null(lists);
    for (int s = 0; s < n_shards; s++)
        for (int r = 0; r < ROWS; r++) {
            bs_candidate *list = lists + (s * ROWS + r) * n_per_shard;
            const int n = s == 1 && n_shards > 2 ? 0 : s % 3 == 2 ? n_per_shard / 2 : n_per_shard;
            for (int i = 0; i < n_per_shard; i++) {
                const float x = (float)(4 * kv_normal(seed));
                list[i] = i < n ? (bs_candidate){ties ? floorf(x) : x, s * n_per_shard + i}
                                : (bs_candidate){-INFINITY, -1};
            }
            qsort(list, (size_t)n_per_shard, sizeof *list, by_rank);
        }
    return lists;
}

typedef struct draws {
    int32_t *token;
    float *logprob;
} draws;

static draws run_sample(gpu_side *side, int n_shards, int n_per_shard, const bs_candidate *lists,
                        const float *lse, const bs_sampling *sampling)
{
    const int32_t position[ROWS] = {7, 80000, 9}, draw[ROWS] = {0, 0, 1};
    const size_t n = (size_t)(n_shards * n_per_shard);
    const bs_sample_args args = {.n_rows = ROWS,
                                 .n_shards = n_shards,
                                 .n_per_shard = n_per_shard,
                                 .candidates = dense_put(side, lists, n * ROWS * sizeof *lists),
                                 .lse = dense_put(side, lse, (size_t)(n_shards * ROWS) * 4),
                                 .shard_stride = (int64_t)ROWS * n_per_shard,
                                 .lse_stride = ROWS,
                                 .sampling = dense_put(side, sampling, ROWS * sizeof *sampling),
                                 .position = dense_put(side, position, sizeof position),
                                 .draw = dense_put(side, draw, sizeof draw),
                                 .scratch = dense_put(side, NULL, n * sizeof(bs_candidate)),
                                 .token = dense_put(side, NULL, ROWS * 4),
                                 .logprob = dense_put(side, NULL, ROWS * 4)};
    assert_int_equal(bs_op_sample(side->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
    const draws d = {dense_get(side, args.token, ROWS * 4), dense_get(side, args.logprob, ROWS * 4)};
    return d;
}

static void check_sample(gpu_side *sides, int n_shards, int n_per_shard, const bs_sampling *sampling,
                         uint64_t seed)
{
    bs_candidate *lists = draw_lists(n_shards, n_per_shard, seed % 2, &seed);
    float *lse = malloc((size_t)(n_shards * ROWS) * 4);
    draws d[GPU_N_SIDES];
    for (int i = 0; i < n_shards * ROWS; i++)
        lse[i] = i / ROWS == 1 && n_shards > 2 ? -INFINITY : (float)(9 + kv_uniform(&seed));
    for (int s = 0; s < GPU_N_SIDES; s++)
        d[s] = run_sample(&sides[s], n_shards, n_per_shard, lists, lse, sampling);
    for (int r = 0; r < ROWS; r++) {
        const draws *cpu = &d[GPU_CPU_SIDE], *gpu = &d[GPU_GPU_SIDE];
        if (cpu->token[r] != gpu->token[r] || !(fabsf(cpu->logprob[r] - gpu->logprob[r]) <= TOL_LSE_GPU * 10))
            fail_msg("%d shards of %d, t %g, k %d, p %g, min-p %g: row %d draws %d (%.9g), not %d (%.9g)",
                     n_shards, n_per_shard, (double)sampling[r].temperature, sampling[r].top_k,
                     (double)sampling[r].top_p, (double)sampling[r].min_p, r, gpu->token[r], gpu->logprob[r],
                     cpu->token[r], cpu->logprob[r]);
    }
    for (int s = 0; s < GPU_N_SIDES; s++) {
        free(d[s].token);
        free(d[s].logprob);
    }
    free(lists);
    free(lse);
    dense_free();
}

/* One shard where it stands, lists in shared memory, and lists in scratch; every cut; three rows of different kinds. */
static void test_sample(void **state)
{
    static const bs_sampling cases[] = {{.top_p = 1},
                                        {.temperature = 0.8f, .top_k = 40, .top_p = 1},
                                        {.temperature = 1.3f, .top_p = 1},
                                        {.temperature = 0.7f, .top_k = 300, .top_p = 0.9f, .min_p = 0.02f},
                                        {.temperature = 2.0f, .min_p = 0.05f, .top_p = 1},
                                        {.temperature = 1.0f, .top_p = 0.95f},
                                        {.temperature = 1.0f, .top_p = 0},
                                        {.temperature = 1.0f, .top_k = 1, .top_p = 1}};
    static const int sizes[][2] = {{1, 1},    {1, 256},  {2, 256},  {5, 256},  {8, 7},
                                   {64, 256}, {70, 256}, {1, 5003}, {3, 6001}, {4, 32000}};
    enum { N_CASES = sizeof cases / sizeof cases[0], N_SIZES = sizeof sizes / sizeof sizes[0] };
    for (int i = 0; i < N_SIZES; i++)
        for (int c = 0; c < N_CASES; c++)
            for (int repeat = gpu_short ? 1 : 0;
                 repeat < (sizes[i][0] * sizes[i][1] > 20000 || gpu_short ? 2 : 8); repeat++) {
                bs_sampling sampling[ROWS];
                for (int r = 0; r < ROWS; r++) {
                    sampling[r] = cases[(c + r) % N_CASES];
                    sampling[r].repeat_penalty = 1;
                    sampling[r].seed = (uint64_t)(1000 * repeat + 10 * i + r) * 0x9E3779B97F4A7C15u;
                }
                check_sample(*state, sizes[i][0], sizes[i][1], sampling,
                             (uint64_t)(100 * i + 10 * c + repeat));
            }
}

static void test_no_candidate(void **state)
{
    gpu_side *gpu = (gpu_side *)*state + GPU_GPU_SIDE;
    const bs_candidate none[4] = {{-INFINITY, -1}, {-INFINITY, -1}, {-INFINITY, -1}, {-INFINITY, -1}};
    const float lse[2] = {-INFINITY, -INFINITY};
    const bs_sampling sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1};
    const int32_t position = 77, draw = 0;
    const bs_sample_args args = {.n_rows = 1,
                                 .n_shards = 2,
                                 .n_per_shard = 2,
                                 .candidates = dense_put(gpu, none, sizeof none),
                                 .lse = dense_put(gpu, lse, sizeof lse),
                                 .shard_stride = 2,
                                 .lse_stride = 1,
                                 .sampling = dense_put(gpu, &sampling, sizeof sampling),
                                 .position = dense_put(gpu, &position, 4),
                                 .draw = dense_put(gpu, &draw, 4),
                                 .scratch = dense_put(gpu, NULL, sizeof none),
                                 .token = dense_put(gpu, NULL, 4)};
    assert_int_equal(bs_op_sample(gpu->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_check(gpu->stream), BS_STATUS_NUMERIC);
    assert_string_equal(bs_error_message(), "no candidate to draw from at position 77");
    bs_error_clear();
    int32_t *token = dense_get(gpu, args.token, 4);
    assert_int_equal(*token, 0);
    free(token);
    dense_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_candidates), cmocka_unit_test(test_candidates_large),
        cmocka_unit_test(test_faults),     cmocka_unit_test(test_mark_seen),
        cmocka_unit_test(test_sample),     cmocka_unit_test(test_no_candidate),
    };
    gpu_need_one(argc, argv);
    return cmocka_run_group_tests(tests, gpu_open, gpu_close);
}
