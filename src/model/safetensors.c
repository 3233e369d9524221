/* safetensors.c: opening safetensors files; whatever is wrong with one is found here, once.
 *
 * A header is at most 16 MiB of JSON and 100,000 tensors (the format allows 100 MB; the largest model that people
 * run needs 100 KB). Nothing is allocated for what a header claims, only for what it holds. Tensors lie where the
 * file puts them, aligned or not.
 *
 * dims are turned round: a file writes [rows, columns], bs_tensor has the fastest first.
 */
#include "config.h"
#include "src/model/safetensors.h"
#include "src/base/checked.h"
#include "src/model/json_file.h"
#include "src/model/map.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_HEADER_BYTES = 16 << 20,
    MAX_TENSORS = 100000,
    MAX_DEPTH = 8,
    MAX_SHARDS = 4096,
    MAX_NAME_BYTES = 255,
};

/* One file. */
typedef struct shard {
    char *path;
    const char *name; /* in the index, or NULL */
    bs_map map;
    bool borrowed;  /* map is the caller's */
    json_t *header; /* owns the tensors' names */
} shard;

struct bs_safetensors {
    shard *shards;
    int n_shards;
    json_t *index;      /* NULL: one file */
    bs_tensor *tensors; /* [n_tensors], by name once all shards are read */
    int64_t n_tensors;
};

/* ---- one tensor -------------------------------------------------------------------------------------------
 */

static bs_status read_dtype(const shard *file, const char *name, const json_t *entry, bs_type *out)
{
    bs_string dtype = bs_json_string(json_object_get(entry, "dtype"));
    if (!dtype.text) return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: dtype is no string", file->path, name);
    if (bs_string_is(dtype, "BF16")) *out = BS_TYPE_BF16;
    else if (bs_string_is(dtype, "F16")) *out = BS_TYPE_F16;
    else if (bs_string_is(dtype, "F32")) *out = BS_TYPE_F32;
    else
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: tensor %s: dtype is %.*s: must be BF16, F16 or F32",
                       file->path, name, bs_json_shown(dtype), dtype.text);
    return BS_STATUS_OK;
}

/* dims, and with them bytes, whose product fits an int64_t. */
static bs_status read_shape(const shard *file, const char *name, const json_t *entry, bs_tensor *tensor)
{
    const json_t *shape = json_object_get(entry, "shape");
    size_t n_dims = json_array_size(shape);
    uint64_t bytes = (uint64_t)bs_type_block_bytes(tensor->type);
    if (!json_is_array(shape))
        return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: shape is no array", file->path, name);
    if (n_dims > 4)
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: tensor %s: shape has %zu dimensions: must be 0 … 4",
                       file->path, name, n_dims);
    tensor->n_dims = (int)n_dims;
    for (size_t d = 0; d < 4; d++) tensor->dims[d] = 1;
    for (size_t d = 0; d < n_dims; d++) {
        const json_t *value = json_array_get(shape, d);
        int64_t n = json_integer_value(value);
        if (!json_is_integer(value) || n < 1)
            return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: shape[%zu] is %s%" PRId64 ": must be 1 … 2^63-1",
                           file->path, name, d, json_is_integer(value) ? "" : "no integer, ", n);
        tensor->dims[n_dims - 1 - d] = n;
        if (!bs_mul_u64(bytes, (uint64_t)n, &bytes) || bytes > INT64_MAX)
            return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: shape makes more than 2^63-1 bytes", file->path,
                           name);
    }
    tensor->bytes = bytes;
    return BS_STATUS_OK;
}

/* Sets data; data_bytes: behind the header. */
static bs_status read_offsets(const shard *file, const char *name, const json_t *entry, const uint8_t *data,
                              uint64_t data_bytes, bs_tensor *tensor)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *behind = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(behind))
        return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: data_offsets are not two integers", file->path,
                       name);
    int64_t begin = json_integer_value(first), end = json_integer_value(behind);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: tensor %s: data_offsets are [%" PRId64 ", %" PRId64 "]: the file has %" PRIu64
                       " bytes of data",
                       file->path, name, begin, end, data_bytes);
    if ((uint64_t)(end - begin) != tensor->bytes)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: tensor %s: data_offsets are [%" PRId64 ", %" PRId64 "], %" PRId64
                       " bytes: its shape and dtype make %" PRIu64,
                       file->path, name, begin, end, end - begin, tensor->bytes);
    tensor->data = data + begin;
    return BS_STATUS_OK;
}

/* Not empty, not long, and nothing in it that ends an error line. */
static bs_status check_name(const char *path, const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > MAX_NAME_BYTES)
        return bs_fail(BS_STATUS_FORMAT, "%s: a tensor's name is %zu bytes long: must be 1 … %d", path, n,
                       MAX_NAME_BYTES);
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return bs_fail(BS_STATUS_FORMAT, "%s: the name of tensor %.*s… has a control character", path,
                           (int)(c - name), name);
    return BS_STATUS_OK;
}

static bs_status read_tensor(const shard *file, const char *name, const json_t *entry, const uint8_t *data,
                             uint64_t data_bytes, bs_tensor *tensor)
{
    tensor->name = (bs_string){name, strlen(name)};
    BS_TRY(check_name(file->path, name));
    if (!json_is_object(entry) || json_object_size(entry) != 3)
        return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: must be an object of dtype, shape and data_offsets",
                       file->path, name);
    BS_TRY(read_dtype(file, name, entry, &tensor->type));
    BS_TRY(read_shape(file, name, entry, tensor));
    return read_offsets(file, name, entry, data, data_bytes, tensor);
}

/* ---- one file ---------------------------------------------------------------------------------------------
 */

static int compare_data(const void *a, const void *b)
{
    const char *x = ((const bs_tensor *)a)->data, *y = ((const bs_tensor *)b)->data;
    return (x > y) - (x < y);
}

/* The tensors of a file side by side, from the header's end to the file's. */
static bs_status check_tiling(const shard *file, bs_tensor *tensors, int64_t n, const uint8_t *data,
                              uint64_t data_bytes)
{
    qsort(tensors, (size_t)n, sizeof *tensors, compare_data);
    const uint8_t *at = data;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *begin = tensors[i].data;
        if (begin != at)
            return bs_fail(BS_STATUS_FORMAT,
                           "%s: tensor %s: data begins at byte %" PRIu64 ", %s byte %" PRIu64, file->path,
                           tensors[i].name.text, (uint64_t)(begin - data),
                           begin < at ? "before the one in front of it ends at"
                                      : "leaving a gap behind the one that ends at",
                           (uint64_t)(at - data));
        at = begin + tensors[i].bytes;
    }
    uint64_t used = (uint64_t)(at - data);
    if (used == data_bytes) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_FORMAT, "%s: %" PRIu64 " bytes behind the last tensor belong to none",
                   file->path, data_bytes - used);
}

/* Nesting of brackets outside of strings, before a parser recurses into it. */
static bool is_too_deep(const char *json, size_t n)
{
    int depth = 0;
    bool inside = false;
    for (size_t i = 0; i < n; i++) {
        if (inside) {
            if (json[i] == '\\') i++;
            else inside = json[i] != '"';
        } else if (json[i] == '"') {
            inside = true;
        } else if (json[i] == '{' || json[i] == '[') {
            if (++depth > MAX_DEPTH) return true;
        } else if (json[i] == '}' || json[i] == ']') {
            depth--;
        }
    }
    return false;
}

static bs_status parse_header(shard *file, uint64_t *header_bytes)
{
    uint64_t n = 0;
    if (file->map.n < 8)
        return bs_fail(BS_STATUS_FORMAT, "%s: the header's length needs 8 bytes, the file has %" PRIu64,
                       file->path, file->map.n);
    for (int i = 7; i >= 0; i--) n = n << 8 | file->map.bytes[i]; /* little-endian */
    if (n > file->map.n - 8 || n > MAX_HEADER_BYTES)
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: the header's length is %" PRIu64 " bytes: the file has %" PRIu64
                       " behind it, and at most %d are taken",
                       file->path, n, file->map.n - 8, MAX_HEADER_BYTES);
    const char *json = (const char *)file->map.bytes + 8;
    if (n < 2 || json[0] != '{')
        return bs_fail(BS_STATUS_FORMAT, "%s: the header does not begin with {: not a safetensors file",
                       file->path);
    if (is_too_deep(json, (size_t)n))
        return bs_fail(BS_STATUS_FORMAT, "%s: the header is nested more than %d deep", file->path, MAX_DEPTH);
    *header_bytes = n;
    return bs_json_parse(file->path, json, (size_t)n, &file->header);
}

/* Adds the file's tensors to the table. */
static bs_status read_shard(bs_safetensors *all, shard *file)
{
    uint64_t header_bytes = 0;
    const char *name;
    json_t *entry;
    BS_TRY(parse_header(file, &header_bytes));
    const uint8_t *data = file->map.bytes + 8 + header_bytes;
    uint64_t data_bytes = file->map.n - 8 - header_bytes;
    int64_t n = (int64_t)json_object_size(file->header), first = all->n_tensors;
    if (n + first > MAX_TENSORS)
        return bs_fail(BS_STATUS_FORMAT, "%s: more than %d tensors", file->path, MAX_TENSORS);
    bs_tensor *tensors = realloc(all->tensors, sizeof *tensors * (size_t)(first + n + 1));
    if (!tensors)
        return bs_fail(BS_STATUS_NOMEM, "%s: no memory for %" PRId64 " tensors", file->path, first + n);
    all->tensors = tensors;
    json_object_foreach(file->header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (json_is_object(entry)) continue;
            return bs_fail(BS_STATUS_FORMAT, "%s: __metadata__ is %s: must be an object", file->path,
                           bs_json_type_name(entry));
        }
        BS_TRY(read_tensor(file, name, entry, data, data_bytes, &tensors[all->n_tensors]));
        all->n_tensors++;
    }
    return check_tiling(file, tensors + first, all->n_tensors - first, data, data_bytes);
}

/* ---- the index --------------------------------------------------------------------------------------------
 */

static bs_status join_path(const char *directory, const char *name, char **out)
{
    size_t bytes = strlen(directory) + strlen(name) + 2;
    if (!(*out = malloc(bytes))) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", directory);
    snprintf(*out, bytes, "%s/%s", directory, name);
    return BS_STATUS_OK;
}

static bs_status add_shard(bs_safetensors *all, const char *directory, const char *name, bool indexed)
{
    shard *shards = realloc(all->shards, sizeof *shards * (size_t)(all->n_shards + 1));
    if (!shards) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for %d shards", directory, all->n_shards + 1);
    all->shards = shards;
    shards[all->n_shards] = (shard){.name = indexed ? name : NULL};
    BS_TRY(join_path(directory, name, &shards[all->n_shards].path));
    all->n_shards++;
    return BS_STATUS_OK;
}

/* A file of the same directory, and nothing else. */
static bs_status check_shard_name(const char *path, const char *tensor, const json_t *value)
{
    bs_string name = bs_json_string(value);
    if (!name.text)
        return bs_fail(BS_STATUS_FORMAT, "%s: weight_map.%.64s is %s: must be a file's name", path, tensor,
                       bs_json_type_name(value));
    if (name.bytes == 0 || name.bytes > MAX_NAME_BYTES || name.text[0] == '.' || strchr(name.text, '/') ||
        (size_t)bs_json_shown(name) < (name.bytes < 64 ? name.bytes : 64))
        return bs_fail(BS_STATUS_FORMAT,
                       "%s: weight_map.%.64s is \"%.*s\": must be a file's name in this directory", path,
                       tensor, bs_json_shown(name), name.text);
    return BS_STATUS_OK;
}

static const shard *find_shard(const bs_safetensors *all, const char *name)
{
    for (int s = 0; s < all->n_shards; s++)
        if (strcmp(all->shards[s].name, name) == 0) return &all->shards[s];
    return NULL;
}

/* The shards that weight_map names, each once. */
static bs_status list_shards(bs_safetensors *all, const char *directory, const char *index_path, json_t **map)
{
    const bs_json json = {index_path, "", all->index};
    const char *tensor, *last = "";
    json_t *value;
    BS_TRY(bs_json_get_object(&json, "weight_map", map, NULL));
    if (json_object_size(*map) == 0 || json_object_size(*map) > MAX_TENSORS)
        return bs_fail(BS_STATUS_FORMAT, "%s: weight_map has %zu tensors: must be 1 … %d", index_path,
                       json_object_size(*map), MAX_TENSORS);
    json_object_foreach(*map, tensor, value)
    {
        BS_TRY(check_name(index_path, tensor));
        BS_TRY(check_shard_name(index_path, tensor, value));
        const char *name = json_string_value(value);
        if (strcmp(name, last) == 0 || find_shard(all, name)) continue;
        if (all->n_shards == MAX_SHARDS)
            return bs_fail(BS_STATUS_FORMAT, "%s: weight_map names more than %d files", index_path,
                           MAX_SHARDS);
        BS_TRY(add_shard(all, directory, name, true));
        last = name;
    }
    return BS_STATUS_OK;
}

/* Tensors first … of a shard are where the map says; what the map has more is found by counting. */
static bs_status check_mapped(const bs_safetensors *all, const shard *file, const json_t *map, int64_t first)
{
    for (int64_t i = first; i < all->n_tensors; i++) {
        const char *name = all->tensors[i].name.text;
        const json_t *mapped = json_object_get(map, name);
        if (!mapped)
            return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s is not in the index's weight_map", file->path,
                           name);
        if (strcmp(json_string_value(mapped), file->name) != 0)
            return bs_fail(BS_STATUS_FORMAT, "%s: tensor %s: the index's weight_map says it is in %.64s",
                           file->path, name, json_string_value(mapped));
    }
    return BS_STATUS_OK;
}

/* ---- opening ----------------------------------------------------------------------------------------------
 */

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const bs_tensor *)a)->name.text, ((const bs_tensor *)b)->name.text);
}

static bs_status finish(bs_safetensors *all, const char *path)
{
    if (all->n_tensors == 0) return bs_fail(BS_STATUS_FORMAT, "%s: no tensors", path);
    qsort(all->tensors, (size_t)all->n_tensors, sizeof *all->tensors, compare_names);
    return BS_STATUS_OK;
}

static bs_status open_sharded(bs_safetensors *all, const char *directory, const char *index_path)
{
    json_t *map = NULL, *value;
    const char *name;
    BS_TRY(bs_json_load(index_path, MAX_HEADER_BYTES, &all->index, NULL));
    BS_TRY(list_shards(all, directory, index_path, &map));
    for (int s = 0; s < all->n_shards; s++) {
        int64_t first = all->n_tensors;
        BS_TRY(bs_map_open(all->shards[s].path, "the header's length needs 8 bytes", &all->shards[s].map));
        BS_TRY(read_shard(all, &all->shards[s]));
        BS_TRY(check_mapped(all, &all->shards[s], map, first));
    }
    BS_TRY(finish(all, index_path));
    if ((size_t)all->n_tensors == json_object_size(map)) return BS_STATUS_OK;
    json_object_foreach(map, name, value)
    {
        if (!bs_safetensors_find(all, name))
            return bs_fail(BS_STATUS_FORMAT, "%s: weight_map.%.64s is %.64s: that file has no such tensor",
                           index_path, name, json_string_value(value));
    }
    return BS_STATUS_OK;
}

static bs_status open_directory(bs_safetensors *all, const char *directory, char **single, char **index_path)
{
    BS_TRY(join_path(directory, "model.safetensors", single));
    BS_TRY(join_path(directory, "model.safetensors.index.json", index_path));
    if (access(*single, F_OK) != 0) {
        if (access(*index_path, F_OK) != 0)
            return bs_fail(BS_STATUS_IO,
                           "%s: neither model.safetensors nor model.safetensors.index.json is there",
                           directory);
        return open_sharded(all, directory, *index_path);
    }
    BS_TRY(add_shard(all, directory, "model.safetensors", false));
    BS_TRY(bs_map_open(*single, "the header's length needs 8 bytes", &all->shards[0].map));
    BS_TRY(read_shard(all, &all->shards[0]));
    return finish(all, *single);
}

bs_status bs_safetensors_open(const char *directory, bs_safetensors **out)
{
    char *single = NULL, *index_path = NULL;
    bs_safetensors *all = calloc(1, sizeof *all);
    if (!all) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", directory);
    bs_status status = open_directory(all, directory, &single, &index_path);
    free(single);
    free(index_path);
    if (status == BS_STATUS_OK) *out = all;
    else bs_safetensors_close(all);
    return status;
}

bs_status bs_safetensors_open_bytes(const char *path, const uint8_t *bytes, uint64_t n, bs_safetensors **out)
{
    bs_status status = BS_STATUS_NOMEM;
    bs_safetensors *all = calloc(1, sizeof *all);
    if (!all || !(all->shards = calloc(1, sizeof *all->shards)) || !(all->shards->path = strdup(path))) {
        bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", path);
        goto err_close;
    }
    all->n_shards = 1;
    all->shards->borrowed = true;
    all->shards->map = (bs_map){bytes, n};
    BS_TRY_GOTO(read_shard(all, all->shards), err_close);
    BS_TRY_GOTO(finish(all, path), err_close);
    *out = all;
    return BS_STATUS_OK;
err_close:
    bs_safetensors_close(all);
    return status;
}

void bs_safetensors_close(bs_safetensors *all)
{
    if (!all) return;
    for (int s = 0; s < all->n_shards; s++) {
        if (!all->shards[s].borrowed) bs_map_close(&all->shards[s].map);
        json_decref(all->shards[s].header);
        free(all->shards[s].path);
    }
    json_decref(all->index);
    free(all->shards);
    free(all->tensors);
    free(all);
}

uint64_t bs_safetensors_file_bytes(const bs_safetensors *all)
{
    uint64_t bytes = 0;
    for (int s = 0; s < all->n_shards; s++) bytes += all->shards[s].map.n;
    return bytes;
}

int64_t bs_safetensors_n_tensors(const bs_safetensors *all)
{
    return all->n_tensors;
}

const bs_tensor *bs_safetensors_tensor_at(const bs_safetensors *all, int64_t i)
{
    return &all->tensors[i];
}

const bs_tensor *bs_safetensors_find(const bs_safetensors *all, const char *name)
{
    const bs_tensor wanted = {.name = {name, strlen(name)}};
    return bsearch(&wanted, all->tensors, (size_t)all->n_tensors, sizeof wanted, compare_names);
}
