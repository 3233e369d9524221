/* map.h: a whole file, mapped read-only. */
#ifndef BS_MAP_H
#define BS_MAP_H

#include "src/base/status.h"

#include <stdint.h>

typedef struct bs_map {
    const uint8_t *bytes; /* NULL: nothing */
    uint64_t n;
} bs_map;

/* Refuses what is no regular file, and an empty one (`first`: what it should have begun with). IO or FORMAT. */
bs_status bs_map_open(const char *path, const char *first, bs_map *out);
void bs_map_close(bs_map *map);

#endif
