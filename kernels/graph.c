/* graph.c: recorded work, overlap of kernels, and timers, whatever is behind them. A device without graphs (a
 * CPU) leaves their places in its table empty and is refused here. */
#include "config.h"

#include "kernels/backend.h"

#include <stdlib.h>

struct bs_graph {
    bs_device *device;
    void *state;
};

struct bs_timer {
    bs_device *device;
    void *marks;
    bool started, stopped;
};

void bs_stream_set_overlap(bs_stream *stream, bool overlap)
{
    stream->overlap = overlap;
}

bs_status bs_capture_begin(bs_stream *stream)
{
    if (!stream->device->backend->capture_begin)
        return bs_fail(BS_STATUS_UNSUPPORTED, "graph: %s has none", stream->device->info.name);
    return stream->device->backend->capture_begin(stream);
}

bs_status bs_capture_end(bs_stream *stream, bs_graph **out)
{
    if (!stream->device->backend->capture_end)
        return bs_fail(BS_STATUS_UNSUPPORTED, "graph: %s has none", stream->device->info.name);
    void *state;
    BS_TRY(stream->device->backend->capture_end(stream, &state));
    bs_graph *graph = calloc(1, sizeof *graph);
    if (!graph) {
        stream->device->backend->graph_close(state);
        return bs_fail(BS_STATUS_NOMEM, "graph: %zu bytes", sizeof *graph);
    }
    graph->device = stream->device;
    graph->state = state;
    *out = graph;
    return BS_STATUS_OK;
}

bs_status bs_graph_launch(bs_stream *stream, bs_graph *graph)
{
    return graph->device->backend->graph_launch(stream, graph->state);
}

void bs_graph_destroy(bs_graph *graph)
{
    if (!graph) return;
    graph->device->backend->graph_close(graph->state);
    free(graph);
}

bs_status bs_timer_create(bs_device *device, bs_timer **out)
{
    bs_timer *timer = calloc(1, sizeof *timer);
    if (!timer) return bs_fail(BS_STATUS_NOMEM, "timer: %zu bytes", sizeof *timer);
    bs_status status = device->backend->timer_open(device, &timer->marks);
    if (status != BS_STATUS_OK) {
        free(timer);
        return status;
    }
    timer->device = device;
    *out = timer;
    return BS_STATUS_OK;
}

void bs_timer_destroy(bs_timer *timer)
{
    if (!timer) return;
    timer->device->backend->timer_close(timer->marks);
    free(timer);
}

bs_status bs_timer_start(bs_stream *stream, bs_timer *timer)
{
    timer->stopped = false;
    BS_TRY(timer->device->backend->timer_mark(stream, timer->marks, 0));
    timer->started = true;
    return BS_STATUS_OK;
}

bs_status bs_timer_stop(bs_stream *stream, bs_timer *timer)
{
    BS_TRY(timer->device->backend->timer_mark(stream, timer->marks, 1));
    timer->stopped = timer->started;
    return BS_STATUS_OK;
}

bs_status bs_timer_ms(bs_timer *timer, double *ms)
{
    if (!timer->stopped) return bs_fail(BS_STATUS_RANGE, "timer: was not started and stopped");
    return timer->device->backend->timer_read(timer->marks, ms);
}
