/* stream_read.c: every byte once, by all threads: a CPU rank's read bandwidth.
 *
 * Parts of 1 MiB, so that a thread that starts late takes fewer. Four independent vectors of 64 bytes keep
 * loads in flight whatever the compiler's vector width is, and lines are asked for ahead: hardware prefetch
 * stops at each page of 4 KiB, and without this the kernels, which do the same, beat the figure that they are
 * measured against. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pool.h"

#include <string.h>

enum { PART = 1 << 20, WIDTH = 64, VECTORS = 4, AHEAD = 8192 };

typedef uint32_t words __attribute__((vector_size(WIDTH)));

typedef struct task {
    const char *data;
    size_t bytes;
    uint32_t *sink;
} task;

static uint32_t xor_words(const char *data, size_t bytes)
{
    words sum[VECTORS] = {0}, x;
    size_t at = 0;
    uint32_t lanes[VECTORS * WIDTH / 4], rest = 0, word;
    for (; at + VECTORS * WIDTH <= bytes; at += VECTORS * WIDTH)
        for (int v = 0; v < VECTORS; v++) {
            memcpy(&x, data + at + v * WIDTH, WIDTH);
            __builtin_prefetch(data + at + v * WIDTH + AHEAD, 0, 3);
            sum[v] ^= x;
        }
    for (; at < bytes; at += 4) {
        memcpy(&word, data + at, 4);
        rest ^= word;
    }
    memcpy(lanes, sum, sizeof lanes);
    for (int i = 0; i < VECTORS * WIDTH / 4; i++) rest ^= lanes[i];
    return rest;
}

static void read_part(void *context, int part)
{
    const task *t = context;
    size_t first = (size_t)part * PART, left = t->bytes - first;
    uint32_t x = xor_words(t->data + first, left < PART ? left : PART);
    __atomic_fetch_xor(t->sink, x, __ATOMIC_RELAXED);
}

bs_status bs_cpu_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink)
{
    task t = {data, bytes, sink};
    bs_pool_run(bs_stream_pool(stream), (int)((bytes + PART - 1) / PART), read_part, &t);
    return BS_STATUS_OK;
}
