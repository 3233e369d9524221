/* snapshots.c: opening a rank's machinery, its thread, and how a snapshot goes from phase to phase.
 *
 * The thread does one task at a time and knows no other rank. When it is done the steps' thread, the next time it polls,
 * begins an exchange; when the exchange is done, at a later poll, every rank knows the worst status and starts the same
 * next task. Ranks may be steps apart in this: exchanges pair by order, not by time.
 */
#include "src/base/checked.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/snapshot/job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

bs_status bs_snapshot_verify_parse(const char *text, bs_snapshot_verify *out)
{
    static const char *const names[] = {"full", "sample", "none"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (bs_snapshot_verify)i;
            return BS_STATUS_OK;
        }
    return bs_fail(BS_STATUS_USAGE, "--snapshot-verify %s: must be full, sample or none", text);
}

/* ---- the thread -------------------------------------------------------------------------------------------- */

enum { TOUCH_S = 30 };

static void touch_locks(bs_snapshots *s)
{
    for (const bs_snapshot_dir *d = s->locked; d; d = d->next_locked) bs_snap_lock_touch(&d->lock);
}

/* Waits for a task, or to be told to quit; keeps locks fresh meanwhile. With the lock held. */
static void wait_for_task(bs_snapshots *s)
{
    while (!s->quit && (s->task == BS_SNAP_IDLE || s->task_done)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += TOUCH_S;
        if (pthread_cond_timedwait(&s->wake, &s->lock, &until) != 0) touch_locks(s);
    }
}

static void *run_thread(void *context)
{
    bs_snapshots *s = context;
    bs_status entered = bs_device_enter(s->config.device);
    bs_error_divert(s->task_line, sizeof s->task_line);
    pthread_mutex_lock(&s->lock);
    for (;;) {
        wait_for_task(s);
        if (s->quit) break;
        const bs_snap_phase phase = s->task;
        pthread_mutex_unlock(&s->lock);
        bs_error_divert(s->task_line, sizeof s->task_line); /* "" again */
        bs_status status = entered == BS_STATUS_OK ? bs_snap_run_phase(s, phase) : entered;
        pthread_mutex_lock(&s->lock);
        touch_locks(s);
        s->task_status = status;
        s->task_done = true;
        pthread_cond_signal(&s->ended);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void start_task(bs_snapshots *s, bs_snap_phase phase)
{
    s->job.phase = phase;
    pthread_mutex_lock(&s->lock);
    s->task = phase;
    s->task_done = false;
    s->task_status = BS_STATUS_OK;
    s->progress = (bs_snap_progress){.cancel = &s->cancel};
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

static bool is_task_done(bs_snapshots *s, double wait_ms)
{
    pthread_mutex_lock(&s->lock);
    if (!s->task_done && wait_ms > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += (long)(wait_ms * 1e6);
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&s->ended, &s->lock, &until);
    }
    bool done = s->task_done;
    pthread_mutex_unlock(&s->lock);
    return done;
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

static bs_snap_shape shape_of(const bs_model_desc *desc, const bs_kv_format *format)
{
    return bs_snap_shape_of(desc->n_layers, desc->n_kv_heads, desc->head_dim, format);
}

/* The most pages of f16 that are not sealed and this shard's, between two steps. */
static int64_t most_captured(const bs_cache_config *c)
{
    const bs_kv_format *f = &c->shape.format;
    int64_t n = f->k_bits == 16 ? 1 : f->n_recent + c->chunk_tokens / BS_PAGE_TOKENS + 2;
    n = bs_min_i64(n, bs_ceil_div(c->max_context, BS_PAGE_TOKENS));
    const int64_t cycle = (int64_t)c->stripe_pages * c->seq;
    return n / cycle * c->stripe_pages + bs_min_i64(n % cycle, c->stripe_pages);
}

static uint64_t tail_bytes(const bs_cache_config *c)
{
    const bs_kv_page_bytes page = bs_kv_canonical_bytes(&c->shape.format, c->shape.head_dim);
    return (uint64_t)most_captured(c) * (uint64_t)(c->shape.n_kv_heads * c->shape.n_layers) * page.f16;
}

bs_status bs_snapshots_plan_memory(const bs_device *device, const bs_cache_config *config,
                                   bs_snapshots_memory *out)
{
    const bs_snap_shape shape = bs_snap_shape_of(config->shape.n_layers, config->shape.n_kv_heads,
                                                 config->shape.head_dim, &config->shape.format);
    const bool gpu = bs_device_get_info(device)->kind == BS_DEVICE_CUDA;
    const uint64_t staging = bs_snap_staging_bytes(device, &shape);
    *out = (bs_snapshots_memory){.device_bytes = tail_bytes(config) + (gpu ? staging : 0),
                                 .host_bytes = staging};
    return BS_STATUS_OK;
}

static bs_status open_memory(bs_snapshots *s)
{
    const bs_cache_config *c = &s->config.cache_config;
    s->max_captured = most_captured(c);
    s->max_pages = bs_ceil_div(c->max_context, BS_PAGE_TOKENS) + 1;
    const size_t n_refs = (size_t)s->max_captured * (size_t)(s->heads.n * s->shape.n_layers);
    s->tail_refs = malloc((n_refs + 1) * sizeof *s->tail_refs);
    s->job.pinned = malloc((size_t)s->max_pages * sizeof *s->job.pinned);
    s->job.captured = malloc((size_t)(s->max_captured + 1) * sizeof *s->job.captured);
    s->words = malloc((size_t)s->n_ranks * sizeof *s->words);
    s->offer = malloc(sizeof *s->offer);
    if (bs_snap_leader(s)) {
        s->job.tokens_capacity = c->max_context + 1;
        s->job.tokens = malloc((size_t)s->job.tokens_capacity * sizeof *s->job.tokens);
    }
    if (!s->tail_refs || !s->job.pinned || !s->job.captured || !s->words || !s->offer ||
        (bs_snap_leader(s) && !s->job.tokens))
        return bs_fail(BS_STATUS_NOMEM, "snapshot: no memory for lists of %" PRId64 " pages", s->max_pages);
    BS_TRY(bs_buffer_alloc(s->config.device, tail_bytes(c), "snapshot tail", &s->tail));
    BS_TRY(bs_timer_create(s->config.device, &s->captured_mark));
    return bs_snap_staging_open(s->config.device, bs_cache_pools(s->config.cache), &s->shape, &s->staging);
}

static bs_status check_config(const bs_snapshots_config *c)
{
    if (c->keep < 2 || c->keep > 1000)
        return bs_fail(BS_STATUS_USAGE, "snapshots to keep: %d: must be 2 … 1000", c->keep);
    if (c->segment_tokens < BS_BLOCK_TOKENS || c->segment_tokens % BS_BLOCK_TOKENS != 0)
        return bs_fail(BS_STATUS_USAGE, "snapshot segment of %" PRId64 " tokens: must be a multiple of %d",
                       c->segment_tokens, BS_BLOCK_TOKENS);
    return BS_STATUS_OK;
}

static bs_status open_local(bs_snapshots *s)
{
    const bs_model_desc *desc = bs_model_get_desc(s->config.model);
    BS_TRY(check_config(&s->config));
    s->grid = bs_comm_grid(s->config.comm);
    s->rank = bs_comm_rank(s->config.comm);
    s->n_ranks = bs_comm_size(s->config.comm);
    s->shape = shape_of(desc, &s->config.cache_config.shape.format);
    s->heads.n = s->config.cache_config.shape.n_kv_heads;
    s->heads.first = s->grid->head_shard * s->heads.n;
    bs_snap_fingerprint_fill(desc, &s->config.cache_config.shape.format, s->config.tokenizer_sha256,
                             &s->fingerprint);
    BS_TRY(open_memory(s));
    if (pthread_create(&s->thread, NULL, run_thread, s) != 0)
        return bs_fail(BS_STATUS_NOMEM, "snapshot: no thread could be started");
    s->has_thread = true;
    return BS_STATUS_OK;
}

bs_status bs_snapshots_open(const bs_snapshots_config *config,
                            void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                            bs_snapshots **out)
{
    uint8_t weights[32];
    char hex[BS_SHA256_HEX];
    bs_snapshots *s = calloc(1, sizeof *s);
    bs_status status = s ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "snapshot: no memory");
    if (s) {
        s->config = *config;
        if (s->config.keep == 0) s->config.keep = 2;
        if (s->config.segment_tokens == 0) s->config.segment_tokens = BS_SNAP_SEGMENT_TOKENS;
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->wake, NULL);
        pthread_cond_init(&s->ended, NULL);
        status = open_local(s);
    }
    status = bs_comm_agree(config->comm, status);
    if (status == BS_STATUS_OK)
        status = bs_comm_agree(config->comm,
                               bs_snap_weights_sha256(config->comm, config->model, config->cache_dir,
                                                      progress, context, weights));
    if (status != BS_STATUS_OK) {
        bs_snapshots_close(s);
        return status;
    }
    bs_sha256_to_hex(weights, hex);
    snprintf(s->fingerprint.value[BS_SNAP_FIELD_weights_sha256], BS_SNAP_FIELD_BYTES, "%s", hex);
    *out = s;
    return BS_STATUS_OK;
}

void bs_snapshots_close(bs_snapshots *s)
{
    if (!s) return;
    if (s->has_thread) {
        s->cancel = true;
        pthread_mutex_lock(&s->lock);
        s->quit = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
        if (s->job.phase != BS_SNAP_IDLE && s->job.phase != BS_SNAP_CLEAN) {
            char line[256];
            const bs_error_diversion before = bs_error_divert(
                line, sizeof line); /* the job ends; what stays is temporary and goes with the next one */
            bs_snap_run_phase(s, BS_SNAP_CLEAN);
            bs_error_divert_back(before);
        }
    }
    if (s->job.is_pinned) bs_cache_unpin(s->config.cache, s->job.pinned, s->job.n_pinned);
    bs_snap_staging_close(&s->staging);
    bs_timer_destroy(s->captured_mark);
    bs_buffer_free(s->tail);
    pthread_cond_destroy(&s->ended);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s->offer);
    free(s->words);
    free(s->job.tokens);
    free(s->job.captured);
    free(s->job.pinned);
    free(s->tail_refs);
    free(s);
}

/* ---- capture and commit ------------------------------------------------------------------------------------ */

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
    if (end - sealed > s->max_captured * s->grid->seq + s->config.cache_config.stripe_pages * s->grid->seq)
        return bs_fail(BS_STATUS_INTERNAL, "snapshot: %" PRId64 " open pages", end - sealed);
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

/* One that has ended everywhere but whose last exchange this rank has not looked at. */
static bs_status finish_before(bs_snapshots *s)
{
    while (s->job.phase != BS_SNAP_IDLE && !bs_snap_leader(s)) BS_TRY(bs_snapshots_poll(s, NULL, NULL));
    if (s->job.phase == BS_SNAP_IDLE) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_RANGE, "snapshot: one is under way");
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
    BS_TRY(finish_before(s));
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
    s->cancel = false;
    job->phase = BS_SNAP_CREATE;
    job->started_s = now;
    job->stall_s = bs_now_s() - now;
    if (!bs_snap_leader(s)) start_task(s, BS_SNAP_CREATE);
    return BS_STATUS_OK;
}

/* Rank 0's CREATE, without the thread: all ranks see it fail. */
static void refuse(bs_snapshots *s, bs_status status)
{
    pthread_mutex_lock(&s->lock);
    s->job.phase = s->task = BS_SNAP_CREATE;
    s->task_status = status;
    s->task_done = true;
    pthread_mutex_unlock(&s->lock);
}

static bs_status check_commit(const bs_snap_job *job, const int32_t *tokens, int64_t n_tokens,
                              const bs_snapshot_state *state)
{
    if (n_tokens < job->state.length || n_tokens > job->tokens_capacity)
        return bs_fail(BS_STATUS_RANGE, "snapshot: %" PRId64 " ids for %" PRId64 " cached tokens", n_tokens,
                       job->state.length);
    if (state->n_prompt < 0 || state->n_prompt > n_tokens)
        return bs_fail(BS_STATUS_RANGE, "snapshot: n_prompt %" PRId64 ": must be 0 … %" PRId64,
                       state->n_prompt, n_tokens);
    for (int64_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0)
            return bs_fail(BS_STATUS_RANGE, "snapshot: token %" PRId64 ": id %d", i, tokens[i]);
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
    bs_status status = check_commit(job, tokens, n_tokens, state);
    if (status != BS_STATUS_OK) {
        snprintf(s->task_line, sizeof s->task_line, "%s", "its token ids were refused");
        refuse(s, status);
        return status;
    }
    memcpy(job->tokens, tokens, (size_t)n_tokens * sizeof *tokens);
    job->n_tokens = n_tokens;
    job->request = *state;
    bs_snap_file *tail = &job->files[job->n_files - 1];
    bs_snap_tail_of(&s->shape, tail->first_page, &job->state, n_tokens, tail);
    start_task(s, BS_SNAP_CREATE);
    return BS_STATUS_OK;
}

void bs_snapshot_give_up(bs_snapshot_dir *dir)
{
    bs_snapshots *s = dir->snapshots;
    if (s->job.dir != dir || s->job.phase != BS_SNAP_CREATE || s->job.committed) return;
    s->job.committed = s->job.given_up = true;
    s->task_line[0] = 0;
    refuse(s, BS_STATUS_INTERRUPTED);
}

/* ---- phases ------------------------------------------------------------------------------------------------ */

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
                return bs_fail(BS_STATUS_INTERNAL, "snapshot: rank 0 has laid out %s otherwise", f->name);
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
    if (job->phase == BS_SNAP_WRITE || s->task_status != BS_STATUS_OK) {
        if (job->is_pinned) bs_cache_unpin(s->config.cache, job->pinned, job->n_pinned);
        job->is_pinned = false;
    }
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
    if (s->job.is_pinned) bs_cache_unpin(s->config.cache, s->job.pinned, s->job.n_pinned);
    s->job.is_pinned = s->job.holds = false;
    s->job.phase = BS_SNAP_IDLE;
    s->task = BS_SNAP_IDLE;
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
    char line[400];
    const bs_snap_word *word = &s->words[rank];
    if (s->n_ranks > 1) snprintf(line, sizeof line, "rank %d: %.255s", rank, word->line);
    else snprintf(line, sizeof line, "%.255s", word->line);
    fill_result(s, (bs_status)word->status, bs_snap_leader(s) ? line : "");
    if (bs_snap_leader(s) && !word->silent)
        bs_log_warn("snapshot %" PRId64 " failed, the one before stays in force: %s", s->job.number, line);
    if (s->job.is_pinned) bs_cache_unpin(s->config.cache, s->job.pinned, s->job.n_pinned);
    s->job.is_pinned = s->job.holds = false;
    start_task(s, BS_SNAP_CLEAN);
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
    case BS_SNAP_CREATE:
        if (!bs_snap_leader(s) && take_offer(s) != BS_STATUS_OK) {
            /* Told with the next phase, which this rank fails. */
            snprintf(s->task_line, sizeof s->task_line, "%s", bs_error_message());
            bs_error_clear();
            refuse(s, BS_STATUS_INTERNAL);
            job->phase = s->task = BS_SNAP_WRITE;
            return;
        }
        start_task(s, BS_SNAP_WRITE);
        return;
    case BS_SNAP_WRITE:
        job->holds = false;
        job->bytes = bytes;
        job->write_s = now - job->write_from_s;
        job->check_s = now;
        start_task(s, BS_SNAP_CHECK);
        return;
    case BS_SNAP_CHECK:
        job->read_bytes = bytes;
        job->check_s = now - job->check_s;
        start_task(s, BS_SNAP_SEAL);
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
        if (!is_task_done(s, wait_ms)) return BS_STATUS_OK;
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
