/* loop.c: plans from rank 0, one step late.
 *
 * On a GPU the next step is queued before this one is waited for, so the device never waits for the host; on a CPU,
 * where a step is done when it is submitted, that would only keep its result back.
 *
 * The next plan is made and sent before this step runs, so that it travels while the ranks compute; the price
 * is that what this step draws is not known to it. Hence BS_PLAN_LAST_TOKEN, and a stop that is found one
 * step late. When the driver fails, rank 0 sends a stop; behind the last step its status is told to all, so
 * that they leave together. An error of a step itself cannot be told (the others may wait in a collective):
 * it is returned, and main ends the job.
 */
#include "src/engine/engine_private.h"

/* Rank 0's part: fills `next`, with a stop when the driver has failed or fails now. */
static void make_plan(bs_engine *e, const bs_driver *driver, bs_status *failed, bs_plan *next)
{
    int64_t step = e->next_step++;
    if (!driver) return;
    bs_plan_clear(next, &e->limits, step);
    if (*failed == BS_STATUS_OK) *failed = driver->plan(driver->context, next);
    if (*failed == BS_STATUS_OK) return;
    bs_plan_clear(next, &e->limits, step);
    next->flags = BS_PLAN_STOP;
}

static bs_status check_plan(const bs_engine *e, const bs_plan *plan)
{
    return bs_plan_check(plan, &e->limits, e->desc->n_vocab, e->config.max_context);
}

/* Whether `next` may be queued behind `now`: a step with all its logits takes the one place there is for them. */
static bool may_overlap(const bs_engine *e, const bs_plan *now, const bs_plan *next)
{
    if (!e->is_async || next->flags & BS_PLAN_STOP) return false;
    for (int i = 0; i < now->n_seqs; i++)
        if (bs_plan_seqs(now)[i].flags & BS_PLAN_SEQ_ALL_LOGITS) return false;
    for (int i = 0; i < next->n_seqs; i++)
        if (bs_plan_seqs(next)[i].flags & BS_PLAN_SEQ_ALL_LOGITS) return false;
    return true;
}

static bs_status run_until_stop(bs_engine *e, const bs_driver *driver, bs_status *failed)
{
    bs_plan *now = e->plans[0], *next = e->plans[1];
    size_t bytes = bs_plan_bytes(&e->limits);
    bool tell = driver != NULL; /* results, until the driver fails over one */
    bool is_submitted = false;  /* now */
    make_plan(e, driver, failed, now);
    BS_TRY(bs_comm_bcast_host(e->comm, now, bytes, 0));
    BS_TRY(check_plan(e, now));
    while (!(now->flags & BS_PLAN_STOP)) {
        bs_step_result result;
        make_plan(e, driver, failed, next);
        BS_TRY(bs_comm_bcast_begin(e->comm, next, bytes, 0));
        if (!is_submitted) BS_TRY(bs_engine_submit(e, now));
        BS_TRY(bs_comm_bcast_end(e->comm));
        BS_TRY(check_plan(e, next));
        is_submitted = may_overlap(e, now, next);
        if (is_submitted) BS_TRY(bs_engine_submit(e, next));
        BS_TRY(bs_engine_collect(e, &result));
        if (!is_submitted) bs_comm_progress_idle(e->comm);
        bs_status told = tell ? driver->result(driver->context, now, &result) : BS_STATUS_OK;
        if (told != BS_STATUS_OK) tell = false;
        if (*failed == BS_STATUS_OK) *failed = told;
        bs_plan *done = now;
        now = next;
        next = done;
    }
    return BS_STATUS_OK;
}

bs_status bs_engine_run(bs_engine *e, const bs_driver *driver)
{
    bs_status failed = BS_STATUS_OK;
    bs_comm_progress_idle(e->comm);
    BS_TRY(run_until_stop(e, driver, &failed));
    int32_t status = (int32_t)failed;
    BS_TRY(bs_comm_bcast_host(e->comm, &status, sizeof status, 0));
    return (bs_status)status;
}
