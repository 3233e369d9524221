/* test_tokens.c: what carries a drawn token into the next step without the host: the ops that keep and feed ids, host
 * memory that copies reach directly, and faults that are asked for without waiting. On a CPU, and where there is one on
 * a GPU, where the ops also go round as a graph. No MPI, so that it can be carried to one. */
#include "tests/kernels/gpu_fixture.h"

enum { N_SEQS = 300, MOST = 1000, GUARD = 64, UNTOUCHED = 0x5a5a5a5a };

/* Every side there is: the CPU alone where there is no GPU. */
static int n_sides;

static uint32_t next(uint32_t *seed)
{
    return *seed = *seed * 1664525u + 1013904223u;
}

/* n numbers to the stage, `part` of MOST + GUARD of them; returns their address. */
static int32_t *put(gpu_side *side, int part, const int32_t *from, int n)
{
    int32_t *to = gpu_stage(side, (size_t)part * (MOST + GUARD) * sizeof *to);
    gpu_put(side, to, from, (size_t)n * sizeof *to);
    return to;
}

/* A permutation of the sequence slots, so that no two rows write one; every fifth row keeps nothing. */
static void draw_slots(int32_t *seq, int n, uint32_t *seed)
{
    for (int i = 0; i < n; i++) seq[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(next(seed) >> 8) % (i + 1), other = seq[i];
        seq[i] = seq[j];
        seq[j] = other;
    }
    for (int i = 0; i < n; i += 5) seq[i] = -1;
}

static void keep_writes_the_slots_that_are_named(void **state)
{
    const int sizes[] = {0, 1, 2, 3, 127, 128, 129, 257, N_SEQS};
    gpu_side *sides = *state;
    uint32_t seed = 5;
    for (int s = 0; s < n_sides; s++)
        for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
            const int n = sizes[c];
            int32_t seq[N_SEQS], token[N_SEQS], last[N_SEQS + GUARD], want[N_SEQS + GUARD];
            draw_slots(seq, n, &seed);
            for (int i = 0; i < N_SEQS + GUARD; i++) last[i] = want[i] = UNTOUCHED;
            for (int i = 0; i < n; i++) {
                token[i] = (int32_t)(next(&seed) >> 8);
                if (seq[i] >= 0) want[seq[i]] = token[i];
            }
            int32_t *at = put(&sides[s], 0, last, N_SEQS + GUARD);
            assert_int_equal(bs_op_keep_tokens(sides[s].stream, at, put(&sides[s], 1, token, n),
                                               put(&sides[s], 2, seq, n), n),
                             BS_STATUS_OK);
            gpu_get(&sides[s], last, at, sizeof last);
            assert_memory_equal(last, want, sizeof last);
        }
}

static void feed_replaces_ids_that_stand_for_a_slot(void **state)
{
    const int sizes[] = {0, 1, 2, 127, 128, 129, MOST};
    gpu_side *sides = *state;
    uint32_t seed = 6;
    static int32_t ids[MOST + GUARD], want[MOST + GUARD];
    for (int s = 0; s < n_sides; s++)
        for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
            const int n = sizes[c];
            int32_t last[N_SEQS];
            for (int i = 0; i < N_SEQS; i++) last[i] = (int32_t)(next(&seed) >> 8);
            for (int i = 0; i < MOST + GUARD; i++) {
                const int slot = (int)(next(&seed) >> 8) % N_SEQS;
                ids[i] = want[i] = i % 3 == 0 ? (int32_t)(next(&seed) >> 4) : -1 - slot;
                if (i >= n) ids[i] = want[i] = -1 - slot; /* beyond the end: left as it is */
                else if (ids[i] < 0) want[i] = last[slot];
            }
            int32_t *at = put(&sides[s], 0, ids, MOST + GUARD);
            assert_int_equal(bs_op_feed_tokens(sides[s].stream, at, n, put(&sides[s], 1, last, N_SEQS)),
                             BS_STATUS_OK);
            gpu_get(&sides[s], ids, at, sizeof ids);
            assert_memory_equal(ids, want, sizeof ids);
        }
}

/* Ten steps of three sequences, each of which takes the id drawn before: eager and, on a GPU, as one graph. */
static void a_step_takes_what_the_one_before_drew(void **state)
{
    enum { N = 3, STEPS = 10 };
    gpu_side *sides = *state;
    const int32_t slots[N] = {7, 0, 2}, stands_for[N] = {-1 - 7, -1 - 0, -1 - 2};
    for (int s = 0; s < n_sides; s++)
        for (int as_graph = 0; as_graph <= s; as_graph++) {
            gpu_side *side = &sides[s];
            const int32_t none[8] = {0};
            int32_t *last = put(side, 0, none, 8), *ids = put(side, 1, none, N),
                    *token = put(side, 2, none, N);
            int32_t *seq = put(side, 3, slots, N);
            bs_graph *graph = NULL;
            if (as_graph) {
                assert_int_equal(bs_capture_begin(side->stream), BS_STATUS_OK);
                assert_int_equal(bs_op_feed_tokens(side->stream, ids, N, last), BS_STATUS_OK);
                assert_int_equal(bs_op_keep_tokens(side->stream, last, token, seq, N), BS_STATUS_OK);
                assert_int_equal(bs_capture_end(side->stream, &graph), BS_STATUS_OK);
            }
            for (int step = 0; step < STEPS; step++) {
                const int32_t drawn[N] = {100 * step + 1, 100 * step + 2, 100 * step + 3};
                int32_t fed[N];
                put(side, 1, stands_for, N);
                put(side, 2, drawn, N);
                if (graph) {
                    assert_int_equal(bs_graph_launch(side->stream, graph), BS_STATUS_OK);
                } else {
                    assert_int_equal(bs_op_feed_tokens(side->stream, ids, N, last), BS_STATUS_OK);
                    assert_int_equal(bs_op_keep_tokens(side->stream, last, token, seq, N), BS_STATUS_OK);
                }
                gpu_get(side, fed, ids, sizeof fed);
                for (int i = 0; i < N; i++) assert_int_equal(fed[i], step > 0 ? 100 * (step - 1) + 1 + i : 0);
            }
            bs_graph_destroy(graph);
        }
}

static void bad_arguments_are_refused(void **state)
{
    gpu_side *sides = *state;
    for (int s = 0; s < n_sides; s++) {
        int32_t *x = gpu_stage(&sides[s], 0);
        bs_stream *stream = sides[s].stream;
        assert_int_equal(bs_op_keep_tokens(stream, NULL, x, x, 1), BS_STATUS_RANGE);
        assert_int_equal(bs_op_keep_tokens(stream, x, NULL, x, 1), BS_STATUS_RANGE);
        assert_int_equal(bs_op_keep_tokens(stream, x, x, NULL, 1), BS_STATUS_RANGE);
        assert_int_equal(bs_op_keep_tokens(stream, x, x, x, -1), BS_STATUS_RANGE);
        assert_int_equal(bs_op_feed_tokens(stream, NULL, 1, x), BS_STATUS_RANGE);
        assert_int_equal(bs_op_feed_tokens(stream, x, 1, NULL), BS_STATUS_RANGE);
        assert_int_equal(bs_op_feed_tokens(stream, x, -1, x), BS_STATUS_RANGE);
        bs_error_clear();
        assert_int_equal(bs_op_keep_tokens(stream, NULL, NULL, NULL, 0), BS_STATUS_OK);
        assert_int_equal(bs_op_feed_tokens(stream, NULL, 0, NULL), BS_STATUS_OK);
    }
}

static void host_memory_is_zeroed_and_reached_by_copies(void **state)
{
    const size_t sizes[] = {0, 1, 4097, GPU_STAGE_BYTES};
    gpu_side *sides = *state;
    for (int s = 0; s < n_sides; s++)
        for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
            void *memory[2];
            const uint64_t before = bs_device_allocation_count(sides[s].device);
            for (int i = 0; i < 2; i++)
                assert_int_equal(bs_host_alloc(sides[s].device, sizes[c], "test", &memory[i]), BS_STATUS_OK);
            assert_int_equal(bs_device_allocation_count(sides[s].device), before); /* not the device's */
            uint8_t *from = memory[0], *to = memory[1];
            for (size_t i = 0; i < sizes[c]; i++) assert_int_equal(from[i] | to[i], 0);
            for (size_t i = 0; i < sizes[c]; i++) from[i] = (uint8_t)(i * 7 + 1);
            gpu_put(&sides[s], gpu_stage(&sides[s], 0), from, sizes[c]);
            gpu_get(&sides[s], to, gpu_stage(&sides[s], 0), sizes[c]);
            assert_memory_equal(from, to, sizes[c]);
            bs_host_free(sides[s].device, memory[0]);
            bs_host_free(sides[s].device, memory[1]);
            bs_host_free(sides[s].device, NULL);
        }
}

/* A logit that is no number: a CPU's op says so itself, a GPU's leaves it to whoever asks, who is told once. */
static void a_fault_is_told_once_without_waiting(void **state)
{
    enum { N = 8 };
    gpu_side *sides = *state;
    for (int s = 0; s < n_sides; s++)
        for (int round = 0; round < 2; round++) {
            gpu_side *side = &sides[s];
            float logits[N] = {0, 1, 2, NAN, 4, 5, 6, 7};
            const bs_sampling greedy = {.top_p = 1, .repeat_penalty = 1};
            bs_candidates_args args = {.n_rows = 1,
                                       .logits = gpu_stage(side, 0),
                                       .ld = N,
                                       .n_vocab = N,
                                       .sampling = gpu_stage(side, 1024),
                                       .n_out = N,
                                       .out = gpu_stage(side, 2048),
                                       .lse = gpu_stage(side, 4096)};
            assert_int_equal(bs_stream_fault(side->stream), BS_STATUS_OK);
            gpu_put(side, gpu_stage(side, 0), logits, sizeof logits);
            gpu_put(side, gpu_stage(side, 1024), &greedy, sizeof greedy);
            bs_status said = bs_op_candidates(side->stream, &args);
            assert_int_equal(bs_stream_sync(side->stream), BS_STATUS_OK);
            if (s == GPU_GPU_SIDE) {
                assert_int_equal(said, BS_STATUS_OK);
                said = bs_stream_fault(side->stream);
            }
            assert_int_equal(said, BS_STATUS_NUMERIC);
            assert_non_null(strstr(bs_error_message(), "token 3 is not a number"));
            bs_error_clear();
            assert_int_equal(bs_stream_fault(side->stream), BS_STATUS_OK);
            assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
        }
}

/* Without a GPU the second side is a CPU too, and unused. */
static int open_sides(void **state)
{
    static gpu_side sides[GPU_N_SIDES];
    gpu_open_side(&sides[GPU_CPU_SIDE], BS_DEVICE_CPU);
    gpu_open_side(&sides[GPU_GPU_SIDE], n_sides == GPU_N_SIDES ? BS_DEVICE_CUDA : BS_DEVICE_CPU);
    *state = sides;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(keep_writes_the_slots_that_are_named),
                                       cmocka_unit_test(feed_replaces_ids_that_stand_for_a_slot),
                                       cmocka_unit_test(a_step_takes_what_the_one_before_drew),
                                       cmocka_unit_test(bad_arguments_are_refused),
                                       cmocka_unit_test(host_memory_is_zeroed_and_reached_by_copies),
                                       cmocka_unit_test(a_fault_is_told_once_without_waiting)};
    n_sides = bs_device_count_gpus() > 0 ? GPU_N_SIDES : 1;
    return cmocka_run_group_tests(tests, open_sides, gpu_close);
}
