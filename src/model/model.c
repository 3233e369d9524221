/* model.c: an open model, whatever described it: its tensors, its layers, closing.
 *
 * A reader (model_gguf.c and its like) fills the description and claims the tensors that it promises; behind it
 * only the description and the claimed tensors count.
 */
#include "config.h"
#include "src/model/model_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bs_status bs_model_create(const char *path, bs_model **out)
{
    bs_model *model = calloc(1, sizeof *model);
    if (!model || !(model->path = strdup(path))) {
        free(model);
        return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", path);
    }
    *out = model;
    return BS_STATUS_OK;
}

bs_status bs_model_alloc_layers(bs_model *model, int window)
{
    enum { OUTSIDE = 3 };
    size_t n = (size_t)model->desc.n_layers;
    model->layers = calloc(n, sizeof *model->layers);
    model->layer_desc = calloc(n, sizeof *model->layer_desc);
    model->tensors = calloc(OUTSIDE + BS_PART_COUNT * n, sizeof *model->tensors);
    if (!model->layers || !model->layer_desc || !model->tensors)
        return bs_fail(BS_STATUS_NOMEM, "%s: no memory for %zu layers", model->path, n);
    for (size_t l = 0; l < n; l++) model->layer_desc[l] = (bs_layer_desc){window, true};
    model->desc.layers = model->layer_desc;
    return BS_STATUS_OK;
}

bs_part_slot bs_model_part(bs_model *model, int layer, bs_part part)
{
    const bs_model_desc *desc = &model->desc;
    bs_model_layer *l = &model->layers[layer];
    const int64_t hidden = desc->n_hidden, ffn = desc->n_ffn, D = desc->head_dim, q = desc->n_heads * D,
                  kv = desc->n_kv_heads * D;
    const bs_part_slot slots[BS_PART_COUNT] = {
        [BS_PART_ATTN_NORM] = {"attn_norm.weight", &l->attn_norm, hidden, 0},
        [BS_PART_Q] = {"attn_q.weight", &l->q, hidden, q},
        [BS_PART_K] = {"attn_k.weight", &l->k, hidden, kv},
        [BS_PART_V] = {"attn_v.weight", &l->v, hidden, kv},
        [BS_PART_O] = {"attn_output.weight", &l->o, q, hidden},
        [BS_PART_FFN_NORM] = {"ffn_norm.weight", &l->ffn_norm, hidden, 0},
        [BS_PART_GATE] = {"ffn_gate.weight", &l->gate, hidden, ffn},
        [BS_PART_UP] = {"ffn_up.weight", &l->up, hidden, ffn},
        [BS_PART_DOWN] = {"ffn_down.weight", &l->down, ffn, hidden},
        [BS_PART_Q_NORM] = {"attn_q_norm.weight", &l->q_norm, D, 0},
        [BS_PART_K_NORM] = {"attn_k_norm.weight", &l->k_norm, D, 0},
        [BS_PART_Q_BIAS] = {"attn_q.bias", &l->q_bias, q, 0},
        [BS_PART_K_BIAS] = {"attn_k.bias", &l->k_bias, kv, 0},
        [BS_PART_V_BIAS] = {"attn_v.bias", &l->v_bias, kv, 0},
    };
    return slots[part];
}

static void show_rows_first(const int64_t *dims, int n_dims, char *out, size_t bytes)
{
    int n = 0;
    out[0] = 0;
    for (int d = n_dims - 1; d >= 0; d--)
        n += snprintf(out + n, bytes - (size_t)n, "%s%" PRId64, n ? ", " : "", dims[d]);
}

bs_status bs_model_check_shape(const bs_model *model, const bs_tensor *tensor, const char *name, int64_t cols,
                               int64_t rows)
{
    if (!tensor) return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s is missing", model->path, name);
    const int64_t *dims = tensor->dims, wanted_rows = rows ? rows : 1;
    if (dims[0] == cols && dims[1] == wanted_rows && dims[2] == 1 && dims[3] == 1) return BS_STATUS_OK;
    if (!model->rows_first)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: shape of tensor %s is [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                       "]: the keys of the file ask for [%" PRId64 ", %" PRId64 "]",
                       model->path, name, dims[0], dims[1], dims[2], dims[3], cols, wanted_rows);
    char shape[96], wanted[48];
    show_rows_first(dims, tensor->n_dims, shape, sizeof shape);
    show_rows_first((const int64_t[4]){cols, rows, 1, 1}, rows ? 2 : 1, wanted, sizeof wanted);
    return bs_fail(BS_STATUS_FORMAT, "%s: shape of tensor %s is [%s]: config.json asks for [%s]", model->path,
                   name, shape, wanted);
}

bs_status bs_model_claim(bs_model *model, const bs_tensor *tensor, const char *name, int64_t cols,
                         int64_t rows, const bs_tensor **out)
{
    BS_TRY(bs_model_check_shape(model, tensor, name, cols, rows));
    model->tensors[model->n_tensors++] = tensor;
    *out = tensor;
    return BS_STATUS_OK;
}

bool bs_model_has_claimed(const bs_model *model, const bs_tensor *tensor)
{
    for (int64_t i = 0; i < model->n_tensors; i++)
        if (model->tensors[i] == tensor) return true;
    return false;
}

void bs_model_count_params(bs_model *model)
{
    for (int64_t i = 0; i < model->n_tensors; i++) {
        const int64_t *dims = model->tensors[i]->dims;
        model->desc.n_params += dims[0] * dims[1] * dims[2] * dims[3];
    }
}

bs_status bs_model_open(const char *path, bs_model **out)
{
    bs_gguf *gguf;
    struct stat info;
    if (bs_model_names_random(path)) return bs_model_open_random(path, out);
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return bs_model_open_hf(path, out);
    BS_TRY(bs_gguf_open(path, &gguf));
    return bs_model_open_gguf(gguf, out);
}

void bs_model_close(bs_model *model)
{
    if (!model) return;
    bs_gguf_close(model->gguf);
    bs_safetensors_close(model->safetensors);
    bs_random_model_free(model->random);
    free(model->layers);
    free(model->layer_desc);
    free(model->tensors);
    free(model->path);
    free(model);
}

const bs_model_desc *bs_model_get_desc(const bs_model *model)
{
    return &model->desc;
}

const char *bs_model_path(const bs_model *model)
{
    return model->path;
}

bool bs_model_is_random(const bs_model *model)
{
    return model->random != NULL;
}

bool bs_model_is_mapped(const bs_model *model, const bs_device *device)
{
    return bs_device_get_info(device)->kind == BS_DEVICE_CPU && !bs_model_is_random(model);
}

const bs_gguf *bs_model_gguf(const bs_model *model)
{
    return model->gguf;
}

int64_t bs_model_n_tensors(const bs_model *model)
{
    return model->n_tensors;
}

const bs_tensor *bs_model_tensor_at(const bs_model *model, int64_t i)
{
    return model->tensors[i];
}
