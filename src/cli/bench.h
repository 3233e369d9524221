/* bench.h: `bitshard bench`: a case is checked first, then timed, then a row of the table. Private to
 * src/cli/bench*.c and cmd_bench.c.
 *
 *   bench_cases.c     which cases there are, and which were asked for
 *   bench_data.c      a cache of gigabytes from a few pages of random numbers
 *   bench_reference.c attention in fp64 over the dequantized pages
 *   bench_attend.c, bench_quantize.c, bench_gemv.c, bench_read.c    one case of each op
 *   bench_gemm.c      the rate of a large bf16 product, which chunks are measured by
 *   bench_time.c      graph replays on a GPU, a plain loop on a CPU; medians
 *   bench_report.c    table, CSV, JSON
 *   bench_decode.c    `bench decode`: a token's time, on all ranks
 *   bench_prefill.c   `bench prefill`: a prompt's time, on all ranks
 *   bench_engine.c    what these two and bench_snapshot.c share
 *   bench_comm.c      `bench comm`: collectives and merges, on all ranks
 *   bench_snapshot.c  `bench snapshot`: writing and restoring, on all ranks
 */
#ifndef BS_CLI_BENCH_H
#define BS_CLI_BENCH_H

#include "src/cache/format.h"
#include "src/cli/common.h"

/* What attend may be off, worst (token, query head) of those that are checked: relative L2 of O and absolute
 * LSE against fp64 over the dequantized cache. The GPU's promise for plain data; a CPU is far inside. */
#define BS_BENCH_TOL_O   2e-3
#define BS_BENCH_TOL_LSE 1e-3

/* Calls of a case go round over this many bytes before they meet the same ones again. */
#define BS_BENCH_ROTATE_GPU 240e6 /* 4 times the 60 MB L2 of an H200 */
#define BS_BENCH_ROTATE_CPU 128e6

/* BS_BENCH_CHUNK: query tokens of a sequence from which on attend is measured by operations, not by bytes. */
enum { BS_BENCH_MAX_LAYERS = 256, BS_BENCH_SHAPE_NAME = 64, BS_BENCH_CHUNK = 17 };

typedef enum bs_bench_op {
    BS_BENCH_ATTEND,
    BS_BENCH_QUANTIZE,
    BS_BENCH_GEMV,
    BS_BENCH_READ,
    BS_BENCH_N_OPS
} bs_bench_op;

typedef struct bs_bench_case {
    bs_bench_op op;
    int n_seqs, n_heads, n_kv_heads, head_dim; /* QUANTIZE: n_seqs is 1 and n_heads n_kv_heads */
    int64_t context; /* tokens of each sequence, the query's included; quantize: tokens; read: bytes */
    bool ragged;     /* context is the sum of sequences of very different lengths */
    bool plain_v;    /* quantize: the plain encoder of V */
    int n_query, window, n_layers; /* n_layers: 0 as many as the rotation needs; quantize: pages of so many */
    const char *kv;
    bs_type type; /* gemv: of W [n_rows, n_cols], times n_query tokens */
    int64_t n_rows, n_cols;
} bs_bench_case;

/* The cases of this kind of device that --case and the operand ask for, or the shape that its options
 * describe, once for each format. bs_bench_list_free frees what is in it. */
typedef struct bs_bench_list {
    bs_bench_case *cases;
    int *number; /* place in the device's whole list, from 1; 0 for a shape of the options */
    int n;
    char *text; /* where kv of such a shape points */
} bs_bench_list;
bs_status bs_bench_select(const bs_options *options, bs_device_kind kind, bs_bench_list *out);
void bs_bench_list_free(bs_bench_list *list);
/* Whether one of the items of --case, parted by commas, is the case of this number and name: "7", "3-9" or a part of
 * the name. */
bool bs_bench_matches(const char *items, const char *name, int number);
/* Name of case i of a list. */
enum { BS_BENCH_NAME = 256 };
typedef void bs_bench_namer(const void *cases, int i, char name[BS_BENCH_NAME]);
/* USAGE unless each item of --case is one of the n cases; items NULL: without --case. */
bs_status bs_bench_check_items(const char *items, const void *cases, int n, bs_bench_namer *name_case);
/* "8x32/8x128K", with T, D and window where they are not 1, 128 and none. */
void bs_bench_shape_name(const bs_bench_case *item, char name[BS_BENCH_SHAPE_NAME]);
const char *bs_bench_op_name(bs_bench_op op);

/* ---- the run ---- */

typedef struct bs_bench {
    const bs_options *options;
    bs_device *device;
    bs_stream *stream;
    bool gpu;
    double read_gb_s;    /* the ceiling: a streaming read, measured first */
    double gemm_tflop_s; /* that of chunks: a bf16 product, measured before each of them; 0: not measured */
    json_t *rows;        /* NULL without --json */
    FILE *table, *csv;   /* csv: NULL without --csv */
    bool csv_begun;
    int n_cases, n_failed;
} bs_bench;

/* ---- time ---- */

/* Of one call in microseconds; of a token (bench decode) in milliseconds. */
typedef struct bs_bench_times {
    double median, p10, p90;
} bs_bench_times;

/* Sorts n >= 1 times; its own are `scale` times theirs. */
bs_bench_times bs_bench_summarize(double *times, int n, double scale);

/* Queues call i of a rotation; i = 0 … n_calls − 1. */
typedef bs_status bs_bench_call(void *context, int i);

/* Records n_calls calls as a graph, with bs_stream_set_overlap or without; the caller destroys *out. */
bs_status bs_bench_record(bs_bench *bench, bs_bench_call *call, void *context, int n_calls, bool overlap,
                          bs_graph **out);

/* Times n_calls calls again and again. On a GPU they are one CUDA graph, replayed 25 times behind 50 ms to
 * warm up, plain and, where overlap is not NULL, recorded once more with bs_stream_set_overlap, in turns. On
 * a CPU it is a loop, overlap is left alone, and slow cases are repeated less often: 3 times at least, at
 * most 20 or 2 s. */
bs_status bs_bench_time(bs_bench *bench, bs_bench_call *call, void *context, int n_calls,
                        bs_bench_times *plain, bs_bench_times *overlap);

/* ---- report ---- */

typedef struct bs_bench_row {
    const bs_bench_case *item;
    int number;
    const char *mode;  /* "plain" or "overlap" (programmatic dependent launch) */
    double bytes;      /* of one call */
    double flop;       /* of one call, where operations are what it is measured by, or 0 */
    bs_bench_times us; /* of one call */
    bool checked_o;    /* error_o and error_lse hold something */
    double error_o, error_lse;
} bs_bench_row;

/* Opens what --csv names, and decides where the table goes. Close it also where this failed. */
bs_status bs_bench_open_report(bs_bench *bench);
/* Prints the array of --json. */
bs_status bs_bench_close_report(bs_bench *bench);
/* The table's head; read_gb_s is known. */
bs_status bs_bench_begin_table(const bs_bench *bench);
bs_status bs_bench_report(bs_bench *bench, const bs_bench_row *row);
/* A row of columns to --csv and --json; the caller keeps its reference. */
bs_status bs_bench_add_row(bs_bench *bench, json_t *row);
/* A figure of a row; null where it does not apply. */
void bs_bench_set_real(json_t *row, const char *name, bool applies, double x);
/* The row of a case that did not pass, with the kept error line, which is cleared. */
bs_status bs_bench_report_failure(bs_bench *bench, const bs_bench_case *item, int number);

/* ---- cases ---- */

/* Each checks, times and reports its case; a wrong answer is BS_STATUS_MISMATCH. */
bs_status bs_bench_attend(bs_bench *bench, const bs_bench_case *item, int number);
bs_status bs_bench_quantize(bs_bench *bench, const bs_bench_case *item, int number);
bs_status bs_bench_gemv(bs_bench *bench, const bs_bench_case *item, int number);
bs_status bs_bench_read(bs_bench *bench, const bs_bench_case *item, int number);
/* All of `bench decode`. Collective; the ranks agree on the status. */
bs_status bs_bench_decode(const bs_options *options, bs_comm *comm);
/* All of `bench prefill`. Collective; the ranks agree on the status. */
bs_status bs_bench_prefill(const bs_options *options, bs_comm *comm);
/* All of `bench comm`. Collective; the ranks agree on the status. */
bs_status bs_bench_comm(const bs_options *options, bs_comm *comm);
/* All of `bench snapshot`, likewise. */
bs_status bs_bench_snapshot(const bs_options *options, bs_comm *comm);
/* Sets read_gb_s. */
bs_status bs_bench_read_ceiling(bs_bench *bench);
/* Sets gemm_tflop_s: 8192³ in bf16 as bs_op_gemm does it, checked first. On a GPU only. */
bs_status bs_bench_gemm_ceiling(bs_bench *bench);
/* Whether attend is measured by operations here, and the operations of a call: 4 · D a visible pair of a query head's
 * token and a cached one. */
bool bs_bench_is_chunk(const bs_bench *bench, const bs_bench_case *item);
double bs_bench_flop(const bs_bench_case *item);
/* Bytes of one call: of gemv the blocks of W. For attend K and V as stored, parameters counted: quantized pages whole, f16 ones by the
 * token. */
double bs_bench_bytes(const bs_bench_case *item, const bs_kv_format *format);

/* ---- data ---- */

/* splitmix64 */
static inline uint64_t bs_bench_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
