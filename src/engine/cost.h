/* cost.h: how long a step is predicted to take, and where a prompt is cut because of it. Private to
 * src/engine.
 *
 * Numbers from a fixed table of machines, never from a clock: the same prompt is cut at the same positions in
 * every run and on every rank, so results repeat bit for bit. A cut depends on absolute positions and on
 * nothing else.
 */
#ifndef BS_ENGINE_COST_H
#define BS_ENGINE_COST_H

#include "src/model/model.h"

typedef struct bs_cost {
    double step_ms;  /* a step of any length: the weights are read once */
    double token_ms; /* a token through the dense layers */
    double pair_ms;  /* a query token against a cached one, all layers and heads */
} bs_cost;

bs_cost bs_cost_of(const bs_model_desc *desc, const bs_device_info *device, int n_ranks);
/* What n tokens of a sequence that then holds `context` add to a step. */
double bs_cost_tokens_ms(const bs_cost *cost, int n_tokens, int64_t context);
/* How much of the time of n_tokens from this position on the first n_done take, 0 to 1. */
double bs_cost_share(const bs_cost *cost, int64_t position, int64_t n_done, int64_t n_tokens);
/* How many prompt tokens from position pos on make the next chunk: up to the next multiple of the largest
 * power of two ≤ max_tokens that is predicted to take ≤ max_ms there, and never across a multiple of
 * chunk_tokens. */
int bs_cost_cut(const bs_cost *cost, int64_t pos, int chunk_tokens, int max_tokens, double max_ms);

#endif
