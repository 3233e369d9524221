/* model.h: a model, its description, and the part of it that one rank uses.
 *
 * A bs_model is opened from a GGUF file or a Hugging Face directory (config.json and safetensors), or named as random
 * weights of a known shape: the description is read and checked whole, a file's data mapped read-only. bs_shard says
 * which heads, columns and rows belong to a rank (DESIGN §3: pure arithmetic, the same on every rank), and bs_weights are
 * this rank's matrices: on a CPU views of the mapping, in the file's own blocks, on a GPU in 16 bits in its memory.
 */
#ifndef BS_MODEL_H
#define BS_MODEL_H

#include "comm/comm.h"
#include "comm/merge.h"
#include "kernels/kernels.h"
#include "src/model/tensor.h"

typedef struct bs_model bs_model;
struct bs_gguf;

/* Where layers differ. */
typedef struct bs_layer_desc {
    int window; /* of its attention, in tokens; 0: none */
    bool rope;  /* q and k are rotated (SmolLM3 leaves some layers out) */
} bs_layer_desc;

typedef enum bs_rope_kind { BS_ROPE_PLAIN, BS_ROPE_LINEAR, BS_ROPE_LLAMA3, BS_ROPE_YARN } bs_rope_kind;
const char *bs_rope_kind_name(bs_rope_kind kind); /* "plain", "linear", "llama3", "yarn" */

/* How a model's authors sample (generation_config.json); `sample` false: greedily, or they do not say. */
typedef struct bs_suggested_sampling {
    bool sample;
    float temperature, top_p; /* 1: as it is */
    int top_k;                /* 0: all */
} bs_suggested_sampling;

typedef struct bs_model_desc {
    char architecture[32]; /* "llama" */
    char name[128];        /* general.name, or the file's name */
    int n_layers, n_hidden, n_heads, n_kv_heads, head_dim, n_ffn, n_vocab;
    int context_length; /* the model was trained for; longer is a warning, not an error */
    float rms_eps;
    float attn_scale;            /* of q·k: 1/√D */
    const bs_layer_desc *layers; /* [n_layers] */
    bool tied_output;            /* the output head is the embedding table */
    /* RoPE: angle = position × inv_freq[i], f64 */
    double rope_theta;
    bs_rope_kind rope_kind; /* scaling, contained in inv_freq */
    int n_rot;              /* rotated channels of a head */
    double inv_freq[BS_MAX_HEAD_DIM / 2];
    float rope_attention_factor; /* multiplies cos and sin; 1 but for YaRN */
    bool rope_interleaved;       /* pairs (2i, 2i+1); else (i, i + n_rot/2) */
    int64_t n_params;
    uint64_t file_bytes;
    bs_suggested_sampling sampling;
} bs_model_desc;

/* Opens and checks a model; what is malformed is named with its value. Local (not collective): the caller agrees.
 * BS_STATUS_IO, FORMAT, UNSUPPORTED (architecture, tensor type, RoPE scaling). */
bs_status bs_model_open(const char *path, bs_model **out);
void bs_model_close(bs_model *model);
const bs_model_desc *bs_model_get_desc(const bs_model *model);
/* Opened as random:NAME[:SEED]: weights are drawn where they are placed, and there is no tokenizer. */
bool bs_model_is_random(const bs_model *model);
/* Whether matrices stay views of the mapped file on this device: on a CPU, but for a random model. Else they have memory
 * of their own, and those that follow each other there are one product (bs_layer_weights). */
bool bs_model_is_mapped(const bs_model *model, const bs_device *device);
/* As it was opened, for error lines. */
const char *bs_model_path(const bs_model *model);
/* The GGUF file behind it (src/model/gguf.h), for the tokenizer's keys; lives as long as the model. NULL: another
 * format. */
const struct bs_gguf *bs_model_gguf(const bs_model *model);
/* All tensors that the model uses, each once (one that is tied too). */
int64_t bs_model_n_tensors(const bs_model *model);
const bs_tensor *bs_model_tensor_at(const bs_model *model, int64_t i);

/* A range of rows or columns: first … first + n − 1. */
typedef struct bs_range {
    int64_t first, n;
} bs_range;

/* What rank `grid->rank` holds. FFN, vocabulary and o_proj's 1/seq slices are cut at multiples of lcm(32, block)
 * counted from the tensor's start, the first shards take the remainder. A shard may be empty (n = 0). */
typedef struct bs_shard {
    bs_range kv_heads, heads; /* this head shard's */
    /* o_proj's columns of this rank: in its heads' columns, 1/seq of them, or all for fold */
    bs_range o_cols;
    bs_range ffn;   /* rows of gate and up, columns of down */
    bs_range vocab; /* rows of the output head */
} bs_shard;
/* Pure, any rank may compute any rank's. The blocks are those of o_proj, ffn_down and the output head. */
bs_status bs_shard_compute(const bs_model *model, const bs_grid *grid, bs_merge_method merge, bs_shard *out);

typedef struct bs_layer_weights {
    const float *attn_norm, *ffn_norm;     /* [device] [hidden] f32 */
    const float *q_norm, *k_norm;          /* [device] [D] f32 or NULL (Qwen3) */
    bs_weight q, k, v;                     /* rows of this rank's heads */
    const float *q_bias, *k_bias, *v_bias; /* [device] f32 or NULL */
    bs_weight o;                           /* [hidden, o_cols.n] */
    bs_weight gate, up;                    /* [ffn.n, hidden] */
    bs_weight down;                        /* [hidden, ffn.n] */
    /* Where matrices have memory of their own: q, k and v as one, their biases following each other too, where no norm
     * stands between; and gate and up. Else no rows. */
    bs_weight qkv, gate_up;
} bs_layer_weights;

typedef struct bs_weights bs_weights;
/* Type of activations, and on a GPU of matrices: F32 on a CPU; on a GPU what is asked for (F16 or BF16), else BF16 for a
 * model of BF16 weights and F16, which rounds finer, for others. */
bs_type bs_model_act_type(const bs_model *model, const bs_device *device, bs_type asked);
/* This rank's matrices, on `device`. Where they are mapped (bs_model_is_mapped) their blocks stay in the file; else they
 * become `type`, F16 or BF16 (a CPU ignores it: BF16). Norms and biases are copied, in f32, into one buffer. Local.
 * `progress` (may be NULL) is called with bytes done and bytes in all while pages are brought in, sent or drawn. */
bs_status bs_weights_place(const bs_model *model, bs_device *device, const bs_shard *shard, bs_type type,
                           void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                           bs_weights **out);
void bs_weights_free(bs_weights *weights);
const bs_layer_weights *bs_weights_layer(const bs_weights *weights, int layer);
const bs_weight *bs_weights_embedding(const bs_weights *weights); /* [vocab, hidden], whole */
const bs_weight *bs_weights_output(const bs_weights *weights);    /* [vocab.n, hidden] */
const float *bs_weights_output_norm(const bs_weights *weights);   /* [device] [hidden] f32 */
const double *bs_weights_inv_freq(const bs_weights *weights);     /* [device] [n_rot/2] */
/* Bytes of this rank's matrices that every step reads: all but the embedding table. */
uint64_t bs_weights_step_bytes(const bs_weights *weights);
/* Bytes of a shard's matrices in the file and of its norms, biases and frequencies, for --dry-run. */
uint64_t bs_shard_weight_bytes(const bs_model *model, const bs_shard *shard);
/* What placing takes from the device: norms, biases and frequencies, and where matrices are not mapped all of them in 16
 * bits an element. */
uint64_t bs_shard_placed_bytes(const bs_model *model, const bs_device *device, const bs_shard *shard);

#endif
