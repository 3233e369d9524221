/* model_private.h: an open model as model.c fills it, for shard.c and weights.c. */
#ifndef BS_MODEL_PRIVATE_H
#define BS_MODEL_PRIVATE_H

#include "src/model/gguf.h"
#include "src/model/model.h"

/* The tensors of one layer, shapes checked. */
typedef struct bs_model_layer {
    const bs_gguf_tensor *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
} bs_model_layer;

struct bs_model {
    bs_gguf *gguf;
    bs_model_desc desc;
    const bs_gguf_tensor *embedding, *output, *output_norm; /* output = embedding when tied */
    bs_model_layer *layers;                                 /* [n_layers] */
};

/* The model of an open file, which it takes over, also on failure. */
bs_status bs_model_open_gguf(bs_gguf *gguf, bs_model **out);

/* What the cuts depend on: bs_shard_compute without a model. The blocks are elements of the weight types;
 * where the layers differ, their least common multiple. */
typedef struct bs_shard_shape {
    int n_heads, n_kv_heads, head_dim;
    int64_t n_ffn, n_vocab;
    int o_block, ffn_block, vocab_block;
} bs_shard_shape;
void bs_shard_cut(const bs_shard_shape *shape, const bs_grid *grid, bs_merge_method merge, bs_shard *out);

/* The view of rows × columns of a tensor. */
bs_weight bs_weight_view(const bs_gguf_tensor *tensor, bs_range rows, bs_range cols);
/* Bytes that the view reads of each row: whole blocks. */
uint64_t bs_weight_row_span(const bs_weight *weight);

#endif
