/* manifest.c: what seals a snapshot: JSON with sorted keys, whose file is named after its SHA-256.
 *
 * A reader checks the digest first, so what it parses was written by this program or by somebody who may write to the
 * directory; every number is checked all the same. The geometry of each file (its pages, its parts' sizes) follows from the
 * shape and the state by shape.c, so of it only offsets and digests are believed; that the rest agrees is a check.
 * Seeds have 64 bits and JSON's integers here 63: they are texts. Floats are written with 17 digits and come back exactly.
 */
#include "config.h"

#include "src/model/json_file.h"
#include "src/snapshot/snapshot_private.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_INT INT64_C(0x7fffffffffffffff)
static const char format_name[] = "bitshard snapshot";

/* ---- names ------------------------------------------------------------------------------------------------- */

void bs_snap_manifest_name(int64_t number, const uint8_t sha256[32], char name[BS_SNAP_MANIFEST_NAME])
{
    char hex[BS_SHA256_HEX];
    bs_sha256_to_hex(sha256, hex);
    snprintf(name, BS_SNAP_MANIFEST_NAME, "manifest-%08" PRId64 "-%s.json", number, hex);
}

bool bs_snap_manifest_parse_name(const char *name, int64_t *number, uint8_t sha256[32])
{
    char again[BS_SNAP_MANIFEST_NAME], hex[BS_SHA256_HEX];
    uint8_t digest[32];
    char *end;
    if (strncmp(name, "manifest-", 9) != 0 || name[9] < '0' || name[9] > '9') return false;
    const long long n = strtoll(name + 9, &end, 10);
    if (n < 1 || *end != '-' || strlen(end) < BS_SHA256_HEX) return false;
    memcpy(hex, end + 1, BS_SHA256_HEX - 1);
    hex[BS_SHA256_HEX - 1] = 0;
    if (!bs_sha256_from_hex(hex, digest)) return false;
    bs_snap_manifest_name(n, digest, again); /* one spelling only */
    if (strcmp(name, again) != 0) return false;
    *number = n;
    memcpy(sha256, digest, sizeof digest);
    return true;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

static json_t *hex_json(const uint8_t digest[32])
{
    char hex[BS_SHA256_HEX];
    bs_sha256_to_hex(digest, hex);
    return json_string(hex);
}

static json_t *file_json(const bs_snap_file *f)
{
    json_t *parts = json_object();
    for (int i = 0; i < BS_SNAP_N_PARTS; i++)
        if (f->part[i].bytes != 0)
            json_object_set_new(parts, bs_snap_part_name[i],
                                json_pack("{s:I,s:I}", "offset", (json_int_t)f->part[i].offset, "bytes",
                                          (json_int_t)f->part[i].bytes));
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o}", "file", f->name, "first_page",
                     (json_int_t)f->first_page, "end_page", (json_int_t)f->end_page, "n_tokens",
                     (json_int_t)f->n_tokens, "bytes", (json_int_t)f->bytes, "datasets", parts,
                     "header_sha256", hex_json(f->header_sha256), "sums_sha256", hex_json(f->sums_sha256),
                     "chain_sha256", hex_json(f->chain_sha256));
}

static json_t *fingerprint_json(const bs_snap_fingerprint *fingerprint)
{
    json_t *object = json_object();
    for (int i = 0; i < BS_SNAP_N_FIELDS; i++)
        json_object_set_new(object, bs_snap_field_name[i], json_string(fingerprint->value[i]));
    return object;
}

static json_t *state_json(const bs_snapshot_state *s)
{
    char seed[32];
    snprintf(seed, sizeof seed, "%" PRIu64, s->sampling.seed);
    json_t *sampling = json_pack("{s:f,s:i,s:f,s:f,s:f,s:s}", "temperature", (double)s->sampling.temperature,
                                 "top_k", s->sampling.top_k, "top_p", (double)s->sampling.top_p, "min_p",
                                 (double)s->sampling.min_p, "repeat_penalty",
                                 (double)s->sampling.repeat_penalty, "seed", seed);
    return json_pack("{s:s,s:I,s:I,s:I,s:o,s:b}", "id", s->id, "n_prompt", (json_int_t)s->n_prompt,
                     "max_tokens", (json_int_t)s->max_tokens, "output_bytes", (json_int_t)s->output_bytes,
                     "sampling", sampling, "finished", s->finished);
}

static json_t *manifest_json(const bs_snap_manifest *m)
{
    json_t *segments = json_array();
    for (int i = 0; i + 1 < m->n_files; i++) json_array_append_new(segments, file_json(&m->files[i]));
    json_t *sequence = json_pack("{s:I,s:I,s:I,s:I,s:i,s:b,s:b}", "length", (json_int_t)m->cache.length,
                                 "n_tokens", (json_int_t)m->n_tokens, "quant_end",
                                 (json_int_t)m->cache.quant_end, "prompt_base",
                                 (json_int_t)m->cache.prompt_base, "start_s", m->cache.start_s, "in_prompt",
                                 m->cache.in_prompt, "prefilling", m->cache.prefilling);
    json_t *grid = json_pack("{s:i,s:i,s:i,s:i}", "heads", m->heads, "seq", m->seq, "stripe_pages",
                             m->stripe_pages, "chunk_tokens", m->chunk_tokens);
    return json_pack("{s:s,s:i,s:s,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "format", format_name, "version",
                     BS_SNAP_VERSION, "writer", m->writer, "number", (json_int_t)m->number, "parent",
                     (json_int_t)m->parent, "created", (json_int_t)m->created_s, "fingerprint",
                     fingerprint_json(&m->fingerprint), "sequence", sequence, "grid", grid, "state",
                     state_json(&m->state), "segments", segments, "tail",
                     file_json(&m->files[m->n_files - 1]));
}

bs_status bs_snap_manifest_write(const bs_snap_manifest *manifest, char **text, size_t *bytes,
                                 uint8_t sha256[32])
{
    json_t *root = manifest_json(manifest);
    char *dumped = root ? json_dumps(root, JSON_SORT_KEYS | JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (!dumped)
        return bs_fail(BS_STATUS_NOMEM, "snapshot %" PRId64 ": no memory for its manifest", manifest->number);
    *bytes = strlen(dumped);
    *text = dumped;
    bs_sha256(dumped, *bytes, sha256);
    return BS_STATUS_OK;
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

static bs_json at(const char *path, const char *where, json_t *object)
{
    return (bs_json){.path = path, .where = where, .object = object};
}

static bs_status bad(const bs_json *json, const char *key, const char *what)
{
    return bs_fail(BS_STATUS_FORMAT, "%s: %s%s: %s", json->path, json->where, key, what);
}

static bs_status get_int(const bs_json *json, const char *key, int64_t min, int64_t max, int *out)
{
    int64_t value;
    BS_TRY(bs_json_get_int(json, key, min, max, &value, NULL));
    *out = (int)value;
    return BS_STATUS_OK;
}

/* A text of fewer than `bytes` bytes, none of them a control character. */
static bs_status get_text(const bs_json *json, const char *key, char *out, size_t bytes)
{
    bs_string text;
    BS_TRY(bs_json_get_string(json, key, &text, NULL));
    if (text.bytes >= bytes) return bad(json, key, "is too long");
    for (size_t i = 0; i < text.bytes; i++)
        if ((unsigned char)text.text[i] < ' ' || text.text[i] == 127)
            return bad(json, key, "has control characters");
    memcpy(out, text.text, text.bytes);
    out[text.bytes] = 0;
    return BS_STATUS_OK;
}

static bs_status get_digest(const bs_json *json, const char *key, uint8_t out[32])
{
    char hex[BS_SHA256_HEX];
    BS_TRY(get_text(json, key, hex, sizeof hex));
    return bs_sha256_from_hex(hex, out) ? BS_STATUS_OK : bad(json, key, "is not a SHA-256");
}

static bs_status get_f32(const bs_json *json, const char *key, float *out)
{
    double value;
    BS_TRY(bs_json_get_float(json, key, -3.4e38, 3.4e38, &value, NULL));
    *out = (float)value;
    return BS_STATUS_OK;
}

static bs_status read_fingerprint(const bs_json *root, bs_snap_fingerprint *out)
{
    json_t *object;
    BS_TRY(bs_json_get_object(root, "fingerprint", &object, NULL));
    const bs_json json = at(root->path, "fingerprint.", object);
    for (int i = 0; i < BS_SNAP_N_FIELDS; i++)
        BS_TRY(get_text(&json, bs_snap_field_name[i], out->value[i], sizeof out->value[i]));
    return BS_STATUS_OK;
}

static bs_status read_sequence(const bs_json *root, bs_snap_manifest *m)
{
    json_t *object;
    BS_TRY(bs_json_get_object(root, "sequence", &object, NULL));
    const bs_json json = at(root->path, "sequence.", object);
    BS_TRY(bs_json_get_int(&json, "length", 0, INT32_MAX, &m->cache.length, NULL));
    BS_TRY(bs_json_get_int(&json, "n_tokens", m->cache.length, (int64_t)INT32_MAX + 1, &m->n_tokens, NULL));
    const int64_t complete = m->cache.length / BS_PAGE_TOKENS, sink = m->shape.n_sink;
    BS_TRY(bs_json_get_int(&json, "quant_end", m->shape.is_f16 ? 0 : sink,
                           m->shape.is_f16   ? 0
                           : complete > sink ? complete
                                             : sink,
                           &m->cache.quant_end, NULL));
    BS_TRY(bs_json_get_int(&json, "prompt_base", 0, INT32_MAX, &m->cache.prompt_base, NULL));
    BS_TRY(get_int(&json, "start_s", 0, 1 << 20, &m->cache.start_s));
    BS_TRY(bs_json_get_bool(&json, "in_prompt", &m->cache.in_prompt, NULL));
    return bs_json_get_bool(&json, "prefilling", &m->cache.prefilling, NULL);
}

static bs_status read_grid(const bs_json *root, bs_snap_manifest *m)
{
    json_t *object;
    BS_TRY(bs_json_get_object(root, "grid", &object, NULL));
    const bs_json json = at(root->path, "grid.", object);
    BS_TRY(get_int(&json, "heads", 1, m->shape.n_kv_heads, &m->heads));
    BS_TRY(get_int(&json, "seq", 1, 1 << 20, &m->seq));
    BS_TRY(get_int(&json, "stripe_pages", 1, 1 << 20, &m->stripe_pages));
    return get_int(&json, "chunk_tokens", BS_PAGE_TOKENS, 1 << 24, &m->chunk_tokens);
}

static bs_status read_sampling(const bs_json *state, bs_sampling *out)
{
    json_t *object;
    char seed[32], *end;
    int top_k;
    BS_TRY(bs_json_get_object(state, "sampling", &object, NULL));
    const bs_json json = at(state->path, "state.sampling.", object);
    BS_TRY(get_f32(&json, "temperature", &out->temperature));
    BS_TRY(get_int(&json, "top_k", 0, INT32_MAX, &top_k));
    out->top_k = top_k;
    BS_TRY(get_f32(&json, "top_p", &out->top_p));
    BS_TRY(get_f32(&json, "min_p", &out->min_p));
    BS_TRY(get_f32(&json, "repeat_penalty", &out->repeat_penalty));
    BS_TRY(get_text(&json, "seed", seed, sizeof seed));
    out->seed = strtoull(seed, &end, 10);
    return seed[0] >= '0' && seed[0] <= '9' && *end == 0 ? BS_STATUS_OK
                                                         : bad(&json, "seed", "is not a number");
}

static bs_status read_state(const bs_json *root, bs_snap_manifest *m)
{
    json_t *object;
    BS_TRY(bs_json_get_object(root, "state", &object, NULL));
    const bs_json json = at(root->path, "state.", object);
    BS_TRY(get_text(&json, "id", m->state.id, sizeof m->state.id));
    BS_TRY(bs_json_get_int(&json, "n_prompt", 0, m->n_tokens, &m->state.n_prompt, NULL));
    BS_TRY(bs_json_get_int(&json, "max_tokens", 0, MOST_INT, &m->state.max_tokens, NULL));
    BS_TRY(bs_json_get_int(&json, "output_bytes", -1, MOST_INT, &m->state.output_bytes, NULL));
    BS_TRY(bs_json_get_bool(&json, "finished", &m->state.finished, NULL));
    return read_sampling(&json, &m->state.sampling);
}

/* Offsets of the parts that the geometry asks for; inside the file, none over another. */
static bs_status read_parts(const bs_json *file, bs_snap_file *f)
{
    json_t *object;
    uint64_t n = 0;
    BS_TRY(bs_json_get_object(file, "datasets", &object, NULL));
    for (int i = 0; i < BS_SNAP_N_PARTS; i++) {
        json_t *part;
        int64_t offset, bytes;
        if (f->part[i].bytes == 0) continue;
        const bs_json json = at(file->path, "datasets.", object);
        BS_TRY(bs_json_get_object(&json, bs_snap_part_name[i], &part, NULL));
        const bs_json inner = at(file->path, bs_snap_part_name[i], part);
        BS_TRY(bs_json_get_int(&inner, "bytes", 1, MOST_INT, &bytes, NULL));
        BS_TRY(bs_json_get_int(&inner, "offset", 1, MOST_INT, &offset, NULL));
        if ((uint64_t)bytes != f->part[i].bytes)
            return bs_fail(BS_STATUS_FORMAT, "%s: %s: dataset %s has %" PRId64 " bytes: must be %" PRIu64,
                           file->path, f->name, bs_snap_part_name[i], bytes, f->part[i].bytes);
        f->part[i].offset = (uint64_t)offset;
        if ((uint64_t)offset > f->bytes || f->part[i].bytes > f->bytes - (uint64_t)offset)
            return bad(file, bs_snap_part_name[i], "lies beyond the file's end");
        for (int j = 0; j < i; j++)
            if (f->part[j].bytes != 0 && f->part[j].offset < f->part[i].offset + f->part[i].bytes &&
                f->part[i].offset < f->part[j].offset + f->part[j].bytes)
                return bad(file, bs_snap_part_name[i], "lies over another dataset");
        n++;
    }
    return json_object_size(object) == n ? BS_STATUS_OK : bad(file, "datasets", "has one too many");
}

/* f: with the geometry that it must have. */
static bs_status read_file(const char *path, json_t *object, bool tail, bs_snap_file *f)
{
    int64_t first, end, n_tokens, bytes;
    if (!json_is_object(object)) return bs_fail(BS_STATUS_FORMAT, "%s: a segment is not an object", path);
    const bs_json json = at(path, tail ? "tail." : "segments.", object);
    BS_TRY(get_text(&json, "file", f->name, sizeof f->name));
    if (!bs_snap_is_data_name(f->name)) return bad(&json, "file", "is not a segment's or tail's name");
    BS_TRY(bs_json_get_int(&json, "first_page", f->first_page, f->first_page, &first, NULL));
    BS_TRY(bs_json_get_int(&json, "end_page", f->end_page, f->end_page, &end, NULL));
    BS_TRY(bs_json_get_int(&json, "n_tokens", f->n_tokens, f->n_tokens, &n_tokens, NULL));
    BS_TRY(bs_json_get_int(&json, "bytes", 1, MOST_INT, &bytes, NULL));
    f->bytes = (uint64_t)bytes;
    BS_TRY(get_digest(&json, "header_sha256", f->header_sha256));
    BS_TRY(get_digest(&json, "sums_sha256", f->sums_sha256));
    BS_TRY(get_digest(&json, "chain_sha256", f->chain_sha256));
    return read_parts(&json, f);
}

static bs_status read_files(const bs_json *root, bs_snap_manifest *m)
{
    json_t *segments, *tail;
    int64_t first = 0;
    BS_TRY(bs_json_get_array(root, "segments", &segments, NULL));
    BS_TRY(bs_json_get_object(root, "tail", &tail, NULL));
    const size_t n = json_array_size(segments);
    const int64_t all = bs_snap_segments_end(&m->shape, &m->cache);
    if (n > BS_SNAP_READ_SEGMENTS) return bad(root, "segments", "are too many");
    m->files = calloc(n + 1, sizeof *m->files);
    if (!m->files) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for %zu segments", root->path, n);
    m->n_files = (int)n + 1;
    for (size_t i = 0; i < n; i++) {
        json_t *object = json_array_get(segments, i);
        const bs_json json = at(root->path, "segments.", object);
        int64_t end;
        if (!json_is_object(object)) return bad(root, "segments", "has one that is not an object");
        BS_TRY(bs_json_get_int(&json, "end_page", first + 1, all, &end, NULL));
        if (end % BS_SNAP_BLOCK_PAGES != 0) return bad(&json, "end_page", "is not the end of a block");
        bs_snap_segment_of(&m->shape, first, end, &m->files[i]);
        BS_TRY(read_file(root->path, object, false, &m->files[i]));
        first = end;
    }
    if (first != all) return bad(root, "segments", "do not hold all sealed blocks");
    bs_snap_tail_of(&m->shape, first, &m->cache, m->n_tokens, &m->files[n]);
    return read_file(root->path, tail, true, &m->files[n]);
}

static bs_status check_version(const bs_json *root)
{
    bs_string format;
    int64_t version;
    BS_TRY(bs_json_get_string(root, "format", &format, NULL));
    if (!bs_string_is(format, format_name)) return bad(root, "format", "is not a bitshard snapshot");
    BS_TRY(bs_json_get_int(root, "version", 1, MOST_INT, &version, NULL));
    if (version == BS_SNAP_VERSION) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "%s: version: the snapshot's is %" PRId64 ", this program's is %d",
                   root->path, version, BS_SNAP_VERSION);
}

static bs_status read_all(const bs_json *root, bs_snap_manifest *m)
{
    BS_TRY(check_version(root));
    BS_TRY(get_text(root, "writer", m->writer, sizeof m->writer));
    BS_TRY(bs_json_get_int(root, "number", 1, MOST_INT, &m->number, NULL));
    BS_TRY(bs_json_get_int(root, "parent", 0, m->number - 1, &m->parent, NULL));
    BS_TRY(bs_json_get_int(root, "created", 0, MOST_INT, &m->created_s, NULL));
    BS_TRY(read_fingerprint(root, &m->fingerprint));
    BS_TRY(bs_snap_fingerprint_shape(&m->fingerprint, root->path, &m->shape));
    BS_TRY(read_sequence(root, m));
    BS_TRY(read_grid(root, m));
    BS_TRY(read_state(root, m));
    return read_files(root, m);
}

bs_status bs_snap_manifest_read(const char *text, size_t bytes, const char *where, bs_snap_manifest *out)
{
    json_t *object;
    bs_snap_manifest m = {0};
    BS_TRY(bs_json_parse(where, text, bytes, &object));
    const bs_json root = at(where, "", object);
    bs_status status = read_all(&root, &m);
    json_decref(object);
    if (status == BS_STATUS_OK) *out = m;
    else bs_snap_manifest_free(&m);
    return status;
}

void bs_snap_manifest_free(bs_snap_manifest *manifest)
{
    free(manifest->files);
    manifest->files = NULL;
    manifest->n_files = 0;
}
