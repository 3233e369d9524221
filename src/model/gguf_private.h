/* gguf_private.h: an open GGUF file as gguf.c fills it and gguf_get.c reads it. */
#ifndef BS_GGUF_PRIVATE_H
#define BS_GGUF_PRIVATE_H

#include "src/model/gguf.h"
#include "src/model/utf8.h"

#include <string.h>

/* One key. Scalars are read where they lie in the mapping; arrays of strings and of integers are indexed at
 * opening. */
typedef struct bs_gguf_pair {
    bs_string key;
    bs_gguf_type type, item_type; /* item_type: of an array */
    int64_t n_items;              /* of an array */
    const uint8_t *value;         /* the scalar, the string's length, or the array's first item */
    bs_string *strings;           /* [n_items] of an array of strings, owned */
    int64_t *ints;                /* [n_items] of an array of integers, owned */
} bs_gguf_pair;

struct bs_gguf {
    char *path;
    const uint8_t *map;
    uint64_t bytes;
    bool borrowed; /* map is the caller's */
    int64_t n_pairs, n_tensors;
    bs_gguf_pair *pairs;  /* in file order */
    bs_tensor *tensors;   /* in file order */
    uint32_t *pair_order; /* [n_pairs], [n_tensors]: by name, for bsearch and to find duplicates */
    uint32_t *tensor_order;
};

/* The same as bs_gguf_open on a file that is in memory already and stays there; `path` names it in error lines. */
bs_status bs_gguf_open_bytes(const char *path, const uint8_t *bytes, uint64_t n, bs_gguf **out);

/* Bytes of one scalar of this type; 0 for strings and arrays. */
int bs_gguf_scalar_bytes(bs_gguf_type type);
/* Whether the type is an integer, and its value widened. u64 beyond INT64_MAX comes out as INT64_MAX. */
bool bs_gguf_is_int(bs_gguf_type type);
int64_t bs_gguf_read_int(bs_gguf_type type, const uint8_t *value);
/* Byte order of names: shorter first where one begins the other. */
int bs_gguf_compare(bs_string a, bs_string b);

/* Well-formed UTF-8 without NUL. */
static inline bool bs_gguf_is_text(bs_string s)
{
    return bs_utf8_valid_bytes(s.text, s.bytes) == s.bytes && !memchr(s.text, 0, s.bytes);
}

/* For "%.*s" of a name or key: at most 96 bytes of it in an error line. */
static inline int bs_gguf_shown(bs_string s)
{
    return s.bytes < 96 ? (int)s.bytes : 96;
}

#endif
