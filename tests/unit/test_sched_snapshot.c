/* test_sched_snapshot.c: snapshots of requests that go on: captured by a plan, committed when the ids are known, resumed.
 *
 * `drive` stands in for bs_engine_run in both of its orders: a CPU's, where a step's result is told before the next one is
 * submitted, and a GPU's, where the next is submitted first (a CPU engine can do that as well). A capture then comes before
 * or after the result that its ids wait for.
 */
#include "src/engine/sched.h"
#include "tests/unit/engine_fixture.h"

enum { CHUNK = 256, N_PROMPT = 600, N_ANSWER = 9, N_STEPS = 3 + N_ANSWER };

static fixture f;
static bs_sched *sched;
static bs_snapshots *snapshots;
static bs_snapshot_dir *dir;
static int32_t prompt[N_PROMPT], whole[N_ANSWER];
static const char path[] = "test_sched_snapshot.tmp.dir";
static const bs_sampling sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1.3F, .seed = 5};

static void remove_dir(void)
{
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", path);
    assert_int_equal(system(line), 0);
}

static int set_up(void **state)
{
    open_model(&f, "test_sched_snapshot");
    make_ids(&f, 3, prompt, N_PROMPT);
    remove_dir();
    return 0;
}

static int tear_down(void **state)
{
    close_model(&f);
    remove_dir();
    return 0;
}

static void open_all(void)
{
    bs_engine_config config = make_config("int4");
    config.chunk_tokens = config.max_step_tokens = CHUNK;
    config.max_step_tokens += config.max_seqs;
    config.max_context = config.total_tokens = 1024;
    config.all_logits = false;
    open_engine(&f, &config);
    assert_ok(bs_sched_open(f.engine, NULL, 1e6, &sched));
    const bs_snapshots_config keeping = {.device = f.device,
                                         .comm = f.comm,
                                         .cache = bs_engine_own_cache(f.engine),
                                         .cache_config = *bs_engine_cache_config(f.engine),
                                         .model = f.model,
                                         .cache_dir = ".",
                                         .quiet = true};
    assert_ok(bs_snapshots_open(&keeping, NULL, NULL, &snapshots));
    assert_ok(bs_snapshot_dir_open(snapshots, path, BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    bs_engine_use_snapshots(f.engine, snapshots, NULL, NULL);
    bs_engine_set_snapshot_dir(f.engine, 0, dir);
}

static void close_all(void)
{
    bs_sched_close(sched);
    assert_ok(bs_snapshots_wait(snapshots, NULL, NULL));
    bs_snapshot_dir_close(dir);
    bs_snapshots_close(snapshots);
    close_engine(&f);
}

static void on_snapshot(void *context, bs_request *request, bs_snapshot_state *state)
{
    int64_t *n_answer = context;
    *n_answer = bs_request_get_stats(request)->n_answer;
    state->output_bytes = 77;
}

/* The plan before which the request is snapshotted; −1: none. */
static void drive(bs_request *request, int at, bool submits_first)
{
    const bs_plan_limits *limits = bs_engine_limits(f.engine);
    bs_driver driver = bs_sched_driver(sched);
    bs_plan *plans[2] = {malloc(bs_plan_bytes(limits)), malloc(bs_plan_bytes(limits))};
    bool is_submitted = false;
    for (int step = 0; step < 2000; step++) {
        bs_plan *now = plans[(step + 1) & 1], *next = plans[step & 1];
        bs_step_result result;
        if (step == at) bs_sched_snapshot(sched, request);
        bs_plan_clear(next, limits, step);
        assert_ok(driver.plan(driver.context, next));
        for (int i = 0; i < next->n_frees; i++)
            assert_false(bs_snapshots_holds(snapshots, bs_plan_frees(next)[i]));
        assert_int_equal(!!(next->flags & BS_PLAN_SNAPSHOT), step == at);
        if (step > 0) {
            if (!is_submitted) assert_ok(bs_engine_submit(f.engine, now));
            is_submitted = submits_first && !(next->flags & BS_PLAN_STOP);
            if (is_submitted) assert_ok(bs_engine_submit(f.engine, next));
            assert_ok(bs_engine_collect(f.engine, &result));
            assert_ok(driver.result(driver.context, now, &result));
        }
        if (next->flags & BS_PLAN_STOP) break;
    }
    assert_true(bs_sched_idle(sched));
    free(plans[0]);
    free(plans[1]);
}

static bs_request_config make_request(int64_t *context)
{
    return (bs_request_config){.prompt = prompt,
                               .n_prompt = N_PROMPT,
                               .max_tokens = N_ANSWER,
                               .sampling = sampling,
                               .context = context,
                               .on_snapshot = on_snapshot};
}

static void check_answer(bs_request *r)
{
    const bs_request_stats *stats = bs_request_get_stats(r);
    assert_int_equal(stats->n_answer, N_ANSWER);
    assert_memory_equal(stats->answer, whole, sizeof whole);
}

static void resume_and_check(int64_t n_known)
{
    const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
    int64_t unused, first_pos;
    int slot, start_s;
    uint64_t *seen = calloc(1, bs_engine_seen_bytes(f.engine));
    assert_true(bs_sched_reserve(sched, N_PROMPT + N_ANSWER, 0, &slot, &start_s));
    assert_int_equal(slot, 0);
    assert_ok(bs_snapshot_restore(
        dir, bs_engine_stream(f.engine),
        &(bs_snapshot_restore_args){.seq = slot, .n_reserved = N_PROMPT + N_ANSWER, .exact = true},
        &first_pos));
    assert_int_equal(first_pos, info->n_cached);
    for (int64_t i = 0; i < first_pos; i++) seen[info->tokens[i] / 64] |= (uint64_t)1 << info->tokens[i] % 64;
    assert_ok(bs_engine_adopt(f.engine, slot, &sampling, seen));
    free(seen);
    bs_request_config config = make_request(&unused);
    bs_request *r;
    config.restored = true;
    config.slot = slot;
    config.n_cached = first_pos;
    config.answer = info->tokens + N_PROMPT;
    config.n_answer = n_known;
    assert_ok(bs_sched_submit(sched, &config, &r));
    assert_int_equal(bs_request_length(r), first_pos);
    drive(r, -1, false);
    check_answer(r);
    assert_int_equal(bs_request_get_stats(r)->n_earlier, n_known);
    bs_request_free(r);
}

static void any_step_is_captured_and_resumed(void **state)
{
    for (int order = 0; order < 2; order++) {
        bs_request *r;
        int64_t told = -1;
        bs_request_config config = make_request(&told);
        open_all();
        assert_ok(bs_sched_submit(sched, &config, &r));
        drive(r, -1, order);
        const bs_request_stats *stats = bs_request_get_stats(r);
        assert_int_equal(stats->n_answer, N_ANSWER);
        if (order == 0) memcpy(whole, stats->answer, sizeof whole);
        check_answer(r);
        bs_request_free(r);
        close_all();
        for (int at = 1; at < N_STEPS; at++) {
            bs_snapshot_result result;
            bool ended;
            remove_dir();
            open_all();
            assert_ok(bs_sched_submit(sched, &config, &r));
            drive(r, at, order);
            check_answer(r);
            bs_request_free(r);
            assert_ok(bs_snapshots_wait(snapshots, &ended, &result));
            close_all();
            open_all();
            const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
            const int64_t n_known = at < 3 ? 0 : at - 2, cached = at < 3 ? at * CHUNK : N_PROMPT + at - 3;
            if (at ==
                N_STEPS - 1) { /* it has ended before the ids were known to be a snapshot's, or just then */
                if (info) assert_int_equal(info->n_cached, cached);
            } else {
                assert_non_null(info);
                assert_int_equal(info->n_cached, cached);
                assert_int_equal(info->n_tokens, N_PROMPT + n_known);
                assert_memory_equal(info->tokens, prompt, sizeof prompt);
                assert_memory_equal(info->tokens + N_PROMPT, whole, (size_t)n_known * sizeof *whole);
                assert_int_equal(info->state.output_bytes, 77);
                assert_int_equal(told, n_known); /* what was shown by then is what the snapshot has */
                assert_false(info->state.finished);
                resume_and_check(n_known);
            }
            close_all();
        }
    }
}

/* The captured request is cancelled before its ids are known: nothing is committed, the slot is given back. */
static void a_capture_of_a_cancelled_request_is_given_up(void **state)
{
    for (int order = 0; order < 2; order++) {
        int64_t told = -1;
        bs_request *r;
        bs_request_config config = make_request(&told);
        remove_dir();
        open_all();
        assert_ok(bs_sched_submit(sched, &config, &r));
        const bs_plan_limits *limits = bs_engine_limits(f.engine);
        bs_driver driver = bs_sched_driver(sched);
        bs_plan *plan = malloc(bs_plan_bytes(limits));
        bs_step_result result;
        for (int step = 0; step < 100; step++) {
            if (step == 4) bs_sched_snapshot(sched, r);
            if (step == 5 - order) bs_sched_cancel(sched, r);
            bs_plan_clear(plan, limits, step);
            assert_ok(driver.plan(driver.context, plan));
            if (plan->flags & BS_PLAN_STOP) break;
            assert_ok(bs_engine_step(f.engine, plan, &result));
            assert_ok(driver.result(driver.context, plan, &result));
        }
        free(plan);
        assert_true(bs_sched_idle(sched));
        assert_ok(bs_snapshots_wait(snapshots, NULL, NULL));
        assert_int_equal(bs_request_get_stats(r)->finish, BS_FINISH_CANCELLED);
        bs_request_free(r);
        assert_true(bs_sched_may_snapshot(sched));
        assert_true(bs_cache_seq_length(bs_engine_cache(f.engine), 0) < 0);
        close_all();
    }
}

static void bad_resumes_are_named(void **state)
{
    int64_t told;
    bs_request *r;
    bs_request_config config = make_request(&told);
    int32_t answer[N_ANSWER + 1] = {0};
    remove_dir();
    open_all();
    config.answer = answer;
    config.n_answer = N_ANSWER + 1;
    assert_int_equal(bs_sched_submit(sched, &config, &r), BS_STATUS_RANGE);
    assert_non_null(strstr(bs_error_message(), "has 10 already"));
    bs_error_clear();
    config.n_answer = N_ANSWER - 1; /* goes on, from no cache */
    assert_int_equal(bs_sched_submit(sched, &config, &r), BS_STATUS_MISMATCH);
    assert_non_null(strstr(bs_error_message(), "not restored"));
    bs_error_clear();
    answer[3] = -5;
    assert_int_equal(bs_sched_submit(sched, &config, &r), BS_STATUS_RANGE);
    assert_non_null(strstr(bs_error_message(), "answer token 3: id -5"));
    bs_error_clear();
    answer[3] = 0;
    config.n_answer = 0;
    config.restored = true;
    config.n_cached = N_PROMPT + 1;
    assert_int_equal(bs_sched_submit(sched, &config, &r), BS_STATUS_RANGE);
    bs_error_clear();
    /* An answer that is complete with its ids finishes at once. */
    config = make_request(&told);
    config.answer = answer;
    config.n_answer = N_ANSWER;
    assert_ok(bs_sched_submit(sched, &config, &r));
    assert_int_equal(bs_request_get_stats(r)->finish, BS_FINISH_LENGTH);
    assert_int_equal(bs_request_get_stats(r)->n_answer, N_ANSWER);
    assert_true(bs_sched_idle(sched));
    bs_request_free(r);
    close_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_step_is_captured_and_resumed),
        cmocka_unit_test(a_capture_of_a_cancelled_request_is_given_up),
        cmocka_unit_test(bad_resumes_are_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
