/* nccl.c: collectives of device buffers through NCCL, for ranks that have a GPU each.
 *
 * Communicators. One for all ranks and one for the sequence shards of a head shard, each from a unique id that
 * MPI carries; where the two groups are the same, one. Non-blocking (config.blocking = 0): a call returns at
 * once, NCCL finishes it in a thread of its own, and the communicator takes the next call when
 * ncclCommGetAsyncError says so. That is what makes an abort safe while a call waits for a dead peer. The
 * price is that thread, at each call outside of a graph; a graph pays it once, when it is recorded. Calls of
 * one rank go to one stream in one order, so no two collectives are ever in flight on a communicator.
 *
 * Locking. ncclCommGetAsyncError completes the call that is under way, so two threads may not ask at once: the
 * thread that calls holds the lock from the call to its completion, and the watchdog polls only when nobody
 * does. A lock that is held too long is not polled for: that is a hang, and the watchdog's deadline finds it.
 *
 * Capture. Connections are made when a collective of a new kind or size class first runs, which a capture does
 * not allow, so opening runs each kind over a ladder of sizes.
 *
 * Bits. Ring and tree add each element once, in an order that depends on the rank count, the size and the
 * topology alone, and copy the sum to all: every rank has the same bits, every run, in a graph or not.
 * nccl_library.c turns off what would break that.
 *
 * The end. ncclCommFinalize, then ncclCommDestroy, with a deadline: they wait for the other ranks, and for graphs
 * that were not destroyed. ncclCommAbort has the same weakness behind its first step, which is to tell the
 * kernels to leave; so it runs in a thread that nobody joins, and half a second later the process ends anyway.
 */
#include "config.h"

#include "comm/comm_private.h"
#include "comm/nccl_library.h"
#include "src/base/progress.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SPINS = 2000, SMALLEST_WARM = 128, LARGEST_WARM = 8 << 20 };
#define OPEN_S  60.0 /* for all ranks to arrive, on a machine that is busy */
#define CLOSE_S 5.0
#define ABORT_S 0.4

struct bs_nccl {
    const bs_nccl_library *lib;
    ncclComm_t all, seq; /* seq: NULL where the group is all ranks, or this rank alone */
    bs_device *device;
    pthread_mutex_t lock;
    atomic_bool aborted; /* the communicators belong to the thread that aborts them */
};

/* Until the call that gave `result` is done. limit_s 0: as long as it takes. An abort ends the wait. */
static ncclResult_t settle(bs_comm *comm, ncclComm_t nccl, ncclResult_t result, double limit_s)
{
    const double end = bs_now_s() + limit_s;
    for (int turn = 0; result == ncclInProgress; turn++) {
        if (atomic_load(&comm->ending) || (limit_s > 0 && bs_now_s() > end)) break;
        if (turn > SPINS) nanosleep(&(struct timespec){.tv_nsec = 50 * 1000}, NULL);
        else sched_yield();
        ncclResult_t asked = comm->nccl->lib->CommGetAsyncError(nccl, &result);
        if (asked != ncclSuccess) return asked;
    }
    return result;
}

/* NCCL's words on one line. */
static void describe(const bs_nccl *n, ncclResult_t result, ncclComm_t nccl, char *text, size_t bytes)
{
    const char *last = result == ncclInProgress ? "" : n->lib->GetLastError(nccl);
    snprintf(text, bytes, "%s%s%.200s",
             result == ncclInProgress ? "not done in time" : n->lib->GetErrorString(result),
             last && *last ? ": " : "", last ? last : "");
    text[strcspn(text, "\r\n")] = 0;
}

static bs_status check(const bs_nccl *n, ncclResult_t result, ncclComm_t nccl, const char *what)
{
    char text[320];
    if (result == ncclSuccess) return BS_STATUS_OK;
    describe(n, result, nccl, text, sizeof text);
    return bs_fail(BS_STATUS_COMM, "NCCL: %s: %s", what, text);
}

/* ---- collectives ---- */

static ncclComm_t group_of(const bs_nccl *n, bs_group group)
{
    return group == BS_GROUP_SEQ && n->seq ? n->seq : n->all;
}

static bs_status reduce(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t count, bool max)
{
    bs_nccl *n = comm->nccl;
    ncclComm_t nccl = group_of(n, group);
    bs_comm_hold_if_ending(comm);
    pthread_mutex_lock(&n->lock);
    ncclResult_t result = n->lib->AllReduce(data, data, count, ncclFloat32, max ? ncclMax : ncclSum, nccl,
                                            bs_stream_native(stream));
    result = settle(comm, nccl, result, 0);
    pthread_mutex_unlock(&n->lock);
    bs_comm_hold_if_ending(comm);
    return check(n, result, nccl, max ? "all-reduce of a maximum" : "all-reduce of a sum");
}

static bs_status gather(bs_comm *comm, bs_group group, bs_stream *stream, const void *send, void *recv,
                        size_t bytes)
{
    bs_nccl *n = comm->nccl;
    ncclComm_t nccl = group_of(n, group);
    const bool whole = bytes % sizeof(float) == 0;
    bs_comm_hold_if_ending(comm);
    pthread_mutex_lock(&n->lock);
    ncclResult_t result = n->lib->AllGather(send, recv, whole ? bytes / sizeof(float) : bytes,
                                            whole ? ncclFloat32 : ncclUint8, nccl, bs_stream_native(stream));
    result = settle(comm, nccl, result, 0);
    pthread_mutex_unlock(&n->lock);
    bs_comm_hold_if_ending(comm);
    return check(n, result, nccl, "all-gather");
}

/* ---- errors and aborts ---- */

static bool find_error(bs_comm *comm, char *text, size_t bytes)
{
    bs_nccl *n = comm->nccl;
    bool found = false;
    if (pthread_mutex_trylock(&n->lock) != 0) return false;
    ncclComm_t both[] = {n->all, n->seq};
    for (int i = 0; i < 2 && !found && !atomic_load(&n->aborted); i++) {
        ncclResult_t result = ncclSuccess, asked;
        if (!both[i]) continue;
        asked = n->lib->CommGetAsyncError(both[i], &result);
        if (asked != ncclSuccess) result = asked;
        found = result != ncclSuccess && result != ncclInProgress;
        if (found) describe(n, result, both[i], text, bytes);
    }
    pthread_mutex_unlock(&n->lock);
    return found;
}

typedef struct abortion {
    const bs_nccl_library *lib;
    ncclComm_t all, seq;
    atomic_bool done;
} abortion;

static void *abort_both(void *context)
{
    abortion *a = context;
    if (a->seq) a->lib->CommAbort(a->seq);
    a->lib->CommAbort(a->all);
    atomic_store(&a->done, true);
    return NULL;
}

/* Leaves `a` to the thread: it may outlive this call. */
static void abort_communicators(bs_nccl *n)
{
    pthread_t thread;
    abortion *a = calloc(1, sizeof *a);
    if (!a || atomic_exchange(&n->aborted, true)) {
        free(a);
        return;
    }
    *a = (abortion){.lib = n->lib, .all = n->all, .seq = n->seq};
    if (pthread_create(&thread, NULL, abort_both, a) != 0) return;
    pthread_detach(thread);
    for (double end = bs_now_s() + ABORT_S; !atomic_load(&a->done) && bs_now_s() < end;)
        nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

static void abort_nccl(bs_comm *comm)
{
    bs_nccl *n = comm->nccl;
    /* A thread that waits in settle sees comm->ending and lets go; one that is stuck inside NCCL does not, and then
     * its communicator must not be taken from under it. */
    const struct timespec until = bs_comm_time_in(100);
    if (pthread_mutex_timedlock(&n->lock, &until) != 0) return;
    if (n->all) abort_communicators(n);
    pthread_mutex_unlock(&n->lock);
}

/* ---- opening and closing ---- */

static void close_one(bs_comm *comm, ncclComm_t *nccl)
{
    bs_nccl *n = comm->nccl;
    if (!*nccl) return;
    ncclResult_t result = settle(comm, *nccl, n->lib->CommFinalize(*nccl), CLOSE_S);
    if (result == ncclSuccess) n->lib->CommDestroy(*nccl);
    *nccl = NULL; /* one that could not be ended is left to the end of the process */
}

static bs_status open_one(bs_comm *comm, MPI_Comm group, ncclComm_t *out)
{
    bs_nccl *n = comm->nccl;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t result = ncclSuccess;
    ncclComm_t nccl = NULL;
    int rank, size, told;
    struct {
        ncclUniqueId id;
        int result;
    } start = {.result = ncclSuccess};
    MPI_Comm_rank(group, &rank);
    MPI_Comm_size(group, &size);
    if (rank == 0) start.result = (int)n->lib->GetUniqueId(&start.id);
    told = MPI_Bcast(&start, sizeof start, MPI_BYTE, 0, group);
    BS_TRY(bs_comm_mpi_status(told, "MPI_Bcast"));
    BS_TRY(check(n, (ncclResult_t)start.result, NULL, "unique id"));
    config.blocking = 0;
    result = n->lib->CommInitRankConfig(&nccl, size, start.id, rank, &config);
    if (nccl) result = settle(comm, nccl, result, OPEN_S);
    bs_status status = check(n, result, nccl, "start");
    if (status == BS_STATUS_OK) *out = nccl;
    return status; /* one that did not start is left alone: all ranks end, and an abort may wait for ever */
}

static bs_status open_groups(bs_comm *comm)
{
    bs_nccl *n = comm->nccl;
    if (!n->all) BS_TRY(open_one(comm, comm->all, &n->all));
    if (comm->seq == MPI_COMM_NULL || comm->grid.seq == 1 || comm->grid.seq == comm->size)
        return BS_STATUS_OK;
    return open_one(comm, comm->seq, &n->seq);
}

static bs_status warm_group(bs_comm *comm, bs_group group, bs_stream *stream, char *data)
{
    const size_t size = (size_t)bs_comm_group_size(comm, group),
                 rank = (size_t)bs_comm_group_rank(comm, group);
    for (size_t bytes = SMALLEST_WARM; bytes <= LARGEST_WARM; bytes *= 4) {
        const size_t part = bytes / size / 16 * 16;
        BS_TRY(reduce(comm, group, stream, (float *)data, bytes / sizeof(float), false));
        BS_TRY(reduce(comm, group, stream, (float *)data, bytes / sizeof(float), true));
        if (part > 0) BS_TRY(gather(comm, group, stream, data + rank * part, data, part));
    }
    return BS_STATUS_OK;
}

static bs_status warm(bs_comm *comm, bool all_too)
{
    bs_nccl *n = comm->nccl;
    bs_stream *stream = NULL;
    bs_buffer *data = NULL;
    bs_status status = bs_stream_create(n->device, &stream);
    if (status == BS_STATUS_OK)
        status = bs_buffer_alloc(n->device, LARGEST_WARM, "NCCL's first calls", &data);
    if (status == BS_STATUS_OK && all_too)
        status = warm_group(comm, BS_GROUP_ALL, stream, bs_buffer_at(data, 0));
    if (status == BS_STATUS_OK && n->seq)
        status = warm_group(comm, BS_GROUP_SEQ, stream, bs_buffer_at(data, 0));
    if (status == BS_STATUS_OK) status = bs_stream_sync(stream);
    bs_buffer_free(data);
    bs_stream_destroy(stream);
    return status;
}

/* Whether all ranks came so far: those that did must not wait in a collective for one that did not. */
static bool all_well(bs_comm *comm, bs_status mine)
{
    int well = mine == BS_STATUS_OK;
    return MPI_Allreduce(MPI_IN_PLACE, &well, 1, MPI_INT, MPI_MIN, comm->host) == MPI_SUCCESS && well;
}

static bs_status regroup(bs_comm *comm)
{
    bs_nccl *n = comm->nccl;
    const bool first = !n->all;
    pthread_mutex_lock(&n->lock);
    close_one(comm, &n->seq);
    bs_status status = open_groups(comm);
    pthread_mutex_unlock(&n->lock);
    return all_well(comm, status) ? warm(comm, first) : status;
}

static void close_nccl(bs_comm *comm)
{
    bs_nccl *n = comm->nccl;
    pthread_mutex_lock(&n->lock);
    if (!atomic_load(&n->aborted)) {
        close_one(comm, &n->seq);
        close_one(comm, &n->all);
    }
    pthread_mutex_unlock(&n->lock);
    pthread_mutex_destroy(&n->lock);
    free(n);
    comm->nccl = NULL;
}

static const bs_device_comm nccl_comm = {.reduce = reduce,
                                         .gather = gather,
                                         .regroup = regroup,
                                         .error = find_error,
                                         .abort = abort_nccl,
                                         .close = close_nccl};

bs_status bs_nccl_open(bs_comm *comm, bs_device *device)
{
    char why[200];
    const bs_nccl_library *lib = bs_nccl_load(why, sizeof why);
    if (!lib) return bs_fail(BS_STATUS_UNSUPPORTED, "NCCL: %s", why);
    bs_nccl *n = calloc(1, sizeof *n);
    if (!n) return bs_fail(BS_STATUS_NOMEM, "NCCL: %zu bytes", sizeof *n);
    *n = (bs_nccl){.lib = lib, .device = device};
    pthread_mutex_init(&n->lock, NULL);
    comm->nccl = n;
    bs_comm_set_device_comm(comm, &nccl_comm);
    return regroup(comm);
}
