/* cmd_generate.c: a prompt in, its answer out, on all ranks of the job.
 *
 * The stages of setting up each end with bs_comm_agree, so that whatever fails on one rank ends all with one
 * line. Rank 0 alone reads the prompt, has the tokenizer and the scheduler; the others need to know only how
 * long the sequence may become. While the engine runs nothing can be agreed (the others may wait inside a
 * collective), so an error there ends the job.
 *
 * With --batch the requests of a file take the place of the prompt (generate_batch.c); the stages are the same.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cache/format.h"
#include "src/cli/generate.h"
#include "src/cli/stop.h"
#include "src/cli/table.h"
#include "src/model/chat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- setting up: every rank
 * --------------------------------------------------------------------------------- */

static bs_status check_options(const bs_options *options)
{
    if (bs_options_given(options, "system") && !bs_options_flag(options, "chat"))
        return bs_fail(BS_STATUS_USAGE, "--system: only with --chat");
    if (bs_options_flag(options, "dry-run") && bs_options_flag(options, "json"))
        return bs_fail(BS_STATUS_USAGE, "--dry-run: not together with --json");
    if (bs_options_int(options, "chunk-tokens") % BS_PAGE_TOKENS != 0)
        return bs_fail(BS_STATUS_USAGE, "--chunk-tokens %lld: must be a multiple of %d",
                       (long long)bs_options_int(options, "chunk-tokens"), BS_PAGE_TOKENS);
    for (int i = 0; i < 4 && bs_options_given(options, "prompt-ids"); i++) {
        static const char *const others[] = {"prompt", "prompt-file", "chat", "batch"};
        if (bs_options_given(options, others[i]))
            return bs_fail(BS_STATUS_USAGE, "--prompt-ids: not together with --%s", others[i]);
    }
    BS_TRY(bs_generate_batch_check(options));
    BS_TRY(bs_generate_snapshot_check(options));
    for (int i = 0; i < bs_options_count(options, "stop"); i++)
        if (bs_options_item(options, "stop", i)[0] == 0)
            return bs_fail(BS_STATUS_USAGE, "--stop: must not be empty");
    return BS_STATUS_OK;
}

/* All but the context, which the prompt decides. */
static bs_status read_config(generate *g)
{
    BS_TRY(check_options(g->options));
    g->json = bs_options_flag(g->options, "json");
    BS_TRY(bs_cli_read_kv(g->options, &g->config.kv));
    BS_TRY(bs_cli_read_merge(g->options, &g->config.merge));
    g->config.act = bs_cli_read_dtype(g->options);
    g->config.stripe_pages = (int)bs_options_int(g->options, "stripe-pages");
    g->config.chunk_tokens = (int)bs_options_int(g->options, "chunk-tokens");
    g->is_batch = bs_options_given(g->options, "batch");
    g->keeper.on = g->config.snapshots = bs_options_given(g->options, "snapshot");
    if (g->keeper.on && g->leader) BS_TRY(bs_generate_snapshot_read(g));
    return BS_STATUS_OK;
}

static bs_status open_local(generate *g)
{
    BS_TRY(read_config(g));
    BS_TRY(bs_cli_open_model(g->options, &g->model));
    BS_TRY(bs_cli_open_device(g->options, g->comm, &g->device));
    BS_TRY(bs_cli_choose_grid(g->options, g->comm, g->model, &g->grid));
    bool without = !g->is_batch &&
                   (bs_options_given(g->options, "prompt-ids") || bs_options_flag(g->options, "dry-run"));
    if (without && !bs_tokenizer_exists(g->model)) return BS_STATUS_OK;
    if (!bs_model_is_random(g->model))
        return g->leader ? bs_tokenizer_open(g->model, &g->tokenizer) : BS_STATUS_OK;
    return bs_fail(BS_STATUS_USAGE, "%s: has no tokenizer: give the prompt as --prompt-ids",
                   bs_model_path(g->model));
}

/* ---- setting up: rank 0's prompt
 * ---------------------------------------------------------------------------- */

static bs_status tokenize_chat(generate *g, const char *text, size_t bytes)
{
    const char *system = bs_options_string(g->options, "system");
    bs_chat_message messages[2];
    int n = 0;
    if (system) messages[n++] = (bs_chat_message){"system", system, strlen(system)};
    messages[n++] = (bs_chat_message){"user", text, bytes};
    return bs_chat_tokenize(g->tokenizer, messages, n, &g->prompt);
}

static bs_status tokenize_prompt(generate *g, const char *text, size_t bytes)
{
    if (bs_options_flag(g->options, "chat")) return tokenize_chat(g, text, bytes);
    int32_t bos = bs_tokenizer_bos(g->tokenizer);
    if (bos >= 0 && (bs_tokenizer_adds_bos(g->tokenizer) || bytes == 0))
        BS_TRY(bs_tokens_push(&g->prompt, bos));
    return bs_tokenize(g->tokenizer, text, bytes, bs_options_flag(g->options, "parse-special"), &g->prompt);
}

/* An id, or a token's exact text. */
static bs_status read_stop_token(generate *g, const char *text)
{
    int n_vocab = g->tokenizer ? bs_tokenizer_n_vocab(g->tokenizer) : bs_model_get_desc(g->model)->n_vocab;
    char *end;
    errno = 0;
    long id = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno != 0)
        id = g->tokenizer ? bs_tokenizer_find(g->tokenizer, text, strlen(text)) : -1;
    if (id < 0 || id >= n_vocab)
        return bs_fail(BS_STATUS_USAGE, "--stop-token %s: neither an id below %d nor a token of the model",
                       text, n_vocab);
    return bs_tokens_push(&g->stop_tokens, (int32_t)id);
}

static bs_status choose_context(generate *g)
{
    int64_t answer = bs_options_int(g->options, "max-tokens"), fill = bs_options_int(g->options, "kv-fill");
    int64_t need = fill + (int64_t)g->prompt.n + answer;
    bool given = bs_options_given(g->options, "context");
    int64_t context = given ? bs_options_int(g->options, "context") : need;
    if (context < need)
        return bs_fail(BS_STATUS_USAGE,
                       "--context %lld: a prompt of %zu tokens%s and --max-tokens %lld need %lld",
                       (long long)context, g->prompt.n, fill > 0 ? ", --kv-fill" : "", (long long)answer,
                       (long long)need);
    int trained = bs_model_get_desc(g->model)->context_length;
    if (need > trained)
        bs_log_warn("prompt and answer may reach %lld tokens: the model was trained for %d", (long long)need,
                    trained);
    g->config.max_context = g->config.total_tokens = context;
    g->config.max_seqs = 1;
    return BS_STATUS_OK;
}

static bs_status read_prompt(generate *g)
{
    for (int i = 0; i < bs_options_count(g->options, "stop-token"); i++)
        BS_TRY(read_stop_token(g, bs_options_item(g->options, "stop-token", i)));
    if (g->is_batch) return bs_generate_batch_read(g);
    const char *ids = bs_options_string(g->options, "prompt-ids");
    if (ids) {
        BS_TRY(bs_cli_read_ids("prompt-ids", ids, bs_model_get_desc(g->model)->n_vocab, &g->prompt));
        if (g->prompt.n == 0) return bs_fail(BS_STATUS_USAGE, "--prompt-ids: has no id");
    } else if (!g->tokenizer && !bs_options_given(g->options, "context")) {
        return bs_fail(BS_STATUS_USAGE, "--dry-run: give --context or --prompt-ids");
    } else if (/* a dry run needs the prompt for its length only */
               !(bs_options_flag(g->options, "dry-run") && bs_options_given(g->options, "context"))) {
        char *text;
        size_t bytes;
        BS_TRY(bs_cli_read_text(g->options, &text, &bytes));
        bs_status status = tokenize_prompt(g, text, bytes);
        free(text);
        BS_TRY(status);
        if (g->prompt.n == 0) return bs_fail(BS_STATUS_USAGE, "the prompt is empty");
        bs_log_debug("prompt: %zu bytes, %zu tokens", bytes, g->prompt.n);
    }
    return choose_context(g);
}

/* ---- setting up: together
 * ----------------------------------------------------------------------------------- */

/* What must be the same on all ranks. */
typedef struct common_ground {
    bs_cli_ground engine;
    int64_t context, total_tokens, max_seqs; /* rank 0's count */
    int64_t batch, dry_run, chunk_tokens, v_encoder, snapshots, verify, keep;
    char kv[BS_KV_FORMAT_NAME];
} common_ground;

/* What follows from the number of sequences. Prompts of at most four are computed at once: each of them holds f16 pages
 * of two chunks. A step has room for a whole chunk beside everybody else's token. */
static void size_steps(bs_engine_config *config)
{
    enum { MOST_PREFILLS = 4, MOST_STEP_TOKENS = 65536 };
    int tokens = config->chunk_tokens + config->max_seqs - 1;
    config->max_prefill_seqs = config->max_seqs < MOST_PREFILLS ? config->max_seqs : MOST_PREFILLS;
    config->max_step_tokens = tokens < MOST_STEP_TOKENS ? tokens : MOST_STEP_TOKENS;
}

/* Tells all ranks the context; a rank whose environment or file says otherwise than rank 0's fails. */
static bs_status share_ground(generate *g)
{
    common_ground mine, rank0;
    memset(&mine, 0, sizeof mine); /* compared as bytes */
    mine.engine = bs_cli_ground_of(g->options, g->model, &g->grid, &g->config);
    mine.context = g->config.max_context;
    mine.total_tokens = g->config.total_tokens;
    mine.max_seqs = g->config.max_seqs;
    mine.batch = g->is_batch;
    mine.dry_run = bs_options_flag(g->options, "dry-run");
    mine.chunk_tokens = g->config.chunk_tokens;
    mine.v_encoder = g->config.kv.v_encoder;
    mine.snapshots = g->keeper.on;
    mine.verify = bs_options_string(g->options, "snapshot-verify")[0];
    mine.keep = bs_options_int(g->options, "snapshot-keep");
    bs_kv_format_name(&g->config.kv, mine.kv);
    rank0 = mine;
    BS_TRY(bs_comm_bcast_host(g->comm, &rank0, sizeof rank0, 0));
    mine.context = g->config.max_context = rank0.context;
    mine.total_tokens = g->config.total_tokens = rank0.total_tokens;
    mine.max_seqs = rank0.max_seqs;
    g->config.max_seqs = (int)rank0.max_seqs;
    size_steps(&g->config);
    return bs_cli_compare_ground(&mine, &rank0, sizeof mine,
                                 "--batch, --dry-run, --kv, --v-encoder, --chunk-tokens or --snapshot…");
}

static void on_load(void *context, uint64_t done, uint64_t total)
{
    generate *g = context;
    bs_progress_follow(&g->load, "load", done, total, g->leader && bs_log_get_level() > BS_LOG_QUIET);
}

static bs_status set_up(generate *g)
{
    double start = bs_now_s();
    BS_TRY(bs_comm_agree(g->comm, open_local(g)));
    g->load_ms = (bs_now_s() - start) * 1e3;
    BS_TRY(bs_comm_agree(g->comm, g->leader ? read_prompt(g) : BS_STATUS_OK));
    BS_TRY(bs_comm_agree(g->comm, share_ground(g)));
    return bs_comm_agree(g->comm, bs_comm_set_grid(g->comm, &g->grid));
}

static bs_status open_engine(generate *g)
{
    double start = bs_now_s();
    BS_TRY(bs_comm_agree(g->comm, bs_cli_use_transport(g->options, g->comm, g->device)));
    g->left_bytes = bs_device_memory_left(g->device);
    BS_TRY(bs_engine_open(g->model, g->device, g->comm, &g->config, on_load, g, &g->engine));
    if (g->keeper.on) BS_TRY(bs_generate_snapshot_open(g));
    g->load_ms += (bs_now_s() - start) * 1e3;
    return BS_STATUS_OK;
}

/* Whether --dry-run is right: what a GPU's driver has given away since the engine was opened, libraries' own and kernels'
 * code included. */
static void compare_memory(const generate *g)
{
    bs_engine_memory planned;
    if (bs_device_get_info(g->device)->kind == BS_DEVICE_CPU) return;
    if (bs_engine_plan_memory(g->model, g->device, &g->grid, &g->config, &planned) != BS_STATUS_OK) return;
    bs_log_debug("device memory: %llu bytes planned, %llu taken", (unsigned long long)planned.device_bytes,
                 (unsigned long long)(g->left_bytes - bs_device_memory_left(g->device)));
}

/* ---- the answers
 * -------------------------------------------------------------------------------------------- */

static bs_status run(generate *g)
{
    bs_status (*begin)(generate *) = g->is_batch ? bs_generate_batch_begin : bs_generate_answer_begin;
    bs_status (*finish)(generate *) = g->is_batch ? bs_generate_batch_finish : bs_generate_answer_finish;
    BS_TRY(bs_comm_agree(g->comm, g->leader ? begin(g) : BS_STATUS_OK));
    double watchdog_s = bs_options_float(g->options, "watchdog-s");
    if (watchdog_s > 0) BS_TRY(bs_comm_agree(g->comm, bs_comm_watchdog_start(g->comm, watchdog_s)));
    if (!g->keeper.on) bs_cli_catch_stop(); /* until here the first one ends the process */
    BS_TRY(bs_generate_follow_orders(g));
    compare_memory(g);
    return bs_comm_agree(g->comm, g->leader ? finish(g) : BS_STATUS_OK);
}

/* Rank 0: a batch of which nothing is left to decode. */
static bs_status finish_undecoded(generate *g)
{
    if (bs_options_flag(g->options, "dry-run")) return bs_cli_print("nothing to decode\n");
    return bs_generate_batch_finish(g);
}

static void clean_up(generate *g)
{
    g->muted = true; /* after an error: what requests still hold back is nobody's */
    bs_sched_close(g->sched);
    if (g->request) bs_request_free(g->request);
    bs_generate_batch_free(g);
    bs_output_close(g->out);
    bs_generate_snapshot_close(g);
    bs_engine_close(g->engine);
    bs_tokens_free(&g->stop_tokens);
    bs_tokens_free(&g->prompt);
    bs_tokenizer_close(g->tokenizer);
    bs_cli_close_device(g->comm, g->device);
    bs_model_close(g->model);
}

bs_status bs_cli_generate(const bs_options *options, bs_comm *comm)
{
    generate g = {.options = options, .comm = comm, .leader = bs_comm_rank(comm) == 0};
    if (bs_options_given(options, "snapshot")) bs_cli_catch_stop_and_snapshot();
    bs_status status = set_up(&g);
    if (status == BS_STATUS_OK && g.config.max_context == 0) {
        status = bs_comm_agree(comm, g.leader ? finish_undecoded(&g) : BS_STATUS_OK);
    } else if (status == BS_STATUS_OK && bs_options_flag(options, "dry-run")) {
        status = bs_generate_dry_run(&g);
    } else if (status == BS_STATUS_OK) {
        status = open_engine(&g);
        if (status == BS_STATUS_OK) status = run(&g);
    }
    clean_up(&g);
    return status;
}
