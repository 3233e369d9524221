/* test_comm.c: collectives on every grid of the ranks it is run on, exact where sums are exact; agreeing on
 * errors. */
#include "comm/comm.h"
#include "tests/comm/check.h"

#include <string.h>

static bs_comm *comm;
static bs_stream *stream;

/* Every sum of these is exact in f32, so the result must be. */
static float value(int rank, size_t i)
{
    return (float)((rank + 1) * 3 + (int)(i % 97) * 8);
}

static void fill(float *data, size_t n)
{
    for (size_t i = 0; i < n; i++) data[i] = value(bs_comm_rank(comm), i);
}

/* Ranks of a group as the grid defines them. */
static int member(bs_group group, int i)
{
    const bs_grid *grid = bs_comm_grid(comm);
    return group == BS_GROUP_ALL ? i : grid->head_shard * grid->seq + i;
}

static void test_reduce(bs_group group, size_t n)
{
    float *data = malloc((n + 1) * sizeof *data);
    int size = bs_comm_group_size(comm, group);
    fill(data, n);
    data[n] = -77;
    CHECK(bs_comm_allreduce_sum(comm, group, stream, data, n) == BS_STATUS_OK);
    for (size_t i = 0; i < n; i++) {
        float want = 0;
        for (int r = 0; r < size; r++) want += value(member(group, r), i);
        CHECK(data[i] == want);
    }
    fill(data, n);
    CHECK(bs_comm_allreduce_max(comm, group, stream, data, n) == BS_STATUS_OK);
    for (size_t i = 0; i < n; i++) CHECK(data[i] == value(member(group, size - 1), i));
    CHECK(data[n] == -77);
    free(data);
}

/* Sums that do round must round alike on every rank, or ranks would drift apart. */
static void test_same_bits(size_t n)
{
    float *data = malloc(n * sizeof *data), *first = malloc(n * sizeof *first);
    for (size_t i = 0; i < n; i++)
        data[i] = 1.0f / (float)(1 + (i * 7919 + (size_t)bs_comm_rank(comm) * 104729) % 1009);
    CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_ALL, stream, data, n) == BS_STATUS_OK);
    memcpy(first, data, n * sizeof *data);
    CHECK(bs_comm_bcast_host(comm, first, n * sizeof *first, 0) == BS_STATUS_OK);
    CHECK(memcmp(first, data, n * sizeof *data) == 0);
    free(data);
    free(first);
}

static void test_gather(bs_group group, size_t n, bool in_place)
{
    int size = bs_comm_group_size(comm, group), rank = bs_comm_group_rank(comm, group);
    float *all = malloc((size_t)size * n * sizeof *all + 4), *mine = malloc(n * sizeof *mine + 4);
    for (size_t i = 0; i < (size_t)size * n; i++) all[i] = -77;
    float *send = in_place ? all + (size_t)rank * n : mine;
    fill(send, n);
    CHECK(bs_comm_allgather(comm, group, stream, send, all, n * sizeof *all) == BS_STATUS_OK);
    for (int r = 0; r < size; r++)
        for (size_t i = 0; i < n; i++) CHECK(all[(size_t)r * n + i] == value(member(group, r), i));
    free(all);
    free(mine);
}

static bs_collective kept[3];
static int n_kept;

static bs_status keep(void *context, const bs_collective *collective)
{
    CHECK(context == kept && n_kept < 3);
    kept[n_kept++] = *collective;
    return BS_STATUS_OK;
}

/* Collectives that are recorded are carried out later, with what the memory holds then, as often as wanted. */
static void test_recorded(bs_group group)
{
    enum { N = 40 };
    int size = bs_comm_group_size(comm, group);
    float sum[N], most[N], mine[N], *all = calloc((size_t)size * N, sizeof *all);
    n_kept = 0;
    memset(sum, 0, sizeof sum);
    memset(most, 0, sizeof most);
    memset(mine, 0, sizeof mine);
    bs_comm_progress(comm, 5, 3, BS_PHASE_MERGE);
    bs_comm_set_recorder(comm, keep, kept);
    CHECK(bs_comm_allreduce_sum(comm, group, stream, sum, N) == BS_STATUS_OK);
    CHECK(bs_comm_allreduce_max(comm, group, stream, most, N) == BS_STATUS_OK);
    CHECK(bs_comm_allgather(comm, group, stream, mine, all, sizeof mine) == BS_STATUS_OK);
    bs_comm_set_recorder(comm, NULL, NULL);
    bs_comm_progress_idle(comm);
    CHECK(n_kept == (size > 1 ? 3 : 0));
    for (int round = 0; round < 2 && n_kept > 0; round++) {
        fill(sum, N);
        fill(most, N);
        fill(mine, N);
        mine[0] += (float)round;
        for (int i = 0; i < 3; i++) {
            CHECK(kept[i].layer == 3 && kept[i].phase == BS_PHASE_MERGE);
            CHECK(bs_comm_run_collective(comm, stream, &kept[i]) == BS_STATUS_OK);
        }
        float want = 0;
        for (int r = 0; r < size; r++) want += value(member(group, r), 7);
        CHECK(sum[7] == want && most[7] == value(member(group, size - 1), 7));
        for (int r = 0; r < size; r++) CHECK(all[r * N] == value(member(group, r), 0) + (float)round);
    }
    free(all);
}

static void test_host_messages(void)
{
    int rank = bs_comm_rank(comm), size = bs_comm_size(comm);
    char plan[1001], all[64 * 8];
    memset(plan, rank == 0 ? 42 : 0, sizeof plan);
    CHECK(bs_comm_bcast_begin(comm, plan, sizeof plan, 0) == BS_STATUS_OK);
    CHECK(bs_comm_bcast_begin(comm, plan, sizeof plan, 0) == BS_STATUS_INTERNAL); /* one at a time */
    bs_error_clear();
    test_reduce(BS_GROUP_ALL, 100); /* others may run while the plan travels */
    CHECK(bs_comm_bcast_end(comm) == BS_STATUS_OK);
    for (size_t i = 0; i < sizeof plan; i++) CHECK(plan[i] == 42);

    CHECK(size <= 64);
    int64_t mine = 100 + rank;
    CHECK(bs_comm_gather_host(comm, &mine, sizeof mine, all, 0) == BS_STATUS_OK);
    for (int r = 0; rank == 0 && r < size; r++) {
        int64_t got;
        memcpy(&got, all + 8 * r, 8);
        CHECK(got == 100 + r);
    }
}

/* Every subset of failing ranks gives all ranks the status of the lowest. */
static void test_agree(void)
{
    int rank = bs_comm_rank(comm), size = bs_comm_size(comm);
    CHECK(bs_comm_agree(comm, BS_STATUS_OK) == BS_STATUS_OK);
    for (int first = 0; first < size; first++) {
        bs_status mine = rank < first ? BS_STATUS_OK : rank == first ? BS_STATUS_FORMAT : BS_STATUS_IO;
        if (mine != BS_STATUS_OK) bs_fail(mine, "expected in this test: rank %d", rank);
        CHECK(bs_comm_agree(comm, mine) == BS_STATUS_FORMAT);
        CHECK(bs_error_message()[0] == 0);
    }
}

static void test_grid_choice(void)
{
    bs_grid grid;
    struct {
        int size, kv_heads, heads, seq;
    } cases[] = {{1, 3, 1, 1},  {4, 3, 1, 4}, {3, 3, 3, 1},  {6, 3, 3, 2}, {8, 8, 8, 1},
                 {12, 8, 4, 3}, {7, 8, 1, 7}, {16, 8, 8, 2}, {5, 1, 1, 5}, {6, 4, 2, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int rank = 0; rank < cases[i].size; rank++) {
            CHECK(bs_grid_choose(rank, cases[i].size, cases[i].kv_heads, NULL, &grid) == BS_STATUS_OK);
            CHECK(grid.heads == cases[i].heads && grid.seq == cases[i].seq);
            CHECK(grid.head_shard * grid.seq + grid.seq_shard == rank && grid.seq_shard < grid.seq);
        }
    const char *bad[] = {"2", "2x", "x2", "0x4", "2x4x1", "3x2", "-1x-6", "4x1", "2x3 "};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(bs_grid_choose(0, 6, 8, bad[i], &grid) == BS_STATUS_USAGE || i == 8);
        bs_error_clear();
    }
    CHECK(bs_grid_choose(0, 6, 8, "2x3", &grid) == BS_STATUS_OK && grid.heads == 2 && grid.seq == 3);
    CHECK(bs_grid_choose(0, 6, 8, "3x2", &grid) == BS_STATUS_USAGE); /* 3 does not divide 8 KV heads */
    bs_error_clear();
}

static void test_collectives(void)
{
    size_t sizes[] = {0, 1, 2, 127, 4099, 8192, 8193, 300001}; /* up to 8192 floats through shared memory */
    for (int group = BS_GROUP_ALL; group <= BS_GROUP_SEQ; group++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            test_reduce((bs_group)group, sizes[i]);
            test_gather((bs_group)group, sizes[i], false);
            test_gather((bs_group)group, sizes[i], true);
        }
    test_recorded(BS_GROUP_ALL);
    test_recorded(BS_GROUP_SEQ);
    test_same_bits(17);
    test_same_bits(5000);
    test_same_bits(300007);
}

int main(int argc, char **argv)
{
    bs_device *device;
    CHECK(bs_comm_init(&argc, &argv, &comm) == BS_STATUS_OK);
    CHECK(bs_device_open(&(bs_device_config){.n_threads = 1}, &device) == BS_STATUS_OK);
    CHECK(bs_stream_create(device, &stream) == BS_STATUS_OK);
    test_grid_choice();
    int size = bs_comm_size(comm);
    for (int heads = 1; heads <= size; heads++) {
        if (size % heads) continue;
        char text[32];
        bs_grid grid;
        snprintf(text, sizeof text, "%dx%d", heads, size / heads);
        CHECK(bs_grid_choose(bs_comm_rank(comm), size, heads, text, &grid) == BS_STATUS_OK);
        CHECK(bs_comm_set_grid(comm, &grid) == BS_STATUS_OK);
        for (int shared = 0; shared <= 1; shared++) {
            bs_comm_set_shared(comm, shared);
            test_collectives();
        }
    }
    test_host_messages();
    test_agree();
    CHECK(bs_comm_barrier(comm) == BS_STATUS_OK);
    bs_stream_destroy(stream);
    bs_device_close(device);
    bs_comm_finalize(comm);
    return 0;
}
