/* test_plan.c: the plan's arrays do not overlap, and every field out of range is found and named. */
#include "src/engine/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N_VOCAB = 100, MAX_CONTEXT = 1000 };
static const bs_plan_limits limits = {3, 7};

/* A valid plan with one of everything. */
static bs_plan *make_plan(void)
{
    bs_plan *plan = malloc(bs_plan_bytes(&limits));
    memset(plan, 0xff, bs_plan_bytes(&limits));
    bs_plan_clear(plan, &limits, 5);
    plan->n_frees = 1;
    bs_plan_frees(plan)[0] = 2;
    plan->n_starts = 1;
    bs_plan_starts(plan)[0] = (bs_plan_start){
        .seq = 2,
        .n_tokens = 50,
        .from = 0,
        .reuse_tokens = 10,
        .sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1}};
    plan->n_seqs = 2;
    plan->n_tokens = 4;
    bs_plan_seqs(plan)[0] = (bs_plan_seq){.seq = 1, .n_tokens = 1, .flags = BS_PLAN_SEQ_SAMPLE, .pos0 = 999};
    bs_plan_seqs(plan)[1] = (bs_plan_seq){
        .seq = 2, .n_tokens = 3, .flags = BS_PLAN_SEQ_PREFILL, .pos0 = 0, .first_token = 1};
    bs_plan_tokens(plan)[0] = BS_PLAN_LAST_TOKEN;
    bs_plan_tokens(plan)[1] = 0;
    bs_plan_tokens(plan)[2] = 50;
    bs_plan_tokens(plan)[3] = N_VOCAB - 1;
    return plan;
}

static bs_status check(const bs_plan *plan)
{
    return bs_plan_check(plan, &limits, N_VOCAB, MAX_CONTEXT);
}

static void arrays_are_apart(void **state)
{
    bs_plan *plan = malloc(bs_plan_bytes(&limits));
    bs_plan_clear(plan, &limits, 0);
    char *at[] = {(char *)(plan + 1),           (char *)bs_plan_frees(plan),
                  (char *)bs_plan_starts(plan), (char *)bs_plan_seqs(plan),
                  (char *)bs_plan_tokens(plan), (char *)plan + bs_plan_bytes(&limits)};
    size_t bytes[] = {0, 3 * sizeof(int32_t), 3 * sizeof(bs_plan_start), 3 * sizeof(bs_plan_seq),
                      7 * sizeof(int32_t)};
    for (int i = 0; i < 5; i++) assert_true(at[i] + bytes[i] <= at[i + 1]);
    assert_int_equal((uintptr_t)bs_plan_starts(plan) % 8, 0);
    assert_int_equal((uintptr_t)bs_plan_seqs(plan) % 8, 0);
    free(plan);
}

static void valid_plans_pass(void **state)
{
    bs_plan *plan = make_plan();
    assert_int_equal(check(plan), BS_STATUS_OK);
    bs_plan_clear(plan, &limits, 0);
    assert_int_equal(check(plan), BS_STATUS_OK);
    plan->flags = BS_PLAN_STOP | BS_PLAN_SNAPSHOT;
    assert_int_equal(check(plan), BS_STATUS_OK);
    free(plan);
}

/* One thing wrong at a time; the line names `word`. */
#define WRONG(word, change)                                                                                  \
    do {                                                                                                     \
        bs_plan *plan = make_plan();                                                                         \
        bs_plan_start *start = bs_plan_starts(plan);                                                         \
        bs_plan_seq *seq = bs_plan_seqs(plan);                                                               \
        int32_t *token = bs_plan_tokens(plan), *frees = bs_plan_frees(plan);                                 \
        (void)start, (void)seq, (void)token, (void)frees;                                                    \
        change;                                                                                              \
        assert_int_not_equal(check(plan), BS_STATUS_OK);                                                     \
        if (!strstr(bs_error_message(), word)) fail_msg("%s: no word of %s", bs_error_message(), word);      \
        bs_error_clear();                                                                                    \
        free(plan);                                                                                          \
    } while (0)

static void wrong_headers_are_named(void **state)
{
    WRONG("magic", plan->magic++);
    WRONG("max_seqs", plan->max_seqs = 4);
    WRONG("max_step_tokens", plan->max_step_tokens = 8);
    WRONG("flags", plan->flags = 4);
    WRONG("step", plan->step = -1);
    WRONG("n_frees", plan->n_frees = 4);
    WRONG("n_frees", plan->n_frees = -1);
    WRONG("n_starts", plan->n_starts = 4);
    WRONG("n_seqs", plan->n_seqs = 4);
    WRONG("n_tokens", plan->n_tokens = 8);
    WRONG("n_tokens", plan->n_tokens = 5);
}

static void wrong_starts_are_named(void **state)
{
    WRONG("free", frees[0] = 3);
    WRONG("repeated free", (plan->n_frees = 2, frees[1] = 2));
    WRONG("start's seq", start->seq = 3);
    WRONG("repeated start", (plan->n_starts = 2, start[1] = start[0]));
    WRONG("start_s", start->start_s = -1);
    WRONG("start's n_tokens", start->n_tokens = 0);
    WRONG("start's n_tokens", start->n_tokens = MAX_CONTEXT + 1);
    WRONG("from", start->from = 2);
    WRONG("from", start->from = 3);
    WRONG("reuse_tokens", start->reuse_tokens = -2);
    WRONG("reuse_tokens", start->sampling.repeat_penalty = 1.5f);
    WRONG("fill_tokens", start->fill_tokens = 1); /* of a start that reuses another */
    WRONG("fill_tokens", (start->from = -1, start->fill_tokens = -1));
    WRONG("fill_tokens", (start->from = -1, start->fill_tokens = start->n_tokens));
    WRONG("temperature", start->sampling.temperature = NAN);
    WRONG("temperature", start->sampling.temperature = -1);
    WRONG("top-k", start->sampling.top_k = -1);
    WRONG("top-p", start->sampling.top_p = 0);
    WRONG("top-p", start->sampling.top_p = NAN);
    WRONG("min-p", start->sampling.min_p = 1.5f);
    WRONG("penalty", start->sampling.repeat_penalty = 0);
}

static void wrong_sequences_are_named(void **state)
{
    WRONG("seq", seq[0].seq = -1);
    WRONG("repeated seq", seq[0].seq = 2);
    WRONG("seq's n_tokens", seq[1].n_tokens = 4);
    WRONG("seq's n_tokens", seq[0].n_tokens = 0);
    WRONG("n_tokens", seq[1].n_tokens = 2);
    WRONG("first_token", seq[1].first_token = 0);
    WRONG("flags", seq[0].flags = 8);
    WRONG("draw", seq[0].draw = -1);
    WRONG("pos0", seq[0].pos0 = -1);
    WRONG("pos0", seq[0].pos0 = MAX_CONTEXT);
    WRONG("token", token[3] = N_VOCAB);
    WRONG("token", token[2] = BS_PLAN_LAST_TOKEN);
    WRONG("token", seq[0].flags |= BS_PLAN_SEQ_PREFILL);
    WRONG("token", token[0] = -2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_are_apart),          cmocka_unit_test(valid_plans_pass),
        cmocka_unit_test(wrong_headers_are_named),   cmocka_unit_test(wrong_starts_are_named),
        cmocka_unit_test(wrong_sequences_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
