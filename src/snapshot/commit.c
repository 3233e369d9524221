/* commit.c: what a rank's thread does in each phase of a snapshot.
 *
 * Two-phase durability. Files are made under temporary names, written and synced by all ranks, read back by the next rank
 * (from the medium: clean pages were dropped), and only when all ranks have said that all of it went well are they renamed;
 * then the directory is synced, and the manifest goes the same way. Before the manifest's rename is durable nothing has
 * changed; after it nothing can be lost. The thread makes no MPI call and allocates little: ids, sums, the manifest.
 */
#include "config.h"

#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/snapshot/job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void temporary_name(const char *name, char out[BS_SNAP_NAME_BYTES + 8])
{
    snprintf(out, BS_SNAP_NAME_BYTES + 8, BS_SNAP_TMP "%s", name);
}

int64_t bs_snap_list_owned(int64_t first, int64_t end, int start_s, int stripe_pages, int seq, int seq_shard,
                           bs_cache_page_ref *out)
{
    int64_t n = 0;
    for (int64_t page = first; page < end; page++)
        if (bs_cache_page_owner(page, start_s, stripe_pages, seq) == seq_shard)
            out[n++] = (bs_cache_page_ref){.page = page};
    return n;
}

/* A file that has been made and has no name yet. */
static bs_status open_temporary(const bs_snap_job *job, const bs_snap_file *f, bool write,
                                bs_snap_handle *out)
{
    uint64_t bytes;
    char temporary[BS_SNAP_NAME_BYTES + 8];
    temporary_name(f->name, temporary);
    BS_TRY(bs_snap_fs_open_file(&job->dir->fs, temporary, write, out, &bytes));
    if (bytes == f->bytes) return BS_STATUS_OK;
    close(out->fd);
    return bs_fail(BS_STATUS_IO, "%s: %" PRIu64 " bytes here, %" PRIu64 " where it was made", out->path,
                   bytes, f->bytes);
}

/* ---- CREATE ------------------------------------------------------------------------------------------------ */

static uint64_t bytes_needed(const bs_snap_job *job)
{
    uint64_t bytes = 1 << 20; /* the manifest and the directory's own */
    for (int i = 0; i < job->n_files; i++)
        for (int p = 0; p < BS_SNAP_N_PARTS; p++) bytes += job->files[i].part[p].bytes + BS_SNAP_ALIGN / 4;
    return bytes;
}

static bs_status create_file(bs_snapshots *s, bs_snap_file *f)
{
    char random[17], temporary[BS_SNAP_NAME_BYTES + 8];
    BS_TRY(bs_snap_random_hex(random));
    if (f->is_tail) snprintf(f->name, sizeof f->name, "tail-%08" PRId64 "-%s.h5", s->job.number, random);
    else
        snprintf(f->name, sizeof f->name, "seg-%08" PRId64 "-%" PRId64 "-%s.h5",
                 f->first_page / BS_SNAP_BLOCK_PAGES, f->n_quant / BS_SNAP_BLOCK_PAGES, random);
    temporary_name(f->name, temporary);
    return bs_snap_container_create(&s->job.dir->fs, temporary, &s->shape, f);
}

/* Segments stay only if they hold these ids: whoever calls us might write another sequence here. */
static bs_status check_kept(const bs_snap_job *job)
{
    for (int i = 0; i < job->n_kept; i++) {
        const bs_snap_file *f = &job->dir->manifest.files[i];
        uint8_t chain[32];
        bs_snap_chain_sha256(i > 0 ? f - 1 : NULL, f, job->tokens + f->first_token, chain);
        if (memcmp(chain, f->chain_sha256, sizeof chain) != 0)
            return bs_fail(BS_STATUS_MISMATCH, "%s/%s: holds other token ids than this sequence",
                           job->dir->fs.path, f->name);
    }
    return BS_STATUS_OK;
}

static bs_status create(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    BS_TRY(bs_snap_fs_check_space(&job->dir->fs, bytes_needed(job)));
    if (!bs_snap_leader(s)) return BS_STATUS_OK;
    BS_TRY(check_kept(job));
    for (int i = 0; i < job->n_files; i++) BS_TRY(create_file(s, &job->files[i]));
    return BS_STATUS_OK;
}

/* ---- WRITE ------------------------------------------------------------------------------------------------- */

static bs_status write_file(bs_snapshots *s, const bs_snap_handle *file, const bs_snap_file *f)
{
    const bs_snap_job *job = &s->job;
    const bs_snap_source pinned = {.pages = job->pinned, .n = job->n_pinned};
    const bs_snap_source captured = {.pages = job->captured, .n = job->n_captured, .captured = s->tail};
    BS_TRY(bs_snap_write_pages(&s->staging, file, &s->shape, f, s->heads, &pinned, &s->progress));
    if (f->is_tail)
        BS_TRY(bs_snap_write_pages(&s->staging, file, &s->shape, f, s->heads, &captured, &s->progress));
    if (bs_snap_leader(s)) {
        BS_TRY(bs_snap_fs_pwrite(file, job->tokens + f->first_token, (size_t)f->part[BS_SNAP_TOKENS].bytes,
                                 f->part[BS_SNAP_TOKENS].offset));
        s->progress.bytes += f->part[BS_SNAP_TOKENS].bytes;
    }
    return BS_STATUS_OK;
}

/* All files are written before the first is waited for: the disk goes on with one while the next is packed. */
static bs_status write_files(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    bs_snap_handle files[BS_SNAP_MAX_NEW];
    int n_open = 0;
    double ms;
    BS_TRY(bs_timer_ms(s->captured_mark, &ms)); /* the capture is done, and the steps before it */
    job->write_from_s = bs_now_s();
    bs_status status = BS_STATUS_OK;
    while (n_open < job->n_files && status == BS_STATUS_OK) {
        status = open_temporary(job, &job->files[n_open], true, &files[n_open]);
        if (status != BS_STATUS_OK) break;
        status = write_file(s, &files[n_open], &job->files[n_open]);
        n_open++;
    }
    /* Also by a rank without a page of a file: who has nothing dirty is done at once. */
    for (int i = 0; i < n_open && status == BS_STATUS_OK; i++) status = bs_snap_fs_sync(&files[i]);
    for (int i = 0; i < n_open; i++) {
        bs_snap_fs_drop_cache(files[i].fd);
        if (close(files[i].fd) != 0 && status == BS_STATUS_OK)
            status = bs_fail(BS_STATUS_IO, "%s: close: %s", files[i].path, strerror(errno));
    }
    return status;
}

/* ---- CHECK ------------------------------------------------------------------------------------------------- */

static bool is_wanted(void *context, const bs_snap_file *f, const bs_snap_chunk *chunk)
{
    const bs_snapshots *s = context;
    if (s->config.verify == BS_SNAPSHOT_VERIFY_FULL || f->is_tail || chunk->f16) return true;
    return chunk->group % 16 == 0 || chunk->group == f->n_quant / BS_SNAP_BLOCK_PAGES - 1;
}

/* What the next rank wrote: finds wrong offsets, too, and other views of the file system. */
static bs_status check_file(bs_snapshots *s, const bs_snap_file *f)
{
    const bs_snap_job *job = &s->job;
    const int peer = (s->rank + 1) % s->n_ranks, head_shard = peer / s->grid->seq;
    const bs_snap_heads heads = {head_shard * s->heads.n, s->heads.n};
    bs_snap_handle file;
    uint32_t *sums;
    BS_TRY(open_temporary(job, f, false, &file));
    bs_snap_fs_drop_cache(file.fd);
    bs_status status = bs_snap_read_sums(&file, f, &sums);
    if (status == BS_STATUS_OK) {
        bs_cache_page_ref *pages = malloc((size_t)(f->end_page - f->first_page + 1) * sizeof *pages);
        bs_snap_source source = {.pages = pages};
        if (pages) {
            source.n = bs_snap_list_owned(f->first_page, f->end_page, job->state.start_s,
                                          s->config.cache_config.stripe_pages, s->grid->seq,
                                          peer % s->grid->seq, pages);
            const bs_snap_reading reading = {.handle = &file,
                                             .shape = &s->shape,
                                             .file = f,
                                             .heads = heads,
                                             .source = &source,
                                             .sums = sums,
                                             .wants = is_wanted,
                                             .context = s};
            status = bs_snap_read_pages(&s->staging, &reading, &s->progress);
        } else {
            status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for its pages", file.path);
        }
        free(pages);
        free(sums);
    }
    close(file.fd);
    return status;
}

static bs_status check_files(bs_snapshots *s)
{
    if (s->config.verify == BS_SNAPSHOT_VERIFY_NONE) return BS_STATUS_OK;
    for (int i = 0; i < s->job.n_files; i++) BS_TRY(check_file(s, &s->job.files[i]));
    return BS_STATUS_OK;
}

/* ---- SEAL -------------------------------------------------------------------------------------------------- */

static bs_status digest_file(bs_snapshots *s, const bs_snap_file *before, bs_snap_file *f)
{
    bs_snap_handle file;
    uint32_t *sums = NULL;
    BS_TRY(open_temporary(&s->job, f, false, &file));
    bs_status status = bs_snap_header_sha256(&file, f, f->header_sha256);
    if (status == BS_STATUS_OK) status = bs_snap_read_sums(&file, f, &sums);
    close(file.fd);
    BS_TRY(status);
    bs_snap_sums_sha256(f, sums, f->sums_sha256);
    free(sums);
    bs_snap_chain_sha256(before, f, s->job.tokens + f->first_token, f->chain_sha256);
    return BS_STATUS_OK;
}

bs_status bs_snap_job_manifest(const bs_snapshots *s, bs_snap_manifest *out)
{
    const bs_snap_job *job = &s->job;
    bs_snap_manifest m = {.number = job->number,
                          .parent = job->dir->manifest.number,
                          .created_s = (int64_t)time(NULL),
                          .fingerprint = s->fingerprint,
                          .shape = s->shape,
                          .cache = job->state,
                          .state = job->request,
                          .n_tokens = job->n_tokens,
                          .heads = s->grid->heads,
                          .seq = s->grid->seq,
                          .stripe_pages = s->config.cache_config.stripe_pages,
                          .chunk_tokens = s->config.cache_config.chunk_tokens,
                          .n_files = job->n_kept + job->n_files};
    snprintf(m.writer, sizeof m.writer, "bitshard %s", PACKAGE_VERSION);
    m.files = malloc((size_t)m.n_files * sizeof *m.files);
    if (!m.files) return bs_fail(BS_STATUS_NOMEM, "snapshot: no memory for a list of %d files", m.n_files);
    if (job->n_kept > 0) memcpy(m.files, job->dir->manifest.files, (size_t)job->n_kept * sizeof *m.files);
    memcpy(m.files + job->n_kept, job->files, (size_t)job->n_files * sizeof *m.files);
    *out = m;
    return BS_STATUS_OK;
}

static bs_status write_manifest(bs_snapshots *s)
{
    char *text, name[BS_SNAP_MANIFEST_NAME], temporary[BS_SNAP_MANIFEST_NAME + 8];
    uint8_t sha256[32];
    size_t bytes;
    bs_snap_handle file;
    const bs_snap_fs *fs = &s->job.dir->fs;
    bs_snap_manifest m;
    BS_TRY(bs_snap_job_manifest(s, &m));
    bs_status status = bs_snap_manifest_write(&m, &text, &bytes, sha256);
    bs_snap_manifest_free(&m);
    BS_TRY(status);
    bs_snap_manifest_name(s->job.number, sha256, name);
    snprintf(temporary, sizeof temporary, BS_SNAP_TMP "%s", name);
    status = bs_snap_fs_create(fs, temporary, &file);
    if (status == BS_STATUS_OK) {
        status = bs_snap_fs_pwrite(&file, text, bytes, 0);
        if (status == BS_STATUS_OK) status = bs_snap_fs_sync(&file);
        close(file.fd);
        if (status == BS_STATUS_OK) status = bs_snap_fs_rename(fs, temporary, name);
        if (status != BS_STATUS_OK) bs_snap_fs_unlink(fs, temporary);
    }
    free(text);
    BS_TRY(status);
    /* Renamed but not durable is not committed: taken back, as far as that can be. */
    status = bs_snap_fs_sync_dir(fs);
    if (status != BS_STATUS_OK) bs_snap_fs_unlink(fs, name);
    return status;
}

static bs_status seal(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    if (!bs_snap_leader(s)) return BS_STATUS_OK;
    const bs_snap_file *before = job->n_kept > 0 ? &job->dir->manifest.files[job->n_kept - 1] : NULL;
    for (int i = 0; i < job->n_files; i++) {
        BS_TRY(digest_file(s, before, &job->files[i]));
        before = &job->files[i];
    }
    for (int i = 0; i < job->n_files; i++) {
        char temporary[BS_SNAP_NAME_BYTES + 8];
        temporary_name(job->files[i].name, temporary);
        BS_TRY(bs_snap_fs_rename(&job->dir->fs, temporary, job->files[i].name));
    }
    BS_TRY(bs_snap_fs_sync_dir(&job->dir->fs));
    BS_TRY(write_manifest(s));
    job->is_sealed = true;
    /* The snapshot stands. What cannot be removed now is removed by the next one. */
    char line[256];
    const bs_error_diversion diverted = bs_error_divert(line, sizeof line);
    bs_snap_collect(&job->dir->fs, s->config.keep, false, NULL, NULL);
    bs_error_divert_back(diverted);
    return BS_STATUS_OK;
}

/* ---- after an error ---------------------------------------------------------------------------------------- */

static bs_status clean(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    /* A run that ends before its ranks have agreed on a sealed one leaves it in force. */
    if (!bs_snap_leader(s) || job->is_sealed) return BS_STATUS_OK;
    for (int i = 0; i < job->n_files; i++) {
        char temporary[BS_SNAP_NAME_BYTES + 8];
        if (job->files[i].name[0] == 0) continue;
        temporary_name(job->files[i].name, temporary);
        bs_snap_fs_unlink(&job->dir->fs, temporary);
        bs_snap_fs_unlink(&job->dir->fs, job->files[i].name);
    }
    return BS_STATUS_OK;
}

bs_status bs_snap_run_phase(bs_snapshots *s, bs_snap_phase phase)
{
    switch (phase) {
    case BS_SNAP_CREATE: return create(s);
    case BS_SNAP_WRITE: return write_files(s);
    case BS_SNAP_CHECK: return check_files(s);
    case BS_SNAP_SEAL: return seal(s);
    case BS_SNAP_CLEAN: return clean(s);
    case BS_SNAP_IDLE: break;
    }
    return BS_STATUS_OK;
}
