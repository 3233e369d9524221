/* fingerprint.c: what a snapshot is bound to: a model, its positions, its tokenizer, the cache's format.
 *
 * A cache is right only for the weights that made it. Each field is a text, so that a difference can be shown as it is: the
 * field and both values. The number of ranks is not among them: the bytes are canonical.
 */
#include "src/snapshot/snapshot_private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const bs_snap_field_name[BS_SNAP_N_FIELDS] = {
#define X(name) [BS_SNAP_FIELD_##name] = #name,
    BS_SNAP_FIELD_LIST(X)
#undef X
};

bs_status bs_snap_fingerprint_compare(const bs_snap_fingerprint *snapshot, const bs_snap_fingerprint *ours,
                                      const char *where)
{
    for (int i = 0; i < BS_SNAP_N_FIELDS; i++)
        if (strcmp(snapshot->value[i], ours->value[i]) != 0)
            return bs_fail(BS_STATUS_MISMATCH, "%s: %s: the snapshot's is \"%s\", this run's is \"%s\"",
                           where, bs_snap_field_name[i], snapshot->value[i], ours->value[i]);
    return BS_STATUS_OK;
}

/* ---- filling ----------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static void set(bs_snap_fingerprint *f, bs_snap_field field,
                                                      const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f->value[field], sizeof f->value[field], format, arguments);
    va_end(arguments);
}

static void set_digest(bs_snap_fingerprint *f, bs_snap_field field, const uint8_t digest[32])
{
    char hex[BS_SHA256_HEX];
    bs_sha256_to_hex(digest, hex);
    set(f, field, "%s", hex);
}

/* Numbers are hashed as little-endian bytes of fixed sizes. */
static void hash_layers(const bs_model_desc *d, uint8_t out[32])
{
    bs_sha256_state state;
    bs_sha256_init(&state);
    for (int i = 0; i < d->n_layers; i++) {
        const int32_t layer[2] = {d->layers[i].window, d->layers[i].rope};
        bs_sha256_update(&state, layer, sizeof layer);
    }
    bs_sha256_final(&state, out);
}

void bs_snap_fingerprint_fill(const bs_model_desc *d, const bs_kv_format *format,
                              const uint8_t *tokenizer_sha256, bs_snap_fingerprint *f)
{
    char kv[BS_KV_FORMAT_NAME];
    uint8_t digest[32];
    memset(f, 0, sizeof *f);
    set(f, BS_SNAP_FIELD_architecture, "%s", d->architecture);
    set(f, BS_SNAP_FIELD_n_layers, "%d", d->n_layers);
    set(f, BS_SNAP_FIELD_n_hidden, "%d", d->n_hidden);
    set(f, BS_SNAP_FIELD_n_heads, "%d", d->n_heads);
    set(f, BS_SNAP_FIELD_n_kv_heads, "%d", d->n_kv_heads);
    set(f, BS_SNAP_FIELD_head_dim, "%d", d->head_dim);
    set(f, BS_SNAP_FIELD_n_ffn, "%d", d->n_ffn);
    set(f, BS_SNAP_FIELD_n_vocab, "%d", d->n_vocab);
    set(f, BS_SNAP_FIELD_rms_eps, "%.9g", (double)d->rms_eps);
    set(f, BS_SNAP_FIELD_attn_scale, "%.9g", (double)d->attn_scale);
    hash_layers(d, digest);
    set_digest(f, BS_SNAP_FIELD_layers_sha256, digest);
    set(f, BS_SNAP_FIELD_rope_kind, "%s", bs_rope_kind_name(d->rope_kind));
    set(f, BS_SNAP_FIELD_rope_theta, "%.17g", d->rope_theta);
    set(f, BS_SNAP_FIELD_rope_dims, "%d", d->n_rot);
    set(f, BS_SNAP_FIELD_rope_interleaved, "%d", d->rope_interleaved);
    set(f, BS_SNAP_FIELD_rope_attention_factor, "%.9g", (double)d->rope_attention_factor);
    bs_sha256(d->inv_freq, (size_t)(d->n_rot / 2) * sizeof d->inv_freq[0], digest);
    set_digest(f, BS_SNAP_FIELD_rope_sha256, digest);
    if (tokenizer_sha256) set_digest(f, BS_SNAP_FIELD_tokenizer_sha256, tokenizer_sha256);
    bs_kv_format_name(format, kv);
    set(f, BS_SNAP_FIELD_kv, "%s", kv);
    set(f, BS_SNAP_FIELD_v_encoder, "%s", format->v_encoder == BS_V_ENCODER_PLAIN ? "plain" : "best");
    set(f, BS_SNAP_FIELD_page_tokens, "%d", BS_PAGE_TOKENS);
    set(f, BS_SNAP_FIELD_block_tokens, "%d", BS_BLOCK_TOKENS);
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

static bs_status read_int(const bs_snap_fingerprint *f, bs_snap_field field, const char *where, long min,
                          long max, int *out)
{
    char *end;
    errno = 0;
    const long value = strtol(f->value[field], &end, 10);
    if (errno != 0 || end == f->value[field] || *end != 0 || value < min || value > max)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s \"%s\": must be %ld … %ld", where, bs_snap_field_name[field],
                       f->value[field], min, max);
    *out = (int)value;
    return BS_STATUS_OK;
}

bs_status bs_snap_fingerprint_shape(const bs_snap_fingerprint *f, const char *where, bs_snap_shape *out)
{
    int n_layers, n_kv_heads, head_dim, fixed;
    bs_kv_format format;
    char name[BS_KV_FORMAT_NAME];
    BS_TRY(read_int(f, BS_SNAP_FIELD_page_tokens, where, BS_PAGE_TOKENS, BS_PAGE_TOKENS, &fixed));
    BS_TRY(read_int(f, BS_SNAP_FIELD_block_tokens, where, BS_BLOCK_TOKENS, BS_BLOCK_TOKENS, &fixed));
    BS_TRY(read_int(f, BS_SNAP_FIELD_n_layers, where, 1, 1 << 16, &n_layers));
    BS_TRY(read_int(f, BS_SNAP_FIELD_n_kv_heads, where, 1, 1 << 16, &n_kv_heads));
    BS_TRY(read_int(f, BS_SNAP_FIELD_head_dim, where, 1, BS_MAX_HEAD_DIM, &head_dim));
    if (head_dim % 32 != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: head_dim \"%d\": must be a multiple of 32", where, head_dim);
    char scratch[128]; /* it would speak of an option */
    const bs_error_diversion before = bs_error_divert(scratch, sizeof scratch);
    const bs_status status = bs_kv_format_parse(f->value[BS_SNAP_FIELD_kv], &format);
    bs_error_divert_back(before);
    if (status != BS_STATUS_OK)
        return bs_fail(BS_STATUS_FORMAT, "%s: kv \"%s\": is not a KV format", where,
                       f->value[BS_SNAP_FIELD_kv]);
    bs_kv_format_name(&format, name);
    if (strcmp(name, f->value[BS_SNAP_FIELD_kv]) != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: kv \"%s\": must be written \"%s\"", where,
                       f->value[BS_SNAP_FIELD_kv], name);
    *out = bs_snap_shape_of(n_layers, n_kv_heads, head_dim, &format);
    return BS_STATUS_OK;
}
