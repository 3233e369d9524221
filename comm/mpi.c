/* mpi.c: start and end of MPI, groups, host messages, failing together.
 *
 * MPI is started only under a launcher. A process run by hand is a single rank without it: MPI_Init as a
 * singleton costs 0.3 s and a helper process with OpenMPI, and would make `bitshard generate` depend on a
 * working MPI set-up on a laptop. The launcher is told by the variables that it sets for its children (they
 * are not options of ours). Errors are returned (MPI_ERRORS_RETURN), so that one line of ours names what
 * failed.
 */
#include "comm/comm_private.h"

#include "src/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* OpenMPI, PMIx (srun --mpi=pmix), PMI-1/2 (MPICH, Intel MPI, srun --mpi=pmi2). SLURM_PROCID does not count:
 * a batch script's own shell has it too. */
static bool started_by_launcher(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i])) return true;
    return false;
}

/* Also without a launcher: a batch script's own shell has them. */
static void read_job(bs_comm *comm)
{
    const char *id = getenv("SLURM_JOB_ID"), *restarts = getenv("SLURM_RESTART_COUNT");
    if (id && *id) snprintf(comm->job, sizeof comm->job, "%.40s.%.16s", id, restarts ? restarts : "0");
}

const char *bs_comm_job(const bs_comm *comm)
{
    return comm->job;
}

double bs_comm_job_end_s(const bs_comm *comm)
{
    const char *text = getenv("SLURM_JOB_END_TIME");
    (void)comm;
    return text ? strtod(text, NULL) : 0;
}

bs_status bs_comm_mpi_status(int code, const char *what)
{
    if (code == MPI_SUCCESS) return BS_STATUS_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    MPI_Error_string(code, text, &n);
    return bs_fail(BS_STATUS_COMM, "%s: %s", what, text);
}

static bs_status duplicate(MPI_Comm from, MPI_Comm *out)
{
    BS_TRY(bs_comm_mpi_status(MPI_Comm_dup(from, out), "MPI_Comm_dup"));
    return bs_comm_mpi_status(MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

static bs_status start_mpi(bs_comm *comm, int *argc, char ***argv)
{
    int provided = 0;
    BS_TRY(
        bs_comm_mpi_status(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread"));
    comm->mpi = true;
    /* The watchdog's thread calls MPI only to abort, when nothing can be lost by it; SERIALIZED is enough. */
    if (provided < MPI_THREAD_FUNNELED)
        return bs_fail(BS_STATUS_UNSUPPORTED, "MPI gives thread level %d, FUNNELED is needed", provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &comm->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &comm->size);
    BS_TRY(duplicate(MPI_COMM_WORLD, &comm->all));
    BS_TRY(duplicate(MPI_COMM_WORLD, &comm->host));
    BS_TRY(duplicate(MPI_COMM_WORLD, &comm->plan));
    BS_TRY(duplicate(MPI_COMM_WORLD, &comm->exchange));
    BS_TRY(bs_comm_mpi_status(
        MPI_Comm_split_type(comm->host, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &comm->local),
        "MPI_Comm_split_type"));
    MPI_Comm_rank(comm->local, &comm->local_rank);
    MPI_Comm_size(comm->local, &comm->local_size);
    return bs_shared_open(comm);
}

bs_status bs_comm_init(int *argc, char ***argv, bs_comm **out)
{
    bs_comm *comm = calloc(1, sizeof *comm);
    if (!comm) return bs_fail(BS_STATUS_NOMEM, "communicator: %zu bytes", sizeof *comm);
    comm->size = comm->local_size = 1;
    comm->all = comm->seq = comm->host = comm->plan = comm->exchange = comm->local = MPI_COMM_NULL;
    read_job(comm);
    bs_status status = started_by_launcher() ? start_mpi(comm, argc, argv) : BS_STATUS_OK;
    if (status != BS_STATUS_OK) {
        free(comm);
        return status;
    }
    comm->grid = (bs_grid){
        .rank = comm->rank, .size = comm->size, .heads = 1, .seq = comm->size, .seq_shard = comm->rank};
    bs_log_set_rank(comm->rank, comm->size);
    *out = comm;
    return BS_STATUS_OK;
}

void bs_comm_finalize(bs_comm *comm)
{
    if (!comm) return;
    bs_watchdog_stop(comm);
    bs_comm_leave_device(comm);
    MPI_Comm *all[] = {&comm->all, &comm->seq, &comm->host, &comm->plan, &comm->exchange, &comm->local};
    if (comm->mpi) {
        bs_shared_close(comm);
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            if (*all[i] != MPI_COMM_NULL) MPI_Comm_free(all[i]);
        MPI_Finalize();
    }
    free(comm);
}

void bs_comm_abort(bs_comm *comm, int exit_code)
{
    if (comm && comm->mpi) {
        /* Whoever aborts has said why: what other ranks of the machine see of it is no news. */
        if (comm->watchdog.running) atomic_flag_test_and_set(&comm->watchdog.window->reported);
        /* Another thread is at it already: time for its line to get out and for its abort to end this one. */
        if (atomic_exchange(&comm->ending, true)) nanosleep(&(struct timespec){.tv_sec = 2}, NULL);
        else if (comm->device_comm) comm->device_comm->abort(comm);
        MPI_Abort(MPI_COMM_WORLD, exit_code);
    }
    _exit(exit_code); /* no MPI, or an MPI_Abort that came back */
}

void bs_comm_hold_if_ending(const bs_comm *comm)
{
    while (atomic_load_explicit(&comm->ending, memory_order_acquire)) pause();
}

int bs_comm_rank(const bs_comm *comm)
{
    return comm->rank;
}

int bs_comm_size(const bs_comm *comm)
{
    return comm->size;
}

int bs_comm_local_rank(const bs_comm *comm)
{
    return comm->local_rank;
}

int bs_comm_local_size(const bs_comm *comm)
{
    return comm->local_size;
}

bs_status bs_comm_set_grid(bs_comm *comm, const bs_grid *grid)
{
    if (grid->size != comm->size || grid->rank != comm->rank || grid->heads * grid->seq != comm->size)
        return bs_fail(BS_STATUS_INTERNAL, "grid %dx%d for rank %d of %d does not belong to rank %d of %d",
                       grid->heads, grid->seq, grid->rank, grid->size, comm->rank, comm->size);
    BS_TRY(bs_shared_reset(comm, BS_GROUP_SEQ));
    comm->grid = *grid;
    if (!comm->mpi) return BS_STATUS_OK;
    if (comm->seq != MPI_COMM_NULL) MPI_Comm_free(&comm->seq);
    BS_TRY(bs_comm_mpi_status(MPI_Comm_split(comm->all, grid->head_shard, grid->seq_shard, &comm->seq),
                              "MPI_Comm_split"));
    BS_TRY(
        bs_comm_mpi_status(MPI_Comm_set_errhandler(comm->seq, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    return comm->device_comm ? comm->device_comm->regroup(comm) : BS_STATUS_OK;
}

void bs_comm_set_shared(bs_comm *comm, bool on)
{
    comm->shared.on = on && comm->shared.rank;
}

const bs_grid *bs_comm_grid(const bs_comm *comm)
{
    return &comm->grid;
}

int bs_comm_group_size(const bs_comm *comm, bs_group group)
{
    return group == BS_GROUP_SEQ ? comm->grid.seq : comm->size;
}

int bs_comm_group_rank(const bs_comm *comm, bs_group group)
{
    return group == BS_GROUP_SEQ ? comm->grid.seq_shard : comm->rank;
}

bs_status bs_comm_agree(bs_comm *comm, bs_status mine)
{
    if (comm->size == 1) {
        bs_error_flush();
        return mine;
    }
    /* {lowest failing rank, failures, its status}: two small reductions instead of a gather that grows with
     * N. */
    int failed = mine != BS_STATUS_OK, first = failed ? comm->rank : comm->size, n_failed = 0, told = mine;
    BS_TRY(bs_comm_mpi_status(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, comm->host), "agree"));
    if (first == comm->size) return BS_STATUS_OK;
    BS_TRY(bs_comm_mpi_status(MPI_Allreduce(&failed, &n_failed, 1, MPI_INT, MPI_SUM, comm->host), "agree"));
    BS_TRY(bs_comm_mpi_status(MPI_Bcast(&told, 1, MPI_INT, first, comm->host), "agree"));
    if (comm->rank == first) {
        const char *line = *bs_error_message() ? bs_error_message() : bs_status_text(mine);
        if (n_failed < comm->size) bs_log_error("rank %d: %s", comm->rank, line);
        else bs_log_error("%s", line);
    }
    bs_error_clear();
    return (bs_status)told;
}

bs_status bs_comm_bcast_host(bs_comm *comm, void *data, size_t bytes, int root)
{
    if (comm->size == 1) return BS_STATUS_OK;
    const size_t piece = (size_t)1 << 30; /* MPI counts in int */
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        BS_TRY(bs_comm_mpi_status(MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, root, comm->host),
                                  "MPI_Bcast"));
    }
    return BS_STATUS_OK;
}

bs_status bs_comm_bcast_begin(bs_comm *comm, void *data, size_t bytes, int root)
{
    if (comm->plan_open) return bs_fail(BS_STATUS_INTERNAL, "a broadcast is open already");
    if (bytes > (size_t)1 << 30)
        return bs_fail(BS_STATUS_RANGE, "broadcast of %zu bytes: at most 1 GiB", bytes);
    comm->plan_open = true;
    if (comm->size == 1) return BS_STATUS_OK;
    return bs_comm_mpi_status(MPI_Ibcast(data, (int)bytes, MPI_BYTE, root, comm->plan, &comm->plan_request),
                              "MPI_Ibcast");
}

bs_status bs_comm_bcast_end(bs_comm *comm)
{
    if (!comm->plan_open) return bs_fail(BS_STATUS_INTERNAL, "no broadcast is open");
    comm->plan_open = false;
    if (comm->size == 1) return BS_STATUS_OK;
    return bs_comm_mpi_status(MPI_Wait(&comm->plan_request, MPI_STATUS_IGNORE), "MPI_Wait");
}

bs_status bs_comm_gather_host(bs_comm *comm, const void *send, size_t bytes, void *recv, int root)
{
    if (bytes > (size_t)1 << 30) return bs_fail(BS_STATUS_RANGE, "gather of %zu bytes: at most 1 GiB", bytes);
    if (comm->size == 1) {
        memcpy(recv, send, bytes);
        return BS_STATUS_OK;
    }
    return bs_comm_mpi_status(
        MPI_Gather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, root, comm->host), "MPI_Gather");
}

bs_status bs_comm_barrier(bs_comm *comm)
{
    return comm->size == 1 ? BS_STATUS_OK : bs_comm_mpi_status(MPI_Barrier(comm->host), "MPI_Barrier");
}
