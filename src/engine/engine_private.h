/* engine_private.h: the engine's insides, shared by the files of src/engine and by nobody else.
 *
 * An engine owns five device regions (activations, workspace, logits, seen bitmaps, step inputs) and a little
 * host memory. Where everything lies is computed by bs_engine_lay_out alone, from numbers that are known
 * before anything is taken: so --dry-run and opening cannot disagree.
 */
#ifndef BS_ENGINE_PRIVATE_H
#define BS_ENGINE_PRIVATE_H

#include "src/engine/engine.h"

/* Rows of raw logits that ALL_LOGITS computes and gathers at a time. */
enum { BS_ALL_LOGITS_ROWS = 64 };

/* Offsets into the regions, in bytes. T = max_step_tokens, B = max_seqs, N ranks, V the largest vocabulary
 * shard. */
typedef struct bs_engine_layout {
    bs_shard shard;
    bs_cache_config cache;
    int max_tokens, max_seqs;                             /* T, B */
    int n_ranks, n_hidden, n_heads, n_kv_heads, head_dim; /* heads: this rank's */
    int64_t max_vocab;                                    /* V */
    int logit_rows;                                       /* rows of one batch of ALL_LOGITS, 0 without */
    int logit_parts;                                      /* shards of them that this rank has memory for */
    bs_type act;

    struct {
        size_t x, sum;           /* [T, hidden] f32: residual stream, a layer's partial sums */
        size_t normed;           /* [T, hidden] act */
        size_t q, k, v;          /* [T, heads · D] act */
        size_t o, lse;           /* [T, heads, D], [T, heads] f32 */
        size_t attended;         /* [T, heads · D] act: the merged O turned back; o itself when act is F32 */
        size_t gate, up;         /* [T, ffn] act */
        size_t cos_sin;          /* [T, n_rot] f32 */
        size_t x_other, counter; /* of bs_op_dense_chain: [hidden] f32, u64 */
        size_t bytes;
    } act_at;
    struct {
        size_t gemm, attend, merge; /* sizes; the region at 0 serves gemm and merge, an op at a time */
        size_t shared, bytes;       /* size of that region, behind which attend's own begins; both */
    } work;
    struct {
        size_t normed;         /* [rows, hidden] act */
        size_t raw;            /* [B, V], or [N, logit_rows, V] (shard_logits: 1 for N), f32 */
        size_t candidates;     /* [N, B, V] */
        size_t lse;            /* [N, B] f32 */
        size_t scratch;        /* [N · V] candidates */
        size_t token, logprob; /* [B], one behind the other: one copy to the host */
        size_t last;           /* [max_seqs] i32: the id each sequence drew last */
        size_t bytes;
    } logits_at;
    size_t seen_bytes; /* one sequence's bitmap of ids */
    struct {
        size_t tokens;         /* [T] i32 */
        size_t rows;           /* [T + B] i32: rows of ALL_LOGITS, then rows to sample from */
        size_t row_slot;       /* [B] i32: sequence slot that row i draws for, −1: none */
        size_t sampling;       /* [B] */
        size_t seen;           /* [B] pointers to bitmaps */
        size_t position, draw; /* [B] i32 */
        size_t bytes;
    } input_at;              /* the same in host staging and on the device: one copy a step */
    size_t host_bytes;       /* plans, staging, results */
    size_t all_logits_bytes; /* host: [T, vocab] f32 on rank 0, or [T, own vocab] on every rank */
} bs_engine_layout;

/* Bytes of what a step draws, from logits_at.token to behind logprob. */
static inline size_t bs_engine_drawn_bytes(const bs_engine_layout *layout)
{
    return layout->logits_at.last - layout->logits_at.token;
}

/* Pure. BS_STATUS_RANGE names the field of the configuration. */
bs_status bs_engine_lay_out(const bs_model *model, const bs_device *device, const bs_grid *grid,
                            const bs_engine_config *config, bs_engine_layout *out);

/* Which ids each rank's logits are, [N] (or NULL); *most gets the largest n: gathers need one size. Pure. */
bs_status bs_engine_vocab_shards(const bs_model *model, const bs_grid *grid, bs_merge_method merge,
                                 bs_range *ranges, int64_t *most);

/* What a sequence slot carries from step to step, on the host. */
typedef struct bs_engine_seq {
    bs_sampling sampling;
    bool has_drawn; /* its last id is on the device */
    bs_snapshot_dir *dir;
} bs_engine_seq;

/* Rows of a step's tables that one call of attention takes. */
typedef struct bs_engine_span {
    int first_seq, n_seqs;
    int n_tokens, n_pages; /* of them; in a step that a graph stands for the most there may be */
} bs_engine_span;

/* A step between its submission and its collection. Two may be: on a GPU the next is queued while one runs. */
typedef struct bs_engine_flight {
    bool open;
    int64_t step;
    int n_seqs;             /* of the plan */
    int n_all_rows, n_rows; /* rows of ALL_LOGITS, rows to sample from */
    int32_t *row_seq;       /* [B] entry of the plan that row i is sampled for */
    char *staging;          /* the step inputs, host memory of the device */
    char *drawn;            /* [B] i32 ids, then [B] f32 log-probabilities, as in logits_at, likewise */
    bs_timer *timer;
} bs_engine_flight;

/* A decode step recorded, for any step of as many rows (graph.c): n_calls + 1 graphs, and between them the collectives
 * that the transport cannot have recorded. */
typedef struct bs_engine_graph {
    int n_rows;
    bool needs_all, is_recorded;
    int n_runs; /* not recorded: the first warms up */
    int n_calls, n_parts, max_calls;
    bs_collective *calls;
    bs_graph **parts; /* [max_calls + 1] */
} bs_engine_graph;
enum { BS_ENGINE_MAX_GRAPHS = 64 };

struct bs_engine {
    const bs_model *model;
    const bs_model_desc *desc;
    bs_device *device;
    bs_comm *comm;
    const bs_grid *grid;
    bs_engine_config config;
    bs_plan_limits limits;
    bs_engine_layout layout;
    bs_stream *stream;
    bs_weights *weights;
    bs_cache *cache;
    bs_buffer *activations, *workspace, *logits, *seen, *inputs;

    bs_range *vocab;              /* [N] every rank's part of the vocabulary */
    bs_engine_seq *seqs;          /* [B] */
    bs_cache_step_seq *step_seqs; /* [B] */
    bs_engine_flight flights[2];  /* take turns */
    bs_engine_flight *flight;     /* the step submitted last */
    int32_t *token;               /* [B] by entry of the plan: what bs_step_result shows */
    float *logprob;               /* [B] */
    float *all_logits;            /* rank 0: [T, vocab]; with shard_logits [T, own vocab] */
    bs_plan *plans[2];            /* this step's and the next */
    int64_t next_step;
    bool is_async; /* what is submitted only queues: the next may follow before it is collected */
    bs_engine_graph graphs[BS_ENGINE_MAX_GRAPHS];
    int n_graphs;
    bs_engine_mark *mark; /* NULL: none */
    void *mark_context;
    bs_snapshots *snapshots; /* NULL: none */
    bs_engine_snapshot_ended *snapshot_ended;
    void *snapshot_context;
    double boundary_s;

    /* The step that is submitted. */
    int64_t step;
    int n_tokens;           /* of the step; in a padded step its rows */
    int n_all_rows, n_rows; /* rows of ALL_LOGITS, rows to sample from */
    bool any_penalty, needs_all;
    bs_engine_span *spans; /* [B] calls of attention a layer, in the order of the rows */
    int n_spans;
};

/* A step enters a phase: for the watchdog, and for whoever takes it apart. */
static inline void bs_engine_enter(bs_engine *e, int layer, bs_phase phase)
{
    bs_comm_progress(e->comm, e->step, layer, phase);
    if (e->mark) e->mark(e->mark_context, e->stream, phase);
}

/* Most tokens of a chunk: beside everybody else's decode token. */
static inline int bs_engine_max_cut(const bs_engine *e)
{
    return e->config.max_step_tokens - e->config.max_seqs + 1;
}

/* Addresses inside the regions. */
static inline void *bs_engine_act(const bs_engine *e, size_t offset)
{
    return bs_buffer_at(e->activations, offset);
}

static inline void *bs_engine_input(const bs_engine *e, size_t offset)
{
    return bs_buffer_at(e->inputs, offset);
}

/* y = W x (+ bias) for n_tokens rows, with the engine's workspace. */
bs_status bs_engine_project(bs_engine *engine, const bs_weight *w, const float *bias, const void *x,
                            int64_t ldx, int n_tokens, bs_type out_type, void *y, int64_t ldy);
/* step.c: the ops of a step from the embedding to the drawn tokens. Collective. */
bs_status bs_engine_run_ops(bs_engine *engine);
/* forward.c: quantizes the pages that are due. */
bs_status bs_engine_prepare(bs_engine *engine);
/* boundary.c: before a plan is carried out: snapshots that are under way move on, one that it asks for begins. */
bs_status bs_engine_boundary(bs_engine *engine, const bs_plan *plan);
void bs_engine_note_boundary(bs_engine *engine, double spent_s);
/* chain.c: whether this step's dense work runs as chains; whether the one before `layer` gives that layer's q, k and v;
 * the one behind a layer's attention. */
bool bs_engine_has_chain(const bs_engine *engine);
bool bs_engine_chain_gives_qkv(const bs_engine *engine, int layer);
bs_status bs_engine_run_chain(bs_engine *engine, int layer);
/* forward.c: embeds the step's tokens and runs all layers; act_at.x is then complete and act_at.normed its
 * final norm, when logits of any row are wanted. Collective. */
bs_status bs_engine_forward(bs_engine *engine);
/* logits.c: everything behind the final norm. Collective; what is drawn stays on the device. */
bs_status bs_engine_gather_logits(bs_engine *engine);
bs_status bs_engine_sample(bs_engine *engine);
/* graph.c: how many rows a step of n sequences that each take one token and draw one is run with where steps are graphs;
 * and such a step, as graphs once its shape has run before. Collective. */
int bs_engine_padded_rows(const bs_engine *engine, int n);
bs_status bs_engine_run_decode(bs_engine *engine);
void bs_engine_free_graphs(bs_engine *engine);

#endif
