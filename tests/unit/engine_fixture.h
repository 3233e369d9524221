/* engine_fixture.h: a tiny model and an engine on it, one rank, for the tests of src/engine.
 *
 * The model is made from a seed into the build directory. Plans are built by hand here: tests of the engine
 * do not depend on the scheduler.
 */
#ifndef BS_TESTS_ENGINE_FIXTURE_H
#define BS_TESTS_ENGINE_FIXTURE_H

#include "src/cache/format.h"
#include "src/engine/engine.h"
#include "src/model/make_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

typedef struct fixture {
    char path[64];
    bs_comm *comm;
    bs_device *device;
    bs_model *model;
    bs_engine *engine;
    bs_plan *plan;
    int64_t step;
    int n_vocab;
} fixture;

static const bs_sampling greedy = {.top_p = 1, .repeat_penalty = 1};

static inline void assert_ok(bs_status status)
{
    if (status != BS_STATUS_OK) bs_error_flush();
    assert_int_equal(status, BS_STATUS_OK);
}

/* Everything but the engine. */
static inline void open_model(fixture *f, const char *name)
{
    bs_grid grid;
    bs_make_model_config shape = {.seed = 7,
                                  .n_layers = 3,
                                  .n_hidden = 192,
                                  .n_heads = 6,
                                  .n_kv_heads = 2,
                                  .head_dim = 64,
                                  .n_ffn = 256,
                                  .n_vocab = 600,
                                  .context_length = 4096,
                                  .type = BS_TYPE_Q8_0,
                                  .tied_output = true,
                                  .rope_theta = 10000};
    snprintf(f->path, sizeof f->path, "%s.tmp.gguf", name);
    assert_ok(bs_make_model(&shape, f->path));
    assert_ok(bs_comm_init(&(int){0}, &(char **){NULL}, &f->comm));
    assert_ok(bs_device_open(&(bs_device_config){.n_threads = 1}, &f->device));
    assert_ok(bs_model_open(f->path, &f->model));
    assert_ok(bs_grid_choose(0, 1, shape.n_kv_heads, NULL, &grid));
    assert_ok(bs_comm_set_grid(f->comm, &grid));
    f->n_vocab = shape.n_vocab;
}

static inline void close_model(fixture *f)
{
    bs_model_close(f->model);
    bs_device_close(f->device);
    bs_comm_finalize(f->comm);
    unlink(f->path);
}

static inline bs_engine_config make_config(const char *kv)
{
    bs_engine_config config = {.merge = BS_MERGE_ALLREDUCE,
                               .stripe_pages = 8,
                               .chunk_tokens = 2048,
                               .max_seqs = 4,
                               .max_prefill_seqs = 4,
                               .max_step_tokens = 512,
                               .max_context = 2048,
                               .total_tokens = 4 * 2048,
                               .all_logits = true};
    assert_ok(bs_kv_format_parse(kv, &config.kv));
    return config;
}

static inline void open_engine(fixture *f, const bs_engine_config *config)
{
    assert_ok(bs_engine_open(f->model, f->device, f->comm, config, NULL, NULL, &f->engine));
    f->plan = malloc(bs_plan_bytes(bs_engine_limits(f->engine)));
    f->step = 0;
}

static inline void close_engine(fixture *f)
{
    free(f->plan);
    bs_engine_close(f->engine);
}

/* ---- plans by hand ----------------------------------------------------------------------------------------
 */

static inline void begin_plan(fixture *f)
{
    bs_plan_clear(f->plan, bs_engine_limits(f->engine), f->step++);
}

static inline bs_plan_start *add_start(fixture *f, int seq, int64_t n_tokens, const bs_sampling *sampling)
{
    bs_plan_start *s = &bs_plan_starts(f->plan)[f->plan->n_starts++];
    *s = (bs_plan_start){
        .seq = seq, .n_tokens = n_tokens, .from = -1, .reuse_tokens = -1, .sampling = *sampling};
    return s;
}

static inline void add_free(fixture *f, int seq)
{
    bs_plan_frees(f->plan)[f->plan->n_frees++] = seq;
}

static inline void add_tokens(fixture *f, int seq, int64_t pos0, const int32_t *ids, int n, int flags)
{
    bs_plan_seqs(f->plan)[f->plan->n_seqs++] = (bs_plan_seq){
        .seq = seq, .n_tokens = n, .flags = flags, .pos0 = pos0, .first_token = f->plan->n_tokens};
    memcpy(bs_plan_tokens(f->plan) + f->plan->n_tokens, ids, (size_t)n * sizeof *ids);
    f->plan->n_tokens += n;
}

static inline bs_step_result run_plan(fixture *f)
{
    bs_step_result result;
    assert_ok(bs_engine_step(f->engine, f->plan, &result));
    return result;
}

/* Ids that look like nothing in particular, the same for the same seed. */
static inline void make_ids(const fixture *f, uint32_t seed, int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)((seed >> 8) % (uint32_t)f->n_vocab);
    }
}

#endif
