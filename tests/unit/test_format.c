/* test_format.c: names of KV formats: defaults of every pair, aliases, round trips, and refusals that name
 * the field. */
#include "src/cache/format.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static void assert_same_format(const bs_kv_format *a, const bs_kv_format *b)
{
    assert_int_equal(a->k_bits, b->k_bits);
    assert_int_equal(a->v_bits, b->v_bits);
    assert_int_equal(a->k_per_channel, b->k_per_channel);
    assert_int_equal(a->group, b->group);
    assert_int_equal(a->hadamard, b->hadamard);
    assert_int_equal(a->k_norm, b->k_norm);
    assert_int_equal(a->n_sink, b->n_sink);
    assert_int_equal(a->n_recent, b->n_recent);
    assert_int_equal(a->v_encoder, b->v_encoder);
}

/* What each name stands for, as its canonical name. */
static void test_names(void **state)
{
    static const char *const names[][2] = {
        {"f16", "f16"},
        {"f16vf16", "f16"},
        {"int8", "int8:kc:g128:nohad:s1:r2"},
        {"int4", "int4:kc:g128:nohad:s1:r2"},
        {"int4vint4", "int4:kc:g128:nohad:s1:r2"},
        {"k4v4", "int4:kc:g128:nohad:s1:r2"},
        {"int4vint2", "int4vint2:kc:g128:had:norm:s1:r2"},
        {"k4v2", "int4vint2:kc:g128:had:norm:s1:r2"},
        {"int2", "int2:kc:g32:had:norm:s1:r2"},
        {"k2v2", "int2:kc:g32:had:norm:s1:r2"},
        {"k8v4", "int8vint4:kc:g128:had:norm:s1:r2"},
        {"int8vint4", "int8vint4:kc:g128:had:norm:s1:r2"},
        {"k8v2", "int8vint2:kc:g128:had:norm:s1:r2"},
        {"k2v4", "int2vint4:kc:g128:had:norm:s1:r2"},
        {"int2:nonorm", "int2:kc:g32:had:nonorm:s1:r2"},
        {"int4:norm", "int4:kc:g128:nohad:norm:s1:r2"},
        {"int4:nonorm", "int4:kc:g128:nohad:s1:r2"},
        {"int2:kt:g64:nohad:nonorm:s0:r64", "int2:kt:g64:nohad:nonorm:s0:r64"},
        {"int4:r7:g32", "int4:kc:g32:nohad:s1:r7"},
        {"int8:s64", "int8:kc:g128:nohad:s64:r2"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bs_kv_format format, again;
        char name[BS_KV_FORMAT_NAME];
        memset(&format, 0xa5, sizeof format);
        assert_int_equal(bs_kv_format_parse(names[i][0], &format), BS_STATUS_OK);
        assert_int_equal(format.v_encoder, BS_V_ENCODER_BEST);
        bs_kv_format_name(&format, name);
        assert_string_equal(name, names[i][1]);
        assert_int_equal(bs_kv_format_parse(name, &again), BS_STATUS_OK);
        assert_same_format(&format, &again);
    }
}

/* Every format there is survives name and parse. */
static void test_round_trip(void **state)
{
    static const int bits[] = {8, 4, 2}, groups[] = {32, 64, 128}, pages[] = {0, 1, 2, 9, 64};
    for (int i = 0; i < 3 * 3 * 2 * 3 * 2 * 2 * 5 * 5; i++) {
        int n = i;
        bs_kv_format format = {.v_encoder = BS_V_ENCODER_BEST}, again;
        char name[BS_KV_FORMAT_NAME];
        format.k_bits = bits[n % 3], n /= 3;
        format.v_bits = bits[n % 3], n /= 3;
        format.k_per_channel = n % 2, n /= 2;
        format.group = groups[n % 3], n /= 3;
        format.hadamard = n % 2, n /= 2;
        format.k_norm = n % 2, n /= 2;
        format.n_sink = pages[n % 5], n /= 5;
        format.n_recent = pages[n % 5];
        bs_kv_format_name(&format, name);
        assert_true(strlen(name) < BS_KV_FORMAT_NAME);
        assert_int_equal(bs_kv_format_parse(name, &again), BS_STATUS_OK);
        assert_same_format(&format, &again);
    }
}

static void test_bits(void **state)
{
    static const struct {
        const char *name;
        int head_dim;
        double bits;
    } cases[] = {
        {"f16", 128, 16},
        {"int8", 128, 8.25},
        {"int4", 128, 4.25},
        {"k4v2", 128, 3.3125},
        {"int2", 128, 3.0625},
        {"int4", 64, (4.25 + 4.5) / 2},
        {"int4:kt", 64, 4.5},
        {"int4:kt:g32", 128, 5},
        {"int4:kc:g32", 128, 5},
        {"int4:norm", 128, 4.3125},
        {"int2:g128:nonorm", 64, 2.375},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_kv_format format;
        assert_int_equal(bs_kv_format_parse(cases[i].name, &format), BS_STATUS_OK);
        assert_true(bs_kv_format_bits(&format, cases[i].head_dim) == cases[i].bits); /* exact in binary */
    }
}

/* Refused with one line that holds the whole text and the field at fault; the output stays as it was. */
static void test_refusals(void **state)
{
    static const char *const cases[][2] = {
        {"", "\"\""},
        {"int3", "\"int3\""},
        {"int", "\"int\""},
        {"Int4", "\"Int4\""},
        {"int4 ", "\"int4 \""},
        {"int44", "\"int44\""},
        {"int4v", "\"int4v\""},
        {"int4vint3", "\"int4vint3\""},
        {"int4vint4vint4", "\"int4vint4vint4\""},
        {"k3v2", "\"k3v2\""},
        {"k4", "\"k4\""},
        {"k4v22", "\"k4v22\""},
        {"k16v16", "\"k16v16\""},
        {"f16vint4", "both K and V"},
        {"int4vf16", "both K and V"},
        {"f16:s1", "\"s1\""},
        {"f16:", "\"\""},
        {":int4", "\"\""},
        {"int4:", "field \"\""},
        {"int4::kc", "field \"\""},
        {"int4:kx", "field \"kx\""},
        {"int4:g48", "field \"g48\""},
        {"int4:g", "field \"g\""},
        {"int4:g0128", "field \"g0128\""},
        {"int4:s65", "field \"s65\""},
        {"int4:s-1", "field \"s-1\""},
        {"int4:r 1", "field \"r 1\""},
        {"int4:r99999999999999999999", "field \"r99999999999999999999\""},
        {"int4:hadamard", "field \"hadamard\""},
        {"int4:kc:kt", "field \"kt\": given before"},
        {"int4:s1:r2:s1", "field \"s1\": given before"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_kv_format format, before;
        memset(&format, 0xa5, sizeof format);
        before = format;
        bs_error_clear();
        assert_int_equal(bs_kv_format_parse(cases[i][0], &format), BS_STATUS_USAGE);
        assert_memory_equal(&format, &before, sizeof format);
        assert_non_null(strstr(bs_error_message(), cases[i][0]));
        assert_non_null(strstr(bs_error_message(), cases[i][1]));
        assert_null(strchr(bs_error_message(), '\n'));
    }
    char text[600];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    bs_error_clear();
    bs_kv_format format;
    assert_int_equal(bs_kv_format_parse(text, &format), BS_STATUS_USAGE);
    bs_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
