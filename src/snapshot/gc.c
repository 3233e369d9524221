/* gc.c: which files may go.
 *
 * Kept are the newest manifests that are whole, and every file that one of these names. All else with a name of ours goes:
 * older manifests, damaged ones, data that no kept manifest names, temporary files. Files with other names are not ours and
 * stay. Called by who holds the directory's lock, after the newest manifest is durable. Manifests go before the files that
 * they name, durably, and while one of them stays all data stays: a crash or an error in between leaves files without a
 * manifest and never the other way round.
 */
#define _GNU_SOURCE
#include "src/snapshot/snapshot_private.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct sweep {
    const bs_snap_fs *fs;
    bool dry;
    int n_removed;
    uint64_t bytes_removed;
    bs_status status;
} sweep;

static bs_status remove_name(sweep *s, const char *name)
{
    bool found;
    uint64_t bytes;
    BS_TRY(bs_snap_fs_file_bytes(s->fs, name, &found, &bytes));
    if (!found) return BS_STATUS_OK;
    if (!s->dry) BS_TRY(bs_snap_fs_unlink(s->fs, name));
    s->n_removed++;
    s->bytes_removed += bytes;
    return BS_STATUS_OK;
}

/* One that cannot be removed does not keep the others. */
static void drop(sweep *s, const char *name)
{
    const bs_status status = remove_name(s, name);
    if (s->status == BS_STATUS_OK) s->status = status;
}

static bool is_manifest(const char *name)
{
    int64_t number;
    uint8_t sha256[32];
    return bs_snap_manifest_parse_name(name, &number, sha256);
}

static bool is_temporary(const char *name)
{
    return strncmp(name, BS_SNAP_TMP, sizeof BS_SNAP_TMP - 1) == 0;
}

/* Manifests, and once these are gone from the disk what they may name. */
static void sweep_names(sweep *s, char **names, int n, const bool *keep)
{
    for (int i = 0; i < n; i++)
        if (!(keep && keep[i]) && is_manifest(names[i])) drop(s, names[i]);
    if (s->status == BS_STATUS_OK && s->n_removed > 0 && !s->dry) s->status = bs_snap_fs_sync_dir(s->fs);
    if (s->status != BS_STATUS_OK) return;
    for (int i = 0; i < n; i++)
        if (!(keep && keep[i]) && (bs_snap_is_data_name(names[i]) || is_temporary(names[i])))
            drop(s, names[i]);
}

/* A file of ours that ought to be readable. */
static bool is_regular(const bs_snap_fs *fs, const char *name)
{
    struct stat st;
    return fstatat(fs->fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
           (S_ISREG(st.st_mode) && st.st_uid == geteuid());
}

/* Marks the files that a manifest names. *whole false: its digest is wrong, or it is no file of ours. One that is whole and
 * is not understood is a newer program's, and one that the disk does not give us now may be the snapshot in force: errors,
 * so that nothing goes. */
static bs_status mark(const bs_snap_fs *fs, const char *name, const uint8_t sha256[32], char **names, int n,
                      bool *keep, bool *whole)
{
    char *text, line[BS_SNAP_LINE_BYTES], path[BS_SNAP_PATH_BYTES];
    size_t bytes;
    uint8_t digest[32];
    bs_snap_manifest m;
    *whole = false;
    const bs_error_diversion before = bs_error_divert(line, sizeof line);
    bs_status status = bs_snap_fs_read_file(fs, name, BS_SNAP_MAX_MANIFEST, &text, &bytes);
    bs_error_divert_back(before);
    if (status != BS_STATUS_OK && status != BS_STATUS_FORMAT && is_regular(fs, name))
        return bs_fail(status, "%s", line);
    if (status != BS_STATUS_OK) return BS_STATUS_OK;
    bs_sha256(text, bytes, digest);
    *whole = memcmp(digest, sha256, 32) == 0;
    snprintf(path, sizeof path, "%s/%s", fs->path, name);
    status = *whole ? bs_snap_manifest_read(text, bytes, path, &m) : BS_STATUS_OK;
    free(text);
    if (status != BS_STATUS_OK || !*whole) return status;
    for (int f = 0; f < m.n_files; f++)
        for (int i = 0; i < n; i++)
            if (strcmp(names[i], m.files[f].name) == 0) keep[i] = true;
    bs_snap_manifest_free(&m);
    return BS_STATUS_OK;
}

/* Marks what stays: the newest manifests and their files. */
static bs_status mark_kept(const bs_snap_fs *fs, int keep_manifests, char **names, int n, bool *keep,
                           int *n_kept)
{
    for (int i = n - 1; i >= 0 && *n_kept < keep_manifests; i--) {
        int64_t number;
        uint8_t sha256[32];
        if (!bs_snap_manifest_parse_name(names[i], &number, sha256)) continue;
        BS_TRY(mark(fs, names[i], sha256, names, n, keep, &keep[i]));
        *n_kept += keep[i];
    }
    return BS_STATUS_OK;
}

bs_status bs_snap_collect(const bs_snap_fs *fs, int keep_manifests, bool dry, int *n_removed,
                          uint64_t *bytes_removed)
{
    char **names;
    int n, n_kept = 0;
    BS_TRY(bs_snap_fs_list(fs, &names, &n));
    sweep s = {.fs = fs, .dry = dry};
    bool *keep = calloc((size_t)n + 1, sizeof *keep);
    s.status = keep ? mark_kept(fs, keep_manifests, names, n, keep, &n_kept)
                    : bs_fail(BS_STATUS_NOMEM, "%s: no memory for %d names", fs->path, n);
    /* None kept: nothing is known to be of no use. */
    if (s.status == BS_STATUS_OK && n_kept > 0) sweep_names(&s, names, n, keep);
    free(keep);
    bs_snap_fs_free_list(names, n);
    if (n_removed) *n_removed = s.n_removed;
    if (bytes_removed) *bytes_removed = s.bytes_removed;
    return s.status;
}

bs_status bs_snap_remove_all(const bs_snap_fs *fs)
{
    char **names;
    int n;
    BS_TRY(bs_snap_fs_list(fs, &names, &n));
    sweep s = {.fs = fs};
    sweep_names(&s, names, n, NULL);
    bs_snap_fs_free_list(names, n);
    return s.status;
}
