/* export.c: one HDF5 file of a whole snapshot, for other programs.
 *
 * The layout of a tail that begins at page 0: quantized pages as [page][KV head][layer]…, f16 ones beside them, all token
 * ids. So a reader of tails reads it, and arrays are whole, not in segments. Rejected: a virtual dataset over the segments,
 * in which a missing file reads as zeros without an error. Everything is checked on the way; the checksums come along.
 */
#include "src/snapshot/inspect.h"

#include "src/base/checked.h"
#include "src/snapshot/snapshot_private.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct copy {
    const bs_snap_manifest *manifest;
    bs_snap_file file; /* of the export */
    bs_snap_handle handle;
} copy;

/* A piece of one page of one (head, layer) to its place in the export. */
static bs_status put(const copy *c, bs_snap_part part, int64_t index, int head, int layer, const void *data)
{
    const bs_snap_shape *shape = &c->manifest->shape;
    const uint64_t at = c->file.part[part].offset +
                        bs_snap_page_at(shape, &c->file, part, index, head, layer);
    return bs_snap_fs_pwrite(&c->handle, data, (size_t)bs_snap_page_bytes(shape, part), at);
}

/* A page of a unit: its pieces, and its checksum where the order of pieces is the same. */
static bs_status copy_page(const copy *c, const bs_snap_file *from, const bs_snap_chunk *chunk,
                           const char *data, const uint32_t *sums, int unit, int place)
{
    const bs_snap_shape *shape = &c->manifest->shape;
    const int group_pages = bs_snap_group_pages(from, chunk->f16), u = chunk->first_unit + unit;
    const int head = u / shape->n_layers, layer = u % shape->n_layers;
    const int64_t from_index = chunk->group * group_pages + place;
    int64_t page, index;
    if (!chunk->f16) page = from->first_quant + from_index;
    else
        page = from_index < from->n_f16_sink ? from->first_page + from_index
                                             : from->first_f16 + from_index - from->n_f16_sink;
    const bool f16 = bs_snap_find_page(&c->file, page, &index);
    const bs_snap_part sums_part = chunk->f16 ? BS_SNAP_F16_CRC : BS_SNAP_CRC;
    if (chunk->f16) sums += from->part[BS_SNAP_CRC].bytes / sizeof *sums;
    sums += bs_snap_page_at(shape, from, sums_part, from_index, head, layer) / sizeof *sums;
    BS_TRY(put(c, f16 ? BS_SNAP_F16_CRC : BS_SNAP_CRC, index, head, layer, sums));
    const size_t at = (size_t)(unit * group_pages + place);
    if (f16 && chunk->f16) return put(c, BS_SNAP_F16, index, head, layer, data + at * shape->f16_page);
    if (f16) { /* an f16 format's segment holds K and V apart */
        const size_t half = (size_t)shape->f16_page / 2, all = (size_t)(chunk->n_units * group_pages) * half;
        char *both = malloc(2 * half);
        if (!both) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for a page", c->handle.path);
        memcpy(both, data + at * half, half);
        memcpy(both + half, data + all + at * half, half);
        bs_status status = put(c, BS_SNAP_F16, index, head, layer, both);
        free(both);
        return status;
    }
    size_t base = 0;
    for (bs_snap_part part = 0; part < 4; part++) {
        const size_t bytes = (size_t)shape->page[part];
        BS_TRY(put(c, part, index, head, layer, data + base + at * bytes));
        base += (size_t)(chunk->n_units * group_pages) * bytes;
    }
    return BS_STATUS_OK;
}

static bs_status copy_chunk(void *context, const bs_snap_file *from, const bs_snap_chunk *chunk,
                            const char *data, const uint32_t *sums)
{
    const copy *c = context;
    for (int unit = 0; unit < chunk->n_units; unit++)
        for (int place = 0; place < bs_snap_group_pages(from, chunk->f16); place++)
            if (chunk->mask & ~chunk->zeros & 1u << place)
                BS_TRY(copy_page(c, from, chunk, data, sums, unit, place));
    return BS_STATUS_OK;
}

/* The directory that the file is to be in: any that may be written to. */
static bs_status open_parent(const char *file, bs_snap_fs *fs, char name[BS_SNAP_NAME_BYTES])
{
    char first[1024], second[1024];
    if (strlen(file) == 0 || strlen(file) >= sizeof first)
        return bs_fail(BS_STATUS_USAGE, "export to a name of %zu bytes: must be 1 … %zu", strlen(file),
                       sizeof first - 1);
    strcpy(first, file);
    strcpy(second, file);
    snprintf(fs->path, sizeof fs->path, "%s", dirname(first));
    const char *base = basename(second);
    if (strlen(base) >= BS_SNAP_NAME_BYTES)
        return bs_fail(BS_STATUS_USAGE, "%s: a name of %zu bytes: must be fewer than %d", file, strlen(base),
                       BS_SNAP_NAME_BYTES);
    strcpy(name, base);
    return bs_snap_fs_open_any(fs);
}

/* All of it, into a file that has just been made. */
static bs_status fill(copy *c, const bs_snap_fs *from, const int32_t *tokens,
                      void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    const bs_snap_extent *ids = &c->file.part[BS_SNAP_TOKENS];
    BS_TRY(bs_snap_each_chunk(from, c->manifest, copy_chunk, c, progress, context));
    BS_TRY(bs_snap_fs_pwrite(&c->handle, tokens, (size_t)ids->bytes, ids->offset));
    return bs_snap_fs_sync(&c->handle);
}

static bs_status export_found(const bs_snap_fs *from, const bs_snap_found *found, const char *file,
                              void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    copy c = {.manifest = &found->manifest};
    bs_snap_fs to;
    BS_TRY(open_parent(file, &to, c.file.name));
    char name[BS_SNAP_NAME_BYTES];
    strcpy(name, c.file.name);
    bs_snap_tail_of(&c.manifest->shape, 0, &c.manifest->cache, c.manifest->n_tokens, &c.file);
    strcpy(c.file.name, name);
    c.file.is_export = true;
    bs_status status = bs_snap_container_create(&to, name, &c.manifest->shape, &c.file);
    if (status == BS_STATUS_OK) {
        status = bs_snap_fs_open_file(&to, name, true, &c.handle, NULL);
        if (status == BS_STATUS_OK) {
            status = fill(&c, from, found->tokens, progress, context);
            close(c.handle.fd);
        }
        if (status != BS_STATUS_OK) bs_snap_fs_unlink(&to, name);
    }
    bs_snap_fs_close(&to);
    return status;
}

bs_status bs_snapshot_export(const char *path, int64_t number, const char *file,
                             void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                             bs_snapshot_checked *out)
{
    bs_snap_fs fs;
    bs_snap_found found;
    BS_TRY(bs_snap_open_number(path, number, &fs, &found));
    const bs_status status = export_found(&fs, &found, file, progress, context);
    if (status == BS_STATUS_OK) *out = bs_snap_checked_of(&found.manifest);
    bs_snap_found_free(&found);
    bs_snap_fs_close(&fs);
    return status;
}
