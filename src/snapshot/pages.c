/* pages.c: a rank's pages between the cache and a file's parts: pack, copy, CRC-32C, pwrite; and back.
 *
 * A chunk is some units of one group: (head, layer) pairs, which follow each other in every part, so a chunk of a group
 * that is this rank's whole is one run a part (megabytes: stripes of pages are blocks). Of a group that several ranks share
 * (--stripe-pages below 8) each page of each unit is a run of its own.
 *
 * A chunk in memory is its parts one after the other, [unit][page of the group][bytes] each, as in the file. One checksum
 * stands for one page of one (head, layer) over its pieces of k, k_meta, v, v_meta: small enough that a reader on another
 * grid needs nothing of another's, large enough (17 KiB at int4 and D 128) to cost four bytes in four thousand.
 */
#include "src/base/checked.h"
#include "src/base/crc32c.h"
#include "src/snapshot/snapshot_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static uint64_t chunk_page_bytes(const bs_snap_shape *shape, bool f16)
{
    return f16 ? shape->f16_page : shape->page[0] + shape->page[1] + shape->page[2] + shape->page[3];
}

/* ---- chunks ------------------------------------------------------------------------------------------------ */

/* The next group that holds a page of the source, from entry walk->next on. */
static bool next_group(bs_snap_walk *w, const bs_snap_source *source)
{
    const bs_snap_file *file = w->file;
    const int group_pages = bs_snap_group_pages(file, w->f16);
    bs_snap_chunk *c = &w->chunk;
    c->mask = c->zeros = 0;
    for (; w->next < source->n; w->next++) {
        const bs_cache_page_ref *page = &source->pages[w->next];
        int64_t index;
        if (page->page < file->first_page || page->page >= file->end_page) continue;
        const bool in_f16 = bs_snap_find_page(file, page->page, &index);
        /* A sink page of a segment has a place, of zeros, among the quantized ones, too. */
        const bool zeros = in_f16 && !w->f16 && !file->is_tail;
        if (zeros) index = page->page - file->first_quant;
        if (in_f16 != w->f16 && !zeros) continue;
        if (c->mask != 0 && index / group_pages != c->group) break;
        const uint32_t bit = 1u << index % group_pages;
        c->group = index / group_pages;
        c->mask |= bit;
        if (zeros) c->zeros |= bit;
        c->slot[index % group_pages] = page->slot;
    }
    return c->mask != 0;
}

bool bs_snap_walk_next(bs_snap_walk *w, const bs_snap_source *source, bs_snap_chunk *out)
{
    bs_snap_chunk *c = &w->chunk;
    const int n_units = w->heads.n * w->shape->n_layers;
    c->first_unit += c->n_units;
    if (c->mask == 0 || c->first_unit == n_units) {
        c->first_unit = 0;
        while (!next_group(w, source)) {
            if (w->f16) return false;
            w->f16 = true;
            w->next = 0;
        }
        c->f16 = w->f16;
        c->quantized = !w->f16 && !w->shape->is_f16;
    }
    const uint64_t unit = (uint64_t)bs_snap_group_pages(w->file, w->f16) * chunk_page_bytes(w->shape, w->f16);
    c->n_units = (int)bs_min_i64((int64_t)(w->chunk_bytes / unit), n_units - c->first_unit);
    *out = *c;
    return true;
}

/* The parts of a chunk, and where each begins in memory. */
typedef struct parts {
    int n, group_pages;
    bs_snap_part part[4], sums_part;
    uint64_t page[4]; /* bytes of a page of a unit */
    size_t at[5];
} parts;

static parts parts_of(const bs_snap_shape *shape, const bs_snap_file *file, const bs_snap_chunk *chunk)
{
    parts p = {.group_pages = bs_snap_group_pages(file, chunk->f16),
               .sums_part = chunk->f16 ? BS_SNAP_F16_CRC : BS_SNAP_CRC};
    for (bs_snap_part part = 0; part < 4; part++) {
        if (chunk->f16 ? part != 0 : shape->page[part] == 0) continue;
        p.part[p.n] = chunk->f16 ? BS_SNAP_F16 : part;
        p.page[p.n] = chunk_page_bytes(shape, chunk->f16);
        if (!chunk->f16) p.page[p.n] = shape->page[part];
        p.at[p.n + 1] = p.at[p.n] + (size_t)((uint64_t)(chunk->n_units * p.group_pages) * p.page[p.n]);
        p.n++;
    }
    return p;
}

size_t bs_snap_chunk_size(const bs_snap_shape *shape, const bs_snap_file *file, const bs_snap_chunk *chunk)
{
    const parts p = parts_of(shape, file, chunk);
    return p.at[p.n];
}

/* Offset in the file of page `page` of unit `unit` of the chunk. */
static uint64_t file_offset(const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_heads heads,
                            const bs_snap_chunk *chunk, bs_snap_part part, int unit, int page)
{
    const int64_t index = chunk->group * bs_snap_group_pages(file, chunk->f16) + page;
    const int u = chunk->first_unit + unit;
    return file->part[part].offset +
           bs_snap_page_at(shape, file, part, index, heads.first + u / shape->n_layers, u % shape->n_layers);
}

static size_t piece_at(const parts *p, int i, int unit, int page)
{
    return p->at[i] + (size_t)((uint64_t)(unit * p->group_pages + page) * p->page[i]);
}

static uint32_t sum_page(const parts *p, const char *buffer, int unit, int page)
{
    uint32_t crc = 0;
    for (int i = 0; i < p->n; i++)
        crc = bs_crc32c(crc, buffer + piece_at(p, i, unit, page), (size_t)p->page[i]);
    return crc;
}

/* ---- between slots and memory ------------------------------------------------------------------------------ */

/* References to the chunk's pages, with canonical bytes at `base` (host or device). */
static size_t fill_refs(bs_kv_page_ref *refs, const bs_snap_shape *shape, const parts *p,
                        const bs_snap_chunk *chunk, char *base)
{
    size_t n = 0;
    for (int unit = 0; unit < chunk->n_units; unit++) {
        const int u = chunk->first_unit + unit;
        for (int page = 0; page < p->group_pages; page++) {
            if (!(chunk->mask & ~chunk->zeros & 1u << page)) continue;
            bs_kv_page_ref ref = {
                .slot = chunk->slot[page], .layer = u % shape->n_layers, .kv_head = u / shape->n_layers};
            for (int i = 0; i < p->n; i++) {
                char *at = base + piece_at(p, i, unit, page);
                switch (p->part[i]) {
                case BS_SNAP_K: ref.k = at; break;
                case BS_SNAP_K_META: ref.k_meta = at; break;
                case BS_SNAP_V: ref.v = at; break;
                case BS_SNAP_V_META: ref.v_meta = at; break;
                default: /* f16: K, then V */ ref.k = at; ref.v = at + p->page[i] / 2;
                }
            }
            refs[n++] = ref;
        }
    }
    return n;
}

static char *device_side(const bs_snap_staging *s, int slot)
{
    return s->on_device ? bs_buffer_at(s->on_device, (size_t)slot * s->slot_bytes) : bs_snap_slot(s, slot);
}

bs_status bs_snap_pack_chunk(bs_snap_staging *s, const bs_snap_shape *shape, const bs_snap_file *file,
                             bs_snap_heads heads, const bs_snap_chunk *chunk, const bs_snap_source *source,
                             int slot)
{
    const parts p = parts_of(shape, file, chunk);
    if (source->captured) { /* one page, canonical already */
        const int n_units = heads.n * shape->n_layers;
        const uint64_t first = (uint64_t)chunk->slot[0] * (uint64_t)n_units + (uint64_t)chunk->first_unit;
        return bs_copy_to_host(s->stream, bs_snap_slot(s, slot),
                               bs_buffer_at(source->captured, (size_t)(first * p.page[0])), p.at[p.n]);
    }
    const size_t n = fill_refs(s->refs, shape, &p, chunk, device_side(s, slot));
    if (n > 0)
        BS_TRY(bs_op_pack(
            s->stream, &(bs_pack_args){
                           .pools = s->pools, .quantized = chunk->quantized, .n = (int)n, .pages = s->refs}));
    if (!s->on_device) return BS_STATUS_OK;
    return bs_copy_to_host(s->stream, bs_snap_slot(s, slot), device_side(s, slot), p.at[p.n]);
}

bs_status bs_snap_unpack_chunk(bs_snap_staging *s, const bs_snap_shape *shape, const bs_snap_file *file,
                               bs_snap_heads heads, const bs_snap_chunk *chunk, int slot)
{
    const parts p = parts_of(shape, file, chunk);
    const size_t n = fill_refs(s->refs, shape, &p, chunk, device_side(s, slot));
    if (n == 0) return BS_STATUS_OK;
    if (s->on_device)
        BS_TRY(bs_copy_to_device(s->stream, device_side(s, slot), bs_snap_slot(s, slot), p.at[p.n]));
    return bs_op_unpack(
        s->stream,
        &(bs_pack_args){.pools = s->pools, .quantized = chunk->quantized, .n = (int)n, .pages = s->refs});
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

static bool is_whole(const parts *p, const bs_snap_chunk *chunk)
{
    return chunk->mask == (1u << p->group_pages) - 1;
}

/* One part of a chunk: one run, or of a shared group a run for each unit's neighbouring pages. */
static bs_status write_part(const bs_snap_handle *h, const bs_snap_shape *shape, const bs_snap_file *file,
                            bs_snap_heads heads, const bs_snap_chunk *chunk, const parts *p,
                            bs_snap_part part, const char *data, uint64_t page_bytes, uint64_t *written)
{
    if (is_whole(p, chunk)) {
        const size_t bytes = (size_t)((uint64_t)(chunk->n_units * p->group_pages) * page_bytes);
        const uint64_t offset = file_offset(shape, file, heads, chunk, part, 0, 0);
        BS_TRY(bs_snap_fs_pwrite(h, data, bytes, offset));
        if (bytes >= BS_SNAP_ALIGN / 4) bs_snap_fs_start_writeback(h->fd, offset, bytes);
        *written += bytes;
        return BS_STATUS_OK;
    }
    for (int unit = 0; unit < chunk->n_units; unit++)
        for (int page = 0, end; page < p->group_pages; page = end + 1) {
            for (end = page; end < p->group_pages && chunk->mask & 1u << end;) end++;
            if (end == page) continue;
            const size_t at = (size_t)((uint64_t)(unit * p->group_pages + page) * page_bytes);
            const size_t bytes = (size_t)((uint64_t)(end - page) * page_bytes);
            BS_TRY(bs_snap_fs_pwrite(h, data + at, bytes,
                                     file_offset(shape, file, heads, chunk, part, unit, page)));
            *written += bytes;
        }
    return BS_STATUS_OK;
}

/* A chunk that has arrived in memory: zeros, sums, the file. */
bs_status bs_snap_write_chunk(const bs_snap_handle *h, const bs_snap_shape *shape, const bs_snap_file *file,
                              bs_snap_heads heads, const bs_snap_chunk *chunk, char *data, uint32_t *sums,
                              uint64_t *written)
{
    const parts p = parts_of(shape, file, chunk);
    for (int unit = 0; unit < chunk->n_units; unit++)
        for (int page = 0; page < p.group_pages; page++) {
            for (int i = 0; chunk->zeros & 1u << page && i < p.n; i++)
                memset(data + piece_at(&p, i, unit, page), 0, (size_t)p.page[i]);
            if (chunk->mask & 1u << page) sums[unit * p.group_pages + page] = sum_page(&p, data, unit, page);
        }
    for (int i = 0; i < p.n; i++)
        BS_TRY(write_part(h, shape, file, heads, chunk, &p, p.part[i], data + p.at[i], p.page[i], written));
    return write_part(h, shape, file, heads, chunk, &p, p.sums_part, (const char *)sums, sizeof *sums,
                      written);
}

/* ---- reading ----------------------------------------------------------------------------------------------- */

bs_status bs_snap_read_chunk(const bs_snap_reading *r, const bs_snap_chunk *chunk, char *buffer)
{
    const parts p = parts_of(r->shape, r->file, chunk);
    for (int i = 0; i < p.n; i++)
        BS_TRY(bs_snap_fs_pread(r->handle, buffer + p.at[i], p.at[i + 1] - p.at[i],
                                file_offset(r->shape, r->file, r->heads, chunk, p.part[i], 0, 0)));
    return BS_STATUS_OK;
}

bs_status bs_snap_check_chunk(const bs_snap_reading *r, const bs_snap_chunk *chunk, const char *buffer)
{
    const bs_snap_shape *shape = r->shape;
    const bs_snap_file *file = r->file;
    const uint32_t *sums = r->sums;
    const parts p = parts_of(shape, file, chunk);
    if (chunk->f16) sums += file->part[BS_SNAP_CRC].bytes / sizeof *sums;
    for (int unit = 0; unit < chunk->n_units; unit++)
        for (int page = 0; page < p.group_pages; page++) {
            if (!(chunk->mask & 1u << page)) continue;
            const int u = chunk->first_unit + unit;
            const int head = r->heads.first + u / shape->n_layers, layer = u % shape->n_layers;
            const int64_t index = chunk->group * p.group_pages + page;
            const uint32_t stored =
                sums[bs_snap_page_at(shape, file, p.sums_part, index, head, layer) / sizeof *sums];
            const uint32_t sum = sum_page(&p, buffer, unit, page);
            if (sum != stored)
                return bs_fail(
                    BS_STATUS_FORMAT,
                    "%s: page %" PRId64 " of %s, KV head %d, layer %d: checksum %08x, %08x is stored",
                    r->handle->path, index, bs_snap_part_name[p.part[0]], head, layer, sum, stored);
        }
    return BS_STATUS_OK;
}
