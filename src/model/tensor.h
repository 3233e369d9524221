/* tensor.h: a named tensor of a model file, whatever the file's format, and a string that lies in one. */
#ifndef BS_TENSOR_H
#define BS_TENSOR_H

#include "kernels/kernels.h"

typedef struct bs_string {
    const char *text; /* not 0-terminated */
    size_t bytes;
} bs_string;

/* Both strings and data lie in the file's mapping and live as long as it. */
typedef struct bs_tensor {
    bs_string name;
    int n_dims;
    int64_t dims[4]; /* dims[0] fastest: columns, then rows; 1 beyond n_dims */
    bs_type type;
    const void *data; /* of any alignment */
    uint64_t bytes;
} bs_tensor;

#endif
