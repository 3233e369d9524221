/* engine.h: the forward pass of one rank, one step plan at a time.
 *
 * An engine joins a model's weights, a cache and a communicator. A step is the same ops in the same order on every
 * rank (DESIGN §3); everything it needs is taken in bs_engine_open and nothing is allocated after. The file engine.c is
 * plain C over kernels.h and comm.h: the same lines for CPUs and GPUs.
 */
#ifndef BS_ENGINE_H
#define BS_ENGINE_H

#include "comm/comm.h"
#include "comm/merge.h"
#include "src/cache/cache.h"
#include "src/engine/plan.h"
#include "src/model/model.h"
#include "src/snapshot/snapshot.h"

typedef struct bs_engine bs_engine;

typedef struct bs_engine_config {
    bs_kv_format kv;
    bs_merge_method merge;
    bs_type act; /* of activations and matrices on a GPU: F16 or BF16; F32: as the model's weights suggest */
    int stripe_pages;     /* 8 */
    int chunk_tokens;     /* C: 2048 */
    int max_seqs;         /* sequences at once */
    int max_prefill_seqs; /* of them in prefill */
    int max_step_tokens;  /* ΣT_max */
    int64_t max_context, total_tokens;
    /* Another engine of the same model, grid, merge and act, whose weights this one uses and which must outlive it; NULL:
     * places its own. */
    const bs_engine *weights_of;
    bool all_logits;   /* room for BS_PLAN_SEQ_ALL_LOGITS */
    bool snapshots;    /* bs_snapshots_open will be called for this engine: its memory counts, too */
    bool shard_logits; /* of these each rank keeps those of its own ids, and none are sent to rank 0 */
} bs_engine_config;

/* Memory of one rank by pool, what --dry-run prints; equals what opening takes, snapshots apart. */
typedef struct bs_engine_memory {
    uint64_t weight_bytes; /* mapped from the file, or placed in memory of their own */
    bs_cache_memory cache;
    uint64_t activation_bytes, workspace_bytes, logits_bytes, plan_bytes;
    uint64_t snapshot_bytes; /* taken by bs_snapshots_open */
    /* Of all this, what is taken from the device; the rest is the host's or a mapped file's. */
    uint64_t device_bytes;
} bs_engine_memory;
/* Local, pure. BS_STATUS_RANGE names the option's field. */
bs_status bs_engine_plan_memory(const bs_model *model, const bs_device *device, const bs_grid *grid,
                                const bs_engine_config *config, bs_engine_memory *out);

/* Whether that is no more than the device has left (bs_device_memory_left). Otherwise BS_STATUS_NOMEM and one line:
 * what is needed and left, and what would fit, as a shorter context or more ranks. Local. */
bs_status bs_engine_check_memory(const bs_model *model, const bs_device *device, const bs_grid *grid,
                                 const bs_engine_config *config);

/* Places the weights and takes all memory, which is checked first (bs_engine_check_memory). Collective over all ranks
 * (they agree on success). The model, device and comm (with its grid set) must outlive the engine. `progress` as in
 * bs_weights_place. */
bs_status bs_engine_open(const bs_model *model, bs_device *device, bs_comm *comm,
                         const bs_engine_config *config,
                         void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                         bs_engine **out);
void bs_engine_close(bs_engine *engine);
const bs_plan_limits *bs_engine_limits(const bs_engine *engine);
const bs_cache *bs_engine_cache(const bs_engine *engine);
const bs_engine_config *bs_engine_get_config(const bs_engine *engine);
const bs_model *bs_engine_model(const bs_engine *engine);
bs_comm *bs_engine_comm(const bs_engine *engine);
/* The ids whose logits this rank computes; may be none. */
bs_range bs_engine_vocab(const bs_engine *engine);

/* Bytes of matrices that this rank reads in a step of any length: all of its own but the embedding table. */
uint64_t bs_engine_step_weight_bytes(const bs_engine *engine);

/* How many tokens of a prompt the step from this position on takes, other sequences left out: cut at absolute positions so
 * that it is predicted to take no longer than max_step_ms (bs_sched_open), and never across a chunk. */
int bs_engine_prompt_cut(const bs_engine *engine, int64_t position, double max_step_ms);

/* How much of the time predicted for a prompt of n_tokens from this position on its first n_done tokens take, 0 to 1. */
double bs_engine_prompt_share(const bs_engine *engine, int64_t position, int64_t n_done, int64_t n_tokens);

/* For benches that take a step apart: `mark` is called when a step enters a phase, after everything before was queued on
 * the stream, and with BS_PHASE_IDLE behind the last one. While it is set steps run op by op, none is replayed from a
 * graph. NULL: none. Every rank the same. */
typedef void bs_engine_mark(void *context, bs_stream *stream, bs_phase phase);
void bs_engine_set_mark(bs_engine *engine, bs_engine_mark *mark, void *context);

/* What a step gave, the same on every rank (but for logits). Valid until the next one is collected. */
typedef struct bs_step_result {
    int n_seqs;           /* as in the plan */
    const int32_t *token; /* [n_seqs] drawn token, −1 where none was asked for */
    const float *logprob; /* [n_seqs] its log-probability */
    /* sequences with ALL_LOGITS in plan order: [tokens, vocab] f32, before penalty, rank 0 only, else NULL; with
     * shard_logits [tokens, bs_engine_vocab's n] on every rank */
    const float *logits;
    int64_t n_logit_rows;
    double step_ms; /* by the device's clock */
} bs_step_result;

/* Begins one plan: on a GPU it is queued, on a CPU it is carried out. A second one may be submitted before the first is
 * collected, if neither has ALL_LOGITS. Collective. An error here or in collecting ends the job (all ranks may be out of
 * step). */
bs_status bs_engine_submit(bs_engine *engine, const bs_plan *plan);
/* Waits for the oldest plan that was submitted. */
bs_status bs_engine_collect(bs_engine *engine, bs_step_result *out);
/* Both: carries out one plan. */
bs_status bs_engine_step(bs_engine *engine, const bs_plan *plan, bs_step_result *out);

/* ---- snapshots (src/snapshot/snapshot.h) -------------------------------------------------------------------- */

/* From now on every step's boundary polls them, and a plan may ask for a capture (BS_PLAN_SNAPSHOT). Every rank, between
 * steps. `ended` (may be NULL) hears of each that ended in a boundary, on this rank. They must outlive the steps. */
typedef void bs_engine_snapshot_ended(void *context, const bs_snapshot_result *result);
void bs_engine_use_snapshots(bs_engine *engine, bs_snapshots *snapshots, bs_engine_snapshot_ended *ended,
                             void *context);
/* The directory that slot `seq` is captured to; not owned; NULL: none. Every rank, before a plan asks for it. */
void bs_engine_set_snapshot_dir(bs_engine *engine, int seq, bs_snapshot_dir *dir);
bs_snapshot_dir *bs_engine_snapshot_dir(const bs_engine *engine, int seq);
/* A capture now, between steps: bs_snapshot_capture of that directory and slot. Every rank. */
bs_status bs_engine_capture(bs_engine *engine, int seq);
/* The longest that a boundary has spent on them, on this rank's host: how long they make a step wait. */
double bs_engine_boundary_s(const bs_engine *engine);
/* For opening the machinery and for restores. */
bs_stream *bs_engine_stream(const bs_engine *engine);
bs_cache *bs_engine_own_cache(bs_engine *engine);
const bs_cache_config *bs_engine_cache_config(const bs_engine *engine);
/* The sequence that a restore put into slot `seq` is the engine's from now on. seen: bitmap of bs_engine_seen_bytes of the
 * ids that its tokens so far have, for the repetition penalty (bit id % 64 of word id / 64). Every rank, the same
 * arguments; waits for the stream. */
size_t bs_engine_seen_bytes(const bs_engine *engine);
bs_status bs_engine_adopt(bs_engine *engine, int seq, const bs_sampling *sampling, const uint64_t *seen);

/* ---- the loop ----------------------------------------------------------------------------------------------- */

/* Rank 0's decisions. `plan` fills the next plan, with BS_PLAN_STOP to end; it is called before the results of the step
 * still running are known (the pipeline of DESIGN §6), so a decode entry may stand for a token not yet seen
 * (BS_PLAN_LAST_TOKEN) and a stop is found one step late. `result` gets each step's outcome in order. */
typedef struct bs_driver {
    void *context;
    bs_status (*plan)(void *context, bs_plan *next);
    bs_status (*result)(void *context, const bs_plan *plan, const bs_step_result *result);
} bs_driver;

/* Runs plans until one says stop. Rank 0 gives its driver, the others NULL. Collective; all ranks return the same
 * status (an error of rank 0's driver is told to the others as a stop with that status). */
bs_status bs_engine_run(bs_engine *engine, const bs_driver *driver);

#endif
