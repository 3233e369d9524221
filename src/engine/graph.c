/* graph.c: a decode step as one graph, or as graphs between collectives.
 *
 * On a GPU a step of a batch of one is some three hundred kernels of a few microseconds each; queued one by one the host
 * is slower than the device. So a step in which every sequence takes one token is recorded, collectives and all, and
 * replayed: lengths, page lists and ids are read from device memory at each launch. A graph serves every step of as
 * many rows; few sizes are kept, and a batch between two is padded with rows that belong to no sequence. The first
 * step of a size runs op by op, which also makes libraries load what they load late; the second is recorded.
 *
 * Through MPI a collective is the host's work and cannot be recorded: each one ends a graph and begins the next, and a
 * replay carries it out between the two.
 */
#include "src/base/checked.h"
#include "src/engine/engine_private.h"

#include <stdlib.h>

/* 1 2 3 4 6 8 12 16 24 32 …: at most half more than there are. */
int bs_engine_padded_rows(const bs_engine *e, int n)
{
    int size = 1;
    while (size < n) size = size < 2 || (size & (size - 1)) == 0 ? size + (size + 1) / 2 : size / 3 * 4;
    return (int)bs_min_i64(size, e->config.max_seqs);
}

/* The graph for this step's rows; NULL when there is no place for one more. */
static bs_engine_graph *find_graph(bs_engine *e)
{
    for (int i = 0; i < e->n_graphs; i++)
        if (e->graphs[i].n_rows == e->n_rows && e->graphs[i].needs_all == e->needs_all) return &e->graphs[i];
    if (e->n_graphs == BS_ENGINE_MAX_GRAPHS) return NULL;
    e->graphs[e->n_graphs] = (bs_engine_graph){.n_rows = e->n_rows, .needs_all = e->needs_all};
    return &e->graphs[e->n_graphs++];
}

static void free_graph(bs_engine_graph *g)
{
    for (int i = 0; i < g->n_parts; i++) bs_graph_destroy(g->parts[i]);
    free(g->parts);
    free(g->calls);
    g->parts = NULL;
    g->calls = NULL;
    g->n_parts = g->n_calls = g->max_calls = 0;
}

static bs_status make_room(bs_engine_graph *g)
{
    if (g->n_calls < g->max_calls) return BS_STATUS_OK;
    const int most = 2 * g->max_calls + 64;
    bs_collective *calls = realloc(g->calls, (size_t)most * sizeof *calls);
    if (calls) g->calls = calls;
    bs_graph **parts = realloc(g->parts, (size_t)(most + 1) * sizeof *parts);
    if (parts) g->parts = parts;
    if (!calls || !parts) return bs_fail(BS_STATUS_NOMEM, "graph: no memory for %d collectives", most);
    g->max_calls = most;
    return BS_STATUS_OK;
}

/* What is being recorded. */
typedef struct recording {
    bs_engine *engine;
    bs_engine_graph *graph;
    bool is_open;
} recording;

static bs_status begin_part(recording *r)
{
    BS_TRY(make_room(r->graph));
    BS_TRY(bs_capture_begin(r->engine->stream));
    r->is_open = true;
    return BS_STATUS_OK;
}

static bs_status end_part(recording *r)
{
    r->is_open = false;
    BS_TRY(bs_capture_end(r->engine->stream, &r->graph->parts[r->graph->n_parts]));
    r->graph->n_parts++;
    return BS_STATUS_OK;
}

static bs_status cut_at(void *context, const bs_collective *collective)
{
    recording *r = context;
    BS_TRY(end_part(r));
    r->graph->calls[r->graph->n_calls++] = *collective;
    return begin_part(r);
}

static bs_status record(bs_engine *e, bs_engine_graph *g)
{
    recording r = {e, g, false};
    if (!bs_comm_capturable(e->comm)) bs_comm_set_recorder(e->comm, cut_at, &r);
    bs_status status = begin_part(&r);
    if (status == BS_STATUS_OK) status = bs_engine_run_ops(e);
    if (status == BS_STATUS_OK) {
        status = end_part(&r);
    } else if (r.is_open) { /* what failed inside has said so; the stream must be usable again */
        bs_graph *part;
        if (bs_capture_end(e->stream, &part) == BS_STATUS_OK) bs_graph_destroy(part);
    }
    bs_comm_set_recorder(e->comm, NULL, NULL);
    if (status != BS_STATUS_OK) free_graph(g);
    g->is_recorded = status == BS_STATUS_OK;
    return status;
}

bs_status bs_engine_run_decode(bs_engine *e)
{
    bs_engine_graph *g = e->is_async && !e->mark ? find_graph(e) : NULL;
    if (!g || g->n_runs++ == 0) return bs_engine_run_ops(e);
    if (!g->is_recorded) BS_TRY(record(e, g));
    for (int i = 0; i < g->n_calls; i++) {
        BS_TRY(bs_graph_launch(e->stream, g->parts[i]));
        bs_comm_progress(e->comm, e->step, g->calls[i].layer, g->calls[i].phase);
        BS_TRY(bs_comm_run_collective(e->comm, e->stream, &g->calls[i]));
    }
    return bs_graph_launch(e->stream, g->parts[g->n_calls]);
}

void bs_engine_free_graphs(bs_engine *e)
{
    for (int i = 0; i < e->n_graphs; i++) free_graph(&e->graphs[i]);
}
