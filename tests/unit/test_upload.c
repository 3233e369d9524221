/* test_upload.c: matrices on their way to a GPU: every element once, in its place, rounded to nearest. The device is a
 * CPU: the ring, the threads and the conversion are the same. */
#include "kernels/kernels.h"
#include "src/base/half.h"
#include "src/model/upload.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N_ITEMS = 6 };

typedef struct matrix {
    bs_type type;
    int64_t rows, cols;   /* of the tensor */
    int64_t row0, n_rows; /* of the view */
    int64_t col0, n_cols;
} matrix;

/* More than a piece of 8 MiB, blocks cut on both sides, no rows, no columns, a row alone. */
static const matrix matrices[N_ITEMS] = {{BS_TYPE_BF16, 3000, 4096, 7, 2900, 0, 4096},
                                         {BS_TYPE_Q4_1, 70, 320, 3, 60, 40, 200},
                                         {BS_TYPE_F32, 4, 64, 0, 0, 0, 64},
                                         {BS_TYPE_Q8_0, 5, 64, 0, 5, 32, 0},
                                         {BS_TYPE_F16, 300, 33, 1, 299, 1, 32},
                                         {BS_TYPE_F32, 1, 9000, 0, 1, 1, 8999}};

static float value(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)((int32_t)(*seed >> 8) - (1 << 23)) / (1 << 22);
}

typedef struct fixture {
    char *data[N_ITEMS];
    bs_upload_item items[N_ITEMS];
    size_t at[N_ITEMS + 1]; /* in the device buffer */
} fixture;

static void make(fixture *f)
{
    uint32_t seed = 5;
    for (int i = 0; i < N_ITEMS; i++) {
        const matrix *m = &matrices[i];
        const int64_t block = bs_type_block(m->type);
        const size_t row_bytes = (size_t)(m->cols / block * bs_type_block_bytes(m->type));
        float *row = malloc(sizeof *row * (size_t)m->cols);
        f->data[i] = malloc(row_bytes * (size_t)m->rows);
        for (int64_t r = 0; r < m->rows; r++) {
            for (int64_t c = 0; c < m->cols; c++) row[c] = value(&seed);
            assert_int_equal(bs_quantize_row(m->type, row, f->data[i] + (size_t)r * row_bytes, m->cols),
                             BS_STATUS_OK);
        }
        free(row);
        f->items[i].from = (bs_weight){.type = m->type,
                                       .data = f->data[i] + (size_t)m->row0 * row_bytes +
                                               (size_t)(m->col0 / block * bs_type_block_bytes(m->type)),
                                       .row_bytes = row_bytes,
                                       .n_rows = m->n_rows,
                                       .n_cols = m->n_cols,
                                       .first_col = (int)(m->col0 % block)};
        f->at[i + 1] = f->at[i] + 2 * (size_t)(m->n_rows * m->n_cols);
    }
}

static void check(const fixture *f, int i, bs_type type, const uint16_t *got)
{
    const matrix *m = &matrices[i];
    const size_t row_bytes = f->items[i].from.row_bytes;
    float *row = malloc(sizeof *row * (size_t)m->cols);
    for (int64_t r = 0; r < m->n_rows; r++) {
        assert_int_equal(
            bs_dequantize_row(m->type, f->data[i] + (size_t)(m->row0 + r) * row_bytes, row, m->cols),
            BS_STATUS_OK);
        for (int64_t c = 0; c < m->n_cols; c++) {
            float x = row[m->col0 + c];
            uint16_t wanted = type == BS_TYPE_F16 ? bs_f32_to_f16(x) : bs_f32_to_bf16(x);
            if (got[r * m->n_cols + c] != wanted)
                fail_msg("matrix %d, row %d, column %d: %04x for %04x", i, (int)r, (int)c,
                         got[r * m->n_cols + c], wanted);
        }
    }
    free(row);
}

typedef struct told {
    uint64_t done, total;
} told;

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    told *t = context;
    assert_true(done > t->done && done <= total);
    *t = (told){done, total};
}

static void every_element_arrives(void **state)
{
    const bs_type types[2] = {BS_TYPE_BF16, BS_TYPE_F16};
    fixture f = {0};
    bs_device *device;
    assert_int_equal(bs_device_open(&(bs_device_config){.n_threads = 1}, &device), BS_STATUS_OK);
    make(&f);
    for (int t = 0; t < 2; t++) {
        bs_buffer *buffer;
        told progress = {0, 0};
        assert_int_equal(bs_buffer_alloc(device, f.at[N_ITEMS] + 16, "matrices", &buffer), BS_STATUS_OK);
        char *base = bs_buffer_at(buffer, 0);
        memset(base, 0xa5, f.at[N_ITEMS] + 16);
        for (int i = 0; i < N_ITEMS; i++) f.items[i].to = base + f.at[i];
        assert_int_equal(bs_upload(device, f.items, N_ITEMS, types[t], on_progress, &progress), BS_STATUS_OK);
        assert_int_equal(progress.done, f.at[N_ITEMS]);
        assert_int_equal(progress.total, f.at[N_ITEMS]);
        for (int i = 0; i < N_ITEMS; i++) check(&f, i, types[t], (const uint16_t *)(base + f.at[i]));
        for (int i = 0; i < 16; i++) assert_int_equal((uint8_t)base[f.at[N_ITEMS] + (size_t)i], 0xa5);
        bs_buffer_free(buffer);
    }
    for (int i = 0; i < N_ITEMS; i++) free(f.data[i]);
    bs_device_close(device);
}

/* More pieces than the ring has buffers, each slower to convert than to send. */
static void buffers_wait_for_their_turn(void **state)
{
    enum { N_PIECES = 48, ROWS = 512, COLS = 1280 };
    const size_t row_bytes = (size_t)(COLS / bs_type_block(BS_TYPE_Q4_1) * bs_type_block_bytes(BS_TYPE_Q4_1)),
                 bytes = 2 * (size_t)ROWS * COLS;
    uint32_t seed = 9;
    char *data = malloc(row_bytes * (ROWS + N_PIECES));
    float *row = malloc(sizeof *row * COLS);
    uint16_t *wanted = malloc(2 * (size_t)COLS);
    bs_upload_item items[N_PIECES];
    bs_device *device;
    bs_buffer *buffer;
    assert_int_equal(bs_device_open(&(bs_device_config){.n_threads = 1}, &device), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(device, N_PIECES * bytes, "matrices", &buffer), BS_STATUS_OK);
    char *base = bs_buffer_at(buffer, 0);
    memset(base, 0xa5, N_PIECES * bytes);
    for (size_t r = 0; r < ROWS + N_PIECES; r++) {
        for (int c = 0; c < COLS; c++) row[c] = value(&seed);
        assert_int_equal(bs_quantize_row(BS_TYPE_Q4_1, row, data + r * row_bytes, COLS), BS_STATUS_OK);
    }
    for (size_t i = 0; i < N_PIECES; i++)
        items[i] = (bs_upload_item){.from = {.type = BS_TYPE_Q4_1,
                                             .data = data + i * row_bytes, /* each begins a row later */
                                             .row_bytes = row_bytes,
                                             .n_rows = ROWS,
                                             .n_cols = COLS},
                                    .to = base + i * bytes};
    assert_int_equal(bs_upload(device, items, N_PIECES, BS_TYPE_F16, NULL, NULL), BS_STATUS_OK);
    for (size_t r = 0; r < ROWS + N_PIECES - 1; r++) {
        assert_int_equal(bs_dequantize_row(BS_TYPE_Q4_1, data + r * row_bytes, row, COLS), BS_STATUS_OK);
        for (int c = 0; c < COLS; c++) wanted[c] = bs_f32_to_f16(row[c]);
        for (size_t i = 0; i < N_PIECES; i++)
            if (r >= i && r - i < ROWS)
                assert_memory_equal(base + i * bytes + (r - i) * 2 * COLS, wanted, 2 * (size_t)COLS);
    }
    bs_buffer_free(buffer);
    bs_device_close(device);
    free(wanted);
    free(row);
    free(data);
}

static void halves_are_rounded_to_nearest_even(void **state)
{
    const struct {
        float x;
        uint16_t bf16;
    } cases[] = {{1, 0x3f80},
                 {1 + 0x1p-8f, 0x3f80},
                 {1 + 3 * 0x1p-8f, 0x3f82},
                 {1 + 0x1.8p-8f, 0x3f81},
                 {-0x1p-130f, 0x8008},
                 {0x1.fffffep127f, 0x7f80},
                 {0, 0},
                 {-0.0f, 0x8000}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(bs_f32_to_bf16(cases[i].x), cases[i].bf16);
    assert_true((bs_f32_to_bf16(bs_f32_from_bits(0x7f800001u)) & 0x7f) != 0); /* NaN stays NaN */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_arrives),
        cmocka_unit_test(buffers_wait_for_their_turn),
        cmocka_unit_test(halves_are_rounded_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
