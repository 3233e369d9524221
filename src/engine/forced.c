/* forced.c: plans of one sequence whose tokens are known. */
#include "src/engine/forced.h"
#include "src/base/checked.h"

#include <stdlib.h>
#include <string.h>

struct bs_forced {
    bs_engine *engine;
    bs_plan *plan;
    int64_t step, position, n_tokens;
    bool starts, in_use; /* the next step begins a text; slot 0 holds one */
};

bs_status bs_forced_open(bs_engine *engine, bs_forced **out)
{
    bs_forced *f = calloc(1, sizeof *f);
    if (f) f->plan = malloc(bs_plan_bytes(bs_engine_limits(engine)));
    if (!f || !f->plan) {
        free(f);
        return bs_fail(BS_STATUS_NOMEM, "no memory for a step's plan");
    }
    f->engine = engine;
    *out = f;
    return BS_STATUS_OK;
}

void bs_forced_close(bs_forced *f)
{
    if (!f) return;
    free(f->plan);
    free(f);
}

void bs_forced_begin(bs_forced *f, int64_t n_tokens)
{
    f->position = 0;
    f->n_tokens = n_tokens;
    f->starts = true;
}

int64_t bs_forced_position(const bs_forced *f)
{
    return f->position;
}

int bs_forced_next(const bs_forced *f, int64_t end)
{
    const bs_engine_config *config = bs_engine_get_config(f->engine);
    int64_t n = config->chunk_tokens - f->position % config->chunk_tokens;
    return (int)bs_min_i64(bs_min_i64(n, config->max_step_tokens), end - f->position);
}

bs_status bs_forced_step(bs_forced *f, const int32_t *ids, int n, int flags, bs_step_result *out)
{
    bs_plan *plan = f->plan;
    bs_plan_clear(plan, bs_engine_limits(f->engine), f->step);
    if (f->starts && f->in_use) bs_plan_frees(plan)[plan->n_frees++] = 0;
    if (f->starts)
        bs_plan_starts(plan)[plan->n_starts++] = (bs_plan_start){
            .n_tokens = f->n_tokens, .from = -1, .sampling = {.top_p = 1, .repeat_penalty = 1}};
    bs_plan_seqs(plan)[plan->n_seqs++] = (bs_plan_seq){.n_tokens = n, .flags = flags, .pos0 = f->position};
    plan->n_tokens = n;
    memcpy(bs_plan_tokens(plan), ids, (size_t)n * sizeof *ids);
    BS_TRY(bs_engine_step(f->engine, plan, out));
    f->in_use = true;
    f->starts = false;
    f->position += n;
    f->step++;
    return BS_STATUS_OK;
}
