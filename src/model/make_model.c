/* make_model.c: random weights that behave, and a tokenizer that works.
 *
 * Random numbers are integer arithmetic: a counter through a 64-bit mixer, and the sum of eight 16-bit
 * uniforms for a bell curve (tails to ±4.9 σ). The library's log and cos would differ in the last bit between
 * machines, and then so would the file. Each tensor draws from its own stream, so a longer model begins with
 * the shorter one's layers.
 *
 * The formats of 256 elements (Q2_K … Q6_K) are not quantized but drawn: random codes under scales of the
 * right size are as valid a random matrix as any, and no encoder for them is needed. */
#include "config.h"
#include "src/model/make_model.h"
#include "src/model/gguf_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_SPECIALS = 3,
    N_BYTES = 256,
    MAX_VOCAB = N_SPECIALS + N_BYTES + 26 + 26 * 26 + 26 * 26 * 26 + 456976
};

/* Chosen by running the model in numpy with a cache in 8, 4 and 2 bits: at these a 4-bit cache moves the
 * logits by a tenth; twice as sharp an attention or as small an embedding makes the layers amplify every
 * rounding fourfold. */
#define SCORE_STD 1.5f /* of q·k/√D */
#define FFN_GAIN  0.6f
#define LOGIT_STD 3.0f

/* ---- random numbers ---------------------------------------------------------------------------------------
 */

/* splitmix64 (Steele, Lea, Flood 2014): a counter and a mixer. */
typedef struct stream {
    uint64_t state;
} stream;

static uint64_t next(stream *s)
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static stream stream_of(uint64_t seed, const char *tensor_name)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = tensor_name; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    stream s = {seed};
    s.state = next(&s) ^ hash;
    return s;
}

/* Mean 0, standard deviation 1: sum of eight uniforms, exact in integers. */
static float normal(stream *s)
{
    int32_t sum = 0;
    for (int half = 0; half < 2; half++) {
        uint64_t bits = next(s);
        for (int i = 0; i < 4; i++) sum += (int32_t)(bits >> 16 * i & 0xffff);
    }
    return ((float)sum - 262140.0f) * (1.0f / 53509.6f);
}

/* ---- random blocks ----------------------------------------------------------------------------------------
 */

static int draw(stream *s, int low, int high)
{
    return low + (int)(next(s) >> 33) % (high - low + 1);
}

static void fill_random(stream *s, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(next(s) >> 56);
}

/* Q4_K, Q5_K: fp16 d and dmin, eight 6-bit (scale, min) packed in 12 bytes, 4-bit codes (behind 32 bytes of
 * fifth bits); x = d·scale·code − dmin·min. With min = scale and dmin = the middle code × d the mean is 0 and
 * the deviation that of a code × d·scale. */
static void draw_q45_k(stream *s, bs_type type, float std, uint8_t *block)
{
    const bool five = type == BS_TYPE_Q5_K;
    float d = std / ((five ? 9.23f : 4.61f) * 47.5f);
    bs_f16 d16 = bs_f32_to_f16(d), dmin16 = bs_f32_to_f16((five ? 15.5f : 7.5f) * d);
    memcpy(block, &d16, 2);
    memcpy(block + 2, &dmin16, 2);
    uint8_t *packed = block + 4;
    int scale[8];
    for (int i = 0; i < 8; i++) scale[i] = draw(s, 32, 63);
    for (int i = 0; i < 4; i++) {
        packed[i] = (uint8_t)(scale[i] | scale[i + 4] >> 4 << 6);
        packed[i + 4] = packed[i];
        packed[i + 8] = (uint8_t)((scale[i + 4] & 15) * 0x11);
    }
    fill_random(s, block + 16, five ? 160 : 128);
}

/* Q2_K: sixteen bytes of scale and min, 2-bit codes, fp16 d and dmin; x = d·scale·code − dmin·min, and again
 * min = scale. */
static void draw_q2_k(stream *s, float std, uint8_t *block)
{
    float d = std / (1.118f * 11.73f);
    bs_f16 d16 = bs_f32_to_f16(d), dmin16 = bs_f32_to_f16(1.5f * d);
    for (int i = 0; i < 16; i++) block[i] = (uint8_t)(draw(s, 8, 15) * 0x11);
    fill_random(s, block + 16, 64);
    memcpy(block + 80, &d16, 2);
    memcpy(block + 82, &dmin16, 2);
}

/* Q3_K: 32 bytes of high bits, 64 of two low bits, sixteen 6-bit scales + 32 in 12 bytes, fp16 d; x =
 * d·scale·(code − 4): deviation 2.345·d·|scale|. */
static void draw_q3_k(stream *s, float std, uint8_t *block)
{
    bs_f16 d16 = bs_f32_to_f16(std / (2.345f * 23.95f));
    uint8_t *packed = block + 96;
    fill_random(s, block, 96);
    memset(packed, 0, 12);
    for (int i = 0; i < 16; i++) {
        int scale = draw(s, 16, 31), biased = draw(s, 0, 1) ? 32 + scale : 32 - scale;
        packed[i % 8] |= (uint8_t)((biased & 15) << 4 * (i / 8));
        packed[8 + i % 4] |= (uint8_t)(biased >> 4 << 2 * (i / 4));
    }
    memcpy(block + 108, &d16, 2);
}

/* Q6_K: 4 low bits, 2 high bits, sixteen int8 scales, fp16 d; x = d·scale·(code − 32):
 * deviation 18.5·d·|scale|. */
static void draw_q6_k(stream *s, float std, uint8_t *block)
{
    bs_f16 d16 = bs_f32_to_f16(std / (18.5f * 66.5f));
    fill_random(s, block, 192);
    for (int i = 0; i < 16; i++) {
        int scale = draw(s, 32, 96);
        block[192 + i] = (uint8_t)(int8_t)(draw(s, 0, 1) ? scale : -scale);
    }
    memcpy(block + 208, &d16, 2);
}

/* One row of a matrix of this standard deviation, in blocks. */
static bs_status draw_row(stream *s, bs_type type, float std, int64_t n, float *scratch, uint8_t *blocks)
{
    for (int64_t i = 0; i < n && bs_type_block(type) == 256; i += 256, blocks += bs_type_block_bytes(type)) {
        if (type == BS_TYPE_Q2_K) draw_q2_k(s, std, blocks);
        else if (type == BS_TYPE_Q3_K) draw_q3_k(s, std, blocks);
        else if (type == BS_TYPE_Q6_K) draw_q6_k(s, std, blocks);
        else draw_q45_k(s, type, std, blocks);
    }
    if (bs_type_block(type) == 256) return BS_STATUS_OK;
    for (int64_t i = 0; i < n; i++) scratch[i] = std * normal(s);
    return bs_quantize_row(type, scratch, blocks, n);
}

bs_status bs_make_model_row(uint64_t seed, bs_type type, float std, int64_t n, float *scratch, void *blocks)
{
    stream s = {seed};
    return draw_row(&s, type, std, n, scratch, blocks);
}

/* ---- the tokenizer ----------------------------------------------------------------------------------------
 */

typedef struct vocabulary {
    char **tokens, **merges; /* [n_vocab], [n_merges] */
    int32_t *types;          /* [n_vocab] 1 normal, 3 control */
    int64_t n_tokens, n_merges, n_vocab;
    bool failed;
} vocabulary;

static char *join(const char *a, const char *between, const char *b)
{
    size_t room = strlen(a) + strlen(between) + strlen(b) + 1;
    char *joined = malloc(room);
    if (joined) snprintf(joined, room, "%s%s%s", a, between, b);
    return joined;
}

static void add_token(vocabulary *v, const char *a, const char *b, int type)
{
    if (v->n_tokens == v->n_vocab) return;
    if (!(v->tokens[v->n_tokens] = join(a, "", b))) v->failed = true;
    v->types[v->n_tokens++] = type;
}

/* The token a + b and the merge that makes it; a and b must be there already. */
static void add_merge(vocabulary *v, const char *a, const char *b)
{
    if (v->n_tokens == v->n_vocab) return;
    if (!(v->merges[v->n_merges++] = join(a, " ", b))) v->failed = true;
    add_token(v, a, b, 1);
}

/* GPT-2's printable stand-in for a byte, as UTF-8: itself where printable in Latin-1, else U+0100 + its place
 * among the others. */
static void add_byte_tokens(vocabulary *v)
{
    int others = 0;
    for (int byte = 0; byte < N_BYTES; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        int code = printable ? byte : 0x100 + others++;
        char text[3] = {(char)code};
        if (code >= 0x80) {
            text[0] = (char)(0xc0 | code >> 6);
            text[1] = (char)(0x80 | (code & 0x3f));
        }
        add_token(v, text, "", 1);
    }
}

/* Letters by frequency in English, so that a small vocabulary merges something in any text: " x", then "xy",
 * "xy"+"z", "xy"+"zw". All distinct, and each made of tokens that come before it. */
static void add_merges(vocabulary *v)
{
    static const char letters[] = "etaoinshrdlcumwfgypbvkjxqz";
    char a[2] = "", b[2] = "";
    char(*pairs)[3] = malloc(26 * 26 * sizeof *pairs);
    if (!pairs) {
        v->failed = true;
        return;
    }
    for (int i = 0; i < 26; i++) {
        b[0] = letters[i];
        add_merge(v, "\xc4\xa0", b); /* U+0120 stands for the space */
    }
    for (int i = 0; i < 26 * 26; i++) {
        a[0] = letters[i / 26];
        b[0] = letters[i % 26];
        snprintf(pairs[i], sizeof pairs[i], "%s%s", a, b);
        add_merge(v, a, b);
    }
    for (int i = 0; i < 26 * 26 * 26 && v->n_tokens < v->n_vocab; i++) {
        b[0] = letters[i % 26];
        add_merge(v, pairs[i / 26], b);
    }
    for (int i = 0; i < 26 * 26 * 26 * 26 && v->n_tokens < v->n_vocab; i++)
        add_merge(v, pairs[i / (26 * 26)], pairs[i % (26 * 26)]);
    free(pairs);
}

static void vocabulary_free(vocabulary *v)
{
    for (int64_t i = 0; v->tokens && i < v->n_tokens; i++) free(v->tokens[i]);
    for (int64_t i = 0; v->merges && i < v->n_merges; i++) free(v->merges[i]);
    free(v->tokens);
    free(v->merges);
    free(v->types);
}

static bs_status put_tokenizer(bs_gguf_writer *writer, int n_vocab)
{
    vocabulary v = {.n_vocab = n_vocab};
    v.tokens = calloc((size_t)n_vocab, sizeof *v.tokens);
    v.merges = calloc((size_t)n_vocab, sizeof *v.merges);
    v.types = calloc((size_t)n_vocab, sizeof *v.types);
    v.failed = !v.tokens || !v.merges || !v.types;
    if (!v.failed) {
        add_token(&v, "<|endoftext|>", "", 3);
        add_token(&v, "<|im_start|>", "", 3);
        add_token(&v, "<|im_end|>", "", 3);
        add_byte_tokens(&v);
        add_merges(&v);
    }
    if (!v.failed) {
        bs_gguf_put_string(writer, "tokenizer.ggml.model", "gpt2");
        bs_gguf_put_string(writer, "tokenizer.ggml.pre", "smollm");
        bs_gguf_put_strings(writer, "tokenizer.ggml.tokens", (const char *const *)v.tokens, v.n_tokens);
        bs_gguf_put_i32s(writer, "tokenizer.ggml.token_type", v.types, v.n_tokens);
        bs_gguf_put_strings(writer, "tokenizer.ggml.merges", (const char *const *)v.merges, v.n_merges);
        bs_gguf_put_u32(writer, "tokenizer.ggml.bos_token_id", 1);
        bs_gguf_put_u32(writer, "tokenizer.ggml.eos_token_id", 2);
        bs_gguf_put_bool(writer, "tokenizer.ggml.add_bos_token", false);
        bs_gguf_put_string(
            writer, "tokenizer.chat_template",
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
    }
    vocabulary_free(&v);
    return v.failed ? bs_fail(BS_STATUS_NOMEM, "no memory for a vocabulary of %d", n_vocab) : BS_STATUS_OK;
}

/* ---- the model --------------------------------------------------------------------------------------------
 */

bs_status bs_make_model_shape(const char *name, bs_make_model_config *out)
{
    static const bs_make_model_config tiny = {.seed = 1,
                                              .n_layers = 4,
                                              .n_hidden = 256,
                                              .n_heads = 32,
                                              .n_kv_heads = 8,
                                              .head_dim = 128,
                                              .n_ffn = 512,
                                              .n_vocab = 512,
                                              .context_length = 131072,
                                              .type = BS_TYPE_Q4_1,
                                              .rope_theta = 500000};
    static const bs_make_model_config smol = {.seed = 1,
                                              .n_layers = 30,
                                              .n_hidden = 576,
                                              .n_heads = 9,
                                              .n_kv_heads = 3,
                                              .head_dim = 64,
                                              .n_ffn = 1536,
                                              .n_vocab = 49152,
                                              .context_length = 8192,
                                              .type = BS_TYPE_Q4_1,
                                              .tied_output = true,
                                              .rope_theta = 100000};
    if (strcmp(name, "tiny") == 0) *out = tiny;
    else if (strcmp(name, "smol") == 0) *out = smol;
    else return bs_fail(BS_STATUS_USAGE, "model shape %s: must be tiny or smol", name);
    return BS_STATUS_OK;
}

static bs_status check_config(const bs_make_model_config *c)
{
    const struct {
        const char *what;
        int64_t value, min, max, multiple;
    } checks[] = {
        {"type", c->type, 0, BS_TYPE_COUNT - 1, 1},
        {"layers", c->n_layers, 1, 1024, 1},
        {"hidden width", c->n_hidden, 1, 1 << 20, bs_type_block(c->type < BS_TYPE_COUNT ? c->type : 0)},
        {"KV heads", c->n_kv_heads, 1, 1024, 1},
        {"query heads", c->n_heads, 1, 1024, c->n_kv_heads},
        {"head size", c->head_dim, 64, 128, 64},
        {"query heads × head size", (int64_t)c->n_heads * c->head_dim, 1, 1 << 20,
         bs_type_block(c->type < BS_TYPE_COUNT ? c->type : 0)},
        {"FFN width", c->n_ffn, 1, 1 << 20, bs_type_block(c->type < BS_TYPE_COUNT ? c->type : 0)},
        {"vocabulary", c->n_vocab, N_SPECIALS + N_BYTES, MAX_VOCAB, 1},
        {"context length", c->context_length, 1, INT32_MAX, 1},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (checks[i].value < checks[i].min || checks[i].value > checks[i].max ||
            checks[i].value % checks[i].multiple != 0)
            return bs_fail(BS_STATUS_RANGE,
                           "%s of the model to make is %lld: must be %lld … %lld, a multiple of %lld",
                           checks[i].what, (long long)checks[i].value, (long long)checks[i].min,
                           (long long)checks[i].max, (long long)checks[i].multiple);
    if (!(c->rope_theta > 1 && c->rope_theta <= 1e15))
        return bs_fail(BS_STATUS_RANGE,
                       "RoPE theta of the model to make is %g: must be above 1, at most 1e15", c->rope_theta);
    return BS_STATUS_OK;
}

static void put_keys(bs_gguf_writer *writer, const bs_make_model_config *c)
{
    char name[64];
    snprintf(name, sizeof name, "random llama, %d layers, seed %llu", c->n_layers,
             (unsigned long long)c->seed);
    bs_gguf_put_string(writer, "general.architecture", "llama");
    bs_gguf_put_string(writer, "general.name", name);
    const struct {
        const char *key;
        int value;
    } sizes[] = {
        {"llama.block_count", c->n_layers},          {"llama.context_length", c->context_length},
        {"llama.embedding_length", c->n_hidden},     {"llama.feed_forward_length", c->n_ffn},
        {"llama.attention.head_count", c->n_heads},  {"llama.attention.head_count_kv", c->n_kv_heads},
        {"llama.attention.key_length", c->head_dim}, {"llama.attention.value_length", c->head_dim},
        {"llama.rope.dimension_count", c->head_dim}, {"llama.vocab_size", c->n_vocab}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        bs_gguf_put_u32(writer, sizes[i].key, (uint32_t)sizes[i].value);
    bs_gguf_put_f32(writer, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    bs_gguf_put_f32(writer, "llama.rope.freq_base", (float)c->rope_theta);
}

/* One tensor of the file, in order: what it is and how large its numbers are. */
typedef enum fill { FILL_NORMAL, FILL_NORM, FILL_SIGNED_NORM, FILL_FREQS } fill;
typedef struct plan {
    char name[64];
    bs_type type;
    int64_t n_cols, n_rows; /* n_rows 0: a vector */
    fill fill;
    float scale; /* standard deviation, or the mean of a norm */
} plan;

enum { LAYER_TENSORS = 9 };

/* Tensor i of the file; false behind the last. Matrices have a standard deviation of gain/√fan_in; the
 * embedding has 1, so that the residual is larger than what one layer adds to it. The gain of the last norm
 * sets the logits' size; its signs are random, else a tied model's best guess would be the token it has just
 * read. */
static bool plan_tensor(const bs_make_model_config *c, int i, plan *out)
{
    int64_t hidden = c->n_hidden, q = (int64_t)c->n_heads * c->head_dim,
            kv = (int64_t)c->n_kv_heads * c->head_dim;
    float wide = 1.0f / sqrtf((float)hidden), sharp = wide * sqrtf(SCORE_STD);
    const plan layer[LAYER_TENSORS] = {
        {"attn_norm", BS_TYPE_F32, hidden, 0, FILL_NORM, 1},
        {"attn_q", c->type, hidden, q, FILL_NORMAL, sharp},
        {"attn_k", c->type, hidden, kv, FILL_NORMAL, sharp},
        {"attn_v", c->type, hidden, kv, FILL_NORMAL, wide},
        {"attn_output", c->type, q, hidden, FILL_NORMAL, 1.0f / sqrtf((float)q)},
        {"ffn_norm", BS_TYPE_F32, hidden, 0, FILL_NORM, 1},
        {"ffn_gate", c->type, hidden, c->n_ffn, FILL_NORMAL, wide},
        {"ffn_up", c->type, hidden, c->n_ffn, FILL_NORMAL, wide},
        {"ffn_down", c->type, c->n_ffn, hidden, FILL_NORMAL, FFN_GAIN / sqrtf((float)c->n_ffn)},
    };
    const plan others[] = {
        {"token_embd.weight", c->type, hidden, c->n_vocab, FILL_NORMAL, 1},
        {"output_norm.weight", BS_TYPE_F32, hidden, 0, FILL_SIGNED_NORM,
         LOGIT_STD * (c->tied_output ? wide : 1)},
        {"rope_freqs.weight", BS_TYPE_F32, c->head_dim / 2, 0, FILL_FREQS, 8},
        {"output.weight", c->type, hidden, c->n_vocab, FILL_NORMAL, wide},
    };
    const plan *chosen[4] = {&others[0], &others[1]};
    int n_others = 2;
    if (c->rope_freqs) chosen[n_others++] = &others[2];
    if (!c->tied_output) chosen[n_others++] = &others[3];
    if (i < n_others) {
        *out = *chosen[i];
        return true;
    }
    int l = (i - n_others) / LAYER_TENSORS;
    if (l >= c->n_layers) return false;
    *out = layer[(i - n_others) % LAYER_TENSORS];
    snprintf(out->name, sizeof out->name, "blk.%d.%s.weight", l, layer[(i - n_others) % LAYER_TENSORS].name);
    return true;
}

static bs_status write_tensor(bs_gguf_writer *writer, uint64_t seed, const plan *t, float *scratch,
                              uint8_t *blocks)
{
    stream s = stream_of(seed, t->name);
    size_t row_bytes = (size_t)(t->n_cols / bs_type_block(t->type)) * (size_t)bs_type_block_bytes(t->type);
    if (t->fill == FILL_NORMAL) {
        for (int64_t row = 0; row < t->n_rows; row++) {
            BS_TRY(draw_row(&s, t->type, t->scale, t->n_cols, scratch, blocks));
            BS_TRY(bs_gguf_writer_data(writer, blocks, row_bytes));
        }
        return BS_STATUS_OK;
    }
    for (int64_t i = 0; i < t->n_cols; i++) {
        float sign = t->fill == FILL_SIGNED_NORM && next(&s) >> 63 ? -1.0f : 1.0f;
        if (t->fill == FILL_FREQS) scratch[i] = 1.0f + (t->scale - 1.0f) * (float)i / (float)t->n_cols;
        else scratch[i] = sign * t->scale * (1.0f + 0.05f * normal(&s));
    }
    return bs_gguf_writer_data(writer, scratch, row_bytes);
}

static bs_status write_model(bs_gguf_writer *writer, const bs_make_model_config *c, const char *path)
{
    bs_status status = BS_STATUS_OK;
    plan t;
    int64_t widest = 0;
    put_keys(writer, c);
    BS_TRY(put_tokenizer(writer, c->n_vocab));
    for (int i = 0; plan_tensor(c, i, &t); i++) {
        bs_gguf_add_tensor(writer, t.name, t.type, t.n_cols, t.n_rows);
        if (t.n_cols > widest) widest = t.n_cols;
    }
    float *scratch = malloc(sizeof *scratch * (size_t)widest);
    uint8_t *blocks = malloc(sizeof(float) * (size_t)widest); /* no type takes more than f32 */
    if (!scratch || !blocks) {
        status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for a row of %lld", path, (long long)widest);
        goto done;
    }
    BS_TRY_GOTO(bs_gguf_writer_begin(writer, path), done);
    for (int i = 0; plan_tensor(c, i, &t); i++)
        BS_TRY_GOTO(write_tensor(writer, c->seed, &t, scratch, blocks), done);
    BS_TRY_GOTO(bs_gguf_writer_finish(writer), done);
done:
    free(scratch);
    free(blocks);
    return status;
}

bs_status bs_make_model(const bs_make_model_config *config, const char *path)
{
    bs_gguf_writer *writer;
    BS_TRY(check_config(config));
    BS_TRY(bs_gguf_writer_create(&writer));
    bs_status status = write_model(writer, config, path);
    bs_gguf_writer_free(writer);
    return status;
}
