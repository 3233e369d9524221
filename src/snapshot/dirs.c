/* dirs.c: the one place that knows file systems: opening, writing, syncing, renaming, with what differs between local
 * disks, NFS and Lustre kept in here.
 *
 * Every file is reached by openat from the directory's descriptor, never through a symlink, and must be a regular file of
 * ours that nobody else may write. Modes are given at creation (0700, 0600), so the process's umask does not matter.
 * fallocate that a file system does not have, and fsync of a directory that says EINVAL, are no errors. A failed fsync is
 * final: the kernel may have dropped the dirty pages as clean, so a second one would succeed over missing data.
 */
#define _GNU_SOURCE /* sync_file_range, O_PATH */
#include "src/base/progress.h"
#include "src/snapshot/snapshot_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static bs_status fail_errno(const char *name, const char *what)
{
    return bs_fail(BS_STATUS_IO, "%s: %s: %s", name, what, strerror(errno));
}

/* ---- directories ------------------------------------------------------------------------------------------- */

static bs_status make_parents(const char *path)
{
    char part[1024];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(part, 0700) != 0 && errno != EEXIST) return fail_errno(part, "mkdir");
        *slash = '/';
    }
    if (mkdir(part, 0700) != 0 && errno != EEXIST) return fail_errno(part, "mkdir");
    return BS_STATUS_OK;
}

static bs_status check_owner(const char *name, const struct stat *st)
{
    if (st->st_uid != geteuid())
        return bs_fail(BS_STATUS_IO, "%s: owner %u: must be %u, this user", name, (unsigned)st->st_uid,
                       (unsigned)geteuid());
    if (st->st_mode & (S_IWGRP | S_IWOTH))
        return bs_fail(BS_STATUS_IO, "%s: mode %04o: others may write to it", name,
                       (unsigned)(st->st_mode & 07777));
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_open(const char *path, bool create, bs_snap_fs *out, bool *found)
{
    struct stat st;
    bs_snap_fs fs = {.fd = -1};
    if (strlen(path) == 0 || strlen(path) >= sizeof fs.path)
        return bs_fail(BS_STATUS_USAGE, "snapshot directory: a name of %zu bytes: must be 1 … %zu",
                       strlen(path), sizeof fs.path - 1);
    snprintf(fs.path, sizeof fs.path, "%s", path);
    if (create) BS_TRY(make_parents(path));
    fs.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fs.fd < 0 && errno == ENOENT && !create) {
        *found = false;
        return BS_STATUS_OK;
    }
    if (fs.fd < 0) return fail_errno(path, "open");
    bs_status status = fstat(fs.fd, &st) == 0 ? check_owner(path, &st) : fail_errno(path, "fstat");
    if (status != BS_STATUS_OK) {
        close(fs.fd);
        return status;
    }
    *found = true;
    *out = fs;
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_open_any(bs_snap_fs *fs)
{
    fs->fd = open(fs->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fs->fd >= 0 ? BS_STATUS_OK : fail_errno(fs->path, "open");
}

void bs_snap_fs_close(bs_snap_fs *fs)
{
    if (fs->fd >= 0) close(fs->fd);
    fs->fd = -1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void bs_snap_fs_free_list(char **names, int n)
{
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
}

static bs_status read_names(DIR *dir, const char *path, char ***names, int *n)
{
    char **list = NULL;
    int count = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry && errno != 0) {
            bs_snap_fs_free_list(list, count);
            return fail_errno(path, "readdir");
        }
        if (!entry) break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char **longer = realloc(list, ((size_t)count + 1) * sizeof *list);
        if (longer) list = longer;
        if (!longer || !(list[count] = strdup(entry->d_name))) {
            bs_snap_fs_free_list(list, count);
            return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its %d names", path, count);
        }
        count++;
    }
    if (count > 0) qsort(list, (size_t)count, sizeof *list, by_name);
    *names = list;
    *n = count;
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_list(const bs_snap_fs *fs, char ***names, int *n)
{
    int fd = openat(fs->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_errno(fs->path, "open");
    DIR *dir = fdopendir(fd);
    if (!dir) {
        bs_status status = fail_errno(fs->path, "fdopendir");
        close(fd);
        return status;
    }
    bs_status status = read_names(dir, fs->path, names, n);
    closedir(dir);
    return status;
}

bs_status bs_snap_fs_sync_dir(const bs_snap_fs *fs)
{
    if (fsync(fs->fd) == 0 || errno == EINVAL) return BS_STATUS_OK;
    return fail_errno(fs->path, "fsync");
}

bs_status bs_snap_fs_check_space(const bs_snap_fs *fs, uint64_t bytes)
{
    struct statvfs vfs;
    if (fstatvfs(fs->fd, &vfs) != 0) return fail_errno(fs->path, "statvfs");
    const uint64_t available = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    const uint64_t needed = bytes + bytes / 10;
    if (vfs.f_blocks == 0 || available >= needed) return BS_STATUS_OK; /* no blocks: it does not say */
    char need[32], have[32];
    bs_format_bytes(needed, need, sizeof need);
    bs_format_bytes(available, have, sizeof have);
    return bs_fail(BS_STATUS_IO, "%s: %s are needed (a tenth is spare), %s are free", fs->path, need, have);
}

/* ---- files ------------------------------------------------------------------------------------------------- */

static void name_path(const bs_snap_fs *fs, const char *name, bs_snap_handle *out)
{
    snprintf(out->path, sizeof out->path, "%s/%s", fs->path, name);
}

bs_status bs_snap_fs_create(const bs_snap_fs *fs, const char *name, bs_snap_handle *out)
{
    name_path(fs, name, out);
    out->fd = openat(fs->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return out->fd >= 0 ? BS_STATUS_OK : fail_errno(out->path, "create");
}

bs_status bs_snap_fs_open_file(const bs_snap_fs *fs, const char *name, bool write, bs_snap_handle *out,
                               uint64_t *bytes)
{
    struct stat st;
    name_path(fs, name, out);
    /* O_NONBLOCK: a fifo must not hold us; regular files ignore it. */
    int file = openat(fs->fd, name, (write ? O_WRONLY : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (file < 0 && errno == ELOOP) return bs_fail(BS_STATUS_IO, "%s: is a symbolic link", out->path);
    if (file < 0) return fail_errno(out->path, "open");
    bs_status status = fstat(file, &st) == 0 ? check_owner(out->path, &st) : fail_errno(out->path, "fstat");
    if (status == BS_STATUS_OK && !S_ISREG(st.st_mode))
        status = bs_fail(BS_STATUS_IO, "%s: is not a regular file", out->path);
    if (status != BS_STATUS_OK) {
        close(file);
        return status;
    }
    out->fd = file;
    if (bytes) *bytes = (uint64_t)st.st_size;
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_read_file(const bs_snap_fs *fs, const char *name, size_t most, char **text,
                               size_t *bytes)
{
    bs_snap_handle file;
    uint64_t size;
    BS_TRY(bs_snap_fs_open_file(fs, name, false, &file, &size));
    char *buffer = NULL;
    bs_status status = BS_STATUS_OK;
    if (size > most)
        status = bs_fail(BS_STATUS_FORMAT, "%s: %" PRIu64 " bytes: at most %zu", file.path, size, most);
    else if (!(buffer = malloc((size_t)size + 1)))
        status = bs_fail(BS_STATUS_NOMEM, "%s: no memory for %" PRIu64 " bytes", file.path, size);
    else status = bs_snap_fs_pread(&file, buffer, (size_t)size, 0);
    close(file.fd);
    if (status != BS_STATUS_OK) {
        free(buffer);
        return status;
    }
    buffer[size] = 0;
    *text = buffer;
    *bytes = (size_t)size;
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_file_bytes(const bs_snap_fs *fs, const char *name, bool *found, uint64_t *bytes)
{
    struct stat st;
    const int error = fstatat(fs->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
    if (error != 0 && error != ENOENT)
        return bs_fail(BS_STATUS_IO, "%s/%s: stat: %s", fs->path, name, strerror(error));
    *found = error == 0 && !S_ISDIR(st.st_mode);
    *bytes = *found ? (uint64_t)st.st_size : 0;
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_pwrite(const bs_snap_handle *file, const void *data, size_t bytes, uint64_t offset)
{
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = pwrite(file->fd, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(file->path, "write");
        if (n == 0) return bs_fail(BS_STATUS_IO, "%s: write: nothing was written", file->path);
        from += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_pread(const bs_snap_handle *file, void *data, size_t bytes, uint64_t offset)
{
    char *to = data;
    while (bytes > 0) {
        ssize_t n = pread(file->fd, to, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(file->path, "read");
        if (n == 0)
            return bs_fail(BS_STATUS_FORMAT, "%s: ends at byte %" PRIu64 ", %zu more are needed", file->path,
                           offset, bytes);
        to += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_sync(const bs_snap_handle *file)
{
    return fsync(file->fd) == 0 ? BS_STATUS_OK : fail_errno(file->path, "fsync");
}

void bs_snap_fs_start_writeback(int fd, uint64_t offset, uint64_t bytes)
{
#ifdef SYNC_FILE_RANGE_WRITE
    sync_file_range(fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
#endif
}

void bs_snap_fs_drop_cache(int fd)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

bs_status bs_snap_fs_allocate(const bs_snap_handle *file, uint64_t bytes)
{
    while (bytes > 0 && fallocate(file->fd, 0, 0, (off_t)bytes) != 0) {
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL) return BS_STATUS_OK;
        return fail_errno(file->path, "fallocate");
    }
    return BS_STATUS_OK;
}

bs_status bs_snap_fs_rename(const bs_snap_fs *fs, const char *from, const char *to)
{
    if (renameat(fs->fd, from, fs->fd, to) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_IO, "%s/%s: rename to %s: %s", fs->path, from, to, strerror(errno));
}

bs_status bs_snap_fs_unlink(const bs_snap_fs *fs, const char *name)
{
    if (unlinkat(fs->fd, name, 0) == 0 || errno == ENOENT) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_IO, "%s/%s: unlink: %s", fs->path, name, strerror(errno));
}

bs_status bs_snap_random_hex(char out[17])
{
    uint8_t bytes[8];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) return fail_errno("getrandom", "read");
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    return BS_STATUS_OK;
}
