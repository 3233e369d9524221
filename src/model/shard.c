/* shard.c: who holds what. Pure arithmetic on the model's shape and the grid, the same on every rank.
 *
 * Heads are cut evenly (the grid divides the KV heads). Everything else is cut at multiples of a unit,
 * lcm(32, the weight format's block), counted from the tensor's start: a cut never splits a block or a vector
 * of 32, and where the cuts lie does not depend on who asks. Units are dealt evenly, the first shards take
 * the remainder, and the last unit may be short. A head shard's columns of o_proj need not begin at a unit (3
 * heads of 64 and blocks of 256): the sequence shards deal out the units that touch them, and the first and
 * last piece are clipped to the head shard's columns.
 */
#include "src/model/model_private.h"
#include "src/base/checked.h"

static int64_t lcm(int64_t a, int64_t b)
{
    int64_t x = a, y = b;
    while (y != 0) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* Piece `part` of n_parts of [first, first + n), cut at multiples of `unit` from 0. */
static bs_range cut(bs_range whole, int64_t unit, int part, int n_parts)
{
    int64_t end = whole.first + whole.n;
    int64_t unit0 = whole.first / unit, n_units = bs_ceil_div(end, unit) - unit0;
    int64_t each = n_units / n_parts, more = n_units % n_parts;
    int64_t from = unit0 + part * each + bs_min_i64(part, more);
    int64_t to = from + each + (part < more);
    int64_t first = bs_min_i64(bs_max_i64(from * unit, whole.first), end);
    return (bs_range){first, bs_max_i64(bs_min_i64(to * unit, end) - first, 0)};
}

void bs_shard_cut(const bs_shard_shape *shape, const bs_grid *grid, bs_merge_method merge, bs_shard *out)
{
    int64_t kv_heads = shape->n_kv_heads / grid->heads, heads = shape->n_heads / grid->heads;
    bs_range kv = {grid->head_shard * kv_heads, kv_heads}, q = {grid->head_shard * heads, heads};
    bs_range o = {q.first * shape->head_dim, q.n * shape->head_dim};
    if (merge != BS_MERGE_FOLD) o = cut(o, lcm(32, shape->o_block), grid->seq_shard, grid->seq);
    *out = (bs_shard){
        .kv_heads = kv,
        .heads = q,
        .o_cols = o,
        .ffn = cut((bs_range){0, shape->n_ffn}, lcm(32, shape->ffn_block), grid->rank, grid->size),
        .vocab = cut((bs_range){0, shape->n_vocab}, lcm(32, shape->vocab_block), grid->rank, grid->size),
    };
}

bs_status bs_shard_compute(const bs_model *model, const bs_grid *grid, bs_merge_method merge, bs_shard *out)
{
    const bs_model_desc *desc = &model->desc;
    if (grid->heads < 1 || grid->seq < 1 || grid->heads * grid->seq != grid->size || grid->rank < 0 ||
        grid->rank >= grid->size || grid->head_shard != grid->rank / grid->seq ||
        grid->seq_shard != grid->rank % grid->seq)
        return bs_fail(BS_STATUS_RANGE, "rank %d of grid %dx%d: not a place in a job of %d ranks", grid->rank,
                       grid->heads, grid->seq, grid->size);
    if (desc->n_kv_heads % grid->heads != 0)
        return bs_fail(BS_STATUS_RANGE, "grid %dx%d: %d head shards do not divide the model's %d KV heads",
                       grid->heads, grid->seq, grid->heads, desc->n_kv_heads);
    int64_t o_block = 1, ffn_block = 1;
    for (int l = 0; l < desc->n_layers; l++) {
        o_block = lcm(o_block, bs_type_block(model->layers[l].o->type));
        ffn_block = lcm(ffn_block, bs_type_block(model->layers[l].down->type));
    }
    bs_shard_shape shape = {.n_heads = desc->n_heads,
                            .n_kv_heads = desc->n_kv_heads,
                            .head_dim = desc->head_dim,
                            .n_ffn = desc->n_ffn,
                            .n_vocab = desc->n_vocab,
                            .o_block = (int)o_block,
                            .ffn_block = (int)ffn_block,
                            .vocab_block = bs_type_block(model->output->type)};
    bs_shard_cut(&shape, grid, merge, out);
    return BS_STATUS_OK;
}

/* ---- views ------------------------------------------------------------------------------------------------
 */

/* The view of rows × columns of a tensor. */
static bs_weight view_of(const bs_tensor *tensor, bs_range rows, bs_range cols)
{
    int64_t block = bs_type_block(tensor->type), block_bytes = bs_type_block_bytes(tensor->type);
    int64_t row_bytes = tensor->dims[0] / block * block_bytes, skipped = cols.n ? cols.first / block : 0;
    bool empty = rows.n == 0 || cols.n == 0; /* points at the tensor, not behind it */
    return (bs_weight){.type = tensor->type,
                       .data = (const char *)tensor->data +
                               (empty ? 0 : rows.first * row_bytes + skipped * block_bytes),
                       .row_bytes = (size_t)row_bytes,
                       .n_rows = rows.n,
                       .n_cols = cols.n,
                       .first_col = empty ? 0 : (int)(cols.first % block)};
}

uint64_t bs_weight_row_span(const bs_weight *weight)
{
    int64_t block = bs_type_block(weight->type);
    int64_t n_blocks = (weight->first_col + weight->n_cols + block - 1) / block;
    return (uint64_t)(n_blocks * bs_type_block_bytes(weight->type));
}

/* Rows, or elements, of these heads. */
static bs_range of_heads(bs_range heads, int64_t head_dim)
{
    return (bs_range){heads.first * head_dim, heads.n * head_dim};
}

const bs_tensor *bs_model_vector(const bs_model *model, const bs_shard *shard, int i, bs_range *part)
{
    const bs_model_desc *desc = &model->desc;
    const bs_range head = {0, desc->head_dim}, q = of_heads(shard->heads, desc->head_dim),
                   kv = of_heads(shard->kv_heads, desc->head_dim);
    int l = i / BS_VECTOR_COUNT;
    *part = (bs_range){0, desc->n_hidden};
    if (l == desc->n_layers) return model->output_norm;
    const bs_model_layer *layer = &model->layers[l];
    switch ((bs_vector)(i % BS_VECTOR_COUNT)) {
    case BS_VECTOR_ATTN_NORM: return layer->attn_norm;
    case BS_VECTOR_FFN_NORM: return layer->ffn_norm;
    case BS_VECTOR_Q_NORM: *part = head; return layer->q_norm;
    case BS_VECTOR_K_NORM: *part = head; return layer->k_norm;
    case BS_VECTOR_Q_BIAS: *part = q; return layer->q_bias;
    case BS_VECTOR_K_BIAS: *part = kv; return layer->k_bias;
    case BS_VECTOR_V_BIAS: *part = kv; return layer->v_bias;
    case BS_VECTOR_COUNT: break;
    }
    return NULL;
}

bs_weight bs_model_matrix(const bs_model *model, const bs_shard *shard, int i)
{
    const bs_model_desc *desc = &model->desc;
    const bs_range hidden = {0, desc->n_hidden}, vocab = {0, desc->n_vocab},
                   q = of_heads(shard->heads, desc->head_dim), kv = of_heads(shard->kv_heads, desc->head_dim);
    if (i == 0) return view_of(model->embedding, vocab, hidden);
    int l = (i - 1) / BS_MATRIX_COUNT;
    if (l == desc->n_layers) return view_of(model->output, shard->vocab, hidden);
    const bs_model_layer *layer = &model->layers[l];
    switch ((bs_matrix)((i - 1) % BS_MATRIX_COUNT)) {
    case BS_MATRIX_Q: return view_of(layer->q, q, hidden);
    case BS_MATRIX_K: return view_of(layer->k, kv, hidden);
    case BS_MATRIX_V: return view_of(layer->v, kv, hidden);
    case BS_MATRIX_O: return view_of(layer->o, hidden, shard->o_cols);
    case BS_MATRIX_GATE: return view_of(layer->gate, shard->ffn, hidden);
    case BS_MATRIX_UP: return view_of(layer->up, shard->ffn, hidden);
    case BS_MATRIX_DOWN: return view_of(layer->down, hidden, shard->ffn);
    case BS_MATRIX_COUNT: break;
    }
    return (bs_weight){0};
}

/* ---- bytes ------------------------------------------------------------------------------------------------
 */

uint64_t bs_shard_vector_bytes(const bs_model *model, const bs_shard *shard)
{
    uint64_t bytes = sizeof(double) * (uint64_t)(model->desc.n_rot / 2);
    for (int i = 0; i <= BS_VECTOR_COUNT * model->desc.n_layers; i++) {
        bs_range part;
        if (bs_model_vector(model, shard, i, &part)) bytes += bs_vector_bytes(part.n);
    }
    return bytes;
}

uint64_t bs_shard_matrix_bytes(const bs_model *model, const bs_shard *shard)
{
    uint64_t bytes = 0;
    for (int i = 0; i < bs_model_n_matrices(model); i++) {
        const bs_weight view = bs_model_matrix(model, shard, i);
        if (bs_matrix_begins_group(i)) bytes = bs_matrix_group_at(bytes);
        bytes += 2 * (uint64_t)view.n_rows * (uint64_t)view.n_cols;
    }
    return bytes;
}

uint64_t bs_shard_weight_bytes(const bs_model *model, const bs_shard *shard)
{
    uint64_t bytes = bs_shard_vector_bytes(model, shard);
    for (int i = 0; i < bs_model_n_matrices(model); i++) {
        const bs_weight view = bs_model_matrix(model, shard, i);
        bytes += (uint64_t)view.n_rows * bs_weight_row_span(&view);
    }
    return bytes;
}

uint64_t bs_shard_placed_bytes(const bs_model *model, const bs_device *device, const bs_shard *shard)
{
    return bs_shard_vector_bytes(model, shard) +
           (bs_model_is_mapped(model, device) ? 0 : bs_shard_matrix_bytes(model, shard));
}
