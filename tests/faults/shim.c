/* shim.c: a library to preload that fails one system call of a program, or kills it there, or counts them.
 *
 * Only calls on files under one directory count, so that the program's own start, its sockets and its model are left
 * alone. Counting begins at 1 in each process and goes by the kind of call, or over all kinds. A driver counts first
 * and then runs the program once for each k (shim.py). Everything comes from the environment:
 *
 *   BITSHARD_FAULT_DIR    the directory (absolute, without links); unset: the library does nothing
 *   BITSHARD_FAULT_CALL   open write fallocate fsync rename ftruncate close read mkdir unlink, or any
 *   BITSHARD_FAULT_K      the call that fails, from 1; 0: none
 *   BITSHARD_FAULT_DO     EIO ENOSPC EINTR EDQUOT EACCES…, short (a write or read of half), kill (-9 before the call),
 *                         kill-after (-9 behind it)
 *   BITSHARD_FAULT_LAST   up to this one they all fail; default K. A full disk is K=k LAST=1000000000
 *   BITSHARD_FAULT_RANK   only in the process of this rank (OpenMPI, PMIx or Slurm say which)
 *   BITSHARD_FAULT_LOG    a file outside of the directory: a line "rank call number path" a call, "!" ahead where it failed
 *
 * The real work is done by system calls directly, not by the next definition in line: nothing of libc is asked for, so
 * it works in any constructor. stdio's own writes are not seen; nothing that a snapshot promises goes through stdio.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
/* The names with and without 64 are both defined here, so neither may be a macro for the other. */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

typedef enum call {
    OPEN,
    WRITE,
    FALLOCATE,
    FSYNC,
    RENAME,
    FTRUNCATE,
    CLOSE,
    READ,
    MKDIR,
    UNLINK,
    N_CALLS
} call;
static const char *const call_names[] = {"open",      "write", "fallocate", "fsync", "rename",
                                         "ftruncate", "close", "read",      "mkdir", "unlink"};
typedef enum action { PASS, FAIL, SHORT, KILL_AFTER } action;

static const char *directory, *wanted, *action_name, *rank = "-";
static size_t directory_length;
static long first, last;
static int error_number, log_fd = -1;
static bool armed;
static atomic_long counts[N_CALLS + 1]; /* the last one: of any kind */

static int number_of(const char *name)
{
    static const struct {
        const char *name;
        int number;
    } errors[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EINTR", EINTR},           {"EDQUOT", EDQUOT},
                  {"EACCES", EACCES}, {"EROFS", EROFS},   {"EOPNOTSUPP", EOPNOTSUPP}, {"EINVAL", EINVAL},
                  {"EMFILE", EMFILE}, {"ESTALE", ESTALE}, {"ENOLCK", ENOLCK}};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (strcmp(name, errors[i].name) == 0) return errors[i].number;
    return 0;
}

static long long_of(const char *name, long fallback)
{
    const char *text = getenv(name);
    return text && *text ? atol(text) : fallback;
}

__attribute__((constructor)) static void initialize(void)
{
    static const char *const rank_names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (int i = 3; i >= 0; i--)
        if (getenv(rank_names[i])) rank = getenv(rank_names[i]);
    directory = getenv("BITSHARD_FAULT_DIR");
    if (!directory) return;
    directory_length = strlen(directory);
    wanted = getenv("BITSHARD_FAULT_CALL");
    action_name = getenv("BITSHARD_FAULT_DO");
    if (!action_name) action_name = "EIO";
    error_number = number_of(action_name);
    first = long_of("BITSHARD_FAULT_K", 0);
    last = long_of("BITSHARD_FAULT_LAST", first);
    const char *only = getenv("BITSHARD_FAULT_RANK"), *log = getenv("BITSHARD_FAULT_LOG");
    armed = first > 0 && wanted && (!only || !*only || strcmp(only, rank) == 0);
    if (log && *log)
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* ---- which files ---- */

static bool is_inside(const char *path)
{
    return strncmp(path, directory, directory_length) == 0 &&
           (path[directory_length] == '/' || path[directory_length] == 0);
}

/* The open file's path, or "". */
static void path_of(int fd, char *out, size_t size)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, out, size - 1);
    out[n > 0 ? n : 0] = 0;
}

/* dirfd and path in one, as text. */
static void join(int dirfd, const char *path, char *out, size_t size)
{
    char base[PATH_MAX] = "";
    if (path[0] == '/') {
        snprintf(out, size, "%s", path);
        return;
    }
    if (dirfd != AT_FDCWD) path_of(dirfd, base, sizeof base);
    else if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = 0;
    while (path[0] == '.' && path[1] == '/') path += 2;
    if (strcmp(path, ".") == 0) snprintf(out, size, "%s", base);
    else snprintf(out, size, "%s/%s", base, path);
}

/* ---- what happens ---- */

/* Counts one call on this path and says what to do with it. */
static action decide(call kind, const char *path)
{
    if (!directory || !is_inside(path)) return PASS;
    const long of_kind = atomic_fetch_add(&counts[kind], 1) + 1,
               of_all = atomic_fetch_add(&counts[N_CALLS], 1) + 1;
    const bool any = wanted && strcmp(wanted, "any") == 0;
    const long number = any ? of_all : of_kind;
    const bool hit = armed && (any || strcmp(wanted, call_names[kind]) == 0) && number >= first &&
                     number <= last;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%s%s %s %ld %s\n", hit ? "!" : "", rank, call_names[kind],
                         number, path);
        syscall(SYS_write, log_fd, line, n < (int)sizeof line ? n : (int)sizeof line);
    }
    if (!hit) return PASS;
    if (strcmp(action_name, "kill") == 0) syscall(SYS_kill, getpid(), SIGKILL);
    if (strcmp(action_name, "kill-after") == 0) return KILL_AFTER;
    if (strcmp(action_name, "short") == 0) return kind == WRITE || kind == READ ? SHORT : PASS;
    return FAIL;
}

static action decide_fd(call kind, int fd)
{
    char path[PATH_MAX];
    if (!directory) return PASS;
    path_of(fd, path, sizeof path);
    return decide(kind, path);
}

static action decide_at(call kind, int dirfd, const char *path)
{
    char joined[2 * PATH_MAX];
    if (!directory || !path) return PASS;
    join(dirfd, path, joined, sizeof joined);
    return decide(kind, joined);
}

/* The end of a call that was made. */
static long end(action what, long result)
{
    if (what == KILL_AFTER) syscall(SYS_kill, getpid(), SIGKILL);
    return result;
}

static long fail(void)
{
    errno = error_number;
    return -1;
}

/* ---- the calls ---- */

static int open_at(int dirfd, const char *path, int flags, mode_t mode)
{
    const action what = decide_at(OPEN, dirfd, path);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_openat, dirfd, path, flags, mode)));
}

#define OPEN_MODE(flags, mode)                                                                               \
    mode_t mode = 0;                                                                                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                                 \
        va_list list;                                                                                        \
        va_start(list, flags);                                                                               \
        mode = va_arg(list, mode_t);                                                                         \
        va_end(list);                                                                                        \
    }
#define DEFINE_OPEN(name)                                                                                    \
    int name(const char *path, int flags, ...)                                                               \
    {                                                                                                        \
        OPEN_MODE(flags, mode)                                                                               \
        return open_at(AT_FDCWD, path, flags, mode);                                                         \
    }
#define DEFINE_OPENAT(name)                                                                                  \
    int name(int dirfd, const char *path, int flags, ...)                                                    \
    {                                                                                                        \
        OPEN_MODE(flags, mode)                                                                               \
        return open_at(dirfd, path, flags, mode);                                                            \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);
int __open_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags, 0);
}
int __open64_2(const char *path, int flags)
{
    return open_at(AT_FDCWD, path, flags, 0);
}
int __openat_2(int dirfd, const char *path, int flags)
{
    return open_at(dirfd, path, flags, 0);
}
int __openat64_2(int dirfd, const char *path, int flags)
{
    return open_at(dirfd, path, flags, 0);
}

ssize_t write(int fd, const void *data, size_t n)
{
    const action what = decide_fd(WRITE, fd);
    return what == FAIL ? fail() : end(what, syscall(SYS_write, fd, data, what == SHORT ? n / 2 : n));
}

ssize_t read(int fd, void *data, size_t n)
{
    const action what = decide_fd(READ, fd);
    return what == FAIL ? fail() : end(what, syscall(SYS_read, fd, data, what == SHORT ? (n + 1) / 2 : n));
}

ssize_t writev(int fd, const struct iovec *parts, int n)
{
    const action what = decide_fd(WRITE, fd);
    return what == FAIL ? fail() : end(what, syscall(SYS_writev, fd, parts, what == SHORT ? (n + 1) / 2 : n));
}

static ssize_t pwrite_at(int fd, const void *data, size_t n, off64_t at)
{
    const action what = decide_fd(WRITE, fd);
    return what == FAIL ? fail() : end(what, syscall(SYS_pwrite64, fd, data, what == SHORT ? n / 2 : n, at));
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return pwrite_at(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    return pwrite_at(fd, data, n, at);
}

static ssize_t pread_at(int fd, void *data, size_t n, off64_t at)
{
    const action what = decide_fd(READ, fd);
    return what == FAIL ? fail()
                        : end(what, syscall(SYS_pread64, fd, data, what == SHORT ? (n + 1) / 2 : n, at));
}

ssize_t pread(int fd, void *data, size_t n, off_t at)
{
    return pread_at(fd, data, n, at);
}

ssize_t pread64(int fd, void *data, size_t n, off64_t at)
{
    return pread_at(fd, data, n, at);
}

static int allocate(int fd, int mode, off64_t at, off64_t n)
{
    const action what = decide_fd(FALLOCATE, fd);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_fallocate, fd, mode, at, n)));
}

int fallocate(int fd, int mode, off_t at, off_t n)
{
    return allocate(fd, mode, at, n);
}

int fallocate64(int fd, int mode, off64_t at, off64_t n)
{
    return allocate(fd, mode, at, n);
}

/* These two return the error, and leave errno alone. */
int posix_fallocate(int fd, off_t at, off_t n)
{
    const int before = errno, failed = allocate(fd, 0, at, n) < 0 ? errno : 0;
    errno = before;
    return failed;
}

int posix_fallocate64(int fd, off64_t at, off64_t n)
{
    return posix_fallocate(fd, at, n);
}

int fsync(int fd)
{
    const action what = decide_fd(FSYNC, fd);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_fsync, fd)));
}

int fdatasync(int fd)
{
    const action what = decide_fd(FSYNC, fd);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_fdatasync, fd)));
}

static int rename_at(int old_dir, const char *old_path, int new_dir, const char *new_path, unsigned flags)
{
    const action what = decide_at(RENAME, new_dir, new_path);
    if (what == FAIL) return (int)fail();
    return (int)end(what, flags ? syscall(SYS_renameat2, old_dir, old_path, new_dir, new_path, flags)
                                : syscall(SYS_renameat, old_dir, old_path, new_dir, new_path));
}

int rename(const char *old_path, const char *new_path)
{
    return rename_at(AT_FDCWD, old_path, AT_FDCWD, new_path, 0);
}

int renameat(int old_dir, const char *old_path, int new_dir, const char *new_path)
{
    return rename_at(old_dir, old_path, new_dir, new_path, 0);
}

int renameat2(int old_dir, const char *old_path, int new_dir, const char *new_path, unsigned flags)
{
    return rename_at(old_dir, old_path, new_dir, new_path, flags);
}

/* A link that gives a finished file its name is as good as a rename. */
int linkat(int old_dir, const char *old_path, int new_dir, const char *new_path, int flags)
{
    const action what = decide_at(RENAME, new_dir, new_path);
    return (int)(what == FAIL ? fail()
                              : end(what, syscall(SYS_linkat, old_dir, old_path, new_dir, new_path, flags)));
}

int link(const char *old_path, const char *new_path)
{
    return linkat(AT_FDCWD, old_path, AT_FDCWD, new_path, 0);
}

int ftruncate(int fd, off_t n)
{
    const action what = decide_fd(FTRUNCATE, fd);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_ftruncate, fd, n)));
}

int ftruncate64(int fd, off64_t n)
{
    return ftruncate(fd, n);
}

/* Linux has let go of the file, whatever close says. */
int close(int fd)
{
    const action what = decide_fd(CLOSE, fd);
    const long result = end(what, syscall(SYS_close, fd));
    return (int)(what == FAIL ? fail() : result);
}

int mkdirat(int dirfd, const char *path, mode_t mode)
{
    const action what = decide_at(MKDIR, dirfd, path);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_mkdirat, dirfd, path, mode)));
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

int unlinkat(int dirfd, const char *path, int flags)
{
    const action what = decide_at(UNLINK, dirfd, path);
    return (int)(what == FAIL ? fail() : end(what, syscall(SYS_unlinkat, dirfd, path, flags)));
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}
