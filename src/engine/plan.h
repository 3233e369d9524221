/* plan.h: the step plan, the one message by which rank 0 leads.
 *
 * Fixed size for an engine (its limits are fixed at opening), broadcast once a step as bytes; plan n + 1 travels while
 * step n runs. All ranks carry it out in the same order: frees, starts (with forks and reuses), the step's sequences,
 * sampling. A follower checks what it received and fails the job rather than trust a number out of range.
 */
#ifndef BS_PLAN_H
#define BS_PLAN_H

#include "kernels/kernels.h"

enum { BS_PLAN_STOP = 1, BS_PLAN_SNAPSHOT = 2 };
enum {
    BS_PLAN_SEQ_PREFILL = 1,   /* prompt tokens (base by chunk); else decode */
    BS_PLAN_SEQ_SAMPLE = 2,    /* draw a token after the last one of this step */
    BS_PLAN_SEQ_ALL_LOGITS = 4 /* logits of every token go to rank 0 (eval, tests) */
};
/* A token id in the plan that stands for "the one this sequence drew in the step before". */
enum { BS_PLAN_LAST_TOKEN = -1 };

typedef struct bs_plan_start {
    int32_t seq, start_s;
    int64_t n_tokens; /* reservation */
    int32_t from;     /* −1, or the sequence to fork or reuse */
    /* with from ≥ 0: prefix to reuse; −1: fork as it is. A reused prefix is not told to the repetition
     * penalty, so a start with one must have repeat_penalty 1 */
    int32_t reuse_tokens;
    int64_t
        fill_tokens; /* with from −1: begin behind so many tokens of noise, < n_tokens (bs_cache_seq_fill) */
    bs_sampling sampling;
} bs_plan_start;

typedef struct bs_plan_seq {
    int32_t seq, n_tokens, flags, draw;
    int64_t pos0;
    int32_t first_token; /* index into bs_plan_tokens */
    int32_t pad;
} bs_plan_seq;

/* Limits that all ranks agree on; they fix the plan's size. */
typedef struct bs_plan_limits {
    int max_seqs, max_step_tokens;
} bs_plan_limits;

/* Header of the message; the arrays follow: frees i32 [max_seqs], starts [max_seqs], seqs [max_seqs], tokens i32
 * [max_step_tokens]. */
typedef struct bs_plan {
    uint32_t magic, flags;
    int64_t step;
    int32_t max_seqs, max_step_tokens;
    int32_t n_frees, n_starts, n_seqs, n_tokens;
    int32_t snapshot_seq; /* with BS_PLAN_SNAPSHOT: whose snapshot begins before anything else of this plan */
    int32_t pad;
} bs_plan;

size_t bs_plan_bytes(const bs_plan_limits *limits);
/* Empties a plan of bs_plan_bytes bytes. */
void bs_plan_clear(bs_plan *plan, const bs_plan_limits *limits, int64_t step);
/* The arrays, also of a plan that is only read. */
int32_t *bs_plan_frees(const bs_plan *plan);
bs_plan_start *bs_plan_starts(const bs_plan *plan);
bs_plan_seq *bs_plan_seqs(const bs_plan *plan);
int32_t *bs_plan_tokens(const bs_plan *plan);
/* Temperature, top-k, top-p, min-p and the penalty in their ranges (NaN is in none); names the field. */
bs_status bs_sampling_check(const bs_sampling *sampling);
/* Everything in range and consistent; names the field. The sequences' tokens follow each other in plan order. */
bs_status bs_plan_check(const bs_plan *plan, const bs_plan_limits *limits, int n_vocab, int64_t max_context);

#endif
