/* upload.h: matrices of a mapped file into a GPU's memory, turned into one type on the way. Private to src/model. */
#ifndef BS_UPLOAD_H
#define BS_UPLOAD_H

#include "kernels/kernels.h"

/* One matrix: `from` in the file's own blocks, `to` [device] [rows, cols] of the type asked for, without gaps. */
typedef struct bs_upload_item {
    bs_weight from;
    char *to;
} bs_upload_item;

/* Turns them all into F16 or BF16 (rounded to nearest, ties to even; what is beyond F16 becomes infinite). Local.
 * `progress` as in bs_weights_place, in bytes of the device. BS_STATUS_NOMEM; whatever a copy says. */
bs_status bs_upload(bs_device *device, const bs_upload_item *items, int n_items, bs_type type,
                    void (*progress)(void *context, uint64_t done, uint64_t total), void *context);

#endif
