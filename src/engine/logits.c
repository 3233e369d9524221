/* logits.c: from the last layer to a token.
 *
 * The output head is cut over all ranks by vocabulary. To draw a token each rank sends its best candidates
 * (256, or all when a row's sampling needs them) and the log-sum-exp of its logits; every rank then holds the
 * same candidates and draws the same token, so none needs to be told. Raw logits (eval, tests) are gathered
 * whole, in batches of rows: the gather's memory stays bounded whatever the step's length. Gathers are in
 * place: a rank computes into its own part. With shard_logits nothing is gathered, and each rank keeps its part.
 */
#include "src/base/checked.h"
#include "src/engine/engine_private.h"

static inline void *region(const bs_engine *e, size_t offset)
{
    return bs_buffer_at(e->logits, offset);
}

/* Normed hidden rows rows[0 … n − 1] of the step. When these are all tokens, the final norm has made them
 * already. */
static bs_status select_rows(bs_engine *e, const int32_t *rows, int n, const void **out)
{
    const bs_engine_layout *l = &e->layout;
    if (n == e->n_tokens) {
        *out = bs_engine_act(e, l->act_at.normed);
        return BS_STATUS_OK;
    }
    bs_rmsnorm_args args = {.x = bs_engine_act(e, l->act_at.x),
                            .gain = bs_weights_output_norm(e->weights),
                            .rows = rows,
                            .n_tokens = n,
                            .n = l->n_hidden,
                            .eps = e->desc->rms_eps,
                            .act = l->act,
                            .out = region(e, l->logits_at.normed)};
    *out = args.out;
    return bs_op_rmsnorm(e->stream, &args);
}

/* This rank's logits of n rows, max_vocab floats from row to row. */
static bs_status compute_logits(bs_engine *e, const int32_t *rows, int n, float *logits)
{
    const bs_engine_layout *l = &e->layout;
    const void *hidden;
    BS_TRY(select_rows(e, rows, n, &hidden));
    return bs_engine_project(e, bs_weights_output(e->weights), NULL, hidden, l->n_hidden, n, BS_TYPE_F32,
                             logits, l->max_vocab);
}

/* Rows row0 … row0 + n − 1 of all_logits, ld floats from row to row, from column `first` on: a shard's n_ids. */
static bs_status copy_logits(bs_engine *e, int row0, int n, int64_t ld, int64_t first, int64_t n_ids,
                             const float *from)
{
    for (int i = 0; i < n && n_ids > 0; i++)
        BS_TRY(bs_copy_to_host(e->stream, e->all_logits + (int64_t)(row0 + i) * ld + first,
                               from + (int64_t)i * e->layout.max_vocab, (size_t)n_ids * sizeof(float)));
    return BS_STATUS_OK;
}

/* n rows' parts of all ranks to rank 0, from row0 of its all_logits on. */
static bs_status gather_parts(bs_engine *e, int row0, int n, float *gathered)
{
    int64_t part = (int64_t)n * e->layout.max_vocab;
    BS_TRY(bs_comm_allgather(e->comm, BS_GROUP_ALL, e->stream, gathered + part * e->grid->rank, gathered,
                             (size_t)part * sizeof(float)));
    for (int rank = 0; rank < e->layout.n_ranks && e->grid->rank == 0; rank++)
        BS_TRY(copy_logits(e, row0, n, e->desc->n_vocab, e->vocab[rank].first, e->vocab[rank].n,
                           gathered + part * rank));
    return BS_STATUS_OK;
}

bs_status bs_engine_gather_logits(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    const int32_t *rows = bs_engine_input(e, l->input_at.rows);
    float *gathered = region(e, l->logits_at.raw);
    const bool own = e->config.shard_logits;
    for (int row0 = 0; row0 < e->n_all_rows; row0 += l->logit_rows) {
        int n = (int)bs_min_i64(l->logit_rows, e->n_all_rows - row0);
        float *mine = own ? gathered : gathered + (int64_t)n * l->max_vocab * e->grid->rank;
        bs_engine_enter(e, e->desc->n_layers, BS_PHASE_LOGITS); /* many rows take long */
        BS_TRY(compute_logits(e, rows + row0, n, mine));
        BS_TRY(own ? copy_logits(e, row0, n, l->shard.vocab.n, 0, l->shard.vocab.n, mine)
                   : gather_parts(e, row0, n, gathered));
    }
    return BS_STATUS_OK;
}

/* Best candidates of every shard in `candidates` and their log-sum-exp in `lse`, shard after shard. */
static bs_status gather_candidates(bs_engine *e, int n_out, bs_candidate *candidates, float *lse)
{
    const bs_engine_layout *l = &e->layout;
    float *logits = region(e, l->logits_at.raw);
    int64_t part = (int64_t)e->n_rows * n_out;
    const int32_t *rows = (const int32_t *)bs_engine_input(e, l->input_at.rows) + e->n_all_rows;
    BS_TRY(compute_logits(e, rows, e->n_rows, logits));
    bs_engine_enter(e, e->desc->n_layers, BS_PHASE_SAMPLE);
    bs_candidates_args args = {
        .n_rows = e->n_rows,
        .logits = logits,
        .ld = l->max_vocab,
        .vocab0 = (int32_t)l->shard.vocab.first,
        .n_vocab = (int32_t)l->shard.vocab.n,
        .sampling = bs_engine_input(e, l->input_at.sampling),
        .seen = e->any_penalty ? bs_engine_input(e, l->input_at.seen) : NULL,
        .n_out = n_out,
        .out = candidates + part * e->grid->rank,
        .lse = lse + (int64_t)e->n_rows * e->grid->rank,
    };
    BS_TRY(bs_op_candidates(e->stream, &args));
    BS_TRY(bs_comm_allgather(e->comm, BS_GROUP_ALL, e->stream, args.out, candidates,
                             (size_t)part * sizeof(bs_candidate)));
    return bs_comm_allgather(e->comm, BS_GROUP_ALL, e->stream, args.lse, lse,
                             (size_t)e->n_rows * sizeof(float));
}

bs_status bs_engine_sample(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    if (e->n_rows == 0) return BS_STATUS_OK;
    bs_candidate *candidates = region(e, l->logits_at.candidates);
    float *lse = region(e, l->logits_at.lse);
    int n_out = (int)(e->needs_all ? l->max_vocab : bs_min_i64(l->max_vocab, BS_MAX_CANDIDATES));
    BS_TRY(gather_candidates(e, n_out, candidates, lse));
    bs_sample_args args = {
        .n_rows = e->n_rows,
        .n_shards = l->n_ranks,
        .n_per_shard = n_out,
        .candidates = candidates,
        .lse = lse,
        .shard_stride = (int64_t)e->n_rows * n_out,
        .lse_stride = e->n_rows,
        .sampling = bs_engine_input(e, l->input_at.sampling),
        .position = bs_engine_input(e, l->input_at.position),
        .draw = bs_engine_input(e, l->input_at.draw),
        .scratch = region(e, l->logits_at.scratch),
        .token = region(e, l->logits_at.token),
        .logprob = region(e, l->logits_at.logprob),
    };
    BS_TRY(bs_op_sample(e->stream, &args));
    return bs_op_keep_tokens(e->stream, region(e, l->logits_at.last), args.token,
                             bs_engine_input(e, l->input_at.row_slot), e->n_rows);
}
