/* model_run.c: runs a model over given token ids on any grid and device, and compares logits; the tool of the
 * end-to-end tests.
 *
 * A teacher-forced pass (src/engine/forced.h). No step of it may allocate device memory. Options, name=value:
 *   model= tokens=FILE (i32 ids)  n=N (positions, default all)   kv= grid= merge= stripe-pages= chunk=C step=T
 *   device=cpu|gpu:N|cuda (the GPU of the rank's number on the machine)
 *   transport=auto|mpi|nccl  act=auto|f16|bf16 (on a GPU)  threads=N isa=scalar|avx2|avx512 (on a CPU)
 *   weights=file|f16  (on a CPU) f16: matrices are rounded to f16 first, as a GPU places them
 *   out=FILE      f32 logits [n, vocab] of every position, written by rank 0
 *   tops=FILE     i32 ids of the best token of every position
 *   margins=FILE  f32, how far its logit is above the second's
 *   against=FILE  compares with such logits and prints one JSON line: relative L2 over all positions and at the worst,
 *                 mean and largest KL, greedy agreement, negative log-likelihood of both
 *   pages-out=DIR, pages-in=DIR  canonical pages of the cache after the prompt: written by one rank; or read over this
 *                 grid's own. With either, the last token is a decode step of its own, and the only logits.
 *   pages-after=DIR  with these: the pages after that step, written by one rank
 *   draw=N drawn=FILE  in the place of logits: draws N tokens behind the text, greedily; (i32 id, f32 log-probability)
 *                 of each. eager=1: no step is replayed from a graph
 *   break=lse0|drop  a merge that must be noticed: shard 0's LSE becomes 0, or shard 1's O becomes 0
 *   busy-from=P   fails unless two sequence shards hold something in every merge of a step that starts at P or later
 * "model_run gpus" alone exits with 77 where there is no GPU.
 *
 * bs_merge_states is wrapped at link time (--wrap) for the last two, which are for CPU ranks: device memory is host
 * memory there.
 */
#define _POSIX_C_SOURCE 200809L /* fseeko */
#include "comm/merge.h"
#include "src/cache/format.h"
#include "src/engine/forced.h"
#include "src/engine/score.h"
#include "src/model/model_private.h"
#include "tests/comm/check.h"
#include "tests/tolerances.h"

#include <math.h>
#include <string.h>

typedef struct options {
    const char *model, *tokens, *kv, *grid, *merge, *out, *tops, *margins, *against, *pages_out, *pages_in,
        *pages_after, *drawn, *fault, *device, *transport, *act, *isa, *weights;
    int64_t n;
    int stripe_pages, chunk, step, busy_from, draw, eager, threads;
} options;

static options opt = {.kv = "f16",
                      .merge = "allreduce",
                      .device = "cpu",
                      .transport = "auto",
                      .act = "auto",
                      .isa = "auto",
                      .weights = "file",
                      .stripe_pages = 8,
                      .chunk = 2048,
                      .busy_from = -1,
                      .threads = 1};
static bs_comm *comm;
static bs_device *device;
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
    bool same = score[0].best == score[1].best, clear = margin_of(ref, n) >= (float)TOL_MARGIN;
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
typedef struct page_file {
    FILE *file;
    bs_stream *stream;
    bs_kv_page_bytes bytes;
    size_t record;
    int n_layers, n_heads, n_all_heads; /* heads: this rank's; the model's */
    int64_t first_head;
    bs_kv_page_ref *refs; /* [layers, heads], as are */
    bs_buffer *stage;     /* their records on the device, */
    unsigned char *host;  /* and on the host */
} page_file;

/* The rank's records of one page between the file and the host. */
static void move_records(const page_file *f, int64_t page, bool write)
{
    size_t n = (size_t)f->n_heads;
    for (int layer = 0; layer < f->n_layers; layer++) {
        int64_t at = ((page * f->n_layers + layer) * f->n_all_heads + f->first_head) * (int64_t)f->record;
        unsigned char *records = f->host + (size_t)layer * n * f->record;
        CHECK(fseeko(f->file, at, SEEK_SET) == 0);
        CHECK((write ? fwrite(records, f->record, n, f->file) : fread(records, f->record, n, f->file)) == n);
    }
}

static void move_page(const page_file *f, const bs_kv_pools *pools, int64_t page, bs_page_view view,
                      bool write)
{
    const bool q = view.kind == BS_PAGE_QUANT;
    const int n = f->n_layers * f->n_heads;
    const size_t all = (size_t)n * f->record;
    for (int i = 0; i < n; i++) {
        char *k = bs_buffer_at(f->stage, (size_t)i * f->record);
        char *v = k + (q ? f->bytes.k + f->bytes.k_meta : f->bytes.f16 / 2);
        f->refs[i] = (bs_kv_page_ref){
            .slot = view.slot, .layer = i / f->n_heads, .kv_head = i % f->n_heads, .k = k, .v = v};
        if (!q) continue;
        f->refs[i].k_meta = k + f->bytes.k;
        f->refs[i].v_meta = v + f->bytes.v;
    }
    bs_pack_args args = {.pools = pools, .quantized = q, .n = n, .pages = f->refs};
    if (write) {
        fail(bs_fill_zero(f->stream, bs_buffer_at(f->stage, 0), all));
        fail(bs_op_pack(f->stream, &args));
        fail(bs_copy_to_host(f->stream, f->host, bs_buffer_at(f->stage, 0), all));
        fail(bs_stream_sync(f->stream));
        move_records(f, page, true);
    } else {
        move_records(f, page, false);
        fail(bs_copy_to_device(f->stream, bs_buffer_at(f->stage, 0), f->host, all));
        fail(bs_op_unpack(f->stream, &args));
        fail(bs_stream_sync(f->stream));
    }
}

static void move_pages(const char *directory, bool write, int64_t n_tokens, const bs_range *heads)
{
    const bs_cache *cache = bs_engine_cache(engine);
    const bs_kv_pools *pools = bs_cache_pools(cache);
    const bs_kv_shape *shape = pools->shape;
    page_file f = {.bytes = bs_kv_canonical_bytes(&shape->format, shape->head_dim),
                   .n_layers = shape->n_layers,
                   .n_heads = shape->n_kv_heads,
                   .n_all_heads = bs_model_get_desc(bs_engine_model(engine))->n_kv_heads,
                   .first_head = heads->first};
    const size_t quant = f.bytes.k + f.bytes.k_meta + f.bytes.v + f.bytes.v_meta;
    const size_t n = (size_t)f.n_layers * (size_t)f.n_heads;
    f.record = quant > f.bytes.f16 ? quant : f.bytes.f16;
    f.host = malloc(n * f.record);
    f.refs = malloc(n * sizeof *f.refs);
    char path[4096];
    snprintf(path, sizeof path, "%s/pages", directory);
    f.file = fopen(path, write ? "wb" : "rb");
    CHECK(f.file && f.host && f.refs);
    fail(bs_stream_create(device, &f.stream));
    fail(bs_buffer_alloc(device, n * f.record, "a page", &f.stage));
    for (int64_t page = 0; page <= (n_tokens - 1) / BS_PAGE_TOKENS; page++) {
        bs_page_view view = bs_cache_page(cache, 0, page);
        if (view.kind != BS_PAGE_NONE) move_page(&f, pools, page, view, write);
    }
    CHECK(fclose(f.file) == 0);
    bs_buffer_free(f.stage);
    bs_stream_destroy(f.stream);
    free(f.refs);
    free(f.host);
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
                 {"margins", &opt.margins, 0},
                 {"device", &opt.device, 0},
                 {"transport", &opt.transport, 0},
                 {"act", &opt.act, 0},
                 {"isa", &opt.isa, 0},
                 {"weights", &opt.weights, 0},
                 {"threads", 0, &opt.threads},
                 {"drawn", &opt.drawn, 0},
                 {"draw", 0, &opt.draw},
                 {"eager", 0, &opt.eager},
                 {"against", &opt.against, 0},
                 {"break", &opt.fault, 0},
                 {"pages-out", &opt.pages_out, 0},
                 {"pages-in", &opt.pages_in, 0},
                 {"pages-after", &opt.pages_after, 0},
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
    FILE *out, *tops, *margins, *against;
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
        if (to->margins) {
            float margin = margin_of(logits, n_vocab);
            CHECK(fwrite(&margin, sizeof margin, 1, to->margins) == 1);
        }
        if (!to->against) continue;
        CHECK(fread(to->row, sizeof *to->row, (size_t)n_vocab, to->against) == (size_t)n_vocab);
        compare_row(&to->total, logits, to->row, n_vocab, pos + r + 1 < opt.n ? ids[pos + r + 1] : -1,
                    to->weights);
    }
}

static double total_ms;

/* One step, which must find all its memory taken. */
static void step(bs_forced *forced, const int32_t *ids, int n, int flags, bs_step_result *result)
{
    const uint64_t before = bs_device_allocation_count(device);
    step_pos0 = bs_forced_position(forced);
    fail(bs_forced_step(forced, ids, n, flags, result));
    if (bs_device_allocation_count(device) != before)
        fail(bs_fail(BS_STATUS_INTERNAL, "the step at position %lld allocated device memory",
                     (long long)step_pos0));
    total_ms += result->step_ms;
}

static FILE *open_out(const char *path)
{
    if (!path || bs_comm_rank(comm) != 0) return NULL;
    FILE *file = fopen(path, "wb");
    CHECK(file);
    return file;
}

static void close_out(FILE *file)
{
    CHECK(!file || fclose(file) == 0);
}

static void run_text(const int32_t *ids, const bs_range *heads, int n_vocab)
{
    bool root = bs_comm_rank(comm) == 0, pages = opt.pages_in || opt.pages_out;
    sink to = {.out = open_out(opt.out),
               .tops = open_out(opt.tops),
               .margins = open_out(opt.margins),
               .against = root && opt.against ? fopen(opt.against, "rb") : NULL,
               .row = malloc((size_t)n_vocab * sizeof(float)),
               .weights = malloc((size_t)n_vocab * sizeof(double))};
    CHECK(!root || !to.against == !opt.against);
    int64_t end = pages ? opt.n - 1 : opt.n;
    bs_forced *forced;
    bs_step_result result;
    fail(bs_forced_open(engine, &forced));
    bs_forced_begin(forced, opt.n);
    for (int64_t pos; (pos = bs_forced_position(forced)) < end;) {
        int n = bs_forced_next(forced, end);
        step(forced, ids + pos, n, BS_PLAN_SEQ_PREFILL | (pages ? 0 : BS_PLAN_SEQ_ALL_LOGITS), &result);
        if (root && !pages) take_logits(&to, &result, ids, pos, n_vocab);
    }
    if (pages) {
        if (opt.pages_out) move_pages(opt.pages_out, true, end, heads);
        if (opt.pages_in) move_pages(opt.pages_in, false, end, heads);
        step(forced, ids + end, 1, BS_PLAN_SEQ_ALL_LOGITS, &result);
        if (root) take_logits(&to, &result, ids, end, n_vocab);
        if (opt.pages_after) move_pages(opt.pages_after, true, opt.n, heads);
    }
    if (to.against) print_comparison(&to.total);
    close_out(to.out);
    close_out(to.tops);
    close_out(to.margins);
    if (to.against) fclose(to.against);
    free(to.weights);
    free(to.row);
    bs_forced_close(forced);
}

static void ignore_phase(void *context, bs_stream *stream, bs_phase phase)
{
    (void)context;
    (void)stream;
    (void)phase;
}

static void run_draws(const int32_t *ids)
{
    const int32_t last = BS_PLAN_LAST_TOKEN;
    FILE *drawn = open_out(opt.drawn);
    bs_forced *forced;
    bs_step_result result;
    if (opt.eager) bs_engine_set_mark(engine, ignore_phase, NULL);
    fail(bs_forced_open(engine, &forced));
    bs_forced_begin(forced, opt.n + opt.draw);
    while (bs_forced_position(forced) < opt.n) {
        int n = bs_forced_next(forced, opt.n);
        bool is_last = bs_forced_position(forced) + n == opt.n;
        step(forced, ids + bs_forced_position(forced), n,
             BS_PLAN_SEQ_PREFILL | (is_last ? BS_PLAN_SEQ_SAMPLE : 0), &result);
    }
    for (int i = 0; i < opt.draw; i++) {
        if (i > 0) step(forced, &last, 1, BS_PLAN_SEQ_SAMPLE, &result);
        if (!drawn) continue;
        CHECK(fwrite(result.token, sizeof *result.token, 1, drawn) == 1);
        CHECK(fwrite(result.logprob, sizeof *result.logprob, 1, drawn) == 1);
    }
    close_out(drawn);
    bs_forced_close(forced);
}

static bs_status open_device(void)
{
    static const char *const isas[] = {"auto", "scalar", "avx2", "avx512"};
    bs_device_config config = {.n_threads = opt.threads};
    while (config.isa < BS_ISA_AVX512 && strcmp(opt.isa, isas[config.isa]) != 0) config.isa++;
    const bool numbered = strncmp(opt.device, "gpu:", 4) == 0;
    if (numbered || strcmp(opt.device, "cuda") == 0) {
        const int n_gpus = bs_device_count_gpus();
        config.kind = BS_DEVICE_CUDA;
        config.ordinal = numbered ? atoi(opt.device + 4) : n_gpus > 0 ? bs_comm_local_rank(comm) % n_gpus : 0;
        if (opt.fault || opt.busy_from >= 0)
            return bs_fail(BS_STATUS_USAGE, "device=%s: break and busy-from are for CPU ranks", opt.device);
    } else if (strcmp(opt.device, "cpu") != 0) {
        return bs_fail(BS_STATUS_USAGE, "device=%s: must be cpu, cuda or gpu:N", opt.device);
    }
    return bs_device_open(&config, &device);
}

static bs_type read_act(void)
{
    if (strcmp(opt.act, "f16") == 0) return BS_TYPE_F16;
    if (strcmp(opt.act, "bf16") == 0) return BS_TYPE_BF16;
    CHECK(strcmp(opt.act, "auto") == 0);
    return BS_TYPE_F32;
}

/* The model's own matrices, rounded to f16 in memory that lives as long as the program. Vectors stay as they are. */
static void round_matrices(bs_model *model)
{
    for (int64_t i = 0; i < model->n_tensors; i++) {
        bs_tensor *tensor = (bs_tensor *)model->tensors[i];
        const int64_t cols = tensor->dims[0], n_rows = tensor->dims[1];
        if (tensor->n_dims < 2 || tensor->type == BS_TYPE_F16) continue;
        const size_t row_bytes = (size_t)(cols / bs_type_block(tensor->type) *
                                          bs_type_block_bytes(tensor->type));
        float *row = malloc(sizeof *row * (size_t)cols);
        uint16_t *out = malloc(sizeof *out * (size_t)(cols * n_rows));
        CHECK(row && out);
        for (int64_t r = 0; r < n_rows; r++) {
            CHECK(bs_dequantize_row(tensor->type, (const char *)tensor->data + (size_t)r * row_bytes, row,
                                    cols) == BS_STATUS_OK);
            for (int64_t c = 0; c < cols; c++) out[r * cols + c] = bs_f32_to_f16(row[c]);
        }
        free(row);
        tensor->data = out;
        tensor->bytes = sizeof *out * (uint64_t)(cols * n_rows);
        tensor->type = BS_TYPE_F16;
    }
}

int main(int argc, char **argv)
{
    bs_model *model;
    bs_grid grid;
    bs_shard shard;
    bs_transport transport;
    if (argc == 2 && strcmp(argv[1], "gpus") == 0) return bs_device_count_gpus() > 0 ? 0 : 77;
    bs_engine_config config = {.max_seqs = 1, .max_prefill_seqs = 1};
    CHECK(bs_comm_init(&argc, &argv, &comm) == BS_STATUS_OK);
    for (int i = 1; i < argc; i++) set_option(argv[i]);
    if (opt.step == 0) opt.step = opt.chunk < 256 ? opt.chunk : 256;
    int32_t *ids = read_tokens();
    fail(open_device());
    fail(bs_model_open(opt.model, &model));
    if (strcmp(opt.weights, "f16") == 0) round_matrices(model);
    else CHECK(strcmp(opt.weights, "file") == 0);
    const bs_model_desc *desc = bs_model_get_desc(model);
    fail(bs_grid_choose(bs_comm_rank(comm), bs_comm_size(comm), desc->n_kv_heads, opt.grid, &grid));
    fail(bs_comm_set_grid(comm, &grid));
    fail(bs_transport_parse(opt.transport, &transport));
    fail(bs_comm_agree(comm, bs_comm_use_device(comm, device, transport)));
    fail(bs_kv_format_parse(opt.kv, &config.kv));
    fail(bs_merge_method_parse(opt.merge, &config.merge));
    fail(bs_shard_compute(model, &grid, config.merge, &shard));
    config.act = read_act();
    config.all_logits = opt.draw == 0;
    config.stripe_pages = opt.stripe_pages;
    config.chunk_tokens = opt.chunk;
    config.max_step_tokens = opt.step;
    config.max_context = config.total_tokens = opt.n + opt.draw;
    fail(bs_engine_open(model, device, comm, &config, NULL, NULL, &engine));
    fail(bs_comm_watchdog_start(comm, 60));
    if (opt.draw > 0) run_draws(ids);
    else run_text(ids, &shard.kv_heads, desc->n_vocab);
    if (bs_comm_rank(comm) == 0)
        fprintf(stderr, "%lld tokens, %.1f ms, %.1f tokens/s, transport %s\n", (long long)opt.n, total_ms,
                1e3 * (double)(opt.n + opt.draw) / total_ms, bs_comm_transport(comm));
    bs_engine_close(engine);
    bs_model_close(model);
    bs_comm_leave_device(comm);
    bs_device_close(device);
    free(ids);
    bs_comm_finalize(comm);
    return 0;
}
