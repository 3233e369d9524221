/* bench_decode.c: `bitshard bench decode`: what a token costs behind so many cached ones.
 *
 * An engine is opened for each KV format and batch, sized for the longest context that fits; each row then starts its
 * sequences behind that many tokens of noise and decodes through bs_engine_run, as generate does: graphs, plans one step
 * ahead and all. The time of a token is what lies between two results on rank 0. Afterwards a few steps run op by op with
 * timers at the phases, which shows how the time is shared out; their sum is not the step's time, as graphs leave the
 * host's gaps out and let kernels overlap. Everything is collective, and what does not fit is a row that says so.
 */
#include "config.h"

#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/cli/bench_decode.h"

#include <stdlib.h>
#include <string.h>

enum {
    WARM_STEPS = 4,
    PART_STEPS = 8,
    MAX_STEPS = 1000,
    SPARE_TOKENS = WARM_STEPS + PART_STEPS + 4,
    CHUNK = 2048
};

/* ---- options ---- */

static bs_status read_options(bs_decode_bench *d)
{
    const bs_options *o = d->bench.options;
    const char *contexts = bs_options_string(o, "contexts");
    BS_TRY(bs_bench_refuse_cases(o, 1));
    if (!contexts) contexts = d->bench.gpu ? "1K,32K,128K,1M" : "1K,8K";
    BS_TRY(bs_bench_parse_counts("contexts", contexts, INT32_MAX - 2 * 65536, d->contexts, &d->n_contexts));
    BS_TRY(
        bs_bench_parse_counts("batches", bs_options_string(o, "batches"), 1024, d->batches, &d->n_batches));
    BS_TRY(bs_bench_parse_formats(o, d->kv, &d->n_formats));
    BS_TRY(bs_cli_read_merge(o, &d->config.merge));
    d->config.act = bs_cli_read_dtype(o);
    d->config.stripe_pages = (int)bs_options_int(o, "stripe-pages");
    d->n_steps = (int)bs_options_int(o, "steps");
    return BS_STATUS_OK;
}

static bs_status open_local(bs_decode_bench *d)
{
    BS_TRY(bs_bench_open_device(&d->bench, d->comm));
    BS_TRY(read_options(d));
    return bs_bench_open_model(&d->bench, d->comm, NULL, &d->model, &d->grid);
}

static bs_status compare_ground(bs_decode_bench *d)
{
    const bs_cli_ground engine = bs_cli_ground_of(d->bench.options, d->model, &d->grid, &d->config);
    bs_bench_ground mine;
    bs_bench_ground_begin(&mine, &engine, d->kv, d->n_formats);
    memcpy(mine.contexts, d->contexts, sizeof mine.contexts);
    memcpy(mine.batches, d->batches, sizeof mine.batches);
    mine.own[0] = d->n_steps;
    return bs_bench_compare_ground(d->comm, &mine, "--kv, --contexts, --batches or --steps");
}

/* ---- what fits ---- */

static bs_engine_config config_for(const bs_decode_bench *d, const bs_kv_format *kv, int batch,
                                   int64_t context)
{
    bs_engine_config config = d->config;
    config.kv = *kv;
    config.chunk_tokens = CHUNK;
    config.max_seqs = config.max_step_tokens = batch;
    config.max_prefill_seqs = 1;
    config.max_context = context + d->n_steps + SPARE_TOKENS;
    config.total_tokens = config.max_context * batch;
    return config;
}

/* ---- a run of steps ---- */

typedef struct run {
    bs_decode_bench *d;

    int64_t context;
    int batch, n_steps, n_planned, n_done;
    double *done_s; /* [n_steps] */
} run;

static void start_sequences(const run *r, bs_plan *plan)
{
    const bs_cache *cache = bs_engine_cache(r->d->engine);
    for (int i = 0; i < r->batch; i++) {
        if (bs_cache_seq_length(cache, i) >= 0) bs_plan_frees(plan)[plan->n_frees++] = i;
        bs_plan_starts(plan)[plan->n_starts++] = (bs_plan_start){
            .seq = i,
            .start_s = i % r->d->grid.seq,
            .n_tokens = r->context + r->d->n_steps + SPARE_TOKENS,
            .from = -1,
            .reuse_tokens = -1,
            .fill_tokens = r->context,
            .sampling = {.top_p = 1, .repeat_penalty = 1}};
    }
}

/* Token n of every sequence, counted from the context on. */
static void add_tokens(const run *r, bs_plan *plan, int64_t n, bool drawn)
{
    const int n_vocab = bs_model_get_desc(r->d->model)->n_vocab;
    for (int i = 0; i < r->batch; i++) {
        bs_plan_seqs(plan)[plan->n_seqs++] = (bs_plan_seq){.seq = i,
                                                           .n_tokens = 1,
                                                           .flags = BS_PLAN_SEQ_SAMPLE,
                                                           .pos0 = r->context + n,
                                                           .first_token = plan->n_tokens};
        bs_plan_tokens(plan)[plan->n_tokens++] = drawn ? BS_PLAN_LAST_TOKEN : (1 + i) % n_vocab;
    }
}

static bs_status make_plan(void *context, bs_plan *plan)
{
    run *r = context;
    if (r->n_planned == r->n_steps) {
        plan->flags = BS_PLAN_STOP;
        return BS_STATUS_OK;
    }
    if (r->n_planned == 0) start_sequences(r, plan);
    add_tokens(r, plan, r->n_planned, r->n_planned > 0);
    r->n_planned++;
    return BS_STATUS_OK;
}

static bs_status take_result(void *context, const bs_plan *plan, const bs_step_result *result)
{
    run *r = context;
    (void)plan;
    (void)result;
    r->done_s[r->n_done++] = bs_now_s();
    return BS_STATUS_OK;
}

/* Decodes n_steps behind some to warm up (a graph is recorded there); rank 0 learns their times. Collective. */
static bs_status time_steps(bs_decode_bench *d, int64_t context, int batch, bs_bench_times *ms)
{
    double done_s[WARM_STEPS + MAX_STEPS], step_ms[MAX_STEPS];
    run r = {
        .d = d, .context = context, .batch = batch, .n_steps = WARM_STEPS + d->n_steps, .done_s = done_s};
    const bs_driver driver = {&r, make_plan, take_result};
    bs_status status = bs_engine_run(d->engine, d->leader ? &driver : NULL);
    if (status != BS_STATUS_OK) return bs_cli_end_job(d->comm, status);
    const int n = d->n_steps;
    for (int i = 0; i < n && d->leader; i++)
        step_ms[i] = (done_s[WARM_STEPS + i] - done_s[WARM_STEPS + i - 1]) * 1e3;
    if (d->leader) *ms = bs_bench_summarize(step_ms, n, 1);
    return BS_STATUS_OK;
}

/* ---- parts of a step ---- */

static bs_decode_part part_of(const bs_decode_bench *d, bs_phase phase)
{
    switch (phase) {
    case BS_PHASE_QUANTIZE:
    case BS_PHASE_APPEND:
    case BS_PHASE_ATTEND: return BS_DECODE_ATTEND;
    case BS_PHASE_NORM:
    case BS_PHASE_QKV:
    case BS_PHASE_O_PROJ:
    case BS_PHASE_FFN:
    case BS_PHASE_SILU:
    case BS_PHASE_LOGITS: return BS_DECODE_DENSE;
    case BS_PHASE_MERGE:
        return d->grid.seq > 1 ? BS_DECODE_COMM : BS_DECODE_ATTEND; /* alone it turns O back */
    case BS_PHASE_SUM: return BS_DECODE_COMM;
    default: return BS_DECODE_OTHER;
    }
}

/* One step after the timed ones, op by op; all ranks make the same plan. */
static bs_status take_apart(bs_decode_bench *d, const run *r, bs_plan *plan, int64_t n, bs_bench_marks *m,
                            double part_ms[BS_DECODE_N_PARTS])
{
    bs_step_result result;
    bs_plan_clear(plan, bs_engine_limits(d->engine), n);
    add_tokens(r, plan, n, true);
    double phase_ms[BS_BENCH_N_PHASES];
    bs_bench_marks_begin(m);
    BS_TRY(bs_engine_step(d->engine, plan, &result));
    BS_TRY(bs_bench_marks_read(m, phase_ms));
    for (int phase = 0; phase < BS_BENCH_N_PHASES; phase++)
        part_ms[part_of(d, (bs_phase)phase)] += phase_ms[phase];
    return BS_STATUS_OK;
}

static bs_status run_parts(bs_decode_bench *d, const run *r, bs_plan *plan, bs_bench_marks *m,
                           double part_ms[BS_DECODE_N_PARTS])
{
    double ms[BS_DECODE_N_PARTS][PART_STEPS];
    const int64_t first = WARM_STEPS + d->n_steps;
    for (int step = 0; step <= PART_STEPS; step++) { /* the first warms up */
        double one_ms[BS_DECODE_N_PARTS] = {0};
        BS_TRY(take_apart(d, r, plan, first + step, m, one_ms));
        for (int part = 0; part < BS_DECODE_N_PARTS && step > 0; part++) ms[part][step - 1] = one_ms[part];
    }
    for (int part = 0; part < BS_DECODE_N_PARTS; part++)
        part_ms[part] = bs_bench_summarize(ms[part], PART_STEPS, 1).median;
    return BS_STATUS_OK;
}

static bs_status time_parts(bs_decode_bench *d, int64_t context, int batch, double part_ms[BS_DECODE_N_PARTS])
{
    run r = {.d = d, .context = context, .batch = batch};
    bs_bench_marks m = {0};
    bs_plan *plan = malloc(bs_plan_bytes(bs_engine_limits(d->engine)));
    bs_status status = plan ? bs_bench_marks_open(d->bench.device, bs_model_get_desc(d->model)->n_layers, &m)
                            : bs_fail(BS_STATUS_NOMEM, "bench: no memory for a plan");
    BS_TRY_GOTO(bs_comm_agree(d->comm, status), err_free);
    bs_engine_set_mark(d->engine, bs_bench_marks_take, &m);
    status = run_parts(d, &r, plan, &m, part_ms);
    bs_engine_set_mark(d->engine, NULL, NULL);
    bs_comm_progress_idle(d->comm);
    if (status != BS_STATUS_OK) status = bs_cli_end_job(d->comm, status);
err_free:
    bs_bench_marks_close(&m);
    free(plan);
    return status;
}

/* ---- bytes ---- */

/* K and V as stored that a step reads on this rank, parameters counted: quantized pages whole, f16 ones by the token. */
static double cached_bytes(const bs_decode_bench *d, const bs_kv_format *kv, int batch)
{
    const bs_model_desc *desc = bs_model_get_desc(d->model);
    const bs_cache *cache = bs_engine_cache(d->engine);
    const bs_kv_page_bytes page = bs_kv_canonical_bytes(kv, desc->head_dim);
    double bytes = 0;
    for (int seq = 0; seq < batch; seq++) {
        const int64_t length = bs_cache_seq_length(cache, seq);
        for (int64_t p = 0; p * BS_PAGE_TOKENS < length; p++) {
            const bs_page_kind kind = bs_cache_page(cache, seq, p).kind;
            const int64_t n_tokens = bs_min_i64(BS_PAGE_TOKENS, length - p * BS_PAGE_TOKENS);
            if (kind == BS_PAGE_NONE) continue;
            const double one = kind == BS_PAGE_QUANT ? (double)(page.k + page.k_meta + page.v + page.v_meta)
                                                     : 4.0 * desc->head_dim * (double)n_tokens;
            for (int l = 0; l < desc->n_layers; l++) {
                const int window = desc->layers[l].window;
                if (window == 0 || (p + 1) * BS_PAGE_TOKENS > length - window) bytes += one;
            }
        }
    }
    return bytes * (desc->n_kv_heads / d->grid.heads);
}

/* Those of the rank that reads most, to rank 0. Collective. */
static bs_status find_most_bytes(bs_decode_bench *d, bs_decode_row *row)
{
    const double mine[2] = {(double)bs_engine_step_weight_bytes(d->engine),
                            cached_bytes(d, row->kv, row->batch)};
    void *all;
    BS_TRY(bs_cli_gather(d->comm, mine, sizeof mine, "bench", &all));
    const double *bytes = all; /* rank 0: [size, 2] */
    for (int rank = 0; d->leader && rank < d->grid.size; rank++, bytes += 2) {
        if (bytes[0] + bytes[1] <= row->weight_bytes + row->kv_bytes) continue;
        row->weight_bytes = bytes[0];
        row->kv_bytes = bytes[1];
    }
    free(all);
    return BS_STATUS_OK;
}

/* ---- rows ---- */

static bs_status measure(bs_decode_bench *d, const bs_kv_format *kv, int batch, int64_t context)
{
    bs_decode_row row = {.kv = kv, .context = context, .batch = batch};
    BS_TRY(time_steps(d, context, batch, &row.ms));
    BS_TRY(time_parts(d, context, batch, row.part_ms));
    BS_TRY(find_most_bytes(d, &row));
    return bs_comm_agree(d->comm, d->leader ? bs_decode_report(d, &row) : BS_STATUS_OK);
}

static bs_status run_group(bs_decode_bench *d, const bs_kv_format *kv, int batch)
{
    bool fits[BS_BENCH_MAX_ITEMS];
    char why[BS_BENCH_MAX_ITEMS][160];
    int64_t longest = 0;
    bs_status status = BS_STATUS_OK;
    for (int i = 0; i < d->n_contexts; i++) {
        const bs_engine_config config = config_for(d, kv, batch, d->contexts[i]);
        BS_TRY(bs_bench_find_fit(d->model, d->bench.device, d->comm, &d->grid, &config, &fits[i], why[i],
                                 sizeof why[i]));
        if (fits[i]) longest = bs_max_i64(longest, d->contexts[i]);
    }
    if (longest > 0) {
        const bs_engine_config config = config_for(d, kv, batch, longest);
        BS_TRY(bs_engine_open(d->model, d->bench.device, d->comm, &config, NULL, NULL, &d->engine));
    }
    for (int i = 0; i < d->n_contexts && status == BS_STATUS_OK; i++) {
        const bs_decode_row skipped = {
            .kv = kv, .context = d->contexts[i], .batch = batch, .skipped = why[i]};
        if (fits[i]) status = measure(d, kv, batch, d->contexts[i]);
        else status = bs_comm_agree(d->comm, d->leader ? bs_decode_report(d, &skipped) : BS_STATUS_OK);
    }
    bs_engine_close(d->engine);
    d->engine = NULL;
    return status;
}

static bs_status run_groups(bs_decode_bench *d)
{
    BS_TRY(bs_comm_agree(d->comm, open_local(d)));
    BS_TRY(bs_comm_agree(d->comm, compare_ground(d)));
    BS_TRY(bs_comm_agree(d->comm, bs_comm_set_grid(d->comm, &d->grid)));
    BS_TRY(bs_comm_agree(d->comm, bs_cli_use_transport(d->bench.options, d->comm, d->bench.device)));
    BS_TRY(bs_comm_agree(d->comm, bs_bench_read_ceiling(&d->bench)));
    BS_TRY(bs_comm_agree(d->comm, d->leader ? bs_decode_begin_table(d) : BS_STATUS_OK));
    const double watchdog_s = bs_options_float(d->bench.options, "watchdog-s");
    if (watchdog_s > 0) BS_TRY(bs_comm_agree(d->comm, bs_comm_watchdog_start(d->comm, watchdog_s)));
    for (int f = 0; f < d->n_formats; f++)
        for (int b = 0; b < d->n_batches; b++) BS_TRY(run_group(d, &d->kv[f], (int)d->batches[b]));
    return BS_STATUS_OK;
}

bs_status bs_bench_decode(const bs_options *options, bs_comm *comm)
{
    bs_decode_bench *d = calloc(1, sizeof *d);
    bs_status status = d ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "bench: no memory");
    BS_TRY_GOTO(bs_comm_agree(comm, status), err_free);
    *d = (bs_decode_bench){.bench = {.options = options}, .comm = comm, .leader = bs_comm_rank(comm) == 0};
    status = run_groups(d);
    bs_engine_close(d->engine);
    status = bs_bench_close(&d->bench, comm, d->model, status);
err_free:
    free(d);
    return status;
}
