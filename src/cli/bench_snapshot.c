/* bench_snapshot.c: `bitshard bench snapshot DIR`: how fast a cache is written to a directory and comes back, against plain
 * sequential files in it.
 *
 * A sequence of noise is as long as --context asks, and its snapshot is taken from nothing. Compared with: as many bytes, by
 * as many ranks at once, each into a file of its own by writes of 4 MiB and one fsync (what dd does with conv=fsync), and
 * these files read again, once with their pages dropped from the page cache and once with them in it. A write is the time from
 * the first pwrite to the last rank's last fsync; reading back is a column of its own. A restore is everything from the call
 * to the published sequence: manifest, digests, reads, checksums, pages in the device's order.
 *
 * Checked: some of the restored pages, packed, against what they were before. Raw and own runs take turns, medians are shown:
 * disks of virtual machines wander. Such a machine writes several times more slowly where it has not written of late, since
 * its host takes back memory and blocks that are free. So plain files are written before the snapshot and after it; the faster counts.
 */
#include "config.h"

#include "src/base/checked.h"
#include "src/base/crc32c.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/cli/bench_engine.h"
#include "src/cli/table.h"
#include "src/snapshot/inspect.h"
#include "src/snapshot/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROUNDS = 5, PIECE = 4 << 20, N_SAMPLES = 8 };
#define LARGE_BYTES 2e9 /* from here on one round */

typedef struct snapshot_bench {
    bs_bench bench;
    bs_comm *comm;
    bool leader;
    bs_model *model;
    bs_grid grid;
    bs_cache *cache;
    bs_cache_config config;
    bs_snapshots *snapshots;
    bs_snapshots_config snapshots_config;
    char dir[900], raw[960]; /* of the snapshot; this rank's plain file */
    char *piece;             /* [PIECE] */
    int64_t n_tokens;
    bs_kv_format kv[BS_BENCH_MAX_ITEMS];
    int n_formats;
} snapshot_bench;

typedef struct times {
    double raw_write, write, check, total, stall, raw_cold, raw_warm, cold, warm; /* seconds */
} times;

static double gb_s(double bytes, double seconds)
{
    return seconds > 0 ? bytes / seconds * 1e-9 : 0;
}

/* ---- plain files ---- */

static bs_status fail_raw(const snapshot_bench *b, const char *what)
{
    return bs_fail(BS_STATUS_IO, "%s: %s: %s", b->raw, what, strerror(errno));
}

static bs_status copy_share(const snapshot_bench *b, int fd, uint64_t share, bool write_it)
{
    ssize_t done;
    for (uint64_t at = 0; at < share; at += (uint64_t)done) {
        const size_t n = share - at < PIECE ? (size_t)(share - at) : PIECE;
        done = write_it ? write(fd, b->piece, n) : read(fd, b->piece, n);
        if (done == 0) errno = EIO; /* the file is shorter than it was */
        if (done <= 0) return fail_raw(b, write_it ? "write" : "read");
    }
    return write_it && fsync(fd) != 0 ? fail_raw(b, "fsync") : BS_STATUS_OK;
}

/* This rank's share of the bytes. Collective: ranks begin together and the slowest counts, by each rank's clock. */
static bs_status time_raw(snapshot_bench *b, uint64_t bytes, bool write_it, bool cold, double *seconds)
{
    const int fd = write_it ? open(b->raw, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
                            : open(b->raw, O_RDONLY | O_CLOEXEC);
    bs_status status = bs_comm_agree(b->comm, fd < 0 ? fail_raw(b, "open") : BS_STATUS_OK);
    if (fd >= 0 && cold) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (status == BS_STATUS_OK) status = bs_comm_barrier(b->comm);
    const double start = bs_now_s();
    if (status == BS_STATUS_OK)
        status = bs_comm_agree(b->comm, copy_share(b, fd, bytes / (uint64_t)b->grid.size, write_it));
    if (status == BS_STATUS_OK) *seconds = bs_now_s() - start;
    if (fd >= 0 && write_it) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (fd >= 0) close(fd);
    return status;
}

/* ---- pages ---- */

/* Of a page, packed. */
static size_t page_bytes(const bs_kv_page_bytes *page, bool quantized)
{
    return quantized ? page->k + page->k_meta + page->v + page->v_meta : page->f16;
}

/* CRC of some of this rank's pages of the sequence, packed. */
static bs_status sum_samples(snapshot_bench *b, uint32_t *sum)
{
    const bs_kv_shape *shape = &b->config.shape;
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    const int64_t n_pages = bs_ceil_div(b->n_tokens, BS_PAGE_TOKENS);
    bs_buffer *buffer = NULL;
    char *host = malloc(bytes.f16);
    if (!host) return bs_fail(BS_STATUS_NOMEM, "bench snapshot: no memory for a page");
    bs_status status = bs_buffer_alloc(b->bench.device, bytes.f16, "a page", &buffer);
    for (int i = 0; i < N_SAMPLES && status == BS_STATUS_OK; i++) {
        bs_cache_page_ref page;
        const int64_t at = i == 0 ? 0 : n_pages * i / (N_SAMPLES - 1) - 1;
        if (bs_cache_list_pages(b->cache, 0, at, at + 1, &page) == 0) continue;
        char *base = bs_buffer_at(buffer, 0);
        const bool quantized = page.kind == BS_PAGE_QUANT;
        bs_kv_page_ref ref = {.slot = page.slot,
                              .layer = i * (shape->n_layers - 1) / (N_SAMPLES - 1),
                              .kv_head = i % shape->n_kv_heads,
                              .k = base,
                              .v = base + (quantized ? bytes.k + bytes.k_meta : bytes.f16 / 2)};
        if (quantized) {
            ref.k_meta = base + bytes.k;
            ref.v_meta = base + bytes.k + bytes.k_meta + bytes.v;
        }
        const size_t n = page_bytes(&bytes, quantized);
        status = bs_op_pack(b->bench.stream, &(bs_pack_args){bs_cache_pools(b->cache), quantized, 1, &ref});
        if (status == BS_STATUS_OK) status = bs_copy_to_host(b->bench.stream, host, base, n);
        if (status == BS_STATUS_OK) status = bs_stream_sync(b->bench.stream);
        if (status == BS_STATUS_OK) *sum = bs_crc32c(*sum, host, n);
    }
    bs_buffer_free(buffer);
    free(host);
    return status;
}

/* ---- one round ---- */

static bs_status take(snapshot_bench *b, bs_snapshot_dir *dir, bs_snapshot_result *result)
{
    int32_t *ids = b->leader ? calloc((size_t)b->n_tokens, sizeof *ids) : NULL;
    bool ended;
    bs_status status = b->leader && !ids ? bs_fail(BS_STATUS_NOMEM, "bench snapshot: no memory for ids")
                                         : BS_STATUS_OK;
    BS_TRY(bs_comm_agree(b->comm, status));
    BS_TRY(bs_stream_sync(b->bench.stream));
    BS_TRY(bs_comm_barrier(b->comm));
    status = bs_snapshot_capture(dir, b->bench.stream, 0);
    const bs_snapshot_state state = {.n_prompt = b->n_tokens, .output_bytes = -1};
    if (status == BS_STATUS_OK && b->leader) status = bs_snapshot_commit(dir, ids, b->n_tokens, &state);
    if (status == BS_STATUS_OK) status = bs_snapshots_wait(b->snapshots, &ended, result);
    free(ids);
    if (status == BS_STATUS_OK && result->status != BS_STATUS_OK)
        status = bs_fail(result->status, "bench snapshot: %s", b->leader ? result->line : "it failed");
    return bs_comm_agree(b->comm, status);
}

static bs_status restore(snapshot_bench *b, uint32_t expected, bool cold, double *seconds)
{
    bs_snapshot_dir *dir;
    int64_t first_pos;
    uint32_t sum = 0;
    const bs_snapshot_restore_args args = {.seq = 0, .n_reserved = b->n_tokens, .exact = true};
    if (cold) BS_TRY(bs_comm_agree(b->comm, bs_snapshot_drop_cache(b->dir)));
    BS_TRY(bs_comm_barrier(b->comm));
    const double start = bs_now_s();
    BS_TRY(bs_snapshot_dir_open(b->snapshots, b->dir, 0, &dir));
    bs_status status = bs_snapshot_restore(dir, b->bench.stream, &args, &first_pos);
    *seconds = bs_now_s() - start;
    bs_snapshot_dir_close(dir);
    BS_TRY(status);
    status = sum_samples(b, &sum);
    if (status == BS_STATUS_OK && sum != expected)
        status = bs_fail(BS_STATUS_MISMATCH, "bench snapshot: restored pages are not what was written");
    bs_cache_seq_free(b->cache, 0);
    return bs_comm_agree(b->comm, status);
}

/* Of all ranks, about, before any was written. */
static uint64_t expected_bytes(const snapshot_bench *b)
{
    const bs_kv_shape *shape = &b->config.shape;
    const bs_kv_page_bytes page = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    const uint64_t n = (uint64_t)bs_ceil_div(b->n_tokens, BS_PAGE_TOKENS) * (uint64_t)shape->n_layers *
                       (uint64_t)(shape->n_kv_heads * b->grid.heads);
    return n * page_bytes(&page, shape->format.k_bits != 16);
}

static bs_status run_round(snapshot_bench *b, times *t, uint64_t *bytes)
{
    bs_snapshot_dir *dir;
    bs_snapshot_result result;
    uint32_t sum = 0;
    const bs_cache_noise noise = {.seed = 1,
                                  .first_kv_head = b->grid.head_shard * b->config.shape.n_kv_heads};
    bs_status status = bs_cache_seq_start(b->cache, 0, 0, b->n_tokens);
    if (status == BS_STATUS_OK) status = bs_cache_seq_fill(b->cache, b->bench.stream, 0, b->n_tokens, &noise);
    if (status == BS_STATUS_OK) status = sum_samples(b, &sum);
    BS_TRY(bs_comm_agree(b->comm, status));
    BS_TRY(bs_snapshot_dir_open(b->snapshots, b->dir, BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    const uint64_t about = *bytes > 0 ? *bytes : expected_bytes(b);
    double before = 0;
    status = time_raw(b, about, true, false, &before);
    unlink(b->raw);
    if (status == BS_STATUS_OK) status = take(b, dir, &result);
    bs_snapshot_dir_close(dir);
    bs_cache_seq_free(b->cache, 0);
    if (status == BS_STATUS_OK) {
        t->write = result.write_s;
        t->check = result.check_s;
        t->total = result.total_s;
        t->stall = result.stall_s;
        *bytes = result.bytes;
        status = restore(b, sum, true, &t->cold);
    }
    if (status == BS_STATUS_OK) status = restore(b, sum, false, &t->warm);
    const bs_status removed = b->leader ? bs_snapshot_remove(b->dir, bs_comm_job(b->comm)) : BS_STATUS_OK;
    BS_TRY(bs_comm_agree(b->comm, status != BS_STATUS_OK ? status : removed));
    status = time_raw(b, *bytes, true, false, &t->raw_write);
    before *= (double)*bytes / (double)about;
    if (status == BS_STATUS_OK && before < t->raw_write) t->raw_write = before;
    if (status == BS_STATUS_OK) status = time_raw(b, *bytes, false, true, &t->raw_cold);
    if (status == BS_STATUS_OK) status = time_raw(b, *bytes, false, false, &t->raw_warm);
    unlink(b->raw);
    return status;
}

/* ---- a row ---- */

static double median_of(const times *rounds, int n, size_t offset)
{
    double values[MAX_ROUNDS];
    for (int i = 0; i < n; i++) values[i] = *(const double *)((const char *)&rounds[i] + offset);
    return bs_bench_summarize(values, n, 1).median;
}

static bs_status report(snapshot_bench *b, const char *kv, const times *rounds, int n, uint64_t bytes)
{
#define MEDIAN(field) median_of(rounds, n, offsetof(times, field))
    const double size = (double)bytes;
    const double raw_write = gb_s(size, MEDIAN(raw_write)), write = gb_s(size, MEDIAN(write));
    const double raw_cold = gb_s(size, MEDIAN(raw_cold)), cold = gb_s(size, MEDIAN(cold));
    const double raw_warm = gb_s(size, MEDIAN(raw_warm)), warm = gb_s(size, MEDIAN(warm));
    const double check = b->snapshots_config.verify == BS_SNAPSHOT_VERIFY_NONE ? 0
                                                                               : gb_s(size, MEDIAN(check));
    char name[32];
    bs_format_bytes(bytes, name, sizeof name);
    BS_TRY(bs_cli_print_table(
        b->bench.table,
        "%-31s %9" PRId64 " %11s %8.2f %8.2f %5.0f%% %8.2f %8.3f %8.2f %8.2f %5.0f%% %8.2f %8.2f %5.0f%%\n",
        kv, b->n_tokens, name, raw_write, write, 100 * write / raw_write, check, 1e3 * MEDIAN(stall),
        raw_cold, cold, 100 * cold / raw_cold, raw_warm, warm, 100 * warm / raw_warm));
    json_t *row = json_pack(
        "{s:s,s:i,s:i,s:I,s:I,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "kv", kv, "heads",
        b->grid.heads, "seq", b->grid.seq, "context", (json_int_t)b->n_tokens, "bytes", (json_int_t)bytes,
        "rounds", n, "raw_write_gb_s", raw_write, "write_gb_s", write, "write_percent",
        100 * write / raw_write, "check_gb_s", check, "stall_ms", 1e3 * MEDIAN(stall), "total_s",
        MEDIAN(total), "raw_cold_gb_s", raw_cold, "cold_gb_s", cold, "cold_percent", 100 * cold / raw_cold,
        "raw_warm_gb_s", raw_warm, "warm_gb_s", warm, "warm_percent", 100 * warm / raw_warm);
#undef MEDIAN
    if (!row) return bs_fail(BS_STATUS_NOMEM, "JSON: no memory");
    bs_status status = bs_bench_add_row(&b->bench, row);
    json_decref(row);
    return status;
}

static bs_status begin_table(snapshot_bench *b)
{
    BS_TRY(bs_cli_print_table(b->bench.table,
                              "%s; grid %dx%d; GB/s; of: the share of plain files' in the same run\n",
                              bs_device_get_info(b->bench.device)->name, b->grid.heads, b->grid.seq));
    return bs_cli_print_table(b->bench.table, "%-31s %9s %11s %8s %8s %6s %8s %8s %8s %8s %6s %8s %8s %6s\n",
                              "kv", "context", "bytes", "plain", "write", "of", "check", "stall ms", "cold",
                              "restore", "of", "warm", "restore", "of");
}

static bs_status open_row(snapshot_bench *b, const bs_kv_format *format)
{
    const bs_model_desc *desc = bs_model_get_desc(b->model);
    b->config = (bs_cache_config){.shape = {.n_layers = desc->n_layers,
                                            .n_kv_heads = desc->n_kv_heads / b->grid.heads,
                                            .head_dim = desc->head_dim,
                                            .format = *format},
                                  .seq = b->grid.seq,
                                  .seq_shard = b->grid.seq_shard,
                                  .stripe_pages = (int)bs_options_int(b->bench.options, "stripe-pages"),
                                  .chunk_tokens = 2048,
                                  .max_seqs = 1,
                                  .max_prefill_seqs = 1,
                                  .max_step_tokens = 2048,
                                  .max_context = b->n_tokens,
                                  .total_tokens = b->n_tokens};
    return bs_cache_open(b->bench.device, b->bench.stream, &b->config, &b->cache);
}

static bs_status run_row(snapshot_bench *b, const bs_kv_format *format)
{
    char kv[BS_KV_FORMAT_NAME];
    times rounds[MAX_ROUNDS];
    uint64_t bytes = 0;
    int n = 0, wanted = 3;
    bs_status status = bs_comm_agree(b->comm, open_row(b, format));
    if (status == BS_STATUS_OK) {
        b->snapshots_config.cache = b->cache;
        b->snapshots_config.cache_config = b->config;
        bs_kv_format_name(format, kv);
        status = bs_snapshots_open(&b->snapshots_config, NULL, NULL, &b->snapshots);
    }
    while (status == BS_STATUS_OK && n < wanted) {
        status = run_round(b, &rounds[n++], &bytes);
        if ((double)bytes > LARGE_BYTES) wanted = 1;
    }
    if (status == BS_STATUS_OK)
        status = bs_comm_agree(b->comm, b->leader ? report(b, kv, rounds, n, bytes) : BS_STATUS_OK);
    bs_snapshots_close(b->snapshots);
    b->snapshots = NULL;
    bs_cache_close(b->cache);
    b->cache = NULL;
    return status;
}

/* ---- the run ---- */

static bs_status read_options(snapshot_bench *b)
{
    const bs_options *o = b->bench.options;
    BS_TRY(bs_bench_refuse_cases(o, 2));
    if (bs_options_n_operands(o) != 2) return bs_fail(BS_STATUS_USAGE, "bench snapshot: takes a directory");
    if (strlen(bs_options_operand(o, 1)) > 800)
        return bs_fail(BS_STATUS_USAGE, "bench snapshot: the directory's name is too long");
    b->n_tokens = bs_options_given(o, "context") ? bs_options_int(o, "context")
                  : b->bench.gpu                 ? 131072
                                                 : 8192;
    BS_TRY(bs_bench_parse_formats(o, b->kv, &b->n_formats));
    return bs_snapshot_verify_parse(bs_options_string(o, "snapshot-verify"), &b->snapshots_config.verify);
}

static bs_status open_local(snapshot_bench *b)
{
    BS_TRY(bs_bench_open_device(&b->bench, b->comm));
    BS_TRY(read_options(b));
    b->piece = malloc(PIECE);
    if (!b->piece) return bs_fail(BS_STATUS_NOMEM, "bench snapshot: no memory for %d bytes", PIECE);
    uint64_t random = 1;
    for (size_t i = 0; i < PIECE / sizeof random; i++) {
        const uint64_t word = bs_bench_random(&random);
        memcpy(b->piece + i * sizeof word, &word, sizeof word);
    }
    return bs_bench_open_model(&b->bench, b->comm, "random:llama-3.1-8b", &b->model, &b->grid);
}

static bs_status compare_ground(snapshot_bench *b)
{
    const bs_options *o = b->bench.options;
    const bs_engine_config config = {.stripe_pages = (int)bs_options_int(o, "stripe-pages")};
    const bs_cli_ground engine = bs_cli_ground_of(o, b->model, &b->grid, &config);
    bs_bench_ground mine;
    bs_bench_ground_begin(&mine, &engine, b->kv, b->n_formats);
    mine.contexts[0] = b->n_tokens;
    mine.own[0] = b->snapshots_config.verify;
    return bs_bench_compare_ground(b->comm, &mine, "--kv, --context or --snapshot-verify");
}

/* The same names on all ranks: rank 0's process number. */
static bs_status name_files(snapshot_bench *b)
{
    const char *parent = bs_options_operand(b->bench.options, 1);
    int64_t id = getpid();
    BS_TRY(bs_comm_bcast_host(b->comm, &id, sizeof id, 0));
    snprintf(b->dir, sizeof b->dir, "%s/bitshard-bench-%" PRId64, parent, id);
    snprintf(b->raw, sizeof b->raw, "%s/bitshard-bench-%" PRId64 "-raw-%d", parent, id, b->grid.rank);
    b->snapshots_config.device = b->bench.device;
    b->snapshots_config.comm = b->comm;
    b->snapshots_config.model = b->model;
    b->snapshots_config.quiet = true;
    return bs_comm_set_grid(b->comm, &b->grid);
}

static bs_status run_rows(snapshot_bench *b)
{
    BS_TRY(bs_comm_agree(b->comm, open_local(b)));
    BS_TRY(bs_comm_agree(b->comm, compare_ground(b)));
    BS_TRY(bs_comm_agree(b->comm, name_files(b)));
    BS_TRY(bs_comm_agree(b->comm, b->leader ? begin_table(b) : BS_STATUS_OK));
    for (int i = 0; i < b->n_formats; i++) BS_TRY(run_row(b, &b->kv[i]));
    return BS_STATUS_OK;
}

bs_status bs_bench_snapshot(const bs_options *options, bs_comm *comm)
{
    snapshot_bench b = {.bench = {.options = options}, .comm = comm, .leader = bs_comm_rank(comm) == 0};
    const bs_status status = run_rows(&b);
    free(b.piece);
    return bs_bench_close(&b.bench, comm, b.model, status);
}
