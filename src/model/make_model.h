/* make_model.h: a small model file out of a seed, for tests, benches and fault drills.
 *
 * Architecture llama, random weights, a byte-level BPE tokenizer and a ChatML template: everything the
 * program reads from a real file, of any shape it supports. The same bytes for the same configuration, on
 * every machine.
 *
 * The weights are scaled so that it behaves like a model and not like noise: activations keep their size
 * through the layers, attention is peaked (scores with a standard deviation of 1.5), logits have one of 3 and
 * no preference for the token just read. So greedy margins are of a real model's order (median 0.65), and so
 * is what a low-bit cache does to the logits (8, 4 and 2 bits: relative L2 of 0.006, 0.1 and 0.5).
 */
#ifndef BS_MAKE_MODEL_H
#define BS_MAKE_MODEL_H

#include "kernels/kernels.h"

typedef struct bs_make_model_config {
    uint64_t seed;
    int n_layers, n_hidden, n_heads, n_kv_heads, head_dim, n_ffn;
    int n_vocab; /* ≥ 259: three specials, 256 bytes, the rest are merges */
    int context_length;
    bs_type type;     /* of the matrices; norms are f32 */
    bool tied_output; /* the output head is the embedding table */
    bool rope_freqs;  /* writes rope_freqs.weight, as Llama-3.1's files have it */
    double rope_theta;
} bs_make_model_config;

/* "tiny": 4 layers, hidden 256, 32 query heads on 8 KV heads of 128, FFN 512, vocabulary 512, Q4_1: about 8
 * MB. "smol": SmolLM2-135M's shape (30 layers, 576, 9 on 3 of 64, 1536, 49152, tied) in Q4_1, embedding as
 * well. BS_STATUS_USAGE names an unknown shape. */
bs_status bs_make_model_shape(const char *name, bs_make_model_config *out);

/* Writes the file (PATH.tmp first, then a rename). BS_STATUS_RANGE names what does not fit: a head size, a
 * width that is no multiple of the type's block, a vocabulary too small or larger than there are merges for
 * (475,513). */
bs_status bs_make_model(const bs_make_model_config *config, const char *path);

/* A row of n random weights of this type, n whole blocks; the same seed gives the same row. scratch: [n]. */
bs_status bs_make_model_row(uint64_t seed, bs_type type, float std, int64_t n, float *scratch, void *blocks);

#endif
