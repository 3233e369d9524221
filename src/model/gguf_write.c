/* gguf_write.c: a growing header in memory, then the data straight to the file, so a model larger than memory
 * can be made. Written under a temporary name: whoever finds the final name finds a whole file. */
#include "config.h"
#include "src/model/gguf_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGNMENT = 32 };

/* Bytes that grow; `failed` remembers that memory ran out. */
typedef struct bytes {
    uint8_t *data;
    size_t n, capacity;
    bool failed;
} bytes;

struct bs_gguf_writer {
    bytes pairs, tensors;
    uint64_t n_pairs, n_tensors, data_bytes; /* data_bytes: up to the end of the last tensor added, padded */
    uint64_t *ends;                          /* [n_tensors] where each tensor's bytes end, before padding */
    char *path, *temporary;
    FILE *file;
    uint64_t written; /* of the data, padding included */
    uint64_t current; /* the tensor that comes next */
};

static void append(bytes *to, const void *data, size_t n)
{
    if (to->failed || n == 0) return;
    if (n > to->capacity - to->n) {
        size_t capacity = 2 * (to->n + n) + 256;
        uint8_t *grown = realloc(to->data, capacity);
        if (!grown) {
            to->failed = true;
            return;
        }
        to->data = grown;
        to->capacity = capacity;
    }
    memcpy(to->data + to->n, data, n);
    to->n += n;
}

static void append_u32(bytes *to, uint32_t value)
{
    append(to, &value, sizeof value);
}

static void append_u64(bytes *to, uint64_t value)
{
    append(to, &value, sizeof value);
}

static void append_string(bytes *to, const char *text)
{
    append_u64(to, strlen(text));
    append(to, text, strlen(text));
}

bs_status bs_gguf_writer_create(bs_gguf_writer **out)
{
    bs_gguf_writer *writer = calloc(1, sizeof *writer);
    if (!writer) return bs_fail(BS_STATUS_NOMEM, "no memory for a GGUF writer");
    *out = writer;
    return BS_STATUS_OK;
}

void bs_gguf_writer_free(bs_gguf_writer *writer)
{
    if (!writer) return;
    if (writer->file) {
        fclose(writer->file);
        unlink(writer->temporary);
    }
    free(writer->pairs.data);
    free(writer->tensors.data);
    free(writer->ends);
    free(writer->path);
    free(writer->temporary);
    free(writer);
}

/* ---- the header -------------------------------------------------------------------------------------------
 */

static bytes *start_pair(bs_gguf_writer *writer, const char *key, bs_gguf_type type)
{
    writer->n_pairs++;
    append_string(&writer->pairs, key);
    append_u32(&writer->pairs, type);
    return &writer->pairs;
}

void bs_gguf_put_u32(bs_gguf_writer *writer, const char *key, uint32_t value)
{
    append_u32(start_pair(writer, key, BS_GGUF_U32), value);
}

void bs_gguf_put_f32(bs_gguf_writer *writer, const char *key, float value)
{
    append(start_pair(writer, key, BS_GGUF_F32), &value, sizeof value);
}

void bs_gguf_put_bool(bs_gguf_writer *writer, const char *key, bool value)
{
    append(start_pair(writer, key, BS_GGUF_BOOL), &(uint8_t){value}, 1);
}

void bs_gguf_put_string(bs_gguf_writer *writer, const char *key, const char *value)
{
    append_string(start_pair(writer, key, BS_GGUF_STRING), value);
}

void bs_gguf_put_strings(bs_gguf_writer *writer, const char *key, const char *const *values, int64_t n)
{
    bytes *to = start_pair(writer, key, BS_GGUF_ARRAY);
    append_u32(to, BS_GGUF_STRING);
    append_u64(to, (uint64_t)n);
    for (int64_t i = 0; i < n; i++) append_string(to, values[i]);
}

void bs_gguf_put_i32s(bs_gguf_writer *writer, const char *key, const int32_t *values, int64_t n)
{
    bytes *to = start_pair(writer, key, BS_GGUF_ARRAY);
    append_u32(to, BS_GGUF_I32);
    append_u64(to, (uint64_t)n);
    append(to, values, sizeof *values * (size_t)n);
}

void bs_gguf_add_tensor(bs_gguf_writer *writer, const char *name, bs_type type, int64_t n_cols,
                        int64_t n_rows)
{
    static const uint32_t numbers[BS_TYPE_COUNT] = {
#define X(type_name, gguf_number, elements, block_bytes) gguf_number,
        BS_TYPE_LIST(X)
#undef X
    };
    uint64_t *ends = realloc(writer->ends, sizeof *ends * (writer->n_tensors + 1));
    if (!ends) {
        writer->tensors.failed = true;
        return;
    }
    writer->ends = ends;
    bytes *to = &writer->tensors;
    append_string(to, name);
    append_u32(to, n_rows ? 2 : 1);
    append_u64(to, (uint64_t)n_cols);
    if (n_rows) append_u64(to, (uint64_t)n_rows);
    append_u32(to, numbers[type]);
    append_u64(to, writer->data_bytes);
    uint64_t n_blocks = (uint64_t)(n_cols / bs_type_block(type)) * (uint64_t)(n_rows ? n_rows : 1);
    uint64_t end = writer->data_bytes + n_blocks * (uint64_t)bs_type_block_bytes(type);
    writer->ends[writer->n_tensors++] = end;
    writer->data_bytes = (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

bs_status bs_gguf_writer_header(bs_gguf_writer *writer, uint8_t **out, size_t *n_bytes)
{
    static const uint8_t zeros[ALIGNMENT];
    bytes header = {0};
    append(&header, "GGUF", 4);
    append_u32(&header, 3);
    append_u64(&header, writer->n_tensors);
    append_u64(&header, writer->n_pairs);
    append(&header, writer->pairs.data, writer->pairs.n);
    append(&header, writer->tensors.data, writer->tensors.n);
    append(&header, zeros, (ALIGNMENT - header.n % ALIGNMENT) % ALIGNMENT);
    if (header.failed || writer->pairs.failed || writer->tensors.failed) {
        free(header.data);
        return bs_fail(BS_STATUS_NOMEM, "no memory for the header of a GGUF file");
    }
    *out = header.data;
    *n_bytes = header.n;
    return BS_STATUS_OK;
}

/* ---- the file ---------------------------------------------------------------------------------------------
 */

static bs_status write_bytes(bs_gguf_writer *writer, const void *data, size_t n)
{
    if (fwrite(data, 1, n, writer->file) == n) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_IO, "%s: cannot be written: %s", writer->temporary, strerror(errno));
}

bs_status bs_gguf_writer_begin(bs_gguf_writer *writer, const char *path)
{
    size_t room = strlen(path) + sizeof ".tmp", n_bytes = 0;
    uint8_t *header = NULL;
    writer->path = strdup(path);
    writer->temporary = malloc(room);
    if (!writer->path || !writer->temporary)
        return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its name", path);
    snprintf(writer->temporary, room, "%s.tmp", path);
    BS_TRY(bs_gguf_writer_header(writer, &header, &n_bytes));
    writer->file = fopen(writer->temporary, "wb");
    bs_status status;
    if (!writer->file) status = bs_fail(BS_STATUS_IO, "%s: %s", writer->temporary, strerror(errno));
    else status = write_bytes(writer, header, n_bytes);
    free(header);
    return status;
}

bs_status bs_gguf_writer_data(bs_gguf_writer *writer, const void *data, size_t n_bytes)
{
    static const uint8_t zeros[ALIGNMENT];
    const uint8_t *from = data;
    while (n_bytes > 0) {
        if (writer->current == writer->n_tensors)
            return bs_fail(BS_STATUS_RANGE, "%s: %zu bytes more than its tensors have", writer->path,
                           n_bytes);
        uint64_t end = writer->ends[writer->current], rest = end - writer->written;
        size_t n = n_bytes < rest ? n_bytes : (size_t)rest;
        BS_TRY(write_bytes(writer, from, n));
        writer->written += n;
        from += n;
        n_bytes -= n;
        if (writer->written < end) continue;
        size_t padding = (ALIGNMENT - end % ALIGNMENT) % ALIGNMENT;
        BS_TRY(write_bytes(writer, zeros, padding));
        writer->written += padding;
        writer->current++;
    }
    return BS_STATUS_OK;
}

bs_status bs_gguf_writer_finish(bs_gguf_writer *writer)
{
    if (writer->current != writer->n_tensors)
        return bs_fail(BS_STATUS_RANGE, "%s: tensor %" PRIu64 " of %" PRIu64 " is not complete", writer->path,
                       writer->current, writer->n_tensors);
    if (fflush(writer->file) != 0 || fsync(fileno(writer->file)) != 0 ||
        rename(writer->temporary, writer->path) != 0)
        return bs_fail(BS_STATUS_IO, "%s: cannot be written: %s", writer->path, strerror(errno));
    fclose(writer->file);
    writer->file = NULL;
    return BS_STATUS_OK;
}
