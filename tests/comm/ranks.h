/* ranks.h: what programs of tests/comm share: ranks on CPUs or on GPUs, over the transport that the command line
 * names, and buffers of that device.
 *
 * PROGRAM [cpu|gpu [auto|mpi|nccl]]; "gpus" says how many this process sees and ends, with 77 for none.
 */
#ifndef BS_TESTS_RANKS_H
#define BS_TESTS_RANKS_H

#include "comm/comm.h"
#include "tests/comm/check.h"

#include <string.h>

static bs_comm *comm;
static bs_device *device;
static bs_stream *stream;
static bs_transport transport;

static inline void ranks_begin(int argc, char **argv)
{
    const bool gpu = argc > 1 && strcmp(argv[1], "gpu") == 0;
    const int n_gpus = bs_device_count_gpus();
    if (argc > 1 && strcmp(argv[1], "gpus") == 0) {
        printf("%d GPUs\n", n_gpus);
        exit(n_gpus > 0 ? 0 : 77);
    }
    if (argc > 2) CHECK(bs_transport_parse(argv[2], &transport) == BS_STATUS_OK);
    CHECK(bs_comm_init(&argc, &argv, &comm) == BS_STATUS_OK);
    CHECK(!gpu || n_gpus > 0);
    const bs_device_config config = {.kind = gpu ? BS_DEVICE_CUDA : BS_DEVICE_CPU,
                                     .ordinal = gpu ? bs_comm_local_rank(comm) % n_gpus : 0,
                                     .n_threads = 1};
    CHECK(bs_device_open(&config, &device) == BS_STATUS_OK);
    CHECK(bs_stream_create(device, &stream) == BS_STATUS_OK);
}

static inline void ranks_end(void)
{
    bs_stream_destroy(stream);
    bs_comm_leave_device(comm);
    bs_device_close(device);
    bs_comm_finalize(comm);
}

/* The grid of so many head shards; the first call also opens the transport. */
static inline void ranks_set_grid(int heads)
{
    static bool open;
    char text[32];
    bs_grid grid;
    const int size = bs_comm_size(comm);
    snprintf(text, sizeof text, "%dx%d", heads, size / heads);
    CHECK(bs_grid_choose(bs_comm_rank(comm), size, heads, text, &grid) == BS_STATUS_OK);
    CHECK(bs_comm_agree(comm, bs_comm_set_grid(comm, &grid)) == BS_STATUS_OK);
    if (!open) CHECK(bs_comm_agree(comm, bs_comm_use_device(comm, device, transport)) == BS_STATUS_OK);
    open = true;
    if (transport == BS_TRANSPORT_NCCL && size > 1) CHECK(strcmp(bs_comm_transport(comm), "nccl") == 0);
}

static inline void *put(bs_buffer *buffer, const void *data, size_t bytes)
{
    CHECK(bs_copy_to_device(stream, bs_buffer_at(buffer, 0), data, bytes) == BS_STATUS_OK);
    CHECK(bs_stream_sync(stream) == BS_STATUS_OK);
    return bs_buffer_at(buffer, 0);
}

static inline void take(void *data, const bs_buffer *buffer, size_t bytes)
{
    CHECK(bs_copy_to_host(stream, data, bs_buffer_at(buffer, 0), bytes) == BS_STATUS_OK);
    CHECK(bs_stream_sync(stream) == BS_STATUS_OK);
}

static inline bs_buffer *make_buffer(size_t bytes)
{
    bs_buffer *buffer;
    CHECK(bs_buffer_alloc(device, bytes, "test", &buffer) == BS_STATUS_OK);
    return buffer;
}

#endif
