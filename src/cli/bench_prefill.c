/* bench_prefill.c: `bitshard bench prefill`: how fast a prompt is read, chunk by chunk, on all ranks.
 *
 * An engine is opened for each KV format and reads the longest prompt that fits through bs_engine_run, cut as generate cuts
 * it: plans one step ahead, the host's work in the window. The time of a chunk is what lies between two results on rank 0.
 * Shorter prompts are beginnings of the longest, so their time is a sum of the same chunks. Where one run cannot hold a
 * prompt, --samples times chunks behind noise at places of it, --seconds ends the reading, and prefill_model.c says what the
 * rest would take; such a row says so. Afterwards some chunks run op by op with timers at the phases, behind noise.
 * Everything is collective.
 */
#include "config.h"

#include "src/base/checked.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/bench_prefill.h"
#include "src/cli/stop.h"

#include <stdlib.h>
#include <string.h>

/* ---- options ---- */

static int by_length(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static bs_status read_options(bs_prefill_bench *p)
{
    const bs_options *o = p->bench.options;
    const char *contexts = bs_options_string(o, "contexts");
    const int64_t chunk = bs_options_int(o, "chunk-tokens");
    BS_TRY(bs_bench_refuse_cases(o, 1));
    if (chunk % BS_PAGE_TOKENS != 0)
        return bs_fail(BS_STATUS_USAGE, "--chunk-tokens %lld: must be a multiple of %d", (long long)chunk,
                       BS_PAGE_TOKENS);
    if (!contexts) contexts = p->bench.gpu ? "8K,32K,128K" : "1K,4K";
    BS_TRY(bs_bench_parse_counts("contexts", contexts, INT32_MAX / 2, p->contexts, &p->n_contexts));
    qsort(p->contexts, (size_t)p->n_contexts, sizeof *p->contexts, by_length);
    BS_TRY(bs_bench_parse_formats(o, p->kv, &p->n_formats));
    BS_TRY(bs_cli_read_merge(o, &p->config.merge));
    p->config.act = bs_cli_read_dtype(o);
    p->config.stripe_pages = (int)bs_options_int(o, "stripe-pages");
    p->config.chunk_tokens = (int)chunk;
    p->step_ms = bs_options_float(o, "step-ms");
    p->most_s = bs_options_float(o, "seconds");
    p->n_samples = (int)bs_options_int(o, "samples");
    p->n_fill = bs_options_int(o, "kv-fill");
    if (p->n_samples == 1) return bs_fail(BS_STATUS_USAGE, "--samples 1: two give a line, 0 reads all");
    if (p->n_samples > 0 && p->n_fill % chunk != 0)
        return bs_fail(BS_STATUS_USAGE, "--kv-fill %lld: with --samples a multiple of --chunk-tokens, %lld",
                       (long long)p->n_fill, (long long)chunk);
    return BS_STATUS_OK;
}

static bs_status open_local(bs_prefill_bench *p)
{
    BS_TRY(bs_bench_open_device(&p->bench, p->comm));
    BS_TRY(read_options(p));
    return bs_bench_open_model(&p->bench, p->comm, NULL, &p->model, &p->grid);
}

static bs_status compare_ground(bs_prefill_bench *p)
{
    const bs_cli_ground engine = bs_cli_ground_of(p->bench.options, p->model, &p->grid, &p->config);
    bs_bench_ground mine;
    bs_bench_ground_begin(&mine, &engine, p->kv, p->n_formats);
    memcpy(mine.contexts, p->contexts, sizeof mine.contexts);
    mine.own[0] = p->config.chunk_tokens;
    mine.own[1] = p->n_fill;
    mine.own[2] = p->n_samples;
    mine.step_ms = p->step_ms;
    return bs_bench_compare_ground(p->comm, &mine,
                                   "--kv, --contexts, --chunk-tokens, --step-ms, --samples or --kv-fill");
}

/* ---- the yardstick ---- */

/* On a CPU: f16 weights by f32 activations, as its engine multiplies. A GPU's is bench_gemm.c. */
typedef struct yardstick {
    bs_buffer *w, *x, *y, *workspace;
    bs_weight weight;
    bs_gemm_args gemm;
    bs_stream *stream;
} yardstick;

static bs_status queue_gemm(void *context, int call)
{
    yardstick *g = context;
    (void)call;
    return bs_op_gemm(g->stream, &g->gemm);
}

static bs_status open_yardstick(bs_prefill_bench *p, yardstick *g, int64_t n, int n_tokens)
{
    bs_device *device = p->bench.device;
    const size_t work = bs_gemm_workspace_bytes(device, n, n, n_tokens),
                 bytes = (size_t)(n_tokens * n) * sizeof(float);
    g->stream = p->bench.stream;
    g->weight = (bs_weight){.type = BS_TYPE_F16, .row_bytes = (size_t)n * 2, .n_rows = n, .n_cols = n};
    BS_TRY(bs_buffer_alloc(device, (size_t)(n * n) * 2, "yardstick", &g->w));
    BS_TRY(bs_buffer_alloc(device, bytes, "yardstick", &g->x));
    BS_TRY(bs_buffer_alloc(device, bytes, "yardstick", &g->y));
    BS_TRY(bs_buffer_alloc(device, work + 256, "yardstick", &g->workspace));
    g->weight.data = bs_buffer_at(g->w, 0);
    BS_TRY(bs_op_random_fill(g->stream, &(bs_random_fill_args){.type = BS_TYPE_F16,
                                                               .out = bs_buffer_at(g->w, 0),
                                                               .row_bytes = (size_t)n * 2,
                                                               .n_rows = n,
                                                               .n_cols = n,
                                                               .ld = n,
                                                               .seed = 3,
                                                               .std = 1}));
    float *x = bs_buffer_at(g->x, 0);
    uint64_t seed = 5;
    for (int64_t i = 0; i < n_tokens * n; i++) x[i] = (float)(int32_t)bs_bench_random(&seed) * 0x1p-31f;
    g->gemm = (bs_gemm_args){.w = &g->weight,
                             .x = x,
                             .ldx = n,
                             .n_tokens = n_tokens,
                             .act = BS_TYPE_F32,
                             .out_type = BS_TYPE_F32,
                             .y = bs_buffer_at(g->y, 0),
                             .ldy = n,
                             .workspace = bs_buffer_at(g->workspace, 0),
                             .workspace_bytes = work};
    return BS_STATUS_OK;
}

static bs_status measure_yardstick(bs_prefill_bench *p)
{
    enum { N = 2048, N_TOKENS = 512 };
    yardstick g = {0};
    bs_bench_times us;
    if (p->bench.gpu) return bs_bench_gemm_ceiling(&p->bench);
    bs_status status = open_yardstick(p, &g, N, N_TOKENS);
    if (status == BS_STATUS_OK) status = bs_bench_time(&p->bench, queue_gemm, &g, 2, &us, NULL);
    if (status == BS_STATUS_OK) p->bench.gemm_tflop_s = 2.0 * N * N * N_TOKENS / us.median * 1e-6;
    bs_buffer_free(g.workspace);
    bs_buffer_free(g.y);
    bs_buffer_free(g.x);
    bs_buffer_free(g.w);
    return status;
}

/* ---- a run of steps ---- */

/* The end of the chunk that holds this position. */
static int64_t chunk_end(const bs_prefill_bench *p, int64_t position)
{
    return (position / p->config.chunk_tokens + 1) * p->config.chunk_tokens;
}

/* Tokens `first` … `end` − 1 of a prompt, behind noise. */
typedef struct run {
    bs_prefill_bench *p;
    int64_t first, end; /* absolute positions */
    int64_t planned, done;
    bool starts; /* a plan of the start alone, which draws the noise */
    bool timed;  /* its chunks become points */
    double start_s, last_s;
    int n_steps; /* of the chunk at hand */
    bs_progress *progress;
} run;

/* A sequence that begins behind r->first tokens of noise. */
static void start_sequence(const run *r, bs_plan *plan)
{
    if (bs_cache_seq_length(bs_engine_cache(r->p->engine), 0) >= 0) bs_plan_frees(plan)[plan->n_frees++] = 0;
    bs_plan_starts(plan)[plan->n_starts++] = (bs_plan_start){.n_tokens = chunk_end(r->p, r->end),
                                                             .from = -1,
                                                             .reuse_tokens = -1,
                                                             .fill_tokens = r->first,
                                                             .sampling = {.top_p = 1, .repeat_penalty = 1}};
}

/* The next step from `position` on; its end. */
static int64_t add_step(const run *r, bs_plan *plan, int64_t position)
{
    const uint32_t n_vocab = (uint32_t)bs_model_get_desc(r->p->model)->n_vocab;
    const int cut = bs_engine_prompt_cut(r->p->engine, position, r->p->step_ms);
    const int n = (int)bs_min_i64(cut, r->end - position);
    bs_plan_seqs(plan)[plan->n_seqs++] = (bs_plan_seq){
        .n_tokens = n,
        .flags = BS_PLAN_SEQ_PREFILL | (position + n == r->end ? BS_PLAN_SEQ_SAMPLE : 0),
        .pos0 = position};
    for (int i = 0; i < n; i++) {
        uint64_t seed = (uint64_t)(position + i);
        bs_plan_tokens(plan)[i] = (int32_t)(bs_bench_random(&seed) % n_vocab);
    }
    plan->n_tokens = n;
    return position + n;
}

static bs_status make_plan(void *context, bs_plan *plan)
{
    run *r = context;
    const bool late = r->p->most_s > 0 && r->timed && bs_now_s() - r->start_s > r->p->most_s;
    if (r->planned == r->end || late || bs_cli_stop_signal()) {
        plan->flags = BS_PLAN_STOP;
    } else if (r->starts) {
        start_sequence(r, plan);
        r->planned = r->end;
    } else {
        r->planned = add_step(r, plan, r->planned);
    }
    return BS_STATUS_OK;
}

static void add_point(run *r, int64_t first, double ms)
{
    bs_prefill_bench *p = r->p;
    for (int part = 0; part < BS_PREFILL_N_PARTS; part++) p->parts[p->n_points][part] = -1;
    p->point_steps[p->n_points] = r->n_steps;
    p->points[p->n_points++] = (bs_prefill_point){.first = first, .n_tokens = r->done - first, .ms = ms};
}

static bs_status take_result(void *context, const bs_plan *plan, const bs_step_result *result)
{
    run *r = context;
    const double now = bs_now_s();
    (void)result;
    if (r->starts) return BS_STATUS_OK;
    const bs_plan_seq *seq = bs_plan_seqs(plan);
    r->done = seq->pos0 + seq->n_tokens;
    r->n_steps++;
    if (r->progress)
        bs_progress_update_share(
            r->progress, (uint64_t)(r->done - r->first),
            bs_engine_prompt_share(r->p->engine, r->first, r->done - r->first, r->end - r->first));
    if (r->done != r->end && r->done % r->p->config.chunk_tokens != 0) return BS_STATUS_OK;
    const int64_t first = bs_max_i64(r->first, chunk_end(r->p, seq->pos0) - r->p->config.chunk_tokens);
    if (r->timed) add_point(r, first, (now - r->last_s) * 1e3);
    r->last_s = now;
    r->n_steps = 0;
    return BS_STATUS_OK;
}

static bs_status carry_out(run *r)
{
    bs_prefill_bench *p = r->p;
    const bs_driver driver = {r, make_plan, take_result};
    r->planned = r->first;
    r->start_s = r->last_s = bs_now_s();
    bs_status status = bs_engine_run(p->engine, p->leader ? &driver : NULL);
    if (status != BS_STATUS_OK) return bs_cli_end_job(p->comm, status);
    int32_t stopped = p->stopped || bs_cli_stop_signal() != 0;
    BS_TRY(bs_comm_bcast_host(p->comm, &stopped, sizeof stopped, 0));
    p->stopped = stopped;
    return BS_STATUS_OK;
}

/* Begins a sequence behind `first` tokens of noise, with room up to `end`. Collective. */
static bs_status start_behind(bs_prefill_bench *p, int64_t first, int64_t end)
{
    run r = {.p = p, .first = first, .end = end, .starts = true};
    return carry_out(&r);
}

/* Reads tokens first … end − 1, which come next in the sequence. Collective. */
static bs_status read_tokens(bs_prefill_bench *p, int64_t first, int64_t end, bool timed,
                             bs_progress *progress)
{
    run r = {.p = p, .first = first, .end = end, .timed = timed, .progress = progress};
    return p->stopped ? BS_STATUS_OK : carry_out(&r);
}

/* ---- parts of a chunk ---- */

static bs_prefill_part part_of(const bs_prefill_bench *p, bs_phase phase)
{
    switch (phase) {
    case BS_PHASE_QKV:
    case BS_PHASE_O_PROJ:
    case BS_PHASE_FFN:
    case BS_PHASE_LOGITS: return BS_PREFILL_GEMM;
    case BS_PHASE_ATTEND: return BS_PREFILL_ATTEND;
    case BS_PHASE_QUANTIZE: return BS_PREFILL_QUANTIZE;
    case BS_PHASE_MERGE:
        return p->grid.seq > 1 ? BS_PREFILL_COMM : BS_PREFILL_OTHER; /* alone it turns O back */
    case BS_PHASE_SUM: return BS_PREFILL_COMM;
    default: return BS_PREFILL_OTHER;
    }
}

/* A chunk op by op, behind noise and, where there is room, the chunk before it: so it quantizes what it would. All ranks
 * make the same plans. */
static bs_status run_phases(bs_prefill_bench *p, run *r, int64_t first, bs_plan *plan, bs_bench_marks *m,
                            double phase_ms[BS_BENCH_N_PHASES])
{
    for (int64_t step = 0; r->planned < r->end; step++) {
        double one_ms[BS_BENCH_N_PHASES];
        bs_step_result result;
        const bool counts = r->planned >= first;
        bs_plan_clear(plan, bs_engine_limits(p->engine), step);
        if (step == 0) start_sequence(r, plan);
        r->planned = add_step(r, plan, r->planned);
        bs_bench_marks_begin(m);
        BS_TRY(bs_engine_step(p->engine, plan, &result));
        BS_TRY(bs_bench_marks_read(m, one_ms));
        for (int phase = 0; phase < BS_BENCH_N_PHASES && counts; phase++) phase_ms[phase] += one_ms[phase];
    }
    return BS_STATUS_OK;
}

static bs_status run_parts(bs_prefill_bench *p, run *r, int64_t first, bs_plan *plan, bs_bench_marks *m,
                           double part_ms[BS_PREFILL_N_PARTS])
{
    double phase_ms[BS_BENCH_N_PHASES] = {0};
    char text[512] = "";
    size_t n = 0;
    memset(part_ms, 0, BS_PREFILL_N_PARTS * sizeof *part_ms);
    BS_TRY(run_phases(p, r, first, plan, m, phase_ms));
    for (int phase = 0; phase < BS_BENCH_N_PHASES; phase++) {
        part_ms[part_of(p, (bs_phase)phase)] += phase_ms[phase];
        if (phase_ms[phase] > 0 && n < sizeof text)
            n += (size_t)snprintf(text + n, sizeof text - n, " %s %.3f", bs_phase_name((bs_phase)phase),
                                  phase_ms[phase]);
    }
    if (p->leader) bs_log_debug("chunk at %lld, ms by phase:%s", (long long)first, text);
    return BS_STATUS_OK;
}

static bs_status take_apart(bs_prefill_bench *p, int64_t first, int64_t end,
                            double part_ms[BS_PREFILL_N_PARTS])
{
    const int64_t warm = bs_max_i64(p->n_fill, first - p->config.chunk_tokens);
    run r = {.p = p, .first = warm, .end = end, .planned = warm};
    bs_bench_marks m = {0};
    bs_plan *plan = malloc(bs_plan_bytes(bs_engine_limits(p->engine)));
    bs_status status = bs_bench_marks_open(p->bench.device, bs_model_get_desc(p->model)->n_layers, &m);
    if (status == BS_STATUS_OK && !plan) status = bs_fail(BS_STATUS_NOMEM, "bench: no memory for a plan");
    BS_TRY_GOTO(bs_comm_agree(p->comm, status), err_free);
    bs_engine_set_mark(p->engine, bs_bench_marks_take, &m);
    status = run_parts(p, &r, first, plan, &m, part_ms);
    bs_engine_set_mark(p->engine, NULL, NULL);
    bs_comm_progress_idle(p->comm);
    if (status != BS_STATUS_OK) status = bs_cli_end_job(p->comm, status);
err_free:
    bs_bench_marks_close(&m);
    free(plan);
    return status;
}

/* ---- a format ---- */

static bs_engine_config config_for(const bs_prefill_bench *p, const bs_kv_format *kv, int64_t context)
{
    bs_engine_config config = p->config;
    config.kv = *kv;
    config.max_seqs = config.max_prefill_seqs = 1;
    config.max_step_tokens = config.chunk_tokens;
    config.max_context = config.total_tokens = chunk_end(p, p->n_fill + context);
    return config;
}

/* Chunk `index` of `n` samples over a prompt that begins behind the noise; its first token. */
static int64_t sample_at(const bs_prefill_bench *p, int64_t context, int index)
{
    const int64_t chunk = p->config.chunk_tokens, last = (context - 1) / chunk;
    return p->n_fill + last * index / (p->n_samples - 1) * chunk;
}

/* Times chunks at places of the prompt, each behind one that warms up. */
static bs_status read_samples(bs_prefill_bench *p, int64_t context, bs_progress *progress)
{
    const int64_t chunk = p->config.chunk_tokens;
    int64_t before = -1;
    for (int i = 0; i < p->n_samples && !p->stopped; i++) {
        const int64_t first = sample_at(p, context, i), end = bs_min_i64(first + chunk, p->n_fill + context);
        if (first <= before) continue; /* a short prompt has fewer chunks */
        before = first;
        const int64_t warm = bs_max_i64(p->n_fill, first - chunk);
        BS_TRY(start_behind(p, warm, end));
        if (warm < first) BS_TRY(read_tokens(p, warm, first, false, NULL));
        BS_TRY(read_tokens(p, first, end, true, NULL));
        if (progress) bs_progress_update(progress, (uint64_t)(end - p->n_fill));
    }
    return BS_STATUS_OK;
}

static bs_status read_whole(bs_prefill_bench *p, int64_t context, bs_progress *progress)
{
    BS_TRY(start_behind(p, p->n_fill, p->n_fill + context));
    return read_tokens(p, p->n_fill, p->n_fill + context, true, progress);
}

/* Where chunks are taken apart: those timed at samples, else the first and the last of each prompt. */
static bool is_apart(const bs_prefill_bench *p, const bs_prefill_point *point)
{
    if (p->n_samples > 0 || point->first == p->n_fill) return true;
    for (int i = 0; i < p->n_contexts; i++)
        if (point->first < p->n_fill + p->contexts[i] &&
            point->first + point->n_tokens >= p->n_fill + p->contexts[i])
            return true;
    return false;
}

/* Rank 0's points are everybody's: where to take apart must be the same. Collective. */
static bs_status take_points_apart(bs_prefill_bench *p)
{
    struct {
        bs_prefill_point point;
        int64_t more; /* there is a point, and no signal has come */
    } next;
    for (int i = 0;; i++) {
        double part_ms[BS_PREFILL_N_PARTS];
        memset(&next, 0, sizeof next);
        if (p->leader && bs_cli_stop_signal()) p->stopped = true;
        next.more = i < p->n_points && !p->stopped;
        if (p->leader && next.more) next.point = p->points[i];
        BS_TRY(bs_comm_bcast_host(p->comm, &next, sizeof next, 0));
        if (!next.more) break;
        if (!is_apart(p, &next.point)) continue;
        BS_TRY(take_apart(p, next.point.first, next.point.first + next.point.n_tokens, part_ms));
        if (p->leader) memcpy(p->parts[i], part_ms, sizeof part_ms);
    }
    int32_t stopped = p->stopped;
    BS_TRY(bs_comm_bcast_host(p->comm, &stopped, sizeof stopped, 0));
    p->stopped = stopped;
    return BS_STATUS_OK;
}

/* Rank 0: the rows of a format. `why`: what the contexts beyond n_fitting would need. */
static bs_status report(bs_prefill_bench *p, const bs_kv_format *kv, int64_t read, int n_fitting,
                        const char *why)
{
    for (int i = 0; i < p->n_points; i++) {
        const bs_prefill_point *point = &p->points[i];
        const bs_prefill_row row = {.kv = kv,
                                    .first = point->first,
                                    .n_tokens = point->n_tokens,
                                    .n_measured = point->n_tokens,
                                    .n_steps = p->point_steps[i],
                                    .ms = point->ms,
                                    .parts = p->parts[i][0] >= 0 ? p->parts[i] : NULL};
        BS_TRY(bs_prefill_report(p, &row));
    }
    for (int i = 0; i < p->n_contexts; i++) {
        char note[256];
        bs_prefill_row row = {.kv = kv, .prompt = true, .first = p->n_fill, .n_tokens = p->contexts[i]};
        row.ms = bs_prefill_total_ms(p->points, p->n_points, p->n_fill, p->n_fill + p->contexts[i],
                                     &row.n_measured);
        if (p->n_points < 2 && row.n_measured < row.n_tokens) {
            row.skipped = i >= n_fitting ? why : "too few chunks were read";
        } else if (row.n_measured < row.n_tokens) {
            snprintf(note, sizeof note, "%s: %lld of %lld tokens were timed%s%s",
                     p->n_samples > 0 && p->contexts[i] <= read ? "sampled" : "extrapolated",
                     (long long)row.n_measured, (long long)row.n_tokens, i >= n_fitting ? "; " : "",
                     i >= n_fitting ? why : "");
            row.note = note;
        }
        BS_TRY(bs_prefill_report(p, &row));
    }
    return BS_STATUS_OK;
}

static void free_points(bs_prefill_bench *p)
{
    free(p->parts);
    free(p->point_steps);
    free(p->points);
    p->points = NULL;
    p->point_steps = NULL;
    p->parts = NULL;
    p->n_points = 0;
}

/* For all chunks of so many tokens, and samples with what warms them up. */
static bs_status take_points(bs_prefill_bench *p, int64_t n_tokens)
{
    const size_t n = (size_t)(n_tokens / p->config.chunk_tokens + 3);
    free_points(p);
    p->points = calloc(n, sizeof *p->points);
    p->point_steps = calloc(n, sizeof *p->point_steps);
    p->parts = calloc(n, sizeof *p->parts);
    if (p->points && p->point_steps && p->parts) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_NOMEM, "bench: no memory for the times of %zu chunks", n);
}

static bs_status run_format(bs_prefill_bench *p, const bs_kv_format *kv)
{
    int n_fitting = 0;
    char why[160] = "";
    for (int i = 0; i < p->n_contexts; i++) { /* ascending */
        const bs_engine_config config = config_for(p, kv, p->contexts[i]);
        bool fits;
        BS_TRY(
            bs_bench_find_fit(p->model, p->bench.device, p->comm, &p->grid, &config, &fits, why, sizeof why));
        if (!fits) break;
        n_fitting++;
    }
    const int64_t longest = n_fitting > 0 ? p->contexts[n_fitting - 1] : 0;
    BS_TRY(bs_comm_agree(p->comm, take_points(p, longest)));
    BS_TRY(bs_comm_agree(p->comm, measure_yardstick(p))); /* anew: a card that has been working is slower */
    BS_TRY(bs_comm_agree(p->comm, p->leader ? bs_prefill_begin_format(p, kv) : BS_STATUS_OK));
    bs_status status = BS_STATUS_OK;
    if (longest > 0) {
        const bs_engine_config config = config_for(p, kv, longest);
        bs_progress progress;
        BS_TRY(bs_engine_open(p->model, p->bench.device, p->comm, &config, NULL, NULL, &p->engine));
        bs_progress_begin(&progress, "prefill", "tokens", (uint64_t)longest,
                          p->leader && bs_log_get_level() > BS_LOG_QUIET);
        /* What libraries load late, and a clock that is low, are not the first chunk's. */
        const int64_t warm = bs_min_i64(longest, p->config.chunk_tokens);
        status = start_behind(p, 0, warm);
        if (status == BS_STATUS_OK) status = read_tokens(p, 0, warm, false, NULL);
        if (status == BS_STATUS_OK && !p->stopped)
            status = p->n_samples > 0 ? read_samples(p, longest, &progress)
                                      : read_whole(p, longest, &progress);
        bs_progress_end(&progress, (uint64_t)longest);
        if (status == BS_STATUS_OK && !p->stopped) status = take_points_apart(p);
    }
    if (status == BS_STATUS_OK)
        status = bs_comm_agree(p->comm, p->leader ? report(p, kv, longest, n_fitting, why) : BS_STATUS_OK);
    bs_engine_close(p->engine);
    p->engine = NULL;
    return status;
}

static bs_status run_formats(bs_prefill_bench *p)
{
    BS_TRY(bs_comm_agree(p->comm, open_local(p)));
    BS_TRY(bs_comm_agree(p->comm, compare_ground(p)));
    BS_TRY(bs_comm_agree(p->comm, bs_comm_set_grid(p->comm, &p->grid)));
    BS_TRY(bs_comm_agree(p->comm, bs_cli_use_transport(p->bench.options, p->comm, p->bench.device)));
    BS_TRY(bs_comm_agree(p->comm, p->leader ? bs_prefill_begin_table(p) : BS_STATUS_OK));
    const double watchdog_s = bs_options_float(p->bench.options, "watchdog-s");
    if (watchdog_s > 0) BS_TRY(bs_comm_agree(p->comm, bs_comm_watchdog_start(p->comm, watchdog_s)));
    for (int f = 0; f < p->n_formats && !p->stopped; f++) BS_TRY(run_format(p, &p->kv[f]));
    if (!p->stopped) return BS_STATUS_OK;
    return bs_comm_agree(p->comm,
                         bs_fail(BS_STATUS_INTERRUPTED, "bench prefill: stopped by %s", bs_cli_stop_name()));
}

bs_status bs_bench_prefill(const bs_options *options, bs_comm *comm)
{
    bs_prefill_bench *p = calloc(1, sizeof *p);
    bs_status status = p ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "bench: no memory");
    BS_TRY_GOTO(bs_comm_agree(comm, status), err_free);
    *p = (bs_prefill_bench){.bench = {.options = options}, .comm = comm, .leader = bs_comm_rank(comm) == 0};
    bs_cli_catch_stop();
    status = run_formats(p);
    bs_engine_close(p->engine);
    free_points(p);
    status = bs_bench_close(&p->bench, comm, p->model, status);
err_free:
    free(p);
    return status;
}
