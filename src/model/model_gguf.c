/* model_gguf.c: what a GGUF file describes, checked against its own tensors.
 *
 * Nothing is guessed: every tensor of the file must be one that this architecture has, in the shape that the
 * keys promise, and what would change the arithmetic unseen (an expert count, a RoPE scaling that is not
 * known here, a bias of another matrix than q, k, v) is refused by name. Traps of the format (facts): the rows of
 * Q and K of llama (which Mistral's files call themselves too) and smollm3 are stored permuted, so RoPE pairs
 * neighbours (2i, 2i + 1), those of qwen2 and qwen3 are not; Llama-3's frequency scaling is baked into
 * `rope_freqs.weight`, which divides inv_freq; a file without `output.weight` uses the embedding table as its
 * output head; smollm3 has no key for the layers without RoPE, every fourth is one.
 */
#include "config.h"
#include "src/model/gguf_private.h"
#include "src/model/model_private.h"
#include "src/model/rope.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef enum presence { ABSENT, OPTIONAL, NEEDED } presence;
typedef struct architecture {
    const char *name;
    bool interleaved; /* Q and K are permuted */
    presence qkv_bias, qk_norm;
    bool window;      /* may have one, in every layer */
    int no_rope_step; /* each so many'th layer has no RoPE; 0: all have it */
} architecture;

static const architecture architectures[] = {
    {"llama", .interleaved = true, .qkv_bias = OPTIONAL, .window = true},
    {"qwen2", .qkv_bias = NEEDED},
    {"qwen3", .qk_norm = NEEDED},
    {"smollm3", .interleaved = true, .no_rope_step = 4},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

static const architecture *find_architecture(bs_string name)
{
    for (int i = 0; i < N_ARCHITECTURES; i++)
        if (bs_string_is(name, architectures[i].name)) return &architectures[i];
    return NULL;
}

static const architecture *arch_of(const bs_model *model)
{
    return find_architecture((bs_string){model->desc.architecture, strlen(model->desc.architecture)});
}

/* ---- keys -------------------------------------------------------------------------------------------------
 */

/* "llama." + rest; valid until the next call of the same thread. */
static const char *arch_key(const bs_model *model, const char *rest)
{
    static _Thread_local char key[128];
    snprintf(key, sizeof key, "%s.%s", model->desc.architecture, rest);
    return key;
}

/* A required integer 1 … max. */
static bs_status get_size(const bs_model *model, const char *rest, int max, int *out)
{
    int64_t value = 0;
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, rest), 1, max, &value, NULL));
    *out = (int)value;
    return BS_STATUS_OK;
}

/* An optional integer that, if it is there, must be `wanted`. */
static bs_status expect_int(const bs_model *model, const char *rest, int64_t wanted)
{
    bool found;
    int64_t value = wanted;
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, rest), INT64_MIN, INT64_MAX, &value, &found));
    if (value == wanted) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s is %" PRId64 ": only %" PRId64 " is supported here",
                   bs_gguf_path(model->gguf), arch_key(model, rest), value, wanted);
}

/* As much of the text as fits, cut between characters. */
static void copy_text(char *out, size_t bytes, bs_string text)
{
    size_t n = text.bytes < bytes ? text.bytes : bytes - 1;
    while (n < text.bytes && n > 0 && (text.text[n] & 0xc0) == 0x80) n--;
    memcpy(out, text.text, n);
    out[n] = 0;
}

static bs_status read_names(bs_model *model)
{
    bs_model_desc *desc = &model->desc;
    const char *path = bs_gguf_path(model->gguf), *slash = strrchr(path, '/');
    bs_string text = {"", 0};
    bool found;
    BS_TRY(bs_gguf_get_string(model->gguf, "general.architecture", &text, NULL));
    if (!find_architecture(text))
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "%s: general.architecture is %.*s: must be llama, qwen2, qwen3 or smollm3", path,
                       text.bytes < 64 ? (int)text.bytes : 64, text.text);
    copy_text(desc->architecture, sizeof desc->architecture, text);
    BS_TRY(bs_gguf_get_string(model->gguf, "general.name", &text, &found));
    if (!found || text.bytes == 0 || !bs_gguf_is_text(text)) {
        text.text = slash ? slash + 1 : path;
        text.bytes = strlen(text.text);
    }
    copy_text(desc->name, sizeof desc->name, text);
    return BS_STATUS_OK;
}

/* Of Mistral, in every layer; other architectures' files have no key for the layers that it is of. */
static bs_status read_window(const bs_model *model, int *out)
{
    int64_t window = 0;
    bool found;
    *out = 0;
    if (!arch_of(model)->window) return expect_int(model, "attention.sliding_window", 0);
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "attention.sliding_window"), 0, INT32_MAX, &window,
                           &found));
    *out = (int)window;
    return BS_STATUS_OK;
}

static bs_status read_sizes(bs_model *model)
{
    bs_model_desc *desc = &model->desc;
    const char *path = bs_gguf_path(model->gguf);
    BS_TRY(get_size(model, "block_count", BS_MODEL_MAX_LAYERS, &desc->n_layers));
    BS_TRY(get_size(model, "context_length", INT32_MAX, &desc->context_length));
    BS_TRY(get_size(model, "embedding_length", BS_MODEL_MAX_WIDTH, &desc->n_hidden));
    BS_TRY(get_size(model, "feed_forward_length", BS_MODEL_MAX_WIDTH, &desc->n_ffn));
    BS_TRY(get_size(model, "attention.head_count", BS_MODEL_MAX_HEADS, &desc->n_heads));
    int64_t n_kv_heads = desc->n_heads, head_dim = desc->n_hidden / desc->n_heads;
    bool found;
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "attention.head_count_kv"), 1, desc->n_heads,
                           &n_kv_heads, &found));
    if (desc->n_heads % n_kv_heads != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %" PRId64 ": must divide the %d query heads", path,
                       arch_key(model, "attention.head_count_kv"), n_kv_heads, desc->n_heads);
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "attention.key_length"), 1, BS_MODEL_MAX_WIDTH,
                           &head_dim, &found));
    if (!found && desc->n_hidden % desc->n_heads != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %d: must divide the embedding length %d", path,
                       arch_key(model, "attention.head_count"), desc->n_heads, desc->n_hidden);
    if (head_dim != 64 && head_dim != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: head size %s is %" PRId64 ": must be 64 or 128", path,
                       arch_key(model, "attention.key_length"), head_dim);
    desc->n_kv_heads = (int)n_kv_heads;
    desc->head_dim = (int)head_dim;
    desc->attn_scale = 1.0f / sqrtf((float)head_dim);
    BS_TRY(expect_int(model, "attention.value_length", head_dim));
    return expect_int(model, "expert_count", 0);
}

static bs_status read_norm(bs_model *model)
{
    double eps = 0;
    const char *key = arch_key(model, "attention.layer_norm_rms_epsilon");
    BS_TRY(bs_gguf_get_float(model->gguf, key, &eps, NULL));
    if (!(eps >= 0 && eps <= 0.1))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %g: must be 0 … 0.1", bs_gguf_path(model->gguf), key,
                       eps);
    model->desc.rms_eps = (float)eps;
    return BS_STATUS_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------------------
 */

static bs_status claim(bs_model *model, const char *name, int64_t cols, int64_t rows, const bs_tensor **out)
{
    return bs_model_claim(model, bs_gguf_find_tensor(model->gguf, name), name, cols, rows, out);
}

static bs_status claim_layer(bs_model *model, int layer)
{
    const architecture *arch = arch_of(model);
    for (bs_part part = 0; part < BS_PART_COUNT; part++) {
        const bs_part_slot slot = bs_model_part(model, layer, part);
        const presence wanted = bs_part_is_bias(part)        ? arch->qkv_bias
                                : bs_part_is_head_norm(part) ? arch->qk_norm
                                                             : NEEDED;
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s", layer, slot.name);
        if (wanted == ABSENT) continue;
        if (wanted == OPTIONAL && !bs_gguf_find_tensor(model->gguf, name)) continue;
        BS_TRY(claim(model, name, slot.cols, slot.rows, slot.out));
    }
    if (arch->no_rope_step) model->layer_desc[layer].rope = (layer + 1) % arch->no_rope_step != 0;
    return BS_STATUS_OK;
}

/* A tensor that was not asked for belongs to an architecture we would compute wrongly. */
static bs_status refuse_unknown(const bs_model *model)
{
    for (int64_t i = 0; i < bs_gguf_n_tensors(model->gguf); i++) {
        const bs_tensor *tensor = bs_gguf_tensor_at(model->gguf, i);
        bs_string name = tensor->name;
        if (!bs_string_is(name, "rope_freqs.weight") && !bs_model_has_claimed(model, tensor))
            return bs_fail(BS_STATUS_UNSUPPORTED, "%s: tensor %.*s: not one that a supported %s model has",
                           bs_gguf_path(model->gguf), (int)name.bytes, name.text, model->desc.architecture);
    }
    return BS_STATUS_OK;
}

/* The embedding table gives the size of the vocabulary. */
static bs_status claim_vocabulary(bs_model *model)
{
    bs_model_desc *desc = &model->desc;
    const char *path = bs_gguf_path(model->gguf);
    const bs_tensor *table = bs_gguf_find_tensor(model->gguf, "token_embd.weight");
    int64_t n_vocab = table ? table->dims[1] : 1, key;
    if (n_vocab > BS_MODEL_MAX_VOCAB)
        return bs_fail(BS_STATUS_FORMAT, "%s: rows of tensor token_embd.weight are %" PRId64 ": more than %d",
                       path, n_vocab, BS_MODEL_MAX_VOCAB);
    BS_TRY(claim(model, "token_embd.weight", desc->n_hidden, n_vocab, &model->embedding));
    bool found;
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "vocab_size"), 1, BS_MODEL_MAX_VOCAB, &key, &found));
    if (found && key != n_vocab)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: %s is %" PRId64 ": tensor token_embd.weight has %" PRId64 " rows", path,
                       arch_key(model, "vocab_size"), key, n_vocab);
    desc->n_vocab = (int)n_vocab;
    model->output = model->embedding;
    desc->tied_output = bs_gguf_find_tensor(model->gguf, "output.weight") == NULL;
    if (!desc->tied_output) BS_TRY(claim(model, "output.weight", desc->n_hidden, n_vocab, &model->output));
    return claim(model, "output_norm.weight", desc->n_hidden, 0, &model->output_norm);
}

static bs_status claim_tensors(bs_model *model)
{
    int window;
    BS_TRY(read_window(model, &window));
    BS_TRY(bs_model_alloc_layers(model, window));
    BS_TRY(claim_vocabulary(model));
    for (int l = 0; l < model->desc.n_layers; l++) BS_TRY(claim_layer(model, l));
    bool has_freqs = bs_gguf_find_tensor(model->gguf, "rope_freqs.weight") != NULL;
    if (model->n_tensors + has_freqs != bs_gguf_n_tensors(model->gguf)) BS_TRY(refuse_unknown(model));
    bs_model_count_params(model);
    return BS_STATUS_OK;
}

/* ---- RoPE -------------------------------------------------------------------------------------------------
 */

static bs_status get_factor(const bs_model *model, const char *rest, double min, double max, double *out,
                            bool *found)
{
    const char *key = arch_key(model, rest);
    BS_TRY(bs_gguf_get_float(model->gguf, key, out, found));
    if ((found && !*found) || (*out >= min && *out <= max)) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_FORMAT, "%s: %s is %g: must be %g … %g", bs_gguf_path(model->gguf), key, *out,
                   min, max);
}

/* attn_factor multiplies what YaRN gives by itself. */
static bs_status read_yarn(const bs_model *model, bs_rope_scaling *s)
{
    int64_t context = model->desc.context_length;
    double factor = 1, unused = 1;
    bool found;
    s->kind = BS_ROPE_YARN;
    s->beta_fast = 32;
    s->beta_slow = 1;
    BS_TRY(get_factor(model, "rope.scaling.factor", 1, 1e6, &s->factor, NULL));
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "rope.scaling.original_context_length"), 1, INT32_MAX,
                           &context, &found));
    s->original_context = (double)context;
    BS_TRY(get_factor(model, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &s->beta_fast, &found));
    BS_TRY(get_factor(model, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &s->beta_slow, &found));
    if (!(s->beta_slow < s->beta_fast))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %g: must be below yarn_beta_fast %g",
                       bs_gguf_path(model->gguf), arch_key(model, "rope.scaling.yarn_beta_slow"),
                       s->beta_slow, s->beta_fast);
    BS_TRY(get_factor(model, "rope.scaling.yarn_ext_factor", 1, 1, &unused, &found));
    unused = 0;
    BS_TRY(get_factor(model, "rope.scaling.yarn_log_multiplier", 0, 0, &unused, &found));
    BS_TRY(get_factor(model, "rope.scaling.attn_factor", 1e-3, 1e3, &factor, &found));
    s->attention_factor = factor * bs_rope_yarn_scale(s->factor, 1);
    return BS_STATUS_OK;
}

/* Older files write rope.scale_linear alone. */
static bs_status read_rope_scaling(const bs_model *model, bs_rope_scaling *s)
{
    bs_string type = {"none", 4};
    bool found;
    BS_TRY(get_factor(model, "rope.scale_linear", 1e-3, 1e6, &s->factor, &found));
    if (found) s->kind = BS_ROPE_LINEAR;
    BS_TRY(bs_gguf_get_string(model->gguf, arch_key(model, "rope.scaling.type"), &type, &found));
    if (bs_string_is(type, "none")) return BS_STATUS_OK;
    if (bs_string_is(type, "yarn")) return read_yarn(model, s);
    if (!bs_string_is(type, "linear"))
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s is %.*s: only none, linear and yarn are supported",
                       bs_gguf_path(model->gguf), arch_key(model, "rope.scaling.type"),
                       type.bytes < 64 ? (int)type.bytes : 64, type.text);
    s->kind = BS_ROPE_LINEAR;
    return get_factor(model, "rope.scaling.factor", 1e-3, 1e6, &s->factor, NULL);
}

/* inv_freq[i] /= rope_freqs.weight[i], where the file has it. */
static bs_status apply_rope_freqs(bs_model *model)
{
    bs_model_desc *desc = &model->desc;
    const char *path = bs_gguf_path(model->gguf);
    const bs_tensor *t = bs_gguf_find_tensor(model->gguf, "rope_freqs.weight");
    if (!t) return BS_STATUS_OK;
    BS_TRY(bs_model_check_shape(model, t, "rope_freqs.weight", desc->n_rot / 2, 0));
    if (t->type != BS_TYPE_F32)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: type of tensor rope_freqs.weight is %s: must be F32", path,
                       bs_type_name(t->type));
    for (int i = 0; i < desc->n_rot / 2; i++) {
        float factor;
        memcpy(&factor, (const char *)t->data + sizeof factor * (size_t)i, sizeof factor);
        if (!(factor >= 1e-3f && factor <= 1e6f))
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: tensor rope_freqs.weight[%d] is %g: must be 0.001 … 1000000", path, i,
                           (double)factor);
        desc->inv_freq[i] /= factor;
    }
    return BS_STATUS_OK;
}

static bs_status read_rope(bs_model *model)
{
    bs_model_desc *desc = &model->desc;
    const char *path = bs_gguf_path(model->gguf);
    bs_rope_scaling scaling = {.kind = BS_ROPE_PLAIN, .factor = 1};
    int64_t n_rot = desc->head_dim;
    bool found;
    desc->rope_theta = 10000;
    desc->rope_interleaved = arch_of(model)->interleaved;
    BS_TRY(bs_gguf_get_float(model->gguf, arch_key(model, "rope.freq_base"), &desc->rope_theta, &found));
    if (!(desc->rope_theta > 1 && desc->rope_theta <= 1e15))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %g: must be above 1 and at most 1e15", path,
                       arch_key(model, "rope.freq_base"), desc->rope_theta);
    BS_TRY(bs_gguf_get_int(model->gguf, arch_key(model, "rope.dimension_count"), 2, desc->head_dim, &n_rot,
                           &found));
    if (n_rot % 2 != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %" PRId64 ": must be even", path,
                       arch_key(model, "rope.dimension_count"), n_rot);
    desc->n_rot = (int)n_rot;
    BS_TRY(read_rope_scaling(model, &scaling));
    bs_rope_fill(desc, &scaling);
    return apply_rope_freqs(model);
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

bs_status bs_model_open_gguf(bs_gguf *gguf, bs_model **out)
{
    bs_model *model;
    bs_status status = bs_model_create(bs_gguf_path(gguf), &model);
    if (status != BS_STATUS_OK) {
        bs_gguf_close(gguf);
        return status;
    }
    model->gguf = gguf;
    model->desc.file_bytes = bs_gguf_file_bytes(gguf);
    BS_TRY_GOTO(read_names(model), err_close);
    BS_TRY_GOTO(read_sizes(model), err_close);
    BS_TRY_GOTO(read_norm(model), err_close);
    BS_TRY_GOTO(read_rope(model), err_close);
    BS_TRY_GOTO(claim_tensors(model), err_close);
    *out = model;
    return BS_STATUS_OK;
err_close:
    bs_model_close(model);
    return status;
}
