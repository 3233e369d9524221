/* generate_answer.c: rank 0: one prompt's answer, from its beginning or from a snapshot, to its end or to the next snapshot.
 *
 * The text is written piece by piece from the scheduler's callbacks. These cannot fail, so a write error is kept in
 * g->output and stops the scheduler. When the answer is complete the scheduler is stopped, too: otherwise it would still free
 * the sequence's pages, and cache_bytes would be of nothing, and so would the last snapshot.
 *
 * What an earlier run has written of the answer is not written again: a file is cut back to what the snapshot says is there
 * and gets the rest of the text that the snapshot's ids make; standard output gets only what is new.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cli/generate.h"

#include <stdlib.h>
#include <string.h>

/* Between orders. */
enum { STAGE_BEGIN, STAGE_OPENED, STAGE_RESTORED, STAGE_RAN, STAGE_TAKEN };

/* ---- what the scheduler tells ----------------------------------------------------------------------------------- */

static void on_text(void *context, int32_t id, const char *text, size_t bytes)
{
    generate *g = context;
    char number[16];
    if (g->json || g->muted || g->output != BS_STATUS_OK) return;
    if (!g->tokenizer) {
        bytes = (size_t)snprintf(number, sizeof number, g->ids_shown ? " %d" : "%d", id);
        text = number;
        g->ids_shown = true;
    }
    g->output = bs_output_write(g->out, text, bytes);
    if (g->output != BS_STATUS_OK) bs_sched_stop(g->sched);
}

static void on_prefill(void *context, int64_t done, int64_t total, double share)
{
    generate *g = context;
    g->n_prefilled = (uint64_t)done;
    bs_progress_update_share(&g->prefill, (uint64_t)done, share);
    if (done == total) bs_progress_end(&g->prefill, (uint64_t)done);
}

static void on_snapshot(void *context, bs_request *request, bs_snapshot_state *state)
{
    generate *g = context;
    (void)request;
    bs_generate_add_state(g, &g->kept, state);
}

static void on_finish(void *context, bs_request *request)
{
    generate *g = context;
    (void)request;
    bs_progress_end(&g->prefill, g->n_prefilled);
    bs_sched_stop(g->sched); /* before the pages are freed */
}

/* ---- beginning -------------------------------------------------------------------------------------------------- */

bs_status bs_generate_answer_begin(generate *g)
{
    g->next = bs_generate_answer_next;
    BS_TRY(bs_output_open(bs_options_string(g->options, "output"), &g->out));
    return bs_sched_open(g->engine, g->tokenizer, bs_options_float(g->options, "step-ms"), &g->sched);
}

/* go_on: NULL, or how the answer goes on; slot −1: with no sequence of its own. */
static bs_status submit(generate *g, const resume *go_on, int64_t slot)
{
    const bs_options *o = g->options;
    int n_stop = bs_options_count(o, "stop");
    const char **stop = calloc((size_t)n_stop + 1, sizeof *stop);
    if (!stop) return bs_fail(BS_STATUS_NOMEM, "--stop: no memory");
    for (int i = 0; i < n_stop; i++) stop[i] = bs_options_item(o, "stop", i);
    bs_request_config config = {
        .prompt = g->prompt.ids,
        .n_prompt = (int64_t)g->prompt.n,
        .max_tokens = bs_options_int(o, "max-tokens"),
        .fill_tokens = bs_options_int(o, "kv-fill"),
        .sampling = bs_cli_read_sampling(o),
        .ignore_end = bs_options_flag(o, "ignore-eos"),
        .show_special = bs_options_flag(o, "show-special"),
        .stop = stop,
        .n_stop = n_stop,
        .stop_tokens = g->stop_tokens.ids,
        .n_stop_tokens = (int)g->stop_tokens.n,
        .context = g,
        .on_text = on_text,
        .on_prefill = on_prefill,
        .on_snapshot = on_snapshot,
        .on_finish = on_finish,
    };
    if (go_on) {
        config.answer = go_on->answer;
        config.n_answer = go_on->n_answer;
    }
    if (slot >= 0) {
        config.restored = true;
        config.slot = (int)slot;
        config.n_cached = g->keeper.first_pos;
    }
    const bool is_read = slot >= 0 && g->keeper.first_pos - config.fill_tokens >= config.n_prompt;
    bs_progress_begin(&g->prefill, "prefill", "tokens", g->prompt.n, !is_read && bs_log_get_level() > BS_LOG_QUIET);
    bs_status status = bs_sched_submit(g->sched, &config, &g->request);
    free(stop);
    BS_TRY(status);
    g->kept.request = g->request;
    g->kept.last_length = slot >= 0 ? g->keeper.first_pos : 0;
    bs_generate_keep(g, &g->kept);
    return BS_STATUS_OK;
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

/* Ids of all positions: 0 for noise, then the prompt. The caller frees them. */
static int32_t *all_ids(const generate *g, int64_t *n)
{
    const int64_t n_fill = bs_options_int(g->options, "kv-fill");
    int32_t *ids = calloc((size_t)n_fill + g->prompt.n + 1, sizeof *ids);
    *n = n_fill + (int64_t)g->prompt.n;
    if (ids) memcpy(ids + n_fill, g->prompt.ids, g->prompt.n * sizeof *ids);
    return ids;
}

static bs_status decide(generate *g, resume *out)
{
    const bs_sampling sampling = bs_cli_read_sampling(g->options);
    int64_t n;
    int32_t *ids = all_ids(g, &n);
    if (!ids) return bs_fail(BS_STATUS_NOMEM, "--resume: no memory for %zu ids", g->prompt.n);
    bs_status status = bs_generate_decide(
        g->keeper.dirs[0], g->kept.path, ids, n, bs_options_int(g->options, "kv-fill"),
        bs_options_int(g->options, "max-tokens"), &sampling, strcmp(g->keeper.resume, "require") == 0, out);
    free(ids);
    return status;
}

/* What the answer so far reads; *text is the caller's to free. */
static bs_status shown_text(const generate *g, char **text, size_t *bytes)
{
    const bs_request_stats *stats = bs_request_get_stats(g->request);
    *bytes = g->json ? 0 : bs_request_shown_bytes(g->request);
    if (g->json || g->tokenizer) {
        *text = malloc(*bytes + 1); /* it may have zeros */
        if (*text) memcpy(*text, bs_request_text(g->request), *bytes);
        return *text ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "--resume: no memory for the answer's text");
    }
    FILE *stream = open_memstream(text, bytes);
    for (int64_t i = 0; stream && i < stats->n_answer; i++)
        fprintf(stream, i > 0 ? " %d" : "%d", stats->answer[i]);
    if (!stream || fclose(stream) != 0)
        return bs_fail(BS_STATUS_NOMEM, "--resume: no memory for the answer's ids");
    return BS_STATUS_OK;
}

static bs_status resume_output(generate *g, const resume *r)
{
    char *text = NULL;
    size_t bytes = 0;
    if (r->kind == RESUME_PREFIX) return bs_output_begin(g->out);
    BS_TRY(shown_text(g, &text, &bytes));
    bs_status status = bs_output_resume(g->out, text, bytes, r->output_bytes);
    free(text);
    g->ids_shown = bs_request_get_stats(g->request)->n_answer > 0;
    return status;
}

static bs_status order_restore(generate *g, const resume *r, order *out)
{
    const int64_t n_tokens = bs_options_int(g->options, "kv-fill") + (int64_t)g->prompt.n +
                             bs_options_int(g->options, "max-tokens");
    int slot, start_s;
    if (!bs_sched_reserve(g->sched, n_tokens, 0, &slot, &start_s))
        return bs_fail(BS_STATUS_FULL, "%s: the cache has no room to restore it", g->kept.path);
    *out = (order){.kind = ORDER_RESTORE,
                   .slot = slot,
                   .exact = r->kind == RESUME_EXACT,
                   .n_common = r->n_common,
                   .n_tokens = n_tokens,
                   .start_s = start_s,
                   .sampling = bs_cli_read_sampling(g->options)};
    g->keeper.seen_ids = bs_snapshot_dir_info(g->keeper.dirs[0])->tokens;
    g->keeper.seen_first = bs_options_int(g->options, "kv-fill");
    g->stage = STAGE_RESTORED;
    return BS_STATUS_OK;
}

static void say_resumed(generate *g, const resume *r)
{
    const bs_snapshot_info *info = bs_snapshot_dir_info(g->keeper.dirs[0]);
    const bs_snapshot_restore_stats stats = bs_snapshot_last_restore(g->keeper.dirs[0]);
    char bytes[32];
    bs_format_bytes(stats.bytes, bytes, sizeof bytes);
    g->keeper.n_reused = g->keeper.first_pos;
    if (r->kind == RESUME_EXACT)
        bs_log_info("%s: goes on at token %lld (%lld of the answer), restored %s in %.2f s", g->kept.path,
                    (long long)info->n_cached, (long long)r->n_answer, bytes, stats.total_s);
    else
        bs_log_info("%s: its prompt has the first %lld of %zu tokens, too: %lld are reused, restored %s in "
                    "%.2f s; the "
                    "answer begins anew",
                    g->kept.path, (long long)r->n_common, g->prompt.n, (long long)g->keeper.first_pos, bytes,
                    stats.total_s);
}

static bs_status run_or_end(generate *g, order *out)
{
    g->stage = STAGE_RAN;
    if (bs_request_get_stats(g->request)->finish != BS_FINISH_NONE) return bs_generate_answer_next(g, out);
    out->kind = ORDER_RUN;
    return BS_STATUS_OK;
}

static bs_status start(generate *g, order *out)
{
    const bs_snapshot_info *info = g->keeper.on ? bs_snapshot_dir_info(g->keeper.dirs[0]) : NULL;
    if (info)
        bs_log_info("%s: its prompt has nothing in common with this one, which begins afresh", g->kept.path);
    BS_TRY(bs_output_begin(g->out));
    BS_TRY(submit(g, NULL, -1));
    return run_or_end(g, out);
}

static bs_status begin(generate *g, order *out)
{
    if (!g->keeper.on) return start(g, out);
    snprintf(g->kept.path, sizeof g->kept.path, "%s", bs_options_string(g->options, "snapshot"));
    if (strcmp(g->keeper.resume, "never") == 0) BS_TRY(bs_snapshot_remove(g->kept.path, bs_comm_job(g->comm)));
    out->kind = ORDER_OPEN;
    memcpy(out->path, g->kept.path, sizeof out->path);
    g->stage = STAGE_OPENED;
    return BS_STATUS_OK;
}

/* ---- ending ----------------------------------------------------------------------------------------------------- */

static bs_status write_end(generate *g)
{
    BS_TRY(g->output);
    BS_TRY(g->json ? bs_generate_print_json(g) : bs_output_write(g->out, "\n", 1));
    return bs_output_sync(g->out);
}

/* The last snapshot: of a complete answer, so that a restart finds it so; of one that was stopped, if steps were taken. */
static bs_status order_take(generate *g, order *out)
{
    const bs_snapshot_info *info = bs_snapshot_dir_info(g->keeper.dirs[0]);
    const int64_t length = bs_request_length(g->request);
    const bool finished = bs_request_get_stats(g->request)->finish != BS_FINISH_NONE;
    const bool has_it = info && info->n_cached == length && info->state.finished == finished &&
                        g->keeper.n_taken == 0;
    BS_TRY(bs_output_sync(g->out));
    g->stage = STAGE_TAKEN;
    g->keeper.taken = (bs_snapshot_result){.number = info ? info->number : 0,
                                           .n_cached = info ? info->n_cached : 0};
    out->kind = length == 0 || has_it || bs_request_slot(g->request) < 0 ? ORDER_END : ORDER_TAKE;
    out->slot = 0;
    return BS_STATUS_OK;
}

static bs_status after_steps(generate *g, order *out)
{
    const bool finished = bs_request_get_stats(g->request)->finish != BS_FINISH_NONE;
    out->kind = ORDER_END;
    if (!g->keeper.on) {
        bs_sched_close(g->sched); /* calls on_text and on_finish of what it cancels, which use g->sched */
        g->sched = NULL;
        return write_end(g);
    }
    BS_TRY(g->output);
    if (finished) BS_TRY(write_end(g));
    else g->muted = true; /* another run writes what is held back */
    return order_take(g, out);
}

bs_status bs_generate_answer_next(generate *g, order *out)
{
    resume *r = &g->resume;
    switch (g->stage) {
    case STAGE_BEGIN: return begin(g, out);
    case STAGE_OPENED:
        g->kept.has_dir = true;
        BS_TRY(decide(g, r));
        if (r->kind == RESUME_FRESH) return start(g, out);
        if (r->kind == RESUME_EXACT || r->kind == RESUME_PREFIX) return order_restore(g, r, out);
        if (r->kind == RESUME_DONE && !bs_output_is_new(g->out)) {
            bs_log_info("%s: the answer is complete: nothing to do", g->kept.path);
            out->kind = ORDER_END;
            return BS_STATUS_OK;
        }
        BS_TRY(bs_generate_check_complete(g->kept.path, submit(g, r, -1)));
        BS_TRY(resume_output(g, r));
        return run_or_end(g, out);
    case STAGE_RESTORED:
        say_resumed(g, r);
        BS_TRY(submit(g, r, 0));
        BS_TRY(resume_output(g, r));
        return run_or_end(g, out);
    case STAGE_RAN: return after_steps(g, out);
    default: break;
    }
    out->kind = ORDER_END;
    return BS_STATUS_OK;
}

/* Behind the last order. */
bs_status bs_generate_answer_finish(generate *g)
{
    const bs_snapshot_result *last = &g->keeper.taken;
    if (!g->request) return BS_STATUS_OK; /* it was complete */
    const bool finished = bs_request_get_stats(g->request)->finish != BS_FINISH_NONE;
    const bool cancelled = bs_request_get_stats(g->request)->finish == BS_FINISH_CANCELLED;
    const long long n_answer = (long long)bs_request_get_stats(g->request)->n_answer;
    char why[WHY_BYTES];
    g->muted = true;
    bs_sched_close(g->sched);
    g->sched = NULL;
    bs_generate_summarize(g);
    if (cancelled)
        return bs_fail(BS_STATUS_INTERRUPTED, "%s after %lld tokens of the answer", bs_generate_why(g, why),
                       n_answer);
    if (finished) return BS_STATUS_OK;
    if (last->status != BS_STATUS_OK)
        return bs_fail(last->status,
                       "%s after %lld tokens of the answer, and the last snapshot failed: %s: the one "
                       "before it stays in force",
                       bs_generate_why(g, why), n_answer, last->line);
    return bs_fail(
        BS_STATUS_STOPPED,
        "%s after %lld tokens of the answer: %s has the first %lld tokens; the same command goes on",
        bs_generate_why(g, why), n_answer, g->kept.path, (long long)last->n_cached);
}
