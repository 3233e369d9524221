/* workers.c: threads that read, write and sum pieces of files while another packs. One lock and two conditions: jobs are
 * megabytes, so what a lock costs is nothing. */
#include "src/snapshot/workers.h"

#include <pthread.h>
#include <stdlib.h>

typedef enum slot_state { SLOT_EMPTY, SLOT_WAITS, SLOT_RUNS, SLOT_DONE } slot_state;

typedef struct slot {
    slot_state state;
    bs_snap_work *work;
    void *context;
    bs_status status;
    char line[512];
} slot;

struct bs_snap_workers {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    bool quit;
    int n_threads, n_slots, next; /* next: where the search for work begins, so that jobs run in order */
    pthread_t *threads;
    slot slots[];
};

static slot *find_work(bs_snap_workers *w, int *number)
{
    for (int i = 0; i < w->n_slots; i++) {
        *number = (w->next + i) % w->n_slots;
        if (w->slots[*number].state != SLOT_WAITS) continue;
        w->next = (*number + 1) % w->n_slots;
        return &w->slots[*number];
    }
    return NULL;
}

static void *run_worker(void *context)
{
    bs_snap_workers *w = context;
    pthread_mutex_lock(&w->lock);
    for (;;) {
        int number;
        slot *s = find_work(w, &number);
        if (!s && w->quit) break;
        if (!s) {
            pthread_cond_wait(&w->wake, &w->lock);
            continue;
        }
        s->state = SLOT_RUNS;
        pthread_mutex_unlock(&w->lock);
        bs_error_divert(s->line, sizeof s->line);
        bs_status status = s->work(s->context, number);
        pthread_mutex_lock(&w->lock);
        s->status = status;
        s->state = SLOT_DONE;
        pthread_cond_broadcast(&w->done);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

bs_status bs_snap_workers_open(int n_threads, int n_slots, bs_snap_workers **out)
{
    bs_snap_workers *w = calloc(1, sizeof *w + (size_t)n_slots * sizeof w->slots[0]);
    if (w) w->threads = calloc((size_t)n_threads, sizeof *w->threads);
    if (!w || !w->threads) {
        free(w);
        return bs_fail(BS_STATUS_NOMEM, "snapshot: no memory for %d threads", n_threads);
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_cond_init(&w->done, NULL);
    w->n_slots = n_slots;
    for (; w->n_threads < n_threads; w->n_threads++)
        if (pthread_create(&w->threads[w->n_threads], NULL, run_worker, w) != 0) {
            bs_snap_workers_close(w);
            return bs_fail(BS_STATUS_NOMEM, "snapshot: no thread could be started");
        }
    *out = w;
    return BS_STATUS_OK;
}

void bs_snap_workers_close(bs_snap_workers *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->n_threads; i++) pthread_join(w->threads[i], NULL);
    pthread_cond_destroy(&w->done);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w->threads);
    free(w);
}

void bs_snap_workers_start(bs_snap_workers *w, int number, bs_snap_work *work, void *context)
{
    slot *s = &w->slots[number];
    pthread_mutex_lock(&w->lock);
    s->state = SLOT_WAITS;
    s->work = work;
    s->context = context;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

bs_status bs_snap_workers_wait(bs_snap_workers *w, int number)
{
    slot *s = &w->slots[number];
    pthread_mutex_lock(&w->lock);
    if (s->state == SLOT_EMPTY) {
        pthread_mutex_unlock(&w->lock);
        return BS_STATUS_OK;
    }
    while (s->state != SLOT_DONE) pthread_cond_wait(&w->done, &w->lock);
    s->state = SLOT_EMPTY;
    bs_status status = s->status;
    pthread_mutex_unlock(&w->lock);
    return status == BS_STATUS_OK ? status : bs_fail(status, "%s", s->line);
}
