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

/* Where a rank works, as all others learn it. */
typedef struct place {
    int32_t is_gpu, nccl_version;
    uint8_t uuid[16];
    char why[104]; /* there is no NCCL */
} place;

static place my_place(const bs_device *device)
{
    const bs_device_info *info = bs_device_get_info(device);
    place mine = {.is_gpu = info->kind == BS_DEVICE_CUDA};
    memcpy(mine.uuid, info->uuid, sizeof mine.uuid);
#ifdef BS_HAVE_NCCL
    if (mine.is_gpu) mine.nccl_version = bs_nccl_version(mine.why, sizeof mine.why);
#else
    snprintf(mine.why, sizeof mine.why, "this build has no NCCL");
#endif
    return mine;
}

/* What the places forbid, as the first rank that is in the way (and, sharing its GPU, the second). */
typedef struct verdict {
    int on_cpu, without, other_version, sharer, shared; /* −1: none */
} verdict;

static verdict judge(const place *places, int n)
{
    verdict v = {-1, -1, -1, -1, -1};
    for (int i = n - 1; i >= 0; i--) {
        if (!places[i].is_gpu) v.on_cpu = i;
        if (places[i].nccl_version == 0) v.without = i;
        if (places[i].nccl_version != places[0].nccl_version) v.other_version = i;
        for (int j = 0; j < i; j++)
            if (places[i].is_gpu && places[j].is_gpu && memcmp(places[i].uuid, places[j].uuid, 16) == 0) {
                v.sharer = i;
                v.shared = j;
            }
    }
    return v;
}

/* One line on why not, or OK. Of GPUs that ranks share NCCL itself is the judge where it was asked for. */
static bs_status refuse(const place *places, const verdict *v, bool asked)
{
    if (v->on_cpu >= 0) return bs_fail(BS_STATUS_USAGE, "--transport nccl: rank %d has no GPU", v->on_cpu);
    if (v->without >= 0)
        return bs_fail(BS_STATUS_UNSUPPORTED, "no NCCL on rank %d: %s", v->without, places[v->without].why);
    if (v->other_version >= 0)
        return bs_fail(BS_STATUS_UNSUPPORTED, "NCCL is version %d on rank 0, %d on rank %d",
                       places[0].nccl_version, places[v->other_version].nccl_version, v->other_version);
    if (v->sharer >= 0 && !asked)
        return bs_fail(BS_STATUS_UNSUPPORTED, "ranks %d and %d share a GPU", v->shared, v->sharer);
    return BS_STATUS_OK;
}

static bs_status learn_places(bs_comm *comm, const bs_device *device, place *places)
{
    const place mine = my_place(device);
    BS_TRY(bs_comm_gather_host(comm, &mine, sizeof mine, places, 0));
    return bs_comm_bcast_host(comm, places, (size_t)comm->size * sizeof *places, 0);
}

static bs_status open_nccl(bs_comm *comm, bs_device *device, const verdict *v)
{
#ifdef BS_HAVE_NCCL
    bs_status status = bs_nccl_open(comm, device);
    if (status == BS_STATUS_OK || !*bs_error_message()) return status;
    char line[400];
    snprintf(line, sizeof line, "%s", bs_error_message());
    bs_error_clear();
    if (v->sharer < 0) return bs_fail(status, "%s (--transport mpi does without NCCL)", line);
    return bs_fail(status,
                   "--transport nccl: ranks %d and %d share a GPU: %s (take mpi, or see \"Several ranks on "
                   "one GPU\" in docs/install-cluster.md)",
                   v->shared, v->sharer, line);
#else
    return bs_fail(BS_STATUS_INTERNAL, "transport: no NCCL to open");
#endif
}

/* auto: the kept line becomes a remark, where there are GPUs at all. */
static bs_status do_without(const verdict *v)
{
    if (v->on_cpu < 0) bs_log_info("transport mpi, through host memory: %s", bs_error_message());
    bs_error_clear();
    return BS_STATUS_OK;
}

bs_status bs_comm_use_device(bs_comm *comm, bs_device *device, bs_transport choice)
{
    bs_comm_leave_device(comm);
    if (comm->size == 1 || choice == BS_TRANSPORT_MPI) return BS_STATUS_OK;
    place *places = calloc((size_t)comm->size, sizeof *places);
    if (!places) return bs_fail(BS_STATUS_NOMEM, "transport: no memory for %d ranks", comm->size);
    bs_status status = learn_places(comm, device, places);
    if (status == BS_STATUS_OK) {
        const verdict v = judge(places, comm->size);
        const bool asked = choice == BS_TRANSPORT_NCCL;
        status = refuse(places, &v, asked);
        if (status == BS_STATUS_OK) status = open_nccl(comm, device, &v);
        else if (!asked) status = do_without(&v);
    }
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
