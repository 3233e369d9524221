/* test_merge.c: the most valuable test of this layer: the merged O does not depend on how many ranks hold the
 * parts.
 *
 * 40 partial states per row are dealt over the sequence shards in several ways, empty shards and garbage in
 * the O of empty states included; every method must give what one rank gives, and the fp64 answer, on every
 * rank. */
#include "comm/merge.h"
#include "tests/comm/check.h"
#include "tests/tolerances.h"

#include <math.h>
#include <string.h>

enum { N_PARTS = 40, N_ROWS = 23, DIM = 64 };

static bs_comm *comm;
static bs_stream *stream;
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

static void test_method(bs_merge_method method, int deal)
{
    const bs_grid *grid = bs_comm_grid(comm);
    float *o = malloc(sizeof part_o[0]), *lse = malloc(sizeof part_lse[0]);
    float *o_parts = malloc(sizeof part_o), *lse_parts = malloc(sizeof part_lse);
    int n = 0;
    for (int p = 0; p < N_PARTS; p++)
        if (owner(deal, p, grid->seq) == grid->seq_shard) {
            memcpy(o_parts + n * N_ROWS * DIM, part_o[p], sizeof part_o[p]);
            memcpy(lse_parts + n * N_ROWS, part_lse[p], sizeof part_lse[p]);
            n++;
        }
    if (n > 0) {
        CHECK(bs_op_merge(stream, &(bs_merge_args){.n_parts = n,
                                                   .n_rows = N_ROWS,
                                                   .dim = DIM,
                                                   .o = o_parts,
                                                   .lse = lse_parts,
                                                   .o_stride = N_ROWS * DIM,
                                                   .lse_stride = N_ROWS,
                                                   .o_out = o,
                                                   .lse_out = lse}) == BS_STATUS_OK);
    } else {
        for (int r = 0; r < N_ROWS; r++) lse[r] = -INFINITY;
        for (int i = 0; i < N_ROWS * DIM; i++) o[i] = NAN; /* garbage in an empty state must not leak */
    }
    size_t bytes = bs_merge_workspace_bytes(method, grid->seq, N_ROWS, DIM);
    void *workspace = malloc(bytes + 1);
    memset(workspace, 0xff, bytes + 1);
    CHECK(bs_merge_states(comm, stream, method, o, lse, N_ROWS, DIM, workspace, bytes) == BS_STATUS_OK);
    if (method == BS_MERGE_FOLD && grid->seq > 1) {
        CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_SEQ, stream, o, N_ROWS * DIM) == BS_STATUS_OK);
        check_rows(o, NULL);
    } else if (n > 0 || grid->seq > 1) {
        check_rows(o, lse);
        float *first = malloc(sizeof part_o[0]);
        memcpy(first, o, sizeof part_o[0]);
        CHECK(bs_comm_bcast_host(comm, first, sizeof part_o[0], 0) == BS_STATUS_OK);
        CHECK(memcmp(first, o, sizeof part_o[0]) == 0); /* the same bits on every rank */
        free(first);
        if (grid->seq > 1 && bytes > 0) {
            CHECK(bs_merge_states(comm, stream, method, o, lse, N_ROWS, DIM, workspace, bytes - 1) ==
                  BS_STATUS_RANGE);
            bs_error_clear();
        }
    }
    free(workspace);
    free(o);
    free(lse);
    free(o_parts);
    free(lse_parts);
}

int main(int argc, char **argv)
{
    bs_device *device;
    CHECK(bs_comm_init(&argc, &argv, &comm) == BS_STATUS_OK);
    CHECK(bs_device_open(&(bs_device_config){.n_threads = 1}, &device) == BS_STATUS_OK);
    CHECK(bs_stream_create(device, &stream) == BS_STATUS_OK);
    make_parts();
    make_reference();
    int size = bs_comm_size(comm);
    for (int heads = 1; heads <= size; heads++) {
        if (size % heads) continue;
        bs_grid grid;
        char text[32];
        snprintf(text, sizeof text, "%dx%d", heads, size / heads);
        CHECK(bs_grid_choose(bs_comm_rank(comm), size, heads, text, &grid) == BS_STATUS_OK);
        CHECK(bs_comm_set_grid(comm, &grid) == BS_STATUS_OK);
        for (int method = BS_MERGE_ALLREDUCE; method <= BS_MERGE_FOLD; method++)
            for (int deal = 0; deal < 3; deal++) test_method((bs_merge_method)method, deal);
    }
    bs_stream_destroy(stream);
    bs_device_close(device);
    bs_comm_finalize(comm);
    return 0;
}
