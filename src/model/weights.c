/* weights.c: this rank's part of the model on its device.
 *
 * On a GPU each matrix of this rank gets memory of its own there, in one type (F16 or BF16) whatever the file's: q, k and
 * v behind each other, gate and up likewise, so that each group is one matrix too. The output head of a tied model is
 * rows of the embedding table, which every rank has whole. So it is with a random model on a CPU, too, in BF16.
 *
 * On a CPU nothing is copied: a matrix is a view of the mapped file, in the file's own blocks, and ranks of
 * one machine share the page cache. Only what the kernels want in another type gets memory of its own, one
 * buffer: norms and biases in f32 and RoPE's inverse frequencies in f64. The pages of the views are brought in here,
 * with progress, so that the first token does not wait for the disk; they stay evictable, so a model larger
 * than memory still runs, slowly.
 */
#include "config.h"
#include "src/base/checked.h"
#include "src/model/model_private.h"
#include "src/model/upload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct bs_weights {
    bs_weight embedding, output;
    bs_buffer *buffer;   /* vectors, then inv_freq */
    bs_buffer *matrices; /* on a GPU, or of a random model */
    const float *output_norm;
    const double *inv_freq;
    uint64_t step_bytes;
    int n_layers;
    bs_layer_weights layers[];
};

/* Where matrix i (bs_model_matrix) is shown. */
static bs_weight *matrix_slot(bs_weights *weights, int i)
{
    if (i == 0) return &weights->embedding;
    if (i == 1 + BS_MATRIX_COUNT * weights->n_layers) return &weights->output;
    bs_layer_weights *w = &weights->layers[(i - 1) / BS_MATRIX_COUNT];
    bs_weight *slots[BS_MATRIX_COUNT] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down};
    return slots[(i - 1) % BS_MATRIX_COUNT];
}

/* ---- bringing pages in ------------------------------------------------------------------------------------
 */

typedef struct loading {
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
    uint64_t done, total, told;
    uintptr_t page_bytes;
} loading;

static const char *page_of(const loading *load, const char *address)
{
    return (const char *)((uintptr_t)address & ~(load->page_bytes - 1));
}

/* Asks for the whole view at once, then touches a byte of each page: the first rows arrive while later ones
 * are read. */
static void bring_in(loading *load, const bs_weight *view)
{
    enum { TELL_BYTES = 4 << 20 };
    uint64_t span = bs_weight_row_span(view);
    if (view->n_rows == 0 || span == 0) return;
    const char *data = view->data, *end = data + (uint64_t)(view->n_rows - 1) * view->row_bytes + span;
    const char *first = page_of(load, data);
    madvise((void *)first, (size_t)(end - first), MADV_WILLNEED);
    const char *touched = NULL;
    for (int64_t row = 0; row < view->n_rows; row++, data += view->row_bytes) {
        for (const char *page = page_of(load, data); page < data + span; page += load->page_bytes) {
            if (page == touched) continue;
            (void)*(const volatile char *)(page < data ? data : page);
            touched = page;
        }
        load->done += span;
        if (load->progress && load->done - load->told >= TELL_BYTES) {
            load->progress(load->context, load->done, load->total);
            load->told = load->done;
        }
    }
}

static void bring_in_all(const bs_model *model, bs_weights *weights, loading *load)
{
    const int n = bs_model_n_matrices(model);
    for (int i = 0; i < n; i++) {
        const bs_weight *view = matrix_slot(weights, i);
        load->total += (uint64_t)view->n_rows * bs_weight_row_span(view);
    }
    for (int i = 0; i < n; i++) bring_in(load, matrix_slot(weights, i));
    if (load->progress) load->progress(load->context, load->total, load->total);
}

/* ---- vectors and RoPE -------------------------------------------------------------------------------------
 */

/* Where bs_layer_weights, or the output norm, shows vector i. */
static const float **vector_slot(bs_weights *weights, int i)
{
    if (i == BS_VECTOR_COUNT * weights->n_layers) return &weights->output_norm;
    bs_layer_weights *w = &weights->layers[i / BS_VECTOR_COUNT];
    const float **slots[BS_VECTOR_COUNT] = {&w->attn_norm, &w->ffn_norm, &w->q_norm, &w->k_norm,
                                            &w->q_bias,    &w->k_bias,   &w->v_bias};
    return slots[i % BS_VECTOR_COUNT];
}

/* The whole vector in f32, then the part of it to the front. */
static bs_status read_vector(const bs_tensor *tensor, bs_range part, float *out)
{
    BS_TRY(bs_dequantize_row(tensor->type, tensor->data, out, tensor->dims[0]));
    memmove(out, out + part.first, sizeof *out * (size_t)part.n);
    return BS_STATUS_OK;
}

static bs_status fill_buffer(const bs_model *model, const bs_shard *shard, bs_stream *stream, char *scratch,
                             bs_weights *weights)
{
    const bs_model_desc *desc = &model->desc;
    uint64_t at = 0;
    for (int i = 0; i <= BS_VECTOR_COUNT * desc->n_layers; i++) {
        bs_range part;
        const bs_tensor *tensor = bs_model_vector(model, shard, i, &part);
        if (!tensor) continue;
        BS_TRY(read_vector(tensor, part, (float *)(scratch + at)));
        *vector_slot(weights, i) = bs_buffer_at(weights->buffer, at);
        at += bs_vector_bytes(part.n);
    }
    weights->inv_freq = bs_buffer_at(weights->buffer, at);
    BS_TRY(bs_copy_to_device(stream, bs_buffer_at(weights->buffer, 0), scratch, at));
    BS_TRY(bs_copy_to_device(stream, bs_buffer_at(weights->buffer, at), desc->inv_freq,
                             sizeof(double) * (size_t)(desc->n_rot / 2)));
    return bs_stream_sync(stream);
}

static bs_status place_vectors(const bs_model *model, const bs_shard *shard, bs_device *device,
                               bs_weights *weights)
{
    const bs_model_desc *desc = &model->desc;
    const size_t bytes = bs_shard_vector_bytes(model, shard);
    /* a whole vector is read before its part is kept */
    const int64_t longest = bs_max_i64(desc->n_hidden, (int64_t)desc->n_heads * desc->head_dim);
    bs_status status;
    bs_stream *stream = NULL;
    char *scratch = calloc(1, bytes + sizeof(float) * (size_t)longest);
    if (!scratch) return bs_fail(BS_STATUS_NOMEM, "no memory for %zu bytes of norms and biases", bytes);
    BS_TRY_GOTO(bs_stream_create(device, &stream), done);
    BS_TRY_GOTO(bs_buffer_alloc(device, bytes, "norms, biases and RoPE frequencies", &weights->buffer), done);
    BS_TRY_GOTO(fill_buffer(model, shard, stream, scratch, weights), done);
done:
    bs_stream_destroy(stream);
    free(scratch);
    return status;
}

/* ---- in memory of their own -------------------------------------------------------------------------------
 */

static void put(bs_upload_item *item, bs_weight *view, bs_type type, char *base, uint64_t *at)
{
    const uint64_t row_bytes = 2 * (uint64_t)view->n_cols;
    *item = (bs_upload_item){.from = *view, .to = base + *at};
    *view = (bs_weight){.type = type,
                        .data = base + *at,
                        .row_bytes = (size_t)row_bytes,
                        .n_rows = view->n_rows,
                        .n_cols = view->n_cols};
    *at += row_bytes * (uint64_t)item->from.n_rows;
}

/* The rows of several matrices that follow each other, as one; empty ones take no room. */
static bs_weight join(const bs_weight *first, int64_t n_rows)
{
    bs_weight all = *first;
    all.n_rows = n_rows;
    return all;
}

/* Whether one product may stand for three: no norm of heads comes between, and there is one bias for all or none. */
static bool can_join_qkv(const bs_model_layer *layer)
{
    const bool none = !layer->q_bias && !layer->k_bias && !layer->v_bias;
    return !layer->q_norm && !layer->k_norm && (none || (layer->q_bias && layer->k_bias && layer->v_bias));
}

/* Views into memory at `base` for the host's views, which go to `items`. */
static void make_placed_views(const bs_model *model, const bs_shard *shard, bs_type type, char *base,
                              bs_weights *weights, bs_upload_item *items)
{
    uint64_t at = 0;
    for (int i = 0; i < bs_model_n_matrices(model); i++) {
        if (bs_matrix_begins_group(i)) at = bs_matrix_group_at(at);
        put(&items[i], matrix_slot(weights, i), type, base, &at);
    }
    for (int l = 0; l < weights->n_layers; l++) {
        bs_layer_weights *w = &weights->layers[l];
        if (can_join_qkv(&model->layers[l])) w->qkv = join(&w->q, w->q.n_rows + w->k.n_rows + w->v.n_rows);
        w->gate_up = join(&w->gate, w->gate.n_rows + w->up.n_rows);
    }
    if (!model->desc.tied_output) return;
    weights->output = join(&weights->embedding, shard->vocab.n);
    weights->output.data = base + (uint64_t)shard->vocab.first * weights->output.row_bytes;
}

/* The same items of a random model: nothing comes from a file. */
static bs_status draw(const bs_model *model, bs_device *device, const bs_upload_item *items, int n_items,
                      bs_type type, void (*progress)(void *context, uint64_t done, uint64_t total),
                      void *context)
{
    bs_stream *stream;
    bs_status status = BS_STATUS_OK;
    uint64_t done = 0, total = 0;
    BS_TRY(bs_stream_create(device, &stream));
    for (int i = 0; i < n_items; i++)
        total += 2 * (uint64_t)items[i].from.n_rows * (uint64_t)items[i].from.n_cols;
    for (int i = 0; i < n_items; i++) {
        const bs_weight *from = &items[i].from;
        BS_TRY_GOTO(bs_random_model_fill(model, stream, from, type, items[i].to, 2 * (size_t)from->n_cols),
                    err_stream);
        done += 2 * (uint64_t)from->n_rows * (uint64_t)from->n_cols;
        if (progress && i + 1 < n_items) progress(context, done, total);
    }
    BS_TRY_GOTO(bs_stream_sync(stream), err_stream);
    if (progress) progress(context, total, total);
err_stream:
    bs_stream_destroy(stream);
    return status;
}

static bs_status place_in_memory(const bs_model *model, bs_device *device, const bs_shard *shard,
                                 bs_type type, void (*progress)(void *context, uint64_t done, uint64_t total),
                                 void *context, bs_weights *weights)
{
    const int n_items = bs_model_n_matrices(model);
    bs_upload_item *items = calloc((size_t)n_items, sizeof *items);
    if (!items) return bs_fail(BS_STATUS_NOMEM, "no memory for the list of %d matrices", n_items);
    bs_status status;
    BS_TRY_GOTO(bs_buffer_alloc(device, bs_shard_matrix_bytes(model, shard), "weights", &weights->matrices),
                done);
    make_placed_views(model, shard, type, bs_buffer_at(weights->matrices, 0), weights, items);
    if (bs_model_is_random(model)) {
        BS_TRY_GOTO(draw(model, device, items, n_items, type, progress, context), done);
    } else {
        BS_TRY_GOTO(bs_upload(device, items, n_items, type, progress, context), done);
    }
done:
    free(items);
    return status;
}

/* ---- placing ----------------------------------------------------------------------------------------------
 */

bs_type bs_model_act_type(const bs_model *model, const bs_device *device, bs_type asked)
{
    const bs_device_info *info = bs_device_get_info(device);
    if (info->kind == BS_DEVICE_CPU) return info->act_type;
    if (asked == BS_TYPE_F16 || asked == BS_TYPE_BF16) return asked;
    return model->layers[0].q->type == BS_TYPE_BF16 ? BS_TYPE_BF16 : BS_TYPE_F16;
}

bs_status bs_weights_place(const bs_model *model, bs_device *device, const bs_shard *shard, bs_type type,
                           void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                           bs_weights **out)
{
    bs_status status;
    size_t n_layers = (size_t)model->desc.n_layers;
    bs_weights *weights = calloc(1, sizeof *weights + n_layers * sizeof weights->layers[0]);
    if (!weights) return bs_fail(BS_STATUS_NOMEM, "no memory for the weights of %zu layers", n_layers);
    weights->n_layers = (int)n_layers;
    const int output = 1 + BS_MATRIX_COUNT * weights->n_layers;
    for (int i = 0; i <= output; i++) *matrix_slot(weights, i) = bs_model_matrix(model, shard, i);
    BS_TRY_GOTO(place_vectors(model, shard, device, weights), err_free);
    if (bs_model_is_mapped(model, device)) {
        loading load = {
            .progress = progress, .context = context, .page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE)};
        bring_in_all(model, weights, &load);
    } else {
        if (bs_device_get_info(device)->kind == BS_DEVICE_CPU) type = BS_TYPE_BF16;
        BS_TRY_GOTO(place_in_memory(model, device, shard, type, progress, context, weights), err_free);
    }
    for (int i = 1; i <= output; i++) {
        const bs_weight *view = matrix_slot(weights, i);
        weights->step_bytes += (uint64_t)view->n_rows * bs_weight_row_span(view);
    }
    *out = weights;
    return BS_STATUS_OK;
err_free:
    bs_weights_free(weights);
    return status;
}

void bs_weights_free(bs_weights *weights)
{
    if (!weights) return;
    bs_buffer_free(weights->matrices);
    bs_buffer_free(weights->buffer);
    free(weights);
}

const bs_layer_weights *bs_weights_layer(const bs_weights *weights, int layer)
{
    return &weights->layers[layer];
}

const bs_weight *bs_weights_embedding(const bs_weights *weights)
{
    return &weights->embedding;
}

const bs_weight *bs_weights_output(const bs_weights *weights)
{
    return &weights->output;
}

const float *bs_weights_output_norm(const bs_weights *weights)
{
    return weights->output_norm;
}

const double *bs_weights_inv_freq(const bs_weights *weights)
{
    return weights->inv_freq;
}

uint64_t bs_weights_step_bytes(const bs_weights *weights)
{
    return weights->step_bytes;
}
