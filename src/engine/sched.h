/* sched.h: rank 0's scheduler: requests in, step plans out (continuous batching).
 *
 * Requests wait in order; one is admitted when its pages are sure to fit on every shard (bs_cache_fits). A step mixes
 * the running sequences' decode tokens and prefill chunks, cut so that it is predicted to take no longer than
 * `max_step_ms` by a fixed cost table and absolute positions, never by measured time. Single-threaded; the service
 * calls it under its own lock.
 */
#ifndef BS_SCHED_H
#define BS_SCHED_H

#include "src/engine/engine.h"
#include "src/model/tokenizer.h"

typedef struct bs_sched bs_sched;
typedef struct bs_request bs_request;

typedef enum bs_finish { BS_FINISH_NONE, BS_FINISH_STOP, BS_FINISH_LENGTH, BS_FINISH_CANCELLED } bs_finish;
const char *bs_finish_name(bs_finish finish); /* "stop", "length", "cancelled" */

typedef struct bs_request_config {
    const int32_t *prompt; /* copied */
    int64_t n_prompt;      /* ≥ 1 */
    int64_t max_tokens;    /* of the answer, ≥ 0 */
    int64_t fill_tokens;   /* tokens of noise in the cache before the prompt, for benches; usually 0 */
    bs_sampling sampling;
    bool ignore_end;         /* do not stop at the model's end tokens */
    bool show_special;       /* special tokens in the text */
    const char *const *stop; /* stop strings, copied; the answer's text is cut before the first of them */
    int n_stop;
    const int32_t *stop_tokens; /* copied */
    int n_stop_tokens;
    /* 0: the scheduler chooses the sequence shard that the first pages go to. n > 0: shard (n − 1) mod seq, whoever
     * ran before, so that the same request alone gives the same bits in any run. */
    int64_t start_number;
    void *context;
    /* Called on rank 0, in order: newly decoded text (whole UTF-8 characters, nothing that may still turn out to be the
     * beginning of a stop string) with the token that completed it. text may be "" and id −1 at the end. */
    void (*on_text)(void *context, int32_t id, const char *text, size_t bytes);
    /* Prompt tokens computed so far, and their share of the work by the cost table. May be NULL. */
    void (*on_prefill)(void *context, int64_t done, int64_t total, double share);
    void (*on_finish)(void *context, bs_request *request);
} bs_request_config;

typedef struct bs_request_stats {
    bs_finish finish;
    int64_t n_prompt, n_answer;
    const int32_t *prompt, *answer; /* ids; the end token is not among the answer's */
    const char *text;               /* whole answer, stop string cut off */
    size_t text_bytes;
    double queue_ms, prefill_ms, decode_ms; /* decode_ms: from the first answer token to the last */
} bs_request_stats;

/* tokenizer may be NULL (no text, no stop strings). */
bs_status bs_sched_open(bs_engine *engine, const bs_tokenizer *tokenizer, double max_step_ms, bs_sched **out);
void bs_sched_close(bs_sched *sched);
/* RANGE when the request could never fit (prompt + max_tokens above the context), with one line. */
bs_status bs_sched_submit(bs_sched *sched, const bs_request_config *config, bs_request **out);
void bs_sched_cancel(bs_sched *sched, bs_request *request);
const bs_request_stats *bs_request_get_stats(const bs_request *request);
void bs_request_free(bs_request *request); /* finished ones only */
bool bs_sched_idle(const bs_sched *sched); /* nothing waits, nothing runs */
/* Driver for bs_engine_run; it stops when idle, or when bs_sched_stop was called (signal-safe). */
bs_driver bs_sched_driver(bs_sched *sched);
void bs_sched_stop(bs_sched *sched);

#endif
