/* graph.cu: CUDA graphs and event pairs behind the device seam.
 *
 * Capture is thread-local: another thread of the process (a watchdog, NCCL's) may call CUDA meanwhile. A
 * graph is uploaded when it is made, so that its first launch costs no more than the others. */
#include "kernels/cuda/cuda_private.h"

#include <cstdlib>

bs_status bs_cuda_capture_begin(bs_stream *stream)
{
    return bs_cuda_status(cudaStreamBeginCapture(bs_cuda_stream(stream), cudaStreamCaptureModeThreadLocal),
                          "graph: capture");
}

bs_status bs_cuda_capture_end(bs_stream *stream, void **graph)
{
    cudaGraph_t recorded = nullptr;
    cudaGraphExec_t made = nullptr;
    cudaError_t error = cudaStreamEndCapture(bs_cuda_stream(stream), &recorded);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&made, recorded, 0);
    if (recorded) cudaGraphDestroy(recorded);
    if (error == cudaSuccess) error = cudaGraphUpload(made, bs_cuda_stream(stream));
    if (error == cudaSuccess) {
        *graph = made;
        return BS_STATUS_OK;
    }
    if (made) cudaGraphExecDestroy(made);
    cudaGetLastError(); /* a capture that failed must not fail the next launch */
    return bs_cuda_status(error, "graph: end of capture");
}

bs_status bs_cuda_graph_launch(bs_stream *stream, void *graph)
{
    return bs_cuda_status(cudaGraphLaunch((cudaGraphExec_t)graph, bs_cuda_stream(stream)), "graph: launch");
}

void bs_cuda_graph_close(void *graph)
{
    cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

/* ---- timers ---- */

struct marks {
    cudaEvent_t event[2];
};

bs_status bs_cuda_timer_open(bs_device *, void **out)
{
    marks *m = (marks *)calloc(1, sizeof *m);
    if (!m) return bs_fail(BS_STATUS_NOMEM, "timer: no memory");
    cudaError_t error = cudaEventCreate(&m->event[0]);
    if (error == cudaSuccess) error = cudaEventCreate(&m->event[1]);
    if (error == cudaSuccess) {
        *out = m;
        return BS_STATUS_OK;
    }
    bs_cuda_timer_close(m);
    return bs_cuda_status(error, "timer");
}

void bs_cuda_timer_close(void *state)
{
    marks *m = (marks *)state;
    for (cudaEvent_t event : m->event)
        if (event) cudaEventDestroy(event);
    free(m);
}

bs_status bs_cuda_timer_mark(bs_stream *stream, void *state, int which)
{
    return bs_cuda_status(cudaEventRecord(((marks *)state)->event[which], bs_cuda_stream(stream)), "timer");
}

bs_status bs_cuda_timer_read(void *state, double *ms)
{
    marks *m = (marks *)state;
    float elapsed;
    BS_TRY(bs_cuda_status(cudaEventSynchronize(m->event[1]), "timer"));
    BS_TRY(bs_cuda_status(cudaEventElapsedTime(&elapsed, m->event[0], m->event[1]), "timer"));
    *ms = elapsed;
    return BS_STATUS_OK;
}
