/* restore.c: back into a cache: read, verified, staged in fresh pages, published when all ranks are done.
 *
 * Every rank verifies what it uses by itself, manifest and headers included. Pages go into slots that no sequence has yet;
 * a rank that finds damage says so when all agree, everybody drops what was staged, and nothing has changed. Bytes are
 * canonical, so which grid wrote them does not matter: a head shard's part of a block is one run whatever the shards.
 */
#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/snapshot/job.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- what is to be restored -------------------------------------------------------------------------------- */

/* The state that the rules of sharing leave of a prefix (DESIGN §4); length 0: nothing. */
static bs_cache_seq_state prefix_state(const bs_snap_shape *shape, const bs_cache_seq_state *from,
                                       int64_t n_common)
{
    const int64_t recent = shape->is_f16 ? 0 : shape->format.n_recent;
    int64_t kept = bs_min_i64(n_common, from->length) / BS_PAGE_TOKENS - recent;
    kept = bs_max_i64(0, bs_min_i64(kept, bs_snap_sealed_pages(shape, from)));
    if (kept == 0) return (bs_cache_seq_state){.quant_end = shape->n_sink, .start_s = from->start_s};
    return (bs_cache_seq_state){.length = kept * BS_PAGE_TOKENS,
                                .quant_end = shape->is_f16 ? 0 : bs_max_i64(kept, shape->n_sink),
                                .prompt_base = (kept + recent) * BS_PAGE_TOKENS,
                                .start_s = from->start_s,
                                .in_prompt = true};
}

static bs_status choose_state(const bs_snapshot_dir *dir, const bs_snapshot_restore_args *args,
                              bs_cache_seq_state *out)
{
    const bs_snapshots *s = dir->snapshots;
    const bs_snap_manifest *m = &dir->manifest;
    if (!dir->has_info) return bs_fail(BS_STATUS_RANGE, "%s: holds no snapshot", dir->fs.path);
    if (args->exact) {
        *out = m->cache;
        if (m->cache.in_prompt && m->chunk_tokens != s->config.cache_config.chunk_tokens)
            return bs_fail(
                BS_STATUS_MISMATCH,
                "%s: chunk_tokens: the snapshot's is %d, this run's is %d, and it is within a prompt",
                dir->fs.path, m->chunk_tokens, s->config.cache_config.chunk_tokens);
    } else {
        if (args->n_common < 0)
            return bs_fail(BS_STATUS_RANGE, "%s: n_common %" PRId64 ": must be 0 or more", dir->fs.path,
                           args->n_common);
        *out = prefix_state(&s->shape, &m->cache, args->n_common);
    }
    if (!dir->info.same_grid) out->start_s = args->start_s;
    return BS_STATUS_OK;
}

/* ---- one file ---------------------------------------------------------------------------------------------- */

static bs_status unpack(void *context, const bs_snap_file *file, const bs_snap_chunk *chunk, int slot)
{
    bs_snapshots *s = context;
    return bs_snap_unpack_chunk(&s->staging, &s->shape, file, s->heads, chunk, slot);
}

static bs_status restore_file(bs_snapshot_dir *dir, int i, const bs_snap_source *source)
{
    bs_snapshots *s = dir->snapshots;
    bs_snap_handle handle;
    uint32_t *sums;
    bs_snap_progress progress = {.cancel = NULL};
    BS_TRY(bs_snap_open_verified(&dir->fs, &dir->manifest, i, bs_snap_leader(s), &handle, &sums, NULL));
    const bs_snap_reading reading = {.handle = &handle,
                                     .shape = &s->shape,
                                     .file = &dir->manifest.files[i],
                                     .heads = s->heads,
                                     .source = source,
                                     .sums = sums,
                                     .take = unpack,
                                     .context = s};
    const double start = bs_now_s();
    bs_status status = bs_snap_read_pages(&s->staging, &reading, &progress);
    dir->restore.read_s += bs_now_s() - start;
    dir->restore.bytes += progress.bytes;
    free(sums);
    close(handle.fd);
    return status;
}

static bs_status restore_files(bs_snapshot_dir *dir, int seq, int64_t length)
{
    bs_snapshots *s = dir->snapshots;
    const int64_t end = bs_ceil_div(length, BS_PAGE_TOKENS);
    bs_snap_source source = {.pages = s->job.pinned}; /* no snapshot is under way */
    source.n = bs_cache_list_pages(s->config.cache, seq, 0, end, s->job.pinned);
    for (int i = 0; i < dir->manifest.n_files; i++) {
        const bs_snap_file *f = &dir->manifest.files[i];
        if (f->first_page >= end || f->end_page == f->first_page) continue;
        BS_TRY(restore_file(dir, i, &source));
    }
    return BS_STATUS_OK;
}

/* ---- the restore ------------------------------------------------------------------------------------------- */

bs_status bs_snapshot_restore(bs_snapshot_dir *dir, bs_stream *stream, const bs_snapshot_restore_args *args,
                              int64_t *first_pos)
{
    bs_snapshots *s = dir->snapshots;
    bs_comm *comm = s->config.comm;
    bs_cache *cache = s->config.cache;
    bs_cache_seq_state state;
    const double start = bs_now_s();
    bs_status status = bs_snapshots_busy(s)
                           ? bs_fail(BS_STATUS_RANGE, "%s: a snapshot is under way", dir->fs.path)
                           : BS_STATUS_OK;
    BS_TRY(bs_comm_agree(comm, status));
    if (dir->committed_here) BS_TRY(bs_snap_dir_load(dir));
    dir->restore = (bs_snapshot_restore_stats){0};
    status = choose_state(dir, args, &state);
    if (status == BS_STATUS_OK) status = bs_cache_seq_stage(cache, args->seq, args->n_reserved, &state);
    const bool staged = status == BS_STATUS_OK;
    status = bs_comm_agree(comm, status);
    if (status == BS_STATUS_OK) {
        status = bs_stream_sync(stream); /* what used the slots before */
        if (status == BS_STATUS_OK) status = restore_files(dir, args->seq, state.length);
        status = bs_comm_agree(comm, status);
    }
    if (status != BS_STATUS_OK) {
        if (staged) bs_cache_seq_free(cache, args->seq);
        return status;
    }
    bs_cache_seq_publish(cache, args->seq);
    dir->n_ours = args->exact ? INT64_MAX : state.length / BS_PAGE_TOKENS;
    dir->restore.total_s = bs_now_s() - start;
    *first_pos = state.length;
    return BS_STATUS_OK;
}
