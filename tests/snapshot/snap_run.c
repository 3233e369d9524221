/* snap_run.c: snapshots of a cache of noise, without an engine: written by some grid of ranks, restored and compared on
 * another. the programs beside it run it under mpirun.
 *
 *   snap_run [gpu] write   GRID KV STRIPE DIR N1[,N2…]  a snapshot each at N1, N2 … tokens, of one sequence
 *   snap_run [gpu] restore GRID KV STRIPE N DIR…        each DIR holds N tokens: every page equals the noise's
 *   snap_run [gpu] prefix  GRID KV STRIPE N COMMON DIR  of N tokens the pages that COMMON common ones leave
 *
 * Noise is the same for a seed on every grid (bs_cache_seq_fill), so what a page must hold is known without another file.
 * The model is random:tiny-d128 (4 layers, 8 KV heads of 128), or what SNAP_MODEL names. */
#include "comm/comm.h"
#include "src/base/log.h"
#include "src/cache/format.h"
#include "src/snapshot/snapshot.h"
#include "tests/comm/check.h"

#include <string.h>

#define OK(call)                                                                                             \
    do {                                                                                                     \
        if ((call) != BS_STATUS_OK) {                                                                        \
            bs_error_flush();                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #call);                                       \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

enum { SEED = 7, EXPECTED_SEQ = 1 };

typedef struct rig {
    bs_comm *comm;
    bs_grid grid;
    bs_device *device;
    bs_stream *stream;
    bs_model *model;
    bs_cache *cache;
    bs_cache_config config;
    bs_snapshots *snapshots;
} rig;

static void open_rig(rig *r, bool gpu, const char *grid, const char *kv, int stripe_pages,
                     int64_t max_context)
{
    const char *name = getenv("SNAP_MODEL"), *verify = getenv("SNAP_VERIFY"),
               *segment = getenv("SNAP_SEGMENT");
    const char *chunk = getenv("SNAP_CHUNK");
    OK(bs_model_open(name ? name : "random:tiny-d128", &r->model));
    const bs_model_desc *desc = bs_model_get_desc(r->model);
    OK(bs_grid_choose(bs_comm_rank(r->comm), bs_comm_size(r->comm), desc->n_kv_heads, grid, &r->grid));
    OK(bs_comm_set_grid(r->comm, &r->grid));
    OK(bs_device_open(&(bs_device_config){.kind = gpu ? BS_DEVICE_CUDA : BS_DEVICE_CPU, .n_threads = 1},
                      &r->device));
    OK(bs_stream_create(r->device, &r->stream));
    r->config = (bs_cache_config){.shape = {.n_layers = desc->n_layers,
                                            .n_kv_heads = desc->n_kv_heads / r->grid.heads,
                                            .head_dim = desc->head_dim},
                                  .seq = r->grid.seq,
                                  .seq_shard = r->grid.seq_shard,
                                  .stripe_pages = stripe_pages,
                                  .chunk_tokens = chunk ? atoi(chunk) : 2048,
                                  .max_seqs = 2,
                                  .max_prefill_seqs = 2,
                                  .max_step_tokens = 2048,
                                  .max_context = max_context,
                                  .total_tokens = 2 * max_context};
    OK(bs_kv_format_parse(kv, &r->config.shape.format));
    OK(bs_cache_open(r->device, r->stream, &r->config, &r->cache));
    const bs_snapshots_config config = {.device = r->device,
                                        .comm = r->comm,
                                        .cache = r->cache,
                                        .cache_config = r->config,
                                        .model = r->model,
                                        .segment_tokens = segment ? atoi(segment) : 0,
                                        .cache_dir = getenv("SNAP_CACHE")};
    bs_snapshots_config with = config;
    if (verify) OK(bs_snapshot_verify_parse(verify, &with.verify));
    OK(bs_snapshots_open(&with, NULL, NULL, &r->snapshots));
}

static void close_rig(rig *r)
{
    bs_snapshots_close(r->snapshots);
    bs_cache_close(r->cache);
    bs_stream_destroy(r->stream);
    bs_device_close(r->device);
    bs_model_close(r->model);
}

static void fill(rig *r, int seq, int64_t n)
{
    OK(bs_cache_seq_fill(
        r->cache, r->stream, seq, n,
        &(bs_cache_noise){.seed = SEED, .first_kv_head = r->grid.head_shard * r->config.shape.n_kv_heads}));
}

static int32_t *make_ids(int64_t n)
{
    int32_t *ids = malloc((size_t)(n + 1) * sizeof *ids);
    CHECK(ids);
    for (int64_t i = 0; i <= n; i++) ids[i] = (int32_t)((i * 2654435761u) >> 8 & 0x1ff);
    return ids;
}

/* ---- comparing --------------------------------------------------------------------------------------------- */

/* Canonical bytes of one page, all layers and heads of this rank. */
static size_t pack_page(rig *r, const bs_cache_page_ref *page, char *out)
{
    const bs_kv_shape *shape = &r->config.shape;
    const bs_kv_page_bytes b = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    const bool quantized = page->kind == BS_PAGE_QUANT;
    const size_t bytes = quantized ? b.k + b.k_meta + b.v + b.v_meta : b.f16;
    const size_t all = bytes * (size_t)(shape->n_layers * shape->n_kv_heads);
    bs_buffer *buffer;
    OK(bs_buffer_alloc(r->device, all, "test", &buffer));
    size_t at = 0;
    for (int h = 0; h < shape->n_kv_heads; h++)
        for (int l = 0; l < shape->n_layers; l++, at += bytes) {
            char *base = bs_buffer_at(buffer, at);
            bs_kv_page_ref ref = {.slot = page->slot, .layer = l, .kv_head = h, .k = base};
            ref.v = quantized ? base + b.k + b.k_meta : base + b.f16 / 2;
            if (quantized) {
                ref.k_meta = base + b.k;
                ref.v_meta = base + b.k + b.k_meta + b.v;
            }
            OK(bs_op_pack(r->stream, &(bs_pack_args){bs_cache_pools(r->cache), quantized, 1, &ref}));
        }
    OK(bs_copy_to_host(r->stream, out, bs_buffer_at(buffer, 0), all));
    OK(bs_stream_sync(r->stream));
    bs_buffer_free(buffer);
    return all;
}

/* All of this rank's pages of seq 0 against those of EXPECTED_SEQ. */
static void compare(rig *r, int64_t n_pages, const char *dir)
{
    bs_cache_page_ref *mine = malloc((size_t)(n_pages + 1) * sizeof *mine),
                      *theirs = malloc((size_t)(n_pages + 1) * sizeof *theirs);
    const size_t most = bs_kv_canonical_bytes(&r->config.shape.format, r->config.shape.head_dim).f16 * 4 *
                        (size_t)(r->config.shape.n_layers * r->config.shape.n_kv_heads);
    char *a = malloc(most), *b = malloc(most);
    CHECK(mine && theirs && a && b);
    const int64_t n = bs_cache_list_pages(r->cache, 0, 0, n_pages, mine);
    CHECK(bs_cache_list_pages(r->cache, EXPECTED_SEQ, 0, n_pages, theirs) == n);
    for (int64_t i = 0; i < n; i++) {
        CHECK(mine[i].page == theirs[i].page);
        if (mine[i].kind != theirs[i].kind) {
            fprintf(stderr, "%s: page %lld: kind %d, expected %d\n", dir, (long long)mine[i].page,
                    mine[i].kind, theirs[i].kind);
            exit(1);
        }
        const size_t bytes = pack_page(r, &mine[i], a);
        CHECK(pack_page(r, &theirs[i], b) == bytes);
        if (memcmp(a, b, bytes) != 0) {
            fprintf(stderr, "%s: rank %d: page %lld differs\n", dir, r->grid.rank, (long long)mine[i].page);
            exit(1);
        }
    }
    free(a);
    free(b);
    free(mine);
    free(theirs);
}

/* ---- commands ---------------------------------------------------------------------------------------------- */

static void take_snapshot(rig *r, bs_snapshot_dir *dir, int64_t n, const int32_t *ids)
{
    const bs_snapshot_state state = {.id = "request \"7\"",
                                     .n_prompt = n / 2,
                                     .max_tokens = n,
                                     .output_bytes = 12345678901,
                                     .sampling = {.temperature = 0.7f,
                                                  .top_k = 40,
                                                  .top_p = 0.95f,
                                                  .min_p = 0.05f,
                                                  .repeat_penalty = 1.1f,
                                                  .seed = UINT64_C(0xfedcba9876543210)}};
    bool ended = false;
    bs_snapshot_result result;
    OK(bs_snapshot_capture(dir, r->stream, 0));
    CHECK(bs_snapshots_busy(r->snapshots) && bs_snapshots_holds(r->snapshots, 0));
    if (r->grid.rank == 0) OK(bs_snapshot_commit(dir, ids, n + 1, &state));
    OK(bs_snapshots_wait(r->snapshots, &ended, &result));
    CHECK(ended && !bs_snapshots_busy(r->snapshots) && !bs_snapshots_holds(r->snapshots, 0));
    if (result.status != BS_STATUS_OK) exit(3); /* rank 0 has said why */
    CHECK(result.n_cached == n);
}

static void write_all(rig *r, bool gpu, char **argv)
{
    int64_t last = 0;
    bs_snapshot_dir *dir;
    for (const char *at = argv[4]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) last = atoll(at);
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), last);
    int32_t *ids = make_ids(last + 1);
    OK(bs_snapshot_dir_open(r->snapshots, argv[3], BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    OK(bs_cache_seq_start(r->cache, 0, r->grid.seq > 1, last)); /* not at shard 0 */
    for (const char *at = argv[4]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        fill(r, 0, atoll(at));
        take_snapshot(r, dir, atoll(at), ids);
    }
    free(ids);
    bs_snapshot_dir_close(dir);
    close_rig(r);
}

static void check_info(const rig *r, const bs_snapshot_info *info, int64_t n)
{
    CHECK(info && info->n_cached == n && info->n_tokens == n + 1 && info->state.n_prompt == n / 2);
    CHECK(info->state.sampling.seed == UINT64_C(0xfedcba9876543210) && info->state.sampling.min_p == 0.05f);
    CHECK(info->state.output_bytes == 12345678901 && strcmp(info->state.id, "request \"7\"") == 0);
    CHECK((info->tokens != NULL) == (r->grid.rank == 0));
    int32_t *ids = make_ids(n + 1);
    CHECK(!info->tokens || memcmp(info->tokens, ids, (size_t)(n + 1) * sizeof *ids) == 0);
    free(ids);
}

static void restore_all(rig *r, bool gpu, int argc, char **argv)
{
    const int64_t n = atoll(argv[3]);
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), n + 1024);
    for (int i = 4; i < argc; i++) {
        bs_snapshot_dir *dir;
        int64_t first_pos;
        OK(bs_snapshot_dir_open(r->snapshots, argv[i], 0, &dir));
        const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
        check_info(r, info, n);
        const bs_snapshot_restore_args args = {
            .seq = 0, .n_reserved = n + 100, .exact = true, .start_s = (i + 1) % r->grid.seq};
        OK(bs_snapshot_restore(dir, r->stream, &args, &first_pos));
        CHECK(first_pos == n && bs_cache_seq_length(r->cache, 0) == n);
        const int start = bs_cache_seq_start_shard(r->cache, 0);
        CHECK(start == (info->same_grid ? info->cache.start_s : args.start_s));
        OK(bs_cache_seq_start(r->cache, EXPECTED_SEQ, start, n + 100));
        fill(r, EXPECTED_SEQ, n);
        compare(r, (n + 127) / 128, argv[i]);
        bs_cache_seq_free(r->cache, EXPECTED_SEQ);
        bs_cache_seq_free(r->cache, 0);
        if (getenv("SNAP_SHOW") && r->grid.rank == 0) {
            const bs_snapshot_restore_stats st = bs_snapshot_last_restore(dir);
            printf("restored %.3f GB in %.3f s, %.3f s of it reading\n", (double)st.bytes * 1e-9, st.total_s,
                   st.read_s);
        }
        bs_snapshot_dir_close(dir);
    }
    close_rig(r);
}

/* Against what bs_cache_seq_reuse makes of the same tokens in a live sequence. */
static void restore_prefix(rig *r, bool gpu, char **argv)
{
    const int64_t n = atoll(argv[3]), common = atoll(argv[4]);
    int64_t first_pos, expected_pos;
    bs_snapshot_dir *dir;
    bs_cache_seq_state a, b;
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), n + 1024);
    OK(bs_snapshot_dir_open(r->snapshots, argv[5], 0, &dir));
    OK(bs_snapshot_restore(dir, r->stream,
                           &(bs_snapshot_restore_args){.seq = 0, .n_reserved = n + 100, .n_common = common},
                           &first_pos));
    const int start = bs_cache_seq_start_shard(r->cache, 0);
    OK(bs_cache_seq_get_state(r->cache, 0, &a));
    OK(bs_cache_seq_start(r->cache, EXPECTED_SEQ, start, n));
    fill(r, EXPECTED_SEQ, n);
    compare(r, first_pos / 128, argv[5]);
    CHECK(bs_cache_reusable(r->cache, EXPECTED_SEQ, common) == first_pos);
    bs_cache_seq_free(r->cache, 0);
    OK(bs_cache_seq_reuse(r->cache, EXPECTED_SEQ, 0, common < n ? common : n, n + 100, &expected_pos));
    OK(bs_cache_seq_get_state(r->cache, 0, &b));
    CHECK(expected_pos == first_pos && a.length == b.length && a.quant_end == b.quant_end &&
          a.in_prompt == b.in_prompt);
    CHECK(!a.in_prompt || a.prompt_base == b.prompt_base);
    bs_cache_seq_free(r->cache, 0);
    bs_cache_seq_free(r->cache, EXPECTED_SEQ);
    bs_snapshot_dir_close(dir);
    close_rig(r);
}

int main(int argc, char **argv)
{
    rig r = {0};
    OK(bs_comm_init(&argc, &argv, &r.comm));
    const bool gpu = argc > 1 && strcmp(argv[1], "gpu") == 0;
    argc -= 1 + gpu;
    argv += 1 + gpu;
    CHECK(argc >= 6);
    if (strcmp(argv[0], "write") == 0) write_all(&r, gpu, argv + 1);
    else if (strcmp(argv[0], "restore") == 0) restore_all(&r, gpu, argc - 1, argv + 1);
    else if (strcmp(argv[0], "prefix") == 0) restore_prefix(&r, gpu, argv + 1);
    else CHECK(!"a command");
    bs_comm_finalize(r.comm);
    return 0;
}
