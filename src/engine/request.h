/* request.h: one request: its prompt, its answer so far, the text that may already be shown. Private to
 * src/engine.
 *
 * The scheduler moves a request through its life; this part knows when an answer ends and which text is safe
 * to give out while a stop string may still be forming.
 */
#ifndef BS_ENGINE_REQUEST_H
#define BS_ENGINE_REQUEST_H

#include "src/engine/sched.h"

struct bs_request {
    bs_request_config config; /* prompt, stop and stop_tokens are this request's own copies */
    bs_request_stats stats;
    const bs_tokenizer *tokenizer;
    bs_request *next; /* in the scheduler's waiting or running list */
    bool finished, cancelled;

    int seq;             /* slot, −1 while it waits */
    int64_t n_planned;   /* tokens that plans have fed, prompt and answer */
    int64_t n_draws;     /* tokens that plans have asked for */
    int64_t n_prefilled; /* prompt tokens whose step is done */
    double submit_s, start_s, prefilled_s, last_s;

    int32_t *
        ids; /* [fill_tokens + n_prompt + max_tokens + 1]: 0 for noise, prompt, answer, the token that ended it */
    int32_t *prompt, *answer; /* in ids */
    int32_t *stop_tokens;
    bool has_end; /* the answer ended at a token that is not of it; it stands behind the answer */
    bool silent;  /* the text of an answer that an earlier run has begun is not given out again */
    char **stop;
    size_t longest_stop; /* bytes */
    bs_detokenizer detokenizer;
    char *text; /* decoded so far */
    size_t text_bytes;
    size_t shown_bytes; /* of text, already given to on_text */
    bool cut;           /* at a stop string: nothing follows */
};

/* Copies what the config points at. USAGE for stop strings without a tokenizer. */
bs_status bs_request_create(const bs_request_config *config, const bs_tokenizer *tokenizer, bs_request **out);
/* Takes a drawn token: adds it to the answer, or ends it. *finish is NONE while the answer goes on. Calls
 * on_text. */
bs_status bs_request_accept(bs_request *request, int32_t token, bs_finish *finish);
/* Takes the beginning of an answer, as an earlier run has drawn it; no on_text. */
bs_status bs_request_replay(bs_request *request, const int32_t *answer, int64_t n, bs_finish *finish);
/* Fills the stats, gives out the text still held and calls on_finish; the request may be gone afterwards. */
bs_status bs_request_finish(bs_request *request, bs_finish finish);

#endif
