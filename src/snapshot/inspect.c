/* inspect.c: listing, showing, verifying and collecting whole directories, without a model or other ranks. */
#include "src/snapshot/inspect.h"

#include "src/base/checked.h"
#include "src/snapshot/snapshot_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bs_status open_dir(const char *path, bs_snap_fs *fs)
{
    bool found;
    BS_TRY(bs_snap_fs_open(path, false, fs, &found));
    return found ? BS_STATUS_OK : bs_fail(BS_STATUS_IO, "%s: there is no such directory", path);
}

/* ---- listing ----------------------------------------------------------------------------------------------- */

static bs_status check_headers(const bs_snap_fs *fs, const bs_snap_manifest *m)
{
    for (int i = 0; i < m->n_files; i++) {
        bs_snap_handle handle;
        uint32_t *sums;
        BS_TRY(bs_snap_open_verified(fs, m, i, true, &handle, &sums, NULL));
        close(handle.fd);
        free(sums);
    }
    return BS_STATUS_OK;
}

static void fill_item(const bs_snap_manifest *m, bs_snapshot_item *item)
{
    item->readable = true;
    item->created_s = m->created_s;
    item->n_cached = m->cache.length;
    item->n_tokens = m->n_tokens;
    item->n_prompt = m->state.n_prompt;
    item->finished = m->state.finished;
    item->n_segments = m->n_files - 1;
    item->heads = m->heads;
    item->seq = m->seq;
    item->bytes = bs_snap_manifest_bytes(m);
    snprintf(item->id, sizeof item->id, "%s", m->state.id);
    snprintf(item->kv, sizeof item->kv, "%s", m->fingerprint.value[BS_SNAP_FIELD_kv]);
    snprintf(item->architecture, sizeof item->architecture, "%s",
             m->fingerprint.value[BS_SNAP_FIELD_architecture]);
}

static void look_at(const bs_snap_fs *fs, const char *name, bs_snapshot_item *item)
{
    bs_snap_found found;
    const bs_error_diversion before = bs_error_divert(item->line, sizeof item->line);
    item->status = bs_snap_read_manifest(fs, name, &found);
    if (item->status == BS_STATUS_OK) {
        fill_item(&found.manifest, item);
        item->status = check_headers(fs, &found.manifest);
        bs_snap_found_free(&found);
    }
    bs_error_divert_back(before);
}

bs_status bs_snapshot_list(const char *path, bs_snapshot_item **items, int *n)
{
    bs_snap_fs fs;
    char **names;
    int n_names, count = 0;
    BS_TRY(open_dir(path, &fs));
    bs_status status = bs_snap_fs_list(&fs, &names, &n_names);
    if (status == BS_STATUS_OK) {
        bs_snapshot_item *list = calloc((size_t)n_names + 1, sizeof *list);
        for (int i = 0; list && i < n_names; i++) {
            uint8_t sha256[32];
            int64_t number;
            if (!bs_snap_manifest_parse_name(names[i], &number, sha256)) continue;
            list[count].number = number;
            look_at(&fs, names[i], &list[count++]);
        }
        bs_snap_fs_free_list(names, n_names);
        if (list) *items = list;
        else status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for its list", path);
        *n = count;
    }
    bs_snap_fs_close(&fs);
    return status;
}

/* ---- one of them ------------------------------------------------------------------------------------------- */

static bs_status find_number(const bs_snap_fs *fs, int64_t number, bs_snap_found *out)
{
    char **names, name[BS_SNAP_MANIFEST_NAME] = "";
    int n;
    if (number == 0) {
        bool found;
        int64_t last;
        BS_TRY(bs_snap_find(fs, NULL, out, &found, &last));
        return found ? BS_STATUS_OK : bs_fail(BS_STATUS_IO, "%s: holds no snapshot", fs->path);
    }
    BS_TRY(bs_snap_fs_list(fs, &names, &n));
    for (int i = 0; i < n; i++) {
        uint8_t sha256[32];
        int64_t its;
        if (bs_snap_manifest_parse_name(names[i], &its, sha256) && its == number)
            snprintf(name, sizeof name, "%s", names[i]);
    }
    bs_snap_fs_free_list(names, n);
    if (!name[0]) return bs_fail(BS_STATUS_IO, "%s: holds no snapshot %" PRId64, fs->path, number);
    return bs_snap_read_snapshot(fs, name, NULL, out);
}

bs_status bs_snap_open_number(const char *path, int64_t number, bs_snap_fs *fs, bs_snap_found *out)
{
    BS_TRY(open_dir(path, fs));
    const bs_status status = find_number(fs, number, out);
    if (status != BS_STATUS_OK) bs_snap_fs_close(fs);
    return status;
}

bs_status bs_snapshot_show(const char *path, int64_t number, char **json)
{
    bs_snap_fs fs;
    bs_snap_found found;
    BS_TRY(bs_snap_open_number(path, number, &fs, &found));
    *json = found.text;
    found.text = NULL;
    bs_snap_found_free(&found);
    bs_snap_fs_close(&fs);
    return BS_STATUS_OK;
}

/* ---- every byte -------------------------------------------------------------------------------------------- */

typedef struct visit {
    const bs_snap_shape *shape;
    bs_snap_staging *staging;
    bs_snap_chunk_visit *visit;
    void *context;
    const uint32_t *sums;
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *progress_context;
    uint64_t done, total;
} visit;

static bs_status take_chunk(void *context, const bs_snap_file *file, const bs_snap_chunk *chunk, int slot)
{
    visit *v = context;
    if (v->visit) BS_TRY(v->visit(v->context, file, chunk, bs_snap_slot(v->staging, slot), v->sums));
    v->done += bs_snap_chunk_size(v->shape, file, chunk);
    if (v->progress) v->progress(v->progress_context, v->done < v->total ? v->done : v->total, v->total);
    return BS_STATUS_OK;
}

static bs_status visit_file(const bs_snap_fs *fs, const bs_snap_manifest *m, int i,
                            const bs_snap_source *source, visit *v)
{
    bs_snap_progress progress = {.cancel = NULL};
    bs_snap_handle handle;
    uint32_t *sums;
    BS_TRY(bs_snap_open_verified(fs, m, i, true, &handle, &sums, NULL));
    v->sums = sums;
    const bs_snap_reading reading = {.handle = &handle,
                                     .shape = &m->shape,
                                     .file = &m->files[i],
                                     .heads = {0, m->shape.n_kv_heads},
                                     .source = source,
                                     .sums = sums,
                                     .take = take_chunk,
                                     .context = v};
    bs_status status = bs_snap_read_pages(v->staging, &reading, &progress);
    free(sums);
    close(handle.fd);
    return status;
}

bs_status bs_snap_each_chunk(const bs_snap_fs *fs, const bs_snap_manifest *m, bs_snap_chunk_visit *function,
                             void *context, void (*progress)(void *context, uint64_t done, uint64_t total),
                             void *progress_context)
{
    bs_snap_staging staging;
    const int64_t n_pages = bs_ceil_div(m->cache.length, BS_PAGE_TOKENS);
    bs_cache_page_ref *pages = malloc((size_t)(n_pages + 1) * sizeof *pages);
    if (!pages) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to read it", fs->path);
    const bs_snap_source source = {.pages = pages, .n = n_pages};
    bs_snap_list_owned(0, n_pages, 0, 1, 1, 0, pages);
    bs_status status = bs_snap_staging_open(NULL, NULL, &m->shape, &staging);
    if (status == BS_STATUS_OK) {
        visit v = {.shape = &m->shape,
                   .staging = &staging,
                   .visit = function,
                   .context = context,
                   .progress = progress,
                   .progress_context = progress_context,
                   .total = bs_snap_manifest_bytes(m)};
        for (int i = 0; status == BS_STATUS_OK && i < m->n_files; i++)
            status = visit_file(fs, m, i, &source, &v);
        if (progress) progress(progress_context, v.total, v.total);
        bs_snap_staging_close(&staging);
    }
    free(pages);
    return status;
}

uint64_t bs_snap_manifest_bytes(const bs_snap_manifest *m)
{
    uint64_t bytes = 0;
    for (int i = 0; i < m->n_files; i++) bytes += m->files[i].bytes;
    return bytes;
}

bs_snapshot_checked bs_snap_checked_of(const bs_snap_manifest *m)
{
    return (bs_snapshot_checked){.number = m->number,
                                 .n_pages = bs_ceil_div(m->cache.length, BS_PAGE_TOKENS) *
                                            m->shape.n_kv_heads * m->shape.n_layers,
                                 .n_cached = m->cache.length,
                                 .bytes = bs_snap_manifest_bytes(m)};
}

bs_status bs_snapshot_check(const char *path, int64_t number,
                            void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                            bs_snapshot_checked *out)
{
    bs_snap_fs fs;
    bs_snap_found found;
    BS_TRY(bs_snap_open_number(path, number, &fs, &found));
    const bs_status status = bs_snap_each_chunk(&fs, &found.manifest, NULL, NULL, progress, context);
    if (status == BS_STATUS_OK) *out = bs_snap_checked_of(&found.manifest);
    bs_snap_found_free(&found);
    bs_snap_fs_close(&fs);
    return status;
}

/* ---- the rest ---------------------------------------------------------------------------------------------- */

bs_status bs_snapshot_gc(const char *path, int keep, bool dry, const char *job, int *n_removed,
                         uint64_t *bytes_removed)
{
    bs_snap_fs fs;
    bs_snap_lock lock = {.fd = -1};
    BS_TRY(open_dir(path, &fs));
    bs_status status = dry ? BS_STATUS_OK : bs_snap_lock_take(&fs, job, &lock);
    if (status == BS_STATUS_OK) status = bs_snap_collect(&fs, keep, dry, n_removed, bytes_removed);
    bs_snap_lock_release(&fs, &lock);
    bs_snap_fs_close(&fs);
    return status;
}

bs_status bs_snapshot_drop_cache(const char *path)
{
    bs_snap_fs fs;
    char **names;
    int n;
    BS_TRY(open_dir(path, &fs));
    bs_status status = bs_snap_fs_list(&fs, &names, &n);
    if (status == BS_STATUS_OK) {
        for (int i = 0; status == BS_STATUS_OK && i < n; i++) {
            bs_snap_handle handle;
            if (!bs_snap_is_data_name(names[i])) continue;
            status = bs_snap_fs_open_file(&fs, names[i], false, &handle, NULL);
            if (status != BS_STATUS_OK) break;
            bs_snap_fs_drop_cache(handle.fd);
            close(handle.fd);
        }
        bs_snap_fs_free_list(names, n);
    }
    bs_snap_fs_close(&fs);
    return status;
}
