/* forced.h: a given text through an engine, as if the model had drawn it (teacher forcing): for `eval` and tests.
 *
 * Every rank makes the same plans from the same ids, so nothing is broadcast and no scheduler is needed. One text at a
 * time, in sequence slot 0. The engine's chunk_tokens is C of DESIGN §4: with 128 each position sees the cache exactly
 * as decode would, whatever the steps within a chunk.
 */
#ifndef BS_ENGINE_FORCED_H
#define BS_ENGINE_FORCED_H

#include "src/engine/engine.h"

typedef struct bs_forced bs_forced;

/* The engine must outlive it. Local. */
bs_status bs_forced_open(bs_engine *engine, bs_forced **out);
void bs_forced_close(bs_forced *forced);
/* A text of n_tokens begins at position 0 with the next step; the one before is freed then. */
void bs_forced_begin(bs_forced *forced, int64_t n_tokens);
/* Position of the next step. */
int64_t bs_forced_position(const bs_forced *forced);
/* How many tokens that step may take on the way to position `end`: up to the next multiple of chunk_tokens, the
 * engine's max_step_tokens at most. */
int bs_forced_next(const bs_forced *forced, int64_t end);
/* One step of the text's next n tokens; flags as of a bs_plan_seq. Collective. */
bs_status bs_forced_step(bs_forced *forced, const int32_t *ids, int n, int flags, bs_step_result *out);

#endif
