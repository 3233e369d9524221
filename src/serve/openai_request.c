/* openai_request.c: a request's body, field by field.
 *
 * One table says what each field is; a field that is not in it is an error, since a request with a misspelt
 * temperature would be answered as if nothing were wrong. null is "not given", as in the API.
 */
#include "src/serve/openai.h"
#include "src/model/chat.h"
#include "src/model/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum field_kind {
    FIELD_READ,    /* read below */
    FIELD_ONE,     /* must be 1: an answer a request */
    FIELD_OFF,     /* changes the answer and is not supported: must be off */
    FIELD_IGNORED, /* does not change an answer */
} field_kind;

enum { COMPLETIONS = 1 << BS_OPENAI_COMPLETIONS, CHAT = 1 << BS_OPENAI_CHAT, BOTH = COMPLETIONS | CHAT };

static const struct field {
    const char *name;
    unsigned apis;
    field_kind kind;
} fields[] = {
    {"model", BOTH, FIELD_READ},
    {"prompt", COMPLETIONS, FIELD_READ},
    {"messages", CHAT, FIELD_READ},
    {"max_tokens", BOTH, FIELD_READ},
    {"max_completion_tokens", CHAT, FIELD_READ},
    {"temperature", BOTH, FIELD_READ},
    {"top_p", BOTH, FIELD_READ},
    {"top_k", BOTH, FIELD_READ},
    {"min_p", BOTH, FIELD_READ},
    {"repeat_penalty", BOTH, FIELD_READ},
    {"seed", BOTH, FIELD_READ},
    {"stop", BOTH, FIELD_READ},
    {"ignore_eos", BOTH, FIELD_READ},
    {"n", BOTH, FIELD_ONE},
    {"best_of", COMPLETIONS, FIELD_ONE},
    {"stream", BOTH, FIELD_OFF},
    {"stream_options", BOTH, FIELD_OFF},
    {"echo", COMPLETIONS, FIELD_OFF},
    {"suffix", COMPLETIONS, FIELD_OFF},
    {"logprobs", BOTH, FIELD_OFF},
    {"top_logprobs", CHAT, FIELD_OFF},
    {"logit_bias", BOTH, FIELD_OFF},
    {"frequency_penalty", BOTH, FIELD_OFF},
    {"presence_penalty", BOTH, FIELD_OFF},
    {"tools", CHAT, FIELD_OFF},
    {"functions", CHAT, FIELD_OFF},
    {"response_format", CHAT, FIELD_OFF},
    {"modalities", CHAT, FIELD_OFF},
    {"audio", CHAT, FIELD_OFF},
    {"prediction", CHAT, FIELD_OFF},
    {"web_search_options", CHAT, FIELD_OFF},
    {"tool_choice", CHAT, FIELD_IGNORED},
    {"function_call", CHAT, FIELD_IGNORED},
    {"parallel_tool_calls", CHAT, FIELD_IGNORED},
    {"reasoning_effort", CHAT, FIELD_IGNORED},
    {"verbosity", CHAT, FIELD_IGNORED},
    {"metadata", BOTH, FIELD_IGNORED},
    {"service_tier", BOTH, FIELD_IGNORED},
    {"store", BOTH, FIELD_IGNORED},
    {"user", BOTH, FIELD_IGNORED},
    {"safety_identifier", BOTH, FIELD_IGNORED},
    {"prompt_cache_key", BOTH, FIELD_IGNORED},
};

static const char *const urls[] = {"/v1/completions", "/v1/chat/completions"};

bool bs_openai_find_api(const char *url, bs_openai_api *out)
{
    for (int i = 0; i < 2; i++) {
        if (strcmp(url, urls[i]) != 0) continue;
        *out = (bs_openai_api)i;
        return true;
    }
    return false;
}

/* `temperature "hot": must be …`, with as much of the value as a line bears. */
static bs_status refuse(const char *name, const json_t *value, const char *must)
{
    enum { SHOWN = 60 };
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
    size_t bytes = text ? strlen(text) : 0;
    bool cut = bytes > SHOWN;
    if (cut) bytes = bs_utf8_valid_bytes(text, SHOWN);
    bs_status status = bs_fail(BS_STATUS_RANGE, "%s %.*s%s: %s", name, (int)bytes, text ? text : "",
                               cut ? "…" : "", must);
    free(text);
    return status;
}

/* NULL when it is not given. */
static const json_t *get(const json_t *body, const char *name)
{
    const json_t *value = json_object_get(body, name);
    return json_is_null(value) ? NULL : value;
}

static bool is_off(const char *name, const json_t *value)
{
    if (json_is_null(value) || json_is_false(value)) return true;
    if (json_is_number(value)) return json_number_value(value) == 0;
    if (json_is_array(value) && strcmp(name, "modalities") == 0)
        return json_array_size(value) == 1 && json_is_string(json_array_get(value, 0)) &&
               strcmp(json_string_value(json_array_get(value, 0)), "text") == 0;
    if (json_is_object(value) && strcmp(name, "response_format") == 0) {
        const json_t *type = json_object_get(value, "type");
        return json_object_size(value) == 1 && json_is_string(type) &&
               strcmp(json_string_value(type), "text") == 0;
    }
    return (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

static bs_status check_field(bs_openai_api api, const char *name, const json_t *value)
{
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (strcmp(fields[i].name, name) != 0 || !(fields[i].apis >> api & 1u)) continue;
        if (fields[i].kind == FIELD_ONE && !json_is_null(value) &&
            !(json_is_integer(value) && json_integer_value(value) == 1))
            return refuse(name, value, "must be 1");
        if (fields[i].kind == FIELD_OFF && !is_off(name, value)) return refuse(name, value, "not supported");
        return BS_STATUS_OK;
    }
    return bs_fail(BS_STATUS_RANGE, "body has \"%.80s\": not a field of %s", name, urls[api]);
}

/* ---- numbers ---------------------------------------------------------------------------------------------- */

static bs_status read_float(const json_t *body, const char *name, double above, double max, bool at_least,
                            float *out)
{
    const json_t *value = get(body, name);
    if (!value) return BS_STATUS_OK;
    double x = json_number_value(value);
    bool good = json_is_number(value) && (at_least ? x >= above : x > above) && x <= max;
    char must[80];
    snprintf(must, sizeof must,
             at_least ? "must be a number, %g to %g" : "must be a number above %g, up to %g", above, max);
    if (!good || (above == 0 && !at_least && (float)x == 0)) return refuse(name, value, must);
    *out = (float)x;
    return BS_STATUS_OK;
}

static bs_status read_int(const json_t *body, const char *name, int64_t max, int64_t *out)
{
    const json_t *value = get(body, name);
    if (!value) return BS_STATUS_OK;
    char must[80];
    snprintf(must, sizeof must, "must be a whole number, 0 to %lld", (long long)max);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > max)
        return refuse(name, value, must);
    *out = json_integer_value(value);
    return BS_STATUS_OK;
}

static bs_status read_numbers(const json_t *body, bs_openai_request *r)
{
    enum { MOST_TOKENS = 1 << 30 };
    int64_t top_k = r->sampling.top_k, both = -1;
    const json_t *seed = get(body, "seed"), *ignore = get(body, "ignore_eos");
    BS_TRY(read_int(body, "max_tokens", MOST_TOKENS, &r->max_tokens));
    BS_TRY(read_int(body, "max_completion_tokens", MOST_TOKENS, &both));
    if (both >= 0 && get(body, "max_tokens") && both != r->max_tokens)
        return bs_fail(BS_STATUS_RANGE, "max_completion_tokens %lld: max_tokens says %lld", (long long)both,
                       (long long)r->max_tokens);
    if (both >= 0) r->max_tokens = both;
    BS_TRY(read_float(body, "temperature", 0, 2, true, &r->sampling.temperature));
    BS_TRY(read_float(body, "top_p", 0, 1, false, &r->sampling.top_p));
    BS_TRY(read_float(body, "min_p", 0, 1, true, &r->sampling.min_p));
    BS_TRY(read_float(body, "repeat_penalty", 0, 1000, false, &r->sampling.repeat_penalty));
    BS_TRY(read_int(body, "top_k", INT32_MAX, &top_k));
    r->sampling.top_k = (int32_t)top_k;
    if (seed && !json_is_integer(seed)) return refuse("seed", seed, "must be a whole number of 64 bits");
    if (seed) r->sampling.seed = (uint64_t)json_integer_value(seed);
    if (ignore && !json_is_boolean(ignore)) return refuse("ignore_eos", ignore, "must be true or false");
    if (ignore) r->ignore_end = json_is_true(ignore);
    return BS_STATUS_OK;
}

/* ---- texts ------------------------------------------------------------------------------------------------ */

static bs_status add_stop(const json_t *value, bs_openai_request *r)
{
    if (!json_is_string(value) || json_string_length(value) == 0)
        return refuse("stop", value, "must be a text that is not empty");
    r->stop[r->n_stop++] = json_string_value(value);
    return BS_STATUS_OK;
}

static bs_status read_stop(const json_t *body, bs_openai_request *r)
{
    const json_t *value = get(body, "stop");
    if (!value) return BS_STATUS_OK;
    r->n_stop = 0;
    if (!json_is_array(value)) return add_stop(value, r);
    if (json_array_size(value) > BS_OPENAI_MAX_STOPS)
        return bs_fail(BS_STATUS_RANGE, "stop has %zu texts: must be at most %d", json_array_size(value),
                       BS_OPENAI_MAX_STOPS);
    for (size_t i = 0; i < json_array_size(value); i++) BS_TRY(add_stop(json_array_get(value, i), r));
    return BS_STATUS_OK;
}

static bs_status read_ids(const json_t *ids, const bs_tokenizer *tokenizer, bs_tokens *out)
{
    int n_vocab = bs_tokenizer_n_vocab(tokenizer);
    char must[80];
    snprintf(must, sizeof must, "an id must be a whole number, 0 to %d", n_vocab - 1);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab)
            return refuse("prompt", id, must);
        BS_TRY(bs_tokens_push(out, (int32_t)json_integer_value(id)));
    }
    return BS_STATUS_OK;
}

/* A text, a list of ids, or a list of one of those. */
static bs_status read_prompt(const json_t *body, const bs_tokenizer *tokenizer, bs_openai_request *r)
{
    const json_t *prompt = get(body, "prompt"), *first = json_array_get(prompt, 0);
    if (!prompt) return bs_fail(BS_STATUS_RANGE, "prompt is missing");
    if (json_is_array(prompt) && (json_is_string(first) || json_is_array(first))) {
        if (json_array_size(prompt) > 1)
            return bs_fail(BS_STATUS_RANGE, "prompt has %zu items: must be one prompt",
                           json_array_size(prompt));
        prompt = first;
    }
    if (json_is_array(prompt)) return read_ids(prompt, tokenizer, &r->prompt);
    if (!json_is_string(prompt)) return refuse("prompt", prompt, "must be a text or a list of token ids");
    size_t bytes = json_string_length(prompt);
    if (bs_tokenizer_bos(tokenizer) >= 0 && (bs_tokenizer_adds_bos(tokenizer) || bytes == 0))
        BS_TRY(bs_tokens_push(&r->prompt, bs_tokenizer_bos(tokenizer)));
    return bs_tokenize(tokenizer, json_string_value(prompt), bytes, r->parse_special, &r->prompt);
}

/* The text of a message, or of its parts in a row; *joined is the caller's to free. */
static bs_status read_content(const json_t *content, size_t index, char **joined, bs_chat_message *out)
{
    char name[48];
    snprintf(name, sizeof name, "messages[%zu].content", index);
    if (json_is_string(content)) {
        out->content = json_string_value(content);
        out->content_bytes = json_string_length(content);
        return BS_STATUS_OK;
    }
    if (!json_is_array(content)) {
        if (!content) return bs_fail(BS_STATUS_RANGE, "%s is missing", name);
        return refuse(name, content, "must be a text or a list of text parts");
    }
    size_t bytes = 0;
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i), *type = json_object_get(part, "type"),
                     *text = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 || !json_is_string(text))
            return refuse(name, part, "must be a part of type text");
        char *longer = realloc(*joined, bytes + json_string_length(text) + 1);
        if (!longer) return bs_fail(BS_STATUS_NOMEM, "%s: no memory", name);
        *joined = longer;
        memcpy(longer + bytes, json_string_value(text), json_string_length(text) + 1);
        bytes += json_string_length(text);
    }
    out->content = *joined ? *joined : "";
    out->content_bytes = bytes;
    return BS_STATUS_OK;
}

static bs_status read_message(const json_t *message, size_t index, char **joined, bs_chat_message *out)
{
    char name[48];
    const json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
    snprintf(name, sizeof name, "messages[%zu]", index);
    if (!json_is_object(message)) return refuse(name, message, "must be an object");
    snprintf(name, sizeof name, "messages[%zu].role", index);
    if (!role) return bs_fail(BS_STATUS_RANGE, "%s is missing", name);
    if (!json_is_string(role)) return refuse(name, role, "must be system, user or assistant");
    /* The API's newer name of the same thing. */
    bool developer = strcmp(json_string_value(role), "developer") == 0;
    out->role = developer ? "system" : json_string_value(role);
    if (strcmp(out->role, "system") != 0 && strcmp(out->role, "user") != 0 &&
        strcmp(out->role, "assistant") != 0)
        return refuse(name, role, "must be system, user or assistant");
    return read_content(content, index, joined, out);
}

static bs_status read_messages(const json_t *body, const bs_tokenizer *tokenizer, bs_openai_request *r)
{
    const json_t *list = get(body, "messages");
    size_t n = json_array_size(list), n_read = 0;
    if (!list) return bs_fail(BS_STATUS_RANGE, "messages is missing");
    if (n == 0) return refuse("messages", list, "must be a list of messages, one at least");
    bs_chat_message *messages = calloc(n, sizeof *messages);
    char **joined = calloc(n, sizeof *joined);
    bs_status status = messages && joined ? BS_STATUS_OK
                                          : bs_fail(BS_STATUS_NOMEM, "messages: no memory for %zu", n);
    for (; status == BS_STATUS_OK && n_read < n; n_read++)
        status = read_message(json_array_get(list, n_read), n_read, &joined[n_read], &messages[n_read]);
    if (status == BS_STATUS_OK && n <= INT32_MAX)
        status = bs_chat_tokenize(tokenizer, messages, (int)n, &r->prompt);
    for (size_t i = 0; joined && i < n; i++) free(joined[i]);
    free(joined);
    free(messages);
    return status;
}

/* ---- the body --------------------------------------------------------------------------------------------- */

static bs_status read_body(const json_t *body, const bs_tokenizer *tokenizer, bs_openai_request *r)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)body, name, value) BS_TRY(check_field(r->api, name, value));
    const json_t *model = get(body, "model");
    if (model && !json_is_string(model)) return refuse("model", model, "must be a text");
    BS_TRY(read_numbers(body, r));
    BS_TRY(read_stop(body, r));
    BS_TRY(r->api == BS_OPENAI_CHAT ? read_messages(body, tokenizer, r) : read_prompt(body, tokenizer, r));
    if (r->prompt.n == 0) return bs_fail(BS_STATUS_RANGE, "prompt is empty");
    return BS_STATUS_OK;
}

bs_status bs_openai_read(bs_openai_api api, const json_t *body, const bs_tokenizer *tokenizer,
                         const bs_openai_request *defaults, bs_openai_request *out)
{
    bs_openai_request request = *defaults;
    request.api = api;
    request.prompt = (bs_tokens){0};
    if (!json_is_object(body)) return bs_fail(BS_STATUS_FORMAT, "body must be an object");
    bs_status status = read_body(body, tokenizer, &request);
    if (status != BS_STATUS_OK) {
        bs_tokens_free(&request.prompt);
        return status;
    }
    *out = request;
    return BS_STATUS_OK;
}
