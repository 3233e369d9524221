/* output.c: an answer's file, its thread that syncs, and standard output behind the same functions. */
#include "config.h"

#include "src/cli/output.h"
#include "src/cli/common.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct bs_output {
    int fd; /* −1: standard output */
    char *path;
    bool regular, is_new; /* regular: can be cut and synced */
    bool is_begun;        /* by begin or resume */
    int64_t bytes;        /* written, by the thread of the steps alone */

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    int64_t wanted, synced;
    int error; /* of the sync that failed; nobody syncs this file again */
    bool stop;
};

static bs_status fail_io(const bs_output *o, int error)
{
    return bs_fail(BS_STATUS_IO, "--output %s: %s", o->path, strerror(error));
}

/* ---- syncing ---------------------------------------------------------------------------------------------- */

static void *sync_thread(void *context)
{
    bs_output *o = context;
    pthread_mutex_lock(&o->lock);
    while (!o->stop) {
        if (o->wanted <= o->synced || o->error != 0) {
            pthread_cond_wait(&o->wake, &o->lock);
            continue;
        }
        const int64_t wanted = o->wanted;
        pthread_mutex_unlock(&o->lock);
        const int error = fsync(o->fd) == 0 ? 0 : errno;
        pthread_mutex_lock(&o->lock);
        if (error == 0) o->synced = wanted;
        o->error = error;
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

void bs_output_start_sync(bs_output *o)
{
    if (!o->has_thread) return;
    pthread_mutex_lock(&o->lock);
    o->wanted = o->bytes;
    pthread_cond_signal(&o->wake);
    pthread_mutex_unlock(&o->lock);
}

int64_t bs_output_synced(bs_output *o)
{
    if (o->fd < 0) return -1;
    pthread_mutex_lock(&o->lock);
    const int64_t synced = o->synced;
    pthread_mutex_unlock(&o->lock);
    return synced;
}

bs_status bs_output_sync(bs_output *o)
{
    if (!o->regular) return BS_STATUS_OK;
    pthread_mutex_lock(&o->lock);
    int error = o->error;
    pthread_mutex_unlock(&o->lock);
    if (error == 0 && fsync(o->fd) != 0) error = errno;
    if (error != 0) return fail_io(o, error);
    pthread_mutex_lock(&o->lock);
    o->wanted = o->synced = o->bytes;
    pthread_mutex_unlock(&o->lock);
    return BS_STATUS_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

/* Where there is no file, makes one; its name is on the disk, too, when this returns. */
static bs_status open_file(bs_output *o)
{
    struct stat info;
    o->is_new = stat(o->path, &info) != 0;
    o->fd = open(o->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (o->fd < 0 || fstat(o->fd, &info) != 0) return fail_io(o, errno);
    o->regular = S_ISREG(info.st_mode);
    if (!o->is_new || !o->regular) return BS_STATUS_OK;
    char *directory = strdup(o->path), *slash = directory ? strrchr(directory, '/') : NULL;
    if (!directory) return bs_fail(BS_STATUS_NOMEM, "--output %s: no memory", o->path);
    if (slash) slash[slash == directory] = 0;
    int fd = open(slash ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && fsync(fd) != 0 && errno != EINVAL) o->error = errno;
    if (fd >= 0) close(fd);
    free(directory);
    return o->error == 0 ? BS_STATUS_OK : fail_io(o, o->error);
}

bs_status bs_output_open(const char *path, bs_output **out)
{
    bs_output *o = calloc(1, sizeof *o);
    bs_status status = BS_STATUS_OK;
    if (!o) return bs_fail(BS_STATUS_NOMEM, "no memory for the output");
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->wake, NULL);
    o->fd = -1;
    if (!path) {
        *out = o;
        return BS_STATUS_OK;
    }
    if (!(o->path = strdup(path))) status = bs_fail(BS_STATUS_NOMEM, "--output %s: no memory", path);
    if (status == BS_STATUS_OK) status = open_file(o);
    if (status == BS_STATUS_OK && o->regular) {
        o->has_thread = pthread_create(&o->thread, NULL, sync_thread, o) == 0;
        if (!o->has_thread) status = bs_fail(BS_STATUS_NOMEM, "--output %s: no thread", path);
    }
    BS_TRY_GOTO(status, err_close);
    *out = o;
    return BS_STATUS_OK;
err_close:
    bs_output_close(o);
    return status;
}

void bs_output_close(bs_output *o)
{
    if (!o) return;
    if (o->has_thread) {
        pthread_mutex_lock(&o->lock);
        o->stop = true;
        pthread_cond_signal(&o->wake);
        pthread_mutex_unlock(&o->lock);
        pthread_join(o->thread, NULL);
    }
    if (o->fd >= 0) close(o->fd);
    if (o->is_new && o->regular && !o->is_begun) unlink(o->path);
    pthread_cond_destroy(&o->wake);
    pthread_mutex_destroy(&o->lock);
    free(o->path);
    free(o);
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

static bs_status cut(bs_output *o, int64_t bytes)
{
    if (o->regular && ftruncate(o->fd, bytes) != 0) return fail_io(o, errno);
    if (o->regular && lseek(o->fd, bytes, SEEK_SET) < 0) return fail_io(o, errno);
    o->bytes = bytes;
    o->is_begun = true;
    pthread_mutex_lock(&o->lock);
    o->wanted = o->synced = 0;
    pthread_mutex_unlock(&o->lock);
    return BS_STATUS_OK;
}

bool bs_output_is_new(const bs_output *o)
{
    return o->is_new;
}

bs_status bs_output_begin(bs_output *o)
{
    return o->fd < 0 ? BS_STATUS_OK : cut(o, 0);
}

/* How many of the first n bytes of the file are those of text. */
static bs_status count_same(const bs_output *o, const char *text, size_t n, size_t *same)
{
    char piece[4096];
    *same = 0;
    while (*same < n) {
        size_t want = n - *same < sizeof piece ? n - *same : sizeof piece;
        ssize_t got = pread(o->fd, piece, want, (off_t)*same);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_io(o, errno);
        for (ssize_t i = 0; i < got; i++, (*same)++)
            if (piece[i] != text[*same]) return BS_STATUS_OK;
        if (got == 0) return BS_STATUS_OK;
    }
    return BS_STATUS_OK;
}

bs_status bs_output_resume(bs_output *o, const char *text, size_t n, int64_t n_kept)
{
    size_t kept = n_kept < 0 ? 0 : (size_t)n_kept < n ? (size_t)n_kept : n, same;
    if (o->fd < 0) return BS_STATUS_OK;
    if (!o->regular) return bs_output_write(o, text + kept, n - kept);
    if (o->is_new) kept = 0;
    BS_TRY(count_same(o, text, kept, &same));
    if (same < kept)
        return bs_fail(
            BS_STATUS_MISMATCH,
            "--output %s: is not what the snapshot's run wrote: %zu bytes are, %zu must be (--resume never "
            "begins anew)",
            o->path, same, kept);
    BS_TRY(cut(o, (int64_t)kept));
    return bs_output_write(o, text + kept, n - kept);
}

bs_status bs_output_write(bs_output *o, const void *data, size_t bytes)
{
    if (o->fd < 0) return bs_cli_write(data, bytes);
    for (size_t n = 0; n < bytes;) {
        ssize_t written = write(o->fd, (const char *)data + n, bytes - n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return fail_io(o, errno);
        n += (size_t)written;
    }
    o->bytes += (int64_t)bytes;
    return BS_STATUS_OK;
}
