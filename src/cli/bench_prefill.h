/* bench_prefill.h: `bitshard bench prefill`: how fast a prompt is read, against position, KV format and grid. Private to
 * bench_prefill.c (what is run) and bench_prefill_report.c (what is said about it). */
#ifndef BS_CLI_BENCH_PREFILL_H
#define BS_CLI_BENCH_PREFILL_H

#include "src/cli/bench_engine.h"
#include "src/cli/prefill_model.h"

/* Where a chunk's time goes, by the phases of bs_phase. */
typedef enum bs_prefill_part {
    BS_PREFILL_GEMM, /* projections, FFN, output head of the last token */
    BS_PREFILL_ATTEND,
    BS_PREFILL_QUANTIZE,
    BS_PREFILL_COMM,  /* merges and all-reduces */
    BS_PREFILL_OTHER, /* norms, SiLU, append, turning O back, embedding, sampling */
    BS_PREFILL_N_PARTS
} bs_prefill_part;

typedef struct bs_prefill_bench {
    bs_bench bench; /* device, stream, the yardstick of a format, report (rank 0) */
    bs_comm *comm;
    bool leader;
    bs_model *model;
    bs_grid grid;
    bs_engine_config config; /* act, merge, stripe_pages, chunk_tokens; the rest is of a format */
    bs_engine *engine;
    double step_ms, most_s;
    int64_t n_fill;
    int n_samples, n_contexts, n_formats; /* 0 samples: prompts are read whole */
    int64_t contexts[BS_BENCH_MAX_ITEMS]; /* lengths of prompts, ascending */
    bs_kv_format kv[BS_BENCH_MAX_ITEMS];
    /* Of the format at hand; rank 0 fills them. */
    bs_prefill_point *points;            /* [n_points] chunks that were timed, ascending */
    int *point_steps;                    /* steps of each */
    double (*parts)[BS_PREFILL_N_PARTS]; /* ms; negative where a chunk was not taken apart */
    int n_points;
    bool stopped; /* by a signal */
} bs_prefill_bench;

/* One row: a chunk, or a prompt as the sum of its chunks. */
typedef struct bs_prefill_row {
    const bs_kv_format *kv;
    bool prompt;
    int64_t first, n_tokens, n_measured; /* tokens whose chunks were timed */
    int n_steps;
    double ms;
    const char *note;    /* chunk: NULL; prompt: how the rest was found, or NULL */
    const char *skipped; /* why there are no figures, or NULL */
    const double *parts; /* [BS_PREFILL_N_PARTS] or NULL */
} bs_prefill_row;

/* Rank 0. */
bs_status bs_prefill_begin_table(bs_prefill_bench *p);
/* The yardstick is known. */
bs_status bs_prefill_begin_format(bs_prefill_bench *p, const bs_kv_format *format);
bs_status bs_prefill_report(bs_prefill_bench *p, const bs_prefill_row *row);

#endif
