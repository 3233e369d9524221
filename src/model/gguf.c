/* gguf.c: opening a GGUF file: everything is checked here, once, so that nobody behind it has to.
 *
 * The header is walked with a cursor that knows how many bytes are left; every count and length is compared
 * with that before it is believed, multiplied or allocated for. So a hostile file can make us allocate a
 * small multiple of its own size at most. Strings stay in the mapping; arrays of strings get an index (a
 * vocabulary is looked up by number), arrays of integers are widened. Duplicate names are found by sorting,
 * which also serves the lookups.
 *
 * What a check has found is said in one line: file, field, value. Refused although other readers take them:
 * nested arrays (no model has one), big-endian files, gaps in the order of tensors. Padding between tensors
 * is allowed.
 */
#include "config.h"
#include "src/model/gguf_private.h"
#include "src/base/checked.h"
#include "src/model/map.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_PAIRS = 65536,
    MAX_TENSORS = 65536,
    MAX_ITEMS = 1 << 24, /* of one array: the largest vocabulary has 2¹⁸ */
    MAX_KEY_BYTES = 65535,
    MAX_NAME_BYTES = 64,
    MAX_ALIGNMENT = 1 << 20,
    DEFAULT_ALIGNMENT = 32
};

typedef struct cursor {
    const bs_gguf *gguf;
    uint64_t at;
} cursor;

static uint64_t left(const cursor *c)
{
    return c->gguf->bytes - c->at;
}

/* What a line says about a cut file. `what` is the field, of `owner` if that is named. */
static bs_status cut_short(const cursor *c, const char *what, bs_string owner, uint64_t needed)
{
    return bs_fail(BS_STATUS_FORMAT,
                   "%s: %s%s%.*s needs %" PRIu64 " bytes at byte %" PRIu64 ", the file has %" PRIu64 " left",
                   c->gguf->path, what, owner.bytes ? " of " : "", bs_gguf_shown(owner), owner.text, needed,
                   c->at, left(c));
}

static bs_status take(cursor *c, uint64_t bytes, const char *what, bs_string owner, const uint8_t **out)
{
    if (bytes > left(c)) return cut_short(c, what, owner, bytes);
    *out = c->gguf->map + c->at;
    c->at += bytes;
    return BS_STATUS_OK;
}

static bs_status take_u32(cursor *c, const char *what, bs_string owner, uint32_t *out)
{
    const uint8_t *p = NULL;
    BS_TRY(take(c, 4, what, owner, &p));
    memcpy(out, p, 4);
    return BS_STATUS_OK;
}

static bs_status take_u64(cursor *c, const char *what, bs_string owner, uint64_t *out)
{
    const uint8_t *p = NULL;
    BS_TRY(take(c, 8, what, owner, &p));
    memcpy(out, p, 8);
    return BS_STATUS_OK;
}

static bs_status take_string(cursor *c, const char *what, bs_string owner, bs_string *out)
{
    uint64_t bytes;
    BS_TRY(take_u64(c, what, owner, &bytes));
    const uint8_t *p = NULL;
    BS_TRY(take(c, bytes, what, owner, &p));
    *out = (bs_string){(const char *)p, bytes};
    return BS_STATUS_OK;
}

/* A key or tensor name: not empty, not longer than max_bytes, UTF-8. */
static bs_status take_name(cursor *c, const char *what, int64_t number, uint64_t max_bytes, bs_string *out)
{
    const char *path = c->gguf->path;
    bs_string nobody = {"", 0}, name;
    BS_TRY(take_string(c, what, nobody, &name));
    if (name.bytes == 0 || name.bytes > max_bytes)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s %" PRId64 " is %zu bytes long: must be 1 … %" PRIu64, path,
                       what, number, name.bytes, max_bytes);
    if (!bs_gguf_is_text(name))
        return bs_fail(BS_STATUS_FORMAT, "%s: %s %" PRId64 " is not UTF-8 text", path, what, number);
    *out = name;
    return BS_STATUS_OK;
}

/* ---- metadata ---------------------------------------------------------------------------------------------
 */

static bs_status take_value_type(cursor *c, const char *what, bs_string key, bs_gguf_type *out)
{
    uint32_t type;
    BS_TRY(take_u32(c, what, key, &type));
    if (type > BS_GGUF_F64)
        return bs_fail(BS_STATUS_FORMAT, "%s: %s of %.*s is %" PRIu32 ": must be 0 … %d", c->gguf->path, what,
                       bs_gguf_shown(key), key.text, type, BS_GGUF_F64);
    *out = (bs_gguf_type)type;
    return BS_STATUS_OK;
}

static bs_status check_bools(const cursor *c, bs_string key, const uint8_t *value, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (value[i] > 1)
            return bs_fail(BS_STATUS_FORMAT, "%s: value of %.*s is %d: a bool must be 0 or 1", c->gguf->path,
                           bs_gguf_shown(key), key.text, value[i]);
    return BS_STATUS_OK;
}

/* Walks the strings once to see that they are there, then allocates their index. */
static bs_status take_string_items(cursor *c, bs_gguf_pair *pair)
{
    cursor start = *c;
    bs_string s;
    for (int64_t i = 0; i < pair->n_items; i++) BS_TRY(take_string(c, "array item", pair->key, &s));
    pair->strings = malloc(sizeof *pair->strings * (size_t)(pair->n_items + 1));
    if (!pair->strings) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for an array", c->gguf->path);
    for (int64_t i = 0; i < pair->n_items; i++)
        BS_TRY(take_string(&start, "array item", pair->key, &pair->strings[i]));
    return BS_STATUS_OK;
}

static bs_status take_scalar_items(cursor *c, bs_gguf_pair *pair)
{
    int size = bs_gguf_scalar_bytes(pair->item_type);
    BS_TRY(take(c, (uint64_t)pair->n_items * (uint64_t)size, "array", pair->key, &pair->value));
    if (pair->item_type == BS_GGUF_BOOL) return check_bools(c, pair->key, pair->value, pair->n_items);
    if (!bs_gguf_is_int(pair->item_type)) return BS_STATUS_OK;
    pair->ints = malloc(sizeof *pair->ints * (size_t)(pair->n_items + 1));
    if (!pair->ints) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for an array", c->gguf->path);
    for (int64_t i = 0; i < pair->n_items; i++)
        pair->ints[i] = bs_gguf_read_int(pair->item_type, pair->value + i * size);
    return BS_STATUS_OK;
}

static bs_status take_array(cursor *c, bs_gguf_pair *pair)
{
    const char *path = c->gguf->path;
    uint64_t n;
    BS_TRY(take_value_type(c, "array item type", pair->key, &pair->item_type));
    BS_TRY(take_u64(c, "array length", pair->key, &n));
    if (pair->item_type == BS_GGUF_ARRAY)
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "%s: array item type of %.*s is array: nested arrays are not supported", path,
                       bs_gguf_shown(pair->key), pair->key.text);
    uint64_t least = pair->item_type == BS_GGUF_STRING ? 8 : (uint64_t)bs_gguf_scalar_bytes(pair->item_type);
    if (n > left(c) / least || n > MAX_ITEMS)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: array length of %.*s is %" PRIu64 ": more than the file's %" PRIu64
                       " bytes left can hold, or than %d",
                       path, bs_gguf_shown(pair->key), pair->key.text, n, left(c), MAX_ITEMS);
    pair->n_items = (int64_t)n;
    pair->value = c->gguf->map + c->at;
    return pair->item_type == BS_GGUF_STRING ? take_string_items(c, pair) : take_scalar_items(c, pair);
}

static bs_status take_pair(cursor *c, int64_t number, bs_gguf_pair *pair)
{
    BS_TRY(take_name(c, "key", number, MAX_KEY_BYTES, &pair->key));
    BS_TRY(take_value_type(c, "value type", pair->key, &pair->type));
    if (pair->type == BS_GGUF_ARRAY) return take_array(c, pair);
    pair->value = c->gguf->map + c->at;
    bs_string s;
    if (pair->type == BS_GGUF_STRING) return take_string(c, "value", pair->key, &s);
    BS_TRY(take(c, (uint64_t)bs_gguf_scalar_bytes(pair->type), "value", pair->key, &pair->value));
    return pair->type == BS_GGUF_BOOL ? check_bools(c, pair->key, pair->value, 1) : BS_STATUS_OK;
}

/* ---- order by name ----------------------------------------------------------------------------------------
 */

int bs_gguf_compare(bs_string a, bs_string b)
{
    int order = memcmp(a.text, b.text, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

typedef struct entry {
    bs_string name;
    uint32_t number;
} entry;

static int compare_entries(const void *a, const void *b)
{
    return bs_gguf_compare(((const entry *)a)->name, ((const entry *)b)->name);
}

/* Sorts n names that lie `stride` bytes apart; *order gets their numbers. A name that comes twice is an
 * error. */
static bs_status sort_names(const bs_gguf *gguf, const char *what, const void *names, size_t stride,
                            int64_t n, uint32_t **order)
{
    bs_status status = BS_STATUS_OK;
    entry *entries = malloc(sizeof *entries * (size_t)(n + 1));
    *order = malloc(sizeof **order * (size_t)(n + 1));
    if (!entries || !*order) {
        status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for %" PRId64 " names", gguf->path, n);
        goto done;
    }
    for (int64_t i = 0; i < n; i++) {
        entries[i].number = (uint32_t)i;
        memcpy(&entries[i].name, (const char *)names + (size_t)i * stride, sizeof entries[i].name);
    }
    qsort(entries, (size_t)n, sizeof *entries, compare_entries);
    for (int64_t i = 0; i < n; i++) {
        (*order)[i] = entries[i].number;
        if (i > 0 && bs_gguf_compare(entries[i - 1].name, entries[i].name) == 0) {
            status = bs_fail(BS_STATUS_FORMAT, "%s: %s %.*s comes twice", gguf->path, what,
                             bs_gguf_shown(entries[i].name), entries[i].name.text);
            goto done;
        }
    }
done:
    free(entries);
    return status;
}

/* ---- tensors ----------------------------------------------------------------------------------------------
 */

/* Type numbers that GGUF defines and this program has no kernels for, to name them. */
static const struct {
    uint32_t number;
    const char *name;
} foreign_types[] = {{9, "Q8_1"},   {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
                     {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},
                     {24, "I8"},    {25, "I16"},    {26, "I32"},     {27, "I64"},    {28, "F64"},
                     {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"}};

static bs_status find_tensor_type(const bs_gguf *gguf, bs_string name, uint32_t number, bs_type *out)
{
    switch (number) {
#define X(type, gguf_number, elements, block_bytes)                                                          \
    case gguf_number: *out = BS_TYPE_##type; return BS_STATUS_OK;
        BS_TYPE_LIST(X)
#undef X
    }
    for (size_t i = 0; i < sizeof foreign_types / sizeof *foreign_types; i++)
        if (foreign_types[i].number == number)
            return bs_fail(BS_STATUS_UNSUPPORTED,
                           "%s: type of tensor %.*s is %s (%" PRIu32 "): not supported", gguf->path,
                           bs_gguf_shown(name), name.text, foreign_types[i].name, number);
    return bs_fail(BS_STATUS_FORMAT, "%s: type of tensor %.*s is %" PRIu32 ": no such type", gguf->path,
                   bs_gguf_shown(name), name.text, number);
}

/* dims[0 … n_dims), and with them the bytes. The file's own size bounds the product, so it fits an int64_t.
 */
static bs_status size_tensor(const bs_gguf *gguf, const uint64_t *dims, bs_tensor *tensor)
{
    uint64_t block = (uint64_t)bs_type_block(tensor->type), blocks = 1, elements = 1;
    for (int d = 0; d < 4; d++) {
        if (dims[d] == 0 || dims[d] > INT64_MAX)
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: dimension %d of tensor %.*s is %" PRIu64 ": must be 1 … 2^63-1", gguf->path,
                           d, bs_gguf_shown(tensor->name), tensor->name.text, dims[d]);
        if (!bs_mul_u64(elements, dims[d], &elements) || elements > INT64_MAX)
            return bs_fail(BS_STATUS_FORMAT, "%s: elements of tensor %.*s are more than 2^63-1", gguf->path,
                           bs_gguf_shown(tensor->name), tensor->name.text);
        tensor->dims[d] = (int64_t)dims[d];
    }
    if (dims[0] % block != 0)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: dimension 0 of tensor %.*s is %" PRIu64
                       ": must be a multiple of %s's block of %" PRIu64,
                       gguf->path, bs_gguf_shown(tensor->name), tensor->name.text, dims[0],
                       bs_type_name(tensor->type), block);
    blocks = elements / block;
    if (!bs_mul_u64(blocks, (uint64_t)bs_type_block_bytes(tensor->type), &tensor->bytes))
        return bs_fail(BS_STATUS_FORMAT, "%s: bytes of tensor %.*s are more than 2^64-1", gguf->path,
                       bs_gguf_shown(tensor->name), tensor->name.text);
    return BS_STATUS_OK;
}

/* One entry of the table; data is left NULL and *offset says where it is to begin. */
static bs_status take_tensor(cursor *c, int64_t number, bs_tensor *tensor, uint64_t *offset)
{
    const char *path = c->gguf->path;
    uint32_t n_dims, type;
    uint64_t dims[4] = {1, 1, 1, 1};
    BS_TRY(take_name(c, "tensor name", number, MAX_NAME_BYTES, &tensor->name));
    BS_TRY(take_u32(c, "dimensions of tensor", tensor->name, &n_dims));
    if (n_dims < 1 || n_dims > 4)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: number of dimensions of tensor %.*s is %" PRIu32 ": must be 1 … 4", path,
                       bs_gguf_shown(tensor->name), tensor->name.text, n_dims);
    tensor->n_dims = (int)n_dims;
    for (uint32_t d = 0; d < n_dims; d++) BS_TRY(take_u64(c, "dimension of tensor", tensor->name, &dims[d]));
    BS_TRY(take_u32(c, "type of tensor", tensor->name, &type));
    BS_TRY(find_tensor_type(c->gguf, tensor->name, type, &tensor->type));
    BS_TRY(size_tensor(c->gguf, dims, tensor));
    return take_u64(c, "offset of tensor", tensor->name, offset);
}

static bs_status read_alignment(const bs_gguf *gguf, uint64_t *out)
{
    int64_t alignment = DEFAULT_ALIGNMENT;
    bool found;
    BS_TRY(bs_gguf_get_int(gguf, "general.alignment", 8, MAX_ALIGNMENT, &alignment, &found));
    if (alignment & (alignment - 1))
        return bs_fail(BS_STATUS_FORMAT, "%s: general.alignment is %" PRId64 ": must be a power of two",
                       gguf->path, alignment);
    *out = (uint64_t)alignment;
    return BS_STATUS_OK;
}

/* Puts the tensors' data where their offsets say: aligned, inside the file, in order, not overlapping. */
static bs_status place_tensors(bs_gguf *gguf, const cursor *c, const uint64_t *offsets)
{
    uint64_t alignment = DEFAULT_ALIGNMENT, start, end = 0;
    BS_TRY(read_alignment(gguf, &alignment));
    if (!bs_round_up_u64(c->at, alignment, &start)) return cut_short(c, "data", (bs_string){"", 0}, 1);
    uint64_t data_bytes = gguf->bytes > start ? gguf->bytes - start : 0;
    for (int64_t i = 0; i < gguf->n_tensors; i++) {
        bs_tensor *t = &gguf->tensors[i];
        int shown = bs_gguf_shown(t->name);
        uint64_t offset = offsets[i];
        if (offset % alignment != 0)
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: offset of tensor %.*s is %" PRIu64 ": must be a multiple of %" PRIu64,
                           gguf->path, shown, t->name.text, offset, alignment);
        if (offset < end)
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: offset of tensor %.*s is %" PRIu64
                           ": overlaps or comes before the tensor before it, "
                           "which ends at %" PRIu64,
                           gguf->path, shown, t->name.text, offset, end);
        if (!bs_add_u64(offset, t->bytes, &end) || end > data_bytes)
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: offset of tensor %.*s is %" PRIu64 ": its %" PRIu64
                           " bytes end behind the file's %" PRIu64 " bytes of data",
                           gguf->path, shown, t->name.text, offset, t->bytes, data_bytes);
        t->data = gguf->map + start + offset;
    }
    return BS_STATUS_OK;
}

/* ---- the file ---------------------------------------------------------------------------------------------
 */

static bs_status take_head(cursor *c, uint64_t *n_tensors, uint64_t *n_pairs)
{
    const char *path = c->gguf->path;
    const bs_string nobody = {"", 0};
    const uint8_t *magic;
    uint32_t version;
    BS_TRY(take(c, 4, "magic", nobody, &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: magic is %02x %02x %02x %02x: not a GGUF file", path, magic[0],
                       magic[1], magic[2], magic[3]);
    BS_TRY(take_u32(c, "version", nobody, &version));
    if (version != 3)
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "%s: version is %" PRIu32 "%s: only GGUF version 3 is supported", path, version,
                       version == 3u << 24 ? " (a big-endian file)" : "");
    BS_TRY(take_u64(c, "number of tensors", nobody, n_tensors));
    BS_TRY(take_u64(c, "number of keys", nobody, n_pairs));
    if (*n_tensors > MAX_TENSORS || *n_tensors > left(c) / 24)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: number of tensors is %" PRIu64 ": more than %d or than the file can hold", path,
                       *n_tensors, MAX_TENSORS);
    if (*n_pairs > MAX_PAIRS || *n_pairs > left(c) / 13)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: number of keys is %" PRIu64 ": more than %d or than the file can hold", path,
                       *n_pairs, MAX_PAIRS);
    return BS_STATUS_OK;
}

static bs_status parse(bs_gguf *gguf)
{
    bs_status status;
    cursor c = {gguf, 0};
    uint64_t n_tensors, n_pairs;
    BS_TRY(take_head(&c, &n_tensors, &n_pairs));
    uint64_t *offsets = calloc(n_tensors + 1, sizeof *offsets);
    gguf->pairs = calloc(n_pairs + 1, sizeof *gguf->pairs);
    gguf->tensors = calloc(n_tensors + 1, sizeof *gguf->tensors);
    if (!offsets || !gguf->pairs || !gguf->tensors) {
        status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for the header", gguf->path);
        goto done;
    }
    gguf->n_pairs = (int64_t)n_pairs;
    for (int64_t i = 0; i < gguf->n_pairs; i++) BS_TRY_GOTO(take_pair(&c, i, &gguf->pairs[i]), done);
    BS_TRY_GOTO(
        sort_names(gguf, "key", &gguf->pairs[0].key, sizeof *gguf->pairs, gguf->n_pairs, &gguf->pair_order),
        done);
    gguf->n_tensors = (int64_t)n_tensors;
    for (int64_t i = 0; i < gguf->n_tensors; i++)
        BS_TRY_GOTO(take_tensor(&c, i, &gguf->tensors[i], &offsets[i]), done);
    BS_TRY_GOTO(sort_names(gguf, "tensor", &gguf->tensors[0].name, sizeof *gguf->tensors, gguf->n_tensors,
                           &gguf->tensor_order),
                done);
    BS_TRY_GOTO(place_tensors(gguf, &c, offsets), done);
done:
    free(offsets);
    return status;
}

/* bytes NULL: maps the file. */
static bs_status open_any(const char *path, const uint8_t *bytes, uint64_t n, bs_gguf **out)
{
    bs_status status = BS_STATUS_OK;
    bs_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf || !(gguf->path = strdup(path))) {
        free(gguf);
        return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", path);
    }
    gguf->map = bytes;
    gguf->bytes = n;
    gguf->borrowed = bytes != NULL;
    if (!bytes) {
        bs_map map;
        BS_TRY_GOTO(bs_map_open(path, "magic needs 4 bytes", &map), err_close);
        gguf->map = map.bytes;
        gguf->bytes = map.n;
    }
    BS_TRY_GOTO(parse(gguf), err_close);
    *out = gguf;
    return BS_STATUS_OK;
err_close:
    bs_gguf_close(gguf);
    return status;
}

bs_status bs_gguf_open(const char *path, bs_gguf **out)
{
    return open_any(path, NULL, 0, out);
}

bs_status bs_gguf_open_bytes(const char *path, const uint8_t *bytes, uint64_t n, bs_gguf **out)
{
    return open_any(path, bytes, n, out);
}

void bs_gguf_close(bs_gguf *gguf)
{
    if (!gguf) return;
    for (int64_t i = 0; i < gguf->n_pairs; i++) {
        free(gguf->pairs[i].strings);
        free(gguf->pairs[i].ints);
    }
    if (!gguf->borrowed) bs_map_close(&(bs_map){gguf->map, gguf->bytes});
    free(gguf->pairs);
    free(gguf->tensors);
    free(gguf->pair_order);
    free(gguf->tensor_order);
    free(gguf->path);
    free(gguf);
}
