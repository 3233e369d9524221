/* test_merge.c: the most valuable test of this layer: the merged O does not depend on how many ranks hold the
 * parts.
 *
 * 40 partial states per row are dealt over the sequence shards in several ways, empty shards and garbage in
 * the O of empty states included; every method must give what one rank gives, and the fp64 answer, on every
 * rank. */
#include "comm/merge.h"
#include "tests/comm/ranks.h"
#include "tests/tolerances.h"

#include <math.h>

enum { N_PARTS = 40, N_ROWS = 23, DIM = 64 };

static float part_o[N_PARTS][N_ROWS][DIM], part_lse[N_PARTS][N_ROWS];
static double want_o[N_ROWS][DIM], want_lse[N_ROWS];

static double noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (double)(*state >> 8) / (1 << 23) - 1.0;
}

/* Row 0: every part empty. Row 1: all but one. Row 2, 3: |LSE| about 1e4. Row 4: spread of 200. Others plain.
 */
static void make_parts(void)
{
    uint32_t seed = 20260917;
    for (int p = 0; p < N_PARTS; p++)
        for (int r = 0; r < N_ROWS; r++) {
            double lse = 3 * noise(&seed);
            bool empty = r == 0 || (r == 1 && p != 11) || (r > 6 && p % 3 == r % 3);
            if (r == 2) lse += 1e4;
            if (r == 3) lse -= 1e4;
            if (r == 4) lse *= 66;
            part_lse[p][r] = empty ? -INFINITY : (float)lse;
            for (int d = 0; d < DIM; d++)
                part_o[p][r][d] = empty ? (d % 2 ? NAN : 1e30f) : (float)noise(&seed);
        }
}

static void make_reference(void)
{
    for (int r = 0; r < N_ROWS; r++) {
        double max = -INFINITY, sum = 0;
        for (int p = 0; p < N_PARTS; p++) max = fmax(max, part_lse[p][r]);
        memset(want_o[r], 0, sizeof want_o[r]);
        want_lse[r] = -INFINITY;
        if (max == -INFINITY) continue;
        for (int p = 0; p < N_PARTS; p++) {
            if (part_lse[p][r] == -INFINITY) continue;
            double w = exp(part_lse[p][r] - max);
            sum += w;
            for (int d = 0; d < DIM; d++) want_o[r][d] += w * part_o[p][r][d];
        }
        for (int d = 0; d < DIM; d++) want_o[r][d] /= sum;
        want_lse[r] = max + log(sum);
    }
}

/* Which shard holds part p: dealt out, in runs, or all on the last (the others empty). */
static int owner(int deal, int p, int seq)
{
    return deal == 0 ? p % seq : deal == 1 ? p * seq / N_PARTS : seq - 1;
}

static void check_rows(const float *o, const float *lse)
{
    for (int r = 0; r < N_ROWS; r++) {
        double norm = 0, error = 0;
        for (int d = 0; d < DIM; d++) {
            CHECK(isfinite(o[r * DIM + d]));
            norm += want_o[r][d] * want_o[r][d];
            error += (o[r * DIM + d] - want_o[r][d]) * (o[r * DIM + d] - want_o[r][d]);
        }
        if (norm == 0) CHECK(error == 0);
        if (norm > 0) CHECK(sqrt(error / norm) <= TOL_MERGE_O + TOL_MERGE_O_LSE * fabs(want_lse[r]));
        if (!lse) continue;
        CHECK(isinf(lse[r]) == isinf(want_lse[r]));
        if (!isinf(lse[r])) CHECK(fabs(lse[r] - want_lse[r]) <= TOL_MERGE_LSE * fmax(1, fabs(want_lse[r])));
    }
}

/* This shard's parts become one state by the device's own merge. */
static void join_parts(int n, const float *o_parts, const float *lse_parts, bs_buffer *o, bs_buffer *lse)
{
    bs_buffer *from_o = make_buffer(sizeof part_o), *from_lse = make_buffer(sizeof part_lse);
    CHECK(bs_op_merge(stream, &(bs_merge_args){.n_parts = n,
                                               .n_rows = N_ROWS,
                                               .dim = DIM,
                                               .o = put(from_o, o_parts, sizeof part_o),
                                               .lse = put(from_lse, lse_parts, sizeof part_lse),
                                               .o_stride = N_ROWS * DIM,
                                               .lse_stride = N_ROWS,
                                               .o_out = bs_buffer_at(o, 0),
                                               .lse_out = bs_buffer_at(lse, 0)}) == BS_STATUS_OK);
    CHECK(bs_stream_sync(stream) == BS_STATUS_OK);
    bs_buffer_free(from_o);
    bs_buffer_free(from_lse);
}

/* The state of the parts that this shard owns under `deal`. */
static void make_state(int deal, bs_buffer *o, bs_buffer *lse)
{
    const bs_grid *grid = bs_comm_grid(comm);
    float *o_parts = calloc(1, sizeof part_o), *lse_parts = calloc(1, sizeof part_lse);
    int n = 0;
    for (int p = 0; p < N_PARTS; p++)
        if (owner(deal, p, grid->seq) == grid->seq_shard) {
            memcpy(o_parts + n * N_ROWS * DIM, part_o[p], sizeof part_o[p]);
            memcpy(lse_parts + n * N_ROWS, part_lse[p], sizeof part_lse[p]);
            n++;
        }
    if (n > 0) {
        join_parts(n, o_parts, lse_parts, o, lse);
    } else {
        for (int r = 0; r < N_ROWS; r++) lse_parts[r] = -INFINITY;
        for (int i = 0; i < N_ROWS * DIM; i++) o_parts[i] = NAN; /* garbage in an empty state must not leak */
        put(o, o_parts, sizeof part_o[0]);
        put(lse, lse_parts, sizeof part_lse[0]);
    }
    free(o_parts);
    free(lse_parts);
}

static void queue_merge(bs_merge_method method, bs_buffer *o, bs_buffer *lse, bs_buffer *workspace)
{
    const size_t bytes = bs_merge_workspace_bytes(method, bs_comm_grid(comm)->seq, N_ROWS, DIM);
    CHECK(bs_merge_states(comm, stream, method, bs_buffer_at(o, 0), bs_buffer_at(lse, 0), N_ROWS, DIM,
                          bs_buffer_at(workspace, 0), bytes) == BS_STATUS_OK);
    if (method == BS_MERGE_FOLD && bs_comm_grid(comm)->seq > 1)
        CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_SEQ, stream, bs_buffer_at(o, 0), N_ROWS * DIM) ==
              BS_STATUS_OK);
}

static void test_method(bs_merge_method method, int deal, bool recorded)
{
    const bs_grid *grid = bs_comm_grid(comm);
    const size_t bytes = bs_merge_workspace_bytes(method, grid->seq, N_ROWS, DIM);
    static float got_o[N_ROWS * DIM], got_lse[N_ROWS], first[N_ROWS * DIM];
    bs_buffer *o = make_buffer(sizeof got_o), *lse = make_buffer(sizeof got_lse),
              *workspace = make_buffer(bytes);
    void *poison = malloc(bytes + 1);
    memset(poison, 0xff, bytes + 1);
    put(workspace, poison, bytes);
    make_state(deal, o, lse);
    if (recorded) {
        bs_graph *graph;
        CHECK(bs_capture_begin(stream) == BS_STATUS_OK);
        queue_merge(method, o, lse, workspace);
        CHECK(bs_capture_end(stream, &graph) == BS_STATUS_OK);
        CHECK(bs_graph_launch(stream, graph) == BS_STATUS_OK);
        CHECK(bs_stream_sync(stream) == BS_STATUS_OK);
        bs_graph_destroy(graph);
    } else {
        queue_merge(method, o, lse, workspace);
    }
    take(got_o, o, sizeof got_o);
    take(got_lse, lse, sizeof got_lse);
    check_rows(got_o, method == BS_MERGE_FOLD && grid->seq > 1 ? NULL : got_lse);
    memcpy(first, got_o, sizeof got_o);
    CHECK(bs_comm_bcast_host(comm, first, sizeof got_o, 0) == BS_STATUS_OK);
    /* the same bits on every shard of rank 0's heads */
    CHECK(grid->head_shard > 0 || memcmp(first, got_o, sizeof got_o) == 0);
    if (grid->seq > 1) {
        CHECK(bs_merge_states(comm, stream, method, bs_buffer_at(o, 0), bs_buffer_at(lse, 0), N_ROWS, DIM,
                              bs_buffer_at(workspace, 0), bytes - 1) == BS_STATUS_RANGE);
        bs_error_clear();
    }
    bs_buffer_free(o);
    bs_buffer_free(lse);
    bs_buffer_free(workspace);
    free(poison);
}

int main(int argc, char **argv)
{
    ranks_begin(argc, argv);
    make_parts();
    make_reference();
    for (int heads = 1; heads <= bs_comm_size(comm); heads++) {
        if (bs_comm_size(comm) % heads) continue;
        ranks_set_grid(heads);
        const bool graphs = bs_comm_capturable(comm) && bs_device_get_info(device)->kind != BS_DEVICE_CPU;
        for (int method = BS_MERGE_ALLREDUCE; method <= BS_MERGE_FOLD; method++)
            for (int deal = 0; deal < 3; deal++)
                for (int recorded = 0; recorded <= graphs; recorded++)
                    test_method((bs_merge_method)method, deal, recorded);
    }
    ranks_end();
    return 0;
}
