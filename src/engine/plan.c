/* plan.c: the step plan's arrays and its check.
 *
 * The arrays lie behind the header at places that the limits fix, so a plan is one message of one size and
 * needs no pointers. What a follower receives is checked whole before anything is carried out: a number out
 * of range there is a fault of the program or of the network, and the job fails rather than write past a
 * table.
 */
#include "src/engine/plan.h"

#include <math.h>
#include <string.h>

#define PLAN_MAGIC 0x33505342u /* "BSP3" */

static size_t frees_at(void)
{
    return sizeof(bs_plan);
}

/* Starts hold 64-bit fields, so they begin at a multiple of 8. */
static size_t starts_at(int max_seqs)
{
    return (frees_at() + sizeof(int32_t) * (size_t)max_seqs + 7) / 8 * 8;
}

static size_t seqs_at(int max_seqs)
{
    return starts_at(max_seqs) + sizeof(bs_plan_start) * (size_t)max_seqs;
}

static size_t tokens_at(int max_seqs)
{
    return seqs_at(max_seqs) + sizeof(bs_plan_seq) * (size_t)max_seqs;
}

size_t bs_plan_bytes(const bs_plan_limits *limits)
{
    return (tokens_at(limits->max_seqs) + sizeof(int32_t) * (size_t)limits->max_step_tokens + 7) / 8 * 8;
}

void bs_plan_clear(bs_plan *plan, const bs_plan_limits *limits, int64_t step)
{
    memset(plan, 0, bs_plan_bytes(limits));
    plan->magic = PLAN_MAGIC;
    plan->step = step;
    plan->max_seqs = limits->max_seqs;
    plan->max_step_tokens = limits->max_step_tokens;
}

int32_t *bs_plan_frees(const bs_plan *plan)
{
    return (int32_t *)((char *)plan + frees_at());
}

bs_plan_start *bs_plan_starts(const bs_plan *plan)
{
    return (bs_plan_start *)((char *)plan + starts_at(plan->max_seqs));
}

bs_plan_seq *bs_plan_seqs(const bs_plan *plan)
{
    return (bs_plan_seq *)((char *)plan + seqs_at(plan->max_seqs));
}

int32_t *bs_plan_tokens(const bs_plan *plan)
{
    return (int32_t *)((char *)plan + tokens_at(plan->max_seqs));
}

bs_status bs_sampling_check(const bs_sampling *s)
{
    if (!(s->temperature >= 0 && s->temperature <= 1000))
        return bs_fail(BS_STATUS_RANGE, "temperature %g: must be 0 … 1000", (double)s->temperature);
    if (s->top_k < 0) return bs_fail(BS_STATUS_RANGE, "top-k %d: must be 0 or more", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return bs_fail(BS_STATUS_RANGE, "top-p %g: must be above 0 and at most 1", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return bs_fail(BS_STATUS_RANGE, "min-p %g: must be 0 … 1", (double)s->min_p);
    if (!(s->repeat_penalty > 0 && s->repeat_penalty <= 1000))
        return bs_fail(BS_STATUS_RANGE, "repeat penalty %g: must be above 0 and at most 1000",
                       (double)s->repeat_penalty);
    return BS_STATUS_OK;
}

static bs_status bad(const bs_plan *plan, const char *field, int64_t value)
{
    return bs_fail(BS_STATUS_FORMAT, "step plan %lld: %s %lld is out of range", (long long)plan->step, field,
                   (long long)value);
}

static bs_status check_header(const bs_plan *plan, const bs_plan_limits *limits)
{
    if (plan->magic != PLAN_MAGIC) return bs_fail(BS_STATUS_FORMAT, "step plan: magic %#x", plan->magic);
    if (plan->max_seqs != limits->max_seqs) return bad(plan, "max_seqs", plan->max_seqs);
    if (plan->max_step_tokens != limits->max_step_tokens)
        return bad(plan, "max_step_tokens", plan->max_step_tokens);
    if (plan->flags & ~(uint32_t)(BS_PLAN_STOP | BS_PLAN_SNAPSHOT)) return bad(plan, "flags", plan->flags);
    if (plan->snapshot_seq < 0 || plan->snapshot_seq >= limits->max_seqs)
        return bad(plan, "snapshot_seq", plan->snapshot_seq);
    if (plan->step < 0) return bad(plan, "step", plan->step);
    if (plan->n_frees < 0 || plan->n_frees > limits->max_seqs) return bad(plan, "n_frees", plan->n_frees);
    if (plan->n_starts < 0 || plan->n_starts > limits->max_seqs) return bad(plan, "n_starts", plan->n_starts);
    if (plan->n_seqs < 0 || plan->n_seqs > limits->max_seqs) return bad(plan, "n_seqs", plan->n_seqs);
    if (plan->n_tokens < 0 || plan->n_tokens > limits->max_step_tokens)
        return bad(plan, "n_tokens", plan->n_tokens);
    return BS_STATUS_OK;
}

static bs_status check_starts(const bs_plan *plan, const bs_plan_limits *limits, int64_t max_context)
{
    const int32_t *frees = bs_plan_frees(plan);
    for (int i = 0; i < plan->n_frees; i++) {
        if (frees[i] < 0 || frees[i] >= limits->max_seqs) return bad(plan, "free", frees[i]);
        for (int j = 0; j < i; j++)
            if (frees[j] == frees[i]) return bad(plan, "repeated free", frees[i]);
    }
    const bs_plan_start *starts = bs_plan_starts(plan);
    for (int i = 0; i < plan->n_starts; i++) {
        const bs_plan_start *s = &starts[i];
        if (s->seq < 0 || s->seq >= limits->max_seqs) return bad(plan, "start's seq", s->seq);
        for (int j = 0; j < i; j++)
            if (starts[j].seq == s->seq) return bad(plan, "repeated start's seq", s->seq);
        if (s->start_s < 0) return bad(plan, "start_s", s->start_s);
        if (s->n_tokens < 1 || s->n_tokens > max_context) return bad(plan, "start's n_tokens", s->n_tokens);
        if (s->from < -1 || s->from >= limits->max_seqs || s->from == s->seq)
            return bad(plan, "start's from", s->from);
        if (s->reuse_tokens < -1) return bad(plan, "reuse_tokens", s->reuse_tokens);
        if (s->fill_tokens < 0 || s->fill_tokens >= s->n_tokens || (s->fill_tokens > 0 && s->from >= 0))
            return bad(plan, "fill_tokens", s->fill_tokens);
        BS_TRY(bs_sampling_check(&s->sampling));
        if (s->from >= 0 && s->reuse_tokens >= 0 && s->sampling.repeat_penalty != 1)
            return bad(plan, "reuse_tokens with a repeat penalty,", s->reuse_tokens);
    }
    return BS_STATUS_OK;
}

static bs_status check_tokens(const bs_plan *plan, const bs_plan_seq *s, int n_vocab)
{
    const int32_t *tokens = bs_plan_tokens(plan) + s->first_token;
    bool may_be_last = s->n_tokens == 1 && !(s->flags & BS_PLAN_SEQ_PREFILL);
    for (int i = 0; i < s->n_tokens; i++)
        if (tokens[i] < 0 || tokens[i] >= n_vocab)
            if (!(tokens[i] == BS_PLAN_LAST_TOKEN && may_be_last)) return bad(plan, "token", tokens[i]);
    return BS_STATUS_OK;
}

static bs_status check_seqs(const bs_plan *plan, const bs_plan_limits *limits, int n_vocab,
                            int64_t max_context)
{
    enum { FLAGS = BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_SAMPLE | BS_PLAN_SEQ_ALL_LOGITS };
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    int32_t n_tokens = 0;
    for (int i = 0; i < plan->n_seqs; i++) {
        const bs_plan_seq *s = &seqs[i];
        if (s->seq < 0 || s->seq >= limits->max_seqs) return bad(plan, "seq", s->seq);
        for (int j = 0; j < i; j++)
            if (seqs[j].seq == s->seq) return bad(plan, "repeated seq", s->seq);
        if (s->n_tokens < 1 || s->n_tokens > plan->n_tokens - n_tokens)
            return bad(plan, "seq's n_tokens", s->n_tokens);
        if (s->first_token != n_tokens) return bad(plan, "first_token", s->first_token);
        if (s->flags & ~FLAGS) return bad(plan, "seq's flags", s->flags);
        if (s->draw < 0) return bad(plan, "draw", s->draw);
        if (s->pos0 < 0 || s->pos0 > max_context - s->n_tokens) return bad(plan, "pos0", s->pos0);
        BS_TRY(check_tokens(plan, s, n_vocab));
        n_tokens += s->n_tokens;
    }
    if (n_tokens != plan->n_tokens) return bad(plan, "n_tokens", plan->n_tokens);
    return BS_STATUS_OK;
}

bs_status bs_plan_check(const bs_plan *plan, const bs_plan_limits *limits, int n_vocab, int64_t max_context)
{
    BS_TRY(check_header(plan, limits));
    BS_TRY(check_starts(plan, limits, max_context));
    return check_seqs(plan, limits, n_vocab, max_context);
}
