/* batch_answers.c: the file of a batch's answers, whole whatever happens.
 *
 * A line is one write at the file's end, then fsync: before it returns the answer does not count. A kill between
 * the two leaves at most a last line without its newline, which the next run cuts off and answers again. Only
 * what can be the beginning of a line of ours is cut (or zeros, which a crash of the machine may leave): a file
 * that was named by mistake is refused and stays as it is. A rename at the end would be simpler and would lose
 * everything with the job.
 *
 * Two jobs on one file would answer everything twice, hence the lock. Ranks outlive a killed launcher by a second
 * or two, so a locked file is waited for. A file system without locks (Lustre without -o flock) gets a warning.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/serve/batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* How each of our lines begins. */
static const char line_head[] = "{\"id\":\"batch_req_";

struct bs_batch_answers {
    int fd;
    char *path;
    bool regular;  /* a file that can be read back, cut and synced; else a device or a pipe */
    off_t bytes;   /* whole lines */
    json_t *ids;   /* custom_id: true */
    json_t *lines; /* "7": true, lines that have no custom_id of their own */
};

static bs_status fail_io(const bs_batch_answers *a)
{
    return bs_fail(BS_STATUS_IO, "--output %s: %s", a->path, strerror(errno));
}

/* ---- what is there already -------------------------------------------------------------------------------- */

/* Notes what a whole line answers. false: it is none of ours. */
static bool note_line(bs_batch_answers *a, const char *text, size_t bytes)
{
    json_t *root = json_loadb(text, bytes, JSON_ALLOW_NUL, NULL);
    const json_t *id = json_object_get(root, "custom_id"), *error = json_object_get(root, "error");
    const json_t *code = json_object_get(error, "code"), *line = json_object_get(error, "line");
    bool duplicate = json_is_string(code) && strcmp(json_string_value(code), BS_BATCH_DUPLICATE_ID) == 0;
    bool good = false;
    if (json_is_string(id) && !duplicate) {
        good = json_object_get(root, "response") &&
               json_object_set_new(a->ids, json_string_value(id), json_true()) == 0;
    } else if (json_is_integer(line)) {
        char number[32];
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(line));
        good = json_object_set_new(a->lines, number, json_true()) == 0;
    }
    json_decref(root);
    return good;
}

static bool may_be_torn(const char *text, size_t bytes)
{
    size_t n = bytes < sizeof line_head - 1 ? bytes : sizeof line_head - 1;
    if (memcmp(text, line_head, n) == 0) return true;
    for (size_t i = 0; i < bytes; i++)
        if (text[i] != 0) return false;
    return true;
}

static bs_status cut_back(const bs_batch_answers *a)
{
    if (ftruncate(a->fd, a->bytes) != 0 || fsync(a->fd) != 0) return fail_io(a);
    return BS_STATUS_OK;
}

/* Reads the lines of the whole file; a torn last one is cut off, a whole one gets its newline. */
static bs_status take_lines(bs_batch_answers *a, const char *text, size_t bytes)
{
    int64_t number = 1;
    for (size_t at = 0; at < bytes; number++) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t n = end ? (size_t)(end - text) - at : bytes - at;
        bool ours = note_line(a, text + at, n);
        if (!ours && (end || !may_be_torn(text + at, n)))
            return bs_fail(BS_STATUS_FORMAT,
                           "--output %s: line %lld is not an answer of a batch: nothing was changed", a->path,
                           (long long)number);
        if (!ours) {
            bs_log_info("%s: the last line was torn by a kill: %zu bytes cut off", a->path, n);
            return cut_back(a);
        }
        a->bytes = (off_t)(at + n);
        if (!end) return bs_batch_answers_append(a, "\n");
        at += n + 1;
        a->bytes++;
    }
    return BS_STATUS_OK;
}

static bs_status read_back(bs_batch_answers *a)
{
    struct stat info;
    if (fstat(a->fd, &info) != 0) return fail_io(a);
    size_t bytes = (size_t)info.st_size, n = 0;
    char *text = malloc(bytes + 1);
    if (!text)
        return bs_fail(BS_STATUS_NOMEM, "--output %s: no memory to read its %zu bytes", a->path, bytes);
    bs_status status = BS_STATUS_OK;
    while (n < bytes) {
        ssize_t got = pread(a->fd, text + n, bytes - n, (off_t)n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = fail_io(a);
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (status == BS_STATUS_OK) status = take_lines(a, text, n);
    free(text);
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

static bs_status lock(const bs_batch_answers *a, double wait_s)
{
    double start = bs_now_s();
    while (flock(a->fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) {
            bs_log_warn("%s cannot be locked (%s): no other job may write it", a->path, strerror(errno));
            return BS_STATUS_OK;
        }
        if (bs_now_s() - start >= wait_s)
            return bs_fail(BS_STATUS_MISMATCH, "--output %s: another job is writing it", a->path);
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
    }
    return BS_STATUS_OK;
}

/* So that a new file's name survives a crash of the machine. */
static bs_status sync_directory(const bs_batch_answers *a)
{
    char *path = strdup(a->path), *slash = path ? strrchr(path, '/') : NULL;
    if (!path) return bs_fail(BS_STATUS_NOMEM, "--output %s: no memory", a->path);
    if (slash) slash[slash == path] = 0;
    int fd = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(path);
    if (fd < 0) return BS_STATUS_OK; /* a directory that may be written and not read */
    bool good = fsync(fd) == 0 || errno == EINVAL;
    bs_status status = good ? BS_STATUS_OK : fail_io(a);
    close(fd);
    return status;
}

static bs_status open_file(bs_batch_answers *a, double wait_s)
{
    struct stat info;
    a->fd = open(a->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (a->fd < 0 || fstat(a->fd, &info) != 0) return fail_io(a);
    a->regular = S_ISREG(info.st_mode);
    if (!a->regular) return BS_STATUS_OK;
    BS_TRY(lock(a, wait_s));
    BS_TRY(sync_directory(a));
    return read_back(a);
}

bs_status bs_batch_answers_open(const char *path, double wait_s, bs_batch_answers **out)
{
    bs_status status;
    bs_batch_answers *a = calloc(1, sizeof *a);
    if (!a) return bs_fail(BS_STATUS_NOMEM, "--output %s: no memory", path);
    a->fd = -1;
    a->path = strdup(path);
    a->ids = json_object();
    a->lines = json_object();
    if (!a->path || !a->ids || !a->lines) {
        status = bs_fail(BS_STATUS_NOMEM, "--output %s: no memory", path);
        goto err_close;
    }
    BS_TRY_GOTO(open_file(a, wait_s), err_close);
    *out = a;
    return BS_STATUS_OK;
err_close:
    bs_batch_answers_close(a);
    return status;
}

void bs_batch_answers_close(bs_batch_answers *a)
{
    if (!a) return;
    if (a->fd >= 0) close(a->fd);
    json_decref(a->ids);
    json_decref(a->lines);
    free(a->path);
    free(a);
}

bool bs_batch_answers_has(const bs_batch_answers *a, const char *custom_id)
{
    return json_object_get(a->ids, custom_id) != NULL;
}

bool bs_batch_answers_has_line(const bs_batch_answers *a, int64_t number)
{
    char name[32];
    snprintf(name, sizeof name, "%lld", (long long)number);
    return json_object_get(a->lines, name) != NULL;
}

bool bs_batch_answers_same_file(const char *path, const char *other)
{
    struct stat a, b;
    return stat(path, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* ---- appending -------------------------------------------------------------------------------------------- */

bs_status bs_batch_answers_append(bs_batch_answers *a, const char *text)
{
    size_t bytes = strlen(text), n = 0;
    while (n < bytes) {
        ssize_t written = write(a->fd, text + n, bytes - n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) break;
        n += (size_t)written;
    }
    if (n < bytes || (a->regular && fsync(a->fd) != 0)) {
        bs_status status = fail_io(a);
        if (a->regular && ftruncate(a->fd, a->bytes) != 0) bs_log_warn("%s: its last line is torn", a->path);
        return status;
    }
    a->bytes += (off_t)bytes;
    return BS_STATUS_OK;
}
