/* generate.h: answers from start to end, shared by the files of `generate` and private to them:
 *
 *   cmd_generate.c       setting up, and what happens in which order
 *   generate_orders.c    every rank: what the ranks do together between runs of steps, as rank 0 says
 *   generate_answer.c    rank 0: one prompt
 *   generate_batch.c     rank 0: a file of requests;  generate_lines.c  its lines' snapshots
 *   generate_snapshot.c  rank 0: when the job stops for good, when snapshots are taken
 *   generate_resume.c    rank 0: what can be made of the snapshot that is there
 *   generate_report.c    what is said about it
 */
#ifndef BS_CLI_GENERATE_H
#define BS_CLI_GENERATE_H

#include "src/base/progress.h"
#include "src/cli/common.h"
#include "src/cli/output.h"
#include "src/cli/when.h"
#include "src/engine/sched.h"

typedef struct batch batch;
typedef struct generate generate;

/* ---- orders: what all ranks do together, between steps ---------------------------------------------------------- */

enum { ORDER_PATH_BYTES = 1024 };
typedef enum order_kind {
    ORDER_RUN,     /* steps, until rank 0's driver stops */
    ORDER_OPEN,    /* the snapshot directory `path` becomes the slot's */
    ORDER_RESTORE, /* a sequence from the slot's directory into the slot */
    ORDER_TAKE,    /* a snapshot of the slot into its directory, and wait for it */
    ORDER_END
} order_kind;

typedef struct order {
    int64_t kind, slot;
    int64_t exact, n_common, n_tokens, start_s; /* RESTORE, as bs_snapshot_restore_args */
    bs_sampling sampling;
    char path[ORDER_PATH_BYTES];
} order;

/* Carries out what rank 0's `next` says until that is END. Collective. */
bs_status bs_generate_follow_orders(generate *g);

/* ---- snapshots -------------------------------------------------------------------------------------------------- */

/* A request that snapshots are taken of. Rank 0. */
typedef struct kept {
    bs_request *request;
    char path[ORDER_PATH_BYTES];   /* its directory */
    char id[BS_SNAPSHOT_ID_BYTES]; /* "" for the one prompt */
    bool has_dir;                  /* opened on all ranks for its slot */
    bool wanted;                   /* as soon as it can be */
    bool last_taken;               /* the job stops: its last one is done */
    int64_t last_length;           /* of the snapshot taken last */
    double last_s;                 /* when that began */
    struct kept *next;
} kept;

typedef enum why { WHY_NOT, WHY_SIGNAL, WHY_END_TIME } why;

/* Milliseconds between the results of decode steps, with a snapshot under way and without. */
typedef struct step_times {
    float *ms[2];
    int64_t n[2];
    double last_s; /* of the result before, 0: it was of another kind */
} step_times;
enum { STEP_TIMES = 1 << 16 };

typedef struct keeper {
    /* Every rank. */
    bool on;
    bs_snapshots *machine;
    bs_snapshot_dir **dirs;          /* [max_seqs] by slot */
    char (*paths)[ORDER_PATH_BYTES]; /* theirs */
    bs_snapshot_result taken;        /* of the last ORDER_TAKE */
    int64_t first_pos;               /* of the last ORDER_RESTORE */
    /* Rank 0. */
    const char *resume; /* auto, never, require */
    bs_when when;
    kept *first;   /* requests that run or wait */
    kept *to_open; /* wants a directory before anything else */
    const int32_t *
        seen_ids; /* of an ORDER_RESTORE: all ids by position, of which the repetition penalty counts those */
    int64_t seen_first;  /* from here on */
    double last_total_s; /* of the snapshot that took longest so far */
    int64_t n_taken, n_failed, n_reused;
    uint64_t bytes;
    step_times times;
} keeper;

typedef enum resume_kind {
    RESUME_FRESH,    /* nothing can be kept */
    RESUME_EXACT,    /* the answer goes on */
    RESUME_PREFIX,   /* n_common tokens of the prompt's cache are kept, the answer begins anew */
    RESUME_COMPLETE, /* the answer needs no more tokens, but may have to be written */
    RESUME_DONE      /* and that is done */
} resume_kind;

typedef struct resume {
    resume_kind kind;
    int64_t n_common;
    const int32_t *answer; /* ids of an answer that goes on; in the snapshot's */
    int64_t n_answer;
    int64_t output_bytes; /* as the snapshot has it */
} resume;

/* ---- generate ----------------------------------------------------------------------------------------------------- */

struct generate {
    const bs_options *options;
    bs_comm *comm;
    bool leader; /* rank 0: has the tokenizer, the prompt and the scheduler */
    bs_engine_config config;
    bs_grid grid;

    bs_model *model;
    bs_device *device;
    bs_engine *engine;
    bs_tokenizer *tokenizer;
    bs_tokens prompt, stop_tokens;
    bs_sched *sched;
    bs_request *request;

    bool json, ids_shown; /* ids_shown: an answer without a tokenizer has begun */
    bs_progress load, prefill;
    uint64_t n_prefilled;
    size_t left_bytes; /* of the device, before the engine was opened */
    double load_ms;
    bs_output *out;
    bs_status output; /* of writing the answer */
    bool muted;       /* its text is not to be shown any more: another run goes on, or an error is told */
    why why;          /* it stops for good */
    uint64_t cache_bytes, cache_bytes_f16;

    keeper keeper;
    kept kept; /* of the one prompt */
    int stage; /* of the one prompt's orders */
    resume resume;
    bs_status (*next)(generate *g, order *out); /* rank 0's orders */

    bool is_batch; /* --batch, on every rank */
    batch *batch;  /* rank 0 */
};

/* ---- one prompt; rank 0 (generate_answer.c) --------------------------------------------------------------------- */

bs_status bs_generate_answer_begin(generate *g);
bs_status bs_generate_answer_next(generate *g, order *out);
bs_status bs_generate_answer_finish(generate *g);

/* ---- --batch; rank 0 but for the first -------------------------------------------------------------------------- */

bs_status bs_generate_batch_check(const bs_options *options);
/* Reads the requests and, unless for a dry run, what the output has of them already. Sets the sizes of g->config; a
 * context of 0 says that nothing is left to decode. */
bs_status bs_generate_batch_read(generate *g);
/* Opens the scheduler and submits the first requests; each that finishes submits the next. */
bs_status bs_generate_batch_begin(generate *g);
bs_status bs_generate_batch_next(generate *g, order *out);
/* A request that waits for a restore has room now. */
bool bs_generate_batch_may_restore(generate *g);
/* Closes the scheduler, says what was done. */
bs_status bs_generate_batch_finish(generate *g);
void bs_generate_batch_free(generate *g);

/* ---- snapshots: when (generate_snapshot.c) ------------------------------------------------------------------------ */

bs_status bs_generate_snapshot_check(const bs_options *options);
/* --snapshot-every, --end-time, --resume. Rank 0. */
bs_status bs_generate_snapshot_read(generate *g);
/* Opens the machinery for the engine. Collective, agreed. */
bs_status bs_generate_snapshot_open(generate *g);
void bs_generate_snapshot_close(generate *g);
/* One has ended: counts it. */
void bs_generate_snapshot_ended(void *context, const bs_snapshot_result *result);
/* What a snapshot of the request says besides what the scheduler knows: its id, and how much of the output is there. */
void bs_generate_add_state(const generate *g, const kept *one, bs_snapshot_state *state);
/* The scheduler's driver, with signals and what snapshots add. Rank 0. */
bs_driver bs_generate_driver(generate *g);
void bs_generate_keep(generate *g, kept *one);
void bs_generate_forget(generate *g, kept *one);
/* Why the job stops for good: "stopped by SIGTERM"; in `text` where it is not constant. */
enum { WHY_BYTES = 32 };
const char *bs_generate_why(const generate *g, char text[WHY_BYTES]);
/* Whether a directory has a manifest. */
bool bs_generate_has_snapshot(const char *path);

/* ---- resuming (generate_resume.c); rank 0 -------------------------------------------------------------------------- */

/* What can be made of the directory's snapshot for a request of `ids` (n_prompt of them, n_fill of noise before). With
 * `require` only an answer that goes on, or is complete, will do. MISMATCH or RANGE: refused, one line. */
bs_status bs_generate_decide(const bs_snapshot_dir *dir, const char *path, const int32_t *ids,
                             int64_t n_prompt, int64_t n_fill, int64_t max_tokens,
                             const bs_sampling *sampling, bool require, resume *out);
/* What submitting an answer that was complete, without its cache, has given: a line for MISMATCH, when it does not end. */
bs_status bs_generate_check_complete(const char *path, bs_status submitted);

/* ---- reports; rank 0 ----------------------------------------------------------------------------------------------- */

/* Standard error: what it took. */
void bs_generate_summarize(const generate *g);
/* The line of --json, to the output. */
bs_status bs_generate_print_json(const generate *g);
/* --dry-run: gathers every rank's memory, rank 0 prints. Collective. */
bs_status bs_generate_dry_run(generate *g);

#endif
