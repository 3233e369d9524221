/* generate.h: answers from start to end, shared by cmd_generate.c (what happens), generate_batch.c (what is different
 * for a file of requests) and generate_report.c (what is said about it). Private to those three. */
#ifndef BS_CLI_GENERATE_H
#define BS_CLI_GENERATE_H

#include "src/base/progress.h"
#include "src/cli/common.h"
#include "src/engine/sched.h"

typedef struct batch batch;

typedef struct generate {
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
    bs_status output; /* of writing the answer */
    int signal;       /* that ended it, or 0 */
    uint64_t cache_bytes, cache_bytes_f16;

    bool is_batch; /* --batch, on every rank */
    batch *batch;  /* rank 0 */
} generate;

/* Asks the scheduler to stop at SIGINT and SIGTERM; NULL: no longer. */
void bs_generate_catch_signals(bs_sched *sched);

/* ---- --batch; rank 0 but for the first -------------------------------------------------------------------- */

bs_status bs_generate_batch_check(const bs_options *options);
/* Reads the requests and, unless for a dry run, what the output has of them already. Sets the sizes of g->config; a
 * context of 0 says that nothing is left to decode. */
bs_status bs_generate_batch_read(generate *g);
/* Opens the scheduler and submits the first requests; each that finishes submits the next. */
bs_status bs_generate_batch_begin(generate *g);
/* Closes the scheduler, says what was done. */
bs_status bs_generate_batch_finish(generate *g);
void bs_generate_batch_free(generate *g);

/* Both are for rank 0. Standard error: what it took. */
void bs_generate_summarize(const generate *g);
/* Standard output: the line of --json. */
bs_status bs_generate_print_json(const generate *g);
/* --dry-run: gathers every rank's memory, rank 0 prints. Collective. */
bs_status bs_generate_dry_run(generate *g);

#endif
