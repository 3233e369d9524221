/* bench_decode.h: `bitshard bench decode`: ms per token against cached tokens, KV format, batch and grid. Private to
 * bench_decode.c (what is run) and bench_decode_report.c (what is said about it). */
#ifndef BS_CLI_BENCH_DECODE_H
#define BS_CLI_BENCH_DECODE_H

#include "src/cli/bench_engine.h"

/* Where a step's time goes, by the phases of bs_phase. */
typedef enum bs_decode_part {
    BS_DECODE_ATTEND, /* append, attention, the quantizer */
    BS_DECODE_DENSE,  /* projections, FFN and output head, with the norms before them */
    BS_DECODE_COMM,   /* merges and all-reduces */
    BS_DECODE_OTHER,  /* embedding, candidates, sampling */
    BS_DECODE_N_PARTS
} bs_decode_part;

typedef struct bs_decode_bench {
    bs_bench bench; /* device, stream, read bandwidth, report (rank 0) */
    bs_comm *comm;
    bool leader;
    bs_model *model;
    bs_grid grid;
    bs_engine_config config; /* act, merge and stripe_pages; the rest is of a row */
    bs_engine *engine;
    int n_steps, n_contexts, n_batches, n_formats;
    int64_t contexts[BS_BENCH_MAX_ITEMS], batches[BS_BENCH_MAX_ITEMS];
    bs_kv_format kv[BS_BENCH_MAX_ITEMS];
} bs_decode_bench;

/* One row. Bytes are those of the rank that reads most. */
typedef struct bs_decode_row {
    const bs_kv_format *kv;
    int64_t context;
    int batch;
    const char *skipped; /* why there are no figures, or NULL */
    bs_bench_times ms;
    double weight_bytes, kv_bytes;
    double part_ms[BS_DECODE_N_PARTS]; /* of a step op by op */
} bs_decode_row;

/* Rank 0. */
bs_status bs_decode_begin_table(bs_decode_bench *d);
bs_status bs_decode_report(bs_decode_bench *d, const bs_decode_row *row);

#endif
