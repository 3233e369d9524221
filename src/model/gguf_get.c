/* gguf_get.c: looking things up in an open GGUF file. What is malformed was refused when it was opened; what
 * is left to say here is that a key is missing, has another type, or holds a number that the caller cannot
 * use. */
#include "src/model/gguf_private.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    int bytes;
} types[] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
             {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

static const char *type_name(bs_gguf_type type)
{
    return types[type].name;
}

int bs_gguf_scalar_bytes(bs_gguf_type type)
{
    return types[type].bytes;
}

bool bs_gguf_is_int(bs_gguf_type type)
{
    return type <= BS_GGUF_I32 || type == BS_GGUF_U64 || type == BS_GGUF_I64;
}

int64_t bs_gguf_read_int(bs_gguf_type type, const uint8_t *value)
{
    uint64_t bits = 0;
    memcpy(&bits, value, (size_t)types[type].bytes); /* little-endian, like the file */
    switch (type) {
    case BS_GGUF_I8: return (int8_t)bits;
    case BS_GGUF_I16: return (int16_t)bits;
    case BS_GGUF_I32: return (int32_t)bits;
    case BS_GGUF_I64: return (int64_t)bits;
    default: return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    }
}

const char *bs_gguf_path(const bs_gguf *gguf)
{
    return gguf->path;
}

uint64_t bs_gguf_file_bytes(const bs_gguf *gguf)
{
    return gguf->bytes;
}

int64_t bs_gguf_n_tensors(const bs_gguf *gguf)
{
    return gguf->n_tensors;
}

const bs_tensor *bs_gguf_tensor_at(const bs_gguf *gguf, int64_t i)
{
    return &gguf->tensors[i];
}

const bs_tensor *bs_gguf_find_tensor(const bs_gguf *gguf, const char *name)
{
    bs_string wanted = {name, strlen(name)};
    int64_t low = 0, high = gguf->n_tensors;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const bs_tensor *tensor = &gguf->tensors[gguf->tensor_order[middle]];
        int order = bs_gguf_compare(wanted, tensor->name);
        if (order == 0) return tensor;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

static const bs_gguf_pair *find_pair(const bs_gguf *gguf, const char *key)
{
    bs_string wanted = {key, strlen(key)};
    int64_t low = 0, high = gguf->n_pairs;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const bs_gguf_pair *pair = &gguf->pairs[gguf->pair_order[middle]];
        int order = bs_gguf_compare(wanted, pair->key);
        if (order == 0) return pair;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* *pair is NULL when the key is not there and need not be. */
static bs_status look_up(const bs_gguf *gguf, const char *key, bool *found, const bs_gguf_pair **pair)
{
    *pair = find_pair(gguf, key);
    if (!*pair && !found) return bs_fail(BS_STATUS_FORMAT, "%s: %s is missing", gguf->path, key);
    if (found) *found = *pair != NULL;
    return BS_STATUS_OK;
}

static bs_status wrong_type(const bs_gguf *gguf, const bs_gguf_pair *pair, const char *wanted)
{
    bool array = pair->type == BS_GGUF_ARRAY;
    return bs_fail(BS_STATUS_FORMAT, "%s: %.*s is of type %s%s: must be %s", gguf->path,
                   bs_gguf_shown(pair->key), pair->key.text, array ? "array of " : "",
                   type_name(array ? pair->item_type : pair->type), wanted);
}

bs_status bs_gguf_get_int(const bs_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out,
                          bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    if (!bs_gguf_is_int(pair->type)) return wrong_type(gguf, pair, "an integer");
    int64_t value = bs_gguf_read_int(pair->type, pair->value);
    if (value < min || value > max)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %" PRId64 ": must be %" PRId64 " … %" PRId64, gguf->path,
                       key, value, min, max);
    *out = value;
    return BS_STATUS_OK;
}

bs_status bs_gguf_get_float(const bs_gguf *gguf, const char *key, double *out, bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    float f32;
    double value;
    if (pair->type == BS_GGUF_F32) {
        memcpy(&f32, pair->value, sizeof f32);
        value = f32;
    } else if (pair->type == BS_GGUF_F64) {
        memcpy(&value, pair->value, sizeof value);
    } else {
        return wrong_type(gguf, pair, "f32 or f64");
    }
    if (!isfinite(value))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s is %f: must be finite", gguf->path, key, value);
    *out = value;
    return BS_STATUS_OK;
}

bs_status bs_gguf_get_bool(const bs_gguf *gguf, const char *key, bool *out, bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    if (pair->type != BS_GGUF_BOOL) return wrong_type(gguf, pair, "bool");
    *out = *pair->value != 0;
    return BS_STATUS_OK;
}

bs_status bs_gguf_get_string(const bs_gguf *gguf, const char *key, bs_string *out, bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    if (pair->type != BS_GGUF_STRING) return wrong_type(gguf, pair, "a string");
    uint64_t bytes;
    memcpy(&bytes, pair->value, sizeof bytes);
    *out = (bs_string){(const char *)pair->value + sizeof bytes, bytes};
    return BS_STATUS_OK;
}

bs_status bs_gguf_get_strings(const bs_gguf *gguf, const char *key, const bs_string **out, int64_t *n,
                              bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    if (pair->type != BS_GGUF_ARRAY || !pair->strings) return wrong_type(gguf, pair, "an array of strings");
    *out = pair->strings;
    *n = pair->n_items;
    return BS_STATUS_OK;
}

bs_status bs_gguf_get_ints(const bs_gguf *gguf, const char *key, const int64_t **out, int64_t *n, bool *found)
{
    const bs_gguf_pair *pair;
    BS_TRY(look_up(gguf, key, found, &pair));
    if (!pair) return BS_STATUS_OK;
    if (pair->type != BS_GGUF_ARRAY || !pair->ints) return wrong_type(gguf, pair, "an array of integers");
    *out = pair->ints;
    *n = pair->n_items;
    return BS_STATUS_OK;
}
