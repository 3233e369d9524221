/* chain.c: the dense work of a decode step's layer as one op, where the device has it (bs_op_dense_chain).
 *
 * One rank, one token, weights that lie as that op wants them: then between two attentions there is one kernel instead of
 * seven. It leaves x complete, the next norm in act_at.normed, or the next layer's q, k and v where they are looked for.
 */
#include "src/engine/engine_private.h"

bool bs_engine_has_chain(const bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    return l->n_ranks == 1 && e->n_tokens == 1 && bs_weights_layer(e->weights, 0)->gate_up.n_rows > 0 &&
           bs_dense_chain_fits(e->device, (int64_t)l->n_heads * l->head_dim, l->n_hidden, l->shard.ffn.n,
                               l->act);
}

bool bs_engine_chain_gives_qkv(const bs_engine *e, int layer)
{
    return layer < e->desc->n_layers && bs_weights_layer(e->weights, layer)->qkv.n_rows > 0;
}

bs_status bs_engine_run_chain(bs_engine *e, int layer)
{
    const bs_engine_layout *l = &e->layout;
    const int next_layer = layer + 1;
    const bool gives_qkv = bs_engine_chain_gives_qkv(e, next_layer);
    const bs_layer_weights *w = bs_weights_layer(e->weights, layer),
                           *next = next_layer < e->desc->n_layers ? bs_weights_layer(e->weights, next_layer)
                                                                  : NULL;
    const bs_dense_chain_args args = {
        .n_hidden = l->n_hidden,
        .n_ffn = l->shard.ffn.n,
        .act = l->act,
        .o = &w->o,
        .gate_up = &w->gate_up,
        .down = &w->down,
        .qkv = gives_qkv ? &next->qkv : NULL,
        .qkv_bias = gives_qkv ? next->q_bias : NULL,
        .attended = bs_engine_act(e, l->act_at.attended),
        .x = bs_engine_act(e, l->act_at.x),
        .x_other = bs_engine_act(e, l->act_at.x_other),
        .sum = bs_engine_act(e, l->act_at.sum),
        .ffn = bs_engine_act(e, l->act_at.gate),
        .ffn_gain = w->ffn_norm,
        .next_gain = next ? next->attn_norm : bs_weights_output_norm(e->weights),
        .eps = e->desc->rms_eps,
        .out = bs_engine_act(e, gives_qkv ? l->act_at.q : l->act_at.normed),
        .out_type = gives_qkv ? BS_TYPE_F32 : l->act,
        .counter = bs_engine_act(e, l->act_at.counter),
    };
    return bs_op_dense_chain(e->stream, &args);
}
