/* test_fill.c: a sequence that begins with noise: its pages are of the kinds that decoding so many tokens leaves, each
 * shard holds the same bytes as one shard with all heads does, and a decode goes on behind them. */
#include "src/cache/cache.h"
#include "src/cache/format.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { D = 64, L = 2, CONTEXT = 8192, MAX_PART = BS_PAGE_TOKENS * D * 2, SEQ = 1 };

static bs_device *device;
static bs_stream *stream;

static void assert_ok(bs_status status)
{
    if (status != BS_STATUS_OK) fail_msg("%s", bs_error_message());
}

static bs_cache *open_cache(const char *kv, int n_heads, int seq, int shard)
{
    bs_cache_config config = {.shape = {.n_layers = L, .n_kv_heads = n_heads, .head_dim = D},
                              .seq = seq,
                              .seq_shard = shard,
                              .stripe_pages = 2,
                              .chunk_tokens = 1024,
                              .max_seqs = 2,
                              .max_prefill_seqs = 1,
                              .max_step_tokens = 64,
                              .max_context = CONTEXT,
                              .total_tokens = 2 * CONTEXT};
    bs_cache *cache;
    assert_ok(bs_kv_format_parse(kv, &config.shape.format));
    assert_ok(bs_cache_open(device, stream, &config, &cache));
    return cache;
}

static bs_cache *open_filled(const char *kv, int n_heads, int first_head, int seq, int shard, int64_t n,
                             int64_t piece)
{
    bs_cache *cache = open_cache(kv, n_heads, seq, shard);
    assert_ok(bs_cache_seq_start(cache, SEQ, 1 % seq, CONTEXT));
    for (int64_t at = piece; at < n; at += piece)
        assert_ok(bs_cache_seq_fill(cache, stream, SEQ, at, &(bs_cache_noise){9, first_head}));
    assert_ok(bs_cache_seq_fill(cache, stream, SEQ, n, &(bs_cache_noise){9, first_head}));
    assert_int_equal(bs_cache_seq_length(cache, SEQ), n);
    return cache;
}

static void decode(bs_cache *cache, int64_t pos, int n)
{
    assert_ok(bs_cache_step_begin(cache, stream, &(bs_cache_step_seq){SEQ, pos, n, false}, 1));
    assert_ok(bs_cache_step_end(cache, stream));
}

/* Canonical bytes of one (page, layer, head), zeros behind them. */
typedef struct part {
    uint8_t k[MAX_PART], k_meta[MAX_PART], v[MAX_PART], v_meta[MAX_PART];
} part;

static void pack(const bs_cache *cache, bs_page_view view, int layer, int head, part *out)
{
    const bool quantized = view.kind == BS_PAGE_QUANT;
    memset(out, 0, sizeof *out);
    bs_kv_page_ref ref = {view.slot,
                          layer,
                          head,
                          out->k,
                          quantized ? out->k_meta : NULL,
                          out->v,
                          quantized ? out->v_meta : NULL};
    assert_ok(bs_op_pack(stream, &(bs_pack_args){bs_cache_pools(cache), quantized, 1, &ref}));
}

static void kinds_are_those_of_a_decode(void **state)
{
    static const char *const formats[] = {"f16", "int4", "int2:s0:r0", "int8:s3:r1"};
    static const int64_t lengths[] = {1, 127, 128, 129, 383, 384, 385, 4096, 5001};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
            bs_cache *filled = open_filled(formats[i], 1, 0, 1, 0, lengths[j], 1024);
            bs_cache *decoded = open_cache(formats[i], 1, 1, 0);
            assert_ok(bs_cache_seq_start(decoded, SEQ, 0, CONTEXT));
            for (int64_t pos = 0; pos < lengths[j]; pos++) decode(decoded, pos, 1);
            for (int step = 0; step < 2; step++) {
                for (int64_t p = 0; p <= (lengths[j] + 200) / BS_PAGE_TOKENS; p++)
                    assert_int_equal(bs_cache_page(filled, SEQ, p).kind, bs_cache_page(decoded, SEQ, p).kind);
                assert_int_equal(bs_cache_free_slots(filled, false), bs_cache_free_slots(decoded, false));
                assert_int_equal(bs_cache_free_slots(filled, true), bs_cache_free_slots(decoded, true));
                for (int64_t pos = lengths[j]; pos < lengths[j] + 150 && step == 0; pos += 30) {
                    decode(filled, pos, 30);
                    decode(decoded, pos, 30);
                }
            }
            bs_cache_seq_free(filled, SEQ);
            assert_int_equal(bs_cache_free_slots(filled, false), bs_cache_get_memory(filled)->n_f16_slots);
            bs_cache_close(decoded);
            bs_cache_close(filled);
        }
}

static void every_grid_has_the_same_bytes(void **state)
{
    static const char *const formats[] = {"f16", "int4", "k4v2"};
    enum { N = 3000, HEADS = 2, SHARDS = 3 };
    static part a, b, before;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        bs_cache *whole = open_filled(formats[i], HEADS, 0, 1, 0, N, N);
        for (int rank = 0; rank < HEADS * SHARDS; rank++) {
            int head = rank / SHARDS, n_owned = 0;
            bs_cache *mine = open_filled(formats[i], 1, head, SHARDS, rank % SHARDS, N, 512);
            for (int64_t p = 0; p * BS_PAGE_TOKENS < N; p++) {
                bs_page_view all = bs_cache_page(whole, SEQ, p), own = bs_cache_page(mine, SEQ, p);
                if (own.kind == BS_PAGE_NONE) continue;
                n_owned++;
                assert_int_equal(own.kind, all.kind);
                for (int layer = 0; layer < L; layer++) {
                    pack(whole, all, layer, head, &a);
                    pack(mine, own, layer, 0, &b);
                    assert_memory_equal(&a, &b, sizeof a);
                    assert_memory_not_equal(&a, &before, sizeof a);
                    before = a;
                }
            }
            assert_true(n_owned >= 6);
            bs_cache_close(mine);
        }
        bs_cache_close(whole);
    }
}

static void wrong_calls_are_refused(void **state)
{
    bs_cache *cache = open_filled("int4", 1, 0, 1, 0, 300, 300);
    const bs_cache_noise noise = {1, 0};
    assert_int_equal(bs_cache_seq_fill(cache, stream, SEQ, 400, &noise),
                     BS_STATUS_RANGE); /* 300 is no page's end */
    assert_int_equal(bs_cache_seq_fill(cache, stream, 0, 128, &noise), BS_STATUS_RANGE); /* not in use */
    assert_ok(bs_cache_seq_start(cache, 0, 0, 200));
    assert_int_equal(bs_cache_seq_fill(cache, stream, 0, 201, &noise), BS_STATUS_RANGE);
    assert_ok(bs_cache_step_begin(cache, stream, &(bs_cache_step_seq){0, 0, 64, true}, 1));
    assert_ok(bs_cache_step_end(cache, stream));
    assert_int_equal(bs_cache_seq_fill(cache, stream, 0, 128, &noise), BS_STATUS_RANGE); /* real tokens */
    bs_error_clear();
    bs_cache_close(cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(kinds_are_those_of_a_decode),
                                       cmocka_unit_test(every_grid_has_the_same_bytes),
                                       cmocka_unit_test(wrong_calls_are_refused)};
    if (bs_device_open(&(bs_device_config){.n_threads = 1}, &device) != BS_STATUS_OK) return 1;
    if (bs_stream_create(device, &stream) != BS_STATUS_OK) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bs_stream_destroy(stream);
    bs_device_close(device);
    return failed;
}
