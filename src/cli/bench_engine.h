/* bench_engine.h: what the benches of a model (decode, prefill, snapshot) share: opening, lists of options, what must be the
 * same on all ranks; decode and prefill also what fits and where a step's time goes. Private to src/cli/bench_*.c. */
#ifndef BS_CLI_BENCH_ENGINE_H
#define BS_CLI_BENCH_ENGINE_H

#include "src/cli/bench.h"

enum { BS_BENCH_MAX_ITEMS = 64, BS_BENCH_N_PHASES = BS_PHASE_SNAPSHOT + 1 };

/* Device (then bench->gpu is known); then model, grid and stream, and on rank 0 the report. `fallback`: the model without
 * --model, NULL: it must be there. Callers agree. */
bs_status bs_bench_open_device(bs_bench *bench, const bs_comm *comm);
bs_status bs_bench_open_model(bs_bench *bench, const bs_comm *comm, const char *fallback, bs_model **model,
                              bs_grid *grid);
/* Closes all that, whatever of it was opened; the run's status, or that of closing the report. Collective. */
bs_status bs_bench_close(bs_bench *bench, bs_comm *comm, bs_model *model, bs_status status);

/* USAGE for --case and --dry-run, which are of kernels and collectives, and for operands behind the first n. */
bs_status bs_bench_refuse_cases(const bs_options *options, int n_operands);
/* "1K,32K,1M": counts from 1 to most, with K, M and G, into out [BS_BENCH_MAX_ITEMS]. */
bs_status bs_bench_parse_counts(const char *option, const char *text, int64_t most, int64_t *out, int *n);
/* The formats of --kv into out [BS_BENCH_MAX_ITEMS]. */
bs_status bs_bench_parse_formats(const bs_options *options, bs_kv_format *out, int *n);

/* What must be the same on all ranks, compared as bytes. */
typedef struct bs_bench_ground {
    bs_cli_ground engine;
    char kv[BS_BENCH_MAX_ITEMS][BS_KV_FORMAT_NAME]; /* "" behind the last */
    int64_t contexts[BS_BENCH_MAX_ITEMS], batches[BS_BENCH_MAX_ITEMS],
        own[4]; /* own: the subcommand's numbers */
    double step_ms;
} bs_bench_ground;
/* Zeros but for the engine's part and the formats. */
void bs_bench_ground_begin(bs_bench_ground *ground, const bs_cli_ground *engine, const bs_kv_format *kv,
                           int n_formats);
/* As bs_cli_compare_ground, against rank 0's. Collective; callers agree. */
bs_status bs_bench_compare_ground(bs_comm *comm, const bs_bench_ground *mine, const char *others);

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
