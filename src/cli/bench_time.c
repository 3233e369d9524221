/* bench_time.c: medians of many short runs.
 *
 * A graph holds a whole rotation, so that what is read has left the L2 since the last time, and so that calls
 * follow each other on the device without the host between them: what a decode step does. Replays are queued
 * together, each with its own timer, plain and overlapped in turns: a card that grows hot slows both alike.
 * The time of a replay is divided by its calls. Rejected: one event pair a call, which costs as much as a
 * small call takes. */
#include "config.h"

#include "src/base/progress.h"
#include "src/cli/bench.h"

#include <stdlib.h>

enum { N_REPLAYS = 25, N_LOOPS = 20, MIN_LOOPS = 3 };
#define LOOP_S 2.0
#define WARM_S 0.05 /* clocks rise from idle in some ten ms */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bs_bench_times bs_bench_summarize(double *times, int n, double scale)
{
    qsort(times, (size_t)n, sizeof *times, by_value);
    return (bs_bench_times){times[n / 2] * scale, times[n / 10] * scale, times[n - 1 - n / 10] * scale};
}

static bs_status queue_calls(bs_bench_call *call, void *context, int n_calls)
{
    for (int i = 0; i < n_calls; i++) BS_TRY(call(context, i));
    return BS_STATUS_OK;
}

/* ---- GPU ---- */

bs_status bs_bench_record(bs_bench *b, bs_bench_call *call, void *context, int n_calls, bool overlap,
                          bs_graph **out)
{
    bs_stream_set_overlap(b->stream, overlap);
    bs_status status = bs_capture_begin(b->stream);
    if (status == BS_STATUS_OK) {
        status = queue_calls(call, context, n_calls);
        bs_status end = bs_capture_end(b->stream, out);
        if (status == BS_STATUS_OK) {
            status = end;
        } else if (end == BS_STATUS_OK) {
            bs_graph_destroy(*out);
            *out = NULL;
        }
    }
    bs_stream_set_overlap(b->stream, false);
    return status;
}

static bs_status replay(bs_bench *b, bs_graph *const graphs[2], int n_modes, bs_timer *timers[2][N_REPLAYS])
{
    const double start = bs_now_s();
    do {
        for (int mode = 0; mode < n_modes; mode++) BS_TRY(bs_graph_launch(b->stream, graphs[mode]));
        BS_TRY(bs_stream_sync(b->stream));
    } while (bs_now_s() - start < WARM_S);
    for (int i = 0; i < N_REPLAYS; i++)
        for (int mode = 0; mode < n_modes; mode++) {
            BS_TRY(bs_timer_start(b->stream, timers[mode][i]));
            BS_TRY(bs_graph_launch(b->stream, graphs[mode]));
            BS_TRY(bs_timer_stop(b->stream, timers[mode][i]));
        }
    return bs_stream_sync(b->stream);
}

static bs_status time_graphs(bs_bench *b, bs_bench_call *call, void *context, int n_calls, int n_modes,
                             bs_bench_times *const times[2])
{
    bs_graph *graphs[2] = {NULL, NULL};
    bs_timer *timers[2][N_REPLAYS] = {{NULL}};
    bs_status status = BS_STATUS_OK;
    for (int mode = 0; mode < n_modes; mode++) {
        BS_TRY_GOTO(bs_bench_record(b, call, context, n_calls, mode == 1, &graphs[mode]), err_free);
        for (int i = 0; i < N_REPLAYS; i++)
            BS_TRY_GOTO(bs_timer_create(b->device, &timers[mode][i]), err_free);
    }
    BS_TRY_GOTO(replay(b, graphs, n_modes, timers), err_free);
    for (int mode = 0; mode < n_modes; mode++) {
        double ms[N_REPLAYS];
        for (int i = 0; i < N_REPLAYS; i++) BS_TRY_GOTO(bs_timer_ms(timers[mode][i], &ms[i]), err_free);
        *times[mode] = bs_bench_summarize(ms, N_REPLAYS, 1e3 / n_calls);
    }
err_free:
    for (int mode = 0; mode < n_modes; mode++) {
        for (int i = 0; i < N_REPLAYS; i++) bs_timer_destroy(timers[mode][i]);
        bs_graph_destroy(graphs[mode]);
    }
    return status;
}

/* ---- CPU ---- */

static bs_status time_loop(bs_bench *b, bs_bench_call *call, void *context, int n_calls,
                           bs_bench_times *times)
{
    double ms[N_LOOPS];
    int n = 0;
    bs_timer *timer;
    bs_status status;
    BS_TRY(bs_timer_create(b->device, &timer));
    BS_TRY_GOTO(queue_calls(call, context, n_calls), err_timer);
    for (double start = bs_now_s(); n < MIN_LOOPS || (n < N_LOOPS && bs_now_s() - start < LOOP_S); n++) {
        BS_TRY_GOTO(bs_timer_start(b->stream, timer), err_timer);
        BS_TRY_GOTO(queue_calls(call, context, n_calls), err_timer);
        BS_TRY_GOTO(bs_timer_stop(b->stream, timer), err_timer);
        BS_TRY_GOTO(bs_timer_ms(timer, &ms[n]), err_timer);
    }
    *times = bs_bench_summarize(ms, n, 1e3 / n_calls);
err_timer:
    bs_timer_destroy(timer);
    return status;
}

bs_status bs_bench_time(bs_bench *bench, bs_bench_call *call, void *context, int n_calls,
                        bs_bench_times *plain, bs_bench_times *overlap)
{
    if (!bench->gpu) return time_loop(bench, call, context, n_calls, plain);
    bs_bench_times *const times[2] = {plain, overlap};
    return time_graphs(bench, call, context, n_calls, overlap ? 2 : 1, times);
}
