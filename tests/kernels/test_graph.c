/* test_graph.c: graphs, overlap, timers and the streaming read, on the CPU and on the first GPU if there is
 * one.
 *
 * The read XORs what it saw into a word, so its answer is exact, and launching a graph of it a second time
 * gives 0 again: a launch that did nothing, or ran twice, shows. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum { MOST_WORDS = (3 << 20) / 4 + 4 * 1237 };

typedef struct fixture {
    bs_device *device;
    bs_stream *stream;
    bs_buffer *data, *sink;
    uint32_t *host;
} fixture;

static bool open_fixture(fixture *f, bs_device_kind kind)
{
    if (kind == BS_DEVICE_CUDA && bs_device_count_gpus() == 0) return false;
    bs_device_config config = {.kind = kind, .n_threads = 2};
    assert_int_equal(bs_device_open(&config, &f->device), BS_STATUS_OK);
    assert_int_equal(bs_stream_create(f->device, &f->stream), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(f->device, MOST_WORDS * 4, "data", &f->data), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(f->device, 4, "sink", &f->sink), BS_STATUS_OK);
    f->host = malloc(MOST_WORDS * 4);
    assert_non_null(f->host);
    uint32_t seed = 1;
    for (int i = 0; i < MOST_WORDS; i++) f->host[i] = seed = seed * 1664525u + 1013904223u;
    assert_int_equal(bs_copy_to_device(f->stream, bs_buffer_at(f->data, 0), f->host, MOST_WORDS * 4), 0);
    return true;
}

static void close_fixture(fixture *f)
{
    bs_buffer_free(f->data);
    bs_buffer_free(f->sink);
    bs_stream_destroy(f->stream);
    bs_device_close(f->device);
    free(f->host);
}

static void set_sink(fixture *f, uint32_t value)
{
    assert_int_equal(bs_copy_to_device(f->stream, bs_buffer_at(f->sink, 0), &value, 4), BS_STATUS_OK);
    assert_int_equal(bs_stream_sync(f->stream), BS_STATUS_OK);
}

static uint32_t get_sink(fixture *f)
{
    uint32_t value;
    assert_int_equal(bs_copy_to_host(f->stream, &value, bs_buffer_at(f->sink, 0), 4), BS_STATUS_OK);
    assert_int_equal(bs_stream_sync(f->stream), BS_STATUS_OK);
    return value;
}

static uint32_t xor_of(const fixture *f, size_t first, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = first; i < first + n; i++) sum ^= f->host[i];
    return sum;
}

static bs_status read_all(fixture *f)
{
    return bs_op_stream_read(f->stream, bs_buffer_at(f->data, 0), MOST_WORDS * 4, bs_buffer_at(f->sink, 0));
}

static void check_read(bs_device_kind kind)
{
    fixture f;
    if (!open_fixture(&f, kind)) return;
    const size_t n_words[] = {0, 4, 8, 60, 64, 68, 4092, 4096, 4100, 262144, 262148, MOST_WORDS - 4};
    for (size_t i = 0; i < sizeof n_words / sizeof *n_words; i++)
        for (size_t first = 0; first <= 4; first += 4) {
            set_sink(&f, 0xa5a5a5a5u);
            assert_int_equal(bs_op_stream_read(f.stream, bs_buffer_at(f.data, 4 * first), 4 * n_words[i],
                                               bs_buffer_at(f.sink, 0)),
                             BS_STATUS_OK);
            assert_int_equal(get_sink(&f), 0xa5a5a5a5u ^ xor_of(&f, first, n_words[i]));
        }
    const struct {
        size_t offset, bytes;
    } bad[] = {{8, 16}, {0, 20}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(bs_op_stream_read(f.stream, bs_buffer_at(f.data, bad[i].offset), bad[i].bytes,
                                           bs_buffer_at(f.sink, 0)),
                         BS_STATUS_RANGE);
    assert_int_equal(bs_op_stream_read(f.stream, bs_buffer_at(f.data, 0), 16, NULL), BS_STATUS_RANGE);
    bs_error_clear();
    close_fixture(&f);
}

static void check_timer(bs_device_kind kind)
{
    fixture f;
    if (!open_fixture(&f, kind)) return;
    bs_timer *timer;
    double ms = -1;
    assert_int_equal(bs_timer_create(f.device, &timer), BS_STATUS_OK);
    assert_int_equal(bs_timer_ms(timer, &ms), BS_STATUS_RANGE);
    assert_true(ms == -1);
    bs_error_clear();
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    assert_int_equal(bs_timer_start(f.stream, timer), BS_STATUS_OK);
    assert_int_equal(bs_timer_ms(timer, &ms), BS_STATUS_RANGE);
    bs_error_clear();
    for (int i = 0; i < 50; i++) assert_int_equal(read_all(&f), BS_STATUS_OK);
    assert_int_equal(bs_timer_stop(f.stream, timer), BS_STATUS_OK);
    assert_int_equal(bs_timer_ms(timer, &ms), BS_STATUS_OK);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double outside = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) * 1e-6;
    assert_true(ms > 0.01 && ms <= outside * 1.01 + 0.01); /* 157 MB: 32 us at 5 TB/s */
    bs_timer_destroy(timer);
    bs_timer_destroy(NULL);
    close_fixture(&f);
}

static void test_cpu(void **state)
{
    (void)state;
    check_read(BS_DEVICE_CPU);
    check_timer(BS_DEVICE_CPU);
    fixture f;
    assert_true(open_fixture(&f, BS_DEVICE_CPU));
    bs_graph *graph = NULL;
    assert_int_equal(bs_capture_begin(f.stream), BS_STATUS_UNSUPPORTED);
    assert_int_equal(bs_capture_end(f.stream, &graph), BS_STATUS_UNSUPPORTED);
    assert_null(graph);
    bs_error_clear();
    bs_graph_destroy(NULL);
    bs_stream_set_overlap(f.stream, true);
    set_sink(&f, 0);
    assert_int_equal(read_all(&f), BS_STATUS_OK);
    assert_int_equal(get_sink(&f), xor_of(&f, 0, MOST_WORDS));
    close_fixture(&f);
}

static void test_gpu_graph(void **state)
{
    (void)state;
    fixture f;
    if (!open_fixture(&f, BS_DEVICE_CUDA)) skip();
    check_read(BS_DEVICE_CUDA);
    check_timer(BS_DEVICE_CUDA);
    const uint32_t all = xor_of(&f, 0, MOST_WORDS);
    for (int overlap = 0; overlap <= 1; overlap++) {
        bs_graph *graph;
        bs_stream_set_overlap(f.stream, overlap);
        set_sink(&f, 0);
        assert_int_equal(bs_capture_begin(f.stream), BS_STATUS_OK);
        for (int i = 0; i < 3; i++) assert_int_equal(read_all(&f), BS_STATUS_OK);
        assert_int_equal(bs_capture_end(f.stream, &graph), BS_STATUS_OK);
        assert_int_equal(get_sink(&f), 0); /* recorded, not run */
        for (int launch = 1; launch <= 4; launch++) {
            assert_int_equal(bs_graph_launch(f.stream, graph), BS_STATUS_OK);
            assert_int_equal(get_sink(&f), launch % 2 ? all : 0);
        }
        /* Contents are read at launch. */
        uint32_t changed = f.host[0] ^ 1;
        assert_int_equal(bs_copy_to_device(f.stream, bs_buffer_at(f.data, 0), &changed, 4), BS_STATUS_OK);
        assert_int_equal(bs_graph_launch(f.stream, graph), BS_STATUS_OK);
        assert_int_equal(get_sink(&f), all ^ 1);
        assert_int_equal(bs_copy_to_device(f.stream, bs_buffer_at(f.data, 0), f.host, 4), BS_STATUS_OK);
        bs_graph_destroy(graph);
    }
    /* A synchronisation spoils a capture; the stream must live on. */
    bs_graph *graph = NULL;
    assert_int_equal(bs_capture_begin(f.stream), BS_STATUS_OK);
    assert_int_not_equal(bs_stream_sync(f.stream), BS_STATUS_OK);
    assert_int_not_equal(bs_capture_end(f.stream, &graph), BS_STATUS_OK);
    bs_error_clear();
    assert_null(graph);
    set_sink(&f, 0);
    assert_int_equal(read_all(&f), BS_STATUS_OK);
    assert_int_equal(get_sink(&f), all);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cpu), cmocka_unit_test(test_gpu_graph)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
