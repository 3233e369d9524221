/* snapshots.c: opening a rank's machinery, and its thread.
 *
 * The thread does one task at a time and knows no other rank; what it does is commit.c, when it is told to is phases.c.
 */
#include "src/base/checked.h"
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

/* Every so often, by whichever thread comes by. With the lock held. */
static void touch_locks(bs_snapshots *s)
{
    const double now = bs_now_s();
    if (now - s->touched_s < TOUCH_S) return;
    s->touched_s = now;
    for (const bs_snapshot_dir *d = s->locked; d; d = d->next_locked) bs_snap_lock_touch(&d->lock);
}

/* Waits for a task, or to be told to quit; keeps locks fresh meanwhile. With the lock held. */
static void wait_for_task(bs_snapshots *s)
{
    while (!s->quit && s->task_done) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += TOUCH_S;
        touch_locks(s);
        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    }
}

static void *run_thread(void *context)
{
    bs_snapshots *s = context;
    char line[BS_SNAP_LINE_BYTES];
    bs_error_divert(line, sizeof line);
    const bs_status entered = bs_device_enter(s->config.device);
    pthread_mutex_lock(&s->lock);
    for (;;) {
        wait_for_task(s);
        if (s->quit) break;
        const bs_snap_phase phase = s->job.phase;
        pthread_mutex_unlock(&s->lock);
        bs_error_divert(s->task_line, sizeof s->task_line); /* "" again */
        const bs_status status = entered == BS_STATUS_OK ? bs_snap_run_phase(s, phase)
                                                         : bs_fail(entered, "%s", line);
        pthread_mutex_lock(&s->lock);
        s->task_status = status;
        s->task_done = true;
        pthread_cond_signal(&s->ended);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void bs_snap_start_task(bs_snapshots *s, bs_snap_phase phase)
{
    pthread_mutex_lock(&s->lock);
    s->job.phase = phase;
    s->task_done = false;
    s->task_status = BS_STATUS_OK;
    s->progress = (bs_snap_progress){.cancel = &s->quit};
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void bs_snap_refuse(bs_snapshots *s, bs_snap_phase phase, bs_status status, const char *line)
{
    pthread_mutex_lock(&s->lock);
    s->job.phase = phase;
    s->task_status = status;
    snprintf(s->task_line, sizeof s->task_line, "%s", line);
    pthread_mutex_unlock(&s->lock);
}

bool bs_snap_is_task_done(bs_snapshots *s, double wait_ms)
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
    touch_locks(s); /* a task may take longer than a lock lives */
    pthread_mutex_unlock(&s->lock);
    return done;
}

void bs_snap_stop(bs_snapshots *s)
{
    if (!s->has_thread) return;
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    s->has_thread = false;
    if (s->job.phase == BS_SNAP_IDLE) return;
    /* The job ends; what stays is temporary and goes with the next one. */
    char line[256];
    const bs_error_diversion before = bs_error_divert(line, sizeof line);
    bs_snap_run_phase(s, BS_SNAP_CLEAN);
    bs_error_divert_back(before);
    bs_snap_unpin(s);
    s->job.phase = BS_SNAP_IDLE;
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
        s->task_done = true;
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
    bs_snap_stop(s);
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
