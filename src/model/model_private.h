/* model_private.h: an open model as the readers fill it, for shard.c and weights.c. */
#ifndef BS_MODEL_PRIVATE_H
#define BS_MODEL_PRIVATE_H

#include "src/model/gguf.h"
#include "src/model/model.h"
#include "src/model/safetensors.h"

struct json_t;

/* What a description may ask for, whatever its format. */
enum {
    BS_MODEL_MAX_LAYERS = 1024,
    BS_MODEL_MAX_HEADS = 1024,
    BS_MODEL_MAX_WIDTH = 1 << 20,
    BS_MODEL_MAX_VOCAB = 1 << 24
};

/* The tensors of one layer, shapes checked. NULL: the architecture has none. */
typedef struct bs_model_layer {
    const bs_tensor *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
    const bs_tensor *q_norm, *k_norm;
    const bs_tensor *q_bias, *k_bias, *v_bias;
} bs_model_layer;

/* They again, in the order in which they are claimed, and by which a random model numbers them. */
typedef enum bs_part {
    BS_PART_ATTN_NORM,
    BS_PART_Q,
    BS_PART_K,
    BS_PART_V,
    BS_PART_O,
    BS_PART_FFN_NORM,
    BS_PART_GATE,
    BS_PART_UP,
    BS_PART_DOWN,
    BS_PART_Q_NORM,
    BS_PART_K_NORM,
    BS_PART_Q_BIAS,
    BS_PART_K_BIAS,
    BS_PART_V_BIAS,
    BS_PART_COUNT
} bs_part;
static inline bool bs_part_is_bias(bs_part part)
{
    return part >= BS_PART_Q_BIAS;
}
/* A norm of q's or k's heads. */
static inline bool bs_part_is_head_norm(bs_part part)
{
    return part == BS_PART_Q_NORM || part == BS_PART_K_NORM;
}

struct bs_model {
    char *path;                     /* as it was asked for; in error lines */
    bs_gguf *gguf;                  /* owns the tensors, or NULL */
    bs_safetensors *safetensors;    /* owns them, or NULL */
    struct bs_random_model *random; /* owns them, or NULL */
    bool rows_first;                /* shapes in error lines are [rows, columns], as the file writes them */
    bs_model_desc desc;
    bs_layer_desc *layer_desc;                         /* [n_layers], what desc.layers shows */
    const bs_tensor *embedding, *output, *output_norm; /* output = embedding when tied */
    bs_model_layer *layers;                            /* [n_layers] */
    const bs_tensor **tensors;                         /* [n_tensors] all of the above, each once */
    int64_t n_tensors;
};

/* An empty model; bs_model_close undoes it. */
bs_status bs_model_create(const char *path, bs_model **out);
/* Room for desc.n_layers layers and their tensors; every layer has RoPE and this window. */
bs_status bs_model_alloc_layers(bs_model *model, int window);
/* What the description asks for as a part of a layer, and where it is kept; rows 0: a vector. */
typedef struct bs_part_slot {
    const char *name; /* GGUF's, behind "blk.N." */
    const bs_tensor **out;
    int64_t cols, rows;
} bs_part_slot;
bs_part_slot bs_model_part(bs_model *model, int layer, bs_part part);
/* Whether the tensor is there and its shape is [cols] or [cols, rows] (rows 0: a vector); `name` is what was looked
 * for. */
bs_status bs_model_check_shape(const bs_model *model, const bs_tensor *tensor, const char *name, int64_t cols,
                               int64_t rows);
/* The same, and takes it as one of the model's. */
bs_status bs_model_claim(bs_model *model, const bs_tensor *tensor, const char *name, int64_t cols,
                         int64_t rows, const bs_tensor **out);
bool bs_model_has_claimed(const bs_model *model, const bs_tensor *tensor);
/* Adds the claimed tensors' elements to desc.n_params. */
void bs_model_count_params(bs_model *model);

/* The model of an open file, which it takes over, also on failure. */
bs_status bs_model_open_gguf(bs_gguf *gguf, bs_model **out);
/* A Hugging Face directory. */
bs_status bs_model_open_hf(const char *directory, bs_model **out);
/* Its second half: a created model from a parsed config.json and model->safetensors (NULL: opened from model->path). */
bs_status bs_model_describe_hf(bs_model *model, const char *config_path, struct json_t *config);

/* random:NAME[:SEED], NAME a shape of src/model/shapes.h; BS_STATUS_USAGE lists them. */
typedef struct bs_random_model bs_random_model;
bool bs_model_names_random(const char *path);
bs_status bs_model_open_random(const char *path, bs_model **out);
void bs_random_model_free(bs_random_model *random);
/* Draws a view of a random model's matrix to device memory, in BF16 or F16; view->data is an address and nothing to
 * read. Stream-ordered. */
bs_status bs_random_model_fill(const bs_model *model, bs_stream *stream, const bs_weight *view, bs_type type,
                               void *out, size_t row_bytes);

/* Vectors that kernels want in f32 wherever the matrices are: seven a layer, then the output norm. */
typedef enum bs_vector {
    BS_VECTOR_ATTN_NORM,
    BS_VECTOR_FFN_NORM,
    BS_VECTOR_Q_NORM,
    BS_VECTOR_K_NORM,
    BS_VECTOR_Q_BIAS,
    BS_VECTOR_K_BIAS,
    BS_VECTOR_V_BIAS,
    BS_VECTOR_COUNT
} bs_vector;
/* Vector i (layer · BS_VECTOR_COUNT + bs_vector; behind the last layer the output norm) and the part of it that the
 * shard needs; NULL: the model has none. */
const bs_tensor *bs_model_vector(const bs_model *model, const bs_shard *shard, int i, bs_range *part);
/* Bytes of n elements in f32, with the padding that keeps the next vector on a cache line. */
static inline uint64_t bs_vector_bytes(int64_t n)
{
    return (sizeof(float) * (uint64_t)n + 63) & ~(uint64_t)63;
}

/* The matrices of a layer, in the order in which they are brought in and placed. */
typedef enum bs_matrix {
    BS_MATRIX_Q,
    BS_MATRIX_K,
    BS_MATRIX_V,
    BS_MATRIX_O,
    BS_MATRIX_GATE,
    BS_MATRIX_UP,
    BS_MATRIX_DOWN,
    BS_MATRIX_COUNT
} bs_matrix;
/* The shard's view of matrix i: 0 is the embedding table, 1 + layer · BS_MATRIX_COUNT + bs_matrix one of a layer, and
 * behind the last layer comes the output head. */
bs_weight bs_model_matrix(const bs_model *model, const bs_shard *shard, int i);
/* Matrices with data of their own: a tied output head is rows of the embedding table. */
static inline int bs_model_n_matrices(const bs_model *model)
{
    return 1 + BS_MATRIX_COUNT * model->desc.n_layers + !model->desc.tied_output;
}
/* In memory of their own matrices stand in groups, without a gap inside: q, k and v, and gate and up, which so are one
 * matrix too. Whether matrix i is the first of its group. */
static inline bool bs_matrix_begins_group(int i)
{
    const int k = (i - 1) % BS_MATRIX_COUNT;
    return k != BS_MATRIX_K && k != BS_MATRIX_V && k != BS_MATRIX_UP;
}
/* Where a group may begin, at `at` or behind. */
static inline uint64_t bs_matrix_group_at(uint64_t at)
{
    return (at + 255) & ~(uint64_t)255;
}

/* What the cuts depend on: bs_shard_compute without a model. The blocks are elements of the weight types;
 * where the layers differ, their least common multiple. */
typedef struct bs_shard_shape {
    int n_heads, n_kv_heads, head_dim;
    int64_t n_ffn, n_vocab;
    int o_block, ffn_block, vocab_block;
} bs_shard_shape;
void bs_shard_cut(const bs_shard_shape *shape, const bs_grid *grid, bs_merge_method merge, bs_shard *out);

/* Bytes of the shard's norms, biases and RoPE frequencies. */
uint64_t bs_shard_vector_bytes(const bs_model *model, const bs_shard *shard);
/* Bytes of the shard's matrices in memory of their own: 16 bits an element, in groups. */
uint64_t bs_shard_matrix_bytes(const bs_model *model, const bs_shard *shard);
/* Bytes that the view reads of each row: whole blocks. */
uint64_t bs_weight_row_span(const bs_weight *weight);

#endif
