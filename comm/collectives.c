/* collectives.c: all-reduce and all-gather of device buffers over `self`, shared memory (shared.c) and MPI; NCCL's
 * are nccl.c's.
 *
 * On a CPU a device address is host memory and MPI works on it directly. On a GPU data goes through a host
 * copy: never a device pointer to MPI (Debian's OpenMPI has no CUDA support, and MPI beside NCCL on one
 * device can deadlock). OpenMPI's all-reduce algorithms (recursive doubling, ring) compute each element's sum
 * once or by the same tree on every rank, and IEEE addition commutes, so all ranks get the same bits;
 * tests/comm holds it to that.
 */
#include "comm/comm_private.h"

#include <stdlib.h>
#include <string.h>

static MPI_Comm group_comm(const bs_comm *comm, bs_group group)
{
    return group == BS_GROUP_SEQ ? comm->seq : comm->all;
}

static bool on_gpu(const bs_stream *stream)
{
    return bs_device_get_info(bs_stream_device(stream))->kind != BS_DEVICE_CPU;
}

/* Page-locked memory that grows to twice and more of what is asked for: a decode step's sizes are met once. What is
 * still on its way out of it to the device is ahead, on the stream, of whatever comes into it next. */
static bs_status stage(bs_comm *comm, bs_stream *stream, size_t bytes)
{
    size_t larger = 1 << 20;
    void *memory;
    if (bytes <= comm->staging_bytes) return BS_STATUS_OK;
    while (larger < bytes) larger *= 2;
    BS_TRY(bs_stream_sync(stream));
    BS_TRY(bs_host_alloc(bs_stream_device(stream), larger, "host copy for collectives", &memory));
    bs_comm_free_staging(comm);
    comm->staging = memory;
    comm->staging_bytes = larger;
    comm->staging_device = bs_stream_device(stream);
    return BS_STATUS_OK;
}

void bs_comm_free_staging(bs_comm *comm)
{
    if (comm->staging) bs_host_free(comm->staging_device, comm->staging);
    comm->staging = NULL;
    comm->staging_bytes = 0;
}

static bs_status reduce_host(bs_comm *comm, bs_group group, float *data, size_t n, MPI_Op op)
{
    if (bs_shared_fits(comm, n * sizeof *data)) {
        bs_shared_reduce(comm, group, data, n, op == MPI_MAX);
        return BS_STATUS_OK;
    }
    const size_t piece = (size_t)1 << 28; /* MPI counts in int */
    for (size_t at = 0; at < n; at += piece) {
        int count = (int)(n - at < piece ? n - at : piece);
        BS_TRY(bs_comm_mpi_status(
            MPI_Allreduce(MPI_IN_PLACE, data + at, count, MPI_FLOAT, op, group_comm(comm, group)),
            "MPI_Allreduce"));
    }
    return BS_STATUS_OK;
}

static bs_status record(bs_comm *comm, bs_collective collective)
{
    collective.layer = comm->layer;
    collective.phase = comm->phase;
    return comm->recorder(comm->recorder_context, &collective);
}

static bs_status all_reduce(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n,
                            MPI_Op op)
{
    if (bs_comm_group_size(comm, group) == 1 || n == 0) return BS_STATUS_OK;
    if (comm->recorder)
        return record(comm, (bs_collective){.kind = op == MPI_MAX ? BS_COLLECTIVE_MAX : BS_COLLECTIVE_SUM,
                                            .group = group,
                                            .recv = data,
                                            .n = n});
    if (comm->device_comm) return comm->device_comm->reduce(comm, group, stream, data, n, op == MPI_MAX);
    if (!on_gpu(stream)) return reduce_host(comm, group, data, n, op);
    BS_TRY(stage(comm, stream, n * sizeof *data));
    BS_TRY(bs_copy_to_host(stream, comm->staging, data, n * sizeof *data));
    BS_TRY(bs_stream_sync(stream));
    BS_TRY(reduce_host(comm, group, comm->staging, n, op));
    return bs_copy_to_device(stream, data, comm->staging, n * sizeof *data);
}

bs_status bs_comm_allreduce_sum(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n)
{
    return all_reduce(comm, group, stream, data, n, MPI_SUM);
}

bs_status bs_comm_allreduce_max(bs_comm *comm, bs_group group, bs_stream *stream, float *data, size_t n)
{
    return all_reduce(comm, group, stream, data, n, MPI_MAX);
}

static bs_status gather_host(bs_comm *comm, bs_group which, const void *send, void *recv, size_t bytes)
{
    if (bs_shared_fits(comm, bytes)) {
        bs_shared_gather(comm, which, send, recv, bytes);
        return BS_STATUS_OK;
    }
    const MPI_Comm group = group_comm(comm, which);
    const int rank = bs_comm_group_rank(comm, which);
    bool in_place = send == (char *)recv + (size_t)rank * bytes;
    /* Whole floats are what travels here; counting in them keeps 4× as much within an int. */
    MPI_Datatype type = bytes % sizeof(float) == 0 ? MPI_FLOAT : MPI_BYTE;
    int count = (int)(type == MPI_FLOAT ? bytes / sizeof(float) : bytes);
    return bs_comm_mpi_status(
        in_place ? MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, recv, count, type, group)
                 : MPI_Allgather(send, count, type, recv, count, type, group),
        "MPI_Allgather");
}

bs_status bs_comm_allgather(bs_comm *comm, bs_group group, bs_stream *stream, const void *send, void *recv,
                            size_t bytes)
{
    int n = bs_comm_group_size(comm, group), rank = bs_comm_group_rank(comm, group);
    if (bytes > (size_t)1 << 30)
        return bs_fail(BS_STATUS_RANGE, "all-gather of %zu bytes: at most 1 GiB", bytes);
    if (bytes == 0) return BS_STATUS_OK;
    if (n == 1) return send == recv ? BS_STATUS_OK : bs_copy_on_device(stream, recv, send, bytes);
    if (comm->recorder)
        return record(
            comm,
            (bs_collective){
                .kind = BS_COLLECTIVE_GATHER, .group = group, .send = send, .recv = recv, .bytes = bytes});
    if (comm->device_comm) return comm->device_comm->gather(comm, group, stream, send, recv, bytes);
    if (!on_gpu(stream)) return gather_host(comm, group, send, recv, bytes);
    BS_TRY(stage(comm, stream, (size_t)n * bytes));
    char *mine = (char *)comm->staging + (size_t)rank * bytes;
    BS_TRY(bs_copy_to_host(stream, mine, send, bytes));
    BS_TRY(bs_stream_sync(stream));
    BS_TRY(gather_host(comm, group, mine, comm->staging, bytes));
    return bs_copy_to_device(stream, recv, comm->staging, (size_t)n * bytes);
}

void bs_comm_set_recorder(bs_comm *comm, bs_collective_recorder *recorder, void *context)
{
    comm->recorder = recorder;
    comm->recorder_context = context;
}

bs_status bs_comm_run_collective(bs_comm *comm, bs_stream *stream, const bs_collective *c)
{
    switch (c->kind) {
    case BS_COLLECTIVE_SUM: return bs_comm_allreduce_sum(comm, c->group, stream, c->recv, c->n);
    case BS_COLLECTIVE_MAX: return bs_comm_allreduce_max(comm, c->group, stream, c->recv, c->n);
    case BS_COLLECTIVE_GATHER: return bs_comm_allgather(comm, c->group, stream, c->send, c->recv, c->bytes);
    }
    return bs_fail(BS_STATUS_INTERNAL, "collective of kind %d", (int)c->kind);
}
