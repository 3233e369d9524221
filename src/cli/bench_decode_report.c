/* bench_decode_report.c: a row of `bench decode` as a line of the table, of CSV, and at the end all as JSON. */
#include "config.h"

#include "src/cli/bench_decode.h"
#include "src/base/progress.h"

static double floor_ms(const bs_decode_bench *d, const bs_decode_row *r)
{
    return (r->weight_bytes + r->kv_bytes) / d->bench.read_gb_s * 1e-6;
}

/* What is left of a token's time: gaps between kernels; negative where a graph lets them overlap. */
static double rest_ms(const bs_decode_row *r)
{
    double rest = r->ms.median;
    for (int part = 0; part < BS_DECODE_N_PARTS; part++) rest -= r->part_ms[part];
    return rest;
}

bs_status bs_decode_begin_table(bs_decode_bench *d)
{
    const bs_model_desc *desc = bs_model_get_desc(d->model);
    BS_TRY(bs_cli_print_table(
        d->bench.table, "%s; %s, %d rank%s, grid %dx%d, merge %s, transport %s; streaming read %.1f GB/s\n",
        desc->name, bs_device_get_info(d->bench.device)->name, d->grid.size, d->grid.size > 1 ? "s" : "",
        d->grid.heads, d->grid.seq, bs_merge_method_name(d->config.merge), bs_comm_transport(d->comm),
        d->bench.read_gb_s));
    return bs_cli_print_table(d->bench.table, "%-31s %5s %9s %9s %-17s %9s %9s %6s %9s %9s %9s %9s %9s\n",
                              "kv", "batch", "cached", "ms", "   p10-p90", "tokens/s", "floor ms", "ratio",
                              "attention", "dense", "comm", "other", "rest");
}

static json_t *make_row(const bs_decode_bench *d, const bs_decode_row *r, const char *kv)
{
    static const char *const parts[BS_DECODE_N_PARTS] = {"attend_ms", "dense_ms", "comm_ms", "other_ms"};
    const bool measured = !r->skipped;
    char grid[32], check[192];
    snprintf(check, sizeof check, "%s%s", measured ? "passed" : "skipped: ", measured ? "" : r->skipped);
    snprintf(grid, sizeof grid, "%dx%d", d->grid.heads, d->grid.seq);
    json_t *row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:s, s:i}", "op", "decode",
                            "model", bs_model_get_desc(d->model)->name, "kv", kv, "grid", grid, "merge",
                            bs_merge_method_name(d->config.merge), "transport", bs_comm_transport(d->comm),
                            "device", bs_device_get_info(d->bench.device)->name, "ranks", d->grid.size,
                            "batch", r->batch, "context", (json_int_t)r->context, "check", check, "steps",
                            measured ? d->n_steps : 0);
    if (!row) return NULL;
    const double ms = r->ms.median;
    bs_bench_set_real(row, "ms", measured, ms);
    bs_bench_set_real(row, "ms_p10", measured, r->ms.p10);
    bs_bench_set_real(row, "ms_p90", measured, r->ms.p90);
    bs_bench_set_real(row, "tokens_s", measured, 1e3 * r->batch / ms);
    bs_bench_set_real(row, "weight_bytes", measured, r->weight_bytes);
    bs_bench_set_real(row, "kv_bytes", measured, r->kv_bytes);
    bs_bench_set_real(row, "read_gb_s", true, d->bench.read_gb_s);
    bs_bench_set_real(row, "floor_ms", measured, floor_ms(d, r));
    bs_bench_set_real(row, "ratio", measured, ms / floor_ms(d, r));
    for (int part = 0; part < BS_DECODE_N_PARTS; part++)
        bs_bench_set_real(row, parts[part], measured, measured ? r->part_ms[part] : 0);
    bs_bench_set_real(row, "rest_ms", measured, measured ? rest_ms(r) : 0);
    return row;
}

bs_status bs_decode_report(bs_decode_bench *d, const bs_decode_row *r)
{
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(r->kv, kv);
    if (r->skipped) {
        BS_TRY(bs_cli_print_table(d->bench.table, "%-31s %5d %9lld skipped: %s\n", kv, r->batch,
                                  (long long)r->context, r->skipped));
    } else {
        BS_TRY(bs_cli_print_table(
            d->bench.table,
            "%-31s %5d %9lld %9.3f %8.3f-%-8.3f %9.1f %9.3f %6.3f %9.3f %9.3f %9.3f %9.3f %9.3f\n", kv,
            r->batch, (long long)r->context, r->ms.median, r->ms.p10, r->ms.p90,
            1e3 * r->batch / r->ms.median, floor_ms(d, r), r->ms.median / floor_ms(d, r),
            r->part_ms[BS_DECODE_ATTEND], r->part_ms[BS_DECODE_DENSE], r->part_ms[BS_DECODE_COMM],
            r->part_ms[BS_DECODE_OTHER], rest_ms(r)));
    }
    json_t *row = make_row(d, r, kv);
    if (!row) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    bs_status status = bs_bench_add_row(&d->bench, row);
    json_decref(row);
    return status;
}
