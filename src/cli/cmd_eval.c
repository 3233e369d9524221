/* cmd_eval.c: `bitshard eval`: what a cache format costs in quality, against f16, over the same text.
 *
 * Each format has an engine and a cache of its own, and all of them read the text side by side, a step of 128 tokens each
 * in turn: so the reference's logits of a step are at hand when the others' are scored, and none are kept longer. (The
 * other way, a pass a format, would keep 200 KB of f16 logits a token.) On CPUs the engines share the mapped weights.
 * Steps follow C = 128 (docs/kv-format.md): every position sees the cache as decode would.
 *
 * Logits stay cut over the ranks by vocabulary: a rank sends rank 0 a bs_score_part, 40 bytes a position and format.
 * Inside a step an error ends the job; between steps the ranks agree, and so a signal or a full disk ends all of them.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/base/checked.h"
#include "src/cli/eval.h"
#include "src/cli/stop.h"
#include "src/cli/table.h"

#include <stdlib.h>
#include <string.h>

/* ---- setting up ---- */

/* The reference first, then every item of --kv that is not f16. */
static bs_status read_formats(bs_eval *e)
{
    e->list = strdup(bs_options_string(e->options, "kv"));
    if (!e->list) return bs_fail(BS_STATUS_NOMEM, "--kv: no memory");
    e->formats[0].name = "f16";
    BS_TRY(bs_cli_parse_kv(e->options, "f16", &e->formats[0].kv));
    e->n_formats = 1;
    for (char *item = e->list, *next; item; item = next) {
        bs_kv_format kv;
        next = strchr(item, ',');
        if (next) *next++ = 0;
        BS_TRY(bs_cli_parse_kv(e->options, item, &kv));
        if (e->n_asked == BS_EVAL_MAX_FORMATS)
            return bs_fail(BS_STATUS_USAGE, "--kv: more than %d formats", BS_EVAL_MAX_FORMATS);
        e->names[e->n_asked] = item;
        e->asked[e->n_asked++] = kv.k_bits == 16 ? 0 : e->n_formats;
        if (kv.k_bits != 16) e->formats[e->n_formats++] = (bs_eval_format){.name = item, .kv = kv};
    }
    return BS_STATUS_OK;
}

static bs_status open_local(bs_eval *e)
{
    BS_TRY(read_formats(e));
    BS_TRY(bs_cli_read_merge(e->options, &e->config.merge));
    e->config.act = bs_cli_read_dtype(e->options);
    e->config.stripe_pages = (int)bs_options_int(e->options, "stripe-pages");
    e->config.chunk_tokens = e->config.max_step_tokens = BS_EVAL_STEP;
    e->config.max_seqs = e->config.max_prefill_seqs = 1;
    e->config.all_logits = e->config.shard_logits = true;
    BS_TRY(bs_cli_open_model(e->options, &e->model));
    BS_TRY(bs_cli_open_device(e->options, e->comm, &e->device));
    BS_TRY(bs_cli_choose_grid(e->options, e->comm, e->model, &e->grid));
    return e->leader ? bs_tokenizer_open(e->model, &e->tokenizer) : BS_STATUS_OK;
}

static bs_status open_input_and_output(bs_eval *e)
{
    BS_TRY(bs_eval_read_text(e));
    return bs_eval_open_report(e);
}

/* What must be the same on all ranks, and what rank 0 tells the others. */
typedef struct common_ground {
    bs_cli_ground engine;
    int64_t n_formats;
    int32_t v_encoder, bos;
    int64_t n_text, context, overlap, one_pass;
    char kv[BS_EVAL_MAX_FORMATS + 1][BS_KV_FORMAT_NAME];
} common_ground;

static common_ground ground_of(const bs_eval *e)
{
    common_ground g;
    memset(&g, 0, sizeof g); /* compared as bytes */
    g.engine = bs_cli_ground_of(e->options, e->model, &e->grid, &e->config);
    g.n_formats = e->n_formats;
    g.v_encoder = (int32_t)e->formats[e->n_formats - 1].kv.v_encoder;
    g.bos = e->bos;
    g.n_text = e->n_text;
    g.context = e->context;
    g.overlap = e->overlap;
    g.one_pass = e->one_pass;
    for (int i = 0; i < e->n_formats; i++) bs_kv_format_name(&e->formats[i].kv, g.kv[i]);
    return g;
}

/* Tells all ranks the text's windows; a rank whose environment or file says otherwise than rank 0's fails. */
static bs_status share_ground(bs_eval *e)
{
    common_ground rank0 = ground_of(e);
    BS_TRY(bs_comm_bcast_host(e->comm, &rank0, sizeof rank0, 0));
    e->bos = rank0.bos;
    e->n_text = rank0.n_text;
    e->context = rank0.context;
    e->overlap = rank0.overlap;
    e->one_pass = rank0.one_pass != 0;
    e->config.max_context = e->config.total_tokens = e->context;
    common_ground mine = ground_of(e);
    return bs_cli_compare_ground(&mine, &rank0, sizeof mine, "--kv or --v-encoder");
}

static bs_status take_memory(bs_eval *e)
{
    if (!e->leader) e->text.ids = malloc((size_t)e->n_text * sizeof *e->text.ids);
    bool have_all = e->text.ids != NULL;
    for (int i = 0; i < e->n_formats && e->leader && have_all; i++)
        have_all = (e->formats[i].kl = malloc((size_t)e->n_text * sizeof(float))) != NULL;
    if (have_all) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_NOMEM, "eval: no memory for a text of %lld tokens", (long long)e->n_text);
}

static bs_status set_up(bs_eval *e)
{
    BS_TRY(bs_comm_agree(e->comm, open_local(e)));
    BS_TRY(bs_comm_agree(e->comm, e->leader ? open_input_and_output(e) : BS_STATUS_OK));
    BS_TRY(bs_comm_agree(e->comm, share_ground(e)));
    BS_TRY(bs_comm_agree(e->comm, take_memory(e)));
    BS_TRY(bs_comm_bcast_host(e->comm, e->text.ids, (size_t)e->n_text * sizeof *e->text.ids, 0));
    BS_TRY(bs_comm_agree(e->comm, bs_comm_set_grid(e->comm, &e->grid)));
    return bs_comm_agree(e->comm, bs_cli_use_transport(e->options, e->comm, e->device));
}

static void on_load(void *context, uint64_t done, uint64_t total)
{
    bs_eval *e = context;
    bs_progress_follow(&e->load, "load", done, total, e->leader && bs_log_get_level() > BS_LOG_QUIET);
}

static bs_status open_engines(bs_eval *e)
{
    for (int i = 0; i < e->n_formats; i++) {
        bs_eval_format *f = &e->formats[i];
        bs_engine_config config = e->config;
        config.kv = f->kv;
        config.weights_of = i > 0 ? e->formats[0].engine : NULL;
        BS_TRY(bs_engine_open(e->model, e->device, e->comm, &config, i == 0 ? on_load : NULL, e, &f->engine));
        BS_TRY(bs_comm_agree(e->comm, bs_forced_open(f->engine, &f->forced)));
    }
    return BS_STATUS_OK;
}

/* ---- the run ---- */

/* Memory of a step's scores: parts of this shard [position][format], rank 0: of all [shard][position][format]. */
typedef struct scorer {
    double *weights;
    bs_score_part *mine, *all;
} scorer;

static bs_status open_scorer(const bs_eval *e, scorer *s)
{
    size_t n = (size_t)BS_EVAL_STEP * (size_t)e->n_formats;
    s->weights = malloc((size_t)bs_engine_vocab(e->formats[0].engine).n * sizeof(double) + 1);
    s->mine = calloc(n, sizeof *s->mine);
    if (e->leader) s->all = calloc(n * (size_t)e->grid.size, sizeof *s->all);
    if (s->weights && s->mine && (s->all || !e->leader)) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_NOMEM, "eval: no memory for the scores of a step");
}

static void close_scorer(scorer *s)
{
    free(s->all);
    free(s->mine);
    free(s->weights);
}

/* The next step of a window: its tokens go through every engine; logits[i] gets format i's. */
static bs_status run_step(bs_eval *e, const bs_eval_window *w, int n, const float **logits)
{
    const int n_bos = e->bos >= 0;
    const int64_t pos = bs_forced_position(e->formats[0].forced);
    int32_t ids[BS_EVAL_STEP];
    for (int i = 0; i < n; i++) ids[i] = pos + i < n_bos ? e->bos : e->text.ids[w->first + pos + i - n_bos];
    for (int i = 0; i < e->n_formats; i++) {
        bs_step_result result;
        BS_TRY(bs_forced_step(e->formats[i].forced, ids, n, BS_PLAN_SEQ_PREFILL | BS_PLAN_SEQ_ALL_LOGITS,
                              &result));
        logits[i] = result.logits;
    }
    return BS_STATUS_OK;
}

/* This shard's parts of the step's rows from `skip` on; row r is of the token `index` + r of the text. */
static void score_rows(const bs_eval *e, scorer *s, const float **logits, int skip, int n, int64_t index)
{
    const bs_range ids = bs_engine_vocab(e->formats[0].engine);
    for (int r = skip; r < n; r++) {
        const float *rows[BS_EVAL_MAX_FORMATS + 1];
        for (int i = 0; i < e->n_formats; i++) rows[i] = ids.n > 0 ? logits[i] + r * ids.n : NULL;
        bs_score_shard(rows, e->n_formats, ids, e->text.ids[index + r], s->weights,
                       s->mine + (size_t)r * (size_t)e->n_formats);
    }
}

/* Rank 0: what all shards found. */
static bs_status take_rows(bs_eval *e, const scorer *s, int skip, int n, int64_t index)
{
    const size_t stride = (size_t)BS_EVAL_STEP * (size_t)e->n_formats;
    for (int r = skip; r < n; r++) {
        bs_score scores[BS_EVAL_MAX_FORMATS + 1];
        bs_score_merge(s->all + (size_t)r * (size_t)e->n_formats, e->grid.size, stride, e->n_formats, scores);
        BS_TRY(bs_eval_take(e, scores, index + r));
    }
    if (!bs_cli_stop_signal()) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_INTERRUPTED, "eval: stopped by %s after %lld of %lld tokens", bs_cli_stop_name(),
                   (long long)(index + n), (long long)e->n_text);
}

static bs_status run_window(bs_eval *e, scorer *s, const bs_eval_window *w, uint64_t *done)
{
    const int64_t end = bs_eval_window_steps(e, w);
    const size_t part_bytes = (size_t)BS_EVAL_STEP * (size_t)e->n_formats * sizeof *s->mine;
    for (int i = 0; i < e->n_formats; i++) bs_forced_begin(e->formats[i].forced, end);
    for (int64_t pos = 0; pos < end; pos = bs_forced_position(e->formats[0].forced)) {
        const float *logits[BS_EVAL_MAX_FORMATS + 1];
        const int n = bs_forced_next(e->formats[0].forced, end);
        const int64_t index = w->first + pos + 1 - (e->bos >= 0); /* what the step's first row predicts */
        const int skip = (int)bs_min_i64(bs_max_i64(w->counted - index, 0), n);
        bs_status status = run_step(e, w, n, logits);
        if (status != BS_STATUS_OK) return bs_cli_end_job(e->comm, status);
        bs_comm_progress_idle(e->comm);
        score_rows(e, s, logits, skip, n, index);
        BS_TRY(bs_comm_gather_host(e->comm, s->mine, part_bytes, s->all, 0));
        BS_TRY(bs_comm_agree(e->comm, e->leader ? take_rows(e, s, skip, n, index) : BS_STATUS_OK));
        *done += (uint64_t)n * (uint64_t)e->n_formats;
        bs_progress_update(&e->progress, *done);
    }
    return BS_STATUS_OK;
}

static uint64_t count_steps(const bs_eval *e)
{
    uint64_t sum = 0;
    bs_eval_window w = bs_eval_first_window(e);
    do sum += (uint64_t)bs_eval_window_steps(e, &w) * (uint64_t)e->n_formats;
    while (bs_eval_next_window(e, &w));
    return sum;
}

static bs_status run_windows(bs_eval *e, scorer *s)
{
    bs_eval_window w = bs_eval_first_window(e);
    const double start_s = bs_now_s();
    uint64_t done = 0;
    bs_status status;
    bs_progress_begin(&e->progress, "eval", "tokens", count_steps(e),
                      e->leader && bs_log_get_level() > BS_LOG_QUIET);
    do status = run_window(e, s, &w, &done);
    while (status == BS_STATUS_OK && bs_eval_next_window(e, &w));
    bs_progress_end(&e->progress, done);
    BS_TRY(status);
    bs_log_info("eval: %llu tokens through %d formats in %.1f s, %.1f tokens/s; ranks: %d, %d x %d, merge %s",
                (unsigned long long)(done / (uint64_t)e->n_formats), e->n_formats, bs_now_s() - start_s,
                (double)done / (bs_now_s() - start_s), e->grid.size, e->grid.heads, e->grid.seq,
                bs_merge_method_name(e->config.merge));
    return BS_STATUS_OK;
}

static bs_status run(bs_eval *e)
{
    scorer s = {0};
    bs_status status;
    const double watchdog_s = bs_options_float(e->options, "watchdog-s");
    BS_TRY_GOTO(bs_comm_agree(e->comm, open_scorer(e, &s)), err_close);
    if (watchdog_s > 0)
        BS_TRY_GOTO(bs_comm_agree(e->comm, bs_comm_watchdog_start(e->comm, watchdog_s)), err_close);
    bs_cli_catch_stop();
    BS_TRY_GOTO(run_windows(e, &s), err_close);
    status = bs_comm_agree(e->comm, e->leader ? bs_eval_report(e) : BS_STATUS_OK);
err_close:
    close_scorer(&s);
    return status;
}

static bs_status clean_up(bs_eval *e)
{
    for (int i = e->n_formats - 1; i >= 0; i--) {
        bs_forced_close(e->formats[i].forced);
        bs_engine_close(e->formats[i].engine);
        free(e->formats[i].kl);
    }
    bs_tokens_free(&e->text);
    bs_tokenizer_close(e->tokenizer);
    bs_cli_close_device(e->comm, e->device);
    bs_model_close(e->model);
    free(e->list);
    return bs_eval_close_report(e);
}

bs_status bs_cli_eval(const bs_options *options, bs_comm *comm)
{
    bs_eval *e = calloc(1, sizeof *e);
    bs_status status = e ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "eval: no memory");
    BS_TRY_GOTO(bs_comm_agree(comm, status), err_free);
    *e = (bs_eval){.options = options, .comm = comm, .leader = bs_comm_rank(comm) == 0, .bos = -1};
    status = set_up(e);
    if (status == BS_STATUS_OK) status = open_engines(e);
    if (status == BS_STATUS_OK) status = run(e);
    bs_status closed = clean_up(e);
    if (status == BS_STATUS_OK) status = bs_comm_agree(comm, closed);
err_free:
    free(e);
    return status;
}
