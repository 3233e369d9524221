/* pool.c: a few threads that wait for a task, spinning briefly, then yielding, then sleeping.
 *
 * Ops of a decode step follow each other within microseconds, so a sleeping thread would be woken hundreds of
 * times a token: a wake-up costs 5 µs on a quiet machine and 50 in a guest, the op between two tasks takes
 * about as long. So a thread watches for about 20 µs, then offers its core to whoever can run for a few times
 * that, and sleeps: an oversubscribed machine loses little, and an idle program burns nothing. Rejected:
 * OpenMP (a second runtime beside OpenBLAS's, and no say in how it waits). */
#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 500, YIELDS = 100 }; /* a pause is 30 … 45 ns on recent cores, 3 … 10 on older ones */

struct bs_pool {
    int n_threads; /* the caller's included */
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bs_pool_task *task;
    void *context;
    int n_parts;
    atomic_uint round;    /* grows with each task */
    atomic_int next_part; /* to be claimed */
    atomic_int n_busy;    /* threads still in this round */
    atomic_bool stop;
};

static void work(bs_pool *pool)
{
    for (int part; (part = atomic_fetch_add(&pool->next_part, 1)) < pool->n_parts;)
        pool->task(pool->context, part);
}

static void relax(int i)
{
    if (i >= SPINS) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
}

static void wait_for_round(bs_pool *pool, unsigned seen)
{
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (pool->round != seen || pool->stop) return;
        relax(i);
    }
    pthread_mutex_lock(&pool->lock);
    while (pool->round == seen && !pool->stop) pthread_cond_wait(&pool->wake, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

static void *thread_main(void *argument)
{
    bs_pool *pool = argument;
    for (unsigned seen = 0;;) {
        wait_for_round(pool, seen);
        if (pool->stop) return NULL;
        seen = pool->round;
        work(pool);
        atomic_fetch_sub(&pool->n_busy, 1);
    }
}

bs_pool *bs_pool_open(int n_threads)
{
    bs_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->n_threads = 1;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = calloc((size_t)n_threads, sizeof *pool->threads);
    while (pool->threads && pool->n_threads < n_threads) {
        if (pthread_create(&pool->threads[pool->n_threads], NULL, thread_main, pool) != 0) break;
        pool->n_threads++;
    }
    if (pool->n_threads == n_threads) return pool;
    bs_pool_close(pool);
    return NULL;
}

void bs_pool_close(bs_pool *pool)
{
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->n_threads; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    free(pool);
}

int bs_pool_threads(const bs_pool *pool)
{
    return pool->n_threads;
}

void bs_pool_run(bs_pool *pool, int n_parts, bs_pool_task *task, void *context)
{
    if (pool->n_threads == 1 || n_parts <= 1) {
        for (int part = 0; part < n_parts; part++) task(context, part);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->task = task;
    pool->context = context;
    pool->n_parts = n_parts;
    pool->next_part = 0;
    pool->n_busy = pool->n_threads - 1;
    pool->round++;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    work(pool);
    for (int i = 0; pool->n_busy > 0; i += i < SPINS) relax(i);
}
