/* watchdog.c: a hang ends the job within ten seconds and says where.
 *
 * Each rank has a thread that watches two things: this rank's own progress counter while a step runs, and the
 * heartbeats of the other ranks' threads on this machine, at any time (a process that was stopped between two
 * steps leaves the others waiting for a plan, where waiting is legal). Ranks of one machine share a window
 * with a slot each, because a rank that hangs in a collective is usually the victim: the culprit is the one
 * whose thread has fallen silent, else the one that is furthest behind. One rank of the machine reports; all
 * of them abort. Rejected: MPI messages between the threads (a hung MPI is what must be found).
 *
 * The thread also asks the device's collectives for errors that nobody waits for, and because it is a thread of
 * its own it does so, and aborts, while the other one waits for a GPU that never finishes. What that wait then
 * returns is the abort's doing: bs_comm_progress, through which every step goes before it shows what it
 * computed, stands still once the end has begun.
 */
#include "comm/comm_private.h"

#include "src/base/log.h"
#include "src/base/progress.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { POLL_MS = 100, SILENT_S = 2 };

struct timespec bs_comm_time_in(long ms)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += ms * 1000000L;
    t.tv_sec += t.tv_nsec / 1000000000L;
    t.tv_nsec %= 1000000000L;
    return t;
}

const char *bs_phase_name(bs_phase phase)
{
    switch (phase) {
#define X(name, text)                                                                                        \
    case BS_PHASE_##name: return text;
        BS_PHASE_LIST(X)
#undef X
    }
    return "?";
}

/* Order of progress: by step, then layer, then phase. */
static bool is_behind(const bs_watch_slot *a, const bs_watch_slot *b)
{
    if (a->step != b->step) return a->step < b->step;
    if (a->layer != b->layer) return a->layer < b->layer;
    return a->phase < b->phase;
}

const bs_watch_slot *bs_watchdog_find_culprit(const bs_watch_slot *slots, const bs_watch_memory *beats, int n,
                                              int self, double now, bool *silent)
{
    const bs_watch_slot *worst = NULL;
    double longest = SILENT_S;
    for (int i = 0; i < n; i++) {
        double quiet = i == self || !slots[i].alive ? 0 : now - beats[i].since;
        if (quiet < longest) continue;
        longest = quiet;
        worst = &slots[i];
    }
    *silent = worst != NULL;
    for (int i = 0; i < n && !*silent; i++)
        if (!worst || is_behind(&slots[i], worst)) worst = &slots[i];
    return worst;
}

/* One rank of the machine speaks, and must get to the end of its line before another's abort ends it. */
static bool may_speak(bs_watchdog *dog)
{
    if (!atomic_flag_test_and_set(&dog->window->reported)) return true;
    nanosleep(&(struct timespec){0, 2 * POLL_MS * 1000000L}, NULL);
    return false;
}

__attribute__((noreturn)) static void report_and_abort(bs_comm *comm, const bs_watch_memory *beats,
                                                       double now)
{
    bs_watchdog *dog = &comm->watchdog;
    if (may_speak(dog)) {
        bool silent;
        const bs_watch_slot *slot = bs_watchdog_find_culprit(dog->window->slot, beats, comm->local_size,
                                                             comm->local_rank, now, &silent);
        bs_log_error(
            "rank %d (pid %d) %s at step %lld, layer %d, phase %s: no progress for %.1f s, ending the job",
            (int)slot->rank, (int)slot->pid, silent ? "is stopped or dead" : "hangs", (long long)slot->step,
            (int)slot->layer, bs_phase_name((bs_phase)slot->phase), dog->timeout_s);
    }
    bs_comm_abort(comm, 1);
}

/* The device's collectives failed behind this rank's back: it speaks for itself. */
__attribute__((noreturn)) static void report_error_and_abort(bs_comm *comm, const char *error)
{
    bs_watchdog *dog = &comm->watchdog;
    if (may_speak(dog))
        bs_log_error("rank %d (pid %d) at step %lld, layer %d, phase %s: NCCL: %s, ending the job",
                     comm->rank, (int)dog->mine->pid, (long long)dog->mine->step, (int)dog->mine->layer,
                     bs_phase_name((bs_phase)dog->mine->phase), error);
    bs_comm_abort(comm, 1);
}

/* Whether something is overdue: my progress in a step, or the heartbeat of a rank that is alive. */
static bool overdue(bs_comm *comm, bs_watch_memory *progress, bs_watch_memory *beats, double now)
{
    bs_watchdog *dog = &comm->watchdog;
    uint64_t ticks = dog->mine->ticks;
    bool late = false;
    if (ticks != progress->seen || !dog->mine->armed) *progress = (bs_watch_memory){ticks, now};
    for (int i = 0; i < comm->local_size; i++) {
        const bs_watch_slot *slot = &dog->window->slot[i];
        uint64_t beat = slot->beats;
        if (beat != beats[i].seen || !slot->alive) beats[i] = (bs_watch_memory){beat, now};
        late |= now - beats[i].since >= dog->timeout_s;
    }
    return late || now - progress->since >= dog->timeout_s;
}

static void *watch(void *context)
{
    bs_comm *comm = context;
    bs_watchdog *dog = &comm->watchdog;
    size_t n = (size_t)comm->local_size;
    bs_watch_memory progress = {0, bs_now_s()}, *beats = calloc(n, sizeof *beats);
    double last = bs_now_s();
    for (size_t i = 0; beats && i < n; i++) beats[i].since = last;
    pthread_mutex_lock(&dog->lock);
    while (!dog->stop && beats) {
        const struct timespec until = bs_comm_time_in(POLL_MS);
        pthread_cond_timedwait(&dog->wake, &dog->lock, &until);
        dog->mine->beats++;
        double now = bs_now_s();
        /* A process that was itself stopped and goes on must blame nobody for the time it slept. */
        if (now - last > 1) {
            progress.since = now;
            for (size_t i = 0; i < n; i++) beats[i].since = now;
        }
        last = now;
        char error[320];
        if (!dog->stop && comm->device_comm && comm->device_comm->error(comm, error, sizeof error)) {
            pthread_mutex_unlock(&dog->lock);
            report_error_and_abort(comm, error);
        }
        if (!dog->stop && overdue(comm, &progress, beats, now)) {
            pthread_mutex_unlock(&dog->lock);
            report_and_abort(comm, beats, now);
        }
    }
    pthread_mutex_unlock(&dog->lock);
    free(beats);
    return NULL;
}

static bs_status make_window(bs_comm *comm)
{
    bs_watchdog *dog = &comm->watchdog;
    size_t bytes = sizeof(bs_watch_window) + (size_t)comm->local_size * sizeof(bs_watch_slot);
    if (comm->mpi) {
        void *base = NULL;
        MPI_Aint size = comm->local_rank == 0 ? (MPI_Aint)(bytes + sizeof(bs_watch_slot)) : 0;
        BS_TRY(bs_comm_mpi_status(
            MPI_Win_allocate_shared(size, 1, MPI_INFO_NULL, comm->local, &base, &dog->mpi_window),
            "MPI_Win_allocate_shared"));
        int unit;
        BS_TRY(bs_comm_mpi_status(MPI_Win_shared_query(dog->mpi_window, 0, &size, &unit, &base),
                                  "MPI_Win_shared_query"));
        uintptr_t at = ((uintptr_t)base + 63) / 64 * 64;
        dog->window = (bs_watch_window *)at;
        if (comm->local_rank == 0) memset(dog->window, 0, bytes);
        BS_TRY(bs_comm_mpi_status(MPI_Barrier(comm->local), "MPI_Barrier"));
    } else {
        dog->window = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!dog->window) return bs_fail(BS_STATUS_NOMEM, "watchdog: %zu bytes", bytes);
        memset(dog->window, 0, bytes);
    }
    dog->mine = &dog->window->slot[comm->local_rank];
    dog->mine->rank = comm->rank;
    dog->mine->pid = (int)getpid();
    return BS_STATUS_OK;
}

bs_status bs_comm_watchdog_start(bs_comm *comm, double timeout_s)
{
    bs_watchdog *dog = &comm->watchdog;
    if (dog->running) return bs_fail(BS_STATUS_INTERNAL, "the watchdog runs already");
    if (!(timeout_s >= 1)) return bs_fail(BS_STATUS_USAGE, "--watchdog-s %g: must be at least 1", timeout_s);
    BS_TRY(make_window(comm));
    dog->timeout_s = timeout_s;
    pthread_mutex_init(&dog->lock, NULL);
    pthread_cond_init(&dog->wake, NULL);
    if (pthread_create(&dog->thread, NULL, watch, comm) != 0)
        return bs_fail(BS_STATUS_NOMEM, "the watchdog's thread could not be started");
    dog->mine->alive = true;
    dog->running = true;
    return BS_STATUS_OK;
}

void bs_watchdog_stop(bs_comm *comm)
{
    bs_watchdog *dog = &comm->watchdog;
    if (!dog->running) return;
    dog->mine->alive = false;
    pthread_mutex_lock(&dog->lock);
    dog->stop = true;
    pthread_cond_signal(&dog->wake);
    pthread_mutex_unlock(&dog->lock);
    pthread_join(dog->thread, NULL);
    pthread_cond_destroy(&dog->wake);
    pthread_mutex_destroy(&dog->lock);
    if (comm->mpi) MPI_Win_free(&dog->mpi_window);
    else free(dog->window);
    memset(dog, 0, sizeof *dog);
}

void bs_comm_set_device_comm(bs_comm *comm, const bs_device_comm *device_comm)
{
    bs_watchdog *dog = &comm->watchdog;
    if (dog->running) pthread_mutex_lock(&dog->lock);
    comm->device_comm = device_comm;
    if (dog->running) pthread_mutex_unlock(&dog->lock);
}

void bs_comm_progress(bs_comm *comm, int64_t step, int layer, bs_phase phase)
{
    bs_watch_slot *mine = comm->watchdog.mine;
    bs_comm_hold_if_ending(comm);
    comm->layer = layer;
    comm->phase = phase;
    if (!mine) return;
    atomic_store_explicit(&mine->step, step, memory_order_relaxed);
    atomic_store_explicit(&mine->layer, layer, memory_order_relaxed);
    atomic_store_explicit(&mine->phase, (int)phase, memory_order_relaxed);
    atomic_store_explicit(&mine->armed, phase != BS_PHASE_IDLE, memory_order_relaxed);
    atomic_fetch_add_explicit(&mine->ticks, 1, memory_order_relaxed);
}

void bs_comm_progress_idle(bs_comm *comm)
{
    bs_watch_slot *mine = comm->watchdog.mine;
    bs_comm_hold_if_ending(comm);
    if (mine) bs_comm_progress(comm, atomic_load(&mine->step), 0, BS_PHASE_IDLE);
}
