/* test_quants.c: weight blocks against the gguf package's values (tests/data/quants.json), bit for bit;
 * encoders by the error that their step allows. */
#include "kernels/cpu/gemm.h"
#include "kernels/kernels.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static size_t from_hex(const char *text, uint8_t *out)
{
    size_t n = strlen(text) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        assert_int_equal(sscanf(text + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
    return n;
}

static bs_type type_of(const char *name)
{
    for (int t = 0; t < BS_TYPE_COUNT; t++)
        if (strcmp(bs_type_name((bs_type)t), name) == 0) return (bs_type)t;
    fail_msg("no type %s", name);
    return BS_TYPE_F32;
}

typedef void expand_fn(bs_type type, const uint8_t *row, int64_t n_blocks, float *out);

static void test_golden(void **state)
{
    char path[4096];
    const char *src = getenv("top_srcdir");
    snprintf(path, sizeof path, "%s/tests/data/quants.json", src ? src : ".");
    json_t *root = json_load_file(path, 0, NULL), *entry;
    const char *name;
    assert_non_null(root);
    assert_int_equal(json_object_size(root), BS_TYPE_COUNT - 1); /* F32 needs no proof */
    expand_fn *expands[] = {
        bs_row_expand_scalar,
#if defined(__x86_64__)
        __builtin_cpu_supports("avx2") ? bs_row_expand_avx2 : NULL,
        __builtin_cpu_supports("avx512bw") ? bs_row_expand_avx512 : NULL
#endif
    };
    json_object_foreach(root, name, entry)
    {
        bs_type type = type_of(name);
        uint8_t blocks[4096];
        float values[1024];
        size_t bytes = from_hex(json_string_value(json_object_get(entry, "blocks")), blocks);
        const char *want = json_string_value(json_object_get(entry, "values"));
        int64_t n = (int64_t)bytes / bs_type_block_bytes(type) * bs_type_block(type);
        assert_int_equal(strlen(want), n * 8);
        for (size_t e = 0; e < sizeof expands / sizeof expands[0]; e++) {
            if (!expands[e]) continue;
            memset(values, 0xff, sizeof values);
            expands[e](type, blocks, n / bs_type_block(type), values);
            for (int64_t i = 0; i < n; i++) {
                char bits[9];
                snprintf(bits, sizeof bits, "%08x", bs_f32_bits(values[i]));
                if (strncmp(bits, want + 8 * i, 8) != 0) fail_msg("%s[%d] is %s", name, (int)i, bits);
            }
        }
    }
    json_decref(root);
}

static void test_encoders(void **state)
{
    float x[256], y[256];
    uint8_t blocks[2048];
    uint32_t seed = 7;
    for (int i = 0; i < 256; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)seed * 0x1p-31f * (i < 128 ? 3 : 0.01f);
    }
    /* error of one step: half of it, and what an fp16 scale adds over 15 or 127 steps */
    const struct {
        bs_type type;
        float relative; /* to the block's range 2 · 3 or 2 · 0.01 */
    } cases[] = {{BS_TYPE_F32, 0},       {BS_TYPE_F16, 5e-4f},    {BS_TYPE_BF16, 4e-3f},
                 {BS_TYPE_Q8_0, 3e-3f},  {BS_TYPE_Q4_0, 0.075f},  {BS_TYPE_Q4_1, 0.036f},
                 {BS_TYPE_Q5_0, 0.037f}, {BS_TYPE_Q5_1, 0.0175f}, {BS_TYPE_MXFP4, 0.17f}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        assert_int_equal(bs_quantize_row(cases[c].type, x, blocks, 256), BS_STATUS_OK);
        assert_int_equal(bs_dequantize_row(cases[c].type, blocks, y, 256), BS_STATUS_OK);
        for (int i = 0; i < 256; i++)
            if (!(fabsf(x[i] - y[i]) <= cases[c].relative * (i < 128 ? 6 : 0.02f)))
                fail_msg("%s[%d]: %g became %g", bs_type_name(cases[c].type), i, x[i], y[i]);
    }
    memset(x, 0, sizeof x);
    for (bs_type t = 0; t < BS_TYPE_COUNT; t++) {
        if (bs_quantize_row(t, x, blocks, 256) != BS_STATUS_OK) {
            assert_int_equal(bs_type_block(t), 256);
            bs_error_clear();
            continue;
        }
        assert_int_equal(bs_dequantize_row(t, blocks, y, 256), BS_STATUS_OK);
        for (int i = 0; i < 256; i++) assert_true(y[i] == 0);
    }
    assert_int_equal(bs_dequantize_row(BS_TYPE_Q4_1, blocks, y, 33), BS_STATUS_RANGE);
    bs_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_encoders)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
