/* test_progress.c: the texts of progress.h, and when lines reach standard error. */
#include "config.h"

#include "src/base/log.h"
#include "src/base/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static void expect_bytes(uint64_t n, const char *expected)
{
    char text[32];
    memset(text, '?', sizeof text);
    bs_format_bytes(n, text, sizeof text);
    assert_string_equal(text, expected);
}

static void test_bytes(void **state)
{
    (void)state;
    expect_bytes(0, "0 B");
    expect_bytes(1, "1 B");
    expect_bytes(999, "999 B");
    expect_bytes(1000, "0.98 KiB");
    expect_bytes(1024, "1.00 KiB");
    expect_bytes(10 * 1024 + 512, "10.5 KiB");
    expect_bytes(100 << 10, "100 KiB");
    expect_bytes(1023 << 10, "1.00 MiB");
    expect_bytes(4563402752ull, "4.25 GiB");
    expect_bytes(UINT64_MAX, "16.0 EiB");
    char small[5];
    bs_format_bytes(4563402752ull, small, sizeof small);
    assert_string_equal(small, "4.25");
}

static void test_format(void **state)
{
    (void)state;
    bs_progress p = {.what = "prefill", .unit = "tokens", .total = 2048};
    char text[160];
    bs_progress_format(&p, 512, 2, false, text, sizeof text);
    assert_string_equal(text, "prefill:  25%  512 of 2048 tokens, 256 tokens/s, 0:06 left");
    p.share = 0.01; /* the dear tokens are still to come */
    bs_progress_format(&p, 512, 2, false, text, sizeof text);
    assert_string_equal(text, "prefill:  25%  512 of 2048 tokens, 256 tokens/s, 3:18 left");
    p.share = 0.0004;
    bs_progress_format(&p, 512, 2, true, text, sizeof text);
    assert_string_equal(
        text, "prefill ######..................  25%  512 of 2048 tokens, 256 tokens/s, 1:23:18 left");
    p.share = 1e-9; /* no more than a guess */
    bs_progress_format(&p, 512, 2, false, text, sizeof text);
    assert_string_equal(text, "prefill:  25%  512 of 2048 tokens, 256 tokens/s");
    p.share = 0;
    bs_progress_format(&p, 2048, 0, true, text, sizeof text);
    assert_string_equal(text, "prefill ######################## 100%  2048 of 2048 tokens, 0 tokens/s");
    bs_progress_format(&p, 0, 1, true, text, sizeof text);
    assert_string_equal(text, "prefill ........................   0%  0 of 2048 tokens, 0 tokens/s");
    p = (bs_progress){.what = "load", .unit = "B", .total = 3 << 20};
    bs_progress_format(&p, 1 << 20, 0.5, false, text, sizeof text);
    assert_string_equal(text, "load:  33%  1.00 MiB of 3.00 MiB, 2.00 MiB/s");
    /* Nothing to do is done; more than all is all. */
    p.total = 0;
    bs_progress_format(&p, 0, 1, false, text, sizeof text);
    assert_string_equal(text, "load: 100%  0 B of 0 B, 0 B/s");
    p.total = 10;
    bs_progress_format(&p, 20, 1, true, text, sizeof text);
    assert_non_null(strstr(text, "######################## 100%"));
    char small[8];
    bs_progress_format(&p, 20, 1, true, small, sizeof small);
    assert_int_equal(strlen(small), sizeof small - 1);
}

/* Standard error into a file and back. */
static int saved = -1;
static FILE *catch_stderr(void)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    return file;
}

static void release_stderr(FILE *file, char *text, size_t bytes)
{
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(file);
    text[fread(text, 1, bytes - 1, file)] = 0;
    fclose(file);
}

/* In a log: nothing in the first ten seconds, then a line, one line at the end, and only one. */
static void test_log_lines(void **state)
{
    (void)state;
    char text[512];
    bs_progress p;
    FILE *file = catch_stderr();
    bs_progress_begin(&p, "load", "B", 4096, true);
    for (int i = 0; i < 4; i++) bs_progress_update(&p, (uint64_t)i * 1024);
    p.last_s -= 11; /* as if the last line were long ago */
    bs_progress_update(&p, 2048);
    p.start_s -= 11;
    bs_progress_end(&p, 4096);
    bs_progress_end(&p, 4096);
    bs_progress_update(&p, 4096);
    release_stderr(file, text, sizeof text);
    const char *first = strstr(text, "bitshard: load:  50%  2.00 KiB of 4.00 KiB");
    assert_ptr_equal(first, text);
    const char *second = strstr(text, "bitshard: load: 100%  4.00 KiB of 4.00 KiB");
    assert_ptr_equal(second, strchr(text, '\n') + 1);
    assert_ptr_equal(strchr(second, '\n') + 1, text + strlen(text));
}

/* Nothing when it is switched off, and nothing in a log for what is done at once. */
static void test_silent(void **state)
{
    (void)state;
    char text[512];
    bs_progress p;
    FILE *file = catch_stderr();
    bs_progress_begin(&p, "load", "B", 4096, false);
    p.last_s -= 11;
    p.start_s -= 11;
    bs_progress_update(&p, 2048);
    bs_progress_end(&p, 4096);
    bs_progress_begin(&p, "load", "B", 4096, true);
    bs_progress_end(&p, 4096);
    release_stderr(file, text, sizeof text);
    assert_string_equal(text, "");
}

/* A callback that counts: nothing of an empty load, and a load after another begins anew. */
static void test_follow(void **state)
{
    (void)state;
    bs_progress p = {0};
    bs_progress_follow(&p, "load", 0, 0, false);
    assert_false(p.open);
    for (int load = 1; load <= 2; load++) {
        bs_progress_follow(&p, "load", 0, 10 * (uint64_t)load, false);
        assert_true(p.open);
        assert_int_equal(p.total, 10 * load);
        bs_progress_follow(&p, "load", 5, 10 * (uint64_t)load, false);
        assert_true(p.open);
        bs_progress_follow(&p, "load", 10 * (uint64_t)load, 10 * (uint64_t)load, false);
        assert_false(p.open);
    }
}

static void test_clock(void **state)
{
    (void)state;
    double a = bs_now_s();
    usleep(2000);
    double b = bs_now_s();
    assert_true(b - a >= 0.002 && b - a < 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes),     cmocka_unit_test(test_format),
                                       cmocka_unit_test(test_log_lines), cmocka_unit_test(test_silent),
                                       cmocka_unit_test(test_follow),    cmocka_unit_test(test_clock)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
