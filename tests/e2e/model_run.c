/* model_run.c: runs a model over given token ids on any grid and compares logits; the tool of the end-to-end tests.
 *
 * A teacher-forced pass (src/engine/forced.h). Options, name=value:
 *   model= tokens=FILE (i32 ids)  n=N (positions, default all)   kv= grid= merge= stripe-pages= chunk=C step=T
 *   out=FILE      f32 logits [n, vocab] of every position, written by rank 0
 *   tops=FILE     i32 ids of the best token of every position
 *   against=FILE  compares with such a file and prints one JSON line: relative L2 over all positions and at the worst,
 *                 mean and largest KL, greedy agreement, negative log-likelihood of both
 *   pages-out=DIR, pages-in=DIR  canonical pages of the cache after the prompt: written by one rank; or read over this
 *                 grid's own. With either, the last token is a decode step of its own, and the only logits.
 *   break=lse0|drop  a merge that must be noticed: shard 0's LSE becomes 0, or shard 1's O becomes 0
 *   busy-from=P   fails unless two sequence shards hold something in every merge of a step that starts at P or later
 *
 * bs_merge_states is wrapped at link time (--wrap) for the last two.
 */
#define _POSIX_C_SOURCE 200809L /* fseeko */
#include "comm/merge.h"
#include "src/cache/format.h"
#include "src/engine/forced.h"
#include "src/engine/score.h"
#include "tests/comm/check.h"

#include <math.h>
#include <string.h>

typedef struct options {
    const char *model, *tokens, *kv, *grid, *merge, *out, *tops, *against, *pages_out, *pages_in, *fault;
    int64_t n;
    int stripe_pages, chunk, step, busy_from;
} options;

static options opt = {.kv = "f16", .merge = "allreduce", .stripe_pages = 8, .chunk = 2048, .busy_from = -1};
static bs_comm *comm;
static bs_engine *engine;
static int64_t step_pos0; /* of the running step, for busy-from */

static void fail(bs_status status)
{
    if (status == BS_STATUS_OK) return;
    bs_error_flush();
    bs_comm_abort(comm, 1);
}

/* ---- the wrapped merge -------------------------------------------------------------------------------------- */

bs_status __real_bs_merge_states(bs_comm *, bs_stream *, bs_merge_method, float *, float *, int, int, void *,
                                 size_t);
bs_status __wrap_bs_merge_states(bs_comm *c, bs_stream *stream, bs_merge_method method, float *o, float *lse,
                                 int n_rows, int dim, void *workspace, size_t bytes);

/* CPU ranks only: device memory is host memory. */
bs_status __wrap_bs_merge_states(bs_comm *c, bs_stream *stream, bs_merge_method method, float *o, float *lse,
                                 int n_rows, int dim, void *workspace, size_t bytes)
{
    const bs_grid *grid = bs_comm_grid(c);
    if (grid->seq > 1 && opt.busy_from >= 0 && step_pos0 >= opt.busy_from) {
        float busy = 0;
        for (int r = 0; r < n_rows; r++)
            if (lse[r] > -INFINITY) busy = 1;
        BS_TRY(bs_comm_allreduce_sum(c, BS_GROUP_SEQ, stream, &busy, 1));
        if (busy < 2)
            return bs_fail(BS_STATUS_INTERNAL, "step at position %lld: only %g shards hold anything",
                           (long long)step_pos0, busy);
    }
    if (opt.fault && strcmp(opt.fault, "lse0") == 0 && grid->seq_shard == 0)
        for (int r = 0; r < n_rows; r++) lse[r] = 0;
    if (opt.fault && strcmp(opt.fault, "drop") == 0 && grid->seq_shard == 1)
        memset(o, 0, (size_t)n_rows * (size_t)dim * sizeof *o);
    return __real_bs_merge_states(c, stream, method, o, lse, n_rows, dim, workspace, bytes);
}

/* ---- comparing ---------------------------------------------------------------------------------------------- */

typedef struct comparison {
    double error2, norm2, worst, kl, kl_max, nll, nll_ref;
    int64_t n, n_nll, agree, n_clear, agree_clear;
} comparison;

static int32_t best_of(const float *x, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* How far the best logit is above the second. */
static float margin_of(const float *x, int n)
{
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++) {
        second = fmaxf(second, fminf(best, x[i]));
        best = fmaxf(best, x[i]);
    }
    return best - second;
}

/* KL(reference ‖ ours) and the rest, of one position. next: the id that follows in the text, −1 at its end. */
static void compare_row(comparison *c, const float *ours, const float *ref, int n, int32_t next,
                        double *weights)
{
    const float *rows[] = {ref, ours};
    bs_score_part parts[2];
    bs_score score[2];
    double error2 = 0, norm2 = 0;
    bs_score_shard(rows, 2, (bs_range){0, n}, next, weights, parts);
    bs_score_merge(parts, 1, 2, 2, score);
    CHECK(score[0].finite && score[1].finite);
    for (int i = 0; i < n; i++) {
        double d = (double)ours[i] - ref[i];
        error2 += d * d;
        norm2 += (double)ref[i] * ref[i];
    }
    bool same = score[0].best == score[1].best, clear = margin_of(ref, n) >= 0.05f;
    c->error2 += error2;
    c->norm2 += norm2;
    c->worst = fmax(c->worst, sqrt(error2 / norm2));
    c->kl += score[1].kl;
    c->kl_max = fmax(c->kl_max, score[1].kl);
    c->agree += same;
    c->n_clear += clear;
    c->agree_clear += same && clear;
    c->n++;
    if (next < 0) return;
    c->nll += score[1].nll;
    c->nll_ref += score[0].nll;
    c->n_nll++;
}

static void print_comparison(const comparison *c)
{
    double tokens = c->n_nll ? (double)c->n_nll : 1;
    printf(
        "{\"n\":%lld,\"rel_l2\":%.4g,\"worst\":%.4g,\"kl\":%.4g,\"kl_max\":%.4g,\"top1\":%.6f,\"clear\":%lld,"
        "\"clear_differ\":%lld,\"nll\":%.7f,\"nll_ref\":%.7f}\n",
        (long long)c->n, sqrt(c->error2 / c->norm2), c->worst, c->kl / (double)c->n, c->kl_max,
        (double)c->agree / (double)c->n, (long long)c->n_clear, (long long)(c->n_clear - c->agree_clear),
        c->nll / tokens, c->nll_ref / tokens);
}

/* ---- canonical pages ---------------------------------------------------------------------------------------- */

/* One file of pages: [page][layer][KV head of the model] records of a fixed size, each the parts one after the other. */
static void move_pages(const char *directory, bool write, int64_t n_tokens, const bs_range *heads)
{
    const bs_cache *cache = bs_engine_cache(engine);
    const bs_kv_pools *pools = bs_cache_pools(cache);
    const bs_kv_shape *shape = pools->shape;
    bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    size_t record = bytes.f16 > 0 ? bytes.f16 : 1, quant = bytes.k + bytes.k_meta + bytes.v + bytes.v_meta;
    if (quant > record) record = quant;
    unsigned char *buffer = malloc(record);
    char path[4096];
    snprintf(path, sizeof path, "%s/pages", directory);
    FILE *file = fopen(path, write ? "wb" : "rb");
    CHECK(file && buffer);
    bs_stream *stream;
    bs_device *device = NULL;
    fail(bs_device_open(&(bs_device_config){.n_threads = 1}, &device));
    fail(bs_stream_create(device, &stream));
    int n_all = bs_model_get_desc(bs_engine_model(engine))->n_kv_heads;
    for (int64_t page = 0; page <= (n_tokens - 1) / BS_PAGE_TOKENS; page++) {
        bs_page_view view = bs_cache_page(cache, 0, page);
        if (view.kind == BS_PAGE_NONE) continue;
        for (int layer = 0; layer < shape->n_layers; layer++)
            for (int head = 0; head < shape->n_kv_heads; head++) {
                bool q = view.kind == BS_PAGE_QUANT;
                unsigned char *k = buffer, *v = buffer + (q ? bytes.k + bytes.k_meta : bytes.f16 / 2);
                bs_kv_page_ref ref = {.slot = view.slot, .layer = layer, .kv_head = head, .k = k, .v = v};
                if (q) {
                    ref.k_meta = buffer + bytes.k;
                    ref.v_meta = v + bytes.v;
                }
                bs_pack_args args = {.pools = pools, .quantized = q, .n = 1, .pages = &ref};
                int64_t at = ((page * shape->n_layers + layer) * n_all + heads->first + head) *
                             (int64_t)record;
                CHECK(fseeko(file, at, SEEK_SET) == 0);
                if (write) {
                    memset(buffer, 0, record);
                    fail(bs_op_pack(stream, &args));
                    CHECK(fwrite(buffer, 1, record, file) == record);
                } else {
                    CHECK(fread(buffer, 1, record, file) == record);
                    fail(bs_op_unpack(stream, &args));
                }
            }
    }
    CHECK(fclose(file) == 0);
    bs_stream_destroy(stream);
    bs_device_close(device);
    free(buffer);
}

/* ---- running ------------------------------------------------------------------------------------------------ */

static void set_option(const char *text)
{
    const char *value = strchr(text, '=');
    CHECK(value);
    size_t n = (size_t)(value++ - text);
    struct {
        const char *name;
        const char **text;
        int *number;
    } table[] = {{"model", &opt.model, 0},
                 {"tokens", &opt.tokens, 0},
                 {"kv", &opt.kv, 0},
                 {"grid", &opt.grid, 0},
                 {"merge", &opt.merge, 0},
                 {"out", &opt.out, 0},
                 {"tops", &opt.tops, 0},
                 {"against", &opt.against, 0},
                 {"break", &opt.fault, 0},
                 {"pages-out", &opt.pages_out, 0},
                 {"pages-in", &opt.pages_in, 0},
                 {"stripe-pages", 0, &opt.stripe_pages},
                 {"chunk", 0, &opt.chunk},
                 {"step", 0, &opt.step},
                 {"busy-from", 0, &opt.busy_from}};
    if (n == 1 && text[0] == 'n') {
        opt.n = atoll(value);
        return;
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strlen(table[i].name) == n && strncmp(table[i].name, text, n) == 0) {
            if (table[i].text) *table[i].text = value;
            if (table[i].number) *table[i].number = atoi(value);
            return;
        }
    CHECK(!"known option");
}

static int32_t *read_tokens(void)
{
    FILE *file = fopen(opt.tokens, "rb");
    CHECK(file && fseeko(file, 0, SEEK_END) == 0);
    int64_t n = ftello(file) / 4;
    if (opt.n == 0 || opt.n > n) opt.n = n;
    rewind(file);
    int32_t *ids = malloc((size_t)opt.n * sizeof *ids);
    CHECK(ids && fread(ids, sizeof *ids, (size_t)opt.n, file) == (size_t)opt.n);
    fclose(file);
    return ids;
}

typedef struct sink {
    FILE *out, *tops, *against;
    float *row;      /* [vocab] of `against` */
    double *weights; /* [vocab] */
    comparison total;
} sink;

static void take_logits(sink *to, const bs_step_result *result, const int32_t *ids, int64_t pos, int n_vocab)
{
    for (int64_t r = 0; r < result->n_logit_rows; r++) {
        const float *logits = result->logits + r * n_vocab;
        if (to->out) CHECK(fwrite(logits, sizeof *logits, (size_t)n_vocab, to->out) == (size_t)n_vocab);
        if (to->tops) {
            int32_t best = best_of(logits, n_vocab);
            CHECK(fwrite(&best, sizeof best, 1, to->tops) == 1);
        }
        if (!to->against) continue;
        CHECK(fread(to->row, sizeof *to->row, (size_t)n_vocab, to->against) == (size_t)n_vocab);
        compare_row(&to->total, logits, to->row, n_vocab, pos + r + 1 < opt.n ? ids[pos + r + 1] : -1,
                    to->weights);
    }
}

static void run(const int32_t *ids, const bs_range *heads, int n_vocab)
{
    bool root = bs_comm_rank(comm) == 0, pages = opt.pages_in || opt.pages_out;
    sink to = {.out = root && opt.out ? fopen(opt.out, "wb") : NULL,
               .tops = root && opt.tops ? fopen(opt.tops, "wb") : NULL,
               .against = root && opt.against ? fopen(opt.against, "rb") : NULL,
               .row = malloc((size_t)n_vocab * sizeof(float)),
               .weights = malloc((size_t)n_vocab * sizeof(double))};
    CHECK(!root || (!to.out == !opt.out && !to.tops == !opt.tops && !to.against == !opt.against));
    int64_t end = pages ? opt.n - 1 : opt.n;
    bs_forced *forced;
    bs_step_result result;
    double ms = 0;
    fail(bs_forced_open(engine, &forced));
    bs_forced_begin(forced, opt.n);
    for (int64_t pos; (pos = bs_forced_position(forced)) < end;) {
        step_pos0 = pos;
        int n = bs_forced_next(forced, end);
        fail(bs_forced_step(forced, ids + pos, n, BS_PLAN_SEQ_PREFILL | (pages ? 0 : BS_PLAN_SEQ_ALL_LOGITS),
                            &result));
        if (root && !pages) take_logits(&to, &result, ids, pos, n_vocab);
        ms += result.step_ms;
    }
    if (pages) {
        if (opt.pages_out) move_pages(opt.pages_out, true, end, heads);
        if (opt.pages_in) move_pages(opt.pages_in, false, end, heads);
        step_pos0 = end;
        fail(bs_forced_step(forced, ids + end, 1, BS_PLAN_SEQ_ALL_LOGITS, &result));
        if (root) take_logits(&to, &result, ids, end, n_vocab);
    }
    if (root)
        fprintf(stderr, "%lld tokens, %.1f ms, %.1f tokens/s\n", (long long)opt.n, ms,
                1e3 * (double)opt.n / ms);
    if (to.against) print_comparison(&to.total);
    if (to.out) CHECK(fclose(to.out) == 0);
    if (to.tops) CHECK(fclose(to.tops) == 0);
    if (to.against) fclose(to.against);
    free(to.weights);
    free(to.row);
    bs_forced_close(forced);
}

int main(int argc, char **argv)
{
    bs_model *model;
    bs_device *device;
    bs_grid grid;
    bs_shard shard;
    bs_engine_config config = {.max_seqs = 1, .max_prefill_seqs = 1, .all_logits = true};
    CHECK(bs_comm_init(&argc, &argv, &comm) == BS_STATUS_OK);
    for (int i = 1; i < argc; i++) set_option(argv[i]);
    if (opt.step == 0) opt.step = opt.chunk < 256 ? opt.chunk : 256;
    int32_t *ids = read_tokens();
    fail(bs_device_open(&(bs_device_config){.n_threads = 1}, &device));
    fail(bs_model_open(opt.model, &model));
    const bs_model_desc *desc = bs_model_get_desc(model);
    fail(bs_grid_choose(bs_comm_rank(comm), bs_comm_size(comm), desc->n_kv_heads, opt.grid, &grid));
    fail(bs_comm_set_grid(comm, &grid));
    fail(bs_kv_format_parse(opt.kv, &config.kv));
    fail(bs_merge_method_parse(opt.merge, &config.merge));
    fail(bs_shard_compute(model, &grid, config.merge, &shard));
    config.stripe_pages = opt.stripe_pages;
    config.chunk_tokens = opt.chunk;
    config.max_step_tokens = opt.step;
    config.max_context = config.total_tokens = opt.n;
    fail(bs_engine_open(model, device, comm, &config, NULL, NULL, &engine));
    fail(bs_comm_watchdog_start(comm, 60));
    run(ids, &shard.kv_heads, desc->n_vocab);
    bs_engine_close(engine);
    bs_model_close(model);
    bs_device_close(device);
    free(ids);
    bs_comm_finalize(comm);
    return 0;
}
