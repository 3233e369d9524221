/* cmd_bench.c: `bitshard bench kernel`: the device's read bandwidth first, then the cases one after the
 * other. A case that fails, or that this device has no kernel for, does not end the run, but the run fails.
 */
#include "config.h"

#include "src/cli/bench.h"
#include "src/cli/table.h"
#include "src/base/log.h"
#include "src/base/progress.h"

#include <string.h>

static bs_status list_cases(const bs_bench_list *list)
{
    for (int i = 0; i < list->n; i++) {
        const bs_bench_case *c = &list->cases[i];
        char shape[BS_BENCH_SHAPE_NAME], name[BS_KV_FORMAT_NAME] = "", bytes[32];
        bs_kv_format format = {0};
        if (c->kv) {
            BS_TRY(bs_kv_format_parse(c->kv, &format));
            bs_kv_format_name(&format, name);
        }
        bs_bench_shape_name(c, shape);
        bs_format_bytes((uint64_t)bs_bench_bytes(c, &format), bytes, sizeof bytes);
        BS_TRY(bs_cli_print("%3d %-8s %-20s %-31s %10s a call\n", list->number[i], bs_bench_op_name(c->op),
                            shape, name, bytes));
    }
    return BS_STATUS_OK;
}

static bs_status run_cases(bs_bench *b, const bs_bench_list *list)
{
    static bs_status (*const run[BS_BENCH_N_OPS])(bs_bench *, const bs_bench_case *,
                                                  int) = {[BS_BENCH_ATTEND] = bs_bench_attend,
                                                          [BS_BENCH_QUANTIZE] = bs_bench_quantize,
                                                          [BS_BENCH_GEMV] = bs_bench_gemv,
                                                          [BS_BENCH_READ] = bs_bench_read};
    const double start = bs_now_s();
    BS_TRY(bs_bench_open_report(b));
    BS_TRY(bs_bench_read_ceiling(b));
    BS_TRY(bs_bench_begin_table(b));
    for (b->n_cases = 0; b->n_cases < list->n; b->n_cases++) {
        const bs_bench_case *c = &list->cases[b->n_cases];
        bs_status status = run[c->op](b, c, list->number[b->n_cases]);
        if (status == BS_STATUS_OK) continue;
        if (status == BS_STATUS_IO) return status;
        b->n_failed++;
        BS_TRY(bs_bench_report_failure(b, c, list->number[b->n_cases]));
    }
    const double first = b->read_gb_s;
    BS_TRY(bs_bench_read_ceiling(b));
    bs_log_info("bench: %d cases in %.1f s; streaming read %.1f GB/s before, %.1f GB/s after them",
                b->n_cases, bs_now_s() - start, first, b->read_gb_s);
    if (b->n_failed == 0) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "bench: %d of %d cases failed", b->n_failed, b->n_cases);
}

bs_status bs_cli_bench(const bs_options *options, bs_comm *comm)
{
    if (strcmp(bs_options_operand(options, 0), "decode") == 0) return bs_bench_decode(options, comm);
    if (strcmp(bs_options_operand(options, 0), "prefill") == 0) return bs_bench_prefill(options, comm);
    if (strcmp(bs_options_operand(options, 0), "snapshot") == 0) return bs_bench_snapshot(options, comm);
    if (strcmp(bs_options_operand(options, 0), "comm") == 0) {
        if (bs_options_n_operands(options) == 1) return bs_bench_comm(options, comm);
        return bs_comm_agree(comm, bs_fail(BS_STATUS_USAGE, "bench comm %s: takes no operand",
                                           bs_options_operand(options, 1)));
    }
    if (bs_comm_size(comm) > 1)
        return bs_comm_agree(comm, bs_fail(BS_STATUS_USAGE, "bench %s: is for one rank, not %d",
                                           bs_options_operand(options, 0), bs_comm_size(comm)));
    bs_bench b = {.options = options};
    bs_bench_list list = {0};
    BS_TRY(bs_cli_open_device(options, comm, &b.device));
    const bs_device_kind kind = bs_device_get_info(b.device)->kind;
    b.gpu = kind == BS_DEVICE_CUDA;
    bs_status status = bs_bench_select(options, kind, &list);
    if (status != BS_STATUS_OK) goto err_close;
    if (bs_options_flag(options, "dry-run")) {
        status = list_cases(&list);
        goto err_close;
    }
    BS_TRY_GOTO(bs_stream_create(b.device, &b.stream), err_close);
    status = run_cases(&b, &list);
    bs_status closed = bs_bench_close_report(&b);
    if (status == BS_STATUS_OK) status = closed;
err_close:
    bs_bench_list_free(&list);
    bs_stream_destroy(b.stream);
    bs_device_close(b.device);
    return status;
}
