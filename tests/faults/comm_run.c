/* comm_run.c: ranks that step for ever as an engine does, collectives and merges, until one of them comes to harm.
 *
 * comm_run cpu|gpu auto|mpi|nccl HARM: rank 1 does it in step 40: "killed" and "stopped" are signals to itself, "hung"
 * is a loop in phase attend of layer 3, "failed" is an error of its own that it ends the job for. It says "now" on
 * standard output just before. On a GPU, where it can, the steps are launches of one graph.
 */
#include "comm/merge.h"
#include "tests/comm/ranks.h"

#include <signal.h>
#include <unistd.h>

enum { ROWS = 32, DIM = 128, LAYERS = 4, HARM_STEP = 40, HARM_LAYER = 3 };

static bs_buffer *o, *lse, *workspace;

static void queue_layer(void)
{
    CHECK(bs_merge_states(comm, stream, BS_MERGE_ALLREDUCE, bs_buffer_at(o, 0), bs_buffer_at(lse, 0), ROWS,
                          DIM, bs_buffer_at(workspace, 0), bs_buffer_bytes(workspace)) == BS_STATUS_OK);
    CHECK(bs_comm_allreduce_sum(comm, BS_GROUP_ALL, stream, bs_buffer_at(o, 0), ROWS * DIM) == BS_STATUS_OK);
}

static void come_to_harm(const char *harm)
{
    if (write(STDOUT_FILENO, "now\n", 4) != 4) return;
    if (strcmp(harm, "killed") == 0) raise(SIGKILL);
    if (strcmp(harm, "stopped") == 0) raise(SIGSTOP);
    while (strcmp(harm, "failed") != 0) pause(); /* hung; or stopped, and continued by the launcher */
    bs_fail(BS_STATUS_NUMERIC, "expected in this test: rank %d fails", bs_comm_rank(comm));
    bs_error_flush();
    bs_comm_abort(comm, 1);
}

int main(int argc, char **argv)
{
    ranks_begin(argc, argv);
    CHECK(argc == 4);
    ranks_set_grid(1);
    const size_t bytes = bs_merge_workspace_bytes(BS_MERGE_ALLREDUCE, bs_comm_size(comm), ROWS, DIM);
    o = make_buffer(ROWS * DIM * sizeof(float));
    lse = make_buffer(ROWS * sizeof(float));
    workspace = make_buffer(bytes);
    CHECK(bs_comm_watchdog_start(comm, 7) == BS_STATUS_OK);
    bs_graph *graph = NULL;
    if (bs_comm_capturable(comm) && bs_device_get_info(device)->kind != BS_DEVICE_CPU) {
        CHECK(bs_capture_begin(stream) == BS_STATUS_OK);
        queue_layer();
        CHECK(bs_capture_end(stream, &graph) == BS_STATUS_OK);
    }
    for (int64_t step = 0;; step++) {
        for (int layer = 0; layer < LAYERS; layer++) {
            bs_comm_progress(comm, step, layer, BS_PHASE_ATTEND);
            if (step == HARM_STEP && layer == HARM_LAYER && bs_comm_rank(comm) == 1) come_to_harm(argv[3]);
            bs_comm_progress(comm, step, layer, BS_PHASE_MERGE);
            if (graph) CHECK(bs_graph_launch(stream, graph) == BS_STATUS_OK);
            else queue_layer();
        }
        bs_comm_progress(comm, step, LAYERS, BS_PHASE_SAMPLE);
        CHECK(bs_stream_sync(stream) == BS_STATUS_OK);
        bs_comm_progress_idle(comm);
    }
}
