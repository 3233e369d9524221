/* bench_engine.h: what `bench decode` and `bench prefill` share: lists of options, what fits, where a step's time goes.
 * Private to src/cli/bench_*.c. */
#ifndef BS_CLI_BENCH_ENGINE_H
#define BS_CLI_BENCH_ENGINE_H

#include "src/cli/bench.h"

enum { BS_BENCH_MAX_ITEMS = 64, BS_BENCH_N_PHASES = BS_PHASE_SNAPSHOT + 1 };

/* "1K,32K,1M": counts from 1 to most, with K, M and G, into out [BS_BENCH_MAX_ITEMS]. */
bs_status bs_bench_parse_counts(const char *option, const char *text, int64_t most, int64_t *out, int *n);
/* The formats of --kv into out [BS_BENCH_MAX_ITEMS]. */
bs_status bs_bench_parse_formats(const bs_options *options, bs_kv_format *out, int *n);

/* Whether an engine of this configuration fits on every rank; if not, why gets the words for its row. Collective. */
bs_status bs_bench_find_fit(const bs_model *model, bs_device *device, bs_comm *comm, const bs_grid *grid,
                            const bs_engine_config *config, bool *fits, char *why, size_t bytes);

/* The device's timers at the phases of a step that runs op by op. Begin before the step, read behind it. Close it also
 * where opening failed. */
typedef struct bs_bench_marks {
    bs_timer **timers; /* [max] one a phase, as they come */
    bs_phase *phase;
    int n, max;
    bool open;
    bs_status status;
} bs_bench_marks;
bs_status bs_bench_marks_open(bs_device *device, int n_layers, bs_bench_marks *marks);
void bs_bench_marks_close(bs_bench_marks *marks);
void bs_bench_marks_begin(bs_bench_marks *marks);
void bs_bench_marks_take(void *marks, bs_stream *stream, bs_phase phase); /* for bs_engine_set_mark */
bs_status bs_bench_marks_read(bs_bench_marks *marks, double phase_ms[BS_BENCH_N_PHASES]);

#endif
