/* lock.c: one writer a directory: a file made with O_EXCL that says who holds it.
 *
 * flock and fcntl locks are missing or local on some cluster file systems; O_EXCL works on all. The price is that a killed
 * job leaves its lock behind. It is taken over when its owner is known to be gone: on this machine, no process of that
 * number which started then; the same batch job, started again since; on another machine, a file that nobody has touched
 * for five minutes (owners touch theirs every half a minute). Otherwise the owner is named, and the user decides.
 * Ranks of a killed job live on for a second or two, so an owner on this machine is waited for a little.
 * A stale file is moved aside by a rename, which one of two rivals alone can do, and looked at again before it goes.
 */
#define _GNU_SOURCE
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/snapshot/snapshot_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { STALE_S = 300, LOCK_BYTES = 1024 };
static const double wait_s = 5; /* mpirun's own delays are 2 s */
static const char lock_name[] = "lock";

typedef struct owner {
    char host[256], job[64];
    long pid;
    unsigned long long start; /* of the process, in clock ticks since boot; 0: not known */
} owner;

/* Field 22 of /proc/PID/stat, counted behind the name's last parenthesis. 0 for one that is dead and only waits for its
 * parent to notice: in a container nobody may, and a killed job must be able to start again. */
static unsigned long long process_start(long pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    const char *at = strrchr(text, ')');
    if (at && at[1] == ' ' && (at[2] == 'Z' || at[2] == 'X')) return 0;
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

static owner this_process(const char *job)
{
    owner me = {.pid = (long)getpid()};
    if (gethostname(me.host, sizeof me.host - 1) != 0) snprintf(me.host, sizeof me.host, "unknown");
    for (char *c = me.host; *c; c++)
        if (*c <= ' ') *c = '_';
    snprintf(me.job, sizeof me.job, "%s", *job ? job : "-");
    me.start = process_start(me.pid);
    return me;
}

static bool parse_owner(const char *text, owner *out)
{
    return sscanf(text, "host %255s pid %ld start %llu job %63s", out->host, &out->pid, &out->start,
                  out->job) == 4 &&
           out->pid > 0;
}

/* "1234.0" and "1234.1" are runs of one job, of which one can be alive. */
static bool is_older_run(const char *theirs, const char *mine)
{
    const char *a = strrchr(theirs, '.'), *b = strrchr(mine, '.');
    return a && b && a - theirs == b - mine && memcmp(theirs, mine, (size_t)(a - theirs)) == 0 &&
           atol(a + 1) < atol(b + 1);
}

/* Whether the owner is known to be gone. */
static bool is_stale(const owner *them, const owner *me, time_t touched)
{
    if (is_older_run(them->job, me->job)) return true;
    if (strcmp(them->host, me->host) == 0) {
        if (kill((pid_t)them->pid, 0) != 0 && errno == ESRCH) return true;
        return them->start != 0 && process_start(them->pid) != them->start;
    }
    return time(NULL) - touched > STALE_S;
}

/* *found false: it is not there, or no longer. */
static bs_status read_lock(const bs_snap_fs *fs, const char *name, char text[LOCK_BYTES + 1], struct stat *st,
                           bool *found)
{
    int fd = openat(fs->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    *found = fd >= 0 || errno != ENOENT;
    if (!*found) return BS_STATUS_OK;
    if (fd < 0) return bs_fail(BS_STATUS_IO, "%s/%s: open: %s", fs->path, name, strerror(errno));
    ssize_t n = fstat(fd, st) == 0 ? pread(fd, text, LOCK_BYTES, 0) : -1;
    const int error = errno;
    close(fd);
    if (n < 0) return bs_fail(BS_STATUS_IO, "%s/%s: read: %s", fs->path, name, strerror(error));
    text[n] = 0;
    return BS_STATUS_OK;
}

/* Takes the stale file out of the way; if it was another one by then, that is put back. */
static bs_status remove_stale(const bs_snap_fs *fs, const struct stat *judged)
{
    char random[17], aside[64], text[LOCK_BYTES + 1];
    struct stat st;
    bool found;
    BS_TRY(bs_snap_random_hex(random));
    snprintf(aside, sizeof aside, BS_SNAP_TMP "lock-%s", random);
    if (renameat(fs->fd, lock_name, fs->fd, aside) != 0)
        return errno == ENOENT
                   ? BS_STATUS_OK
                   : bs_fail(BS_STATUS_IO, "%s/%s: rename: %s", fs->path, lock_name, strerror(errno));
    bs_status status = read_lock(fs, aside, text, &st, &found);
    if (status == BS_STATUS_OK && !found) return status;
    if (status == BS_STATUS_OK && st.st_ino == judged->st_ino && st.st_mtime == judged->st_mtime)
        return bs_snap_fs_unlink(fs, aside);
    /* A rival took it over between our look and our rename: his again, unless a third has one. */
    if (linkat(fs->fd, aside, fs->fd, lock_name, 0) == 0) bs_snap_fs_unlink(fs, aside);
    return status;
}

/* OK: it is gone, or out of the way. *wait: its owner is a process of this machine that may be about to go. */
static bs_status look_at_owner(const bs_snap_fs *fs, const owner *me, bool *wait)
{
    char text[LOCK_BYTES + 1];
    struct stat st;
    owner them;
    bool found;
    BS_TRY(read_lock(fs, lock_name, text, &st, &found));
    if (!found) return BS_STATUS_OK;
    const long age = (long)(time(NULL) - st.st_mtime);
    if (!parse_owner(text, &them)) {
        /* Being written just now, or the machine went down over it. */
        if (age > STALE_S) return remove_stale(fs, &st);
        return bs_fail(BS_STATUS_IO, "%s/%s: does not say who holds it: remove it if no job does", fs->path,
                       lock_name);
    }
    if (is_stale(&them, me, st.st_mtime)) {
        bs_log_warn("%s: took over the lock of process %ld on %s, which is gone", fs->path, them.pid,
                    them.host);
        return remove_stale(fs, &st);
    }
    *wait = strcmp(them.host, me->host) == 0 && them.pid != me->pid;
    return bs_fail(BS_STATUS_IO,
                   "%s: in use by process %ld on %s (job %s, seen %ld s ago): if it is gone, remove %s/%s",
                   fs->path, them.pid, them.host, them.job, age, fs->path, lock_name);
}

static bs_status write_owner(const bs_snap_fs *fs, int fd, const char *name, const owner *me)
{
    char text[LOCK_BYTES];
    bs_snap_handle file = {.fd = fd};
    snprintf(file.path, sizeof file.path, "%s/%s", fs->path, name);
    int n = snprintf(text, sizeof text, "host %s pid %ld start %llu job %s\n", me->host, me->pid, me->start,
                     me->job);
    return bs_snap_fs_pwrite(&file, text, (size_t)n, 0);
}

/* Makes the file under the lock's name, EEXIST where there is one. By a link, so that it is never there without its text:
 * a kill between the two would leave a lock that nobody can judge. File systems without links get it in two steps. */
static bs_status make_lock(const bs_snap_fs *fs, const owner *me, int *out, int *error)
{
    char random[17], aside[64];
    int fd;
    *error = 0;
    BS_TRY(bs_snap_random_hex(random));
    snprintf(aside, sizeof aside, BS_SNAP_TMP "lock-%s", random);
    fd = openat(fs->fd, aside, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return bs_fail(BS_STATUS_IO, "%s/%s: create: %s", fs->path, aside, strerror(errno));
    bs_status status = write_owner(fs, fd, aside, me);
    if (status == BS_STATUS_OK && linkat(fs->fd, aside, fs->fd, lock_name, 0) != 0) *error = errno;
    unlinkat(fs->fd, aside, 0);
    if (status == BS_STATUS_OK && *error == 0) {
        *out = fd;
        return BS_STATUS_OK;
    }
    close(fd);
    if (status != BS_STATUS_OK || (*error != EPERM && *error != EOPNOTSUPP && *error != ENOSYS))
        return status;
    *error = 0;
    fd = openat(fs->fd, lock_name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        *error = errno;
        return BS_STATUS_OK;
    }
    status = write_owner(fs, fd, lock_name, me);
    if (status != BS_STATUS_OK) {
        close(fd);
        unlinkat(fs->fd, lock_name, 0);
        return status;
    }
    *out = fd;
    return BS_STATUS_OK;
}

/* *wait: it may soon be free. */
static bs_status take_now(const bs_snap_fs *fs, const char *job, bs_snap_lock *out, bool *wait)
{
    const owner me = this_process(job);
    *wait = false;
    for (int attempt = 0; attempt < 4; attempt++) {
        int fd = -1, error;
        BS_TRY(make_lock(fs, &me, &fd, &error));
        if (error == 0) {
            out->fd = fd;
            return BS_STATUS_OK;
        }
        if (error == ENOENT) continue; /* the holder has tidied our file away */
        if (error != EEXIST)
            return bs_fail(BS_STATUS_IO, "%s/%s: create: %s", fs->path, lock_name, strerror(error));
        BS_TRY(look_at_owner(fs, &me, wait));
    }
    *wait = true;
    return bs_fail(BS_STATUS_IO, "%s/%s: others take it as fast as it is given back", fs->path, lock_name);
}

bs_status bs_snap_lock_take(const bs_snap_fs *fs, const char *job, bs_snap_lock *out)
{
    const double start = bs_now_s();
    for (;;) {
        bool wait;
        char line[512];
        const bs_error_diversion before = bs_error_divert(line, sizeof line);
        const bs_status status = take_now(fs, job, out, &wait);
        bs_error_divert_back(before);
        if (status == BS_STATUS_OK) return status;
        if (!wait || bs_now_s() - start >= wait_s) return bs_fail(status, "%s", line);
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
    }
}

void bs_snap_lock_touch(const bs_snap_lock *lock)
{
    if (lock->fd >= 0) futimens(lock->fd, NULL);
}

/* Only what is still ours goes: by now a job that took us for dead may hold the name. */
void bs_snap_lock_release(const bs_snap_fs *fs, bs_snap_lock *lock)
{
    struct stat mine, there;
    if (lock->fd < 0) return;
    if (fstat(lock->fd, &mine) == 0 && fstatat(fs->fd, lock_name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
        mine.st_ino == there.st_ino && mine.st_dev == there.st_dev)
        unlinkat(fs->fd, lock_name, 0);
    close(lock->fd);
    lock->fd = -1;
}
