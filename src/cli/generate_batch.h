/* generate_batch.h: what generate_batch.c (a file of requests) and generate_lines.c (the snapshots of its lines) share. Rank 0.
 */
#ifndef BS_CLI_GENERATE_BATCH_H
#define BS_CLI_GENERATE_BATCH_H

#include "src/cli/generate.h"
#include "src/serve/batch.h"

/* A line that is not answered yet. */
typedef struct item {
    int64_t number; /* of the line, from 1 */
    const char *text;
    size_t bytes;
    int64_t n_tokens;       /* prompt and answer; 0: an error */
    bool has_snapshot;      /* a run before this has begun it */
    const char *error_code; /* and the line's message */
    char *error, *error_id; /* owned; error_id NULL: no usable custom_id */
} item;

typedef struct answer {
    generate *g;
    int64_t number;
    bs_openai_api api;
    char *custom_id;
    kept kept;
} answer;

/* The line whose snapshot is restored before anything else is begun; one NULL: none. */
typedef struct restoring {
    const item *one;
    int slot, start_s; /* slot −1: there was no room yet */
    resume resume;
    bool is_open, is_decided;
} restoring;

struct batch {
    char *text;
    bs_openai_request defaults;
    bs_batch_answers *answers;
    item *items;
    int64_t n_items, capacity, next; /* items[next]: the next one's turn */
    int64_t n_lines, n_there;        /* lines that are not blank; of them answered before */
    int64_t n_answered, n_errors;    /* by this run */
    int64_t n_prompt_tokens, n_answer_tokens;
    int64_t n_resumed, n_left; /* in mid-answer: from runs before, for the next one */
    int n_with_sched;          /* requests that are submitted and not finished */
    bs_progress progress;
    double start_s;

    json_t *dirs;    /* names below --snapshot: null */
    json_t *garbage; /* paths of answered lines' directories, which may still be written */
    restoring restoring;
};

/* A request of the line; go_on: NULL, or what its snapshot gave, restored into `slot` (−1: nothing was). */
bs_status bs_batch_submit(generate *g, const item *one, const resume *go_on, int slot, int64_t n_cached);
/* Submits while there is something to submit, and as many as can run at a time. */
bs_status bs_batch_fill(generate *g);

/* ---- generate_lines.c ------------------------------------------------------------------------------------------- */

/* Which directories are there. */
bs_status bs_lines_scan(generate *g);
/* A line has been answered before: its directory goes. */
void bs_lines_remove(generate *g, const char *custom_id);
/* Whether the line has a snapshot to go on from; with --resume never it is removed. */
bool bs_lines_begun(generate *g, const char *custom_id);
/* id and path of a line's snapshots. */
void bs_lines_set(generate *g, const char *custom_id, kept *out);
/* The line of this is answered; its directory goes when nothing is written to it any more. */
void bs_lines_drop(generate *g, const kept *one);
void bs_lines_sweep(generate *g);

#endif
