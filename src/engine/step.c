/* step.c: one plan carried out: frees and starts, the step's inputs, the forward pass, the drawn tokens.
 *
 * A step is submitted and later collected. On a CPU the work is done when it is submitted; a GPU then has it in its
 * queue, and the host prepares and submits the next one meanwhile: a drawn id goes into that on the device, and its
 * copy to the host is read when the step is collected. What a flight holds is therefore there twice.
 *
 * All that a step tells the device (ids, rows, sampling) is written into one host block and copied at once.
 * Repetition penalty: the ids of a sequence are marked when they go in, so a drawn token is marked at the
 * step that feeds it back, before that step draws; the bitmap then holds exactly prompt and answer so far.
 */
#include "src/base/checked.h"
#include "src/engine/engine_private.h"

#include <string.h>

static uint64_t *seen_bitmap(const bs_engine *e, int seq)
{
    return bs_buffer_at(e->seen, (size_t)seq * e->layout.seen_bytes);
}

static int32_t *last_token(const bs_engine *e, int seq)
{
    return (int32_t *)bs_buffer_at(e->logits, e->layout.logits_at.last) + seq;
}

/* ---- frees and starts -------------------------------------------------------------------------------------
 */

static bs_status check_cache_seq(const bs_engine *e, int seq, bool in_use, const char *what)
{
    if ((bs_cache_seq_length(e->cache, seq) >= 0) == in_use) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_INTERNAL, "step %lld: %s of sequence %d, which is %s", (long long)e->step, what,
                   seq, in_use ? "not in use" : "in use");
}

/* Begins a sequence behind tokens of noise; in pieces, so that a CPU shows progress. */
static bs_status fill_sequence(bs_engine *e, int seq, int64_t n_tokens)
{
    enum { PIECE = 16 * BS_PAGE_TOKENS, SEED = 1 };
    const bs_cache_noise noise = {.seed = SEED + (uint64_t)seq,
                                  .first_kv_head = (int)e->layout.shard.kv_heads.first};
    for (int64_t n = 0; n < n_tokens;) {
        n = bs_min_i64(n + PIECE, n_tokens);
        bs_comm_progress(e->comm, e->step, 0, BS_PHASE_PLAN);
        BS_TRY(bs_cache_seq_fill(e->cache, e->stream, seq, n, &noise));
    }
    return BS_STATUS_OK;
}

static bs_status start_sequence(bs_engine *e, const bs_plan_start *s)
{
    uint64_t *seen = seen_bitmap(e, s->seq);
    int64_t first_pos;
    BS_TRY(check_cache_seq(e, s->seq, false, "start"));
    if (s->from >= 0) BS_TRY(check_cache_seq(e, s->from, true, "fork"));
    e->seqs[s->seq] = (bs_engine_seq){.sampling = s->sampling, .dir = e->seqs[s->seq].dir};
    if (s->from >= 0 && s->reuse_tokens < 0) {
        e->seqs[s->seq].has_drawn = e->seqs[s->from].has_drawn;
        BS_TRY(bs_copy_on_device(e->stream, last_token(e, s->seq), last_token(e, s->from), sizeof(int32_t)));
        BS_TRY(bs_copy_on_device(e->stream, seen, seen_bitmap(e, s->from), e->layout.seen_bytes));
        return bs_cache_seq_fork(e->cache, s->from, s->seq, s->n_tokens);
    }
    BS_TRY(bs_fill_zero(e->stream, seen, e->layout.seen_bytes));
    if (s->from >= 0)
        return bs_cache_seq_reuse(e->cache, s->from, s->seq, s->reuse_tokens, s->n_tokens, &first_pos);
    BS_TRY(bs_cache_seq_start(e->cache, s->seq, s->start_s, s->n_tokens));
    return fill_sequence(e, s->seq, s->fill_tokens);
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

/* The ids; one that stands for the last drawn becomes −1 − its slot, which the device replaces. */
static bs_status fill_tokens(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    int32_t *tokens = (int32_t *)(e->flight->staging + e->layout.input_at.tokens);
    memcpy(tokens, bs_plan_tokens(plan), (size_t)plan->n_tokens * sizeof *tokens);
    for (int i = 0; i < plan->n_seqs; i++) {
        int32_t *token = &tokens[seqs[i].first_token];
        if (*token != BS_PLAN_LAST_TOKEN) continue;
        *token = -1 - seqs[i].seq;
        if (!e->seqs[seqs[i].seq].has_drawn)
            return bs_fail(BS_STATUS_INTERNAL, "step %lld: sequence %d has drawn no token yet",
                           (long long)e->step, seqs[i].seq);
    }
    return BS_STATUS_OK;
}

/* The step's inputs by row, in the host block. */
typedef struct row_inputs {
    int32_t *rows, *slot, *position, *draw;
    bs_sampling *sampling;
    uint64_t **seen;
} row_inputs;

static row_inputs get_row_inputs(const bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    char *staging = e->flight->staging;
    return (row_inputs){.rows = (int32_t *)(staging + l->input_at.rows) + e->n_all_rows,
                        .slot = (int32_t *)(staging + l->input_at.row_slot),
                        .position = (int32_t *)(staging + l->input_at.position),
                        .draw = (int32_t *)(staging + l->input_at.draw),
                        .sampling = (bs_sampling *)(staging + l->input_at.sampling),
                        .seen = (uint64_t **)(staging + l->input_at.seen)};
}

static bs_status fill_all_rows(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    int32_t *rows = (int32_t *)(e->flight->staging + e->layout.input_at.rows);
    for (int i = 0; i < plan->n_seqs; i++)
        for (int t = 0; t < seqs[i].n_tokens && seqs[i].flags & BS_PLAN_SEQ_ALL_LOGITS; t++)
            rows[e->n_all_rows++] = seqs[i].first_token + t;
    if (e->n_all_rows > 0 && e->layout.logit_rows == 0)
        return bs_fail(BS_STATUS_INTERNAL, "step %lld: the engine was opened without all_logits",
                       (long long)e->step);
    return BS_STATUS_OK;
}

/* Which rows want logits: all tokens of ALL_LOGITS sequences, then one row for each token to draw. */
static bs_status fill_rows(bs_engine *e, const bs_plan *plan)
{
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    BS_TRY(fill_all_rows(e, plan));
    row_inputs in = get_row_inputs(e);
    for (int i = 0; i < plan->n_seqs; i++) {
        if (!(seqs[i].flags & BS_PLAN_SEQ_SAMPLE)) continue;
        int row = e->n_rows++;
        e->flight->row_seq[row] = i;
        e->seqs[seqs[i].seq].has_drawn = true;
        in.rows[row] = seqs[i].first_token + seqs[i].n_tokens - 1;
        in.slot[row] = seqs[i].seq;
        in.sampling[row] = e->seqs[seqs[i].seq].sampling;
        in.seen[row] = seen_bitmap(e, seqs[i].seq);
        in.position[row] = (int32_t)(seqs[i].pos0 + seqs[i].n_tokens);
        in.draw[row] = seqs[i].draw;
        e->any_penalty |= in.sampling[row].repeat_penalty != 1;
        e->needs_all |= bs_sampling_needs_all(&in.sampling[row]);
    }
    return BS_STATUS_OK;
}

/* Each sequence takes one token and draws one: the step that is repeated most, and that a graph may stand for. */
static bool is_decode(const bs_engine *e, const bs_plan *plan)
{
    return e->n_all_rows == 0 && e->n_rows == plan->n_seqs && plan->n_tokens == plan->n_seqs;
}

/* Rows that nobody reads, up to the number that there is a graph for: token 0 of no sequence, drawn for no slot. */
static void pad_rows(bs_engine *e, int n)
{
    row_inputs in = get_row_inputs(e);
    int32_t *tokens = (int32_t *)(e->flight->staging + e->layout.input_at.tokens);
    for (int row = e->n_rows; row < n; row++) {
        tokens[row] = in.rows[row] = in.position[row] = in.draw[row] = 0;
        in.slot[row] = -1;
        in.sampling[row] = (bs_sampling){.top_p = 1, .repeat_penalty = 1};
        in.seen[row] = seen_bitmap(e, 0);
    }
    e->n_tokens = e->n_rows = n;
    e->any_penalty = true; /* a graph reads the bitmaps whether they matter or not */
}

/* Which sequences attend together. Decode tokens and prefill chunks want different kernels, and bounds that fit: so
 * neighbours in decode that bring as many tokens each share a call, and every chunk has its own. A step that a graph may
 * stand for is one call, of bounds that hold whatever the lengths become. */
static void find_spans(bs_engine *e, const bs_plan *plan, bool decode)
{
    const bs_cache_tables *tables = bs_cache_get_tables(e->cache);
    const bs_cache_step_seq *seqs = e->step_seqs;
    bs_engine_span *span = NULL;
    e->n_spans = 0;
    if (decode && e->is_async) {
        e->spans[e->n_spans++] = (bs_engine_span){0, tables->max_seqs, e->n_tokens, tables->max_pages};
        return;
    }
    for (int i = 0; i < plan->n_seqs; i++) {
        if (!span || seqs[i].prefill || seqs[i - 1].prefill || seqs[i].n_tokens != seqs[i - 1].n_tokens) {
            span = &e->spans[e->n_spans++];
            *span = (bs_engine_span){.first_seq = i};
        }
        span->n_seqs++;
        span->n_tokens += seqs[i].n_tokens;
        span->n_pages += bs_cache_step_pages(e->cache, i, 1);
    }
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

/* A NaN among the logits leaves a row without a token. */
static bs_status show_results(bs_engine *e, const bs_engine_flight *flight, bs_step_result *out)
{
    const int32_t *token = (const int32_t *)flight->drawn;
    const float *logprob = (const float *)(flight->drawn +
                                           (e->layout.logits_at.logprob - e->layout.logits_at.token));
    for (int i = 0; i < flight->n_seqs; i++) {
        e->token[i] = -1;
        e->logprob[i] = 0;
    }
    for (int row = 0; row < flight->n_rows; row++) {
        int i = flight->row_seq[row];
        if (token[row] < 0 || token[row] >= e->desc->n_vocab)
            return bs_fail(BS_STATUS_NUMERIC, "step %lld: logits are not numbers", (long long)flight->step);
        e->token[i] = token[row];
        e->logprob[i] = logprob[row];
    }
    *out = (bs_step_result){.n_seqs = flight->n_seqs,
                            .token = e->token,
                            .logprob = e->logprob,
                            .logits = flight->n_all_rows > 0 ? e->all_logits : NULL,
                            .n_logit_rows = flight->n_all_rows};
    return BS_STATUS_OK;
}

static bs_status queue_step(bs_engine *e, const bs_plan *plan)
{
    const bs_engine_layout *l = &e->layout;
    bs_engine_flight *flight = e->flight;
    BS_TRY(begin_cache_step(e, plan));
    BS_TRY(fill_tokens(e, plan));
    BS_TRY(fill_rows(e, plan));
    flight->n_rows = e->n_rows;
    flight->n_all_rows = e->n_all_rows;
    const bool decode = is_decode(e, plan);
    if (decode && e->is_async) pad_rows(e, bs_engine_padded_rows(e, e->n_rows));
    find_spans(e, plan, decode);
    BS_TRY(bs_copy_to_device(e->stream, bs_engine_input(e, 0), flight->staging, l->input_at.bytes));
    BS_TRY(bs_op_feed_tokens(e->stream, bs_engine_input(e, l->input_at.tokens), plan->n_tokens,
                             last_token(e, 0)));
    BS_TRY(mark_seen(e, plan));
    BS_TRY(bs_engine_prepare(e));
    if (decode) BS_TRY(bs_engine_run_decode(e));
    else BS_TRY(bs_engine_run_ops(e));
    if (flight->n_rows > 0)
        BS_TRY(bs_copy_to_host(e->stream, flight->drawn, bs_buffer_at(e->logits, l->logits_at.token),
                               bs_engine_drawn_bytes(l)));
    return bs_cache_step_end(e->cache, e->stream);
}

bs_status bs_engine_run_ops(bs_engine *e)
{
    BS_TRY(bs_engine_forward(e));
    BS_TRY(bs_engine_gather_logits(e));
    BS_TRY(bs_engine_sample(e));
    if (e->mark) e->mark(e->mark_context, e->stream, BS_PHASE_IDLE);
    return BS_STATUS_OK;
}

bs_status bs_engine_submit(bs_engine *e, const bs_plan *plan)
{
    bs_engine_flight *flight = &e->flights[e->flight == &e->flights[0]];
    if (flight->open)
        return bs_fail(BS_STATUS_INTERNAL, "step %lld: two steps before it are not collected",
                       (long long)plan->step);
    BS_TRY(bs_plan_check(plan, &e->limits, e->desc->n_vocab, e->config.max_context));
    e->flight = flight;
    e->step = flight->step = plan->step;
    e->n_tokens = plan->n_tokens;
    e->n_all_rows = e->n_rows = flight->n_all_rows = flight->n_rows = 0;
    e->any_penalty = e->needs_all = false;
    flight->n_seqs = plan->n_seqs;
    bs_comm_progress(e->comm, e->step, 0, BS_PHASE_SNAPSHOT);
    BS_TRY(bs_engine_boundary(e, plan));
    bs_comm_progress(e->comm, e->step, 0, BS_PHASE_PLAN);
    BS_TRY(bs_timer_start(e->stream, flight->timer));
    BS_TRY(apply_frees_and_starts(e, plan));
    if (plan->n_seqs > 0) BS_TRY(queue_step(e, plan));
    BS_TRY(bs_timer_stop(e->stream, flight->timer));
    flight->open = true;
    return BS_STATUS_OK;
}

bs_status bs_engine_collect(bs_engine *e, bs_step_result *out)
{
    bs_engine_flight *other = &e->flights[e->flight == &e->flights[0]];
    bs_engine_flight *flight = other->open ? other : e->flight;
    double ms;
    if (!flight || !flight->open) return bs_fail(BS_STATUS_INTERNAL, "no step is submitted");
    flight->open = false;
    BS_TRY(bs_timer_ms(flight->timer, &ms)); /* waits for its end */
    bs_comm_progress(e->comm, flight->step, e->desc->n_layers, BS_PHASE_SAMPLE);
    BS_TRY(bs_stream_fault(e->stream));
    BS_TRY(show_results(e, flight, out));
    out->step_ms = ms;
    return BS_STATUS_OK;
}

bs_status bs_engine_step(bs_engine *e, const bs_plan *plan, bs_step_result *out)
{
    BS_TRY(bs_engine_submit(e, plan));
    return bs_engine_collect(e, out);
}
