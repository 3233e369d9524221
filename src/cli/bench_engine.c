/* bench_engine.c: what the benches of a model do the same way: opening, lists of options, comparing them over the ranks, what
 * fits, and where the time of a step goes. */
#include "config.h"

#include "src/cli/bench_engine.h"
#include "src/base/progress.h"
#include "src/cli/common.h"

#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

bs_status bs_bench_open_device(bs_bench *b, const bs_comm *comm)
{
    BS_TRY(bs_cli_open_device(b->options, comm, &b->device));
    b->gpu = bs_device_get_info(b->device)->kind == BS_DEVICE_CUDA;
    return BS_STATUS_OK;
}

bs_status bs_bench_open_model(bs_bench *b, const bs_comm *comm, const char *fallback, bs_model **model,
                              bs_grid *grid)
{
    if (fallback && !bs_options_given(b->options, "model")) BS_TRY(bs_model_open(fallback, model));
    else BS_TRY(bs_cli_open_model(b->options, model));
    BS_TRY(bs_cli_choose_grid(b->options, comm, *model, grid));
    BS_TRY(bs_stream_create(b->device, &b->stream));
    return bs_comm_rank(comm) == 0 ? bs_bench_open_report(b) : BS_STATUS_OK;
}

bs_status bs_bench_close(bs_bench *b, bs_comm *comm, bs_model *model, bs_status status)
{
    bs_stream_destroy(b->stream);
    bs_model_close(model);
    bs_cli_close_device(comm, b->device);
    const bs_status closed = bs_comm_rank(comm) == 0 ? bs_bench_close_report(b) : BS_STATUS_OK;
    return status == BS_STATUS_OK ? bs_comm_agree(comm, closed) : status;
}

/* ---- options ---- */

bs_status bs_bench_refuse_cases(const bs_options *o, int n_operands)
{
    const char *name = bs_options_operand(o, 0);
    if (bs_options_flag(o, "dry-run")) return bs_fail(BS_STATUS_USAGE, "--dry-run: not of bench %s", name);
    if (bs_options_given(o, "case")) return bs_fail(BS_STATUS_USAGE, "--case: not of bench %s", name);
    if (bs_options_n_operands(o) > n_operands)
        return bs_fail(BS_STATUS_USAGE, "bench %s %s: takes no operand", name,
                       bs_options_operand(o, n_operands));
    return BS_STATUS_OK;
}

bs_status bs_bench_parse_counts(const char *option, const char *text, int64_t most, int64_t *out, int *n)
{
    *n = 0;
    for (const char *at = text; at; at = strchr(at, ','), at = at ? at + 1 : NULL) {
        const size_t bytes = strcspn(at, ",");
        const char *end;
        int64_t x;
        if (!bs_options_read_size(at, &end, &x) || end != at + bytes || x < 1 || x > most)
            return bs_fail(BS_STATUS_USAGE, "--%s %s: '%.*s' is not a number from 1 to %lld", option, text,
                           bytes > 40 ? 40 : (int)bytes, at, (long long)most);
        if (*n == BS_BENCH_MAX_ITEMS)
            return bs_fail(BS_STATUS_USAGE, "--%s: more than %d numbers", option, BS_BENCH_MAX_ITEMS);
        out[(*n)++] = x;
    }
    return BS_STATUS_OK;
}

bs_status bs_bench_parse_formats(const bs_options *o, bs_kv_format *out, int *n)
{
    *n = 0;
    char *list = strdup(bs_options_string(o, "kv"));
    bs_status status = list ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "--kv: no memory");
    for (char *item = list, *next; item && status == BS_STATUS_OK; item = next) {
        bs_kv_format format;
        next = strchr(item, ',');
        if (next) *next++ = 0;
        status = bs_cli_parse_format(item, &format);
        if (status == BS_STATUS_OK && *n == BS_BENCH_MAX_ITEMS)
            status = bs_fail(BS_STATUS_USAGE, "--kv: more than %d formats", BS_BENCH_MAX_ITEMS);
        if (status == BS_STATUS_OK) out[(*n)++] = format;
    }
    free(list);
    return status;
}

/* ---- all ranks ---- */

void bs_bench_ground_begin(bs_bench_ground *ground, const bs_cli_ground *engine, const bs_kv_format *kv,
                           int n_formats)
{
    memset(ground, 0, sizeof *ground); /* compared as bytes */
    ground->engine = *engine;
    for (int i = 0; i < n_formats; i++) bs_kv_format_name(&kv[i], ground->kv[i]);
}

bs_status bs_bench_compare_ground(bs_comm *comm, const bs_bench_ground *mine, const char *others)
{
    bs_bench_ground rank0 = *mine;
    BS_TRY(bs_comm_bcast_host(comm, &rank0, sizeof rank0, 0));
    return bs_cli_compare_ground(mine, &rank0, sizeof rank0, others);
}

/* ---- what fits ---- */

typedef struct need {
    uint64_t bytes, left;
    bs_status status; /* of planning it */
} need;

static bool is_worse(const need *a, const need *b)
{
    if (a->status != BS_STATUS_OK || b->status != BS_STATUS_OK) return b->status == BS_STATUS_OK;
    return (double)a->bytes - (double)a->left > (double)b->bytes - (double)b->left;
}

bs_status bs_bench_find_fit(const bs_model *model, bs_device *device, bs_comm *comm, const bs_grid *grid,
                            const bs_engine_config *config, bool *fits, char *why, size_t bytes)
{
    const bool leader = bs_comm_rank(comm) == 0;
    bs_engine_memory memory = {0};
    need mine = {.left = bs_device_memory_left(device)};
    void *all;
    mine.status = bs_engine_plan_memory(model, device, grid, config, &memory);
    mine.bytes = memory.device_bytes;
    if (mine.status != BS_STATUS_OK) snprintf(why, bytes, "%s", bs_error_message());
    bs_error_clear();
    BS_TRY(bs_cli_gather(comm, &mine, sizeof mine, "bench", &all));
    const need *needs = all; /* rank 0: [size] */
    need worst = mine;
    for (int rank = 0; leader && rank < grid->size; rank++)
        if (is_worse(&needs[rank], &worst)) worst = needs[rank];
    free(all);
    BS_TRY(bs_comm_bcast_host(comm, &worst, sizeof worst, 0));
    *fits = worst.status == BS_STATUS_OK && worst.bytes <= worst.left;
    if (*fits || mine.status != BS_STATUS_OK) return BS_STATUS_OK;
    char needed[32], left[32];
    bs_format_bytes(worst.bytes, needed, sizeof needed);
    bs_format_bytes(worst.left, left, sizeof left);
    snprintf(why, bytes, "needs %s of a device, %s are left", needed, left);
    return BS_STATUS_OK;
}

/* ---- parts of a step ---- */

bs_status bs_bench_marks_open(bs_device *device, int n_layers, bs_bench_marks *m)
{
    m->max = 12 * n_layers + 16;
    m->timers = calloc((size_t)m->max, sizeof *m->timers);
    m->phase = calloc((size_t)m->max, sizeof *m->phase);
    if (!m->timers || !m->phase) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d timers", m->max);
    for (int i = 0; i < m->max; i++) BS_TRY(bs_timer_create(device, &m->timers[i]));
    return BS_STATUS_OK;
}

void bs_bench_marks_close(bs_bench_marks *m)
{
    for (int i = 0; m->timers && i < m->max; i++) bs_timer_destroy(m->timers[i]);
    free(m->timers);
    free(m->phase);
}

void bs_bench_marks_begin(bs_bench_marks *m)
{
    m->n = 0;
    m->open = false;
}

void bs_bench_marks_take(void *context, bs_stream *stream, bs_phase phase)
{
    bs_bench_marks *m = context;
    if (m->open && m->status == BS_STATUS_OK) m->status = bs_timer_stop(stream, m->timers[m->n++]);
    m->open = phase != BS_PHASE_IDLE && m->n < m->max;
    if (!m->open || m->status != BS_STATUS_OK) return;
    m->phase[m->n] = phase;
    m->status = bs_timer_start(stream, m->timers[m->n]);
}

bs_status bs_bench_marks_read(bs_bench_marks *m, double phase_ms[BS_BENCH_N_PHASES])
{
    BS_TRY(m->status);
    memset(phase_ms, 0, BS_BENCH_N_PHASES * sizeof *phase_ms);
    for (int i = 0; i < m->n; i++) {
        double ms;
        BS_TRY(bs_timer_ms(m->timers[i], &ms));
        phase_ms[m->phase[i]] += ms;
    }
    return BS_STATUS_OK;
}
