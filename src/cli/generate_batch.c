/* generate_batch.c: a file of requests in, a file of answers out.
 *
 * All lines are read twice. Once before the engine opens: which are answered already, which can never be, and how many
 * tokens the others need, so that the cache gets no more than the largest --batch-size of them together; what fits then
 * fits at any time and nothing is rejected half-way. And again when a line's turn comes, so that the ids of a batch need
 * not be in memory all at once.
 *
 * As many requests are with the scheduler as can run, and no more. An answer is written when it is complete, then the
 * next line is taken, and errors on the way to it are written. So with one request at a time the output has the order
 * of the input, and a run that was cut off anywhere goes on with the byte that an uninterrupted one would have written
 * next; nothing of the time is in a line.
 *
 * A request's pages begin on a shard that its line's number chooses (start_number): otherwise the sums over sequence
 * shards would depend on what this run has answered before.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cli/generate_batch.h"

#include <stdlib.h>
#include <string.h>

/* How long ranks of a killed job may still hold the output: mpirun's own delays are 2 s. */
static const double lock_wait_s = 5;

bs_status bs_generate_batch_check(const bs_options *options)
{
    static const char *const others[] = {"prompt", "prompt-file", "system", "json", "chat", "kv-fill"};
    const char *path = bs_options_string(options, "batch"), *output = bs_options_string(options, "output");
    if (!path) {
        const char *prompt = bs_options_string(options, "prompt-file");
        if (output && strcmp(output, "-") == 0)
            return bs_fail(BS_STATUS_USAGE,
                           "--output -: must be a file; without it the answer goes to standard output");
        if (output && prompt && bs_batch_answers_same_file(prompt, output))
            return bs_fail(BS_STATUS_USAGE, "--output %s: is the file of --prompt-file", output);
        if (bs_options_given(options, "batch-size"))
            return bs_fail(BS_STATUS_USAGE, "--batch-size: only with --batch");
        return BS_STATUS_OK;
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (bs_options_given(options, others[i]))
            return bs_fail(BS_STATUS_USAGE, "--%s: not together with --batch", others[i]);
    if (bs_options_count(options, "stop") > BS_OPENAI_MAX_STOPS)
        return bs_fail(BS_STATUS_USAGE, "--stop: at most %d with --batch", BS_OPENAI_MAX_STOPS);
    if (bs_options_flag(options, "dry-run")) return BS_STATUS_OK;
    if (!output) return bs_fail(BS_STATUS_USAGE, "--batch %s: needs --output FILE", path);
    if (strcmp(output, "-") == 0)
        return bs_fail(BS_STATUS_USAGE, "--output -: must be a file, which the next run reads back");
    if (bs_batch_answers_same_file(path, output))
        return bs_fail(BS_STATUS_USAGE, "--output %s: is the file of --batch", output);
    return BS_STATUS_OK;
}

/* ---- reading the requests ----------------------------------------------------------------------------------- */

static void read_defaults(const generate *g, bs_openai_request *out)
{
    const bs_options *o = g->options;
    *out = (bs_openai_request){
        .max_tokens = bs_options_int(o, "max-tokens"),
        .sampling = bs_cli_read_sampling(o),
        .ignore_end = bs_options_flag(o, "ignore-eos"),
        .parse_special = bs_options_flag(o, "parse-special"),
        .n_stop = bs_options_count(o, "stop"),
    };
    for (int i = 0; i < out->n_stop; i++) out->stop[i] = bs_options_item(o, "stop", i);
}

static bs_status add_item(batch *b, const item *one)
{
    if (b->n_items == b->capacity) {
        int64_t capacity = b->capacity ? 2 * b->capacity : 256;
        item *items = realloc(b->items, sizeof *items * (size_t)capacity);
        if (!items) return bs_fail(BS_STATUS_NOMEM, "--batch: no memory for %lld lines", (long long)capacity);
        b->items = items;
        b->capacity = capacity;
    }
    b->items[b->n_items++] = *one;
    return BS_STATUS_OK;
}

/* A line that becomes an error line; the message is the kept one. custom_id NULL: it has none. */
static bs_status add_error(batch *b, item one, const char *custom_id, const char *code)
{
    one.n_tokens = 0;
    one.error_code = code;
    one.error = strdup(bs_error_message());
    one.error_id = custom_id ? strdup(custom_id) : NULL;
    bs_error_clear();
    if (one.error && (one.error_id || !custom_id) && add_item(b, &one) == BS_STATUS_OK) return BS_STATUS_OK;
    free(one.error);
    free(one.error_id);
    return bs_fail(BS_STATUS_NOMEM, "--batch: no memory for line %lld", (long long)one.number);
}

/* Fails when no step could hold the request's tokens. */
static bs_status check_tokens(const generate *g, const bs_openai_request *request)
{
    bool given = bs_options_given(g->options, "context");
    int64_t most = given ? bs_options_int(g->options, "context")
                         : bs_model_get_desc(g->model)->context_length;
    int64_t need = (int64_t)request->prompt.n + request->max_tokens;
    if (need <= most) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_RANGE, "prompt of %zu tokens and max_tokens %lld need %lld: the %s %lld",
                   request->prompt.n, (long long)request->max_tokens, (long long)need,
                   given ? "context is" : "model was trained for", (long long)most);
}

/* Whether an error of a line is the line's own. */
static bool is_of_line(bs_status status)
{
    return status == BS_STATUS_FORMAT || status == BS_STATUS_RANGE || status == BS_STATUS_UNSUPPORTED;
}

/* A line with a custom_id that no earlier one has and the output has not. */
static bs_status read_request(generate *g, const bs_batch_line *line, item one)
{
    batch *b = g->batch;
    bs_openai_request request;
    const char *code = BS_BATCH_INVALID_REQUEST;
    bs_status status = bs_batch_line_read(line, g->tokenizer, &b->defaults, &request);
    if (status == BS_STATUS_OK) {
        one.n_tokens = (int64_t)request.prompt.n + request.max_tokens;
        status = check_tokens(g, &request);
        code = BS_BATCH_TOO_LONG;
        bs_tokens_free(&request.prompt);
        one.has_snapshot = bs_lines_begun(g, line->custom_id);
    }
    if (status == BS_STATUS_OK) return add_item(b, &one);
    return is_of_line(status) ? add_error(b, one, line->custom_id, code) : status;
}

static bool line_is_there(const batch *b, int64_t number)
{
    return b->answers && bs_batch_answers_has_line(b->answers, number);
}

/* seen: custom_id to the number of its line. */
static bs_status read_line(generate *g, item one, json_t *seen)
{
    batch *b = g->batch;
    bs_batch_line line;
    bs_status status = bs_batch_line_open(one.text, one.bytes, &line);
    b->n_lines++;
    if (status != BS_STATUS_OK) {
        if (!line_is_there(b, one.number)) return add_error(b, one, NULL, BS_BATCH_INVALID_LINE);
        bs_error_clear();
        b->n_there++;
        return BS_STATUS_OK;
    }
    const json_t *before = json_object_get(seen, line.custom_id);
    if (before) {
        (void)bs_fail(BS_STATUS_RANGE, "custom_id \"%.100s\": line %lld has it, too", line.custom_id,
                      (long long)json_integer_value(before));
        if (!line_is_there(b, one.number)) status = add_error(b, one, line.custom_id, BS_BATCH_DUPLICATE_ID);
        else b->n_there++;
        bs_error_clear();
    } else if (json_object_set_new(seen, line.custom_id, json_integer(one.number)) != 0) {
        status = bs_fail(BS_STATUS_NOMEM, "--batch: no memory for line %lld", (long long)one.number);
    } else if (b->answers && bs_batch_answers_has(b->answers, line.custom_id)) {
        b->n_there++;
        bs_lines_remove(g, line.custom_id);
    } else {
        status = read_request(g, &line, one);
    }
    bs_batch_line_close(&line);
    return status;
}

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r", text[i]) || text[i] == 0) return false;
    return true;
}

static bs_status read_lines(generate *g, size_t bytes)
{
    static const char bom[] = "\xef\xbb\xbf";
    batch *b = g->batch;
    const char *at = b->text, *end = at + bytes;
    json_t *seen = json_object();
    bs_status status = seen ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "--batch: no memory");
    if (bytes >= 3 && memcmp(at, bom, 3) == 0) at += 3;
    for (int64_t number = 1; status == BS_STATUS_OK && at < end; number++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((stop ? stop : end) - at);
        if (!is_blank(at, n)) status = read_line(g, (item){.number = number, .text = at, .bytes = n}, seen);
        at += n + 1;
    }
    json_decref(seen);
    return status;
}

static int compare_most_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* The longest request is the context; the longest batch_size of them together are what the cache must hold. */
static bs_status size_cache(generate *g)
{
    const batch *b = g->batch;
    int64_t n = 0, batch_size = bs_options_int(g->options, "batch-size"), total = 0;
    int64_t *tokens = malloc(sizeof *tokens * (size_t)(b->n_items + 1));
    if (!tokens) return bs_fail(BS_STATUS_NOMEM, "--batch: no memory for %lld lines", (long long)b->n_items);
    for (int64_t i = 0; i < b->n_items; i++)
        if (b->items[i].n_tokens > 0) tokens[n++] = b->items[i].n_tokens;
    qsort(tokens, (size_t)n, sizeof *tokens, compare_most_first);
    if (n < batch_size) batch_size = n;
    for (int64_t i = 0; i < batch_size; i++) total += tokens[i];
    g->config.max_context = n > 0 ? tokens[0] : 0;
    g->config.total_tokens = total;
    g->config.max_seqs = (int)batch_size;
    free(tokens);
    return BS_STATUS_OK;
}

bs_status bs_generate_batch_read(generate *g)
{
    batch *b = g->batch = calloc(1, sizeof *b);
    size_t bytes;
    if (!b) return bs_fail(BS_STATUS_NOMEM, "--batch: no memory");
    read_defaults(g, &b->defaults);
    BS_TRY(bs_cli_read_file("batch", bs_options_string(g->options, "batch"), &b->text, &bytes));
    if (!bs_options_flag(g->options, "dry-run"))
        BS_TRY(bs_batch_answers_open(bs_options_string(g->options, "output"), lock_wait_s, &b->answers));
    if (g->keeper.on && b->answers) BS_TRY(bs_lines_scan(g));
    BS_TRY(read_lines(g, bytes));
    if (b->n_lines == 0)
        return bs_fail(BS_STATUS_FORMAT, "--batch %s: has no line", bs_options_string(g->options, "batch"));
    return size_cache(g);
}

/* ---- answering ---------------------------------------------------------------------------------------------- */

static bs_status append(batch *b, char *text)
{
    bs_status status = text ? bs_batch_answers_append(b->answers, text)
                            : bs_fail(BS_STATUS_NOMEM, "--output: no memory for a line");
    free(text);
    return status;
}

static void free_answer(answer *a)
{
    if (!a) return;
    free(a->custom_id);
    free(a);
}

static void on_finish(void *context, bs_request *request);

static void on_snapshot(void *context, bs_request *request, bs_snapshot_state *state)
{
    const answer *a = context;
    (void)request;
    bs_generate_add_state(a->g, &a->kept, state);
}

static bs_status submit_line(generate *g, const item *one, const bs_batch_line *line, const resume *go_on,
                             int slot, int64_t n_cached)
{
    batch *b = g->batch;
    bs_openai_request read;
    answer *a = calloc(1, sizeof *a);
    if (!a || !(a->custom_id = strdup(line->custom_id))) {
        free(a);
        return bs_fail(BS_STATUS_NOMEM, "--batch: no memory for line %lld", (long long)one->number);
    }
    bs_status status = bs_batch_line_read(line, g->tokenizer, &b->defaults, &read);
    if (status == BS_STATUS_OK) {
        a->g = g;
        a->number = one->number;
        a->api = read.api;
        bs_request_config config = {
            .prompt = read.prompt.ids,
            .n_prompt = (int64_t)read.prompt.n,
            .max_tokens = read.max_tokens,
            .sampling = read.sampling,
            .ignore_end = read.ignore_end,
            .show_special = bs_options_flag(g->options, "show-special"),
            .stop = read.stop,
            .n_stop = read.n_stop,
            .stop_tokens = g->stop_tokens.ids,
            .n_stop_tokens = (int)g->stop_tokens.n,
            .start_number = one->number,
            .restored = slot >= 0,
            .slot = slot,
            .n_cached = n_cached,
            .context = a,
            .on_snapshot = on_snapshot,
            .on_finish = on_finish,
        };
        if (go_on) {
            config.answer = go_on->answer;
            config.n_answer = go_on->n_answer;
        }
        if (g->keeper.on) {
            bs_lines_set(g, line->custom_id, &a->kept);
            a->kept.has_dir = go_on != NULL; /* also of one that is complete, without a slot */
            a->kept.last_length = n_cached;
            bs_generate_keep(g, &a->kept);
        }
        b->n_with_sched++;
        /* It may finish at once, and be gone. */
        status = bs_sched_submit(g->sched, &config, &a->kept.request);
        bs_tokens_free(&read.prompt);
        if (status == BS_STATUS_OK) return BS_STATUS_OK;
        b->n_with_sched--;
        bs_generate_forget(g, &a->kept);
    }
    free_answer(a);
    return status;
}

bs_status bs_batch_submit(generate *g, const item *one, const resume *go_on, int slot, int64_t n_cached)
{
    bs_batch_line line;
    BS_TRY(bs_batch_line_open(one->text, one->bytes, &line));
    bs_status status = submit_line(g, one, &line, go_on, slot, n_cached);
    bs_batch_line_close(&line);
    return status;
}

/* One that a run before this has begun is not submitted but waits for its restore, and the others behind it. */
static bs_status submit_next(generate *g)
{
    batch *b = g->batch;
    const item *one = &b->items[b->next++];
    if (one->has_snapshot) {
        b->restoring = (restoring){.one = one, .slot = -1};
        return BS_STATUS_OK;
    }
    if (!one->error_code) return bs_batch_submit(g, one, NULL, -1, 0);
    b->n_errors++;
    BS_TRY(append(b, bs_batch_error_text(one->number, one->error_id, one->error_code, one->error)));
    bs_progress_update(&b->progress, (uint64_t)(b->n_answered + b->n_errors));
    return BS_STATUS_OK;
}

bs_status bs_batch_fill(generate *g)
{
    batch *b = g->batch;
    while (b->next < b->n_items && !b->restoring.one &&
           (b->n_with_sched < g->config.max_seqs || b->items[b->next].error_code))
        BS_TRY(submit_next(g));
    return BS_STATUS_OK;
}

static bs_status write_answer(generate *g, const answer *a, const bs_request_stats *stats)
{
    batch *b = g->batch;
    const char *model = bs_model_get_desc(g->model)->name;
    BS_TRY(append(b, bs_batch_answer_text(a->number, a->custom_id, a->api, model, stats)));
    b->n_answered++;
    b->n_prompt_tokens += stats->n_prompt;
    b->n_answer_tokens += stats->n_answer;
    bs_progress_update(&b->progress, (uint64_t)(b->n_answered + b->n_errors));
    return BS_STATUS_OK;
}

/* Called from within the loop, which cannot be failed from here: an error is kept and stops it. */
static void on_finish(void *context, bs_request *request)
{
    answer *a = context;
    generate *g = a->g;
    const bs_request_stats *stats = bs_request_get_stats(request);
    bool goes_on = stats->finish != BS_FINISH_CANCELLED && g->output == BS_STATUS_OK;
    g->batch->n_with_sched--;
    bs_generate_forget(g, &a->kept);
    if (goes_on) g->output = write_answer(g, a, stats);
    if (goes_on && g->output == BS_STATUS_OK) bs_lines_drop(g, &a->kept);
    free_answer(a);
    bs_request_free(request);
    if (goes_on && g->output == BS_STATUS_OK) g->output = bs_batch_fill(g);
    if (goes_on && g->output != BS_STATUS_OK) bs_sched_stop(g->sched);
}

bs_status bs_generate_batch_begin(generate *g)
{
    batch *b = g->batch;
    BS_TRY(bs_sched_open(g->engine, g->tokenizer, bs_options_float(g->options, "step-ms"), &g->sched));
    bs_progress_begin(&b->progress, "batch", "lines", (uint64_t)b->n_items,
                      bs_log_get_level() > BS_LOG_QUIET);
    b->start_s = bs_now_s();
    g->next = bs_generate_batch_next;
    return bs_batch_fill(g);
}

static void summarize(const generate *g)
{
    const batch *b = g->batch;
    double seconds = b->start_s > 0 ? bs_now_s() - b->start_s : 0;
    bs_log_info("batch: %lld lines, %lld answered before, %lld answered now, %lld errors",
                (long long)b->n_lines, (long long)b->n_there, (long long)b->n_answered,
                (long long)b->n_errors);
    if (g->keeper.on)
        bs_log_info("snapshots: %lld taken, %lld failed; %lld lines went on in mid-answer",
                    (long long)g->keeper.n_taken, (long long)g->keeper.n_failed, (long long)b->n_resumed);
    if (seconds > 0)
        bs_log_info("loaded in %.0f ms; %lld prompt and %lld answer tokens in %.1f s, %.1f and %.1f "
                    "tokens/s, %d at a time",
                    g->load_ms, (long long)b->n_prompt_tokens, (long long)b->n_answer_tokens, seconds,
                    (double)b->n_prompt_tokens / seconds, (double)b->n_answer_tokens / seconds,
                    g->config.max_seqs);
}

bs_status bs_generate_batch_finish(generate *g)
{
    batch *b = g->batch;
    char why[WHY_BYTES];
    bs_sched_close(g->sched); /* what it cancels is not answered */
    g->sched = NULL;
    bs_progress_end(&b->progress, (uint64_t)(b->n_answered + b->n_errors));
    bs_lines_sweep(g);
    BS_TRY(g->output);
    if (g->why == WHY_NOT) BS_TRY(bs_batch_fill(g)); /* errors only, when there was nothing to decode */
    summarize(g);
    const long long n_left = (long long)(b->n_items - b->n_answered - b->n_errors);
    if (g->why == WHY_NOT || n_left == 0) return BS_STATUS_OK;
    if (g->keeper.on)
        return bs_fail(BS_STATUS_STOPPED,
                       "%s with %lld lines to go, %lld of them in mid-answer: the same command goes on",
                       bs_generate_why(g, why), n_left, (long long)b->n_left);
    return bs_fail(BS_STATUS_INTERRUPTED, "%s with %lld lines to go: the same command goes on",
                   bs_generate_why(g, why), n_left);
}

void bs_generate_batch_free(generate *g)
{
    batch *b = g->batch;
    if (!b) return;
    for (int64_t i = 0; i < b->n_items; i++) {
        free(b->items[i].error);
        free(b->items[i].error_id);
    }
    free(b->items);
    json_decref(b->dirs);
    json_decref(b->garbage);
    bs_batch_answers_close(b->answers);
    free(b->text);
    free(b);
}
