/* bench_read.c: the streaming read: a case of its own, and the ceiling of all others.
 *
 * Checked by the exclusive or of all words, which the host knows of its periodic data without reading them
 * again. */
#include "config.h"

#include "src/cli/bench.h"

#include <stdlib.h>

enum { PERIOD = 1000004 }; /* words; not a power of two, so that sums do not vanish; a multiple of 16 bytes */
static const int64_t ceiling_gpu = (int64_t)4 << 30, ceiling_cpu = (int64_t)256 << 20;

typedef struct reading {
    bs_bench *bench;
    bs_buffer *data, *sink;
    size_t bytes; /* of a call */
    int n_calls;
    uint32_t *first; /* [PERIOD + 1] first[n]: exclusive or of the first n words of the period */
} reading;

static bs_status queue_read(void *context, int i)
{
    reading *r = context;
    return bs_op_stream_read(r->bench->stream, bs_buffer_at(r->data, (size_t)i * r->bytes), r->bytes,
                             bs_buffer_at(r->sink, 0));
}

static bs_status fill(reading *r)
{
    const size_t total = bs_buffer_bytes(r->data);
    size_t done = PERIOD * sizeof(uint32_t) < total ? PERIOD * sizeof(uint32_t) : total;
    uint32_t *words = malloc(PERIOD * sizeof *words);
    if (!words) return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d words", PERIOD);
    uint64_t seed = 8;
    for (int i = 0; i < PERIOD; i++) {
        words[i] = (uint32_t)bs_bench_random(&seed);
        r->first[i + 1] = r->first[i] ^ words[i];
    }
    char *data = bs_buffer_at(r->data, 0);
    bs_status status = bs_copy_to_device(r->bench->stream, data, words, done);
    while (status == BS_STATUS_OK && done < total) {
        size_t n = done < total - done ? done : total - done; /* whole periods, but for the last */
        status = bs_copy_on_device(r->bench->stream, data + done, data, n);
        done += n;
    }
    if (status == BS_STATUS_OK) status = bs_stream_sync(r->bench->stream);
    free(words);
    return status;
}

/* Exclusive or of the first n words of the data. */
static uint32_t sum_of(const reading *r, size_t n)
{
    return (n / PERIOD % 2 ? r->first[PERIOD] : 0) ^ r->first[n % PERIOD];
}

static bs_status check(reading *r, int call)
{
    const size_t at = (size_t)call * r->bytes / 4;
    uint32_t seen, expected = sum_of(r, at) ^ sum_of(r, at + r->bytes / 4);
    BS_TRY(bs_fill_zero(r->bench->stream, bs_buffer_at(r->sink, 0), sizeof seen));
    BS_TRY(queue_read(r, call));
    BS_TRY(bs_copy_to_host(r->bench->stream, &seen, bs_buffer_at(r->sink, 0), sizeof seen));
    BS_TRY(bs_stream_sync(r->bench->stream));
    if (seen == expected) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_MISMATCH, "read: the words of call %d come to %08x, not %08x", call, seen,
                   expected);
}

static bs_status measure(bs_bench *bench, int64_t bytes, bs_bench_times *us)
{
    const double rotate = bench->gpu ? BS_BENCH_ROTATE_GPU : BS_BENCH_ROTATE_CPU;
    reading r = {.bench = bench, .bytes = (size_t)bytes, .n_calls = 1 + (int)(rotate / (double)bytes)};
    bs_status status;
    if (!(r.first = calloc(PERIOD + 1, sizeof *r.first)))
        return bs_fail(BS_STATUS_NOMEM, "bench: no memory for %d words", PERIOD);
    BS_TRY_GOTO(bs_buffer_alloc(bench->device, (size_t)r.n_calls * r.bytes, "data to read", &r.data),
                err_free);
    BS_TRY_GOTO(bs_buffer_alloc(bench->device, sizeof *r.first, "sum", &r.sink), err_free);
    BS_TRY_GOTO(fill(&r), err_free);
    for (int call = 0; call < r.n_calls; call++) BS_TRY_GOTO(check(&r, call), err_free);
    status = bs_bench_time(bench, queue_read, &r, r.n_calls, us, NULL);
err_free:
    bs_buffer_free(r.data);
    bs_buffer_free(r.sink);
    free(r.first);
    return status;
}

bs_status bs_bench_read_ceiling(bs_bench *bench)
{
    bs_bench_times us;
    const int64_t bytes = bench->gpu ? ceiling_gpu : ceiling_cpu;
    BS_TRY(measure(bench, bytes, &us));
    bench->read_gb_s = (double)bytes / us.median * 1e-3;
    return BS_STATUS_OK;
}

bs_status bs_bench_read(bs_bench *bench, const bs_bench_case *item, int number)
{
    bs_bench_row row = {.item = item, .number = number, .mode = "plain"};
    BS_TRY(measure(bench, item->context, &row.us));
    row.bytes = (double)item->context;
    return bs_bench_report(bench, &row);
}
