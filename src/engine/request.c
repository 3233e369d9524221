/* request.c: stop rules and streamed text.
 *
 * Text is held back from the first byte that may begin a stop string: the longest end of the text that is a
 * beginning of one. Stop strings are few and short, so both searches are plain; they look only at the bytes
 * that a token added.
 */
#define _GNU_SOURCE /* memmem */
#include "src/engine/request.h"
#include "src/base/progress.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

const char *bs_finish_name(bs_finish finish)
{
    switch (finish) {
    case BS_FINISH_NONE: return "none";
    case BS_FINISH_STOP: return "stop";
    case BS_FINISH_LENGTH: return "length";
    case BS_FINISH_CANCELLED: return "cancelled";
    }
    return "unknown";
}

static int32_t *copy_ids(const int32_t *ids, int64_t n)
{
    int32_t *copy = malloc((size_t)(n > 0 ? n : 1) * sizeof *copy);
    if (copy && n > 0) memcpy(copy, ids, (size_t)n * sizeof *copy);
    return copy;
}

static bool copy_stops(bs_request *r, const bs_request_config *config)
{
    r->stop = calloc((size_t)config->n_stop + 1, sizeof *r->stop);
    if (!r->stop) return false;
    for (int i = 0; i < config->n_stop; i++) {
        size_t bytes = strlen(config->stop[i]);
        if (!(r->stop[i] = strdup(config->stop[i]))) return false;
        if (bytes > r->longest_stop) r->longest_stop = bytes;
    }
    return true;
}

static void destroy(bs_request *r)
{
    for (int i = 0; r->stop && i < r->config.n_stop; i++) free(r->stop[i]);
    free(r->stop);
    free(r->text);
    free(r->stop_tokens);
    free(r->ids);
    free(r);
}

bs_status bs_request_create(const bs_request_config *config, const bs_tokenizer *tokenizer, bs_request **out)
{
    if (config->n_stop > 0 && !tokenizer)
        return bs_fail(BS_STATUS_USAGE, "stop strings: the model has no tokenizer");
    for (int i = 0; i < config->n_stop; i++)
        if (config->stop[i][0] == 0) return bs_fail(BS_STATUS_RANGE, "stop string %d: is empty", i);
    bs_request *r = calloc(1, sizeof *r);
    if (!r) return bs_fail(BS_STATUS_NOMEM, "no memory for a request");
    r->config = *config;
    r->tokenizer = tokenizer;
    r->seq = -1;
    r->submit_s = bs_now_s();
    r->ids = calloc((size_t)(config->fill_tokens + config->n_prompt + config->max_tokens + 1),
                    sizeof *r->ids);
    r->stop_tokens = copy_ids(config->stop_tokens, config->n_stop_tokens);
    if (!r->ids || !r->stop_tokens || !copy_stops(r, config)) {
        destroy(r);
        return bs_fail(BS_STATUS_NOMEM, "no memory for a request of %lld + %lld tokens",
                       (long long)config->n_prompt, (long long)config->max_tokens);
    }
    r->prompt = r->ids + config->fill_tokens;
    r->answer = r->prompt + config->n_prompt;
    memcpy(r->prompt, config->prompt, (size_t)config->n_prompt * sizeof *r->prompt);
    r->config.prompt = r->stats.prompt = r->prompt;
    r->config.answer = NULL;
    r->config.stop_tokens = r->stop_tokens;
    r->config.stop = (const char *const *)r->stop;
    r->stats.n_prompt = config->n_prompt;
    r->stats.answer = r->answer;
    r->stats.text = "";
    if (tokenizer) bs_detokenizer_init(&r->detokenizer, tokenizer, config->show_special);
    *out = r;
    return BS_STATUS_OK;
}

void bs_request_free(bs_request *request)
{
    if (!request) return;
    assert(request->finished);
    destroy(request);
}

const bs_request_stats *bs_request_get_stats(const bs_request *request)
{
    return &request->stats;
}

/* Gives text[shown … end) to the user, with the token that completed it. */
static void show(bs_request *r, int32_t id, size_t end)
{
    if (r->config.on_text && !r->silent)
        r->config.on_text(r->config.context, id, r->text ? r->text + r->shown_bytes : "",
                          end - r->shown_bytes);
    r->shown_bytes = end;
}

/* Where the first stop string begins in the text, when one ends at or behind byte `old`; else the text's
 * length. */
static size_t find_stop(const bs_request *r, size_t old)
{
    size_t first = r->text_bytes, from = old + 1 > r->longest_stop ? old + 1 - r->longest_stop : 0;
    if (r->longest_stop == 0 || !r->text) return first;
    for (int i = 0; i < r->config.n_stop; i++) {
        const char *at = memmem(r->text + from, r->text_bytes - from, r->stop[i], strlen(r->stop[i]));
        if (at && (size_t)(at - r->text) < first) first = (size_t)(at - r->text);
    }
    return first;
}

/* How many bytes of the text cannot belong to a stop string. */
static size_t safe_bytes(const bs_request *r)
{
    size_t most = r->longest_stop > 0 ? r->longest_stop - 1 : 0;
    if (most > r->text_bytes - r->shown_bytes) most = r->text_bytes - r->shown_bytes;
    for (size_t n = most; n > 0; n--)
        for (int i = 0; i < r->config.n_stop; i++)
            if (strlen(r->stop[i]) > n && memcmp(r->text + r->text_bytes - n, r->stop[i], n) == 0)
                return r->text_bytes - n;
    return r->text_bytes;
}

static bool ends_answer(const bs_request *r, int32_t token)
{
    for (int i = 0; i < r->config.n_stop_tokens; i++)
        if (r->stop_tokens[i] == token) return true;
    return r->tokenizer && !r->config.ignore_end && bs_tokenizer_is_end(r->tokenizer, token);
}

bs_status bs_request_accept(bs_request *r, int32_t token, bs_finish *finish)
{
    *finish = BS_FINISH_STOP;
    r->has_end = ends_answer(r, token);
    if (r->has_end) {
        r->answer[r->stats.n_answer] = token;
        return BS_STATUS_OK;
    }
    r->answer[r->stats.n_answer++] = token;
    size_t old = r->text_bytes;
    if (r->tokenizer) BS_TRY(bs_detokenizer_push(&r->detokenizer, token, &r->text, &r->text_bytes));
    size_t stop_at = find_stop(r, old);
    if (stop_at < r->text_bytes) {
        r->text[stop_at] = 0;
        r->text_bytes = stop_at;
        r->cut = true;
        show(r, token, stop_at);
        return BS_STATUS_OK;
    }
    show(r, token, safe_bytes(r));
    *finish = r->stats.n_answer == r->config.max_tokens ? BS_FINISH_LENGTH : BS_FINISH_NONE;
    return BS_STATUS_OK;
}

bs_status bs_request_replay(bs_request *r, const int32_t *answer, int64_t n, bs_finish *finish)
{
    *finish = BS_FINISH_NONE;
    r->silent = true;
    for (int64_t i = 0; i < n && *finish == BS_FINISH_NONE; i++)
        BS_TRY(bs_request_accept(r, answer[i], finish));
    r->silent = false;
    r->stats.n_earlier = r->stats.n_answer;
    return BS_STATUS_OK;
}

size_t bs_request_shown_bytes(const bs_request *r)
{
    return r->shown_bytes;
}

const char *bs_request_text(const bs_request *r)
{
    return r->text ? r->text : "";
}

bool bs_request_runs(const bs_request *r)
{
    return !r->finished && r->seq >= 0 && r->n_planned > 0;
}

int bs_request_slot(const bs_request *r)
{
    return r->seq;
}

int64_t bs_request_length(const bs_request *r)
{
    return r->seq < 0 ? 0 : r->config.fill_tokens + r->n_planned;
}

int64_t bs_request_snapshot(const bs_request *r, const int32_t **tokens, bs_snapshot_state *state)
{
    *tokens = r->ids;
    *state = (bs_snapshot_state){.n_prompt = r->config.fill_tokens + r->config.n_prompt,
                                 .max_tokens = r->config.max_tokens,
                                 .output_bytes = -1,
                                 .sampling = r->config.sampling,
                                 .finished = r->finished && r->stats.finish != BS_FINISH_CANCELLED};
    return state->n_prompt + r->stats.n_answer + r->has_end;
}

/* The text that is still held: what looked like a stop string but was none, half a character as U+FFFD. */
static bs_status show_rest(bs_request *r)
{
    if (r->tokenizer && !r->cut) BS_TRY(bs_detokenizer_finish(&r->detokenizer, &r->text, &r->text_bytes));
    if (r->text_bytes > r->shown_bytes) show(r, -1, r->text_bytes);
    r->stats.text = r->text ? r->text : "";
    r->stats.text_bytes = r->text_bytes;
    return BS_STATUS_OK;
}

bs_status bs_request_finish(bs_request *r, bs_finish finish)
{
    double now = bs_now_s(), start = r->start_s > 0 ? r->start_s : now;
    double prefilled = r->prefilled_s > 0 ? r->prefilled_s : now;
    BS_TRY(show_rest(r));
    r->stats.finish = finish;
    r->stats.queue_ms = (start - r->submit_s) * 1e3;
    r->stats.prefill_ms = (prefilled - start) * 1e3;
    r->stats.decode_ms = r->last_s > 0 &&
                                 r->stats.n_answer > (r->stats.n_earlier > 0 ? r->stats.n_earlier : 1)
                             ? (r->last_s - prefilled) * 1e3
                             : 0;
    r->finished = true;
    if (r->config.on_finish) r->config.on_finish(r->config.context, r);
    return BS_STATUS_OK;
}
