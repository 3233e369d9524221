/* comm_private.h: what the files of comm/ share. */
#ifndef BS_COMM_PRIVATE_H
#define BS_COMM_PRIVATE_H

#include "comm/comm.h"

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

/* One rank's place in the shared window of its machine. A cache line each; written by its rank only. */
typedef struct bs_watch_slot {
    _Alignas(64) atomic_uint_fast64_t ticks; /* grows with every bs_comm_progress */
    atomic_uint_fast64_t beats;              /* grows while the rank's watchdog thread runs */
    atomic_int_fast64_t step;
    atomic_int layer, phase, rank, pid;
    atomic_bool armed; /* in a step: progress is due */
    atomic_bool alive; /* its watchdog runs: beats are due */
} bs_watch_slot;

typedef struct bs_watch_window {
    atomic_flag reported; /* one rank of the machine speaks */
    bs_watch_slot slot[];
} bs_watch_window;

/* What a watchdog remembers of a counter: when it last moved, on its own clock. */
typedef struct bs_watch_memory {
    uint64_t seen;
    double since; /* seconds */
} bs_watch_memory;

typedef struct bs_watchdog {
    bs_watch_window *window;
    bs_watch_slot *mine;
    MPI_Win mpi_window;
    double timeout_s;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool running, stop;
} bs_watchdog;

/* Memory for collectives between ranks that all share a machine: comm/shared.c. */
typedef struct bs_shared_rank bs_shared_rank;
typedef struct bs_shared {
    bool on;
    bs_shared_rank *rank; /* [size], NULL without */
    MPI_Win window;
    int spins;
} bs_shared;

typedef struct bs_nccl bs_nccl; /* comm/nccl.c */

/* Device collectives by other means than MPI. Of a group of two or more and of more than nothing; send of the gather may
 * lie in its place. */
typedef struct bs_device_comm {
    bs_status (*reduce)(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n, bool max);
    bs_status (*gather)(bs_comm *comm, bs_group group, bs_stream *stream, const void *send, void *recv,
                        size_t bytes);
    /* The grid has changed: its groups again. Collective. */
    bs_status (*regroup)(bs_comm *comm);
    /* What has gone wrong behind a collective that was queued, or false. For the watchdog's thread. */
    bool (*error)(bs_comm *comm, char *text, size_t bytes);
    /* Makes the GPU let go of what it waits for. Any thread; returns within half a second, done or not. */
    void (*abort)(bs_comm *comm);
    void (*close)(bs_comm *comm);
} bs_device_comm;

struct bs_comm {
    bool mpi;                          /* MPI runs: several ranks, or one started by a launcher */
    atomic_bool ending;                /* a thread of this process ends the job: the others stand still */
    const bs_device_comm *device_comm; /* NULL: MPI */
    bs_nccl *nccl;
    int rank, size, local_rank, local_size;
    bs_grid grid;
    MPI_Comm all, seq;   /* device collectives; seq is MPI_COMM_NULL before the grid is set */
    MPI_Comm host, plan; /* host messages; the plan that travels while a step runs */
    MPI_Comm exchange;   /* what goes on beside the steps: comm/exchange.c */
    MPI_Comm local;      /* ranks of this machine */
    MPI_Request plan_request;
    bool plan_open, exchange_open;
    MPI_Request exchange_request[2];
    char job[64];  /* "" or the batch system's "1234.0" */
    void *staging; /* host copy of device data when the device is a GPU; grows on first use */
    size_t staging_bytes;
    bs_device *staging_device;
    bs_shared shared;
    bs_watchdog watchdog;
    bs_collective_recorder *recorder; /* or NULL */
    void *recorder_context;
    int layer; /* as bs_comm_progress was told last */
    bs_phase phase;
};

/* BS_STATUS_COMM with MPI's own words when code is not MPI_SUCCESS. */
bs_status bs_comm_mpi_status(int code, const char *what);
void bs_watchdog_stop(bs_comm *comm);
/* So many milliseconds from now, as the timed waits of pthreads take it. */
struct timespec bs_comm_time_in(long ms);
/* Returns where nothing is wrong, and never where another thread ends the job: what this thread has waited for may be
 * what the abort made of it, and nobody may see that. */
void bs_comm_hold_if_ending(const bs_comm *comm);

void bs_comm_free_staging(bs_comm *comm);
/* Changes comm->device_comm under the watchdog's eyes. */
void bs_comm_set_device_comm(bs_comm *comm, const bs_device_comm *device_comm);

/* Where a rank works, as all others learn it. */
typedef struct bs_place {
    int32_t is_gpu, nccl_version; /* 0: none, and why */
    uint8_t uuid[16];
    char gpu[64]; /* its name, "" on a CPU */
    char why[104];
} bs_place;
/* What keeps n ranks from working together at all: different devices. Pure. */
bs_status bs_transport_check_kinds(const bs_place *places, int n);
/* From using NCCL: a rank without it or on a CPU, other versions; two ranks on one GPU. Pure. */
bs_status bs_transport_check_nccl(const bs_place *places, int n);
bs_status bs_transport_check_sharing(const bs_place *places, int n);

/* Opens comm->nccl for this device and sets device_comm. Collective; every rank returns, its own error where it has
 * one; then no rank may use the transport. */
bs_status bs_nccl_open(bs_comm *comm, bs_device *device);
/* The library's version, as 22803, or 0 and one line on why it cannot be used. */
int bs_nccl_version(char *why, size_t bytes);

/* Nothing where ranks are on several machines, or more than shared.c is for. Collective; close takes what open
 * left. */
bs_status bs_shared_open(bs_comm *comm);
void bs_shared_close(bs_comm *comm);
bs_status bs_shared_reset(bs_comm *comm, bs_group group);
/* Whether a collective of so many bytes a rank goes this way, and those that do, over a group of two or more. */
bool bs_shared_fits(const bs_comm *comm, size_t bytes);
void bs_shared_reduce(bs_comm *comm, bs_group group, float *data, size_t n, bool max);
void bs_shared_gather(bs_comm *comm, bs_group group, const void *send, void *recv, size_t bytes);

/* The slot to blame for a hang, of the n slots of this machine: the one whose watchdog thread has been silent
 * longest (2 s or more; never `self`, whose thread is asking), else the one furthest behind. beats: [n], when
 * each slot's beats last moved; now: on the same clock. *silent says which of the two. */
const bs_watch_slot *bs_watchdog_find_culprit(const bs_watch_slot *slots, const bs_watch_memory *beats, int n,
                                              int self, double now, bool *silent);

#endif
