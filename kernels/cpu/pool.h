/* pool.h: the threads of one CPU rank. Private to kernels/cpu.
 *
 * A task is cut into parts by its caller; which thread does which part is chance, so a part's result must not
 * depend on it. One thread (the default of a rank) means no pool: parts run in order on the caller. */
#ifndef BS_CPU_POOL_H
#define BS_CPU_POOL_H

#include "kernels/backend.h"

typedef struct bs_pool bs_pool;
typedef void bs_pool_task(void *context, int part);

/* NULL when there is no memory or no thread to be had. */
bs_pool *bs_pool_open(int n_threads);
void bs_pool_close(bs_pool *pool);
int bs_pool_threads(const bs_pool *pool);
/* Runs task(context, 0 … n_parts − 1), each once, and returns when all are done. The caller works too. */
void bs_pool_run(bs_pool *pool, int n_parts, bs_pool_task *task, void *context);

static inline bs_pool *bs_stream_pool(const bs_stream *stream)
{
    return (bs_pool *)stream->device->state;
}

#endif
