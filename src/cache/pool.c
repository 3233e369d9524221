/* pool.c: free lists and owner counts of slots. */
#include "src/cache/pool.h"

#include <assert.h>
#include <stdlib.h>

bs_status bs_slot_pool_open(bs_slot_pool *pool, uint32_t n_slots)
{
    size_t n = (size_t)n_slots + 1; /* never 0, so that NULL means out of memory */
    pool->free_slots = malloc(n * sizeof *pool->free_slots);
    pool->n_owners = calloc(n, sizeof *pool->n_owners);
    pool->dirty = calloc(n, sizeof *pool->dirty);
    if (!pool->free_slots || !pool->n_owners || !pool->dirty) {
        bs_slot_pool_close(pool);
        return bs_fail(BS_STATUS_NOMEM, "cache: no memory for the list of %u slots", n_slots);
    }
    for (uint32_t i = 0; i < n_slots; i++) pool->free_slots[i] = n_slots - 1 - i;
    pool->n_slots = pool->n_free = n_slots;
    return BS_STATUS_OK;
}

void bs_slot_pool_close(bs_slot_pool *pool)
{
    free(pool->free_slots);
    free(pool->n_owners);
    free(pool->dirty);
    *pool = (bs_slot_pool){0};
}

uint32_t bs_slot_pool_take(bs_slot_pool *pool, bool *dirty)
{
    assert(pool->n_free > 0);
    uint32_t slot = pool->free_slots[--pool->n_free];
    assert(pool->n_owners[slot] == 0);
    pool->n_owners[slot] = 1;
    *dirty = pool->dirty[slot];
    return slot;
}

void bs_slot_pool_share(bs_slot_pool *pool, uint32_t slot)
{
    assert(slot < pool->n_slots && pool->n_owners[slot] > 0);
    pool->n_owners[slot]++;
}

void bs_slot_pool_release(bs_slot_pool *pool, uint32_t slot)
{
    assert(slot < pool->n_slots && pool->n_owners[slot] > 0);
    if (--pool->n_owners[slot] > 0) return;
    pool->dirty[slot] = true;
    pool->free_slots[pool->n_free++] = slot;
}
