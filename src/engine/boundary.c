/* boundary.c: what happens between two steps besides: snapshots move on and begin; restored sequences are taken over.
 *
 * It is the same thread and the same stream as the steps', so a capture sees exactly what the steps before it have left
 * and the next one nothing of it. How long this takes is kept: the step waits for it.
 */
#include "src/base/progress.h"
#include "src/engine/engine_private.h"

void bs_engine_use_snapshots(bs_engine *e, bs_snapshots *snapshots, bs_engine_snapshot_ended *ended,
                             void *context)
{
    e->snapshots = snapshots;
    e->snapshot_ended = ended;
    e->snapshot_context = context;
}

void bs_engine_set_snapshot_dir(bs_engine *e, int seq, bs_snapshot_dir *dir)
{
    e->seqs[seq].dir = dir;
}

bs_snapshot_dir *bs_engine_snapshot_dir(const bs_engine *e, int seq)
{
    return e->seqs[seq].dir;
}

bs_status bs_engine_capture(bs_engine *e, int seq)
{
    if (!e->seqs[seq].dir)
        return bs_fail(BS_STATUS_INTERNAL, "step %lld: sequence %d has no snapshot directory",
                       (long long)e->step, seq);
    return bs_snapshot_capture(e->seqs[seq].dir, e->stream, seq);
}

static bs_status poll_snapshots(bs_engine *e)
{
    bool ended = false;
    bs_snapshot_result result;
    BS_TRY(bs_snapshots_poll(e->snapshots, &ended, &result));
    if (ended && e->snapshot_ended) e->snapshot_ended(e->snapshot_context, &result);
    return BS_STATUS_OK;
}

bs_status bs_engine_boundary(bs_engine *e, const bs_plan *plan)
{
    const bool capture = plan->flags & BS_PLAN_SNAPSHOT;
    if (!e->snapshots)
        return capture ? bs_fail(BS_STATUS_INTERNAL, "step %lld: a snapshot without the means for it",
                                 (long long)plan->step)
                       : BS_STATUS_OK;
    const double start = bs_now_s();
    BS_TRY(poll_snapshots(e));
    if (capture) BS_TRY(bs_engine_capture(e, plan->snapshot_seq));
    bs_engine_note_boundary(e, bs_now_s() - start);
    return BS_STATUS_OK;
}

void bs_engine_note_boundary(bs_engine *e, double spent_s)
{
    if (spent_s > e->boundary_s) e->boundary_s = spent_s;
}

double bs_engine_boundary_s(const bs_engine *e)
{
    return e->boundary_s;
}

bs_stream *bs_engine_stream(const bs_engine *e)
{
    return e->stream;
}

bs_cache *bs_engine_own_cache(bs_engine *e)
{
    return e->cache;
}

const bs_cache_config *bs_engine_cache_config(const bs_engine *e)
{
    return &e->layout.cache;
}

size_t bs_engine_seen_bytes(const bs_engine *e)
{
    return e->layout.seen_bytes;
}

bs_status bs_engine_adopt(bs_engine *e, int seq, const bs_sampling *sampling, const uint64_t *seen)
{
    if (seq < 0 || seq >= e->limits.max_seqs || bs_cache_seq_length(e->cache, seq) < 0)
        return bs_fail(BS_STATUS_RANGE, "restored sequence %d: is not in use", seq);
    BS_TRY(bs_sampling_check(sampling));
    bs_snapshot_dir *dir = e->seqs[seq].dir;
    e->seqs[seq] = (bs_engine_seq){.sampling = *sampling, .dir = dir};
    BS_TRY(bs_copy_to_device(e->stream, bs_buffer_at(e->seen, (size_t)seq * e->layout.seen_bytes), seen,
                             e->layout.seen_bytes));
    return bs_stream_sync(e->stream);
}
