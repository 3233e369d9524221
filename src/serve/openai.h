/* openai.h: OpenAI's completions and chat API, for one answer: a request's body in, the answer's body out.
 *
 * Fields and their ranges: docs/cli.md, "Batches". What changes an answer and is not supported is refused by name, as is
 * a field that the API does not have; what only concerns OpenAI's own service is ignored. Numbers are checked here, so
 * that the scheduler gets none out of range.
 *
 * Source: the OpenAI API reference, "Completions" and "Chat". `top_k`, `min_p`, `repeat_penalty` and `ignore_eos` are
 * other servers' additions.
 */
#ifndef BS_OPENAI_H
#define BS_OPENAI_H

#include "src/engine/sched.h"

#include <jansson.h>

typedef enum bs_openai_api { BS_OPENAI_COMPLETIONS, BS_OPENAI_CHAT } bs_openai_api;
/* "/v1/completions" and "/v1/chat/completions"; false: another text. */
bool bs_openai_find_api(const char *url, bs_openai_api *out);

enum { BS_OPENAI_MAX_STOPS = 16 };

typedef struct bs_openai_request {
    bs_openai_api api;
    bs_tokens prompt; /* template and begin token included */
    int64_t max_tokens;
    bs_sampling sampling;
    bool ignore_end, parse_special;
    const char
        *stop[BS_OPENAI_MAX_STOPS]; /* of the defaults or of the body, which must outlive the request */
    int n_stop;
} bs_openai_request;

/* What a body leaves out stays as `defaults` has it (its api and prompt are not looked at). RANGE or FORMAT names field
 * and value. out->prompt is the caller's to free. */
bs_status bs_openai_read(bs_openai_api api, const json_t *body, const bs_tokenizer *tokenizer,
                         const bs_openai_request *defaults, bs_openai_request *out);

/* The body of the answer; `number` makes its id. NULL: no memory. The time of creation is left 0, so that the same
 * request gives the same bytes. */
json_t *bs_openai_answer(bs_openai_api api, int64_t number, const char *model, const bs_request_stats *stats);
/* {"error": {"message", "type", "param", "code"}}; message need not be UTF-8 to its end. NULL: no memory. */
json_t *bs_openai_error(const char *code, const char *message);
/* The beginning of a text that is UTF-8, as a JSON string. */
json_t *bs_openai_text(const char *text);

#endif
