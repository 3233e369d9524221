/* test_comm.c: collectives on every grid of the ranks it is run on, exact where sums are exact; agreeing on
 * errors. */
#include "tests/comm/ranks.h"

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
    const size_t bytes = (n + 1) * sizeof(float);
    float *data = malloc(bytes);
    bs_buffer *buffer = make_buffer(bytes);
    int size = bs_comm_group_size(comm, group);
    fill(data, n);
    data[n] = -77;
    CHECK(bs_comm_allreduce_sum(comm, group, stream, put(buffer, data, bytes), n) == BS_STATUS_OK);
    take(data, buffer, bytes);
    for (size_t i = 0; i < n; i++) {
        float want = 0;
        for (int r = 0; r < size; r++) want += value(member(group, r), i);
        CHECK(data[i] == want);
    }
    fill(data, n);
    CHECK(bs_comm_allreduce_max(comm, group, stream, put(buffer, data, bytes), n) == BS_STATUS_OK);
    take(data, buffer, bytes);
    for (size_t i = 0; i < n; i++) CHECK(data[i] == value(member(group, size - 1), i));
    CHECK(data[n] == -77);
    bs_buffer_free(buffer);
    free(data);
}

/* No sum of these is exact. */
static void fill_fractions(float *data, size_t n, int turn)
{
    for (size_t i = 0; i < n; i++)
        data[i] = 1.0f / (float)(1 + (i * 7919 + (size_t)(bs_comm_rank(comm) + 17 * turn) * 104729) % 1009);
}

/* Sums that do round must round alike on every rank, or ranks would drift apart. */
static void test_same_bits(size_t n)
{
    const size_t bytes = n * sizeof(float);
    float *data = malloc(bytes), *first = malloc(bytes);
    bs_buffer *buffer = make_buffer(bytes);
    fill_fractions(data, n, 0);
    CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_ALL, stream, put(buffer, data, bytes), n) == BS_STATUS_OK);
    take(data, buffer, bytes);
    memcpy(first, data, bytes);
    CHECK(bs_comm_bcast_host(comm, first, bytes, 0) == BS_STATUS_OK);
    CHECK(memcmp(first, data, bytes) == 0);
    bs_buffer_free(buffer);
    free(data);
    free(first);
}

static void test_gather(bs_group group, size_t n, bool in_place)
{
    int size = bs_comm_group_size(comm, group), rank = bs_comm_group_rank(comm, group);
    const size_t part = n * sizeof(float), whole = (size_t)size * part;
    float *all = malloc(whole + 4), *mine = malloc(part + 4);
    bs_buffer *to = make_buffer(whole + 4), *from = make_buffer(part + 4);
    for (size_t i = 0; i < (size_t)size * n; i++) all[i] = -77;
    fill(mine, n);
    if (in_place) memcpy(all + (size_t)rank * n, mine, part);
    char *recv = put(to, all, whole);
    const void *send = in_place ? recv + (size_t)rank * part : put(from, mine, part);
    CHECK(bs_comm_allgather(comm, group, stream, send, recv, part) == BS_STATUS_OK);
    take(all, to, whole);
    for (int r = 0; r < size; r++)
        for (size_t i = 0; i < n; i++) CHECK(all[(size_t)r * n + i] == value(member(group, r), i));
    bs_buffer_free(to);
    bs_buffer_free(from);
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
    const int size = bs_comm_group_size(comm, group);
    float sum[N] = {0}, most[N] = {0}, mine[N] = {0}, *all = calloc((size_t)size * N, sizeof *all);
    bs_buffer *b[] = {make_buffer(sizeof sum), make_buffer(sizeof most), make_buffer(sizeof mine),
                      make_buffer((size_t)size * sizeof mine)};
    n_kept = 0;
    bs_comm_progress(comm, 5, 3, BS_PHASE_MERGE);
    bs_comm_set_recorder(comm, keep, kept);
    CHECK(bs_comm_allreduce_sum(comm, group, stream, put(b[0], sum, sizeof sum), N) == BS_STATUS_OK);
    CHECK(bs_comm_allreduce_max(comm, group, stream, put(b[1], most, sizeof most), N) == BS_STATUS_OK);
    CHECK(bs_comm_allgather(comm, group, stream, put(b[2], mine, sizeof mine), bs_buffer_at(b[3], 0),
                            sizeof mine) == BS_STATUS_OK);
    bs_comm_set_recorder(comm, NULL, NULL);
    bs_comm_progress_idle(comm);
    CHECK(n_kept == (size > 1 ? 3 : 0));
    for (int round = 0; round < 2 && n_kept > 0; round++) {
        fill(sum, N);
        fill(most, N);
        fill(mine, N);
        mine[0] += (float)round;
        put(b[0], sum, sizeof sum);
        put(b[1], most, sizeof most);
        put(b[2], mine, sizeof mine);
        for (int i = 0; i < 3; i++) {
            CHECK(kept[i].layer == 3 && kept[i].phase == BS_PHASE_MERGE);
            CHECK(bs_comm_run_collective(comm, stream, &kept[i]) == BS_STATUS_OK);
        }
        take(sum, b[0], sizeof sum);
        take(most, b[1], sizeof most);
        take(all, b[3], (size_t)size * sizeof mine);
        float want = 0;
        for (int r = 0; r < size; r++) want += value(member(group, r), 7);
        CHECK(sum[7] == want && most[7] == value(member(group, size - 1), 7));
        for (int r = 0; r < size; r++) CHECK(all[r * N] == value(member(group, r), 0) + (float)round);
    }
    for (int i = 0; i < 4; i++) bs_buffer_free(b[i]);
    free(all);
}

/* One all-reduce, and one all-gather of the other group, as a step has them. */
static void queue_both(float *sum, void *all, size_t n)
{
    CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_ALL, stream, sum, n) == BS_STATUS_OK);
    CHECK(bs_comm_allgather(comm, BS_GROUP_SEQ, stream, sum, all, n * sizeof *sum) == BS_STATUS_OK);
}

/* What a graph gives is what the same calls give outside of it, to the bit, with contents that change from launch to
 * launch. */
static void test_graph(size_t n)
{
    if (!bs_comm_capturable(comm) || bs_device_get_info(device)->kind == BS_DEVICE_CPU) return;
    const int size = bs_comm_group_size(comm, BS_GROUP_SEQ);
    const size_t bytes = n * sizeof(float), whole = (size_t)size * bytes;
    float *data = malloc(bytes), *eager = malloc(bytes + whole), *replayed = malloc(bytes + whole);
    bs_buffer *sum = make_buffer(bytes), *all = make_buffer(whole);
    bs_graph *graph;
    CHECK(bs_capture_begin(stream) == BS_STATUS_OK);
    queue_both(bs_buffer_at(sum, 0), bs_buffer_at(all, 0), n);
    CHECK(bs_capture_end(stream, &graph) == BS_STATUS_OK);
    for (int turn = 0; turn < 4; turn++) {
        fill_fractions(data, n, turn);
        queue_both(put(sum, data, bytes), bs_buffer_at(all, 0), n);
        take(eager, sum, bytes);
        take(eager + n, all, whole);
        put(sum, data, bytes);
        CHECK(bs_fill_zero(stream, bs_buffer_at(all, 0), whole) == BS_STATUS_OK);
        CHECK(bs_graph_launch(stream, graph) == BS_STATUS_OK);
        take(replayed, sum, bytes);
        take(replayed + n, all, whole);
        CHECK(memcmp(eager, replayed, bytes + whole) == 0);
        for (int r = 0; r < size; r++) CHECK(memcmp(eager, eager + n + (size_t)r * n, bytes) == 0);
    }
    bs_graph_destroy(graph);
    bs_buffer_free(sum);
    bs_buffer_free(all);
    free(data);
    free(eager);
    free(replayed);
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
    test_graph(128);
    test_graph(4096);
    test_graph(16 * 4096);
}

/* nccl is for GPUs: asked for on CPUs it is refused, by every rank alike, and the ranks go on as they were. */
static void test_refusal(void)
{
    if (bs_device_get_info(device)->kind != BS_DEVICE_CPU) return;
    const bool alone = bs_comm_size(comm) == 1;
    const bs_status want = alone ? BS_STATUS_OK : BS_STATUS_USAGE;
    CHECK(bs_comm_use_device(comm, device, BS_TRANSPORT_NCCL) == want);
    CHECK(alone || strstr(bs_error_message(), "--transport nccl: rank 0 has no GPU"));
    bs_error_clear();
    CHECK(strcmp(bs_comm_transport(comm), alone ? "self" : "mpi") == 0);
    CHECK(bs_comm_capturable(comm) == alone);
    CHECK(bs_comm_use_device(comm, device, BS_TRANSPORT_AUTO) == BS_STATUS_OK);
    bs_transport parsed;
    CHECK(bs_transport_parse("NCCL", &parsed) == BS_STATUS_USAGE);
    bs_error_clear();
}

int main(int argc, char **argv)
{
    ranks_begin(argc, argv);
    test_grid_choice();
    const int size = bs_comm_size(comm);
    for (int heads = 1; heads <= size; heads++) {
        if (size % heads) continue;
        ranks_set_grid(heads);
        for (int shared = 0; shared <= !bs_comm_capturable(comm); shared++) {
            bs_comm_set_shared(comm, shared);
            test_collectives();
        }
    }
    test_host_messages();
    test_agree();
    test_refusal();
    CHECK(bs_comm_barrier(comm) == BS_STATUS_OK);
    ranks_end();
    return 0;
}
