/* eval_report.c: the figures of an evaluation: summed as positions come, printed as table, CSV and JSON.
 *
 * A KL is kept for each position and format (4 bytes), for the percentile; everything else is a sum. */
#include "config.h"

#include "src/cli/eval.h"
#include "src/base/log.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct figures {
    double perplexity, kl, kl_p99, top1;
} figures;

/* Sorts a copy of the KLs: they must stay in the order of positions until the end. */
static bs_status figures_of(const bs_eval *e, const bs_eval_format *f, figures *out)
{
    const double n = (double)e->n_predicted;
    double kl = 0;
    float *sorted = malloc((size_t)e->n_predicted * sizeof *sorted);
    if (!sorted)
        return bs_fail(BS_STATUS_NOMEM, "eval: no memory for %lld positions", (long long)e->n_predicted);
    for (int64_t i = 0; i < e->n_predicted; i++) kl += sorted[i] = f->kl[i];
    *out = (figures){exp(f->nll / n), kl / n, bs_score_quantile(sorted, e->n_predicted, 0.99),
                     (double)f->n_same / n};
    free(sorted);
    return BS_STATUS_OK;
}

/* One of "results" of --json. */
static json_t *result_row(const bs_eval *e, const bs_eval_format *f, const char *name, const figures *x)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "kv", name, "perplexity", x->perplexity, "kl",
                     x->kl, "kl_p99", x->kl_p99, "top1", x->top1, "bits_per_element",
                     bs_kv_format_bits(&f->kv, bs_model_get_desc(e->model)->head_dim),
                     "bits_per_element_d128", bs_kv_format_bits(&f->kv, 128));
}

/* A row of --csv: the tokens of the text so far, and a result. */
static bs_status write_csv(bs_eval *e, int64_t n_tokens, json_t *result)
{
    json_t *row = json_pack("{s:I}", "tokens", (json_int_t)n_tokens);
    bs_status status = BS_STATUS_OK;
    if (!row || json_object_update(row, result) != 0) status = bs_fail(BS_STATUS_NOMEM, "--csv: no memory");
    if (status == BS_STATUS_OK)
        status = bs_cli_write_csv(e->csv, bs_options_string(e->options, "csv"), row, !e->csv_begun);
    e->csv_begun = true;
    json_decref(row);
    return status;
}

/* The text and how it was read, then the columns. */
static bs_status print_head(const bs_eval *e)
{
    char windows[96] = "in one pass";
    if (!e->one_pass)
        snprintf(windows, sizeof windows, "in windows of %lld, %lld shared with the one before",
                 (long long)e->context, (long long)e->overlap);
    BS_TRY(bs_cli_print_table(e->table, "%s: %lld tokens %s, %lld predicted; %s\n",
                              bs_options_string(e->options, "text"), (long long)e->n_text, windows,
                              (long long)e->n_predicted, bs_model_get_desc(e->model)->name));
    return bs_cli_print_table(e->table, "%-32s %8s %9s %11s %9s %9s %9s %9s\n", "kv", "bits", "at D 128",
                              "perplexity", "over f16", "KL", "KL p99", "top-1");
}

static bs_status print_line(const bs_eval *e, const bs_eval_format *f, const char *name, const figures *x,
                            double reference)
{
    return bs_cli_print_table(e->table, "%-32s %8.3f %9.3f %11.4f %+8.2f%% %9.6f %9.5f %8.2f%%\n", name,
                              bs_kv_format_bits(&f->kv, bs_model_get_desc(e->model)->head_dim),
                              bs_kv_format_bits(&f->kv, 128), x->perplexity,
                              100 * (x->perplexity / reference - 1), x->kl, x->kl_p99, 100 * x->top1);
}

/* The rows of all formats for the first n_tokens of the text: of --csv, and at the end of the rest. */
static bs_status report_rows(bs_eval *e, int64_t n_tokens, bool at_end)
{
    const double reference = exp(e->formats[0].nll / (double)e->n_predicted);
    const bool table = at_end && e->table;
    if (table) BS_TRY(print_head(e));
    for (int i = 0; i < e->n_asked; i++) {
        const bs_eval_format *f = &e->formats[e->asked[i]];
        const char *name = e->names[i];
        figures x = {0};
        BS_TRY(figures_of(e, f, &x));
        if (table) BS_TRY(print_line(e, f, name, &x, reference));
        json_t *row = result_row(e, f, name, &x);
        bs_status status = row ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
        if (status == BS_STATUS_OK && e->csv) status = write_csv(e, n_tokens, row);
        if (status == BS_STATUS_OK && at_end && e->rows && json_array_append(e->rows, row) != 0)
            status = bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
        json_decref(row);
        BS_TRY(status);
    }
    return BS_STATUS_OK;
}

/* The table gives way to JSON, and to CSV, on standard output; --quiet leaves it out then. */
bs_status bs_eval_open_report(bs_eval *e)
{
    const char *path = bs_options_string(e->options, "csv");
    const bool json = bs_options_flag(e->options, "json"), csv_out = path && strcmp(path, "-") == 0;
    if (json && csv_out) return bs_fail(BS_STATUS_USAGE, "--csv -: --json has standard output already");
    if (bs_options_given(e->options, "every") && !path)
        return bs_fail(BS_STATUS_USAGE, "--every: only with --csv");
    e->every = e->next_row = path && bs_options_given(e->options, "every")
                                 ? bs_options_int(e->options, "every")
                                 : 0;
    if (!json && !csv_out) e->table = stdout;
    else if (bs_log_get_level() > BS_LOG_QUIET) e->table = stderr;
    if (json && !(e->rows = json_array())) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    if (path && !(e->csv = csv_out ? stdout : fopen(path, "w")))
        return bs_fail(BS_STATUS_IO, "--csv %s: %s", path, strerror(errno));
    return BS_STATUS_OK;
}

bs_status bs_eval_take(bs_eval *e, const bs_score *scores, int64_t index)
{
    for (int i = 0; i < e->n_formats; i++) {
        if (!scores[i].finite)
            return bs_fail(BS_STATUS_NUMERIC,
                           "eval: %s: a logit for token %lld of the text is not a finite number",
                           e->formats[i].name, (long long)index);
        e->formats[i].nll += scores[i].nll;
        e->formats[i].n_same += scores[i].best == scores[0].best;
        e->formats[i].kl[e->n_predicted] = (float)scores[i].kl;
    }
    e->n_predicted++;
    if (e->every == 0 || index + 1 < e->next_row || index + 1 == e->n_text) return BS_STATUS_OK;
    e->next_row += e->every;
    return report_rows(e, index + 1, false);
}

bs_status bs_eval_report(bs_eval *e)
{
    BS_TRY(report_rows(e, e->n_text, true));
    if (!e->rows) return BS_STATUS_OK;
    return bs_cli_print_json(json_pack("{s:I, s:O}", "tokens", (json_int_t)e->n_text, "results", e->rows));
}

bs_status bs_eval_close_report(bs_eval *e)
{
    bs_status status = BS_STATUS_OK;
    if (e->csv && e->csv != stdout && fclose(e->csv) != 0)
        status = bs_fail(BS_STATUS_IO, "--csv %s: %s", bs_options_string(e->options, "csv"), strerror(errno));
    json_decref(e->rows);
    return status;
}
