/* types.c: names and block sizes of element types. */
#include "kernels/kernels.h"

static const struct {
    const char *name;
    int elements, bytes;
} types[BS_TYPE_COUNT] = {
#define X(name, gguf, elements, bytes) {#name, elements, bytes},
    BS_TYPE_LIST(X)
#undef X
};

const char *bs_type_name(bs_type type)
{
    return (unsigned)type < BS_TYPE_COUNT ? types[type].name : "?";
}

int bs_type_block(bs_type type)
{
    return types[type].elements;
}

int bs_type_block_bytes(bs_type type)
{
    return types[type].bytes;
}
