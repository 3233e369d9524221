/* bench_prefill_report.c: a row of `bench prefill` as a line of the table, of CSV, and at the end all as JSON. */
#include "config.h"

#include "src/cli/bench_prefill.h"
#include "src/base/progress.h"

static const char *const part_names[BS_PREFILL_N_PARTS] = {"gemm_ms", "attend_ms", "quantize_ms", "comm_ms",
                                                           "other_ms"};

bs_status bs_prefill_begin_table(bs_prefill_bench *p)
{
    const bs_model_desc *desc = bs_model_get_desc(p->model);
    BS_TRY(bs_cli_print_table(
        p->bench.table, "%s; %s, %d rank%s, grid %dx%d, merge %s, transport %s; chunks of %d\n", desc->name,
        bs_device_get_info(p->bench.device)->name, p->grid.size, p->grid.size > 1 ? "s" : "", p->grid.heads,
        p->grid.seq, bs_merge_method_name(p->config.merge), bs_comm_transport(p->comm),
        p->config.chunk_tokens));
    return bs_cli_print_table(p->bench.table,
                              "%-31s %-6s %9s %9s %5s %11s %10s %8s %6s %8s %8s %8s %8s %8s %7s\n", "kv",
                              "what", "from", "tokens", "steps", "ms", "tokens/s", "TFLOP/s", "%GEMM", "gemm",
                              "attend", "quantize", "comm", "other", "attend%");
}

bs_status bs_prefill_begin_format(bs_prefill_bench *p, const bs_kv_format *format)
{
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(format, kv);
    return bs_cli_print_table(p->bench.table, "%-31s a large GEMM: %.4g TFLOP/s a rank\n", kv,
                              p->bench.gemm_tflop_s);
}

/* Floating-point operations of a row. */
static double attend_flop(const bs_prefill_bench *p, const bs_prefill_row *r)
{
    return bs_prefill_attend_flop(bs_model_get_desc(p->model), r->first, r->n_tokens);
}

static double total_flop(const bs_prefill_bench *p, const bs_prefill_row *r)
{
    return bs_prefill_dense_flop(bs_model_get_desc(p->model), r->n_tokens) + attend_flop(p, r);
}

/* 10¹² operations a second of all ranks, and the share of what their GEMMs reach. */
static double tflop_s(double flop, double ms)
{
    return ms > 0 ? flop / ms * 1e-9 : 0;
}

static double percent(const bs_prefill_bench *p, double rate)
{
    return 100 * rate / (p->bench.gemm_tflop_s * p->grid.size);
}

static json_t *make_row(const bs_prefill_bench *p, const bs_prefill_row *r, const char *kv)
{
    const bool measured = !r->skipped;
    char grid[32], check[320];
    snprintf(check, sizeof check, "%s%s", r->skipped ? "skipped: " : "",
             r->skipped ? r->skipped
             : r->note  ? r->note
                        : "passed");
    snprintf(grid, sizeof grid, "%dx%d", p->grid.heads, p->grid.seq);
    json_t *row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:I, s:I, s:i, s:s}", "op",
                            r->prompt ? "prompt" : "chunk", "model", bs_model_get_desc(p->model)->name, "kv",
                            kv, "grid", grid, "merge", bs_merge_method_name(p->config.merge), "transport",
                            bs_comm_transport(p->comm), "device", bs_device_get_info(p->bench.device)->name,
                            "ranks", p->grid.size, "chunk_tokens", p->config.chunk_tokens, "position",
                            (json_int_t)r->first, "tokens", (json_int_t)r->n_tokens, "timed_tokens",
                            (json_int_t)r->n_measured, "steps", r->n_steps, "check", check);
    if (!row) return NULL;
    const double rate = measured ? tflop_s(total_flop(p, r), r->ms) : 0;
    bs_bench_set_real(row, "ms", measured, r->ms);
    bs_bench_set_real(row, "tokens_s", measured, measured ? 1e3 * (double)r->n_tokens / r->ms : 0);
    bs_bench_set_real(row, "tflop", true, total_flop(p, r) * 1e-12);
    bs_bench_set_real(row, "tflop_s", measured, rate);
    bs_bench_set_real(row, "gemm_tflop_s", true, p->bench.gemm_tflop_s);
    bs_bench_set_real(row, "percent", measured, percent(p, rate));
    for (int part = 0; part < BS_PREFILL_N_PARTS; part++)
        bs_bench_set_real(row, part_names[part], r->parts != NULL, r->parts ? r->parts[part] : 0);
    const double attend = r->parts ? tflop_s(attend_flop(p, r), r->parts[BS_PREFILL_ATTEND]) : 0;
    bs_bench_set_real(row, "attend_tflop_s", r->parts != NULL, attend);
    bs_bench_set_real(row, "attend_percent", r->parts != NULL, percent(p, attend));
    return row;
}

/* Chunks of which there are no parts are in the CSV and the JSON alone. */
static bs_status print_line(bs_prefill_bench *p, const bs_prefill_row *r, const char *kv)
{
    const char *what = r->prompt ? "prompt" : "chunk";
    if (r->skipped)
        return bs_cli_print_table(p->bench.table, "%-31s %-6s %9lld %9lld skipped: %s\n", kv, what,
                                  (long long)r->first, (long long)r->n_tokens, r->skipped);
    if (!r->prompt && !r->parts) return BS_STATUS_OK;
    const double rate = tflop_s(total_flop(p, r), r->ms);
    char steps[16] = "";
    if (!r->prompt) snprintf(steps, sizeof steps, "%d", r->n_steps);
    BS_TRY(bs_cli_print_table(p->bench.table, "%-31s %-6s %9lld %9lld %5s %11.2f %10.1f %8.4g %6.1f", kv,
                              what, (long long)r->first, (long long)r->n_tokens, steps, r->ms,
                              1e3 * (double)r->n_tokens / r->ms, rate, percent(p, rate)));
    if (r->prompt)
        return bs_cli_print_table(p->bench.table, "%s%s\n", r->note ? "  " : "", r->note ? r->note : "");
    return bs_cli_print_table(
        p->bench.table, " %8.2f %8.2f %8.3f %8.2f %8.2f %7.1f\n", r->parts[BS_PREFILL_GEMM],
        r->parts[BS_PREFILL_ATTEND], r->parts[BS_PREFILL_QUANTIZE], r->parts[BS_PREFILL_COMM],
        r->parts[BS_PREFILL_OTHER], percent(p, tflop_s(attend_flop(p, r), r->parts[BS_PREFILL_ATTEND])));
}

bs_status bs_prefill_report(bs_prefill_bench *p, const bs_prefill_row *r)
{
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(r->kv, kv);
    BS_TRY(print_line(p, r, kv));
    json_t *row = make_row(p, r, kv);
    if (!row) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    bs_status status = bs_bench_add_row(&p->bench, row);
    json_decref(row);
    return status;
}
