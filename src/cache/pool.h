/* pool.h: the slots of one pool: a free list and a count of owners a slot. Private to src/cache/.
 *
 * Host bookkeeping only. A slot that was ever released is dirty: take says so, and the caller clears it on
 * the device before anything is written (bs_op_clear_slots, a step's slots in one op). The list is a stack,
 * so a slot just freed, still in the caches of a CPU, is used again first, and pages never touched stay
 * untouched.
 */
#ifndef BS_CACHE_POOL_H
#define BS_CACHE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "src/base/status.h"

typedef struct bs_slot_pool {
    uint32_t n_slots, n_free;
    uint32_t *free_slots; /* [n_slots] the first n_free are free, the last of them goes next */
    uint32_t *n_owners;   /* [n_slots] sequences that hold the slot; 0: free */
    bool *dirty;          /* [n_slots] was in use before: may hold an older page's bytes */
} bs_slot_pool;

/* All slots free and clean. The pool is zeroed memory before; on an error it stays so. */
bs_status bs_slot_pool_open(bs_slot_pool *pool, uint32_t n_slots);
void bs_slot_pool_close(bs_slot_pool *pool);
/* A free slot, now with one owner. *dirty: it must be cleared before it is written. One must be free. */
uint32_t bs_slot_pool_take(bs_slot_pool *pool, bool *dirty);
/* One more owner of a slot in use. */
void bs_slot_pool_share(bs_slot_pool *pool, uint32_t slot);
/* One owner fewer; the slot is free after the last. */
void bs_slot_pool_release(bs_slot_pool *pool, uint32_t slot);

#endif
