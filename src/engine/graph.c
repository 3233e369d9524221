/* graph.c: a decode step as one graph.
 *
 * On a GPU a step of a batch of one is some four hundred kernels of a few microseconds each; queued one by one the host
 * is slower than the device. So a step in which every sequence takes one token is recorded, collectives and all, and
 * replayed: lengths, page lists and ids are read from device memory at each launch. A graph serves every step of as
 * many rows; few sizes are kept, and a batch between two is padded with rows that belong to no sequence. The first
 * step of a size runs op by op, which also makes libraries load what they load late; the second is recorded.
 */
#include "src/base/checked.h"
#include "src/engine/engine_private.h"

static bool has_graphs(const bs_engine *e)
{
    return e->is_async && bs_comm_capturable(e->comm);
}

/* 1 2 3 4 6 8 12 16 24 32 …: at most half more than there are. */
int bs_engine_padded_rows(const bs_engine *e, int n)
{
    int size = 1;
    if (!has_graphs(e)) return n;
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

static bs_status record(bs_engine *e, bs_graph **out)
{
    bs_graph *graph = NULL;
    BS_TRY(bs_capture_begin(e->stream));
    bs_status status = bs_engine_run_ops(e), ended = bs_capture_end(e->stream, &graph);
    if (status == BS_STATUS_OK) status = ended;
    if (status != BS_STATUS_OK) {
        if (ended == BS_STATUS_OK) bs_graph_destroy(graph);
        return status;
    }
    *out = graph;
    return BS_STATUS_OK;
}

bs_status bs_engine_run_decode(bs_engine *e)
{
    bs_engine_graph *g = has_graphs(e) && !e->mark ? find_graph(e) : NULL;
    if (!g || g->n_runs++ == 0) return bs_engine_run_ops(e);
    if (!g->graph) BS_TRY(record(e, &g->graph));
    return bs_graph_launch(e->stream, g->graph);
}

void bs_engine_free_graphs(bs_engine *e)
{
    for (int i = 0; i < e->n_graphs; i++) bs_graph_destroy(e->graphs[i].graph);
}
