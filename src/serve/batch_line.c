/* batch_line.c: one line of a batch in, one line out. */
#include "src/serve/batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bs_status bs_batch_line_open(const char *text, size_t bytes, bs_batch_line *out)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    const json_t *id = json_object_get(root, "custom_id");
    bs_status status = BS_STATUS_FORMAT;
    if (!root)
        return bs_fail(BS_STATUS_FORMAT, "not JSON: %s, at byte %d of the line", error.text, error.position);
    if (!json_is_object(root)) {
        bs_fail(status, "not a JSON object");
    } else if (!id) {
        bs_fail(status, "custom_id is missing");
    } else if (!json_is_string(id)) {
        bs_fail(status, "custom_id must be a text");
    } else if (json_string_length(id) < 1 || json_string_length(id) > BS_BATCH_MAX_ID_BYTES) {
        bs_fail(status, "custom_id of %zu bytes: must have 1 to %d", json_string_length(id),
                BS_BATCH_MAX_ID_BYTES);
    } else {
        *out = (bs_batch_line){json_string_value(id), root};
        return BS_STATUS_OK;
    }
    json_decref(root);
    return status;
}

void bs_batch_line_close(bs_batch_line *line)
{
    json_decref(line->root);
    line->root = NULL;
}

/* A required text. */
static bs_status get_text(const json_t *root, const char *name, const char **out)
{
    const json_t *value = json_object_get(root, name);
    if (!value) return bs_fail(BS_STATUS_RANGE, "%s is missing", name);
    if (!json_is_string(value)) return bs_fail(BS_STATUS_RANGE, "%s must be a text", name);
    *out = json_string_value(value);
    return BS_STATUS_OK;
}

bs_status bs_batch_line_read(const bs_batch_line *line, const bs_tokenizer *tokenizer,
                             const bs_openai_request *defaults, bs_openai_request *out)
{
    const char *method, *url;
    bs_openai_api api;
    BS_TRY(get_text(line->root, "method", &method));
    BS_TRY(get_text(line->root, "url", &url));
    if (strcmp(method, "POST") != 0)
        return bs_fail(BS_STATUS_RANGE, "method \"%.40s\": must be POST", method);
    if (!bs_openai_find_api(url, &api))
        return bs_fail(BS_STATUS_RANGE, "url \"%.80s\": must be /v1/completions or /v1/chat/completions",
                       url);
    return bs_openai_read(api, json_object_get(line->root, "body"), tokenizer, defaults, out);
}

/* ---- out -------------------------------------------------------------------------------------------------- */

/* Takes body and error. */
static char *output_text(int64_t number, const char *custom_id, int status_code, json_t *body, json_t *error)
{
    char id[40], request_id[40];
    snprintf(id, sizeof id, "batch_req_%lld", (long long)number);
    snprintf(request_id, sizeof request_id, "req_%lld", (long long)number);
    json_t *root = json_pack("{s:s, s:s?, s:{s:i, s:s, s:o}, s:o}", "id", id, "custom_id", custom_id,
                             "response", "status_code", status_code, "request_id", request_id, "body", body,
                             "error", error);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text) return NULL;
    size_t bytes = strlen(text);
    char *line = realloc(text, bytes + 2);
    if (!line) {
        free(text);
        return NULL;
    }
    memcpy(line + bytes, "\n", 2);
    return line;
}

char *bs_batch_answer_text(int64_t number, const char *custom_id, bs_openai_api api, const char *model,
                           const bs_request_stats *stats)
{
    return output_text(number, custom_id, 200, bs_openai_answer(api, number, model, stats), json_null());
}

char *bs_batch_error_text(int64_t number, const char *custom_id, const char *code, const char *message)
{
    json_t *error = json_pack("{s:s, s:o, s:I}", "code", code, "message", bs_openai_text(message), "line",
                              (json_int_t)number);
    return output_text(number, custom_id, 400, bs_openai_error(code, message), error);
}
