/* bench_comm.c: `bitshard bench comm`: the all-reduce and the merges of a decode step, at the sizes of a model with 4096
 * channels and 32 heads of 128, over whatever transport the ranks have.
 *
 * A case is checked on all ranks first: sums of whole numbers, which are exact in any order, and merges against
 * fp64. Then ten calls follow each other as they do in a step, as a graph or one by one, many times over; a time is
 * that of the slowest rank in each round, by its own clock, divided by ten: what a step waits for. Rejected:
 * each call by itself between barriers, which measures when the barrier let the ranks go.
 *
 * Bus bandwidth is nccl-tests': what must pass through each rank's link whatever the algorithm, 2(n − 1)/n of the
 * bytes of an all-reduce, (n − 1)/n of all that an all-gather brings. A merge's is the sum over its collectives, in
 * the time of the whole, kernels included.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/bench.h"
#include "src/cli/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 4096, HEADS = 32, KV_HEADS = 8, DIM = 128, MAX_TOKENS = 16, CALLS = 10 };
enum { MIN_ROUNDS = 20, MAX_ROUNDS = 200, WARM_ROUNDS = 3, N_OPS = 4, N_CASES = 24, WHY = 256 };
#define ROUNDS_S 1.0 /* of one case, at most, but for MIN_ROUNDS */
#define TOLERANCE                                                                                            \
    2e-6 /* of a merge, relative to the largest value: tests/tolerances.h, TOL_MERGE_O, with some LSE */

typedef enum comm_op { ALLREDUCE, MERGE_ALLREDUCE, MERGE_ALLGATHER, MERGE_FOLD } comm_op;
static const char *const op_names[N_OPS] = {"allreduce", "merge-allreduce", "merge-allgather", "merge-fold"};

typedef struct comm_case {
    comm_op op;
    int n_tokens;
    bool graph;
} comm_case;

typedef struct comm_bench {
    bs_bench out; /* of it options, device, stream and, on rank 0, the report */
    bs_comm *comm;
    bool leader;
    int size, rank, heads; /* heads: of this rank */
    bs_buffer *data, *lse, *workspace;
    float *host;      /* [MAX_TOKENS × HIDDEN] */
    double *ms, *all; /* [MAX_ROUNDS]; rank 0: of all ranks */
    char *why;        /* rank 0: [size, WHY] */
    int n_run, n_failed;
} comm_bench;

typedef struct comm_times {
    bs_bench_times us; /* of a call, as p99 */
    double p99;
    int n_rounds;
} comm_times;

/* ---- cases ---- */

static comm_case nth_case(int i)
{
    static const int tokens[] = {1, 4, 16};
    return (comm_case){(comm_op)(i / 6), tokens[i / 2 % 3], i % 2};
}

static void case_name(const void *cases, int i, char name[BS_BENCH_NAME])
{
    const comm_case c = nth_case(i);
    (void)cases;
    snprintf(name, BS_BENCH_NAME, "%s T%d %s", op_names[c.op], c.n_tokens, c.graph ? "graph" : "eager");
}

static int rows_of(const comm_bench *b, const comm_case *c)
{
    return c->n_tokens * b->heads;
}

static bs_group group_of(const comm_case *c)
{
    return c->op == ALLREDUCE ? BS_GROUP_ALL : BS_GROUP_SEQ;
}

/* Floats that this rank puts in. */
static size_t floats_of(const comm_bench *b, const comm_case *c)
{
    return c->op == ALLREDUCE ? (size_t)c->n_tokens * HIDDEN : (size_t)rows_of(b, c) * DIM;
}

static double state_bytes(const comm_bench *b, const comm_case *c)
{
    return 4.0 * (double)(floats_of(b, c) + (c->op == ALLREDUCE ? 0 : (size_t)rows_of(b, c)));
}

static double bus_bytes(const comm_bench *b, const comm_case *c)
{
    const double n = bs_comm_group_size(b->comm, group_of(c)), rows = rows_of(b, c);
    switch (c->op) {
    case ALLREDUCE: return 2 * (n - 1) / n * state_bytes(b, c);
    case MERGE_ALLREDUCE: return 2 * (n - 1) / n * 4 * rows * (1 + DIM + 1); /* maxima; [O·w, w] */
    case MERGE_ALLGATHER: return (n - 1) * 4 * rows * (DIM + 1);
    case MERGE_FOLD: return (n - 1) * 4 * rows;
    }
    return 0;
}

static bs_status queue_call(comm_bench *b, const comm_case *c)
{
    float *data = bs_buffer_at(b->data, 0);
    if (c->op == ALLREDUCE)
        return bs_comm_allreduce_sum(b->comm, BS_GROUP_ALL, b->out.stream, data, floats_of(b, c));
    return bs_merge_states(b->comm, b->out.stream, (bs_merge_method)(c->op - MERGE_ALLREDUCE), data,
                           bs_buffer_at(b->lse, 0), rows_of(b, c), DIM,
                           b->workspace ? bs_buffer_at(b->workspace, 0) : NULL,
                           b->workspace ? bs_buffer_bytes(b->workspace) : 0);
}

typedef struct comm_call {
    comm_bench *b;
    const comm_case *c;
} comm_call;

static bs_status queue_nth(void *context, int i)
{
    const comm_call *call = context;
    (void)i;
    return queue_call(call->b, call->c);
}

/* Rank `rank` of the group's numbers; no two ranks' are alike, and sums over 32 ranks are exact. */
static float value_of(int rank, size_t i)
{
    return (float)((rank + 1) * 3 + (int)(i % 97) * 8);
}

static float lse_of(int rank, int row)
{
    return (row + rank) % 5 == 4 ? -INFINITY : 0.5f * (float)(rank % 3) + 0.25f * (float)(row % 4);
}

static double want_sum(int n, size_t i)
{
    double sum = 0;
    for (int r = 0; r < n; r++) sum += value_of(r, i);
    return sum;
}

/* One state alone stays as it is. */
static double want_merged(int n, int row, size_t i)
{
    double sum = 0, weights = 0;
    if (n == 1) return value_of(0, i);
    for (int r = 0; r < n; r++) {
        const double w = exp((double)lse_of(r, row));
        weights += w;
        sum += w * value_of(r, i);
    }
    return weights > 0 ? sum / weights : 0;
}

static bs_status put_inputs(comm_bench *b, const comm_case *c)
{
    const size_t n = floats_of(b, c);
    const int rank = bs_comm_group_rank(b->comm, group_of(c)), rows = rows_of(b, c);
    for (size_t i = 0; i < n; i++) b->host[i] = value_of(rank, i);
    BS_TRY(bs_copy_to_device(b->out.stream, bs_buffer_at(b->data, 0), b->host, n * sizeof *b->host));
    BS_TRY(bs_stream_sync(b->out.stream));
    for (int row = 0; row < rows; row++) b->host[row] = lse_of(rank, row);
    BS_TRY(
        bs_copy_to_device(b->out.stream, bs_buffer_at(b->lse, 0), b->host, (size_t)rows * sizeof *b->host));
    return bs_stream_sync(b->out.stream);
}

static bs_status compare(const comm_bench *b, const comm_case *c)
{
    const int n = bs_comm_group_size(b->comm, group_of(c));
    const double slack = c->op == ALLREDUCE ? 0 : TOLERANCE * value_of(n - 1, 96);
    for (size_t i = 0; i < floats_of(b, c); i++) {
        const double want = c->op == ALLREDUCE ? want_sum(n, i) : want_merged(n, (int)(i / DIM), i);
        if (!(fabs(b->host[i] - want) <= slack))
            return bs_fail(BS_STATUS_MISMATCH, "number %zu is %.9g, not %.9g", i, b->host[i], want);
    }
    return BS_STATUS_OK;
}

/* One call with known numbers. A wrong one is MISMATCH; another error ends the job. */
static bs_status check(comm_bench *b, const comm_case *c)
{
    BS_TRY(put_inputs(b, c));
    if (c->graph) {
        bs_graph *graph;
        BS_TRY(bs_bench_record(&b->out, queue_nth, &(comm_call){b, c}, 1, false, &graph));
        bs_status status = bs_graph_launch(b->out.stream, graph);
        if (status == BS_STATUS_OK) status = bs_stream_sync(b->out.stream);
        bs_graph_destroy(graph);
        BS_TRY(status);
    } else {
        BS_TRY(queue_call(b, c));
    }
    const size_t n = floats_of(b, c);
    if (c->op == MERGE_FOLD && b->size > 1) /* what o_proj's all-reduce does to it */
        BS_TRY(bs_comm_allreduce_sum(b->comm, BS_GROUP_SEQ, b->out.stream, bs_buffer_at(b->data, 0), n));
    BS_TRY(bs_copy_to_host(b->out.stream, b->host, bs_buffer_at(b->data, 0), n * sizeof *b->host));
    BS_TRY(bs_stream_sync(b->out.stream));
    return compare(b, c);
}

/* ---- time ---- */

static bs_status run_round(comm_bench *b, const comm_case *c, bs_graph *graph, bs_timer *timer, int round)
{
    bs_comm_progress(b->comm, b->n_run, round, BS_PHASE_MERGE);
    BS_TRY(bs_timer_start(b->out.stream, timer));
    if (graph) BS_TRY(bs_graph_launch(b->out.stream, graph));
    for (int i = 0; i < CALLS && !graph; i++) BS_TRY(queue_call(b, c));
    BS_TRY(bs_timer_stop(b->out.stream, timer));
    return bs_timer_ms(timer, &b->ms[round]);
}

/* Rank 0's estimate for all: as many rounds as go into ROUNDS_S. */
static bs_status choose_rounds(comm_bench *b, const comm_case *c, bs_graph *graph, bs_timer *timer, int *n)
{
    for (int round = 0; round < WARM_ROUNDS; round++) BS_TRY(run_round(b, c, graph, timer, round));
    const double fits = ROUNDS_S * 1e3 / (b->ms[WARM_ROUNDS - 1] + 1e-6);
    *n = fits < MIN_ROUNDS ? MIN_ROUNDS : fits > MAX_ROUNDS ? MAX_ROUNDS : (int)fits;
    return bs_comm_bcast_host(b->comm, n, sizeof *n, 0);
}

static void summarize(comm_bench *b, int n, comm_times *out)
{
    for (int i = 0; i < n; i++)
        for (int r = 1; r < b->size; r++)
            b->all[i] = fmax(b->all[i], b->all[(size_t)r * (size_t)n + (size_t)i]);
    const double us = 1e3 / CALLS;
    out->us = bs_bench_summarize(b->all, n, us); /* which sorts them */
    out->p99 = b->all[n - 1 - n / 100] * us;
    out->n_rounds = n;
}

/* out: on rank 0. */
static bs_status time_case(comm_bench *b, const comm_case *c, comm_times *out)
{
    bs_graph *graph = NULL;
    bs_timer *timer = NULL;
    bs_status status;
    int n = 0;
    /* Zeros stay what they are however often they are summed. */
    BS_TRY(bs_fill_zero(b->out.stream, bs_buffer_at(b->data, 0), bs_buffer_bytes(b->data)));
    BS_TRY(bs_fill_zero(b->out.stream, bs_buffer_at(b->lse, 0), bs_buffer_bytes(b->lse)));
    BS_TRY(bs_stream_sync(b->out.stream));
    BS_TRY(bs_timer_create(b->out.device, &timer));
    if (c->graph)
        BS_TRY_GOTO(bs_bench_record(&b->out, queue_nth, &(comm_call){b, c}, CALLS, false, &graph), err_timer);
    BS_TRY_GOTO(choose_rounds(b, c, graph, timer, &n), err_graph);
    for (int round = 0; round < n; round++) BS_TRY_GOTO(run_round(b, c, graph, timer, round), err_graph);
    bs_comm_progress_idle(b->comm);
    BS_TRY_GOTO(bs_comm_gather_host(b->comm, b->ms, (size_t)n * sizeof *b->ms, b->all, 0), err_graph);
    if (b->leader) summarize(b, n, out);
err_graph:
    bs_graph_destroy(graph);
err_timer:
    bs_timer_destroy(timer);
    return status;
}

/* ---- report, on rank 0 ---- */

static json_t *make_row(const comm_bench *b, const comm_case *c, int number, const char *wrong,
                        const comm_times *t)
{
    const bs_grid *grid = bs_comm_grid(b->comm);
    char shape[48];
    if (c->op == ALLREDUCE) snprintf(shape, sizeof shape, "%dx%d", c->n_tokens, HIDDEN);
    else snprintf(shape, sizeof shape, "%dx%dx%d", c->n_tokens, b->heads, DIM);
    json_t *row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:I}", "op",
                            op_names[c->op], "shape", shape, "transport", bs_comm_transport(b->comm), "mode",
                            c->graph ? "graph" : "eager", "check", wrong ? wrong : "passed", "device",
                            bs_device_get_info(b->out.device)->name, "number", number, "ranks", b->size,
                            "heads", grid->heads, "seq", grid->seq, "tokens", c->n_tokens, "bytes",
                            (json_int_t)state_bytes(b, c));
    const char *const keys[] = {"us", "us_p10", "us_p90", "us_p99", "bus_gb_s"};
    const double values[] = {t->us.median, t->us.p10, t->us.p90, t->p99,
                             wrong ? 0
                                   : bus_bytes(b, c) / (t->us.median > 0 ? t->us.median : INFINITY) * 1e-3};
    for (int i = 0; row && i < 5; i++)
        json_object_set_new(row, keys[i], wrong ? json_null() : json_real(values[i]));
    if (row) json_object_set_new(row, "rounds", wrong ? json_null() : json_integer(t->n_rounds));
    return row;
}

static bs_status begin_report(comm_bench *b)
{
    const bs_grid *grid = bs_comm_grid(b->comm);
    BS_TRY(bs_bench_open_report(&b->out));
    BS_TRY(bs_cli_print_table(b->out.table, "%s; %d rank%s, %d head x %d sequence shards, transport %s\n",
                              bs_device_get_info(b->out.device)->name, b->size, b->size == 1 ? "" : "s",
                              grid->heads, grid->seq, bs_comm_transport(b->comm)));
    return bs_cli_print_table(b->out.table, "%3s %-16s %-10s %-6s %9s %10s %-21s %10s %9s  %s\n", "#", "op",
                              "shape", "mode", "bytes", "us", "      p10-p90", "p99", "bus GB/s", "check");
}

static bs_status report(comm_bench *b, const comm_case *c, int number, const char *wrong, const comm_times *t)
{
    json_t *row = make_row(b, c, number, wrong, t);
    if (!row) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    const char *shape = json_string_value(json_object_get(row, "shape"));
    bs_status status = wrong ? bs_cli_print_table(b->out.table, "%3d %-16s %-10s %-6s FAILED: %s\n", number,
                                                  op_names[c->op], shape, c->graph ? "graph" : "eager", wrong)
                             : bs_cli_print_table(
                                   b->out.table,
                                   "%3d %-16s %-10s %-6s %9.0f %10.2f %10.2f-%-10.2f %10.2f %9.3f  passed\n",
                                   number, op_names[c->op], shape, c->graph ? "graph" : "eager",
                                   state_bytes(b, c), t->us.median, t->us.p10, t->us.p90, t->p99,
                                   json_real_value(json_object_get(row, "bus_gb_s")));
    if (status == BS_STATUS_OK) status = bs_bench_add_row(&b->out, row);
    json_decref(row);
    return status;
}

/* ---- the run ---- */

/* Whether all ranks found their numbers right; rank 0 gets the words of the first that did not. */
static bs_status all_right(comm_bench *b, bs_status mine, bool *right, const char **words)
{
    char why[WHY] = "";
    if (mine != BS_STATUS_OK) snprintf(why, sizeof why, "rank %d: %.200s", b->rank, bs_error_message());
    bs_error_clear();
    BS_TRY(bs_comm_gather_host(b->comm, why, sizeof why, b->why, 0));
    *words = NULL;
    for (int r = 0; b->leader && r < b->size && !*words; r++)
        if (b->why[r * WHY]) *words = &b->why[r * WHY];
    *right = *words == NULL;
    return bs_comm_bcast_host(b->comm, right, sizeof *right, 0);
}

static bs_status run_case(comm_bench *b, const comm_case *c, int number)
{
    comm_times times = {0};
    bool right;
    const char *words;
    bs_comm_progress(b->comm, b->n_run, 0, BS_PHASE_MERGE);
    bs_status status = check(b, c);
    bs_comm_progress_idle(b->comm);
    if (status != BS_STATUS_OK && status != BS_STATUS_MISMATCH) return bs_cli_end_job(b->comm, status);
    BS_TRY(all_right(b, status, &right, &words));
    status = right ? time_case(b, c, &times) : BS_STATUS_OK;
    if (status != BS_STATUS_OK)
        return bs_cli_end_job(b->comm, status); /* the others may wait in a collective */
    /* A report that cannot be written ends the run, on all ranks. */
    status = bs_comm_agree(b->comm, b->leader ? report(b, c, number, words, &times) : BS_STATUS_OK);
    b->n_run++;
    b->n_failed += !right;
    return status;
}

static bool is_asked(const char *items, int i)
{
    char name[BS_BENCH_NAME];
    case_name(NULL, i, name);
    return !items || bs_bench_matches(items, name, i + 1);
}

static bool is_wanted(const comm_bench *b, const char *items, int i)
{
    const bool cpu = bs_device_get_info(b->out.device)->kind == BS_DEVICE_CPU;
    if (nth_case(i).graph && (cpu || !bs_comm_capturable(b->comm))) return false;
    return is_asked(items, i);
}

/* All that was asked for may be graphs where there are none. */
static bs_status check_any(const comm_bench *b, const char *items)
{
    for (int i = 0; i < N_CASES; i++)
        if (is_wanted(b, items, i)) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_USAGE, "--case %s: no graphs over transport %s on this device", items,
                   bs_comm_transport(b->comm));
}

static bs_status list_cases(void)
{
    for (int i = 0; i < N_CASES; i++) {
        char name[BS_BENCH_NAME];
        case_name(NULL, i, name);
        BS_TRY(bs_cli_print("%3d %s\n", i + 1, name));
    }
    return BS_STATUS_OK;
}

/* With --dry-run nothing else is looked at. */
static bs_status read_options(comm_bench *b, bs_grid *grid)
{
    char all_seq[32];
    const char *text = bs_options_string(b->out.options, "grid");
    if (bs_options_flag(b->out.options, "dry-run")) return BS_STATUS_OK;
    snprintf(all_seq, sizeof all_seq, "1x%d", b->size);
    /* Each item names a case, whether or not this transport has it. */
    BS_TRY(bs_bench_check_items(bs_options_string(b->out.options, "case"), NULL, N_CASES, case_name));
    BS_TRY(bs_grid_choose(b->rank, b->size, KV_HEADS, text ? text : all_seq, grid));
    b->heads = HEADS / grid->heads;
    return BS_STATUS_OK;
}

/* What must be the same on all ranks. With --dry-run nothing else counts. */
typedef struct common_ground {
    bs_cli_ground comm;              /* grid and transport */
    int64_t dry_run, asked[N_CASES]; /* asked: by --case */
} common_ground;

static bs_status compare_ground(comm_bench *b, const bs_grid *grid)
{
    const bs_options *o = b->out.options;
    common_ground mine, rank0;
    memset(&mine, 0, sizeof mine); /* compared as bytes */
    mine.dry_run = bs_options_flag(o, "dry-run");
    if (!mine.dry_run) {
        mine.comm.heads = grid->heads;
        mine.comm.seq = grid->seq;
        snprintf(mine.comm.transport, sizeof mine.comm.transport, "%s", bs_options_string(o, "transport"));
        for (int i = 0; i < N_CASES; i++) mine.asked[i] = is_asked(bs_options_string(o, "case"), i);
    }
    rank0 = mine;
    BS_TRY(bs_comm_bcast_host(b->comm, &rank0, sizeof rank0, 0));
    if (mine.dry_run != rank0.dry_run)
        return bs_fail(BS_STATUS_MISMATCH,
                       "--dry-run is not what rank 0 has: look at the environment of this machine");
    return bs_cli_compare_ground(&mine, &rank0, sizeof mine, "--case");
}

static bs_status open_local(comm_bench *b)
{
    BS_TRY(bs_cli_open_device(b->out.options, b->comm, &b->out.device));
    return bs_stream_create(b->out.device, &b->out.stream);
}

static bs_status take_memory(comm_bench *b)
{
    const int seq = bs_comm_grid(b->comm)->seq;
    size_t most = 0;
    for (int method = BS_MERGE_ALLREDUCE; method <= BS_MERGE_FOLD; method++) {
        size_t bytes = bs_merge_workspace_bytes((bs_merge_method)method, seq, MAX_TOKENS * b->heads, DIM);
        most = bytes > most ? bytes : most;
    }
    BS_TRY(bs_buffer_alloc(b->out.device, (size_t)MAX_TOKENS * HIDDEN * sizeof(float), "data", &b->data));
    BS_TRY(bs_buffer_alloc(b->out.device, (size_t)MAX_TOKENS * HEADS * sizeof(float), "LSE", &b->lse));
    if (most > 0) BS_TRY(bs_buffer_alloc(b->out.device, most, "workspace", &b->workspace));
    const size_t ranks = b->leader ? (size_t)b->size : 0;
    b->host = malloc((size_t)MAX_TOKENS * HIDDEN * sizeof *b->host);
    b->ms = malloc(MAX_ROUNDS * sizeof *b->ms);
    b->all = malloc((ranks * MAX_ROUNDS + 1) * sizeof *b->all);
    b->why = malloc(ranks * WHY + 1);
    if (b->host && b->ms && b->all && b->why) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_NOMEM, "bench: no memory for the times of %d ranks", b->size);
}

static bs_status run_cases(comm_bench *b)
{
    const double start = bs_now_s();
    const char *items = bs_options_string(b->out.options, "case");
    const double watchdog_s = bs_options_float(b->out.options, "watchdog-s");
    BS_TRY(bs_comm_agree(b->comm, check_any(b, items)));
    BS_TRY(bs_comm_agree(b->comm, b->leader ? begin_report(b) : BS_STATUS_OK));
    if (watchdog_s > 0) BS_TRY(bs_comm_agree(b->comm, bs_comm_watchdog_start(b->comm, watchdog_s)));
    for (int i = 0; i < N_CASES; i++) {
        if (!is_wanted(b, items, i)) continue;
        const comm_case c = nth_case(i);
        BS_TRY(run_case(b, &c, i + 1));
    }
    bs_log_info("bench: %d cases in %.1f s", b->n_run, bs_now_s() - start);
    if (b->n_failed == 0) return BS_STATUS_OK;
    return bs_comm_agree(b->comm,
                         bs_fail(BS_STATUS_MISMATCH, "bench: %d of %d cases failed", b->n_failed, b->n_run));
}

static bs_status set_up(comm_bench *b, const bs_grid *grid)
{
    BS_TRY(bs_comm_agree(b->comm, open_local(b)));
    BS_TRY(bs_comm_agree(b->comm, bs_comm_set_grid(b->comm, grid)));
    BS_TRY(bs_comm_agree(b->comm, bs_cli_use_transport(b->out.options, b->comm, b->out.device)));
    return bs_comm_agree(b->comm, take_memory(b));
}

bs_status bs_bench_comm(const bs_options *options, bs_comm *comm)
{
    comm_bench b = {.out = {.options = options},
                    .comm = comm,
                    .leader = bs_comm_rank(comm) == 0,
                    .size = bs_comm_size(comm),
                    .rank = bs_comm_rank(comm)};
    bs_grid grid = {0};
    BS_TRY(bs_comm_agree(comm, read_options(&b, &grid)));
    BS_TRY(bs_comm_agree(comm, compare_ground(&b, &grid)));
    if (bs_options_flag(options, "dry-run"))
        return bs_comm_agree(comm, b.leader ? list_cases() : BS_STATUS_OK);
    bs_status status = set_up(&b, &grid);
    if (status == BS_STATUS_OK) status = run_cases(&b);
    bs_status closed = b.leader ? bs_bench_close_report(&b.out) : BS_STATUS_OK;
    if (status == BS_STATUS_OK) status = bs_comm_agree(comm, closed);
    free(b.host);
    free(b.ms);
    free(b.all);
    free(b.why);
    bs_buffer_free(b.data);
    bs_buffer_free(b.lse);
    bs_buffer_free(b.workspace);
    bs_stream_destroy(b.out.stream);
    bs_cli_close_device(comm, b.out.device);
    return status;
}
