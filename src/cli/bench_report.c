/* bench_report.c: a row as soon as it is measured, as a line of the table, of CSV, and at the end all as
 * JSON.
 *
 * A row is a JSON object; CSV's columns are its keys, in their order. Every line is flushed: a run that is
 * cut off keeps what it has. A case that failed has a row, too, with what went wrong and no figures. */
#include "config.h"

#include "src/cli/bench.h"

#include <errno.h>
#include <string.h>

/* ---- rows ---- */

/* The canonical name of a format, "" for none. */
static const char *kv_name(const bs_bench_case *c, char name[BS_KV_FORMAT_NAME])
{
    bs_kv_format format;
    name[0] = 0;
    if (c->kv && bs_kv_format_parse(c->kv, &format) == BS_STATUS_OK) bs_kv_format_name(&format, name);
    return name;
}

static void set_text(json_t *row, const char *name, const char *text)
{
    json_object_set_new(row, name, json_string(text));
}

/* null where it does not apply. */
static void set_whole(json_t *row, const char *name, bool applies, double n)
{
    json_object_set_new(row, name, applies ? json_integer((json_int_t)n) : json_null());
}

void bs_bench_set_real(json_t *row, const char *name, bool applies, double x)
{
    json_object_set_new(row, name, applies ? json_real(x) : json_null());
}

/* Which case it was. */
static void describe(json_t *row, const bs_bench *b, const bs_bench_row *r, const char *check)
{
    const bs_bench_case *c = r->item;
    const bool attend = c->op == BS_BENCH_ATTEND, cache = attend || c->op == BS_BENCH_QUANTIZE;
    char shape[BS_BENCH_SHAPE_NAME], kv[BS_KV_FORMAT_NAME];
    bs_bench_shape_name(c, shape);
    set_text(row, "op", bs_bench_op_name(c->op));
    set_text(row, "shape", shape);
    set_text(row, "kv", kv_name(c, kv));
    set_text(row, "mode", r->mode);
    set_text(row, "check", check);
    set_text(row, "device", bs_device_get_info(b->device)->name);
    set_whole(row, "number", true, r->number);
    set_whole(row, "batch", attend, c->n_seqs);
    set_whole(row, "heads", attend, c->n_heads);
    set_whole(row, "kv_heads", cache, c->n_kv_heads);
    set_whole(row, "head_dim", cache, c->head_dim);
    set_whole(row, "context", cache, (double)c->context);
    set_whole(row, "tokens", attend || c->op == BS_BENCH_GEMV, c->n_query);
    set_whole(row, "window", attend, c->window);
    set_whole(row, "layers", c->op == BS_BENCH_QUANTIZE, c->n_layers);
}

/* What it took. */
static void add_figures(json_t *row, const bs_bench *b, const bs_bench_row *r, bool measured)
{
    const double gb_s = measured ? r->bytes / r->us.median * 1e-3 : 0;
    set_whole(row, "bytes", measured, r->bytes);
    bs_bench_set_real(row, "us", measured, r->us.median);
    bs_bench_set_real(row, "us_p10", measured, r->us.p10);
    bs_bench_set_real(row, "us_p90", measured, r->us.p90);
    bs_bench_set_real(row, "gb_s", measured, gb_s);
    bs_bench_set_real(row, "percent", measured, 100 * gb_s / b->read_gb_s);
    bs_bench_set_real(row, "read_gb_s", true, b->read_gb_s);
    bs_bench_set_real(row, "error_o", r->checked_o, r->error_o);
    bs_bench_set_real(row, "error_lse", r->checked_o, r->error_lse);
    const double tflop_s = measured ? r->flop / r->us.median * 1e-6 : 0;
    const bool counted = measured && r->flop > 0;
    bs_bench_set_real(row, "tflop_s", counted, tflop_s);
    bs_bench_set_real(row, "percent_gemm", counted, 100 * tflop_s / b->gemm_tflop_s);
    bs_bench_set_real(row, "gemm_tflop_s", counted, b->gemm_tflop_s);
}

/* ---- where they go ---- */

static bs_status write_csv(bs_bench *b, json_t *row)
{
    const bool head = !b->csv_begun;
    b->csv_begun = true;
    return bs_cli_write_csv(b->csv, bs_options_string(b->options, "csv"), row, head);
}

bs_status bs_bench_add_row(bs_bench *b, json_t *row)
{
    if (b->csv) BS_TRY(write_csv(b, row));
    if (!b->rows || json_array_append(b->rows, row) == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
}

/* why: of a case that failed, or NULL. */
static bs_status write_row(bs_bench *b, const bs_bench_row *r, const char *why)
{
    json_t *row = json_object();
    if (!row) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    describe(row, b, r, why ? why : "passed");
    add_figures(row, b, r, !why);
    bs_status status = bs_bench_add_row(b, row);
    json_decref(row);
    return status;
}

bs_status bs_bench_report(bs_bench *b, const bs_bench_row *r)
{
    char shape[BS_BENCH_SHAPE_NAME], kv[BS_KV_FORMAT_NAME], error[32] = "", rate[64] = "";
    const double gb_s = r->bytes / r->us.median * 1e-3;
    bs_bench_shape_name(r->item, shape);
    if (r->checked_o) snprintf(error, sizeof error, "  %.1e %.1e", r->error_o, r->error_lse);
    const double tflop_s = r->flop / r->us.median * 1e-6;
    if (r->flop > 0)
        snprintf(rate, sizeof rate, "  %.1f TFLOP/s, %.1f %% of a GEMM's %.1f", tflop_s,
                 100 * tflop_s / b->gemm_tflop_s, b->gemm_tflop_s);
    BS_TRY(bs_cli_print_table(
        b->table, "%3d %-8s %-20s %-31s %-7s %12.0f %10.2f %9.2f-%-9.2f %7.1f %6.1f  passed%s%s\n", r->number,
        bs_bench_op_name(r->item->op), shape, kv_name(r->item, kv), r->mode, r->bytes, r->us.median,
        r->us.p10, r->us.p90, gb_s, 100 * gb_s / b->read_gb_s, error, rate));
    return write_row(b, r, NULL);
}

bs_status bs_bench_report_failure(bs_bench *b, const bs_bench_case *item, int number)
{
    char shape[BS_BENCH_SHAPE_NAME], kv[BS_KV_FORMAT_NAME], why[512];
    snprintf(why, sizeof why, "%s", bs_error_message());
    bs_error_clear();
    bs_bench_shape_name(item, shape);
    BS_TRY(bs_cli_print_table(b->table, "%3d %-8s %-20s %-31s FAILED: %s\n", number,
                              bs_bench_op_name(item->op), shape, kv_name(item, kv), why));
    return write_row(b, &(bs_bench_row){.item = item, .number = number, .mode = ""}, why);
}

/* The table gives way to JSON, and to CSV, on standard output. */
bs_status bs_bench_open_report(bs_bench *b)
{
    const char *path = bs_options_string(b->options, "csv");
    const bool json = bs_options_flag(b->options, "json"), csv_out = path && strcmp(path, "-") == 0;
    if (json && csv_out) return bs_fail(BS_STATUS_USAGE, "--csv -: --json has standard output already");
    b->table = json || csv_out ? stderr : stdout;
    if (json && !(b->rows = json_array())) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    if (path && !(b->csv = csv_out ? stdout : fopen(path, "w")))
        return bs_fail(BS_STATUS_IO, "--csv %s: %s", path, strerror(errno));
    return BS_STATUS_OK;
}

bs_status bs_bench_begin_table(const bs_bench *b)
{
    BS_TRY(bs_cli_print_table(b->table, "%s; streaming read %.1f GB/s\n", bs_device_get_info(b->device)->name,
                              b->read_gb_s));
    return bs_cli_print_table(b->table, "%3s %-8s %-20s %-31s %-7s %12s %10s %-19s %7s %6s  %s\n", "#", "op",
                              "shape", "kv", "mode", "bytes", "us", "      p10-p90", "GB/s", "% read",
                              "check, error of O and LSE");
}

bs_status bs_bench_close_report(bs_bench *b)
{
    bs_status status = BS_STATUS_OK;
    if (b->csv && b->csv != stdout && fclose(b->csv) != 0)
        status = bs_fail(BS_STATUS_IO, "--csv %s: %s", bs_options_string(b->options, "csv"), strerror(errno));
    if (b->rows && status == BS_STATUS_OK) status = bs_cli_print_json(json_incref(b->rows));
    json_decref(b->rows);
    return status;
}
