/* gguf_write.h: writing GGUF v3 files, for make-model and for tests.
 *
 * First the keys, then the tensors' names, types and shapes, then either bs_gguf_writer_header (the bytes
 * before the data, for tests to damage) or begin, data …, finish. A put or add that runs out of memory is
 * remembered and reported by whichever comes next of those. Nothing is checked that a reader checks: a test
 * may write nonsense.
 */
#ifndef BS_GGUF_WRITE_H
#define BS_GGUF_WRITE_H

#include "src/model/gguf.h"

typedef struct bs_gguf_writer bs_gguf_writer;

bs_status bs_gguf_writer_create(bs_gguf_writer **out);
/* Removes the file of a begin without its finish. NULL is fine. */
void bs_gguf_writer_free(bs_gguf_writer *writer);

void bs_gguf_put_u32(bs_gguf_writer *writer, const char *key, uint32_t value);
void bs_gguf_put_f32(bs_gguf_writer *writer, const char *key, float value);
void bs_gguf_put_bool(bs_gguf_writer *writer, const char *key, bool value);
void bs_gguf_put_string(bs_gguf_writer *writer, const char *key, const char *value);
void bs_gguf_put_strings(bs_gguf_writer *writer, const char *key, const char *const *values, int64_t n);
void bs_gguf_put_i32s(bs_gguf_writer *writer, const char *key, const int32_t *values, int64_t n);
/* A tensor of [n_rows][n_cols]; n_rows 0 makes it a vector. Offsets follow in order, at multiples of 32. */
void bs_gguf_add_tensor(bs_gguf_writer *writer, const char *name, bs_type type, int64_t n_cols,
                        int64_t n_rows);

/* Everything before the data, padded to where it begins. The caller frees *out. */
bs_status bs_gguf_writer_header(bs_gguf_writer *writer, uint8_t **out, size_t *bytes);

/* Opens PATH.tmp beside the file and writes the header. */
bs_status bs_gguf_writer_begin(bs_gguf_writer *writer, const char *path);
/* The next bytes of the data: the tensors in order, each whole, in as many calls as one likes; padding is
 * added. */
bs_status bs_gguf_writer_data(bs_gguf_writer *writer, const void *data, size_t bytes);
/* Renames PATH.tmp to PATH. BS_STATUS_RANGE if a tensor is not complete. */
bs_status bs_gguf_writer_finish(bs_gguf_writer *writer);

#endif
