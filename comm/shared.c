/* shared.c: small collectives of host memory between ranks of one machine, through memory that they share.
 *
 * A decode step of 30 layers takes 120 collectives of a few kilobytes, and MPI's cost 5 µs each on two cores,
 * 17 with twice as many ranks: messages, matching, a progress engine. Here a rank copies its data to a place of
 * its own, says so in a counter, watches the others' counters and reads their places: 1.5 and 8 µs. Large ones
 * (prefill) stay with MPI, whose copies overlap better, as does a job whose ranks do not all share a machine.
 *
 * Places: each rank has two for each group, used in turns. Who writes the second collective after this one
 * has seen all ranks arrive at the one between, so all have read this one's: no second wait is needed.
 *
 * Sums: every rank adds all places in rank order, so all get the same bits.
 *
 * Waiting: watch for about as long as a collective takes, then yield for ever. A dead rank is the launcher's to
 * notice and a stopped one the watchdog's (comm/watchdog.c), as in MPI's own busy waits.
 */
#include "comm/comm_private.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_RANKS = 16,
    PLACE_FLOATS = 8 * 1024,
    SPINS = 200, /* about 8 µs; one where ranks outnumber cores */
    N_GROUPS = 2,
};

struct bs_shared_rank {
    _Alignas(64) atomic_uint_fast64_t arrived[N_GROUPS]; /* collectives this rank has put its data in for */
    _Alignas(64) float place[N_GROUPS][2][PLACE_FLOATS];
};

bs_status bs_shared_open(bs_comm *comm)
{
    bs_shared *s = &comm->shared;
    if (comm->size == 1 || comm->local_size != comm->size || comm->size > MAX_RANKS) return BS_STATUS_OK;
    void *base = NULL;
    MPI_Aint bytes = comm->local_rank == 0 ? (MPI_Aint)((size_t)comm->size * sizeof *s->rank + 64) : 0;
    BS_TRY(
        bs_comm_mpi_status(MPI_Win_allocate_shared(bytes, 1, MPI_INFO_NULL, comm->local, &base, &s->window),
                           "MPI_Win_allocate_shared"));
    int unit;
    BS_TRY(
        bs_comm_mpi_status(MPI_Win_shared_query(s->window, 0, &bytes, &unit, &base), "MPI_Win_shared_query"));
    s->rank = (bs_shared_rank *)(((uintptr_t)base + 63) / 64 * 64);
    for (int group = 0; group < N_GROUPS; group++) s->rank[comm->rank].arrived[group] = 0;
    s->spins = comm->size <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 1;
    s->on = true;
    return bs_comm_mpi_status(MPI_Barrier(comm->local), "MPI_Barrier");
}

void bs_shared_close(bs_comm *comm)
{
    if (comm->shared.rank) MPI_Win_free(&comm->shared.window);
    comm->shared = (bs_shared){.on = false};
}

/* Members of the group change: its counters begin again, when nobody waits for one any more. */
bs_status bs_shared_reset(bs_comm *comm, bs_group group)
{
    if (!comm->shared.rank) return BS_STATUS_OK;
    BS_TRY(bs_comm_mpi_status(MPI_Barrier(comm->local), "MPI_Barrier"));
    comm->shared.rank[comm->rank].arrived[group] = 0;
    return bs_comm_mpi_status(MPI_Barrier(comm->local), "MPI_Barrier");
}

/* ---- one collective ---- */

/* World rank of a group's member. */
static int member(const bs_comm *comm, bs_group group, int i)
{
    return group == BS_GROUP_SEQ ? comm->grid.head_shard * comm->grid.seq + i : i;
}

/* My data are in place: tells the others, and waits for theirs. Returns which of the two places that was. */
static int arrive(bs_comm *comm, bs_group group)
{
    bs_shared_rank *ranks = comm->shared.rank;
    const uint64_t n = atomic_load_explicit(&ranks[comm->rank].arrived[group], memory_order_relaxed) + 1;
    atomic_store_explicit(&ranks[comm->rank].arrived[group], n, memory_order_release);
    for (int i = 0; i < bs_comm_group_size(comm, group); i++) {
        atomic_uint_fast64_t *other = &ranks[member(comm, group, i)].arrived[group];
        for (int turn = 0; atomic_load_explicit(other, memory_order_acquire) < n; turn += turn < SPINS) {
            if (turn >= comm->shared.spins) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }
    return (int)(n & 1);
}

/* Where the next collective's data go, or where those of the arrived one are. */
static int next_place(const bs_comm *comm, bs_group group)
{
    return (int)((comm->shared.rank[comm->rank].arrived[group] + 1) & 1);
}

static float *place_of(bs_comm *comm, bs_group group, int i, int place)
{
    return comm->shared.rank[member(comm, group, i)].place[group][place];
}

bool bs_shared_fits(const bs_comm *comm, size_t bytes)
{
    return comm->shared.on && bytes <= PLACE_FLOATS * sizeof(float);
}

void bs_shared_reduce(bs_comm *comm, bs_group group, float *data, size_t n, bool max)
{
    const int size = bs_comm_group_size(comm, group), rank = bs_comm_group_rank(comm, group);
    memcpy(place_of(comm, group, rank, next_place(comm, group)), data, n * sizeof *data);
    const int place = arrive(comm, group);
    memcpy(data, place_of(comm, group, 0, place), n * sizeof *data);
    for (int i = 1; i < size; i++) {
        const float *in = place_of(comm, group, i, place);
        if (max)
            for (size_t k = 0; k < n; k++) data[k] = in[k] > data[k] ? in[k] : data[k];
        else
            for (size_t k = 0; k < n; k++) data[k] += in[k];
    }
}

void bs_shared_gather(bs_comm *comm, bs_group group, const void *send, void *recv, size_t bytes)
{
    const int size = bs_comm_group_size(comm, group), rank = bs_comm_group_rank(comm, group);
    memcpy(place_of(comm, group, rank, next_place(comm, group)), send, bytes);
    const int place = arrive(comm, group);
    for (int i = 0; i < size; i++)
        memcpy((char *)recv + (size_t)i * bytes, place_of(comm, group, i, place), bytes);
}
