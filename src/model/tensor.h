/* tensor.h: a named tensor of a model file, whatever the file's format, and a string that lies in one. */
#ifndef BS_TENSOR_H
#define BS_TENSOR_H

#include "kernels/kernels.h"

#include <string.h>

typedef struct bs_string {
    const char *text; /* not 0-terminated */
    size_t bytes;
} bs_string;

static inline bool bs_string_equal(bs_string a, bs_string b)
{
    return a.bytes == b.bytes && memcmp(a.text, b.text, a.bytes) == 0;
}

static inline bool bs_string_is(bs_string text, const char *other)
{
    return bs_string_equal(text, (bs_string){other, strlen(other)});
}

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
