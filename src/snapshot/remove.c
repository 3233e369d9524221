/* remove.c: a directory that nobody needs any more. Manifests go first: what a kill leaves is no snapshot. */
#include "src/snapshot/snapshot_private.h"

#include <string.h>
#include <unistd.h>

static bool is_of(const char *name, bool manifests)
{
    int64_t number;
    uint8_t sha256[32];
    if (manifests) return bs_snap_manifest_parse_name(name, &number, sha256);
    return bs_snap_is_data_name(name) || strncmp(name, BS_SNAP_TMP, sizeof BS_SNAP_TMP - 1) == 0;
}

static bs_status remove_files(const bs_snap_fs *fs)
{
    char **names;
    int n;
    bs_status status = BS_STATUS_OK;
    BS_TRY(bs_snap_fs_list(fs, &names, &n));
    for (int pass = 0; pass < 2 && status == BS_STATUS_OK; pass++) {
        for (int i = 0; i < n && status == BS_STATUS_OK; i++)
            if (is_of(names[i], pass == 0)) status = bs_snap_fs_unlink(fs, names[i]);
        if (status == BS_STATUS_OK) status = bs_snap_fs_sync_dir(fs);
    }
    bs_snap_fs_free_list(names, n);
    return status;
}

bs_status bs_snapshot_remove(const char *path, const char *job)
{
    bs_snap_fs fs = {.fd = -1};
    bs_snap_lock lock = {.fd = -1};
    bool found = false;
    BS_TRY(bs_snap_fs_open(path, false, &fs, &found));
    if (!found) return BS_STATUS_OK;
    bs_status status = bs_snap_lock_take(&fs, job, &lock);
    if (status == BS_STATUS_OK) {
        status = remove_files(&fs);
        bs_snap_lock_release(&fs, &lock);
    }
    bs_snap_fs_close(&fs);
    if (status == BS_STATUS_OK && rmdir(path) != 0) return BS_STATUS_OK; /* somebody else's files stay, in their place */
    return status;
}
