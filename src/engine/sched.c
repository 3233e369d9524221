/* sched.c: requests to plans to answers.
 *
 * The scheduler plans one step ahead of what it knows: when it makes plan n + 1, step n has not run, and the
 * cache still stands where step n − 1 left it. So it counts for itself what its plans have fed and asked for
 * (n_planned, n_draws), remembers which request each entry of the two plans in flight belongs to, and drops
 * the result of an entry whose request has ended meanwhile. A reservation of prompt + max_tokens covers the
 * token fed in vain.
 *
 * Admission: reservations within total_tokens fit in any case (src/cache/plan_memory.c says why), so they are
 * summed here. More may fit than that, which only the cache knows; it is asked when no start is in flight
 * that its books lack.
 *
 * Snapshots: the plan that captures is made when the token drawn last is not known yet, and may be carried out before or
 * after that is told. So a capture waits here until both have happened, and is committed then; if its request ends
 * before, it is given up.
 */
#include "src/engine/sched.h"
#include "src/base/progress.h"
#include "src/engine/cost.h"
#include "src/engine/engine_private.h"
#include "src/engine/request.h"

#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* A plan whose result is still to come: the request of each of its entries, NULL once that has ended. */
typedef struct flight {
    int n_seqs, n_starts;
    bool empty;           /* changes nothing */
    bs_request **request; /* [max_seqs] */
} flight;

typedef struct list {
    bs_request *first, *last;
} list;

/* A snapshot that was planned and is not committed. */
typedef struct capture {
    bool open;
    bs_request *request; /* NULL: has ended */
    bs_snapshot_dir *dir;
    int64_t step;     /* of the plan that says so */
    int64_t n_answer; /* ids that were asked for before it */
} capture;

struct bs_sched {
    bs_engine *engine;
    const bs_tokenizer *tokenizer;
    bs_plan_limits limits;
    int chunk_tokens, max_prefill_seqs, max_cut;
    int64_t max_tokens; /* of one sequence */
    double max_step_ms;
    bs_cost cost;
    list waiting, running; /* in order of arrival, of admission */
    int64_t *slot_tokens;  /* [max_seqs] reserved by the slot's sequence until its free is planned; 0: free */
    int64_t n_reserved, total_tokens;
    unsigned next_start; /* rotates where sequences begin */
    int32_t *to_free;    /* [max_seqs] slots whose free is not planned yet */
    int n_to_free;
    flight flights[2]; /* by the parity of the step */
    capture capture;
    bool pause;
    volatile sig_atomic_t stop;
};

/* ---- lists ------------------------------------------------------------------------------------------------
 */

static void list_append(list *l, bs_request *r)
{
    r->next = NULL;
    if (l->last) l->last->next = r;
    else l->first = r;
    l->last = r;
}

static void list_remove(list *l, bs_request *r)
{
    bs_request *before = NULL;
    for (bs_request *i = l->first; i && i != r; i = i->next) before = i;
    if (before) before->next = r->next;
    else l->first = r->next;
    if (l->last == r) l->last = before;
    r->next = NULL;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

bs_status bs_sched_open(bs_engine *engine, const bs_tokenizer *tokenizer, double max_step_ms, bs_sched **out)
{
    if (!(max_step_ms > 0)) return bs_fail(BS_STATUS_RANGE, "max_step_ms %g: must be above 0", max_step_ms);
    const bs_engine_config *config = bs_engine_get_config(engine);
    size_t b = (size_t)config->max_seqs;
    bs_sched *s = calloc(1, sizeof *s);
    if (!s) return bs_fail(BS_STATUS_NOMEM, "no memory for the scheduler");
    s->engine = engine;
    s->tokenizer = tokenizer;
    s->limits = *bs_engine_limits(engine);
    s->chunk_tokens = config->chunk_tokens;
    s->max_prefill_seqs = config->max_prefill_seqs;
    s->max_cut = bs_engine_max_cut(engine);
    s->max_tokens = config->max_context < config->total_tokens ? config->max_context : config->total_tokens;
    s->total_tokens = config->total_tokens;
    s->max_step_ms = max_step_ms;
    s->cost = bs_cost_of(engine->desc, bs_device_get_info(engine->device), engine->grid->size);
    s->slot_tokens = calloc(b, sizeof *s->slot_tokens);
    s->to_free = calloc(b, sizeof *s->to_free);
    s->flights[0].request = calloc(b, sizeof(bs_request *));
    s->flights[1].request = calloc(b, sizeof(bs_request *));
    s->flights[0].empty = s->flights[1].empty = true;
    if (!s->slot_tokens || !s->to_free || !s->flights[0].request || !s->flights[1].request) {
        bs_sched_close(s);
        return bs_fail(BS_STATUS_NOMEM, "no memory for the scheduler of %d sequences", config->max_seqs);
    }
    *out = s;
    return BS_STATUS_OK;
}

void bs_sched_cancel(bs_sched *sched, bs_request *request)
{
    (void)sched;
    request->cancelled = true;
}

bool bs_sched_idle(const bs_sched *s)
{
    return !s->waiting.first && !s->running.first && s->n_to_free == 0;
}

void bs_sched_stop(bs_sched *s)
{
    s->stop = 1;
}

/* ---- the end of a request ---------------------------------------------------------------------------------
 */

/* Takes a request out of everything; its slot is freed by the next plan. The caller may lose r in on_finish.
 */
static bs_status finish(bs_sched *s, bs_request *r, bs_finish how)
{
    list_remove(r->seq >= 0 ? &s->running : &s->waiting, r);
    for (int f = 0; f < 2; f++)
        for (int i = 0; i < s->flights[f].n_seqs; i++)
            if (s->flights[f].request[i] == r) s->flights[f].request[i] = NULL;
    if (r->seq >= 0) s->to_free[s->n_to_free++] = r->seq;
    if (s->capture.request == r) s->capture.request = NULL;
    return bs_request_finish(r, how);
}

static bs_status finish_cancelled(bs_sched *s, list *l, bool all)
{
    for (bs_request *r = l->first, *next; r; r = next) {
        next = r->next;
        if (r->cancelled || all) BS_TRY(finish(s, r, BS_FINISH_CANCELLED));
    }
    return BS_STATUS_OK;
}

void bs_sched_close(bs_sched *s)
{
    if (!s) return;
    if (finish_cancelled(s, &s->running, true) != BS_STATUS_OK || finish_cancelled(s, &s->waiting, true))
        bs_error_clear(); /* out of memory for the last characters of somebody's text */
    free(s->flights[1].request);
    free(s->flights[0].request);
    free(s->to_free);
    free(s->slot_tokens);
    free(s);
}

/* ---- submitting ---------------------------------------------------------------------------------------------
 */

static bs_status check_ids(const bs_sched *s, const char *what, const int32_t *ids, int64_t n)
{
    int n_vocab = bs_model_get_desc(bs_engine_model(s->engine))->n_vocab;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return bs_fail(BS_STATUS_RANGE, "%s token %lld: id %d is not 0 … %d", what, (long long)i, ids[i],
                           n_vocab - 1);
    return BS_STATUS_OK;
}

static bs_status check_request(const bs_sched *s, const bs_request_config *c)
{
    if (c->n_prompt < 1) return bs_fail(BS_STATUS_RANGE, "prompt: has no token");
    if (c->max_tokens < 0)
        return bs_fail(BS_STATUS_RANGE, "max tokens %lld: must be 0 or more", (long long)c->max_tokens);
    if (c->restored && (c->slot < 0 || c->slot >= s->limits.max_seqs || c->n_cached < c->fill_tokens ||
                        c->n_cached > c->fill_tokens + c->n_prompt + c->n_answer))
        return bs_fail(BS_STATUS_RANGE, "restored request: %lld tokens in slot %d", (long long)c->n_cached,
                       c->slot);
    if (c->n_answer < 0 || c->n_answer > c->max_tokens)
        return bs_fail(BS_STATUS_RANGE, "max tokens %lld: the answer has %lld already",
                       (long long)c->max_tokens, (long long)c->n_answer);
    if (c->fill_tokens < 0 || c->fill_tokens > s->max_tokens ||
        c->n_prompt > s->max_tokens - c->fill_tokens ||
        c->max_tokens > s->max_tokens - c->fill_tokens - c->n_prompt)
        return bs_fail(BS_STATUS_RANGE,
                       "request of %lld prompt tokens and %lld to answer: the context is %lld",
                       (long long)c->n_prompt, (long long)c->max_tokens, (long long)s->max_tokens);
    BS_TRY(check_ids(s, "prompt", c->prompt, c->n_prompt));
    BS_TRY(check_ids(s, "answer", c->answer, c->n_answer));
    return bs_sampling_check(&c->sampling);
}

/* A request whose sequence a restore has put into its slot: as if the steps up to there had been of this run. */
static void go_on(bs_sched *s, bs_request *r)
{
    r->seq = r->config.slot;
    r->n_planned = r->config.n_cached - r->config.fill_tokens;
    r->n_prefilled = r->n_planned < r->config.n_prompt ? r->n_planned : r->config.n_prompt;
    r->n_draws = r->stats.n_answer;
    r->start_s = bs_now_s();
    if (r->n_prefilled == r->config.n_prompt) r->prefilled_s = r->start_s;
    list_append(&s->running, r);
}

bs_status bs_sched_submit(bs_sched *s, const bs_request_config *config, bs_request **out)
{
    BS_TRY(check_request(s, config));
    bs_request *r;
    bs_finish how = BS_FINISH_NONE;
    BS_TRY(bs_request_create(config, s->tokenizer, &r));
    bs_status status = config->n_answer > 0 ? bs_request_replay(r, config->answer, config->n_answer, &how)
                                            : BS_STATUS_OK;
    if (how == BS_FINISH_NONE && r->stats.n_answer == config->max_tokens && config->max_tokens > 0)
        how = BS_FINISH_LENGTH;
    if (status == BS_STATUS_OK && config->n_answer > 0 && how == BS_FINISH_NONE && !config->restored)
        status = bs_fail(BS_STATUS_MISMATCH,
                         "answer of %lld tokens: it goes on, and its sequence is not restored",
                         (long long)config->n_answer);
    if (status != BS_STATUS_OK) {
        r->finished = true;
        bs_request_free(r);
        return status;
    }
    *out = r;
    if (config->restored) go_on(s, r);
    else list_append(&s->waiting, r);
    return how == BS_FINISH_NONE ? BS_STATUS_OK : finish(s, r, how);
}

/* ---- plans ------------------------------------------------------------------------------------------------
 */

/* Whether a snapshot still reads the slot's pages, or is going to. */
static bool is_held(const bs_sched *s, int slot)
{
    bs_snapshots *snapshots = s->engine->snapshots;
    if (!snapshots) return false;
    return (s->capture.open && s->capture.dir == bs_engine_snapshot_dir(s->engine, slot)) ||
           bs_snapshots_holds(snapshots, slot);
}

static void plan_frees(bs_sched *s, bs_plan *plan)
{
    int n_held = 0;
    for (int i = 0; i < s->n_to_free; i++) {
        int slot = s->to_free[i];
        if (is_held(s, slot)) {
            s->to_free[n_held++] = slot;
            continue;
        }
        bs_plan_frees(plan)[plan->n_frees++] = slot;
        bs_sched_release(s, slot);
    }
    s->n_to_free = n_held;
}

static int find_slot(const bs_sched *s)
{
    for (int slot = 0; slot < s->limits.max_seqs; slot++)
        if (s->slot_tokens[slot] == 0) return slot;
    return -1;
}

/* Sequences that hold f16 pages of a chunk: in prefill, or through it with no decode step to come. */
static int count_prefills(const bs_sched *s)
{
    int n = 0;
    for (const bs_request *r = s->running.first; r; r = r->next)
        n += r->n_planned < r->config.n_prompt ||
             (r->n_planned == r->config.n_prompt && r->n_draws >= r->config.max_tokens);
    return n;
}

/* Whether n_tokens are sure to fit, and on which shard they begin: where start_number asks for, else where the cache has
 * most room, further on for each start it does not know of. */
static bool find_room(bs_sched *s, int64_t start_number, int64_t n_tokens, int n_unknown, int *start_s)
{
    int n_shards = s->engine->grid->seq;
    if (start_number > 0) {
        *start_s = (int)((start_number - 1) % n_shards);
        return s->n_reserved + n_tokens <= s->total_tokens;
    }
    int best = (int)(s->next_start % (unsigned)n_shards);
    bool fits = bs_cache_fits(bs_engine_cache(s->engine), n_tokens, &best);
    *start_s = (best + n_unknown) % n_shards;
    return s->n_reserved + n_tokens <= s->total_tokens || (fits && n_unknown == 0);
}

static void take_slot(bs_sched *s, int slot, int64_t n_tokens)
{
    s->next_start++;
    s->slot_tokens[slot] = n_tokens;
    s->n_reserved += n_tokens;
}

/* Starts those that waited longest, while their pages are sure to fit. */
static void plan_starts(bs_sched *s, bs_plan *plan, const flight *before)
{
    for (;;) {
        bs_request *r = s->waiting.first;
        int slot = find_slot(s), start_s;
        if (!r || slot < 0 || count_prefills(s) >= s->max_prefill_seqs) return;
        int64_t n_tokens = r->config.fill_tokens + r->config.n_prompt + r->config.max_tokens;
        if (!find_room(s, r->config.start_number, n_tokens, before->n_starts + plan->n_starts, &start_s))
            return;
        take_slot(s, slot, n_tokens);
        bs_plan_starts(plan)[plan->n_starts++] = (bs_plan_start){.seq = slot,
                                                                 .start_s = start_s,
                                                                 .n_tokens = n_tokens,
                                                                 .from = -1,
                                                                 .reuse_tokens = -1,
                                                                 .fill_tokens = r->config.fill_tokens,
                                                                 .sampling = r->config.sampling};
        list_remove(&s->waiting, r);
        list_append(&s->running, r);
        r->seq = slot;
        r->start_s = bs_now_s();
    }
}

/* A restored sequence may be in prefill; to the cache one whose prompt is through is, too, until it decodes. */
static bool may_prefill(const bs_sched *s)
{
    int n = 0;
    for (const bs_request *r = s->running.first; r; r = r->next) n += r->n_planned <= r->config.n_prompt;
    return n < s->max_prefill_seqs;
}

static bool has_room(bs_sched *s, int64_t n_tokens, int64_t start_number, int *slot, int *start_s)
{
    *slot = find_slot(s);
    return *slot >= 0 && may_prefill(s) && find_room(s, start_number, n_tokens, 0, start_s);
}

bool bs_sched_has_room(bs_sched *s, int64_t n_tokens, int64_t start_number)
{
    int slot, start_s;
    return has_room(s, n_tokens, start_number, &slot, &start_s);
}

bool bs_sched_reserve(bs_sched *s, int64_t n_tokens, int64_t start_number, int *slot, int *start_s)
{
    int free_slot;
    if (!has_room(s, n_tokens, start_number, &free_slot, start_s)) return false;
    take_slot(s, free_slot, n_tokens);
    *slot = free_slot;
    return true;
}

void bs_sched_release(bs_sched *s, int slot)
{
    s->n_reserved -= s->slot_tokens[slot];
    s->slot_tokens[slot] = 0;
}

/* Where the next token goes. */
static int64_t position_of(const bs_request *r)
{
    return r->config.fill_tokens + r->n_planned;
}

/* Adds an entry of n tokens of r to the plan and gives the place for their ids. */
static int32_t *plan_entry(bs_plan *plan, flight *f, bs_request *r, int n, int flags)
{
    int32_t *tokens = bs_plan_tokens(plan) + plan->n_tokens;
    bs_plan_seqs(plan)[plan->n_seqs++] = (bs_plan_seq){
        .seq = r->seq, .n_tokens = n, .flags = flags, .pos0 = position_of(r), .first_token = plan->n_tokens};
    f->request[f->n_seqs++] = r;
    plan->n_tokens += n;
    r->n_planned += n;
    if (flags & BS_PLAN_SEQ_SAMPLE) r->n_draws++;
    return tokens;
}

/* A decode token of everyone whose prompt is through and who may still draw; returns their predicted time. */
static double plan_decodes(bs_sched *s, bs_plan *plan, flight *f)
{
    double ms = s->cost.step_ms;
    for (bs_request *r = s->running.first; r; r = r->next) {
        if (r->n_planned < r->config.n_prompt || r->n_draws >= r->config.max_tokens) continue;
        int64_t fed = r->n_planned - r->config.n_prompt; /* of the answer: the next is the one drawn last */
        *plan_entry(plan, f, r, 1, BS_PLAN_SEQ_SAMPLE) = fed < r->stats.n_answer ? r->answer[fed]
                                                                                 : BS_PLAN_LAST_TOKEN;
        ms += bs_cost_tokens_ms(&s->cost, 1, position_of(r));
    }
    return ms;
}

/* Prefill chunks, first come first served. A chunk is taken whole or not at all, so that a prompt is cut at
 * the same positions whoever else runs; the first is always taken. */
static void plan_prefills(bs_sched *s, bs_plan *plan, flight *f, double ms)
{
    bool first = true;
    for (bs_request *r = s->running.first; r; r = r->next) {
        int64_t left = r->config.n_prompt - r->n_planned;
        if (left <= 0) continue;
        int n = bs_cost_cut(&s->cost, position_of(r), s->chunk_tokens, s->max_cut, s->max_step_ms);
        bool last = n >= left;
        if (last) n = (int)left;
        double chunk_ms = bs_cost_tokens_ms(&s->cost, n, position_of(r) + n);
        if (n > s->limits.max_step_tokens - plan->n_tokens || (!first && ms + chunk_ms > s->max_step_ms))
            continue;
        int flags = BS_PLAN_SEQ_PREFILL | (last && r->config.max_tokens > 0 ? BS_PLAN_SEQ_SAMPLE : 0);
        int64_t pos = r->n_planned;
        int32_t *tokens = plan_entry(plan, f, r, n, flags);
        for (int i = 0; i < n; i++) tokens[i] = r->prompt[pos + i];
        ms += chunk_ms;
        first = false;
    }
}

/* With nothing else to do the ranks need not go round as fast as they can while a snapshot is written. */
static void rest(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

static void plan_snapshot(bs_sched *s, bs_plan *plan)
{
    capture *c = &s->capture;
    if (!c->open || c->step >= 0) return;
    if (!c->request) {
        c->open = false;
        return;
    }
    plan->flags |= BS_PLAN_SNAPSHOT;
    plan->snapshot_seq = c->request->seq;
    c->step = plan->step;
    c->n_answer = c->request->n_draws;
}

static bs_status make_plan(void *context, bs_plan *plan)
{
    bs_sched *s = context;
    flight *f = &s->flights[plan->step & 1], *before = &s->flights[(plan->step + 1) & 1];
    BS_TRY(finish_cancelled(s, &s->running, false));
    BS_TRY(finish_cancelled(s, &s->waiting, false));
    f->n_seqs = f->n_starts = 0;
    f->empty = true;
    if (s->stop || s->pause || bs_sched_idle(s)) {
        plan->flags = BS_PLAN_STOP;
        return BS_STATUS_OK;
    }
    plan_snapshot(s, plan);
    plan_frees(s, plan);
    plan_starts(s, plan, before);
    f->n_starts = plan->n_starts;
    plan_prefills(s, plan, f, plan_decodes(s, plan, f));
    f->empty = plan->n_frees + plan->n_starts + plan->n_seqs == 0;
    if (f->empty && before->empty && s->n_to_free > 0) rest();
    else if (f->empty && before->empty && !s->running.first)
        return bs_fail(BS_STATUS_FULL, "the cache has no room for a request, though nothing runs");
    return BS_STATUS_OK;
}

/* ---- results ----------------------------------------------------------------------------------------------
 */

static bs_status take_result(bs_sched *s, bs_request *r, const bs_plan_seq *entry, int32_t token)
{
    bs_finish how = BS_FINISH_NONE;
    double now = bs_now_s();
    if (entry->flags & BS_PLAN_SEQ_PREFILL) {
        r->n_prefilled += entry->n_tokens;
        if (r->n_prefilled == r->config.n_prompt) r->prefilled_s = now;
        if (r->config.on_prefill) {
            const double share = bs_cost_share(&s->cost, r->config.fill_tokens, r->n_prefilled,
                                               r->config.n_prompt);
            r->config.on_prefill(r->config.context, r->n_prefilled, r->config.n_prompt, share);
        }
        if (r->n_prefilled == r->config.n_prompt && r->config.max_tokens == 0) how = BS_FINISH_LENGTH;
    }
    if (token >= 0 && !r->cancelled) {
        BS_TRY(bs_request_accept(r, token, &how));
        r->last_s = now;
    }
    return how == BS_FINISH_NONE ? BS_STATUS_OK : finish(s, r, how);
}

/* Commits the capture that was carried out, once all ids that it covers are known; before any later one is. */
static bs_status settle(bs_sched *s)
{
    capture *c = &s->capture;
    bs_snapshot_state state;
    const int32_t *tokens;
    if (!c->open || c->step < 0 || s->engine->step < c->step) return BS_STATUS_OK;
    if (!c->request) {
        bs_snapshot_give_up(c->dir);
        c->open = false;
        return BS_STATUS_OK;
    }
    if (c->request->stats.n_answer < c->n_answer) return BS_STATUS_OK;
    const double start = bs_now_s();
    bs_request_snapshot(c->request, &tokens, &state);
    if (c->request->config.on_snapshot)
        c->request->config.on_snapshot(c->request->config.context, c->request, &state);
    c->open = false;
    bs_status status = bs_snapshot_commit(c->dir, tokens, state.n_prompt + c->n_answer, &state);
    bs_engine_note_boundary(s->engine, bs_now_s() - start); /* the steps wait for it, too */
    return status;
}

static bs_status take_results(void *context, const bs_plan *plan, const bs_step_result *result)
{
    bs_sched *s = context;
    flight *f = &s->flights[plan->step & 1];
    const bs_plan_seq *seqs = bs_plan_seqs(plan);
    BS_TRY(settle(s));
    for (int i = 0; i < result->n_seqs; i++)
        if (f->request[i]) BS_TRY(take_result(s, f->request[i], &seqs[i], result->token[i]));
    f->n_seqs = f->n_starts = 0;
    return settle(s);
}

bs_driver bs_sched_driver(bs_sched *sched)
{
    sched->pause = false;
    return (bs_driver){.context = sched, .plan = make_plan, .result = take_results};
}

bs_status bs_sched_plan(bs_sched *sched, bs_plan *next)
{
    return make_plan(sched, next);
}

bs_status bs_sched_result(bs_sched *sched, const bs_plan *plan, const bs_step_result *result)
{
    return take_results(sched, plan, result);
}

void bs_sched_pause(bs_sched *sched)
{
    sched->pause = true;
}

void bs_sched_snapshot(bs_sched *s, bs_request *r)
{
    s->capture = (capture){
        .open = true, .request = r, .dir = bs_engine_snapshot_dir(s->engine, r->seq), .step = -1};
}

bool bs_sched_may_snapshot(const bs_sched *s)
{
    return !s->capture.open && !bs_snapshots_busy(s->engine->snapshots);
}
