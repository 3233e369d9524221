/* staging.c: the memory that pages go through, in slots of one chunk, and the two ways through it.
 *
 * Writing: this thread packs a chunk into a slot (on a GPU into device memory, and copies it over); a worker sums and writes
 * it while the next ones are packed. Reading: workers read and check chunks ahead, this thread takes them in order. Several
 * threads, because one alone sums and copies to or from the page cache more slowly than a disk or two read. On a CPU's rank
 * one works at a time while it writes, for its cores are the ones that decode, and two while it reads, when nobody does; its
 * slots are small, so that a chunk is still in a cache when it is written.
 */
#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/snapshot/snapshot_private.h"

#include <stdlib.h>

enum { N_SLOTS = 8, GPU_THREADS = 4, CPU_THREADS = 2 };

static bool is_gpu(const bs_device *device)
{
    return device && bs_device_get_info(device)->kind == BS_DEVICE_CUDA;
}

/* Of one unit of a group of quantized pages, or of an f16 page: a chunk has one at least. */
static uint64_t unit_bytes(const bs_snap_shape *shape)
{
    const uint64_t page = shape->page[0] + shape->page[1] + shape->page[2] + shape->page[3];
    return (uint64_t)bs_max_i64((int64_t)(BS_SNAP_BLOCK_PAGES * page), (int64_t)shape->f16_page);
}

static size_t slot_bytes(const bs_device *device, const bs_snap_shape *shape)
{
    const uint64_t wish = is_gpu(device) || !device ? 8 << 20 : 1 << 20, unit = unit_bytes(shape);
    return (size_t)(unit > wish ? unit : wish);
}

size_t bs_snap_staging_bytes(const bs_device *device, const bs_snap_shape *shape)
{
    return N_SLOTS * slot_bytes(device, shape);
}

static bs_status open_memory(bs_snap_staging *s, const bs_snap_shape *shape)
{
    const uint64_t page = shape->page[0] + shape->page[1] + shape->page[2] + shape->page[3];
    const uint64_t least = page < shape->f16_page ? page : shape->f16_page;
    void *memory = NULL;
    s->max_refs = s->slot_bytes / (size_t)least + BS_SNAP_BLOCK_PAGES;
    s->refs = malloc(s->max_refs * sizeof *s->refs);
    s->sums = malloc(N_SLOTS * s->max_refs * sizeof *s->sums);
    if (!s->refs || !s->sums)
        return bs_fail(BS_STATUS_NOMEM, "snapshot: no memory for lists of %zu pages", s->max_refs);
    if (!s->device) {
        memory = malloc(N_SLOTS * s->slot_bytes);
        if (!memory)
            return bs_fail(BS_STATUS_NOMEM, "snapshot: no memory for %zu bytes", N_SLOTS * s->slot_bytes);
    } else {
        BS_TRY(bs_stream_create_background(s->device, &s->stream));
        BS_TRY(bs_host_alloc(s->device, N_SLOTS * s->slot_bytes, "snapshot staging", &memory));
    }
    s->host = memory;
    if (is_gpu(s->device))
        BS_TRY(bs_buffer_alloc(s->device, N_SLOTS * s->slot_bytes, "snapshot staging", &s->on_device));
    return BS_STATUS_OK;
}

bs_status bs_snap_staging_open(bs_device *device, const bs_kv_pools *pools, const bs_snap_shape *shape,
                               bs_snap_staging *out)
{
    bs_snap_staging s = {
        .device = device, .pools = pools, .n_slots = N_SLOTS, .slot_bytes = slot_bytes(device, shape)};
    bs_status status = open_memory(&s, shape);
    if (status == BS_STATUS_OK)
        status = bs_snap_workers_open(is_gpu(device) ? GPU_THREADS : CPU_THREADS, N_SLOTS, &s.workers);
    if (status != BS_STATUS_OK) {
        bs_snap_staging_close(&s);
        return status;
    }
    *out = s;
    return BS_STATUS_OK;
}

void bs_snap_staging_close(bs_snap_staging *s)
{
    bs_snap_workers_close(s->workers);
    bs_buffer_free(s->on_device);
    if (s->device) bs_host_free(s->device, s->host);
    else free(s->host);
    bs_stream_destroy(s->stream);
    free(s->sums);
    free(s->refs);
    *s = (bs_snap_staging){0};
}

/* All slots' jobs are over. The first error, if nobody had one before. */
static bs_status wait_for_all(bs_snap_staging *s, bs_status status)
{
    for (int slot = 0; slot < s->n_slots; slot++) {
        bs_status one = bs_snap_workers_wait(s->workers, slot);
        if (status == BS_STATUS_OK) status = one;
    }
    return status;
}

static bs_status check_cancel(const bs_snap_progress *progress)
{
    if (!progress->cancel || !*progress->cancel) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_INTERRUPTED, "snapshot: given up");
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

typedef struct writing {
    bs_snap_staging *staging;
    const bs_snap_handle *handle;
    const bs_snap_shape *shape;
    const bs_snap_file *file;
    bs_snap_heads heads;
    bs_snap_chunk chunk[N_SLOTS];
    uint64_t written[N_SLOTS];
} writing;

static bs_status write_slot(void *context, int slot)
{
    writing *w = context;
    bs_snap_staging *s = w->staging;
    return bs_snap_write_chunk(w->handle, w->shape, w->file, w->heads, &w->chunk[slot], bs_snap_slot(s, slot),
                               s->sums + (size_t)slot * s->max_refs, &w->written[slot]);
}

bs_status bs_snap_write_pages(bs_snap_staging *s, const bs_snap_handle *handle, const bs_snap_shape *shape,
                              const bs_snap_file *file, bs_snap_heads heads, const bs_snap_source *source,
                              bs_snap_progress *progress)
{
    writing w = {.staging = s, .handle = handle, .shape = shape, .file = file, .heads = heads};
    bs_snap_walk walk = {.shape = shape, .file = file, .heads = heads, .chunk_bytes = s->slot_bytes};
    bs_status status = BS_STATUS_OK;
    for (int slot = 0; status == BS_STATUS_OK; slot = (slot + 1) % s->n_slots) {
        status = bs_snap_workers_wait(s->workers, slot);
        if (status == BS_STATUS_OK) status = check_cancel(progress);
        if (status != BS_STATUS_OK || !bs_snap_walk_next(&walk, source, &w.chunk[slot])) break;
        status = bs_snap_pack_chunk(s, shape, file, heads, &w.chunk[slot], source, slot);
        bs_status synced = bs_stream_sync(s->stream);
        if (status == BS_STATUS_OK) status = synced;
        if (status == BS_STATUS_OK && !is_gpu(s->device))
            status = bs_snap_workers_wait(s->workers, (slot + s->n_slots - 1) % s->n_slots);
        if (status == BS_STATUS_OK) bs_snap_workers_start(s->workers, slot, write_slot, &w);
    }
    status = wait_for_all(s, status);
    for (int slot = 0; slot < s->n_slots; slot++) progress->bytes += w.written[slot];
    return status;
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

typedef struct read_ahead {
    bs_snap_staging *staging;
    const bs_snap_reading *r;
    bs_snap_walk walk;
    bs_snap_chunk chunk[N_SLOTS];
    bool more;
} read_ahead;

static bs_status read_slot(void *context, int slot)
{
    read_ahead *a = context;
    const bs_snap_reading *r = a->r;
    char *data = bs_snap_slot(a->staging, slot);
    BS_TRY(bs_snap_read_chunk(r, &a->chunk[slot], data));
    return bs_snap_check_chunk(r, &a->chunk[slot], data);
}

/* Gives the slot the next chunk that is wanted; false: there is none. */
static bool read_next(read_ahead *a, int slot)
{
    const bs_snap_reading *r = a->r;
    while (a->more && (a->more = bs_snap_walk_next(&a->walk, r->source, &a->chunk[slot]))) {
        if (r->wants && !r->wants(r->context, r->file, &a->chunk[slot])) continue;
        bs_snap_workers_start(a->staging->workers, slot, read_slot, a);
        return true;
    }
    return false;
}

bs_status bs_snap_read_pages(bs_snap_staging *s, const bs_snap_reading *r, bs_snap_progress *progress)
{
    read_ahead a = {
        .staging = s,
        .r = r,
        .walk = {.shape = r->shape, .file = r->file, .heads = r->heads, .chunk_bytes = s->slot_bytes},
        .more = true};
    bs_status status = BS_STATUS_OK;
    int n_ahead = 0, slot = 0;
    while (n_ahead < s->n_slots && read_next(&a, n_ahead)) n_ahead++;
    while (n_ahead > 0 && status == BS_STATUS_OK) {
        status = bs_snap_workers_wait(s->workers, slot);
        if (status == BS_STATUS_OK) status = check_cancel(progress);
        if (status != BS_STATUS_OK) break;
        progress->bytes += bs_snap_chunk_size(r->shape, r->file, &a.chunk[slot]);
        if (r->take) status = r->take(r->context, r->file, &a.chunk[slot], slot);
        if (s->stream) {
            bs_status synced = bs_stream_sync(s->stream);
            if (status == BS_STATUS_OK) status = synced;
        }
        n_ahead--;
        if (status == BS_STATUS_OK && read_next(&a, slot)) n_ahead++;
        slot = (slot + 1) % s->n_slots;
    }
    return wait_for_all(s, status);
}
