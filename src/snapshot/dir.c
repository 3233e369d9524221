/* dir.c: a directory as all ranks see it: rank 0 finds the snapshot in force and tells the others its manifest.
 *
 * Every rank opens the directory for itself, and parses the manifest for itself after it has checked its digest; what it
 * reads of the files later it verifies for itself, too, since another machine may see another file system.
 */
#include "src/base/log.h"
#include "src/snapshot/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rank 0's find to the others. */
typedef struct told {
    int32_t found;
    uint64_t bytes;
    int64_t last_number;
    char name[BS_SNAP_MANIFEST_NAME];
} told;

static void fill_info(bs_snapshot_dir *dir)
{
    const bs_snapshots *s = dir->snapshots;
    const bs_snap_manifest *m = &dir->manifest;
    dir->info = (bs_snapshot_info){.number = m->number,
                                   .n_cached = m->cache.length,
                                   .n_tokens = m->n_tokens,
                                   .tokens = dir->tokens,
                                   .state = m->state,
                                   .cache = m->cache,
                                   .heads = m->heads,
                                   .seq = m->seq,
                                   .stripe_pages = m->stripe_pages,
                                   .chunk_tokens = m->chunk_tokens,
                                   .created_s = m->created_s,
                                   .bytes = bs_snap_manifest_bytes(m),
                                   .n_segments = m->n_files - 1};
    dir->info.same_grid = m->heads == s->grid->heads && m->seq == s->grid->seq &&
                          m->stripe_pages == s->config.cache_config.stripe_pages;
    dir->has_info = true;
}

/* The others' part: a manifest that came as text. */
static bs_status read_told(const bs_snap_fs *fs, const told *t, const char *text, bs_snap_manifest *out)
{
    char path[BS_SNAP_PATH_BYTES];
    uint8_t digest[32], wanted[32];
    int64_t number;
    snprintf(path, sizeof path, "%s/%s", fs->path, t->name);
    bs_sha256(text, (size_t)t->bytes, digest);
    if (!bs_snap_manifest_parse_name(t->name, &number, wanted) || memcmp(digest, wanted, 32) != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: came from rank 0 damaged", path);
    return bs_snap_manifest_read(text, (size_t)t->bytes, path, out);
}

/* Rank 0's find, on the others: its text travels. */
static bs_status share(bs_snapshot_dir *dir, told *t, bs_snap_found *found)
{
    bs_comm *comm = dir->snapshots->config.comm;
    const bool leader = bs_snap_leader(dir->snapshots);
    BS_TRY(bs_comm_bcast_host(comm, t, sizeof *t, 0));
    dir->last_number = t->last_number;
    if (!t->found) return BS_STATUS_OK;
    char *text = leader ? found->text : malloc((size_t)t->bytes + 1);
    bs_status status = bs_comm_agree(comm, text ? BS_STATUS_OK
                                                : bs_fail(BS_STATUS_NOMEM,
                                                          "%s/%s: no memory for its %" PRIu64 " bytes",
                                                          dir->fs.path, t->name, t->bytes));
    if (status == BS_STATUS_OK) status = bs_comm_bcast_host(comm, text, (size_t)t->bytes, 0);
    bs_snap_manifest m = {0};
    if (status == BS_STATUS_OK) {
        if (leader) m = found->manifest;
        else status = read_told(&dir->fs, t, text, &m);
    }
    if (!leader) free(text);
    status = bs_comm_agree(comm, status);
    if (status != BS_STATUS_OK) {
        if (!leader) bs_snap_manifest_free(&m);
        return status;
    }
    bs_snap_manifest_free(&dir->manifest);
    dir->manifest = m;
    if (leader) {
        free(dir->tokens);
        dir->tokens = found->tokens;
        found->tokens = NULL;
        found->manifest = (bs_snap_manifest){0};
    }
    dir->committed_here = false;
    fill_info(dir);
    return BS_STATUS_OK;
}

bs_status bs_snap_dir_load(bs_snapshot_dir *dir)
{
    bs_snapshots *s = dir->snapshots;
    bs_snap_found found = {0};
    told t = {0};
    bool any = false;
    bs_status status = BS_STATUS_OK;
    if (bs_snap_leader(s) && dir->fs.fd >= 0) {
        status = bs_snap_find(&dir->fs, &s->fingerprint, &found, &any, &t.last_number);
        t.found = any;
        t.bytes = found.bytes;
        memcpy(t.name, found.name, sizeof t.name);
    }
    status = bs_comm_agree(s->config.comm, status);
    if (status == BS_STATUS_OK) status = share(dir, &t, &found);
    bs_snap_found_free(&found);
    return status;
}

/* Rank 0 makes and locks it before the others look. */
static bs_status open_fs(bs_snapshot_dir *dir, const char *path, int flags)
{
    bs_snapshots *s = dir->snapshots;
    bs_comm *comm = s->config.comm;
    bool found = false;
    int32_t is_there = 0;
    bs_status status = BS_STATUS_OK;
    if (bs_snap_leader(s)) {
        status = bs_snap_fs_open(path, flags & BS_SNAPSHOT_CREATE, &dir->fs, &found);
        if (status == BS_STATUS_OK && found && flags & BS_SNAPSHOT_LOCK)
            status = bs_snap_lock_take(&dir->fs, bs_comm_job(comm), &dir->lock);
        is_there = found;
    }
    BS_TRY(bs_comm_agree(comm, status));
    BS_TRY(bs_comm_bcast_host(comm, &is_there, sizeof is_there, 0));
    if (!bs_snap_leader(s) && is_there) {
        status = bs_snap_fs_open(path, false, &dir->fs, &found);
        if (status == BS_STATUS_OK && !found)
            status = bs_fail(BS_STATUS_IO, "%s: rank 0 has it, this machine does not: it must be shared",
                             path);
    }
    return bs_comm_agree(comm, status);
}

static void watch_lock(bs_snapshots *s, bs_snapshot_dir *dir, bool on)
{
    pthread_mutex_lock(&s->lock);
    bs_snapshot_dir **at = &s->locked;
    if (on) {
        dir->next_locked = s->locked;
        s->locked = dir;
    } else {
        while (*at && *at != dir) at = &(*at)->next_locked;
        if (*at) *at = dir->next_locked;
    }
    pthread_mutex_unlock(&s->lock);
}

bs_status bs_snapshot_dir_open(bs_snapshots *snapshots, const char *path, int flags, bs_snapshot_dir **out)
{
    bs_snapshot_dir *dir = calloc(1, sizeof *dir);
    if (dir) {
        dir->snapshots = snapshots;
        dir->fs.fd = dir->lock.fd = -1;
    }
    bs_status status = bs_comm_agree(snapshots->config.comm,
                                     dir ? BS_STATUS_OK
                                         : bs_fail(BS_STATUS_NOMEM, "%s: no memory to open it", path));
    if (status == BS_STATUS_OK) status = open_fs(dir, path, flags);
    if (status == BS_STATUS_OK) {
        dir->may_write = flags & BS_SNAPSHOT_LOCK && dir->fs.fd >= 0;
        if (dir->lock.fd >= 0) watch_lock(snapshots, dir, true);
        status = bs_snap_dir_load(dir);
    }
    if (status != BS_STATUS_OK) {
        bs_snapshot_dir_close(dir);
        return status;
    }
    *out = dir;
    return BS_STATUS_OK;
}

void bs_snapshot_dir_close(bs_snapshot_dir *dir)
{
    if (!dir) return;
    if (bs_snapshots_busy(dir->snapshots) && dir->snapshots->job.dir == dir) bs_snap_stop(dir->snapshots);
    watch_lock(dir->snapshots, dir, false);
    bs_snap_lock_release(&dir->fs, &dir->lock);
    bs_snap_fs_close(&dir->fs);
    bs_snap_manifest_free(&dir->manifest);
    free(dir->tokens);
    free(dir);
}

const bs_snapshot_info *bs_snapshot_dir_info(const bs_snapshot_dir *dir)
{
    return dir->has_info ? &dir->info : NULL;
}

int64_t bs_snapshot_common_prefix(const bs_snapshot_dir *dir, const int32_t *tokens, int64_t n_tokens)
{
    int64_t n = 0;
    if (!dir->has_info || !dir->tokens) return 0;
    while (n < n_tokens && n < dir->info.n_tokens && dir->tokens[n] == tokens[n]) n++;
    return n;
}

bs_snapshot_restore_stats bs_snapshot_last_restore(const bs_snapshot_dir *dir)
{
    return dir->restore;
}
