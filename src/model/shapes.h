/* shapes.h: the shapes of models that people run, by name: for random weights and for plans without a file. */
#ifndef BS_SHAPES_H
#define BS_SHAPES_H

#include <stdbool.h>

/* RoPE beyond plain: Llama 3's scaling by this factor of a context of 8192 (low 1, high 4); 0: none. */
typedef struct bs_model_shape {
    const char *name, *architecture;
    int n_layers, n_hidden, n_heads, n_kv_heads, head_dim, n_ffn, n_vocab, context_length;
    double rms_eps, rope_theta, llama3_factor;
    int window;           /* of every layer; 0: none */
    int no_rope_interval; /* every so-manieth layer has no RoPE; 0: all have */
    bool tied_output, qkv_bias, qk_norm;
} bs_model_shape;

/* NULL: no such name. */
const bs_model_shape *bs_model_shape_find(const char *name);
/* Shape i of the table, or NULL behind the last. */
const bs_model_shape *bs_model_shape_at(int i);

#endif
