/* generate_lines.c: rank 0: snapshots of a batch's lines: a directory each, below that of --snapshot.
 *
 * Most lines are answered before a snapshot of them is due and never have a directory. One that has is removed when the
 * answer is on the disk; what is there when a run begins is either of a line that was in mid-answer, and goes on, or was left
 * by a kill between the two, and goes.
 *
 * A line's name is its custom_id where that can be a file's name everywhere, else a digest of it; the snapshot's state has
 * the custom_id itself, or its digest when it is long.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/base/sha256.h"
#include "src/cli/generate_batch.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
static const char letters[] = LETTERS, name_letters[] = LETTERS "._-";
static const char digest_head[] = "id-";
enum { NAME_BYTES = 72, LONGEST_NAME = 64 };

/* Letters, digits, ".", "_" and "-", the first a letter or digit; not what a digest could be. */
static bool is_name(const char *custom_id)
{
    const size_t n = strlen(custom_id);
    return n > 0 && n <= LONGEST_NAME && strchr(letters, custom_id[0]) &&
           strspn(custom_id, name_letters) == n &&
           strncmp(custom_id, digest_head, sizeof digest_head - 1) != 0;
}

static void name_of(const char *custom_id, char name[NAME_BYTES])
{
    uint8_t digest[BS_SHA256_BYTES];
    char hex[BS_SHA256_HEX];
    if (is_name(custom_id)) {
        snprintf(name, NAME_BYTES, "%s", custom_id);
        return;
    }
    bs_sha256(custom_id, strlen(custom_id), digest);
    bs_sha256_to_hex(digest, hex);
    snprintf(name, NAME_BYTES, "%s%.40s", digest_head, hex);
}

void bs_lines_set(generate *g, const char *custom_id, kept *out)
{
    char name[NAME_BYTES];
    name_of(custom_id, name);
    snprintf(out->path, sizeof out->path, "%.*s/%s", ORDER_PATH_BYTES - NAME_BYTES - 2,
             bs_options_string(g->options, "snapshot"), name);
    snprintf(out->id, sizeof out->id, "%s", strlen(custom_id) < sizeof out->id ? custom_id : name);
}

/* ---- what is there ---------------------------------------------------------------------------------------------- */

bs_status bs_lines_scan(generate *g)
{
    batch *b = g->batch;
    const char *path = bs_options_string(g->options, "snapshot");
    b->dirs = json_object();
    b->garbage = json_array();
    if (!b->dirs || !b->garbage) return bs_fail(BS_STATUS_NOMEM, "--snapshot: no memory");
    DIR *dir = opendir(path);
    if (!dir && errno == ENOENT) return BS_STATUS_OK;
    if (!dir) return bs_fail(BS_STATUS_IO, "--snapshot %s: %s", path, strerror(errno));
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        json_object_set_new(b->dirs, e->d_name, json_null());
    const bool is_single = json_object_size(b->dirs) > 0 && bs_generate_has_snapshot(path);
    closedir(dir);
    if (!is_single) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_USAGE,
                   "--snapshot %s: has the snapshot of one prompt; a batch needs a directory of its own",
                   path);
}

static bool is_there(const generate *g, const char *custom_id, kept *out)
{
    char name[NAME_BYTES];
    name_of(custom_id, name);
    if (!g->batch->dirs || !json_object_get(g->batch->dirs, name)) return false;
    bs_lines_set((generate *)g, custom_id, out);
    return true;
}

/* This rank's object of it is closed first: it holds the lock. What cannot be removed is no reason to stop. */
static void remove_path(generate *g, const char *path)
{
    keeper *k = &g->keeper;
    for (int slot = 0; k->paths && slot < g->config.max_seqs; slot++) {
        if (!k->dirs[slot] || strcmp(k->paths[slot], path) != 0) continue;
        bs_engine_set_snapshot_dir(g->engine, slot, NULL);
        bs_snapshot_dir_close(k->dirs[slot]);
        k->dirs[slot] = NULL;
    }
    if (bs_snapshot_remove(path, bs_comm_job(g->comm)) == BS_STATUS_OK) return;
    bs_log_warn("%s", bs_error_message());
    bs_error_clear();
}

void bs_lines_remove(generate *g, const char *custom_id)
{
    kept one;
    if (is_there(g, custom_id, &one)) remove_path(g, one.path);
}

bool bs_lines_begun(generate *g, const char *custom_id)
{
    kept one;
    if (!is_there(g, custom_id, &one)) return false;
    if (strcmp(g->keeper.resume, "never") != 0 && bs_generate_has_snapshot(one.path)) return true;
    remove_path(g, one.path);
    return false;
}

void bs_lines_drop(generate *g, const kept *one)
{
    if (g->batch->garbage && one->has_dir) json_array_append_new(g->batch->garbage, json_string(one->path));
}

void bs_lines_sweep(generate *g)
{
    json_t *garbage = g->batch->garbage, *path;
    size_t i;
    json_array_foreach(garbage, i, path) remove_path(g, json_string_value(path));
    if (garbage) json_array_clear(garbage);
}

/* ---- restoring -------------------------------------------------------------------------------------------------- */

bool bs_generate_batch_may_restore(generate *g)
{
    const item *one = g->batch->restoring.one;
    if (json_array_size(g->batch->garbage) > 0 && bs_sched_may_snapshot(g->sched)) bs_lines_sweep(g);
    return one && bs_sched_has_room(g->sched, one->n_tokens, one->number);
}

/* The line's request again, for its ids and sampling; out->prompt is the caller's. */
static bs_status read_line(generate *g, const item *one, kept *place, bs_openai_request *out)
{
    bs_batch_line line;
    BS_TRY(bs_batch_line_open(one->text, one->bytes, &line));
    bs_lines_set(g, line.custom_id, place);
    bs_status status = bs_batch_line_read(&line, g->tokenizer, &g->batch->defaults, out);
    bs_batch_line_close(&line); /* its stop strings are gone: only numbers and ids are used */
    return status;
}

static bs_status decide(generate *g, restoring *r, order *out)
{
    kept place = {0};
    bs_openai_request request;
    const bs_snapshot_dir *dir = g->keeper.dirs[r->slot];
    BS_TRY(read_line(g, r->one, &place, &request));
    bs_status status = bs_generate_decide(dir, place.path, request.prompt.ids, (int64_t)request.prompt.n, 0,
                                          request.max_tokens, &request.sampling, false, &r->resume);
    bs_tokens_free(&request.prompt);
    BS_TRY(status);
    const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
    if (info && strcmp(info->state.id, place.id) != 0)
        return bs_fail(BS_STATUS_MISMATCH, "%s: is of custom_id \"%.100s\", not \"%.100s\"", place.path,
                       info->state.id, place.id);
    g->keeper.seen_ids = info ? info->tokens : NULL;
    g->keeper.seen_first = 0;
    r->is_decided = true;
    *out = (order){.kind = ORDER_RESTORE,
                   .slot = r->slot,
                   .exact = r->resume.kind == RESUME_EXACT,
                   .n_common = r->resume.n_common,
                   .n_tokens = r->one->n_tokens,
                   .start_s = r->start_s,
                   .sampling = request.sampling};
    return BS_STATUS_OK;
}

/* One order further with the line that waits; *ordered false: there is none to give. */
static bs_status restore_next(generate *g, order *out, bool *ordered)
{
    batch *b = g->batch;
    restoring *r = &b->restoring;
    *ordered = r->one != NULL;
    if (!r->one) return BS_STATUS_OK;
    if (r->slot < 0 && !bs_sched_reserve(g->sched, r->one->n_tokens, r->one->number, &r->slot, &r->start_s)) {
        *ordered = false;
        return BS_STATUS_OK;
    }
    if (!r->is_open) {
        kept place = {0};
        bs_openai_request request;
        BS_TRY(read_line(g, r->one, &place, &request));
        bs_tokens_free(&request.prompt);
        r->is_open = true;
        out->kind = ORDER_OPEN;
        out->slot = r->slot;
        memcpy(out->path, place.path, sizeof out->path);
        return BS_STATUS_OK;
    }
    if (!r->is_decided) {
        BS_TRY(decide(g, r, out));
        if (r->resume.kind != RESUME_COMPLETE && r->resume.kind != RESUME_DONE) return BS_STATUS_OK;
        /* Its sequence is not needed. */
        bs_sched_release(g->sched, r->slot);
        g->keeper.first_pos = -1;
    }
    const restoring done = *r;
    *r = (restoring){.one = NULL};
    *ordered = false;
    b->n_resumed++;
    bs_log_info("line %lld: %lld of its tokens are reused, %lld of its answer", (long long)done.one->number,
                (long long)(g->keeper.first_pos > 0 ? g->keeper.first_pos : 0),
                (long long)done.resume.n_answer);
    BS_TRY(bs_batch_submit(g, done.one, &done.resume, g->keeper.first_pos < 0 ? -1 : done.slot,
                           g->keeper.first_pos < 0 ? 0 : g->keeper.first_pos));
    BS_TRY(bs_batch_fill(g));
    return restore_next(g, out, ordered);
}

/* ---- orders ----------------------------------------------------------------------------------------------------- */

static bs_status open_for(kept *one, order *out)
{
    one->has_dir = true;
    out->kind = ORDER_OPEN;
    out->slot = bs_request_slot(one->request);
    memcpy(out->path, one->path, sizeof out->path);
    return BS_STATUS_OK;
}

/* The job stops: a last snapshot of each line that has come further than its last one. */
static bs_status take_next(generate *g, order *out)
{
    for (kept *i = g->keeper.first; i; i = i->next) {
        const int64_t length = bs_request_length(i->request);
        if (!bs_request_runs(i->request)) continue;
        if (i->last_taken || (length == i->last_length && i->has_dir)) continue;
        if (!i->has_dir) return open_for(i, out);
        i->last_taken = true;
        out->kind = ORDER_TAKE;
        out->slot = bs_request_slot(i->request);
        return BS_STATUS_OK;
    }
    for (kept *i = g->keeper.first; i; i = i->next) g->batch->n_left += i->has_dir;
    out->kind = ORDER_END;
    return BS_STATUS_OK;
}

bs_status bs_generate_batch_next(generate *g, order *out)
{
    bool ordered = false;
    kept *to_open = g->keeper.to_open;
    g->keeper.to_open = NULL;
    if (g->output != BS_STATUS_OK || (!g->keeper.on && g->why != WHY_NOT)) {
        out->kind = ORDER_END;
        return BS_STATUS_OK;
    }
    if (g->why != WHY_NOT) return take_next(g, out);
    if (to_open && bs_request_runs(to_open->request)) return open_for(to_open, out);
    BS_TRY(restore_next(g, out, &ordered));
    if (ordered) return BS_STATUS_OK;
    if (g->output != BS_STATUS_OK || (bs_sched_idle(g->sched) && !g->batch->restoring.one)) {
        out->kind = ORDER_END;
        return BS_STATUS_OK;
    }
    if (bs_sched_idle(g->sched))
        return bs_fail(BS_STATUS_FULL, "--snapshot: the cache has no room to restore line %lld",
                       (long long)g->batch->restoring.one->number);
    out->kind = ORDER_RUN;
    return BS_STATUS_OK;
}
