/* random_model.c: a model of random weights that has the shape of a real one, and no file.
 *
 * Memory and time are those of the real model in bf16. What an element is depends on the seed, its tensor and its place in
 * it (kernels/noise.h), so every grid and device has the same model. Matrices exist only where they are placed: here a
 * tensor gets a range of addresses that is reserved and never backed, so that cuts and views are the same arithmetic as
 * for a file, and a view's address says which elements it wants. Vectors are small and drawn at once.
 *
 * Sizes as in make_model.c: the residual keeps its scale, scores have a deviation of about 1.5 and logits one of 3.
 */
#include "config.h"
#include "kernels/noise.h"
#include "src/model/model_private.h"
#include "src/model/rope.h"
#include "src/model/shapes.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const char prefix[] = "random:";

enum { ALIGN = 4096 };
#define SCORE_STD 1.5
#define FFN_GAIN  0.6
#define LOGIT_STD 3.0
#define BIAS_STD  0.1
#define NORM_STD  0.05

/* What an element of a tensor is drawn as, around 0 or, of a norm, around its scale. */
typedef enum fill { MATRIX, NORM, SIGNED_NORM, BIAS } fill;

/* How a tensor is drawn. */
typedef struct drawing {
    fill fill;
    float scale; /* standard deviation, or the mean of a norm */
} drawing;

struct bs_random_model {
    uint64_t seed;
    char *space; /* PROT_NONE: addresses of the matrices */
    size_t space_bytes;
    float *vectors; /* contents of the vectors */
    int64_t n_tensors;
    drawing *drawings; /* [n_tensors] */
    bs_tensor tensors[];
};

/* ---- tensors ----------------------------------------------------------------------------------------------
 */

/* While tensors are laid out: what is taken of addresses and of vectors. */
typedef struct layout {
    bs_model *model;
    bs_random_model *random;
    size_t space, n_floats;
} layout;

static bs_status add_tensor(layout *at, const bs_part_slot *slot, fill fill, double scale)
{
    bs_random_model *random = at->random;
    bs_tensor *t = &random->tensors[random->n_tensors];
    const int64_t rows = fill == MATRIX ? slot->rows : 1;
    *t = (bs_tensor){.name = {slot->name, strlen(slot->name)},
                     .n_dims = fill == MATRIX ? 2 : 1,
                     .dims = {slot->cols, rows, 1, 1},
                     .type = fill == MATRIX ? BS_TYPE_BF16 : BS_TYPE_F32};
    t->bytes = (uint64_t)slot->cols * (uint64_t)rows * (uint64_t)bs_type_block_bytes(t->type);
    random->drawings[random->n_tensors++] = (drawing){fill, (float)scale};
    at->model->desc.file_bytes += t->bytes;
    if (fill == MATRIX) {
        if (random->space) t->data = random->space + at->space;
        at->space += (t->bytes + ALIGN - 1) / ALIGN * ALIGN;
    } else {
        if (random->vectors) t->data = random->vectors + at->n_floats;
        at->n_floats += (size_t)slot->cols;
    }
    return bs_model_claim(at->model, t, slot->name, slot->cols, slot->rows, slot->out);
}

/* Standard deviation of a matrix of a layer: what comes out has the scale of what goes in, but for scores and the FFN. */
static double std_of(bs_part part, int64_t cols)
{
    const double width = sqrt((double)cols);
    if (part == BS_PART_DOWN) return FFN_GAIN / width;
    return part == BS_PART_Q || part == BS_PART_K ? 1 / width * sqrt(SCORE_STD) : 1 / width;
}

static bs_status add_layer(layout *at, const bs_model_shape *s, int layer)
{
    for (bs_part part = 0; part < BS_PART_COUNT; part++) {
        const bs_part_slot slot = bs_model_part(at->model, layer, part);
        if (bs_part_is_bias(part)) {
            if (s->qkv_bias) BS_TRY(add_tensor(at, &slot, BIAS, BIAS_STD));
        } else if (slot.rows > 0) {
            BS_TRY(add_tensor(at, &slot, MATRIX, std_of(part, slot.cols)));
        } else if (s->qk_norm || !bs_part_is_head_norm(part)) {
            BS_TRY(add_tensor(at, &slot, NORM, 1));
        }
    }
    return BS_STATUS_OK;
}

/* The signs of the last norm are random, else a tied model's best guess would be the token it has just read. */
static bs_status add_tensors(layout *at, const bs_model_shape *s)
{
    bs_model *model = at->model;
    const double wide = 1 / sqrt((double)s->n_hidden), logits = LOGIT_STD * (s->tied_output ? wide : 1);
    const bs_part_slot table = {"token_embd.weight", &model->embedding, s->n_hidden, s->n_vocab},
                       norm = {"output_norm.weight", &model->output_norm, s->n_hidden, 0},
                       head = {"output.weight", &model->output, s->n_hidden, s->n_vocab};
    at->space = at->n_floats = 0;
    at->random->n_tensors = model->n_tensors = 0;
    model->desc.file_bytes = 0;
    BS_TRY(add_tensor(at, &table, MATRIX, 1));
    for (int l = 0; l < s->n_layers; l++) BS_TRY(add_layer(at, s, l));
    BS_TRY(add_tensor(at, &norm, SIGNED_NORM, logits));
    model->output = model->embedding;
    return s->tied_output ? BS_STATUS_OK : add_tensor(at, &head, MATRIX, wide);
}

static void draw_vectors(bs_random_model *random)
{
    for (int64_t i = 0; i < random->n_tensors; i++) {
        const drawing how = random->drawings[i];
        float *out = (float *)random->tensors[i].data; /* in random->vectors, of a vector */
        for (int64_t c = 0; how.fill != MATRIX && c < random->tensors[i].dims[0]; c++) {
            uint32_t words[4];
            bs_noise_of_tensor(random->seed, (uint32_t)i, (uint64_t)c, words);
            float x = (float)bs_noise_sum(words[0]) / BS_NOISE_SUM_STD;
            float sign = how.fill == SIGNED_NORM && words[1] >> 31 ? -1.0f : 1.0f;
            out[c] = how.scale * (how.fill == BIAS ? x : sign * (1.0f + (float)NORM_STD * x));
        }
    }
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

static void describe(bs_model *model, const bs_model_shape *s)
{
    bs_model_desc *d = &model->desc;
    snprintf(d->architecture, sizeof d->architecture, "%s", s->architecture);
    snprintf(d->name, sizeof d->name, "%s", model->path);
    d->n_layers = s->n_layers;
    d->n_hidden = s->n_hidden;
    d->n_heads = s->n_heads;
    d->n_kv_heads = s->n_kv_heads;
    d->head_dim = d->n_rot = s->head_dim;
    d->n_ffn = s->n_ffn;
    d->n_vocab = s->n_vocab;
    d->context_length = s->context_length;
    d->rms_eps = (float)s->rms_eps;
    d->attn_scale = 1.0f / sqrtf((float)s->head_dim);
    d->tied_output = s->tied_output;
    d->rope_theta = s->rope_theta;
    bs_rope_fill(d, &(bs_rope_scaling){.kind = s->llama3_factor > 0 ? BS_ROPE_LLAMA3 : BS_ROPE_PLAIN,
                                       .factor = s->llama3_factor > 0 ? s->llama3_factor : 1,
                                       .original_context = 8192,
                                       .low_freq_factor = 1,
                                       .high_freq_factor = 4});
}

static bs_status fill_model(bs_model *model, const bs_model_shape *s, uint64_t seed)
{
    const int64_t most = 3 + (int64_t)BS_PART_COUNT * s->n_layers;
    bs_random_model *random = calloc(1, sizeof *random + (size_t)most * sizeof random->tensors[0]);
    if (!random) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", model->path);
    model->random = random;
    random->seed = seed;
    random->drawings = calloc((size_t)most, sizeof *random->drawings);
    if (!random->drawings) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", model->path);
    describe(model, s);
    BS_TRY(bs_model_alloc_layers(model, s->window));
    for (int l = 0; l < s->n_layers && s->no_rope_interval > 0; l++)
        model->layer_desc[l].rope = (l + 1) % s->no_rope_interval != 0;
    layout at = {.model = model, .random = random};
    BS_TRY(add_tensors(&at, s)); /* once for the sizes, then for good */
    random->vectors = calloc(at.n_floats, sizeof *random->vectors);
    void *space = mmap(NULL, at.space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED || !random->vectors) {
        if (space != MAP_FAILED) munmap(space, at.space);
        return bs_fail(BS_STATUS_NOMEM, "%s: %zu bytes of addresses could not be had", model->path, at.space);
    }
    random->space = space;
    random->space_bytes = at.space;
    BS_TRY(add_tensors(&at, s));
    draw_vectors(random);
    bs_model_count_params(model);
    return BS_STATUS_OK;
}

static bs_status unknown_name(const char *path)
{
    char names[1024] = "";
    for (int i = 0, n = 0; bs_model_shape_at(i) && n < (int)sizeof names; i++)
        n += snprintf(names + n, sizeof names - (size_t)n, "%s%s", i ? ", " : "", bs_model_shape_at(i)->name);
    return bs_fail(BS_STATUS_USAGE, "%s: must be random:NAME or random:NAME:SEED, NAME one of %s", path,
                   names);
}

bool bs_model_names_random(const char *path)
{
    return strncmp(path, prefix, strlen(prefix)) == 0;
}

bs_status bs_model_open_random(const char *path, bs_model **out)
{
    char name[64];
    const char *text = path + strlen(prefix), *colon = strchr(text, ':');
    const size_t bytes = colon ? (size_t)(colon - text) : strlen(text);
    uint64_t seed = 1;
    if (bytes >= sizeof name) return unknown_name(path);
    memcpy(name, text, bytes);
    name[bytes] = 0;
    if (colon) {
        char *end;
        errno = 0;
        seed = strtoull(colon + 1, &end, 10);
        if (colon[1] < '0' || colon[1] > '9' || *end || errno != 0) return unknown_name(path);
    }
    const bs_model_shape *shape = bs_model_shape_find(name);
    if (!shape) return unknown_name(path);
    bs_model *model;
    BS_TRY(bs_model_create(path, &model));
    bs_status status = fill_model(model, shape, seed);
    if (status != BS_STATUS_OK) {
        bs_model_close(model);
        return status;
    }
    *out = model;
    return BS_STATUS_OK;
}

void bs_random_model_free(bs_random_model *random)
{
    if (!random) return;
    if (random->space) munmap(random->space, random->space_bytes);
    free(random->vectors);
    free(random->drawings);
    free(random);
}

/* ---- placing ----------------------------------------------------------------------------------------------
 */

bs_status bs_random_model_fill(const bs_model *model, bs_stream *stream, const bs_weight *view, bs_type type,
                               void *out, size_t row_bytes)
{
    const bs_random_model *random = model->random;
    const char *data = view->data;
    int64_t i = 0;
    if (view->n_rows == 0 || view->n_cols == 0) return BS_STATUS_OK;
    while (random->drawings[i].fill != MATRIX || data < (const char *)random->tensors[i].data ||
           data >= (const char *)random->tensors[i].data + random->tensors[i].bytes)
        i++; /* a view is of one of them */
    return bs_op_random_fill(
        stream, &(bs_random_fill_args){.type = type,
                                       .out = out,
                                       .row_bytes = row_bytes,
                                       .n_rows = view->n_rows,
                                       .n_cols = view->n_cols,
                                       .first = (data - (const char *)random->tensors[i].data) / 2,
                                       .ld = random->tensors[i].dims[0],
                                       .seed = random->seed,
                                       .tensor = (uint32_t)i,
                                       .std = random->drawings[i].scale});
}
