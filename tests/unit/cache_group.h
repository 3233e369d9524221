/* cache_group.h: for the cache's tests: the caches of all sequence shards of a job in one process, each call
 * made on all of them, as ranks do. Whatever must agree between ranks is asserted. Pools lie in CPU memory,
 * one small layer. */
#ifndef BS_TEST_CACHE_GROUP_H
#define BS_TEST_CACHE_GROUP_H

#include "src/cache/cache.h"
#include "src/cache/format.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { GROUP_MAX_SHARDS = 8 };

typedef struct group {
    bs_device *device;
    bs_stream *stream;
    bs_cache_config config; /* seq_shard 0 */
    bs_cache *cache[GROUP_MAX_SHARDS];
} group;

/* One layer, one KV head of 64, stripes of 8, chunks of 2048, one sequence of 8192 tokens; to be changed at
 * will. */
bs_cache_config group_config(const char *format, int seq);
void group_open(group *g, const bs_cache_config *config);
void group_close(group *g);

bs_status group_start(group *g, int seq, int start_s, int64_t n_tokens);
bs_status group_fork(group *g, int src, int dst, int64_t n_tokens);
bs_status group_reuse(group *g, int src, int dst, int64_t n, int64_t n_tokens, int64_t *first_pos);
void group_free(group *g, int seq);
bs_status group_begin(group *g, const bs_cache_step_seq *seqs, int n_seqs);
void group_end(group *g);
/* One sequence, begin and end. */
void group_step(group *g, int seq, int n_tokens, bool prefill);
/* A page on the shard that owns it; asserts that no other shard has it. */
bs_page_view group_page(const group *g, int seq, int64_t page);
int group_owner(const group *g, int seq, int64_t page);
/* The slot's bytes. */
uint64_t *group_slot(const group *g, int shard, bool quantized, uint32_t slot);
size_t group_slot_words(const group *g, bool quantized);

/* xorshift64*; below(n) is 0 … n − 1. */
typedef struct rng {
    uint64_t state;
} rng;
uint64_t rng_below(rng *r, uint64_t n);

/* Like assert_int_equal for a status, with the error line kept by the library. */
#define assert_ok(call) group_assert_ok((call), #call, __FILE__, __LINE__)
void group_assert_ok(bs_status status, const char *call, const char *file, int line);

#endif
