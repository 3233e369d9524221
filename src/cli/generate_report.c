/* generate_report.c: summary, JSON and dry run of `generate`. */
#include "config.h"

#include "src/base/log.h"
#include "src/cache/format.h"
#include "src/cli/generate.h"

#include <stdlib.h>
#include <string.h>

/* Steps that decode_ms was spent on: the first token comes from the prompt's last step, but not when an answer goes on. */
static int64_t count_decodes(const bs_request_stats *stats)
{
    return stats->n_earlier > 0 ? stats->n_answer - stats->n_earlier : stats->n_answer - 1;
}

static double per_token_ms(const bs_request_stats *stats)
{
    int64_t n = count_decodes(stats);
    return n > 0 ? stats->decode_ms / (double)n : 0;
}

static double per_second(double n, double ms)
{
    return ms > 0 ? n * 1e3 / ms : 0;
}

/* ---- snapshots -------------------------------------------------------------------------------------------------- */

static int compare_ms(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Percentile of the steps with a snapshot under way (busy 1) or without; 0: there were none. */
static double step_ms(const generate *g, int busy, double percentile)
{
    const step_times *t = &g->keeper.times;
    if (t->n[busy] == 0) return 0;
    qsort(t->ms[busy], (size_t)t->n[busy], sizeof(float), compare_ms);
    int64_t at = (int64_t)(percentile * (double)t->n[busy]);
    return t->ms[busy][at < t->n[busy] ? at : t->n[busy] - 1];
}

static json_t *steps_json(const generate *g, int busy)
{
    return json_pack("{s:I, s:f, s:f, s:f}", "n", (json_int_t)g->keeper.times.n[busy], "ms",
                     step_ms(g, busy, 0.5), "ms_p99", step_ms(g, busy, 0.99), "ms_max", step_ms(g, busy, 1));
}

static json_t *snapshots_json(const generate *g)
{
    const keeper *k = &g->keeper;
    return json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o}", "taken", (json_int_t)k->n_taken, "failed",
                     (json_int_t)k->n_failed, "bytes", (json_int_t)k->bytes, "tokens_reused",
                     (json_int_t)k->n_reused, "stall_ms", bs_engine_boundary_s(g->engine) * 1e3,
                     "total_ms_max", k->last_total_s * 1e3, "steps_quiet", steps_json(g, 0), "steps_snapshot",
                     steps_json(g, 1));
}

static void summarize_snapshots(const generate *g)
{
    const keeper *k = &g->keeper;
    char bytes[32];
    bs_format_bytes(k->bytes, bytes, sizeof bytes);
    bs_log_info("snapshots: %lld taken, %lld failed, %s written; a step waited %.2f ms at most; decode steps "
                "%.2f ms, "
                "p99 %.2f (%lld); while one is written %.2f ms, p99 %.2f (%lld)",
                (long long)k->n_taken, (long long)k->n_failed, bytes, bs_engine_boundary_s(g->engine) * 1e3,
                step_ms(g, 0, 0.5), step_ms(g, 0, 0.99), (long long)k->times.n[0], step_ms(g, 1, 0.5),
                step_ms(g, 1, 0.99), (long long)k->times.n[1]);
}

void bs_generate_summarize(const generate *g)
{
    const bs_request_stats *stats = bs_request_get_stats(g->request);
    char kv[BS_KV_FORMAT_NAME], bytes[32], f16[32];
    bs_kv_format_name(&g->config.kv, kv);
    bs_format_bytes(g->cache_bytes, bytes, sizeof bytes);
    bs_format_bytes(g->cache_bytes_f16, f16, sizeof f16);
    char of[32] = ""; /* a prompt that was cut short */
    if ((int64_t)g->n_prefilled < stats->n_prompt) snprintf(of, sizeof of, " of %lld", (long long)stats->n_prompt);
    bs_log_info("loaded in %.0f ms; prompt: %lld%s tokens in %.0f ms, %.1f tokens/s", g->load_ms,
                (long long)g->n_prefilled, of, stats->prefill_ms,
                per_second((double)g->n_prefilled, stats->prefill_ms));
    bs_log_info("answer: %lld tokens in %.0f ms, %.2f ms a token, %.1f tokens/s (%s)",
                (long long)stats->n_answer, stats->decode_ms, per_token_ms(stats),
                per_second((double)count_decodes(stats), stats->decode_ms), bs_finish_name(stats->finish));
    if (g->keeper.on) summarize_snapshots(g);
    bs_log_info("cache: %s as %s; f16 would take %s, %.2f times as much", bytes, kv, f16,
                g->cache_bytes > 0 ? (double)g->cache_bytes_f16 / (double)g->cache_bytes : 1);
    bs_log_info("ranks: %d, %d head x %d sequence shards, merge %s, transport %s", g->grid.size,
                g->grid.heads, g->grid.seq, bs_merge_method_name(g->config.merge),
                bs_comm_transport(g->comm));
}

static json_t *json_ids(const int32_t *ids, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

bs_status bs_generate_print_json(const generate *g)
{
    const bs_request_stats *stats = bs_request_get_stats(g->request);
    json_t *per_token = count_decodes(stats) > 0 ? json_real(per_token_ms(stats)) : json_null();
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(&g->config.kv, kv);
    json_t *root = json_pack("{s:s, s:o, s:o, s:o, s:s, s:s, s:{s:i, s:i}, s:{s:f, s:f, s:f, s:o}, s:I, s:I}",
                             "id", "0", "prompt_tokens", json_ids(stats->prompt, stats->n_prompt), "tokens",
                             json_ids(stats->answer, stats->n_answer), "text",
                             json_stringn(stats->text, stats->text_bytes), "finish_reason",
                             bs_finish_name(stats->finish), "kv", kv, "grid", "heads", g->grid.heads, "seq",
                             g->grid.seq, "timings", "load_ms", g->load_ms, "prefill_ms", stats->prefill_ms,
                             "decode_ms", stats->decode_ms, "ms_per_token", per_token, "cache_bytes",
                             (json_int_t)g->cache_bytes, "cache_bytes_f16", (json_int_t)g->cache_bytes_f16);
    if (g->keeper.on && json_object_set_new(root, "snapshots", snapshots_json(g)) != 0) {
        json_decref(root);
        root = NULL;
    }
    char *line = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!line) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    bs_status status = bs_output_write(g->out, line, strlen(line));
    free(line);
    return status == BS_STATUS_OK ? bs_output_write(g->out, "\n", 1) : status;
}

/* What `fold` costs in weights: every sequence shard keeps o_proj's columns of all its heads. */
static bs_status print_fold(const generate *g)
{
    bs_shard fold, cut;
    BS_TRY(bs_shard_compute(g->model, &g->grid, BS_MERGE_FOLD, &fold));
    BS_TRY(bs_shard_compute(g->model, &g->grid, BS_MERGE_ALLREDUCE, &cut));
    char more[32];
    bs_format_bytes(bs_shard_weight_bytes(g->model, &fold) - bs_shard_weight_bytes(g->model, &cut), more,
                    sizeof more);
    return bs_cli_print("merge fold: o_proj has %lld columns on rank 0 instead of %lld, %s more of weights\n",
                        (long long)fold.o_cols.n, (long long)cut.o_cols.n, more);
}

static bs_status print_dry_run(const generate *g, const bs_engine_memory *memory)
{
    const bs_model_desc *desc = bs_model_get_desc(g->model);
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(&g->config.kv, kv);
    BS_TRY(bs_cli_print("%s: %d layers, %d heads on %d KV heads of %d\n", desc->name, desc->n_layers,
                        desc->n_heads, desc->n_kv_heads, desc->head_dim));
    BS_TRY(bs_cli_print("grid %dx%d, merge %s, kv %s, context %lld tokens\n", g->grid.heads, g->grid.seq,
                        bs_merge_method_name(g->config.merge), kv, (long long)g->config.max_context));
    BS_TRY(bs_cli_print_memory(memory, g->grid.size));
    if (g->config.merge == BS_MERGE_FOLD && g->grid.seq > 1) BS_TRY(print_fold(g));
    if (bs_model_is_mapped(g->model, g->device))
        BS_TRY(bs_cli_print("weights are mapped from the file: ranks of a machine share them\n"));
    return BS_STATUS_OK;
}

bs_status bs_generate_dry_run(generate *g)
{
    bs_engine_memory mine;
    void *all;
    BS_TRY(bs_comm_agree(g->comm, bs_engine_plan_memory(g->model, g->device, &g->grid, &g->config, &mine)));
    BS_TRY(bs_cli_gather(g->comm, &mine, sizeof mine, "--dry-run", &all));
    bs_status status = g->leader ? print_dry_run(g, all) : BS_STATUS_OK;
    free(all);
    if (status == BS_STATUS_OK) status = bs_engine_check_memory(g->model, g->device, &g->grid, &g->config);
    return bs_comm_agree(g->comm, status);
}
