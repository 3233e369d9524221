/* rig.h: what programs of tests/snapshot share: a cache without an engine, filled with noise, and its snapshots.
 *
 * Noise is the same for a seed on every grid (bs_cache_seq_fill), so what a page must hold is known without another file.
 * The model is random:tiny-d128 (4 layers, 8 KV heads of 128), or what SNAP_MODEL names. */
#ifndef BS_TESTS_SNAPSHOT_RIG_H
#define BS_TESTS_SNAPSHOT_RIG_H

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

static inline void open_snapshots(rig *r)
{
    const char *verify = getenv("SNAP_VERIFY"), *segment = getenv("SNAP_SEGMENT");
    bs_snapshots_config config = {.device = r->device,
                                  .comm = r->comm,
                                  .cache = r->cache,
                                  .cache_config = r->config,
                                  .model = r->model,
                                  .segment_tokens = segment ? atoi(segment) : 0,
                                  .cache_dir = getenv("SNAP_CACHE")};
    if (verify) OK(bs_snapshot_verify_parse(verify, &config.verify));
    OK(bs_snapshots_open(&config, NULL, NULL, &r->snapshots));
}

static inline void open_rig(rig *r, bool gpu, const char *grid, const char *kv, int stripe_pages,
                            int64_t max_context)
{
    const char *name = getenv("SNAP_MODEL"), *chunk = getenv("SNAP_CHUNK");
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
    open_snapshots(r);
}

static inline void close_rig(rig *r)
{
    bs_snapshots_close(r->snapshots);
    bs_cache_close(r->cache);
    bs_stream_destroy(r->stream);
    bs_device_close(r->device);
    bs_model_close(r->model);
}

static inline void fill(rig *r, int seq, int64_t n)
{
    OK(bs_cache_seq_fill(
        r->cache, r->stream, seq, n,
        &(bs_cache_noise){.seed = SEED, .first_kv_head = r->grid.head_shard * r->config.shape.n_kv_heads}));
}

static inline int32_t *make_ids(int64_t n)
{
    int32_t *ids = malloc((size_t)(n + 1) * sizeof *ids);
    CHECK(ids);
    for (int64_t i = 0; i <= n; i++) ids[i] = (int32_t)((i * 2654435761u) >> 8 & 0x1ff);
    return ids;
}

/* ---- comparing --------------------------------------------------------------------------------------------- */

static inline size_t page_bytes(const rig *r, bool quantized)
{
    const bs_kv_shape *shape = &r->config.shape;
    const bs_kv_page_bytes b = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    return (quantized ? b.k + b.k_meta + b.v + b.v_meta : b.f16) *
           (size_t)(shape->n_layers * shape->n_kv_heads);
}

/* Canonical bytes of one page, all layers and heads of this rank, by bs_op_pack or bs_op_unpack. */
static inline void move_page(rig *r, const bs_cache_page_ref *page, bs_buffer *buffer,
                             bs_status (*op)(bs_stream *, const bs_pack_args *))
{
    const bs_kv_shape *shape = &r->config.shape;
    const bs_kv_page_bytes b = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    const bool quantized = page->kind == BS_PAGE_QUANT;
    const size_t bytes = quantized ? b.k + b.k_meta + b.v + b.v_meta : b.f16;
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
            OK(op(r->stream, &(bs_pack_args){bs_cache_pools(r->cache), quantized, 1, &ref}));
        }
}

static inline void read_page(rig *r, const bs_cache_page_ref *page, bs_buffer *buffer, char *out)
{
    move_page(r, page, buffer, bs_op_pack);
    OK(bs_copy_to_host(r->stream, out, bs_buffer_at(buffer, 0), page_bytes(r, page->kind == BS_PAGE_QUANT)));
    OK(bs_stream_sync(r->stream));
}

/* What this rank's part of pages 0 … n_pages − 1 is by the rule of docs/architecture.md: stripes are dealt in turn. */
static inline int64_t n_owned(const rig *r, int64_t n_pages)
{
    const int start = bs_cache_seq_start_shard(r->cache, EXPECTED_SEQ);
    int64_t n = 0;
    for (int64_t page = 0; page < n_pages; page++)
        n += (page / r->config.stripe_pages + start) % r->grid.seq == r->grid.seq_shard;
    return n;
}

/* All of this rank's pages of seq 0 against those of EXPECTED_SEQ. Seq 0's are overwritten then, so that what takes their
 * slots next cannot look right for what it found there. */
static inline void compare(rig *r, int64_t n_pages, const char *dir)
{
    bs_cache_page_ref *mine = malloc((size_t)(n_pages + 1) * sizeof *mine),
                      *theirs = malloc((size_t)(n_pages + 1) * sizeof *theirs);
    const size_t f16 = page_bytes(r, false), quantized = page_bytes(r, true),
                 most = f16 > quantized ? f16 : quantized;
    char *a = malloc(most), *b = malloc(most);
    bs_buffer *buffer;
    CHECK(mine && theirs && a && b);
    OK(bs_buffer_alloc(r->device, most, "test", &buffer));
    const int64_t n = bs_cache_list_pages(r->cache, 0, 0, n_pages, mine);
    CHECK(n == n_owned(r, n_pages) && bs_cache_list_pages(r->cache, EXPECTED_SEQ, 0, n_pages, theirs) == n);
    for (int64_t i = 0; i < n; i++) {
        CHECK(mine[i].page == theirs[i].page);
        if (mine[i].kind != theirs[i].kind) {
            fprintf(stderr, "%s: page %lld: kind %d, expected %d\n", dir, (long long)mine[i].page,
                    mine[i].kind, theirs[i].kind);
            exit(1);
        }
        read_page(r, &mine[i], buffer, a);
        read_page(r, &theirs[i], buffer, b);
        if (memcmp(a, b, page_bytes(r, mine[i].kind == BS_PAGE_QUANT)) != 0) {
            fprintf(stderr, "%s: rank %d: page %lld differs\n", dir, r->grid.rank, (long long)mine[i].page);
            exit(1);
        }
    }
    memset(a, 0xa5, most);
    OK(bs_copy_to_device(r->stream, bs_buffer_at(buffer, 0), a, most));
    for (int64_t i = 0; i < n; i++) move_page(r, &mine[i], buffer, bs_op_unpack);
    OK(bs_stream_sync(r->stream));
    bs_buffer_free(buffer);
    free(a);
    free(b);
    free(mine);
    free(theirs);
}

/* ---- a snapshot ---- */

static inline bs_snapshot_result take_snapshot(rig *r, bs_snapshot_dir *dir, int64_t n, const int32_t *ids)
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
    return result;
}

static inline void check_info(const rig *r, const bs_snapshot_info *info, int64_t n)
{
    CHECK(info && info->n_cached == n && info->n_tokens == n + 1 && info->state.n_prompt == n / 2);
    CHECK(info->state.sampling.seed == UINT64_C(0xfedcba9876543210) && info->state.sampling.min_p == 0.05f);
    CHECK(info->state.output_bytes == 12345678901 && strcmp(info->state.id, "request \"7\"") == 0);
    CHECK((info->tokens != NULL) == (r->grid.rank == 0));
    int32_t *ids = make_ids(n + 1);
    CHECK(!info->tokens || memcmp(info->tokens, ids, (size_t)(n + 1) * sizeof *ids) == 0);
    free(ids);
}

#endif
