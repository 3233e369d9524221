/* step.c: one plan carried out: frees and starts, the step's inputs, the forward pass, the drawn tokens.
 *
 * All that a step tells the device (ids, rows, sampling) is written into one host block and copied at once.
 * Repetition penalty: the ids of a sequence are marked when they go in, so a drawn token is marked at the
 * step that feeds it back, before that step draws; the bitmap then holds exactly prompt and answer so far.
 */
#include "src/base/progress.h"
#include "src/engine/engine_private.h"

#include <string.h>

static uint64_t *seen_bitmap(const bs_engine *e, int seq)
{
    return bs_buffer_at(e->seen, (size_t)seq * e->layout.seen_bytes);
}

/* ---- frees and starts -------------------------------------------------------------------------------------
 */

static bs_status check_cache_seq(const bs_engine *e, int seq, bool in_use, const char *what)
{
    if ((bs_cache_seq_length(e->cache, seq) >= 0) == in_use) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_INTERNAL, "step %lld: %s of sequence %d, which is %s", (long long)e->step, what,
                   seq, in_use ? "not in use" : "in use");
}

static bs_status start_sequence(bs_engine *e, const bs_plan_start *s)
{
    uint64_t *seen = seen_bitmap(e, s->seq);
    int64_t first_pos;
    BS_TRY(check_cache_seq(e, s->seq, false, "start"));
    if (s->from >= 0) BS_TRY(check_cache_seq(e, s->from, true, "fork"));
    e->seqs[s->seq] = (bs_engine_seq){.sampling = s->sampling, .last_token = BS_PLAN_LAST_TOKEN};
    if (s->from >= 0 && s->reuse_tokens < 0) {
        e->seqs[s->seq].last_token = e->seqs[s->from].last_token;
        BS_TRY(bs_copy_on_device(e->stream, seen, seen_bitmap(e, s->from), e->layout.seen_bytes));
        return bs_cache_seq_fork(e->cache, s->from, s->seq, s->n_tokens);
    }
    BS_TRY(bs_fill_zero(e->stream, seen, e->layout.seen_bytes));
    if (s->from >= 0)
        return bs_cache_seq_reuse(e->cache, s->from, s->seq, s->reuse_tokens, s->n_tokens, &first_pos);
    return bs_cache_seq_start(e->cache, s->seq, s->start_s, s->n_tokens);
}

static bs_status apply_frees_and_starts(bs_engine *e, const bs_plan *plan)
{
    const int32_t *frees = bs_plan_frees(plan);
    const bs_plan_start *starts = bs_plan_starts(plan);
    for (int i = 0; i < plan->n_frees; i++) {
        BS_TRY(check_cache_seq(e, frees[i], true, "free"));
        bs_cache_seq_free(e->cache, frees[i]);
    }
    for (int i = 0; i < plan->n_starts; i++) BS_TRY(start_sequence(e, &starts[i]));
    return BS_STATUS_OK;
}

/* ---- inputs -----------------------------------------------------------------------------------------------
 */

static bs_status begin_cache_step(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    for (int i = 0; i < plan->n_seqs; i++)
        e->step_seqs[i] = (bs_cache_step_seq){seqs[i].seq, seqs[i].pos0, seqs[i].n_tokens,
                                              seqs[i].flags & BS_PLAN_SEQ_PREFILL};
    return bs_cache_step_begin(e->cache, e->stream, e->step_seqs, plan->n_seqs);
}

/* The ids, with the last drawn ones in their places. */
static bs_status fill_tokens(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    int32_t *tokens = (int32_t *)(e->staging + e->layout.input_at.tokens);
    memcpy(tokens, bs_plan_tokens(plan), (size_t)plan->n_tokens * sizeof *tokens);
    for (int i = 0; i < plan->n_seqs; i++) {
        int32_t *token = &tokens[seqs[i].first_token];
        if (*token != BS_PLAN_LAST_TOKEN) continue;
        *token = e->seqs[seqs[i].seq].last_token;
        if (*token < 0)
            return bs_fail(BS_STATUS_INTERNAL, "step %lld: sequence %d has drawn no token yet",
                           (long long)e->step, seqs[i].seq);
    }
    return BS_STATUS_OK;
}

/* Which rows want logits: all tokens of ALL_LOGITS sequences, then one row for each token to draw. */
static bs_status fill_rows(bs_engine *e, const bs_plan *plan)
{
    const bs_engine_layout *l = &e->layout;
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    int32_t *rows = (int32_t *)(e->staging + l->input_at.rows);
    bs_sampling *sampling = (bs_sampling *)(e->staging + l->input_at.sampling);
    uint64_t **seen = (uint64_t **)(e->staging + l->input_at.seen);
    int32_t *position = (int32_t *)(e->staging + l->input_at.position);
    int32_t *draw = (int32_t *)(e->staging + l->input_at.draw);
    e->n_all_rows = e->n_rows = 0;
    e->any_penalty = e->needs_all = false;
    for (int i = 0; i < plan->n_seqs; i++)
        for (int t = 0; t < seqs[i].n_tokens && seqs[i].flags & BS_PLAN_SEQ_ALL_LOGITS; t++)
            rows[e->n_all_rows++] = seqs[i].first_token + t;
    if (e->n_all_rows > 0 && l->logit_rows == 0)
        return bs_fail(BS_STATUS_INTERNAL, "step %lld: the engine was opened without all_logits",
                       (long long)e->step);
    for (int i = 0; i < plan->n_seqs; i++) {
        if (!(seqs[i].flags & BS_PLAN_SEQ_SAMPLE)) continue;
        int row = e->n_rows++;
        e->row_seq[row] = i;
        rows[e->n_all_rows + row] = seqs[i].first_token + seqs[i].n_tokens - 1;
        sampling[row] = e->seqs[seqs[i].seq].sampling;
        seen[row] = seen_bitmap(e, seqs[i].seq);
        position[row] = (int32_t)(seqs[i].pos0 + seqs[i].n_tokens);
        draw[row] = seqs[i].draw;
        e->any_penalty |= sampling[row].repeat_penalty != 1;
        e->needs_all |= bs_sampling_needs_all(&sampling[row]);
    }
    return BS_STATUS_OK;
}

static bs_status mark_seen(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    const int32_t *tokens = bs_engine_input(e, e->layout.input_at.tokens);
    for (int i = 0; i < plan->n_seqs; i++)
        if (e->seqs[seqs[i].seq].sampling.repeat_penalty != 1)
            BS_TRY(bs_op_mark_seen(e->stream, seen_bitmap(e, seqs[i].seq), tokens + seqs[i].first_token,
                                   seqs[i].n_tokens));
    return BS_STATUS_OK;
}

/* ---- the step ---------------------------------------------------------------------------------------------
 */

static void show_results(bs_engine *e, const bs_plan *plan, bs_step_result *out)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    for (int i = 0; i < plan->n_seqs; i++) {
        e->token[i] = -1;
        e->logprob[i] = 0;
    }
    for (int row = 0; row < e->n_rows; row++) {
        int i = e->row_seq[row];
        e->token[i] = e->row_token[row];
        e->logprob[i] = e->row_logprob[row];
        e->seqs[seqs[i].seq].last_token = e->row_token[row];
    }
    *out = (bs_step_result){.n_seqs = plan->n_seqs,
                            .token = e->token,
                            .logprob = e->logprob,
                            .logits = e->n_all_rows > 0 ? e->all_logits : NULL,
                            .n_logit_rows = e->n_all_rows};
}

static bs_status run_step(bs_engine *e, const bs_plan *plan)
{
    BS_TRY(begin_cache_step(e, plan));
    BS_TRY(fill_tokens(e, plan));
    BS_TRY(fill_rows(e, plan));
    BS_TRY(bs_copy_to_device(e->stream, bs_engine_input(e, 0), e->staging, e->layout.input_at.bytes));
    BS_TRY(mark_seen(e, plan));
    BS_TRY(bs_engine_forward(e));
    BS_TRY(bs_engine_gather_logits(e));
    BS_TRY(bs_engine_sample(e));
    BS_TRY(bs_cache_step_end(e->cache, e->stream));
    return bs_stream_check(e->stream);
}

bs_status bs_engine_step(bs_engine *e, const bs_plan *plan, bs_step_result *out)
{
    double start_s = bs_now_s();
    BS_TRY(bs_plan_check(plan, &e->limits, e->desc->n_vocab, e->config.max_context));
    e->step = plan->step;
    e->n_tokens = plan->n_tokens;
    e->n_all_rows = e->n_rows = 0;
    bs_comm_progress(e->comm, e->step, 0, BS_PHASE_PLAN);
    BS_TRY(apply_frees_and_starts(e, plan));
    if (plan->n_seqs > 0) BS_TRY(run_step(e, plan));
    show_results(e, plan, out);
    out->step_ms = (bs_now_s() - start_s) * 1e3;
    return BS_STATUS_OK;
}
