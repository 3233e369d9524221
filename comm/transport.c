/* transport.c: what device collectives go through: NCCL where each rank has a GPU to itself, else MPI.
 *
 * A GPU is told by its UUID, which is the same in every process and, of a MIG slice, its own; ordinals are not,
 * where each rank sees one device. All ranks learn all places, so all come to the same choice by themselves.
 */
#include "config.h"

#include "comm/comm_private.h"
#include "src/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"auto", "mpi", "nccl"};

bs_status bs_transport_parse(const char *text, bs_transport *out)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (bs_transport)i;
            return BS_STATUS_OK;
        }
    return bs_fail(BS_STATUS_USAGE, "--transport %s: must be auto, mpi or nccl", text);
}

const char *bs_comm_transport(const bs_comm *comm)
{
    return comm->size == 1 ? "self" : comm->device_comm ? "nccl" : "mpi";
}

bool bs_comm_capturable(const bs_comm *comm)
{
    return comm->size == 1 || comm->device_comm;
}

static bs_place my_place(const bs_device *device, bool with_nccl)
{
    const bs_device_info *info = bs_device_get_info(device);
    bs_place mine = {.is_gpu = info->kind == BS_DEVICE_CUDA};
    if (!mine.is_gpu) return mine;
    memcpy(mine.uuid, info->uuid, sizeof mine.uuid);
    snprintf(mine.gpu, sizeof mine.gpu, "%.63s", info->name);
#ifdef BS_HAVE_NCCL
    if (with_nccl) mine.nccl_version = bs_nccl_version(mine.why, sizeof mine.why);
#else
    snprintf(mine.why, sizeof mine.why, "this build has no NCCL");
#endif
    return mine;
}

/* The other rank that has the GPU of rank i, the first if several, or −1. */
static int find_sharer(const bs_place *places, int i)
{
    for (int j = 0; j < i; j++)
        if (places[j].is_gpu && memcmp(places[i].uuid, places[j].uuid, sizeof places[i].uuid) == 0) return j;
    return -1;
}

bs_status bs_transport_check_kinds(const bs_place *places, int n)
{
    for (int i = 1; i < n; i++)
        if (strcmp(places[0].gpu, places[i].gpu) != 0)
            return bs_fail(
                BS_STATUS_UNSUPPORTED, "rank 0 is on %s, rank %d on %s: devices of one kind are needed",
                places[0].is_gpu ? places[0].gpu : "a CPU", i, places[i].is_gpu ? places[i].gpu : "a CPU");
    return BS_STATUS_OK;
}

bs_status bs_transport_check_nccl(const bs_place *places, int n)
{
    for (int i = 0; i < n; i++) {
        if (!places[i].is_gpu) return bs_fail(BS_STATUS_USAGE, "--transport nccl: rank %d has no GPU", i);
        if (places[i].nccl_version == 0)
            return bs_fail(BS_STATUS_UNSUPPORTED, "no NCCL on rank %d: %s", i, places[i].why);
        if (places[i].nccl_version != places[0].nccl_version)
            return bs_fail(BS_STATUS_UNSUPPORTED, "NCCL is version %d on rank 0, %d on rank %d",
                           places[0].nccl_version, places[i].nccl_version, i);
    }
    return BS_STATUS_OK;
}

bs_status bs_transport_check_sharing(const bs_place *places, int n)
{
    for (int i = 1; i < n; i++) {
        const int other = places[i].is_gpu ? find_sharer(places, i) : -1;
        if (other >= 0) return bs_fail(BS_STATUS_UNSUPPORTED, "ranks %d and %d share a GPU", other, i);
    }
    return BS_STATUS_OK;
}

static bs_status learn_places(bs_comm *comm, const bs_device *device, bool with_nccl, bs_place *places)
{
    const bs_place mine = my_place(device, with_nccl);
    BS_TRY(bs_comm_gather_host(comm, &mine, sizeof mine, places, 0));
    return bs_comm_bcast_host(comm, places, (size_t)comm->size * sizeof *places, 0);
}

#ifdef BS_HAVE_NCCL
/* The kept line, for a longer one. */
static void take_line(char line[300])
{
    snprintf(line, 300, "%s", bs_error_message());
    bs_error_clear();
}

/* Where ranks share GPUs NCCL itself is the judge, for it may have been told that they are on several hosts. */
static bs_status open_nccl(bs_comm *comm, bs_device *device, const bs_place *places)
{
    char line[300], sharing[300];
    const bs_status status = bs_nccl_open(comm, device);
    if (status == BS_STATUS_OK || !*bs_error_message()) return status;
    take_line(line);
    if (bs_transport_check_sharing(places, comm->size) == BS_STATUS_OK)
        return bs_fail(status, "%s (--transport mpi does without NCCL)", line);
    take_line(sharing);
    return bs_fail(status,
                   "--transport nccl: %s: %s (take mpi, or see \"Several ranks on one GPU\" in "
                   "docs/install-cluster.md)",
                   sharing, line);
}
#else
static bs_status open_nccl(bs_comm *comm, bs_device *device, const bs_place *places)
{
    return bs_fail(BS_STATUS_INTERNAL, "transport: no NCCL to open");
}
#endif

static bs_status choose(bs_comm *comm, bs_device *device, bs_transport choice, const bs_place *places)
{
    BS_TRY(bs_transport_check_kinds(places, comm->size));
    if (choice == BS_TRANSPORT_MPI || (choice == BS_TRANSPORT_AUTO && !places[0].is_gpu)) return BS_STATUS_OK;
    bs_status status = bs_transport_check_nccl(places, comm->size);
    if (status == BS_STATUS_OK && choice == BS_TRANSPORT_AUTO)
        status = bs_transport_check_sharing(places, comm->size);
    if (status == BS_STATUS_OK) return open_nccl(comm, device, places);
    if (choice == BS_TRANSPORT_NCCL) return status;
    bs_log_info("transport mpi, through host memory: %s", bs_error_message());
    bs_error_clear();
    return BS_STATUS_OK;
}

bs_status bs_comm_use_device(bs_comm *comm, bs_device *device, bs_transport choice)
{
    bs_comm_leave_device(comm);
    if (comm->size == 1) return BS_STATUS_OK;
    bs_place *places = calloc((size_t)comm->size, sizeof *places);
    if (!places) return bs_fail(BS_STATUS_NOMEM, "transport: no memory for %d ranks", comm->size);
    bs_status status = learn_places(comm, device, choice != BS_TRANSPORT_MPI, places);
    if (status == BS_STATUS_OK) status = choose(comm, device, choice, places);
    free(places);
    return status;
}

void bs_comm_leave_device(bs_comm *comm)
{
    const bs_device_comm *open = comm->device_comm;
    bs_comm_set_device_comm(comm, NULL);
    if (open) open->close(comm);
    bs_comm_free_staging(comm);
}
