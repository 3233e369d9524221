/* phases.c: how a snapshot goes from phase to phase, on all ranks.
 *
 * When this rank's thread is done with a phase, the steps' thread, the next time it polls, begins an exchange; when the
 * exchange is done, at a later poll, every rank knows how all went and starts the same next task. Ranks may be steps apart in
 * this: exchanges pair by order, not by time.
 */
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/snapshot/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void fill_offer(bs_snapshots *s)
{
    memset(s->offer, 0, sizeof *s->offer);
    for (int i = 0; i < s->job.n_files; i++) {
        const bs_snap_file *f = &s->job.files[i];
        memcpy(s->offer->file[i].name, f->name, sizeof f->name);
        s->offer->file[i].bytes = f->bytes;
        s->offer->file[i].n_tokens = f->n_tokens;
        for (int p = 0; p < BS_SNAP_N_PARTS; p++) {
            s->offer->file[i].offset[p] = f->part[p].offset;
            s->offer->file[i].part_bytes[p] = f->part[p].bytes;
        }
    }
}

/* What rank 0 has made must be what this rank has worked out. */
static bs_status take_offer(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    bs_snap_file *tail = &job->files[job->n_files - 1];
    job->n_tokens = tail->first_token + s->offer->file[job->n_files - 1].n_tokens;
    bs_snap_tail_of(&s->shape, tail->first_page, &job->state, job->n_tokens, tail);
    for (int i = 0; i < job->n_files; i++) {
        bs_snap_file *f = &job->files[i];
        memcpy(f->name, s->offer->file[i].name, sizeof f->name);
        f->name[sizeof f->name - 1] = 0;
        f->bytes = s->offer->file[i].bytes;
        for (int p = 0; p < BS_SNAP_N_PARTS; p++) {
            if (f->part[p].bytes != s->offer->file[i].part_bytes[p])
                return bs_fail(BS_STATUS_INTERNAL,
                               "%s/%s: dataset %s has %" PRIu64 " bytes at rank 0, %" PRIu64 " here",
                               job->dir->fs.path, f->name, bs_snap_part_name[p],
                               s->offer->file[i].part_bytes[p], f->part[p].bytes);
            f->part[p].offset = s->offer->file[i].offset[p];
        }
    }
    return BS_STATUS_OK;
}

static bs_status begin_exchange(bs_snapshots *s)
{
    bs_snap_job *job = &s->job;
    const bool offers = job->phase == BS_SNAP_CREATE;
    s->word = (bs_snap_word){
        .status = (int32_t)s->task_status, .silent = job->given_up, .bytes = s->progress.bytes};
    if (s->task_status != BS_STATUS_OK)
        snprintf(s->word.line, sizeof s->word.line, "%s",
                 s->task_line[0] ? s->task_line : bs_status_text(s->task_status));
    /* Whoever has written has read its pages: from here on nobody needs them on this rank. */
    if (job->phase == BS_SNAP_WRITE || s->task_status != BS_STATUS_OK) bs_snap_unpin(s);
    if (offers && bs_snap_leader(s)) fill_offer(s);
    s->exchanging = true;
    return bs_comm_exchange_begin(s->config.comm, &s->word, s->words, sizeof s->word, s->offer,
                                  offers ? sizeof *s->offer : 0);
}

/* The first rank that failed, or −1. */
static int find_failed(const bs_snapshots *s)
{
    for (int r = 0; r < s->n_ranks; r++)
        if (s->words[r].status != BS_STATUS_OK) return r;
    return -1;
}

static void end_job(bs_snapshots *s)
{
    bs_snap_unpin(s);
    s->job.holds = false;
    s->job.phase = BS_SNAP_IDLE;
}

static double gb_per_s(uint64_t bytes, double seconds)
{
    return seconds > 0 ? (double)bytes / seconds * 1e-9 : 0;
}

static void log_success(const bs_snapshots *s, const bs_snapshot_result *r)
{
    char bytes[32];
    if (!bs_snap_leader(s) || s->config.quiet) return;
    bs_format_bytes(r->bytes, bytes, sizeof bytes);
    if (s->config.verify == BS_SNAPSHOT_VERIFY_NONE)
        bs_log_info("snapshot %" PRId64 ": %" PRId64 " tokens; %s written in %.2f s (%.2f GB/s)", r->number,
                    r->n_cached, bytes, r->write_s, gb_per_s(r->bytes, r->write_s));
    else
        bs_log_info("snapshot %" PRId64 ": %" PRId64
                    " tokens; %s written in %.2f s (%.2f GB/s), read back in %.2f s (%.2f GB/s)",
                    r->number, r->n_cached, bytes, r->write_s, gb_per_s(r->bytes, r->write_s), r->check_s,
                    gb_per_s(r->read_bytes, r->check_s));
}

/* The snapshot stands: it is the one in force on every rank. */
static void take_over(bs_snapshots *s)
{
    bs_snapshot_dir *dir = s->job.dir;
    bs_snap_manifest m;
    char line[128];
    const bs_error_diversion before = bs_error_divert(line, sizeof line);
    if (bs_snap_job_manifest(s, &m) == BS_STATUS_OK) {
        bs_snap_manifest_free(&dir->manifest);
        dir->manifest = m;
    } else {
        /* Out of memory for a list: the next one is written from the beginning. */
        bs_snap_manifest_free(&dir->manifest);
    }
    bs_error_divert_back(before);
    dir->committed_here = true;
    dir->n_ours = INT64_MAX;
}

static void fill_result(bs_snapshots *s, bs_status status, const char *line)
{
    const bs_snap_job *job = &s->job;
    s->result = (bs_snapshot_result){.status = status,
                                     .number = job->number,
                                     .n_cached = job->state.length,
                                     .bytes = job->bytes,
                                     .read_bytes = job->read_bytes,
                                     .stall_s = job->stall_s,
                                     .write_s = job->write_s,
                                     .check_s = job->check_s,
                                     .total_s = bs_now_s() - job->started_s};
    snprintf(s->result.line, sizeof s->result.line, "%s", line);
}

static void fail_job(bs_snapshots *s, int rank)
{
    char line[sizeof s->result.line];
    const bs_snap_word *word = &s->words[rank];
    if (s->n_ranks > 1) snprintf(line, sizeof line, "rank %d: %.490s", rank, word->line);
    else snprintf(line, sizeof line, "%.490s", word->line);
    fill_result(s, (bs_status)word->status, bs_snap_leader(s) ? line : "");
    if (bs_snap_leader(s) && !word->silent)
        bs_log_warn("snapshot %" PRId64 " failed, the one before stays in force: %s", s->job.number, line);
    bs_snap_unpin(s);
    s->job.holds = false;
    bs_snap_start_task(s, BS_SNAP_CLEAN);
}

/* Unless rank 0's files are not those that this rank has worked out: that is told with the next exchange. */
static void begin_writing(bs_snapshots *s)
{
    char line[BS_SNAP_LINE_BYTES];
    const bs_error_diversion before = bs_error_divert(line, sizeof line);
    const bs_status status = bs_snap_leader(s) ? BS_STATUS_OK : take_offer(s);
    bs_error_divert_back(before);
    if (status == BS_STATUS_OK) bs_snap_start_task(s, BS_SNAP_WRITE);
    else bs_snap_refuse(s, BS_SNAP_WRITE, status, line);
}

/* All ranks have told how their phase went. */
static void end_phase(bs_snapshots *s, bool *ended)
{
    bs_snap_job *job = &s->job;
    const int failed = find_failed(s);
    const double now = bs_now_s();
    uint64_t bytes = 0;
    for (int r = 0; r < s->n_ranks; r++) bytes += s->words[r].bytes;
    if (failed >= 0) {
        fail_job(s, failed);
        return;
    }
    switch (job->phase) {
    case BS_SNAP_CREATE: begin_writing(s); return;
    case BS_SNAP_WRITE:
        job->holds = false;
        job->bytes = bytes;
        job->write_s = now - job->write_from_s;
        job->check_s = now;
        bs_snap_start_task(s, BS_SNAP_CHECK);
        return;
    case BS_SNAP_CHECK:
        job->read_bytes = bytes;
        job->check_s = now - job->check_s;
        bs_snap_start_task(s, BS_SNAP_SEAL);
        return;
    default: break;
    }
    take_over(s);
    fill_result(s, BS_STATUS_OK, "");
    log_success(s, &s->result);
    end_job(s);
    *ended = true;
}

static bs_status move_on(bs_snapshots *s, double wait_ms, bool *ended)
{
    *ended = false;
    if (s->job.phase == BS_SNAP_IDLE) return BS_STATUS_OK;
    if (!s->exchanging) {
        if (s->job.phase == BS_SNAP_CREATE && bs_snap_leader(s) && !s->job.committed) return BS_STATUS_OK;
        if (!bs_snap_is_task_done(s, wait_ms)) return BS_STATUS_OK;
        if (s->job.phase == BS_SNAP_CLEAN) {
            end_job(s);
            *ended = true;
            return BS_STATUS_OK;
        }
        BS_TRY(begin_exchange(s));
    }
    bool done;
    BS_TRY(bs_comm_exchange_test(s->config.comm, &done));
    if (!done) {
        if (wait_ms > 0) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        return BS_STATUS_OK;
    }
    s->exchanging = false;
    end_phase(s, ended);
    return BS_STATUS_OK;
}

bs_status bs_snapshots_poll(bs_snapshots *s, bool *ended, bs_snapshot_result *result)
{
    bool is_over;
    BS_TRY(move_on(s, 0, &is_over));
    if (ended) *ended = is_over;
    if (is_over && result) *result = s->result;
    return BS_STATUS_OK;
}

bs_status bs_snapshots_wait(bs_snapshots *s, bool *ended, bs_snapshot_result *result)
{
    bool is_over = false, any = false;
    while (s->job.phase != BS_SNAP_IDLE) {
        if (s->job.phase == BS_SNAP_CREATE && bs_snap_leader(s) && !s->job.committed)
            bs_snapshot_give_up(s->job.dir);
        BS_TRY(move_on(s, 5, &is_over));
        any |= is_over;
    }
    if (ended) *ended = any;
    if (any && result) *result = s->result;
    return BS_STATUS_OK;
}
