/* engine.c: opening and closing an engine: weights, cache, regions, host memory; all of it at once, none
 * later.
 *
 * Opening is local work followed by one agreement: a rank that fails (no memory, a bad option) makes all
 * fail.
 */
#include "src/engine/cost.h"
#include "src/engine/engine_private.h"

#include <stdlib.h>
#include <string.h>

static bs_status take_device_memory(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    BS_TRY(bs_buffer_alloc(e->device, l->act_at.bytes, "activations", &e->activations));
    if (l->work.bytes > 0) BS_TRY(bs_buffer_alloc(e->device, l->work.bytes, "workspace", &e->workspace));
    BS_TRY(bs_buffer_alloc(e->device, l->logits_at.bytes, "logits", &e->logits));
    BS_TRY(bs_buffer_alloc(e->device, (size_t)l->max_seqs * l->seen_bytes, "ids seen", &e->seen));
    return bs_buffer_alloc(e->device, l->input_at.bytes, "step inputs", &e->inputs);
}

static bs_status take_host_memory(bs_engine *e)
{
    const bs_engine_layout *l = &e->layout;
    size_t b = (size_t)l->max_seqs, plan_bytes = bs_plan_bytes(&e->limits);
    e->vocab = calloc((size_t)l->n_ranks, sizeof *e->vocab);
    e->seqs = calloc(b, sizeof *e->seqs);
    e->step_seqs = calloc(b, sizeof *e->step_seqs);
    e->token = calloc(b, sizeof *e->token);
    e->logprob = calloc(b, sizeof *e->logprob);
    e->plans[0] = calloc(1, plan_bytes);
    e->plans[1] = calloc(1, plan_bytes);
    e->spans = calloc(b, sizeof *e->spans);
    for (int i = 0; i < 2; i++) e->flights[i].row_seq = calloc(b, sizeof *e->flights[i].row_seq);
    bool have_all = e->vocab && e->spans && e->seqs && e->step_seqs && e->token && e->logprob &&
                    e->plans[0] && e->plans[1] && e->flights[0].row_seq && e->flights[1].row_seq;
    if (l->all_logits_bytes > 0) e->all_logits = malloc(l->all_logits_bytes);
    if (!have_all || (l->all_logits_bytes > 0 && !e->all_logits))
        return bs_fail(BS_STATUS_NOMEM, "no memory for the engine: %zu bytes of the host",
                       l->host_bytes + l->all_logits_bytes);
    return BS_STATUS_OK;
}

static bs_status open_flight(bs_engine *e, bs_engine_flight *flight)
{
    void *staging, *drawn;
    BS_TRY(bs_host_alloc(e->device, e->layout.input_at.bytes, "step inputs", &staging));
    flight->staging = staging;
    BS_TRY(bs_host_alloc(e->device, bs_engine_drawn_bytes(&e->layout), "drawn tokens", &drawn));
    flight->drawn = drawn;
    return bs_timer_create(e->device, &flight->timer);
}

static void close_flight(bs_engine *e, bs_engine_flight *flight)
{
    bs_timer_destroy(flight->timer);
    bs_host_free(e->device, flight->drawn);
    bs_host_free(e->device, flight->staging);
    free(flight->row_seq);
}

static bs_status open_local(bs_engine *e, void (*progress)(void *context, uint64_t done, uint64_t total),
                            void *context)
{
    BS_TRY(bs_engine_lay_out(e->model, e->device, e->grid, &e->config, &e->layout));
    BS_TRY(bs_engine_check_memory(e->model, e->device, e->grid, &e->config));
    BS_TRY(take_host_memory(e));
    int64_t most;
    BS_TRY(bs_engine_vocab_shards(e->model, e->grid, e->config.merge, e->vocab, &most));
    BS_TRY(bs_stream_create(e->device, &e->stream));
    bs_stream_set_overlap(e->stream, true);
    for (int i = 0; i < 2; i++) BS_TRY(open_flight(e, &e->flights[i]));
    BS_TRY(bs_cache_open(e->device, e->stream, &e->layout.cache, &e->cache));
    BS_TRY(take_device_memory(e));
    const bs_engine *other = e->config.weights_of;
    if (!other)
        return bs_weights_place(e->model, e->device, &e->layout.shard, e->layout.act, progress, context,
                                &e->weights);
    if (other->model != e->model || other->device != e->device || other->layout.act != e->layout.act ||
        memcmp(&other->layout.shard, &e->layout.shard, sizeof e->layout.shard) != 0)
        return bs_fail(BS_STATUS_INTERNAL, "weights_of: an engine of other weights");
    e->weights = other->weights;
    return BS_STATUS_OK;
}

bs_status bs_engine_open(const bs_model *model, bs_device *device, bs_comm *comm,
                         const bs_engine_config *config,
                         void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                         bs_engine **out)
{
    bs_engine *e = calloc(1, sizeof *e);
    bs_status status = BS_STATUS_OK;
    if (e) {
        e->model = model;
        e->desc = bs_model_get_desc(model);
        e->device = device;
        e->comm = comm;
        e->grid = bs_comm_grid(comm);
        e->config = *config;
        e->is_async = bs_device_get_info(device)->kind != BS_DEVICE_CPU;
        e->limits = (bs_plan_limits){config->max_seqs, config->max_step_tokens};
        status = open_local(e, progress, context);
    } else {
        status = bs_fail(BS_STATUS_NOMEM, "no memory for the engine");
    }
    BS_TRY_GOTO(bs_comm_agree(comm, status), err_close);
    *out = e;
    return BS_STATUS_OK;

err_close:
    bs_engine_close(e);
    return status;
}

void bs_engine_close(bs_engine *e)
{
    if (!e) return;
    bs_engine_free_graphs(e);
    if (!e->config.weights_of) bs_weights_free(e->weights);
    for (int i = 0; i < 2; i++) close_flight(e, &e->flights[i]);
    bs_buffer_free(e->inputs);
    bs_buffer_free(e->seen);
    bs_buffer_free(e->logits);
    bs_buffer_free(e->workspace);
    bs_buffer_free(e->activations);
    bs_cache_close(e->cache);
    bs_stream_destroy(e->stream);
    free(e->plans[1]);
    free(e->plans[0]);
    free(e->all_logits);
    free(e->logprob);
    free(e->token);
    free(e->step_seqs);
    free(e->spans);
    free(e->seqs);
    free(e->vocab);
    free(e);
}

const bs_plan_limits *bs_engine_limits(const bs_engine *engine)
{
    return &engine->limits;
}

const bs_cache *bs_engine_cache(const bs_engine *engine)
{
    return engine->cache;
}

const bs_engine_config *bs_engine_get_config(const bs_engine *engine)
{
    return &engine->config;
}

const bs_model *bs_engine_model(const bs_engine *engine)
{
    return engine->model;
}

bs_comm *bs_engine_comm(const bs_engine *engine)
{
    return engine->comm;
}

static bs_cost cost_of(const bs_engine *e)
{
    return bs_cost_of(e->desc, bs_device_get_info(e->device), e->grid->size);
}

int bs_engine_prompt_cut(const bs_engine *e, int64_t position, double max_step_ms)
{
    const bs_cost cost = cost_of(e);
    return bs_cost_cut(&cost, position, e->config.chunk_tokens, bs_engine_max_cut(e), max_step_ms);
}

double bs_engine_prompt_share(const bs_engine *e, int64_t position, int64_t n_done, int64_t n_tokens)
{
    const bs_cost cost = cost_of(e);
    return bs_cost_share(&cost, position, n_done, n_tokens);
}

uint64_t bs_engine_step_weight_bytes(const bs_engine *engine)
{
    return bs_weights_step_bytes(engine->weights);
}

void bs_engine_set_mark(bs_engine *engine, bs_engine_mark *mark, void *context)
{
    engine->mark = mark;
    engine->mark_context = context;
}

bs_range bs_engine_vocab(const bs_engine *engine)
{
    return engine->layout.shard.vocab;
}
