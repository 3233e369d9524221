/* test_gguf.c: a small valid file is read back; the same file damaged in one field at a time is refused with
 * that field's name; cut or with any one byte changed it never crashes. BITSHARD_TEST_MODEL: a real file,
 * opened in milliseconds. */
#include "config.h"
#include "src/model/gguf.h"
#include "src/model/gguf_write.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define PATH "test_gguf.tmp.gguf"

typedef struct file {
    uint8_t *bytes;
    size_t n, header;
} file;

/* Keys of every kind the reader indexes, three tensors, data all 0x5a. */
static file make_sample(void)
{
    bs_gguf_writer *w;
    assert_int_equal(bs_gguf_writer_create(&w), BS_STATUS_OK);
    bs_gguf_put_string(w, "general.architecture", "llama");
    bs_gguf_put_u32(w, "general.alignment", 32);
    bs_gguf_put_u32(w, "t.u32", 7);
    bs_gguf_put_f32(w, "t.f32", 0.5f);
    bs_gguf_put_bool(w, "t.bool", true);
    bs_gguf_put_string(w, "t.any", "\xff\xfe raw");
    bs_gguf_put_strings(w, "t.strings", (const char *[]){"a", "", "ccc"}, 3);
    bs_gguf_put_i32s(w, "t.ints", (int32_t[]){258, -3, 2147483647}, 3);
    bs_gguf_put_u32(w, "t.same0", 0);
    bs_gguf_put_u32(w, "t.same1", 1);
    bs_gguf_add_tensor(w, "a.weight", BS_TYPE_F32, 32, 3);
    bs_gguf_add_tensor(w, "b.weight", BS_TYPE_Q4_1, 64, 3);
    bs_gguf_add_tensor(w, "c.weight", BS_TYPE_F32, 5, 0);
    file f = {0};
    assert_int_equal(bs_gguf_writer_header(w, &f.bytes, &f.header), BS_STATUS_OK);
    bs_gguf_writer_free(w);
    f.n = f.header + 384 + 128 + 20; /* 3 × 32 f32; 3 × 2 blocks of 20 B, padded; 5 f32 */
    f.bytes = realloc(f.bytes, f.n);
    assert_non_null(f.bytes);
    memset(f.bytes + f.header, 0x5a, f.n - f.header);
    return f;
}

static void write_file(const uint8_t *bytes, size_t n)
{
    FILE *out = fopen(PATH, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
}

static bs_status open_bytes(const uint8_t *bytes, size_t n, bs_gguf **out)
{
    write_file(bytes, n);
    bs_error_clear();
    return bs_gguf_open(PATH, out);
}

static void test_reads_back(void **state)
{
    file f = make_sample();
    bs_gguf *g;
    assert_int_equal(open_bytes(f.bytes, f.n, &g), BS_STATUS_OK);
    assert_string_equal(bs_gguf_path(g), PATH);
    assert_int_equal(bs_gguf_file_bytes(g), f.n);
    assert_int_equal(bs_gguf_n_tensors(g), 3);
    const bs_tensor *b = bs_gguf_find_tensor(g, "b.weight");
    assert_ptr_equal(b, bs_gguf_tensor_at(g, 1));
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dims[0], 64);
    assert_int_equal(b->dims[1], 3);
    assert_int_equal(b->dims[3], 1);
    assert_int_equal(b->type, BS_TYPE_Q4_1);
    assert_int_equal(b->bytes, 120);
    assert_int_equal(*(const uint8_t *)b->data, 0x5a);
    assert_null(bs_gguf_find_tensor(g, "b.weigh"));
    assert_null(bs_gguf_find_tensor(g, "b.weight "));
    const bs_tensor *a = bs_gguf_find_tensor(g, "a.weight"), *c = bs_gguf_find_tensor(g, "c.weight");
    assert_int_equal((const char *)b->data - (const char *)a->data, 384);
    assert_int_equal((const char *)c->data - (const char *)b->data, 128);
    assert_int_equal(c->n_dims, 1);

    int64_t value = -1, n = -1;
    double real = -1;
    bool found = true, flag = false;
    bs_string text = {0};
    const bs_string *texts;
    const int64_t *ints;
    assert_int_equal(bs_gguf_get_int(g, "t.u32", 7, 7, &value, NULL), BS_STATUS_OK);
    assert_int_equal(value, 7);
    assert_int_equal(bs_gguf_get_int(g, "t.none", 0, 9, &value, &found), BS_STATUS_OK);
    assert_false(found);
    assert_int_equal(value, 7);
    assert_int_equal(bs_gguf_get_float(g, "t.f32", &real, &found), BS_STATUS_OK);
    assert_true(found && real == 0.5);
    assert_int_equal(bs_gguf_get_bool(g, "t.bool", &flag, NULL), BS_STATUS_OK);
    assert_true(flag);
    assert_int_equal(bs_gguf_get_string(g, "t.any", &text, NULL), BS_STATUS_OK);
    assert_int_equal(text.bytes, 6);
    assert_memory_equal(text.text, "\xff\xfe raw", 6);
    assert_int_equal(bs_gguf_get_strings(g, "t.strings", &texts, &n, NULL), BS_STATUS_OK);
    assert_int_equal(n, 3);
    assert_int_equal(texts[1].bytes, 0);
    assert_memory_equal(texts[2].text, "ccc", 3);
    assert_int_equal(bs_gguf_get_ints(g, "t.ints", &ints, &n, NULL), BS_STATUS_OK);
    assert_int_equal(n, 3);
    assert_true(ints[0] == 258 && ints[1] == -3 && ints[2] == INT32_MAX);
    bs_gguf_close(g);
    free(f.bytes);
}

static void expect_failure(bs_status status, bs_status wanted, const char *field, const char *text)
{
    const char *line = bs_error_message();
    if (status != wanted || !strstr(line, field) || !strstr(line, text) || !strstr(line, PATH))
        fail_msg("status %d (wanted %d), line \"%s\" (wanted \"%s\" and \"%s\")", status, wanted, line, field,
                 text);
    bs_error_clear();
}

static void test_lookups_refuse(void **state)
{
    file f = make_sample();
    bs_gguf *g;
    int64_t value, n;
    double real;
    bool flag;
    bs_string text;
    const bs_string *texts;
    const int64_t *ints;
    assert_int_equal(open_bytes(f.bytes, f.n, &g), BS_STATUS_OK);
    const bs_status bad = BS_STATUS_FORMAT;
    expect_failure(bs_gguf_get_int(g, "t.none", 0, 9, &value, NULL), bad, "t.none", "missing");
    expect_failure(bs_gguf_get_int(g, "t.u32", 8, 9, &value, NULL), bad, "t.u32", "is 7");
    expect_failure(bs_gguf_get_int(g, "t.u32", 0, 6, &value, NULL), bad, "t.u32", "0 … 6");
    expect_failure(bs_gguf_get_int(g, "t.bool", 0, 1, &value, NULL), bad, "t.bool", "type bool");
    expect_failure(bs_gguf_get_float(g, "t.u32", &real, NULL), bad, "t.u32", "type u32");
    expect_failure(bs_gguf_get_bool(g, "t.u32", &flag, NULL), bad, "t.u32", "must be bool");
    expect_failure(bs_gguf_get_string(g, "t.f32", &text, NULL), bad, "t.f32", "a string");
    expect_failure(bs_gguf_get_strings(g, "t.ints", &texts, &n, NULL), bad, "t.ints", "array of i32");
    expect_failure(bs_gguf_get_ints(g, "t.strings", &ints, &n, NULL), bad, "t.strings", "array of string");
    bs_gguf_close(g);

    char *at = memmem(f.bytes, f.header, "t.f32", 5);
    float infinite = INFINITY;
    memcpy(at + 9, &infinite, 4);
    assert_int_equal(open_bytes(f.bytes, f.n, &g), BS_STATUS_OK);
    expect_failure(bs_gguf_get_float(g, "t.f32", &real, NULL), bad, "t.f32", "finite");
    bs_gguf_close(g);
    free(f.bytes);
}

/* One damaged field: `width` bytes of `value` at `offset` from the anchor text (or from the start of the
 * file). Offsets of a key's text: its length −8, its type +length, its value behind that; of a tensor's name
 * ("x.weight", 8 B): its length −8, dimensions +8, dims +12 …, then type and offset. */
typedef struct damage {
    const char *anchor;
    int offset, width;
    uint64_t value;
    bs_status status;
    const char *field, *text;
} damage;

#define F BS_STATUS_FORMAT
#define U BS_STATUS_UNSUPPORTED
static const damage damages[] = {
    {NULL, 0, 1, 'X', F, "magic", "not a GGUF"},
    {NULL, 4, 4, 1, U, "version", "is 1"},
    {NULL, 4, 4, 2, U, "version", "is 2"},
    {NULL, 4, 4, 4, U, "version", "is 4"},
    {NULL, 4, 4, 0x03000000, U, "version", "big-endian"},
    {NULL, 8, 8, 65537, F, "number of tensors", "65537"},
    {NULL, 8, 8, UINT64_MAX, F, "number of tensors", "18446744073709551615"},
    {NULL, 8, 8, 1000, F, "number of tensors", "can hold"},
    {NULL, 16, 8, 65537, F, "number of keys", "65537"},
    {NULL, 16, 8, UINT64_MAX, F, "number of keys", "18446744073709551615"},
    {NULL, 16, 8, 1000, F, "number of keys", "can hold"},
    {"t.u32", -8, 8, 0, F, "key 2", "0 bytes"},
    {"t.u32", -8, 8, 1 << 20, F, "key", "needs 1048576"},
    {"t.u32", -8, 8, UINT64_MAX, F, "key", "needs 18446744073709551615"},
    {"t.u32", 2, 1, 0xff, F, "key 2", "UTF-8"},
    {"t.u32", 2, 1, 0, F, "key 2", "UTF-8"},
    {"t.u32", 2, 2, 0x80c0, F, "key 2", "UTF-8"},     /* overlong NUL */
    {"t.u32", 2, 3, 0x80a0ed, F, "key 2", "UTF-8"},   /* a surrogate */
    {"t.u32", 1, 4, 0x808090f4, F, "key 2", "UTF-8"}, /* beyond U+10FFFF */
    {"t.u32", 4, 1, 0xc3, F, "key 2", "UTF-8"},       /* cut character */
    {"t.f32", 5, 4, 13, F, "value type of t.f32", "13"},
    {"t.f32", 5, 4, UINT32_MAX, F, "value type of t.f32", "4294967295"},
    {"general.architecture", 24, 8, 1 << 30, F, "value of general.architecture", "needs"},
    {"general.architecture", 24, 8, UINT64_MAX - 7, F, "value of general.architecture", "needs"},
    {"t.bool", 10, 1, 2, F, "value of t.bool", "is 2"},
    {"t.ints", 10, 4, 13, F, "array item type of t.ints", "13"},
    {"t.ints", 10, 4, BS_GGUF_ARRAY, U, "array item type of t.ints", "nested"},
    {"t.ints", 10, 4, BS_GGUF_BOOL, F, "value of t.ints", "is 2"},
    {"t.ints", 14, 8, UINT64_MAX, F, "array length of t.ints", "18446744073709551615"},
    {"t.ints", 14, 8, 0x4000000000000001, F, "array length of t.ints", "4611686018427387905"},
    {"t.ints", 14, 8, 100000, F, "array length of t.ints", "100000"},
    {"t.strings", 17, 8, UINT64_MAX, F, "array length of t.strings", "18446744073709551615"},
    {"t.strings", 17, 8, 0x2000000000000001, F, "array length of t.strings", "2305843009213693953"},
    {"t.strings", 25, 8, 1 << 30, F, "array item of t.strings", "needs 1073741824"},
    {"t.strings", 25, 8, UINT64_MAX, F, "array item of t.strings", "needs"},
    {"t.same1", 6, 1, '0', F, "key t.same0", "twice"},
    {"general.alignment", 21, 4, 0, F, "general.alignment", "is 0"},
    {"general.alignment", 21, 4, 4, F, "general.alignment", "is 4"},
    {"general.alignment", 21, 4, 24, F, "general.alignment", "power of two"},
    {"general.alignment", 21, 4, 1 << 21, F, "general.alignment", "is 2097152"},
    {"general.alignment", 17, 4, BS_GGUF_F32, F, "general.alignment", "type f32"},
    {"general.alignment", 21, 4, 256, F, "offset of tensor", "multiple of 256"},
    {"a.weight", -8, 8, 0, F, "tensor name 0", "0 bytes"},
    {"a.weight", -8, 8, 65, F, "tensor name 0", "65 bytes"},
    {"a.weight", -8, 8, UINT64_MAX, F, "tensor name", "needs"},
    {"a.weight", 0, 1, 0x80, F, "tensor name 0", "UTF-8"},
    {"b.weight", 0, 1, 'a', F, "tensor a.weight", "twice"},
    {"a.weight", 8, 4, 0, F, "dimensions of tensor a.weight", "is 0"},
    {"a.weight", 8, 4, 5, F, "dimensions of tensor a.weight", "is 5"},
    {"a.weight", 8, 4, UINT32_MAX, F, "dimensions of tensor a.weight", "is 4294967295"},
    {"a.weight", 12, 8, 0, F, "dimension 0 of tensor a.weight", "is 0"},
    {"a.weight", 20, 8, 0, F, "dimension 1 of tensor a.weight", "is 0"},
    {"a.weight", 12, 8, 1ull << 63, F, "dimension 0 of tensor a.weight", "is 9223372036854775808"},
    {"a.weight", 20, 8, 1ull << 60, F, "elements of tensor a.weight", "2^63-1"},
    {"a.weight", 20, 8, (1ull << 57) + 1, F, "bytes of tensor a.weight", "2^64-1"},
    {"b.weight", 12, 8, 33, F, "dimension 0 of tensor b.weight", "block of 32"},
    {"a.weight", 28, 4, 20, U, "type of tensor a.weight", "IQ4_NL"},
    {"a.weight", 28, 4, 34, U, "type of tensor a.weight", "TQ1_0"},
    {"a.weight", 28, 4, 4, F, "type of tensor a.weight", "is 4"},
    {"a.weight", 28, 4, UINT32_MAX, F, "type of tensor a.weight", "is 4294967295"},
    {"a.weight", 32, 8, 4, F, "offset of tensor a.weight", "multiple of 32"},
    {"b.weight", 32, 8, 0, F, "offset of tensor b.weight", "overlaps"},
    {"b.weight", 32, 8, 352, F, "offset of tensor b.weight", "overlaps"},
    {"a.weight", 32, 8, 512, F, "offset of tensor a.weight", "end behind"},
    {"a.weight", 32, 8, 32, F, "offset of tensor b.weight", "overlaps"},
    {"b.weight", 32, 8, 1 << 20, F, "offset of tensor b.weight", "end behind"},
    {"c.weight", 24, 8, 544, F, "offset of tensor c.weight", "end behind"},
    {"c.weight", 24, 8, UINT64_MAX - 31, F, "offset of tensor c.weight", "end behind"},
    {"c.weight", 12, 8, 6, F, "offset of tensor c.weight", "24 bytes"},
};
#undef F
#undef U

static void test_damaged_fields(void **state)
{
    file f = make_sample();
    uint8_t *copy = malloc(f.n);
    assert_non_null(copy);
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const damage *d = &damages[i];
        bs_gguf *g = (bs_gguf *)1;
        memcpy(copy, f.bytes, f.n);
        uint8_t *at = d->anchor ? memmem(copy, f.header, d->anchor, strlen(d->anchor)) : copy;
        assert_non_null(at);
        for (int b = 0; b < d->width; b++) at[d->offset + b] = (uint8_t)(d->value >> 8 * b);
        expect_failure(open_bytes(copy, f.n, &g), d->status, d->field, d->text);
        assert_ptr_equal(g, (bs_gguf *)1);
    }
    free(copy);
    free(f.bytes);
}

/* Every prefix of the file is refused: the last tensor ends with it. */
static void test_cut_files(void **state)
{
    file f = make_sample();
    bs_gguf *g;
    for (size_t n = 0; n < f.n; n++) {
        bs_status status = open_bytes(f.bytes, n, &g);
        if (status != BS_STATUS_FORMAT) fail_msg("%zu of %zu bytes: status %d", n, f.n, status);
        assert_non_null(strstr(bs_error_message(), PATH));
    }
    bs_error_clear();
    free(f.bytes);
}

/* Any byte of the header changed: refused or read, never a crash (the sanitizers watch). */
static void test_changed_bytes(void **state)
{
    file f = make_sample();
    for (size_t i = 0; i < f.header; i++) {
        const uint8_t old = f.bytes[i], values[] = {0, 0xff, 0x80, (uint8_t)(old + 1), (uint8_t)(old ^ 0x10)};
        for (size_t v = 0; v < sizeof values; v++) {
            bs_gguf *g = NULL;
            f.bytes[i] = values[v];
            bs_status status = open_bytes(f.bytes, f.n, &g);
            if (status == BS_STATUS_OK) bs_gguf_close(g);
            else assert_true(status == BS_STATUS_FORMAT || status == BS_STATUS_UNSUPPORTED);
        }
        f.bytes[i] = old;
    }
    bs_error_clear();
    free(f.bytes);
}

static void test_not_files(void **state)
{
    bs_gguf *g;
    bs_error_clear();
    assert_int_equal(bs_gguf_open("no/such/file.gguf", &g), BS_STATUS_IO);
    assert_non_null(strstr(bs_error_message(), "no/such/file.gguf"));
    bs_error_clear();
    assert_int_equal(bs_gguf_open(".", &g), BS_STATUS_IO);
    assert_non_null(strstr(bs_error_message(), "regular"));
    bs_error_clear();
}

/* A reader that walks 100,000 strings one comparison with all others would take minutes. */
static void test_real_file(void **state)
{
    const char *path = getenv("BITSHARD_TEST_MODEL");
    if (!path) {
        print_message("BITSHARD_TEST_MODEL is not set: no real file is opened\n");
        return;
    }
    bs_gguf *g;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    assert_int_equal(bs_gguf_open(path, &g), BS_STATUS_OK);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ms = 1e3 * (double)(end.tv_sec - start.tv_sec) + 1e-6 * (double)(end.tv_nsec - start.tv_nsec);
    print_message("%s: %lld tensors, opened in %.2f ms\n", path, (long long)bs_gguf_n_tensors(g), ms);
    assert_true(ms < 1000);
    assert_non_null(bs_gguf_find_tensor(g, "token_embd.weight"));
    bs_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_back),     cmocka_unit_test(test_lookups_refuse),
        cmocka_unit_test(test_damaged_fields), cmocka_unit_test(test_cut_files),
        cmocka_unit_test(test_changed_bytes),  cmocka_unit_test(test_not_files),
        cmocka_unit_test(test_real_file),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(PATH);
    return failed;
}
