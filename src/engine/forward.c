/* forward.c: a step's tokens through all layers (DESIGN §3).
 *
 * Every rank runs the same ops in the same order, whatever it owns: a shard without a page of a sequence
 * attends to nothing (O = 0, LSE = −inf) and joins every collective. The residual stream x is f32 and the
 * same on all ranks; what a rank adds to it is a partial sum that the all-reduce completes. The addition
 * itself is left to the next norm, which reads x anyway.
 */
#include "src/engine/engine_private.h"

static bs_gemm_args make_gemm(const bs_engine *e, const bs_weight *w, const float *bias, const void *x,
                              int64_t ldx, int n_tokens, bs_type out_type, void *y, int64_t ldy)
{
    return (bs_gemm_args){
        .w = w,
        .bias = bias,
        .x = x,
        .ldx = ldx,
        .n_tokens = n_tokens,
        .act = e->layout.act,
        .out_type = out_type,
        .y = y,
        .ldy = ldy,
        .workspace = e->workspace ? bs_buffer_at(e->workspace, 0) : NULL,
        .workspace_bytes = e->layout.work.shared,
    };
}

bs_status bs_engine_project(bs_engine *e, const bs_weight *w, const float *bias, const void *x, int64_t ldx,
                            int n_tokens, bs_type out_type, void *y, int64_t ldy)
{
    const bs_gemm_args gemm = make_gemm(e, w, bias, x, ldx, n_tokens, out_type, y, ldy);
    return bs_op_gemm(e->stream, &gemm);
}

/* normed = norm(x), after x += sum when the layer before left one. */
static bs_status norm(bs_engine *e, const float *gain, bool add)
{
    const bs_engine_layout *l = &e->layout;
    float *x = bs_engine_act(e, l->act_at.x);
    bs_rmsnorm_args args = {
        .x = x,
        .gain = gain,
        .add = add ? bs_engine_act(e, l->act_at.sum) : NULL,
        .x_out = add ? x : NULL,
        .n_tokens = e->n_tokens,
        .n = l->n_hidden,
        .eps = e->desc->rms_eps,
        .act = l->act,
        .out = bs_engine_act(e, l->act_at.normed),
    };
    return bs_op_rmsnorm(e->stream, &args);
}

/* sum = W x on this rank's columns, then over all ranks. */
static bs_status project_and_sum(bs_engine *e, int layer, const bs_weight *w, const void *x, int64_t ldx)
{
    const bs_engine_layout *l = &e->layout;
    float *sum = bs_engine_act(e, l->act_at.sum);
    BS_TRY(bs_engine_project(e, w, NULL, x, ldx, e->n_tokens, BS_TYPE_F32, sum, l->n_hidden));
    bs_engine_enter(e, layer, BS_PHASE_SUM);
    return bs_comm_allreduce_sum(e->comm, BS_GROUP_ALL, e->stream, sum,
                                 (size_t)e->n_tokens * (size_t)l->n_hidden);
}

/* One of q, k, v from normed, f32. Models that norm each head of q and k (Qwen3) have a gain; the projection then goes
 * through the memory that attention's O takes later. */
static bs_status project_heads(bs_engine *e, const bs_weight *w, const float *bias, const float *head_gain,
                               int n_heads, size_t out_at)
{
    const bs_engine_layout *l = &e->layout;
    const void *normed = bs_engine_act(e, l->act_at.normed);
    int64_t ld = (int64_t)n_heads * l->head_dim;
    void *out = bs_engine_act(e, out_at);
    if (!head_gain)
        return bs_engine_project(e, w, bias, normed, l->n_hidden, e->n_tokens, BS_TYPE_F32, out, ld);
    float *heads = bs_engine_act(e, l->act_at.o);
    BS_TRY(bs_engine_project(e, w, bias, normed, l->n_hidden, e->n_tokens, BS_TYPE_F32, heads, ld));
    bs_rmsnorm_args args = {.x = heads,
                            .gain = head_gain,
                            .n_tokens = e->n_tokens * n_heads,
                            .n = l->head_dim,
                            .eps = e->desc->rms_eps,
                            .act = BS_TYPE_F32,
                            .out = out};
    return bs_op_rmsnorm(e->stream, &args);
}

/* Where a layer's q, k and v are, and elements from token to token: rows of one matrix where their weights are one. */
typedef struct heads {
    bool joined;
    float *q, *k, *v;
    int64_t q_ld, kv_ld;
} heads;

static heads find_heads(const bs_engine *e, const bs_layer_weights *w)
{
    const bs_engine_layout *l = &e->layout;
    const int64_t n_q = (int64_t)l->n_heads * l->head_dim, n_kv = (int64_t)l->n_kv_heads * l->head_dim;
    float *q = bs_engine_act(e, l->act_at.q);
    if (w->qkv.n_rows > 0) return (heads){true, q, q + n_q, q + n_q + n_kv, n_q + 2 * n_kv, n_q + 2 * n_kv};
    return (heads){false, q, bs_engine_act(e, l->act_at.k), bs_engine_act(e, l->act_at.v), n_q, n_kv};
}

static bs_status project_qkv(bs_engine *e, const bs_layer_weights *w)
{
    const bs_engine_layout *l = &e->layout;
    const heads at = find_heads(e, w);
    if (at.joined)
        return bs_engine_project(e, &w->qkv, w->q_bias, bs_engine_act(e, l->act_at.normed), l->n_hidden,
                                 e->n_tokens, BS_TYPE_F32, at.q, at.q_ld);
    BS_TRY(project_heads(e, &w->q, w->q_bias, w->q_norm, l->n_heads, l->act_at.q));
    BS_TRY(project_heads(e, &w->k, w->k_bias, w->k_norm, l->n_kv_heads, l->act_at.k));
    return project_heads(e, &w->v, w->v_bias, NULL, l->n_kv_heads, l->act_at.v);
}

static bs_status append(bs_engine *e, int layer)
{
    const bs_engine_layout *l = &e->layout;
    const heads at = find_heads(e, bs_weights_layer(e->weights, layer));
    const bs_cache_tables *tables = bs_cache_get_tables(e->cache);
    bs_append_args args = {
        .pools = bs_cache_pools(e->cache),
        .layer = layer,
        .n_tokens = e->n_tokens,
        .n_heads = l->n_heads,
        .q = at.q,
        .k = at.k,
        .v = at.v,
        .q_ld = at.q_ld,
        .kv_ld = at.kv_ld,
        .act = BS_TYPE_F32,
        .cos_sin = bs_engine_act(e, l->act_at.cos_sin),
        .n_rot = e->desc->layers[layer].rope ? e->desc->n_rot : 0,
        .rope_interleaved = e->desc->rope_interleaved,
        .f16_slot = tables->token_slot,
        .page_token = tables->token_page,
    };
    return bs_op_append(e->stream, &args);
}

/* Row i of a table of one entry a sequence. */
#define FROM(table) ((table) + span->first_seq)

/* One call of attention; q_start counts the step's rows, so q, o and lse begin where they do for all of them. *turned:
 * attended is there too, which needs the whole step in one call and all pages of its sequences on this rank. */
static bs_status attend(bs_engine *e, int layer, const bs_engine_span *span, bool *turned)
{
    const bs_engine_layout *l = &e->layout;
    const heads at = find_heads(e, bs_weights_layer(e->weights, layer));
    const bs_cache_tables *tables = bs_cache_get_tables(e->cache);
    bs_attend_args args = {
        .pools = bs_cache_pools(e->cache),
        .layer = layer,
        .max_seqs = span->n_seqs,
        .max_tokens = span->n_tokens,
        .max_pages = span->n_pages,
        .n_heads = l->n_heads,
        .q = at.q,
        .q_ld = at.q_ld,
        .act = BS_TYPE_F32,
        .q_start = FROM(tables->q_start),
        .q_pos0 = FROM(tables->q_pos0),
        .page_start = FROM(tables->page_start),
        .page_slot = tables->page_slot,
        .page_index = tables->page_index,
        .n_sink = FROM(tables->n_sink),
        .n_quant = FROM(tables->n_quant),
        .n_f16 = FROM(tables->n_f16),
        .n_tokens = FROM(tables->n_tokens),
        .scale = e->desc->attn_scale,
        .window = e->desc->layers[layer].window,
        .workspace = e->workspace ? bs_buffer_at(e->workspace, l->work.shared) : NULL,
        .workspace_bytes = l->work.attend,
        .o = bs_engine_act(e, l->act_at.o),
        .lse = bs_engine_act(e, l->act_at.lse),
        .attended_type = l->act,
    };
    *turned = e->n_spans == 1 && e->grid->seq == 1 && bs_attend_turns(e->device, &args);
    if (*turned) args.attended = bs_engine_act(e, l->act_at.attended);
    return bs_op_attend(e->stream, &args);
}

#undef FROM

/* Joins the sequence shards' states; attended = O in the model's own basis, as activations. */
static bs_status merge(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    int n_rows = e->n_tokens * l->n_heads;
    float *o = bs_engine_act(e, l->act_at.o), *lse = bs_engine_act(e, l->act_at.lse);
    BS_TRY(bs_merge_states(e->comm, e->stream, e->config.merge, o, lse, n_rows, l->head_dim,
                           e->workspace ? bs_buffer_at(e->workspace, 0) : NULL, l->work.shared));
    bs_unrotate_args args = {.hadamard = e->config.kv.hadamard,
                             .n_rows = n_rows,
                             .dim = l->head_dim,
                             .o = o,
                             .act = l->act,
                             .out = bs_engine_act(e, l->act_at.attended)};
    return bs_op_unrotate(e->stream, &args);
}

/* q, k and v, unless the chain before has made them, or at least the norm. */
static bs_status begin_layer(bs_engine *e, int layer, bool chained)
{
    const bs_layer_weights *w = bs_weights_layer(e->weights, layer);
    bs_engine_enter(e, layer, BS_PHASE_NORM);
    if (chained && layer > 0 && bs_engine_chain_gives_qkv(e, layer)) return BS_STATUS_OK;
    if (!chained || layer == 0) BS_TRY(norm(e, w->attn_norm, layer > 0));
    bs_engine_enter(e, layer, BS_PHASE_QKV);
    return project_qkv(e, w);
}

static bs_status run_attention(bs_engine *e, int layer)
{
    bool turned = false;
    bs_engine_enter(e, layer, BS_PHASE_APPEND);
    BS_TRY(append(e, layer));
    bs_engine_enter(e, layer, BS_PHASE_ATTEND);
    for (int i = 0; i < e->n_spans; i++) BS_TRY(attend(e, layer, &e->spans[i], &turned));
    bs_engine_enter(e, layer, BS_PHASE_MERGE);
    return turned ? BS_STATUS_OK : merge(e);
}

static bs_status project_attended(bs_engine *e, int layer)
{
    const bs_engine_layout *l = &e->layout;
    bs_engine_enter(e, layer, BS_PHASE_O_PROJ);
    /* o_cols are counted over the whole model's columns, attended holds those of my heads. */
    const bs_range *cols = &l->shard.o_cols;
    size_t first = cols->n > 0 ? (size_t)(cols->first - l->shard.heads.first * l->head_dim) : 0;
    size_t at = l->act_at.attended + first * (size_t)bs_type_block_bytes(l->act);
    return project_and_sum(e, layer, &bs_weights_layer(e->weights, layer)->o, bs_engine_act(e, at),
                           (int64_t)l->n_heads * l->head_dim);
}

/* gate and up from normed: the halves of one matrix's rows where their weights are one; then gate = silu(gate) · up, by the
 * same op where the device can. */
static bs_status run_gate_up(bs_engine *e, int layer, const bs_layer_weights *w)
{
    const bs_engine_layout *l = &e->layout;
    const bool joined = w->gate_up.n_rows > 0;
    const int64_t n_ffn = l->shard.ffn.n, ld = joined ? 2 * n_ffn : n_ffn;
    const void *normed = bs_engine_act(e, l->act_at.normed);
    char *gate = bs_engine_act(e, l->act_at.gate);
    char *up = joined ? gate + n_ffn * bs_type_block_bytes(l->act) : bs_engine_act(e, l->act_at.up);
    if (joined) {
        bs_gemm_args gemm = make_gemm(e, &w->gate_up, NULL, normed, l->n_hidden, e->n_tokens, l->act, gate,
                                      ld);
        gemm.gated = bs_gemm_gates(e->device, &gemm);
        BS_TRY(bs_op_gemm(e->stream, &gemm));
        if (gemm.gated) return BS_STATUS_OK;
    } else {
        BS_TRY(bs_engine_project(e, &w->gate, NULL, normed, l->n_hidden, e->n_tokens, l->act, gate, ld));
        BS_TRY(bs_engine_project(e, &w->up, NULL, normed, l->n_hidden, e->n_tokens, l->act, up, ld));
    }
    bs_silu_mul_args args = {.gate = gate,
                             .up = up,
                             .ld = ld,
                             .n_tokens = e->n_tokens,
                             .n = n_ffn,
                             .act = l->act,
                             .out = gate,
                             .ld_out = ld};
    bs_engine_enter(e, layer, BS_PHASE_SILU);
    return bs_op_silu_mul(e->stream, &args);
}

static bs_status run_ffn(bs_engine *e, int layer)
{
    const bs_engine_layout *l = &e->layout;
    const bs_layer_weights *w = bs_weights_layer(e->weights, layer);
    const int64_t n_ffn = l->shard.ffn.n;
    bs_engine_enter(e, layer, BS_PHASE_NORM);
    BS_TRY(norm(e, w->ffn_norm, true));
    bs_engine_enter(e, layer, BS_PHASE_FFN);
    if (n_ffn > 0) BS_TRY(run_gate_up(e, layer, w));
    bs_engine_enter(e, layer, BS_PHASE_FFN);
    return project_and_sum(e, layer, &w->down, bs_engine_act(e, l->act_at.gate),
                           w->gate_up.n_rows > 0 ? 2 * n_ffn : n_ffn);
}

/* The pages that are quantized before this step: how many differs from step to step, so this is never part of a
 * graph. */
bs_status bs_engine_prepare(bs_engine *e)
{
    const bs_cache_tables *tables = bs_cache_get_tables(e->cache);
    if (tables->n_quantize == 0) return BS_STATUS_OK;
    bs_engine_enter(e, 0, BS_PHASE_QUANTIZE);
    bs_quantize_args quantize = {.pools = bs_cache_pools(e->cache),
                                 .n_pages = tables->n_quantize,
                                 .f16_slot = tables->quantize_from,
                                 .quant_slot = tables->quantize_to};
    return bs_op_quantize(e->stream, &quantize);
}

/* What all layers share: the tokens' embeddings and their angles. */
static bs_status embed(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    bs_engine_enter(e, 0, BS_PHASE_EMBED);
    bs_embed_args embed = {.table = bs_weights_embedding(e->weights),
                           .tokens = bs_engine_input(e, l->input_at.tokens),
                           .n_tokens = e->n_tokens,
                           .x = bs_engine_act(e, l->act_at.x)};
    /* Attention reads pages before the kernel before it has ended; so the first kernel of a step waits for all that was
     * queued before: pages quantized, tables sent. */
    bs_stream_set_overlap(e->stream, false);
    BS_TRY(bs_op_embed(e->stream, &embed));
    bs_stream_set_overlap(e->stream, true);
    bs_rope_table_args rope = {.positions = bs_cache_get_tables(e->cache)->token_pos,
                               .n_tokens = e->n_tokens,
                               .inv_freq = bs_weights_inv_freq(e->weights),
                               .n_rot = e->desc->n_rot,
                               .attention_factor = e->desc->rope_attention_factor,
                               .cos_sin = bs_engine_act(e, l->act_at.cos_sin)};
    return bs_op_rope_table(e->stream, &rope);
}

bs_status bs_engine_forward(bs_engine *e)
{
    const bool chained = bs_engine_has_chain(e);
    BS_TRY(embed(e));
    for (int layer = 0; layer < e->desc->n_layers; layer++) {
        BS_TRY(begin_layer(e, layer, chained));
        BS_TRY(run_attention(e, layer));
        if (chained) {
            bs_engine_enter(e, layer, BS_PHASE_O_PROJ);
            BS_TRY(bs_engine_run_chain(e, layer));
        } else {
            BS_TRY(project_attended(e, layer));
            BS_TRY(run_ffn(e, layer));
        }
    }
    bs_engine_enter(e, e->desc->n_layers, BS_PHASE_NORM);
    if (!chained && e->n_rows + e->n_all_rows > 0) BS_TRY(norm(e, bs_weights_output_norm(e->weights), true));
    bs_engine_enter(e, e->desc->n_layers, BS_PHASE_LOGITS);
    return BS_STATUS_OK;
}
