/* capture.c: a snapshot begins: what is sealed is pinned, what is open is copied, and rank 0 hands in the ids.
 *
 * Between two steps, on every rank, and without a word to the others: what is done here follows from what all ranks know.
 */
#include "src/base/checked.h"
#include "src/base/progress.h"
#include "src/snapshot/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

bool bs_snapshots_busy(const bs_snapshots *s)
{
    return s->job.phase != BS_SNAP_IDLE;
}

bool bs_snapshots_holds(const bs_snapshots *s, int seq)
{
    return s->job.phase != BS_SNAP_IDLE && s->job.holds && s->job.seq == seq;
}

/* Queues the packing of the job's captured pages. */
static bs_status pack_tail(bs_snapshots *s, bs_stream *stream)
{
    const bs_snap_job *job = &s->job;
    const int n_units = s->heads.n * s->shape.n_layers;
    int n = 0;
    for (int64_t i = 0; i < job->n_captured; i++)
        for (int u = 0; u < n_units; u++) {
            char *at = bs_buffer_at(s->tail, (size_t)((uint64_t)(i * n_units + u) * s->shape.f16_page));
            s->tail_refs[n++] = (bs_kv_page_ref){.slot = job->captured[i].slot,
                                                 .layer = u % s->shape.n_layers,
                                                 .kv_head = u / s->shape.n_layers,
                                                 .k = at,
                                                 .v = at + s->shape.f16_page / 2};
        }
    if (n == 0) return BS_STATUS_OK;
    return bs_op_pack(stream, &(bs_pack_args){.pools = bs_cache_pools(s->config.cache),
                                              .quantized = false,
                                              .n = n,
                                              .pages = s->tail_refs});
}

/* What is sealed and not on disk is pinned, what is open is copied. */
static bs_status capture_pages(bs_snapshots *s, bs_stream *stream)
{
    bs_snap_job *job = &s->job;
    const bs_cache *cache = s->config.cache;
    const int64_t sealed = bs_snap_sealed_pages(&s->shape, &job->state);
    const int64_t end = bs_ceil_div(job->state.length, BS_PAGE_TOKENS);
    job->n_pinned = bs_cache_list_pages(cache, job->seq, job->files[0].first_page, sealed, job->pinned);
    job->n_captured = 0;
    for (int64_t page = sealed; page < end; page++) {
        bs_cache_page_ref one;
        if (bs_cache_list_pages(cache, job->seq, page, page + 1, &one) == 0) continue;
        if (job->n_captured == s->max_captured)
            return bs_fail(BS_STATUS_INTERNAL, "snapshot: more than %" PRId64 " open pages", s->max_captured);
        job->captured[job->n_captured++] = one;
    }
    BS_TRY(bs_timer_start(stream, s->captured_mark));
    BS_TRY(pack_tail(s, stream));
    BS_TRY(bs_timer_stop(stream, s->captured_mark));
    for (int64_t i = 0; i < job->n_captured; i++)
        job->captured[i].slot = (uint32_t)i; /* places in the tail from now on */
    bs_cache_pin(s->config.cache, job->pinned, job->n_pinned);
    job->is_pinned = true;
    return BS_STATUS_OK;
}

void bs_snap_unpin(bs_snapshots *s)
{
    if (s->job.is_pinned) bs_cache_unpin(s->config.cache, s->job.pinned, s->job.n_pinned);
    s->job.is_pinned = false;
}

/* One that has ended everywhere but whose last exchange this rank has not looked at. */
static bs_status finish_before(bs_snapshots *s, const bs_snapshot_dir *dir)
{
    if (!bs_snap_leader(s)) BS_TRY(bs_snapshots_wait(s, NULL, NULL));
    if (s->job.phase == BS_SNAP_IDLE) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_RANGE, "%s: snapshot %" PRId64 " of %s is under way", dir->fs.path,
                   s->job.number, s->job.dir->fs.path);
}

/* Segments of the snapshot in force that hold pages of the sequence being written. */
static int count_ours(const bs_snapshot_dir *dir)
{
    int n = 0;
    while (n + 1 < dir->manifest.n_files && dir->manifest.files[n].end_page <= dir->n_ours) n++;
    return n;
}

bs_status bs_snapshot_capture(bs_snapshot_dir *dir, bs_stream *stream, int seq)
{
    bs_snapshots *s = dir->snapshots;
    bs_snap_job *job = &s->job;
    const double now = bs_now_s();
    BS_TRY(finish_before(s, dir));
    if (!dir->may_write) return bs_fail(BS_STATUS_RANGE, "%s: was not opened to write", dir->fs.path);
    BS_TRY(bs_cache_seq_get_state(s->config.cache, seq, &job->state));
    job->dir = dir;
    job->seq = seq;
    job->number = ++dir->last_number;
    job->committed = job->given_up = job->is_sealed = false;
    job->bytes = job->read_bytes = 0;
    job->write_s = job->check_s = 0;
    /* The number of ids is rank 0's to know: the tail is laid out again by commit and by the offer. */
    bs_snap_plan_files(&s->shape, dir->manifest.files, count_ours(dir), &job->state, job->state.length,
                       s->config.segment_tokens, &job->n_kept, job->files, &job->n_files);
    for (int i = 0; i < job->n_files; i++) job->files[i].name[0] = 0;
    BS_TRY(capture_pages(s, stream));
    job->holds = true;
    job->phase = BS_SNAP_CREATE;
    job->started_s = now;
    job->stall_s = bs_now_s() - now;
    if (!bs_snap_leader(s)) bs_snap_start_task(s, BS_SNAP_CREATE);
    return BS_STATUS_OK;
}

static bs_status check_commit(const bs_snap_job *job, const int32_t *tokens, int64_t n_tokens,
                              const bs_snapshot_state *state)
{
    const char *where = job->dir->fs.path;
    if (n_tokens < job->state.length || n_tokens > job->tokens_capacity)
        return bs_fail(BS_STATUS_RANGE, "%s: %" PRId64 " ids for %" PRId64 " cached tokens", where, n_tokens,
                       job->state.length);
    if (state->n_prompt < 0 || state->n_prompt > n_tokens)
        return bs_fail(BS_STATUS_RANGE, "%s: n_prompt %" PRId64 ": must be 0 … %" PRId64, where,
                       state->n_prompt, n_tokens);
    for (int64_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0)
            return bs_fail(BS_STATUS_RANGE, "%s: token %" PRId64 ": id %d: must be 0 or more", where, i,
                           tokens[i]);
    return BS_STATUS_OK;
}

bs_status bs_snapshot_commit(bs_snapshot_dir *dir, const int32_t *tokens, int64_t n_tokens,
                             const bs_snapshot_state *state)
{
    bs_snapshots *s = dir->snapshots;
    bs_snap_job *job = &s->job;
    if (job->dir != dir || job->phase != BS_SNAP_CREATE || job->committed)
        return bs_fail(BS_STATUS_RANGE, "%s: no snapshot waits for its ids", dir->fs.path);
    job->committed = true;
    char line[BS_SNAP_LINE_BYTES];
    const bs_error_diversion before = bs_error_divert(line, sizeof line);
    const bs_status status = check_commit(job, tokens, n_tokens, state);
    bs_error_divert_back(before);
    if (status != BS_STATUS_OK) {
        bs_snap_refuse(s, BS_SNAP_CREATE, status, line);
        return bs_fail(status, "%s", line);
    }
    memcpy(job->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    job->n_tokens = n_tokens;
    job->request = *state;
    bs_snap_file *tail = &job->files[job->n_files - 1];
    bs_snap_tail_of(&s->shape, tail->first_page, &job->state, n_tokens, tail);
    bs_snap_start_task(s, BS_SNAP_CREATE);
    return BS_STATUS_OK;
}

void bs_snapshot_give_up(bs_snapshot_dir *dir)
{
    bs_snapshots *s = dir->snapshots;
    if (s->job.dir != dir || s->job.phase != BS_SNAP_CREATE || s->job.committed) return;
    s->job.committed = s->job.given_up = true;
    bs_snap_refuse(s, BS_SNAP_CREATE, BS_STATUS_INTERRUPTED, "");
}
