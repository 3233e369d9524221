/* generate_orders.c: every rank: opens snapshot directories, restores, runs steps, takes last snapshots, as rank 0 says.
 *
 * Steps follow plans. What is rare, long or collective in another way would make a plan large and the pipeline
 * complicated, so rank 0 stops the run of steps (which costs the one step that is under way), tells everybody the order,
 * and goes on. Snapshots while steps go on are no orders but a flag of a plan.
 */
#include "config.h"

#include "src/base/log.h"
#include "src/cli/generate.h"

#include <stdlib.h>
#include <string.h>

static bs_status sum_cache_bytes(generate *g)
{
    uint64_t mine[2];
    void *all;
    mine[0] = bs_cache_used_bytes(bs_engine_cache(g->engine), &mine[1]);
    BS_TRY(bs_cli_gather(g->comm, mine, sizeof mine, "cache bytes", &all));
    const uint64_t *bytes = all; /* rank 0: [size, 2] */
    g->cache_bytes = g->cache_bytes_f16 = 0;
    for (int rank = 0; g->leader && rank < g->grid.size; rank++) {
        g->cache_bytes += bytes[2 * rank];
        g->cache_bytes_f16 += bytes[2 * rank + 1];
    }
    free(all);
    return BS_STATUS_OK;
}

static bs_status run_steps(generate *g)
{
    bs_driver driver = {0};
    if (g->leader) driver = bs_generate_driver(g);
    bs_status status = bs_engine_run(g->engine, g->leader ? &driver : NULL);
    if (status != BS_STATUS_OK) return bs_cli_end_job(g->comm, status);
    return g->is_batch ? BS_STATUS_OK : sum_cache_bytes(g);
}

static bs_status wait_for_snapshot(generate *g)
{
    bool ended = false;
    bs_snapshot_result result;
    BS_TRY(bs_snapshots_wait(g->keeper.machine, &ended, &result));
    if (ended) bs_generate_snapshot_ended(g, &result);
    return BS_STATUS_OK;
}

static bs_status open_dir(generate *g, const order *o)
{
    keeper *k = &g->keeper;
    bs_snapshot_dir **dir = &k->dirs[o->slot];
    memcpy(k->paths[o->slot], o->path, sizeof o->path);
    BS_TRY(wait_for_snapshot(g)); /* one of the directory before may be under way */
    bs_engine_set_snapshot_dir(g->engine, (int)o->slot, NULL);
    bs_snapshot_dir_close(*dir);
    *dir = NULL;
    BS_TRY(bs_snapshot_dir_open(k->machine, o->path, BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, dir));
    bs_engine_set_snapshot_dir(g->engine, (int)o->slot, *dir);
    return BS_STATUS_OK;
}

/* Rank 0's ids as a bitmap on every rank: what a repetition penalty needs of them. */
static bs_status adopt(generate *g, const order *o)
{
    const size_t bytes = bs_engine_seen_bytes(g->engine);
    uint64_t *seen = calloc(1, bytes);
    BS_TRY(bs_comm_agree(g->comm,
                         seen ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "no memory to restore a sequence")));
    const int32_t *ids = g->keeper.seen_ids;
    for (int64_t i = g->keeper.seen_first; g->leader && i < g->keeper.first_pos; i++)
        seen[ids[i] / 64] |= (uint64_t)1 << ids[i] % 64;
    bs_status status = bs_comm_bcast_host(g->comm, seen, bytes, 0);
    if (status == BS_STATUS_OK) status = bs_engine_adopt(g->engine, (int)o->slot, &o->sampling, seen);
    free(seen);
    return bs_comm_agree(g->comm, status);
}

static bs_status restore(generate *g, const order *o)
{
    keeper *k = &g->keeper;
    const bs_snapshot_restore_args args = {.seq = (int)o->slot,
                                           .n_reserved = o->n_tokens,
                                           .exact = o->exact,
                                           .n_common = o->n_common,
                                           .start_s = (int)o->start_s};
    BS_TRY(bs_snapshot_restore(k->dirs[o->slot], bs_engine_stream(g->engine), &args, &k->first_pos));
    return adopt(g, o);
}

static bs_status take(generate *g, const order *o)
{
    keeper *k = &g->keeper;
    bool ended = false;
    k->taken = (bs_snapshot_result){.status = BS_STATUS_INTERNAL};
    BS_TRY(wait_for_snapshot(g));
    BS_TRY(bs_engine_capture(g->engine, (int)o->slot));
    if (g->leader) {
        const int32_t *tokens;
        bs_snapshot_state state;
        kept *one = k->first;
        while (one && bs_request_slot(one->request) != o->slot) one = one->next;
        if (!one) {
            bs_snapshot_give_up(k->dirs[o->slot]);
        } else {
            const int64_t n = bs_request_snapshot(one->request, &tokens, &state);
            bs_generate_add_state(g, one, &state);
            if (bs_snapshot_commit(k->dirs[o->slot], tokens, n, &state) != BS_STATUS_OK) bs_error_flush();
        }
    }
    BS_TRY(bs_snapshots_wait(k->machine, &ended, &k->taken));
    if (ended) bs_generate_snapshot_ended(g, &k->taken);
    return BS_STATUS_OK;
}

static bs_status carry_out(generate *g, const order *o)
{
    switch ((order_kind)o->kind) {
    case ORDER_RUN: return run_steps(g);
    case ORDER_OPEN: return open_dir(g, o);
    case ORDER_RESTORE: return restore(g, o);
    case ORDER_TAKE: return take(g, o);
    case ORDER_END: break;
    }
    return g->keeper.on ? wait_for_snapshot(g) : BS_STATUS_OK;
}

bs_status bs_generate_follow_orders(generate *g)
{
    order o = {0};
    do {
        memset(&o, 0, sizeof o);
        BS_TRY(bs_comm_agree(g->comm, g->leader ? g->next(g, &o) : BS_STATUS_OK));
        BS_TRY(bs_comm_bcast_host(g->comm, &o, sizeof o, 0));
        BS_TRY(carry_out(g, &o));
    } while (o.kind != ORDER_END);
    return BS_STATUS_OK;
}
