/* openai_answer.c: bodies of answers and errors. */
#include "src/model/utf8.h"
#include "src/serve/openai.h"

#include <stdio.h>
#include <string.h>

json_t *bs_openai_text(const char *text)
{
    return json_stringn(text, bs_utf8_valid_bytes(text, strlen(text)));
}

json_t *bs_openai_error(const char *code, const char *message)
{
    return json_pack("{s:{s:o, s:s, s:n, s:s}}", "error", "message", bs_openai_text(message), "type",
                     "invalid_request_error", "param", "code", code);
}

json_t *bs_openai_answer(bs_openai_api api, int64_t number, const char *model, const bs_request_stats *stats)
{
    bool chat = api == BS_OPENAI_CHAT;
    char id[40];
    json_t *text = json_stringn(stats->text, stats->text_bytes);
    snprintf(id, sizeof id, "%s-%lld", chat ? "chatcmpl" : "cmpl", (long long)number);
    json_t *choice = chat ? json_pack("{s:i, s:{s:s, s:o}, s:n, s:s}", "index", 0, "message", "role",
                                      "assistant", "content", text, "logprobs", "finish_reason",
                                      bs_finish_name(stats->finish))
                          : json_pack("{s:i, s:o, s:n, s:s}", "index", 0, "text", text, "logprobs",
                                      "finish_reason", bs_finish_name(stats->finish));
    return json_pack("{s:s, s:s, s:i, s:s, s:[o], s:{s:I, s:I, s:I}}", "id", id, "object",
                     chat ? "chat.completion" : "text_completion", "created", 0, "model", model, "choices",
                     choice, "usage", "prompt_tokens", (json_int_t)stats->n_prompt, "completion_tokens",
                     (json_int_t)stats->n_answer, "total_tokens",
                     (json_int_t)(stats->n_prompt + stats->n_answer));
}
