/* gguf.h: reading GGUF v3 files: metadata and the tensor table, checked whole before anything is used.
 *
 * The file is mapped read-only; strings and arrays point into it. Every length is compared with the bytes left before
 * it is believed (facts: the CVEs of other readers), so a hostile file gives one line and BS_STATUS_FORMAT.
 * Source: the GGUF specification (ggml/docs/gguf.md), version 3, little-endian.
 */
#ifndef BS_GGUF_H
#define BS_GGUF_H

#include "src/model/tensor.h"

typedef struct bs_gguf bs_gguf;

typedef enum bs_gguf_type {
    BS_GGUF_U8,
    BS_GGUF_I8,
    BS_GGUF_U16,
    BS_GGUF_I16,
    BS_GGUF_U32,
    BS_GGUF_I32,
    BS_GGUF_F32,
    BS_GGUF_BOOL,
    BS_GGUF_STRING,
    BS_GGUF_ARRAY,
    BS_GGUF_U64,
    BS_GGUF_I64,
    BS_GGUF_F64
} bs_gguf_type;

bs_status bs_gguf_open(const char *path, bs_gguf **out);
void bs_gguf_close(bs_gguf *gguf);
const char *bs_gguf_path(const bs_gguf *gguf);
uint64_t bs_gguf_file_bytes(const bs_gguf *gguf);

int64_t bs_gguf_n_tensors(const bs_gguf *gguf);
const bs_tensor *bs_gguf_tensor_at(const bs_gguf *gguf, int64_t i);
const bs_tensor *bs_gguf_find_tensor(const bs_gguf *gguf, const char *name); /* NULL: none */

/* Metadata. *found says whether the key is there; a key of a wrong type or an integer out of [min, max] is an error
 * that names the key and the value. With found NULL a missing key is an error too. */
bs_status bs_gguf_get_int(const bs_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out,
                          bool *found);
bs_status bs_gguf_get_float(const bs_gguf *gguf, const char *key, double *out, bool *found);
bs_status bs_gguf_get_bool(const bs_gguf *gguf, const char *key, bool *out, bool *found);
bs_status bs_gguf_get_string(const bs_gguf *gguf, const char *key, bs_string *out, bool *found);
/* Arrays of strings: n and an index-able table (owned by gguf). Arrays of integers: widened to i64 one by one. */
bs_status bs_gguf_get_strings(const bs_gguf *gguf, const char *key, const bs_string **out, int64_t *n,
                              bool *found);
bs_status bs_gguf_get_ints(const bs_gguf *gguf, const char *key, const int64_t **out, int64_t *n,
                           bool *found);

#endif
