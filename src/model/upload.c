/* upload.c: matrices of a mapped file into a GPU's memory.
 *
 * A GPU takes 50 GB/s, a thread that reads the page cache and turns blocks into halves gives a few. So the matrices are
 * cut into pieces of 8 MiB; threads take them in order and convert each into one of a ring of page-locked buffers, and
 * this thread sends them off in the same order. A buffer is filled again when its copy has ended; half of the ring is
 * kept for copies under way.
 */
#include "config.h"
#include "src/model/upload.h"
#include "src/base/checked.h"
#include "src/base/half.h"
#include "src/base/log.h"
#include "src/base/progress.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    PIECE_BYTES = 8 << 20,
    MAX_THREADS = 8,
    BUFFERS_A_THREAD = 2,
    MAX_BUFFERS = MAX_THREADS * BUFFERS_A_THREAD
};

/* ---- one piece ------------------------------------------------------------------------------------------- */

/* Elements of f32 that a row needs before it is rounded: its whole blocks. */
static int64_t scratch_of(const bs_weight *from)
{
    return from->first_col + from->n_cols + bs_type_block(from->type);
}

static void round_row(const float *in, int64_t n, bs_type type, uint16_t *out)
{
    if (type == BS_TYPE_BF16)
        for (int64_t i = 0; i < n; i++) out[i] = bs_f32_to_bf16(in[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = bs_f32_to_f16(in[i]);
}

/* n rows, from row0 on. */
static void convert(const bs_weight *from, int64_t row0, int64_t n, bs_type type, float *scratch, void *out)
{
    const char *row = (const char *)from->data + (uint64_t)row0 * from->row_bytes;
    const size_t out_bytes = 2 * (size_t)from->n_cols;
    const int64_t block = bs_type_block(from->type),
                  span = bs_ceil_div(from->first_col + from->n_cols, block) * block;
    for (int64_t i = 0; i < n; i++, row += from->row_bytes) {
        char *to = (char *)out + (size_t)i * out_bytes;
        if (from->type == type) {
            memcpy(to, row, out_bytes);
            continue;
        }
        (void)bs_dequantize_row(from->type, row, scratch, span);
        round_row(scratch + from->first_col, from->n_cols, type, (uint16_t *)to);
    }
}

/* Has the kernel read what this piece needs, all of it at once. */
static void ask_for(const bs_weight *from, int64_t row0, int64_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t at = (uintptr_t)from->data + (uintptr_t)row0 * from->row_bytes;
    madvise((void *)(at & ~(page - 1)), (size_t)n * from->row_bytes + (at & (page - 1)), MADV_WILLNEED);
}

/* ---- the ring -------------------------------------------------------------------------------------------- */

typedef struct upload {
    const bs_upload_item *items;
    bs_type type;
    int n_buffers;
    char *buffers[MAX_BUFFERS];
    bs_timer *timers[MAX_BUFFERS]; /* a copy's end */
    int64_t n_scratch;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Under the lock. */
    int item;    /* where the next piece begins */
    int64_t row; /* of it */
    int n_items;
    int64_t n_taken;  /* pieces */
    int64_t n_copied; /* pieces whose copies have ended: their buffers are free */
    bool stop, no_memory;
    struct piece {
        int64_t number; /* which piece is in the buffer, −1: none is ready */
        int item;
        int64_t row, n_rows;
    } pieces[MAX_BUFFERS];
} upload;

static int64_t rows_a_piece(const bs_weight *from)
{
    return bs_max_i64(1, PIECE_BYTES / bs_max_i64(1, 2 * from->n_cols));
}

/* Takes the next piece once its buffer is free; false at the end. */
static bool take_piece(upload *u, struct piece *out)
{
    bool taken = false;
    pthread_mutex_lock(&u->lock);
    while (!u->stop && u->item < u->n_items && u->n_taken - u->n_copied >= u->n_buffers)
        pthread_cond_wait(&u->changed, &u->lock);
    if (!u->stop && u->item < u->n_items) {
        const bs_weight *from = &u->items[u->item].from;
        *out = (struct piece){u->n_taken++, u->item, u->row,
                              bs_min_i64(rows_a_piece(from), from->n_rows - u->row)};
        u->row += out->n_rows;
        if (u->row == from->n_rows) {
            u->row = 0;
            do u->item++;
            while (u->item < u->n_items &&
                   u->items[u->item].from.n_rows * u->items[u->item].from.n_cols == 0);
        }
        taken = true;
    }
    pthread_mutex_unlock(&u->lock);
    return taken;
}

static void *convert_pieces(void *context)
{
    upload *u = context;
    struct piece piece;
    float *scratch = malloc(sizeof *scratch * (size_t)u->n_scratch);
    while (scratch && take_piece(u, &piece)) {
        const int b = (int)(piece.number % u->n_buffers);
        const bs_weight *from = &u->items[piece.item].from;
        ask_for(from, piece.row, piece.n_rows);
        convert(from, piece.row, piece.n_rows, u->type, scratch, u->buffers[b]);
        pthread_mutex_lock(&u->lock);
        u->pieces[b] = piece;
        pthread_cond_broadcast(&u->changed);
        pthread_mutex_unlock(&u->lock);
    }
    if (!scratch) {
        pthread_mutex_lock(&u->lock);
        u->no_memory = u->stop = true;
        pthread_cond_broadcast(&u->changed);
        pthread_mutex_unlock(&u->lock);
    }
    free(scratch);
    return NULL;
}

static bs_status wait_for_piece(upload *u, int64_t number, struct piece *out)
{
    const int b = (int)(number % u->n_buffers);
    pthread_mutex_lock(&u->lock);
    while (!u->stop && u->pieces[b].number != number) pthread_cond_wait(&u->changed, &u->lock);
    const bool failed = u->no_memory;
    *out = u->pieces[b];
    pthread_mutex_unlock(&u->lock);
    return failed ? bs_fail(BS_STATUS_NOMEM, "weights: no memory to convert a row") : BS_STATUS_OK;
}

static bs_status wait_for_copy(upload *u, int64_t number)
{
    double ms;
    BS_TRY(bs_timer_ms(u->timers[number % u->n_buffers], &ms));
    pthread_mutex_lock(&u->lock);
    u->n_copied = number + 1;
    pthread_cond_broadcast(&u->changed);
    pthread_mutex_unlock(&u->lock);
    return BS_STATUS_OK;
}

static bs_status send_pieces(upload *u, bs_stream *stream, int64_t n_pieces, uint64_t total,
                             void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    const int under_way = u->n_buffers / 2;
    uint64_t done = 0;
    for (int64_t i = 0; i < n_pieces + under_way; i++) {
        struct piece piece;
        if (i < n_pieces) {
            const int b = (int)(i % u->n_buffers);
            BS_TRY(wait_for_piece(u, i, &piece));
            const bs_upload_item *item = &u->items[piece.item];
            const size_t row_bytes = 2 * (size_t)item->from.n_cols, bytes = (size_t)piece.n_rows * row_bytes;
            BS_TRY(bs_timer_start(stream, u->timers[b]));
            BS_TRY(bs_copy_to_device(stream, item->to + (size_t)piece.row * row_bytes, u->buffers[b], bytes));
            BS_TRY(bs_timer_stop(stream, u->timers[b]));
            done += bytes;
            if (progress) progress(context, done, total);
        }
        if (i >= under_way) BS_TRY(wait_for_copy(u, i - under_way));
    }
    return BS_STATUS_OK;
}

/* ---- opening and closing --------------------------------------------------------------------------------- */

static bs_status open_ring(upload *u, bs_device *device)
{
    int64_t most = 0;
    for (int i = 0; i < u->n_items; i++) {
        const bs_weight *from = &u->items[i].from;
        most = bs_max_i64(most, rows_a_piece(from) * 2 * from->n_cols);
        u->n_scratch = bs_max_i64(u->n_scratch, scratch_of(from));
    }
    for (int b = 0; b < u->n_buffers; b++) {
        void *buffer;
        BS_TRY(bs_host_alloc(device, (size_t)most, "weights on their way to the GPU", &buffer));
        u->buffers[b] = buffer;
        u->pieces[b].number = -1;
        BS_TRY(bs_timer_create(device, &u->timers[b]));
    }
    return BS_STATUS_OK;
}

static void close_ring(upload *u, bs_device *device)
{
    for (int b = 0; b < MAX_BUFFERS; b++) {
        bs_timer_destroy(u->timers[b]);
        bs_host_free(device, u->buffers[b]);
    }
    pthread_cond_destroy(&u->changed);
    pthread_mutex_destroy(&u->lock);
}

static bs_status run_threads(upload *u, bs_stream *stream, int n_threads, int64_t n_pieces, uint64_t total,
                             void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    pthread_t threads[MAX_THREADS];
    int n = 0;
    while (n < n_threads && pthread_create(&threads[n], NULL, convert_pieces, u) == 0) n++;
    bs_status status = n > 0 ? send_pieces(u, stream, n_pieces, total, progress, context)
                             : bs_fail(BS_STATUS_NOMEM, "weights: no thread could be started");
    pthread_mutex_lock(&u->lock);
    u->stop = true;
    pthread_cond_broadcast(&u->changed);
    pthread_mutex_unlock(&u->lock);
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    return status;
}

bs_status bs_upload(bs_device *device, const bs_upload_item *items, int n_items, bs_type type,
                    void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    const int n_threads = (int)bs_min_i64(MAX_THREADS, bs_max_i64(1, sysconf(_SC_NPROCESSORS_ONLN)));
    upload u = {.items = items, .type = type, .n_items = n_items, .n_buffers = n_threads * BUFFERS_A_THREAD};
    int64_t n_pieces = 0;
    uint64_t total = 0;
    bs_status status;
    bs_stream *stream = NULL;
    for (int i = 0; i < n_items; i++) {
        const bs_weight *from = &items[i].from;
        if (from->n_rows == 0 || from->n_cols == 0) continue;
        n_pieces += bs_ceil_div(from->n_rows, rows_a_piece(from));
        total += 2 * (uint64_t)from->n_rows * (uint64_t)from->n_cols;
    }
    while (u.item < n_items && items[u.item].from.n_rows * items[u.item].from.n_cols == 0) u.item++;
    pthread_mutex_init(&u.lock, NULL);
    pthread_cond_init(&u.changed, NULL);
    BS_TRY_GOTO(bs_stream_create(device, &stream), done);
    const double start = bs_now_s();
    BS_TRY_GOTO(open_ring(&u, device), done);
    const double open = bs_now_s();
    BS_TRY_GOTO(run_threads(&u, stream, n_threads, n_pieces, total, progress, context), done);
    bs_log_debug("weights: %.2f GB to the device in %.0f ms, %.1f GB/s, by %d threads; page-locking %.0f ms",
                 (double)total / 1e9, (bs_now_s() - open) * 1e3, (double)total / 1e9 / (bs_now_s() - open),
                 n_threads, (open - start) * 1e3);
done:
    if (stream) (void)bs_stream_sync(stream); /* no copy may outlive its buffer */
    close_ring(&u, device);
    bs_stream_destroy(stream);
    return status;
}
