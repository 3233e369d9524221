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
    /* An answer that an earlier run has begun: its first ids (copied), which are not drawn again and whose text on_text is
     * not given. It may be complete with them: then submitting it finishes it; one that goes on without `restored` is a
     * MISMATCH. */
    const int32_t *answer;
    int64_t n_answer;
    /* With `restored` the request goes on with the sequence that a restore has put into `slot` (bs_sched_reserve); the
     * first n_cached tokens of fill, prompt and answer need not be computed. With an answer they are all but its last. */
    bool restored;
    int slot;
    int64_t n_cached;
    void *context;
    /* Called on rank 0, in order: newly decoded text (whole UTF-8 characters, nothing that may still turn out to be the
     * beginning of a stop string) with the token that completed it. text may be "" and id −1 at the end. */
    void (*on_text)(void *context, int32_t id, const char *text, size_t bytes);
    /* Prompt tokens computed so far, and their share of the work by the cost table. May be NULL. */
    void (*on_prefill)(void *context, int64_t done, int64_t total, double share);
    /* A snapshot of the request is about to be committed: the callee adds id and output_bytes to what is known of its
     * state. Everything that on_text was given so far is of tokens that the snapshot has. May be NULL. */
    void (*on_snapshot)(void *context, bs_request *request, bs_snapshot_state *state);
    void (*on_finish)(void *context, bs_request *request);
} bs_request_config;

typedef struct bs_request_stats {
    bs_finish finish;
    int64_t n_prompt, n_answer;
    int64_t n_earlier;              /* of the answer, drawn by an earlier run */
    const int32_t *prompt, *answer; /* ids; the end token is not among the answer's */
    const char *text;               /* whole answer, stop string cut off */
    size_t text_bytes;
    double queue_ms, prefill_ms,
        decode_ms; /* decode_ms: of this run, from the first answer token, or where it went on, to the last */
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
/* The driver's two functions, for a driver that does something besides. */
bs_status bs_sched_plan(bs_sched *sched, bs_plan *next);
bs_status bs_sched_result(bs_sched *sched, const bs_plan *plan, const bs_step_result *result);
/* Ends bs_engine_run after the steps that are planned, with everything as it stands; another run goes on with it (its
 * bs_sched_driver ends the pause). For what all ranks do together between steps. */
void bs_sched_pause(bs_sched *sched);

/* ---- snapshots ---------------------------------------------------------------------------------------------
 *
 * A request is captured at a step's boundary, by a plan, and committed when the ids of all that was captured are known,
 * which is a step later. One at a time. A slot that a snapshot still reads is freed when it has read it. */

/* Begins one at the next boundary. The request runs, its slot has a directory on all ranks (bs_engine_set_snapshot_dir),
 * and bs_sched_may_snapshot said yes. */
void bs_sched_snapshot(bs_sched *sched, bs_request *request);
/* No snapshot is under way. */
bool bs_sched_may_snapshot(const bs_sched *sched);
/* A request that is with the scheduler has a sequence with tokens in the cache. */
bool bs_request_runs(const bs_request *request);
/* Its slot, also behind its end until the next plan; −1: it waits. */
int bs_request_slot(const bs_request *request);
/* Tokens that steps have been planned for, fill and prompt included: in the cache once these are done. */
int64_t bs_request_length(const bs_request *request);
/* What a snapshot of it says when nothing is in flight: the number of ids, and in *state all but id and output_bytes. The
 * ids are valid until the request takes a token. */
int64_t bs_request_snapshot(const bs_request *request, const int32_t **tokens, bs_snapshot_state *state);
/* Its text so far, and how much of it may be shown: what on_text was given, or would have been. */
const char *bs_request_text(const bs_request *request);
size_t bs_request_shown_bytes(const bs_request *request);

/* Takes a slot for a sequence that a restore is going to put there, for n_tokens to reserve, beginning on *start_s. false:
 * there is no room for it now. Between runs. */
bool bs_sched_reserve(bs_sched *sched, int64_t n_tokens, int64_t start_number, int *slot, int *start_s);
/* Gives it back: there was nothing to restore. */
void bs_sched_release(bs_sched *sched, int slot);
bool bs_sched_has_room(bs_sched *sched, int64_t n_tokens, int64_t start_number);

#endif
