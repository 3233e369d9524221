/* exchange.c: everybody's few bytes to everybody, beside the steps, without waiting.
 *
 * For snapshots: their ranks agree on each phase while decoding goes on. Two non-blocking collectives on a communicator of
 * their own, so that they pair with nothing else whenever a rank comes to begin them. Rejected: letting the thread that
 * writes call MPI, which needs MPI_THREAD_MULTIPLE and competes for the library's lock with the steps.
 */
#include "comm/comm_private.h"

#include <string.h>

bs_status bs_comm_exchange_begin(bs_comm *comm, const void *mine, void *all, size_t bytes, void *message,
                                 size_t message_bytes)
{
    const size_t most = (size_t)1 << 30;
    if (comm->exchange_open) return bs_fail(BS_STATUS_INTERNAL, "an exchange is open already");
    if (bytes > most || message_bytes > most)
        return bs_fail(BS_STATUS_RANGE, "exchange of %zu and %zu bytes: at most 1 GiB", bytes, message_bytes);
    comm->exchange_open = true;
    if (comm->size == 1) {
        memcpy(all, mine, bytes);
        return BS_STATUS_OK;
    }
    BS_TRY(bs_comm_mpi_status(MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE,
                                             comm->exchange, &comm->exchange_request[0]),
                              "MPI_Iallgather"));
    return bs_comm_mpi_status(
        MPI_Ibcast(message, (int)message_bytes, MPI_BYTE, 0, comm->exchange, &comm->exchange_request[1]),
        "MPI_Ibcast");
}

bs_status bs_comm_exchange_test(bs_comm *comm, bool *done)
{
    int flag = 1;
    if (!comm->exchange_open) return bs_fail(BS_STATUS_INTERNAL, "no exchange is open");
    if (comm->size > 1)
        BS_TRY(bs_comm_mpi_status(MPI_Testall(2, comm->exchange_request, &flag, MPI_STATUSES_IGNORE),
                                  "MPI_Testall"));
    if (flag) comm->exchange_open = false;
    *done = flag;
    return BS_STATUS_OK;
}
