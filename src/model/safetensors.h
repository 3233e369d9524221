/* safetensors.h: the tensors of a directory's model.safetensors, or of the shards that its index names.
 *
 * Files are mapped read-only and checked whole at opening: the header's length before it is believed, its JSON
 * (duplicates, depth), every dtype and shape against its offsets, and the offsets against each other and the file:
 * they must tile the data without a gap. With an index, its weight_map and the shards must agree.
 * Source: the safetensors format (huggingface/safetensors, README).
 */
#ifndef BS_SAFETENSORS_H
#define BS_SAFETENSORS_H

#include "src/model/tensor.h"

typedef struct bs_safetensors bs_safetensors;

/* Of a directory. */
bs_status bs_safetensors_open(const char *directory, bs_safetensors **out);
/* Of one file that is in memory already and stays there; `path` names it in error lines. */
bs_status bs_safetensors_open_bytes(const char *path, const uint8_t *bytes, uint64_t n, bs_safetensors **out);
void bs_safetensors_close(bs_safetensors *tensors);

uint64_t bs_safetensors_file_bytes(const bs_safetensors *tensors); /* of all shards */
int64_t bs_safetensors_n_tensors(const bs_safetensors *tensors);
/* In the order of names. */
const bs_tensor *bs_safetensors_tensor_at(const bs_safetensors *tensors, int64_t i);
const bs_tensor *bs_safetensors_find(const bs_safetensors *tensors, const char *name); /* NULL: none */

#endif
