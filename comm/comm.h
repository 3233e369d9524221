/* comm.h: ranks, the grid, collectives, failing together.
 *
 * One bs_comm a process. N ranks = heads × seq; rank = head_shard × seq + seq_shard, so the ranks that merge
 * partial softmax states are neighbours. Collectives take device buffers and a stream and run on one
 * communicator a group, in one order. Three transports behind the same functions: `self` (one rank: nothing
 * moves), `mpi` (host memory; on a GPU staged through it, never a device pointer to MPI) and `nccl` (every rank
 * has a GPU of its own).
 *
 * Every function says whether it is collective. All ranks of the group must call a collective with the same
 * sizes in the same order; none may skip one. An error inside a collective of a running step is fatal to the
 * job: the function returns BS_STATUS_COMM and main calls bs_comm_abort.
 */
#ifndef BS_COMM_H
#define BS_COMM_H

#include "kernels/kernels.h"

typedef struct bs_comm bs_comm;

typedef enum bs_group {
    BS_GROUP_ALL, /* all N ranks */
    BS_GROUP_SEQ  /* the sequence shards of my head shard, in order of seq_shard */
} bs_group;

typedef struct bs_grid {
    int rank, size;
    int heads, seq;            /* heads × seq = size */
    int head_shard, seq_shard; /* of this rank */
} bs_grid;

/* What a rank is doing, for the watchdog; in the order of a step. */
#define BS_PHASE_LIST(X)                                                                                     \
    X(IDLE, "idle")                                                                                          \
    X(PLAN, "plan")                                                                                          \
    X(EMBED, "embed")                                                                                        \
    X(QUANTIZE, "quantize")                                                                                  \
    X(NORM, "norm")                                                                                          \
    X(QKV, "qkv")                                                                                            \
    X(APPEND, "append")                                                                                      \
    X(ATTEND, "attend")                                                                                      \
    X(MERGE, "merge")                                                                                        \
    X(O_PROJ, "o_proj")                                                                                      \
    X(FFN, "ffn")                                                                                            \
    X(SILU, "silu")                                                                                          \
    X(SUM, "all-reduce")                                                                                     \
    X(LOGITS, "logits")                                                                                      \
    X(SAMPLE, "sample")                                                                                      \
    X(SNAPSHOT, "snapshot")
typedef enum bs_phase {
#define X(name, text) BS_PHASE_##name,
    BS_PHASE_LIST(X)
#undef X
} bs_phase;
const char *bs_phase_name(bs_phase phase);

/* Starts MPI (MPI_THREAD_MULTIPLE where it is to be had) when the process was started by a launcher, and
 * makes a single rank without MPI otherwise. Collective over all processes of the job. Also sets
 * bs_log_set_rank. */
bs_status bs_comm_init(int *argc, char ***argv, bs_comm **out);
/* Stops the watchdog and ends MPI. Collective. NULL is fine. */
void bs_comm_finalize(bs_comm *comm);
/* Ends the whole job at once with this exit code. Any rank, any thread; does not return. */
__attribute__((noreturn)) void bs_comm_abort(bs_comm *comm, int exit_code);

int bs_comm_rank(const bs_comm *comm);
int bs_comm_size(const bs_comm *comm);
/* This rank's number among the ranks of its machine, and how many they are. */
int bs_comm_local_rank(const bs_comm *comm);
int bs_comm_local_size(const bs_comm *comm);
/* "self", "mpi" or "nccl". */
const char *bs_comm_transport(const bs_comm *comm);
/* Whether device collectives may be recorded in a graph (bs_capture_begin): `self` and `nccl`. A launch of such a
 * graph is a collective, too, and all graphs must be destroyed before bs_comm_leave_device. */
bool bs_comm_capturable(const bs_comm *comm);

/* Chooses heads × seq. `text` is "2x4", or NULL for the default: the most head shards that divide both the
 * ranks and n_kv_heads, the rest sequence shards. BS_STATUS_USAGE names the option and the numbers that do
 * not fit. Pure. */
bs_status bs_grid_choose(int rank, int size, int n_kv_heads, const char *text, bs_grid *out);
/* Makes the grid's groups. Collective over all; once, or again with another grid. */
bs_status bs_comm_set_grid(bs_comm *comm, const bs_grid *grid);
const bs_grid *bs_comm_grid(const bs_comm *comm);

/* Chooses what device collectives go through, from now on, for ranks whose work is on `device`. `auto` takes nccl
 * where every rank has a GPU of its own and NCCL, else mpi (one rank: self), and says so when GPUs must do without.
 * Ranks on different kinds of device are BS_STATUS_UNSUPPORTED.
 * nccl, asked for, is BS_STATUS_USAGE on CPUs and fails where it is missing or refuses. Opening NCCL also runs each
 * collective once in each size class, so that it can be captured. Collective, with the same choice on all ranks; a rank
 * may return an error that others do not have, so callers agree (bs_comm_agree) before they go on. */
typedef enum bs_transport { BS_TRANSPORT_AUTO, BS_TRANSPORT_MPI, BS_TRANSPORT_NCCL } bs_transport;
/* "auto", "mpi", "nccl"; BS_STATUS_USAGE names the value. */
bs_status bs_transport_parse(const char *text, bs_transport *out);
bs_status bs_comm_use_device(bs_comm *comm, bs_device *device, bs_transport choice);
/* Ends what use_device began and gives back host copies that GPUs' collectives took: before the device is closed, after
 * the last graph and stream is gone. Collective, but waits for no rank longer than seconds. Nothing where nothing is in
 * use. */
void bs_comm_leave_device(bs_comm *comm);
int bs_comm_group_size(const bs_comm *comm, bs_group group);
int bs_comm_group_rank(const bs_comm *comm, bs_group group);

/* All ranks fail together: gives every rank the status of the lowest rank that did not succeed (OK if none).
 * That rank alone prints its kept line, naming the rank when not all failed; the others forget theirs.
 * Collective. */
bs_status bs_comm_agree(bs_comm *comm, bs_status mine);

/* Host memory, from root to all. Collective, blocking. */
bs_status bs_comm_bcast_host(bs_comm *comm, void *data, size_t bytes, int root);
/* The same in two halves, so that the next step's plan travels while this step runs. At most one is open;
 * data must stay untouched in between. Runs on a communicator of its own. Collective. */
bs_status bs_comm_bcast_begin(bs_comm *comm, void *data, size_t bytes, int root);
bs_status bs_comm_bcast_end(bs_comm *comm);
/* recv (size × bytes, on root only; else NULL) gets every rank's bytes in rank order. Collective, blocking.
 */
bs_status bs_comm_gather_host(bs_comm *comm, const void *send, size_t bytes, void *recv, int root);
bs_status bs_comm_barrier(bs_comm *comm);

/* Everybody's bytes to everybody, and rank 0's message to all, without waiting: for what goes on beside the steps. all
 * (size × bytes) gets every rank's `mine` in rank order; message (message_bytes, the same on all ranks; may be 0) is read
 * on rank 0 and written on the others. On a communicator of its own; one is open at most; ranks may begin and test at
 * different times. The memory must stay untouched until *done. Not blocking; begun by every rank, in the same order. */
bs_status bs_comm_exchange_begin(bs_comm *comm, const void *mine, void *all, size_t bytes, void *message,
                                 size_t message_bytes);
/* *done: all have begun it and the bytes are here; then it is no longer open. */
bs_status bs_comm_exchange_test(bs_comm *comm, bool *done);
/* The batch system's name for this job and how often it was restarted, "1234.0"; "" without one. */
const char *bs_comm_job(const bs_comm *comm);
/* When the batch system will end this job, unix time; 0: it does not say. */
double bs_comm_job_end_s(const bs_comm *comm);

/* Device collectives, stream-ordered. f32. In place for the reduces; the same bits on every rank of the
 * group, and with nccl the same in a graph and out of it. With mpi on a GPU they wait for what is on the
 * stream, and another stream may follow only when the one before has nothing left to do. */
bs_status bs_comm_allreduce_sum(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n);
bs_status bs_comm_allreduce_max(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n);
/* recv: group size × bytes in group-rank order; send may lie in its place inside recv. */
bs_status bs_comm_allgather(bs_comm *comm, bs_group group, bs_stream *stream, const void *send, void *recv,
                            size_t bytes);

/* A device collective that was asked for, to be carried out later and as often as wanted, with what the memory it names
 * then holds. */
typedef struct bs_collective {
    enum { BS_COLLECTIVE_SUM, BS_COLLECTIVE_MAX, BS_COLLECTIVE_GATHER } kind;
    bs_group group;
    const void *send; /* of a gather; bytes each rank */
    void *recv;       /* of a gather, or the data of a reduce; n floats */
    size_t bytes, n;
    int layer; /* where this rank was (bs_comm_progress) when it was asked for */
    bs_phase phase;
} bs_collective;
/* From now on the device collectives of groups of two or more are handed to `recorder` and not carried out: what stands
 * between them can be recorded as graphs where the transport itself cannot (bs_comm_capturable). NULL: no longer. */
typedef bs_status bs_collective_recorder(void *context, const bs_collective *collective);
void bs_comm_set_recorder(bs_comm *comm, bs_collective_recorder *recorder, void *context);
/* Carries one out. Collective. */
bs_status bs_comm_run_collective(bs_comm *comm, bs_stream *stream, const bs_collective *collective);

/* Whether small ones (32 KiB a rank) go through memory that the ranks share, as they do where all of 16 at most
 * are on one machine, or all through MPI. For tests and benches. The same on all ranks. */
void bs_comm_set_shared(bs_comm *comm, bool on);

/* ---- watchdog ---------------------------------------------------------------------------------------------
 */

/* Starts a thread that ends the job when this rank has made no progress in a step for timeout_s (7 by
 * default), or when another rank of this machine has been stopped that long: one rank of the machine names
 * the rank that is to blame, its step, layer and phase, then all abort. Collective (ranks of a machine share
 * a small window through which each sees where the others are). */
bs_status bs_comm_watchdog_start(bs_comm *comm, double timeout_s);
/* Says where this rank is: called as each phase of each layer begins. Cheap (a few stores). Arms the
 * watchdog. */
void bs_comm_progress(bs_comm *comm, int64_t step, int layer, bs_phase phase);
/* Disarms it: between steps, when waiting for work is legal. */
void bs_comm_progress_idle(bs_comm *comm);

#endif
