/* model_hf.c: what a Hugging Face directory describes: config.json against the tensors of its safetensors files.
 *
 * As with GGUF nothing is guessed: the architecture must be one of the table, every tensor must be one that it has,
 * in the shape that config.json promises, and keys that would change the arithmetic unseen (a bias where there is
 * none here, another activation, a RoPE scaling, a quantization) are refused by name. Keys that are missing take the
 * defaults of the configuration class in transformers, where that writes files without them.
 *
 * Q and K are stored as they are trained: RoPE turns halves (i, i + n_rot/2), whereas GGUF's llama turns neighbours.
 */
#include "config.h"
#include "src/model/json_file.h"
#include "src/model/model_private.h"
#include "src/model/rope.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 16 << 20 };

typedef struct architecture {
    const char *model_type, *class_name;
    bool qkv_bias, qk_norm;
    bool tied;           /* when tie_word_embeddings is missing */
    bool window_flag;    /* sliding_window counts only with use_sliding_window, and not in every layer */
    bool no_rope_layers; /* some have no RoPE; these have the window where layer_types are missing */
    int window;          /* when sliding_window is missing; −1: the architecture has none */
    int head_dim;        /* when head_dim is missing; 0: hidden / heads */
    double rope_theta;   /* when rope_theta is missing */
} architecture;

static const architecture architectures[] = {
    {"llama", "LlamaForCausalLM", .window = -1, .rope_theta = 1e4},
    {"mistral", "MistralForCausalLM", .window = 4096, .rope_theta = 1e4},
    {"qwen2", "Qwen2ForCausalLM", .qkv_bias = true, .window_flag = true, .window = 4096, .rope_theta = 1e4},
    {"qwen3", "Qwen3ForCausalLM", .qk_norm = true, .window_flag = true, .window = 4096, .head_dim = 128,
     .rope_theta = 1e4},
    {"smollm3", "SmolLM3ForCausalLM", .tied = true, .window_flag = true, .no_rope_layers = true, .window = 0,
     .rope_theta = 2e6},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

typedef struct reader {
    bs_model *model;
    bs_model_desc *desc;
    const architecture *arch;
    bs_json json; /* config.json */
} reader;

/* ---- config.json ------------------------------------------------------------------------------------------
 */

static bs_status unsupported_text(const bs_json *json, const char *key, bs_string value, const char *wanted)
{
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s%s is %.*s: must be %s", json->path, json->where, key,
                   bs_json_shown(value), value.text, wanted);
}

static bs_status read_architecture(reader *r)
{
    bs_string type;
    json_t *classes = NULL;
    bool found;
    BS_TRY(bs_json_get_string(&r->json, "model_type", &type, NULL));
    for (int i = 0; i < N_ARCHITECTURES && !r->arch; i++)
        if (bs_string_is(type, architectures[i].model_type)) r->arch = &architectures[i];
    if (!r->arch)
        return unsupported_text(&r->json, "model_type", type, "llama, mistral, qwen2, qwen3 or smollm3");
    snprintf(r->desc->architecture, sizeof r->desc->architecture, "%s", r->arch->model_type);
    BS_TRY(bs_json_get_array(&r->json, "architectures", &classes, &found));
    for (size_t i = 0; i < json_array_size(classes); i++) {
        const json_t *name = json_array_get(classes, i);
        bs_string text = bs_json_string(name);
        if (!text.text || !bs_string_is(text, r->arch->class_name))
            return unsupported_text(&r->json, "architectures", text.text ? text : (bs_string){"no string", 9},
                                    r->arch->class_name);
    }
    return BS_STATUS_OK;
}

/* A key that must be false, or missing. */
static bs_status refuse_flag(const reader *r, const char *key)
{
    bool value = false, found;
    BS_TRY(bs_json_get_bool(&r->json, key, &value, &found));
    if (!value) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_UNSUPPORTED, "%s: %s is true: not supported", r->json.path, key);
}

static bs_status check_arithmetic(const reader *r)
{
    bs_string act = {"silu", 4};
    json_t *quantization = NULL;
    bool found;
    BS_TRY(bs_json_get_string(&r->json, "hidden_act", &act, &found));
    if (!bs_string_is(act, "silu")) return unsupported_text(&r->json, "hidden_act", act, "silu");
    BS_TRY(refuse_flag(r, "attention_bias"));
    BS_TRY(refuse_flag(r, "mlp_bias"));
    BS_TRY(bs_json_get_object(&r->json, "quantization_config", &quantization, &found));
    if (!found) return BS_STATUS_OK;
    bs_string method = {"(none)", 6};
    const bs_json json = {r->json.path, "quantization_config.", quantization};
    BS_TRY(bs_json_get_string(&json, "quant_method", &method, &found));
    return bs_fail(BS_STATUS_UNSUPPORTED,
                   "%s: quantization_config.quant_method is %.*s: only BF16, F16 and F32 weights",
                   r->json.path, bs_json_shown(method), method.text);
}

static bs_status get_size(const reader *r, const char *key, int max, int *out)
{
    int64_t value = 0;
    BS_TRY(bs_json_get_int(&r->json, key, 1, max, &value, NULL));
    *out = (int)value;
    return BS_STATUS_OK;
}

static bs_status read_head_dim(reader *r)
{
    bs_model_desc *desc = r->desc;
    int64_t head_dim = r->arch->head_dim;
    bool found;
    BS_TRY(bs_json_get_int(&r->json, "head_dim", 1, BS_MODEL_MAX_WIDTH, &head_dim, &found));
    if (head_dim == 0) {
        if (desc->n_hidden % desc->n_heads != 0)
            return bs_fail(BS_STATUS_FORMAT, "%s: num_attention_heads is %d: must divide hidden_size %d",
                           r->json.path, desc->n_heads, desc->n_hidden);
        head_dim = desc->n_hidden / desc->n_heads;
    }
    if (head_dim != 64 && head_dim != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: head_dim is %" PRId64 "%s: must be 64 or 128",
                       r->json.path, head_dim, found ? "" : " (hidden_size / num_attention_heads)");
    desc->head_dim = (int)head_dim;
    desc->attn_scale = 1.0f / sqrtf((float)head_dim);
    return BS_STATUS_OK;
}

static bs_status read_sizes(reader *r)
{
    bs_model_desc *desc = r->desc;
    double eps = 0;
    bool found;
    BS_TRY(get_size(r, "num_hidden_layers", BS_MODEL_MAX_LAYERS, &desc->n_layers));
    BS_TRY(get_size(r, "max_position_embeddings", INT32_MAX, &desc->context_length));
    BS_TRY(get_size(r, "hidden_size", BS_MODEL_MAX_WIDTH, &desc->n_hidden));
    BS_TRY(get_size(r, "intermediate_size", BS_MODEL_MAX_WIDTH, &desc->n_ffn));
    BS_TRY(get_size(r, "num_attention_heads", BS_MODEL_MAX_HEADS, &desc->n_heads));
    BS_TRY(get_size(r, "vocab_size", BS_MODEL_MAX_VOCAB, &desc->n_vocab));
    int64_t n_kv_heads = desc->n_heads;
    BS_TRY(bs_json_get_int(&r->json, "num_key_value_heads", 1, desc->n_heads, &n_kv_heads, &found));
    if (desc->n_heads % n_kv_heads != 0)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: num_key_value_heads is %" PRId64 ": must divide the %d query heads", r->json.path,
                       n_kv_heads, desc->n_heads);
    desc->n_kv_heads = (int)n_kv_heads;
    BS_TRY(bs_json_get_float(&r->json, "rms_norm_eps", 0, 0.1, &eps, NULL));
    desc->rms_eps = (float)eps;
    desc->tied_output = r->arch->tied;
    BS_TRY(bs_json_get_bool(&r->json, "tie_word_embeddings", &desc->tied_output, &found));
    return read_head_dim(r);
}

/* ---- layers that differ -----------------------------------------------------------------------------------
 */

/* layer_types, an item for each layer (or more); NULL when the file has none. */
static bs_status get_layer_types(const reader *r, json_t **out)
{
    bool found;
    *out = NULL;
    BS_TRY(bs_json_get_array(&r->json, "layer_types", out, &found));
    if (!found) return BS_STATUS_OK;
    if (json_array_size(*out) < (size_t)r->desc->n_layers)
        return bs_fail(BS_STATUS_FORMAT, "%s: layer_types has %zu items: num_hidden_layers is %d",
                       r->json.path, json_array_size(*out), r->desc->n_layers);
    for (int l = 0; l < r->desc->n_layers; l++) {
        bs_string type = bs_json_string(json_array_get(*out, (size_t)l));
        if (!type.text || (!bs_string_is(type, "full_attention") && !bs_string_is(type, "sliding_attention")))
            return bs_fail(BS_STATUS_UNSUPPORTED,
                           "%s: layer_types[%d] is %.*s: must be full_attention or sliding_attention",
                           r->json.path, l, type.text ? bs_json_shown(type) : 9,
                           type.text ? type.text : "no string");
    }
    return BS_STATUS_OK;
}

/* SmolLM3: a 1 for each layer with RoPE; without the list every fourth (no_rope_layer_interval) has none. */
static bs_status read_rope_layers(reader *r)
{
    json_t *flags = NULL;
    bool found;
    int64_t interval = 4;
    BS_TRY(bs_json_get_int(&r->json, "no_rope_layer_interval", 1, INT32_MAX, &interval, &found));
    BS_TRY(bs_json_get_array(&r->json, "no_rope_layers", &flags, &found));
    if (found && json_array_size(flags) < (size_t)r->desc->n_layers)
        return bs_fail(BS_STATUS_FORMAT, "%s: no_rope_layers has %zu items: num_hidden_layers is %d",
                       r->json.path, json_array_size(flags), r->desc->n_layers);
    for (int l = 0; l < r->desc->n_layers; l++) {
        const json_t *flag = json_array_get(flags, (size_t)l);
        int64_t value = json_integer_value(flag);
        if (found && (!json_is_integer(flag) || value < 0 || value > 1))
            return bs_fail(BS_STATUS_FORMAT, "%s: no_rope_layers[%d] is %s%" PRId64 ": must be 0 or 1",
                           r->json.path, l, json_is_integer(flag) ? "" : "no integer, ", value);
        r->model->layer_desc[l].rope = found ? value == 1 : (l + 1) % interval != 0;
    }
    return BS_STATUS_OK;
}

/* The window of every layer. */
static bs_status read_windows(reader *r)
{
    const bs_model_desc *desc = r->desc;
    json_t *types;
    bool found, used = !r->arch->window_flag;
    int64_t window = r->arch->window, from = 28;
    BS_TRY(bs_json_get_bool(&r->json, "use_sliding_window", &used, &found));
    BS_TRY(bs_json_get_int(&r->json, "max_window_layers", 0, INT32_MAX, &from, &found));
    BS_TRY(bs_json_get_int(&r->json, "sliding_window", 1, INT32_MAX, &window, &found));
    BS_TRY(get_layer_types(r, &types));
    if (!found && json_object_get(r->json.object, "sliding_window"))
        window = 0; /* null: none, whatever the default */
    if (window < 0 || !used) window = 0;
    if (r->arch->window < 0 && found)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: sliding_window is %" PRId64 ": not a key of a %s model",
                       r->json.path, window, desc->architecture);
    for (int l = 0; l < desc->n_layers; l++) {
        bool slides = window > 0;
        bool by_default = r->arch->no_rope_layers ? !r->model->layer_desc[l].rope : l >= from;
        if (r->arch->window_flag && slides)
            slides = types ? strcmp(json_string_value(json_array_get(types, (size_t)l)),
                                    "sliding_attention") == 0
                           : by_default;
        r->model->layer_desc[l].window = slides ? (int)window : 0;
    }
    return BS_STATUS_OK;
}

/* ---- RoPE -------------------------------------------------------------------------------------------------
 */

static bs_status read_original_context(const reader *r, const bs_json *rope, bs_rope_scaling *s)
{
    bool found;
    s->original_context = r->desc->context_length;
    BS_TRY(bs_json_get_float(rope, "original_max_position_embeddings", 1, INT32_MAX, &s->original_context,
                             &found));
    return bs_json_get_float(&r->json, "original_max_position_embeddings", 1, INT32_MAX, &s->original_context,
                             &found);
}

static bs_status read_llama3(const reader *r, const bs_json *rope, bs_rope_scaling *s)
{
    s->kind = BS_ROPE_LLAMA3;
    BS_TRY(bs_json_get_float(rope, "factor", 1, 1e6, &s->factor, NULL));
    BS_TRY(bs_json_get_float(rope, "low_freq_factor", 1e-3, 1e6, &s->low_freq_factor, NULL));
    BS_TRY(bs_json_get_float(rope, "high_freq_factor", 1e-3, 1e6, &s->high_freq_factor, NULL));
    if (!(s->low_freq_factor < s->high_freq_factor))
        return bs_fail(BS_STATUS_FORMAT, "%s: %slow_freq_factor is %g: must be below high_freq_factor %g",
                       rope->path, rope->where, s->low_freq_factor, s->high_freq_factor);
    return read_original_context(r, rope, s);
}

static bs_status read_yarn(const reader *r, const bs_json *rope, bs_rope_scaling *s)
{
    double m = 0, m_all = 0;
    bool found, truncate = true;
    s->kind = BS_ROPE_YARN;
    s->beta_fast = 32;
    s->beta_slow = 1;
    BS_TRY(read_original_context(r, rope, s));
    s->factor = r->desc->context_length / s->original_context;
    BS_TRY(bs_json_get_float(rope, "factor", 1, 1e6, &s->factor, &found));
    if (!(s->factor >= 1))
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: %sfactor is missing, and max_position_embeddings is below the original %g",
                       rope->path, rope->where, s->original_context);
    BS_TRY(bs_json_get_float(rope, "beta_fast", 1e-3, 1e6, &s->beta_fast, &found));
    BS_TRY(bs_json_get_float(rope, "beta_slow", 1e-3, 1e6, &s->beta_slow, &found));
    if (!(s->beta_slow < s->beta_fast))
        return bs_fail(BS_STATUS_FORMAT, "%s: %sbeta_slow is %g: must be below beta_fast %g", rope->path,
                       rope->where, s->beta_slow, s->beta_fast);
    BS_TRY(bs_json_get_bool(rope, "truncate", &truncate, &found));
    s->fractional = !truncate;
    BS_TRY(bs_json_get_float(rope, "attention_factor", 1e-3, 1e3, &s->attention_factor, &found));
    BS_TRY(bs_json_get_float(rope, "mscale", 0, 1e3, &m, &found));
    BS_TRY(bs_json_get_float(rope, "mscale_all_dim", 0, 1e3, &m_all, &found));
    if (s->attention_factor == 0 && m > 0 && m_all > 0)
        s->attention_factor = bs_rope_yarn_scale(s->factor, m) / bs_rope_yarn_scale(s->factor, m_all);
    return BS_STATUS_OK;
}

/* rope_type, which older files call type. */
static bs_status read_rope_scaling(const reader *r, const bs_json *rope, bs_rope_scaling *s)
{
    bs_string type = {"default", 7};
    bool found;
    BS_TRY(bs_json_get_string(rope, "type", &type, &found));
    BS_TRY(bs_json_get_string(rope, "rope_type", &type, &found));
    if (bs_string_is(type, "llama3")) return read_llama3(r, rope, s);
    if (bs_string_is(type, "yarn")) return read_yarn(r, rope, s);
    if (bs_string_is(type, "linear")) {
        s->kind = BS_ROPE_LINEAR;
        return bs_json_get_float(rope, "factor", 1e-3, 1e6, &s->factor, NULL);
    }
    if (bs_string_is(type, "default")) return BS_STATUS_OK;
    return unsupported_text(rope, "rope_type", type, "default, linear, llama3 or yarn");
}

/* transformers 5 writes rope_parameters with rope_theta in it, earlier ones rope_theta and rope_scaling. */
static bs_status find_rope(const reader *r, bs_json *rope)
{
    json_t *object = NULL, *value;
    const char *key;
    bool found;
    *rope = (bs_json){r->json.path, "rope_parameters.", NULL};
    BS_TRY(bs_json_get_object(&r->json, "rope_parameters", &object, &found));
    if (!found) {
        rope->where = "rope_scaling.";
        BS_TRY(bs_json_get_object(&r->json, "rope_scaling", &object, &found));
    }
    rope->object = object;
    json_object_foreach(object, key, value)
    {
        if (!json_is_object(value)) continue;
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "%s: %s%.64s is an object: RoPE that differs between layers is not supported",
                       rope->path, rope->where, key);
    }
    return BS_STATUS_OK;
}

static bs_status read_rope(reader *r)
{
    bs_model_desc *desc = r->desc;
    bs_rope_scaling scaling = {.kind = BS_ROPE_PLAIN, .factor = 1};
    bs_json rope;
    double part = 1;
    bool found;
    BS_TRY(find_rope(r, &rope));
    desc->rope_theta = r->arch->rope_theta;
    BS_TRY(bs_json_get_float(&r->json, "rope_theta", 1.001, 1e15, &desc->rope_theta, &found));
    BS_TRY(bs_json_get_float(&rope, "rope_theta", 1.001, 1e15, &desc->rope_theta, &found));
    BS_TRY(bs_json_get_float(&r->json, "partial_rotary_factor", 0, 1, &part, &found));
    BS_TRY(bs_json_get_float(&rope, "partial_rotary_factor", 0, 1, &part, &found));
    desc->n_rot = (int)(desc->head_dim * part);
    if (desc->n_rot < 2 || desc->n_rot % 2 != 0)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: partial_rotary_factor is %g: makes %d of %d channels, must be even", rope.path,
                       part, desc->n_rot, desc->head_dim);
    BS_TRY(read_rope_scaling(r, &rope, &scaling));
    bs_rope_fill(desc, &scaling);
    return BS_STATUS_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------------------
 */

static bs_status claim(bs_model *model, const char *name, int64_t cols, int64_t rows, const bs_tensor **out)
{
    return bs_model_claim(model, bs_safetensors_find(model->safetensors, name), name, cols, rows, out);
}

static bs_status claim_layer(const reader *r, int layer)
{
    static const char *const names[BS_PART_COUNT] = {
        [BS_PART_ATTN_NORM] = "input_layernorm.weight",
        [BS_PART_Q] = "self_attn.q_proj.weight",
        [BS_PART_K] = "self_attn.k_proj.weight",
        [BS_PART_V] = "self_attn.v_proj.weight",
        [BS_PART_O] = "self_attn.o_proj.weight",
        [BS_PART_FFN_NORM] = "post_attention_layernorm.weight",
        [BS_PART_GATE] = "mlp.gate_proj.weight",
        [BS_PART_UP] = "mlp.up_proj.weight",
        [BS_PART_DOWN] = "mlp.down_proj.weight",
        [BS_PART_Q_NORM] = "self_attn.q_norm.weight",
        [BS_PART_K_NORM] = "self_attn.k_norm.weight",
        [BS_PART_Q_BIAS] = "self_attn.q_proj.bias",
        [BS_PART_K_BIAS] = "self_attn.k_proj.bias",
        [BS_PART_V_BIAS] = "self_attn.v_proj.bias",
    };
    for (bs_part part = 0; part < BS_PART_COUNT; part++) {
        const bs_part_slot slot = bs_model_part(r->model, layer, part);
        char name[96];
        if ((bs_part_is_bias(part) && !r->arch->qkv_bias) ||
            (bs_part_is_head_norm(part) && !r->arch->qk_norm))
            continue;
        snprintf(name, sizeof name, "model.layers.%d.%s", layer, names[part]);
        BS_TRY(claim(r->model, name, slot.cols, slot.rows, slot.out));
    }
    return BS_STATUS_OK;
}

/* A tied model's file may hold the output head all the same; it must then be the embedding table. Both are compared
 * whole: 600 MB take half a second from a disk and half of them are needed anyway; a sample of rows, read here and
 * there, took longer. */
static bs_status claim_output(reader *r)
{
    bs_model *model = r->model;
    const bs_tensor *head = bs_safetensors_find(model->safetensors, "lm_head.weight"),
                    *table = model->embedding;
    if (!r->desc->tied_output)
        return claim(model, "lm_head.weight", r->desc->n_hidden, r->desc->n_vocab, &model->output);
    model->output = table;
    if (!head || (head->type == table->type && head->bytes == table->bytes &&
                  memcmp(head->data, table->data, table->bytes) == 0))
        return BS_STATUS_OK;
    return bs_fail(
        BS_STATUS_FORMAT,
        "%s: tie_word_embeddings is true, and tensor lm_head.weight is not model.embed_tokens.weight",
        r->json.path);
}

/* Copies of what config.json says already, and a tied head. */
static bool is_redundant(const reader *r, bs_string name)
{
    static const char inv_freq[] = ".rotary_emb.inv_freq";
    const size_t n = sizeof inv_freq - 1;
    if (name.bytes > n && memcmp(name.text + name.bytes - n, inv_freq, n) == 0) return true;
    return r->desc->tied_output && strcmp(name.text, "lm_head.weight") == 0;
}

/* A tensor that was not asked for belongs to an architecture we would compute wrongly. */
static bs_status refuse_unknown(const reader *r)
{
    const bs_safetensors *all = r->model->safetensors;
    if (r->model->n_tensors == bs_safetensors_n_tensors(all)) return BS_STATUS_OK;
    for (int64_t i = 0; i < bs_safetensors_n_tensors(all); i++) {
        const bs_tensor *tensor = bs_safetensors_tensor_at(all, i);
        if (!is_redundant(r, tensor->name) && !bs_model_has_claimed(r->model, tensor))
            return bs_fail(BS_STATUS_UNSUPPORTED, "%s: tensor %s: not one that this %s model has",
                           r->model->path, tensor->name.text, r->desc->architecture);
    }
    return BS_STATUS_OK;
}

static bs_status claim_tensors(reader *r)
{
    bs_model *model = r->model;
    BS_TRY(claim(model, "model.embed_tokens.weight", r->desc->n_hidden, r->desc->n_vocab, &model->embedding));
    BS_TRY(claim_output(r));
    BS_TRY(claim(model, "model.norm.weight", r->desc->n_hidden, 0, &model->output_norm));
    for (int l = 0; l < r->desc->n_layers; l++) BS_TRY(claim_layer(r, l));
    BS_TRY(refuse_unknown(r));
    bs_model_count_params(model);
    return BS_STATUS_OK;
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

/* The directory's own name. */
static void read_name(bs_model *model)
{
    const char *path = model->path;
    size_t end = strlen(path), begin;
    while (end > 1 && path[end - 1] == '/') end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/';) begin--;
    snprintf(model->desc.name, sizeof model->desc.name, "%.*s", (int)(end - begin), path + begin);
}

/* How the model's authors sample, if they say that it should be sampled. */
static bs_status read_generation(bs_model *model, const char *path)
{
    bs_suggested_sampling *s = &model->desc.sampling;
    json_t *root = NULL;
    bool found, sample = false;
    double temperature = 1, top_p = 1;
    int64_t top_k = 0;
    bs_status status;
    BS_TRY(bs_json_load(path, MAX_CONFIG_BYTES, &root, &found));
    if (!found) return BS_STATUS_OK;
    const bs_json json = {path, "", root};
    BS_TRY_GOTO(bs_json_get_bool(&json, "do_sample", &sample, &found), done);
    BS_TRY_GOTO(bs_json_get_float(&json, "temperature", 0, 100, &temperature, &found), done);
    BS_TRY_GOTO(bs_json_get_float(&json, "top_p", 0, 1, &top_p, &found), done);
    BS_TRY_GOTO(bs_json_get_int(&json, "top_k", 0, INT32_MAX, &top_k, &found), done);
    *s = (bs_suggested_sampling){sample, (float)temperature, (float)top_p, (int)top_k};
done:
    json_decref(root);
    return status;
}

static bs_status read_all(reader *r, const char *directory)
{
    BS_TRY(read_architecture(r));
    BS_TRY(check_arithmetic(r));
    BS_TRY(read_sizes(r));
    BS_TRY(read_rope(r));
    BS_TRY(bs_model_alloc_layers(r->model, 0));
    if (r->arch->no_rope_layers) BS_TRY(read_rope_layers(r));
    BS_TRY(read_windows(r));
    if (!r->model->safetensors) BS_TRY(bs_safetensors_open(directory, &r->model->safetensors));
    r->desc->file_bytes = bs_safetensors_file_bytes(r->model->safetensors);
    return claim_tensors(r);
}

bs_status bs_model_describe_hf(bs_model *model, const char *config_path, json_t *config)
{
    reader r = {.model = model, .desc = &model->desc, .json = {config_path, "", config}};
    model->rows_first = true;
    read_name(model);
    return read_all(&r, model->path);
}

bs_status bs_model_open_hf(const char *directory, bs_model **out)
{
    bs_status status;
    bs_model *model;
    json_t *config = NULL;
    size_t bytes = strlen(directory) + sizeof "/generation_config.json";
    char *path = malloc(bytes);
    if (!path) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", directory);
    status = bs_model_create(directory, &model);
    if (status != BS_STATUS_OK) {
        free(path);
        return status;
    }
    snprintf(path, bytes, "%s/config.json", directory);
    BS_TRY_GOTO(bs_json_load(path, MAX_CONFIG_BYTES, &config, NULL), done);
    BS_TRY_GOTO(bs_model_describe_hf(model, path, config), done);
    snprintf(path, bytes, "%s/generation_config.json", directory);
    BS_TRY_GOTO(read_generation(model, path), done);
done:
    json_decref(config);
    free(path);
    if (status == BS_STATUS_OK) *out = model;
    else bs_model_close(model);
    return status;
}
