/* generate_snapshot.c: when a snapshot is taken while steps go on, and when the job stops for good.
 *
 * Everything is looked at between two steps: signals, the clock, how far each request has come since its last snapshot. One
 * snapshot is under way at a time; of several requests that are due the one that has waited longest is next. Nothing here
 * waits.
 *
 * The time left to a job is not measured against what a snapshot might take but against twice what the slowest so far
 * took: deltas are small, and the last one is no larger than they.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cli/generate.h"
#include "src/cli/stop.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ---------------------------------------------------------------------------------------------------- */

bs_status bs_generate_snapshot_check(const bs_options *o)
{
    static const char *const needy[] = {"snapshot-every", "snapshot-verify", "snapshot-keep", "resume",
                                        "end-time"};
    const char *path = bs_options_string(o, "snapshot");
    for (size_t i = 0; i < sizeof needy / sizeof needy[0]; i++)
        if (!path && bs_options_given(o, needy[i]))
            return bs_fail(BS_STATUS_USAGE, "--%s: only with --snapshot", needy[i]);
    if (!path) return BS_STATUS_OK;
    if (path[0] == 0) return bs_fail(BS_STATUS_USAGE, "--snapshot: must not be empty");
    if (strlen(path) > ORDER_PATH_BYTES - 128)
        return bs_fail(BS_STATUS_USAGE, "--snapshot: a path of %zu bytes; at most %d", strlen(path),
                       ORDER_PATH_BYTES - 128);
    if (bs_options_given(o, "batch") && strcmp(bs_options_string(o, "resume"), "require") == 0)
        return bs_fail(BS_STATUS_USAGE, "--resume require: not with --batch");
    return BS_STATUS_OK;
}

bs_status bs_generate_snapshot_read(generate *g)
{
    keeper *k = &g->keeper;
    k->resume = bs_options_string(g->options, "resume");
    BS_TRY(bs_when_read_every(bs_options_string(g->options, "snapshot-every"), &k->when));
    return bs_when_read_end(bs_options_string(g->options, "end-time"), bs_comm_job_end_s(g->comm),
                            bs_when_now_s(), &k->when);
}

/* ---- the machinery ---------------------------------------------------------------------------------------------- */

static void on_hash(void *context, uint64_t done, uint64_t total)
{
    generate *g = context;
    bs_progress_follow(&g->load, "hash weights", done, total, g->leader && bs_log_get_level() > BS_LOG_QUIET);
}

static bs_status open_local(generate *g, bs_snapshots_config *config, uint8_t digest[32])
{
    keeper *k = &g->keeper;
    *config = (bs_snapshots_config){.device = g->device,
                                    .comm = g->comm,
                                    .cache = bs_engine_own_cache(g->engine),
                                    .cache_config = *bs_engine_cache_config(g->engine),
                                    .model = g->model,
                                    .keep = (int)bs_options_int(g->options, "snapshot-keep"),
                                    .quiet = bs_log_get_level() == BS_LOG_QUIET};
    BS_TRY(bs_snapshot_verify_parse(bs_options_string(g->options, "snapshot-verify"), &config->verify));
    if (g->tokenizer) {
        BS_TRY(bs_tokenizer_sha256(g->tokenizer, digest));
        config->tokenizer_sha256 = digest;
    }
    k->dirs = calloc((size_t)g->config.max_seqs, sizeof(bs_snapshot_dir *));
    k->paths = calloc((size_t)g->config.max_seqs, sizeof *k->paths);
    for (int i = 0; i < 2 && g->leader && !g->is_batch; i++)
        if (!(k->times.ms[i] = calloc(STEP_TIMES, sizeof(float))))
            return bs_fail(BS_STATUS_NOMEM, "--snapshot: no memory");
    return k->dirs && k->paths ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "--snapshot: no memory");
}

bs_status bs_generate_snapshot_open(generate *g)
{
    bs_snapshots_config config;
    uint8_t digest[32];
    BS_TRY(bs_comm_agree(g->comm, open_local(g, &config, digest)));
    BS_TRY(bs_snapshots_open(&config, on_hash, g, &g->keeper.machine));
    bs_engine_use_snapshots(g->engine, g->keeper.machine, bs_generate_snapshot_ended, g);
    return BS_STATUS_OK;
}

void bs_generate_snapshot_close(generate *g)
{
    keeper *k = &g->keeper;
    const int n_dirs = k->dirs ? g->config.max_seqs : 0;
    /* Behind an error, which all ranks have alike, one may be under way: directories are closed when it has ended. */
    for (int i = 0; i < n_dirs && g->leader; i++)
        if (k->dirs[i]) bs_snapshot_give_up(k->dirs[i]);
    if (k->machine && bs_snapshots_busy(k->machine)) (void)bs_snapshots_wait(k->machine, NULL, NULL);
    for (int i = 0; i < n_dirs; i++) bs_snapshot_dir_close(k->dirs[i]);
    bs_snapshots_close(k->machine);
    free(k->paths);
    free(k->dirs);
    free(k->times.ms[1]);
    free(k->times.ms[0]);
}

void bs_generate_snapshot_ended(void *context, const bs_snapshot_result *result)
{
    generate *g = context;
    keeper *k = &g->keeper;
    if (result->status != BS_STATUS_OK) {
        k->n_failed += result->status != BS_STATUS_INTERRUPTED; /* that nobody wanted any more */
        return;
    }
    k->n_taken++;
    k->bytes += result->bytes;
    if (result->total_s > k->last_total_s) k->last_total_s = result->total_s;
}

void bs_generate_add_state(const generate *g, const kept *one, bs_snapshot_state *state)
{
    memcpy(state->id, one->id, sizeof state->id);
    state->output_bytes = g->out ? bs_output_synced(g->out) : -1;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

void bs_generate_keep(generate *g, kept *one)
{
    one->last_s = bs_now_s();
    one->next = g->keeper.first;
    g->keeper.first = one;
}

void bs_generate_forget(generate *g, kept *one)
{
    kept **at = &g->keeper.first;
    while (*at && *at != one) at = &(*at)->next;
    if (*at) *at = one->next;
    if (g->keeper.to_open == one) g->keeper.to_open = NULL;
}

/* The next one to be snapshotted, or NULL. */
static kept *find_due(const keeper *k, double now)
{
    kept *best = NULL;
    for (kept *i = k->first; i; i = i->next) {
        if (!bs_request_runs(i->request)) continue;
        const int64_t n = bs_request_length(i->request) - i->last_length;
        if (!(i->wanted && n > 0) && !bs_when_is_due(&k->when, n, now - i->last_s)) continue;
        if (!best || i->last_s < best->last_s) best = i;
    }
    return best;
}

static void begin_due(generate *g)
{
    keeper *k = &g->keeper;
    const double now = bs_now_s();
    kept *one = bs_sched_may_snapshot(g->sched) ? find_due(k, now) : NULL;
    if (!one) return;
    if (!one->has_dir) {
        k->to_open = one;
        bs_sched_pause(g->sched);
        return;
    }
    if (g->out) bs_output_start_sync(g->out);
    bs_sched_snapshot(g->sched, one->request);
    one->last_length = bs_request_length(one->request);
    one->last_s = now;
    one->wanted = false;
}

static void look_around(generate *g)
{
    keeper *k = &g->keeper;
    if (bs_cli_snapshot_asked())
        for (kept *i = k->first; i; i = i->next) i->wanted = true;
    if (bs_cli_stop_signal() != 0) g->why = WHY_SIGNAL;
    else if (bs_when_must_end(&k->when, bs_when_now_s(), k->last_total_s)) g->why = WHY_END_TIME;
    if (g->why != WHY_NOT) bs_sched_stop(g->sched);
    if (g->why != WHY_NOT || !k->on) return;
    if (g->is_batch && bs_generate_batch_may_restore(g)) bs_sched_pause(g->sched);
    else begin_due(g);
}

const char *bs_generate_why(const generate *g, char text[WHY_BYTES])
{
    if (g->why == WHY_END_TIME) return "stopped before the job's end time";
    snprintf(text, WHY_BYTES, "stopped by %s", bs_cli_stop_name());
    return text;
}

/* ---- the driver ------------------------------------------------------------------------------------------------- */

static bs_status plan_step(void *context, bs_plan *next)
{
    generate *g = context;
    look_around(g);
    return bs_sched_plan(g->sched, next);
}

/* Decode steps alone: one token each, as the step before. */
static void note_time(generate *g, const bs_plan *plan)
{
    step_times *t = &g->keeper.times;
    const double now = bs_now_s();
    const bool is_decode = plan->n_seqs > 0 && plan->n_tokens == plan->n_seqs && plan->n_starts == 0;
    const int busy = bs_snapshots_busy(g->keeper.machine) || plan->flags & BS_PLAN_SNAPSHOT;
    if (is_decode && t->ms[busy] && t->last_s > 0 && t->n[busy] < STEP_TIMES)
        t->ms[busy][t->n[busy]++] = (float)((now - t->last_s) * 1e3);
    t->last_s = is_decode ? now : 0;
}

static bs_status take_step(void *context, const bs_plan *plan, const bs_step_result *result)
{
    generate *g = context;
    if (g->keeper.on) note_time(g, plan);
    return bs_sched_result(g->sched, plan, result);
}

bs_driver bs_generate_driver(generate *g)
{
    (void)bs_sched_driver(g->sched); /* ends a pause */
    g->keeper.times.last_s = 0;
    return (bs_driver){.context = g, .plan = plan_step, .result = take_step};
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

bool bs_generate_has_snapshot(const char *path)
{
    DIR *dir = opendir(path);
    bool found = false;
    for (struct dirent *e = dir ? readdir(dir) : NULL; e && !found; e = readdir(dir))
        found = strncmp(e->d_name, "manifest-", 9) == 0;
    if (dir) closedir(dir);
    return found;
}
