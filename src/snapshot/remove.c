/* remove.c: a directory that nobody needs any more. Manifests go first: what a kill leaves is no snapshot. */
#include "src/snapshot/snapshot_private.h"

#include <unistd.h>

bs_status bs_snapshot_remove(const char *path, const char *job)
{
    bs_snap_fs fs = {.fd = -1};
    bs_snap_lock lock = {.fd = -1};
    bool found = false;
    BS_TRY(bs_snap_fs_open(path, false, &fs, &found));
    if (!found) return BS_STATUS_OK;
    bs_status status = bs_snap_lock_take(&fs, job, &lock);
    if (status == BS_STATUS_OK) {
        status = bs_snap_remove_all(&fs);
        bs_snap_lock_release(&fs, &lock);
    }
    bs_snap_fs_close(&fs);
    if (status == BS_STATUS_OK) rmdir(path); /* where somebody else's files are it stays */
    return status;
}
