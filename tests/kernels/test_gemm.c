/* test_gemm.c: products with weights in blocks, and the small ops, on every instruction set, against double.
 */
#include "kernels/kernels.h"
#include "tests/tolerances.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t seed = 20260917;

static float noise(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * 0x1p-31f;
}

/* Random blocks whose scales are sane. */
static void fill_blocks(bs_type type, uint8_t *row, int64_t n)
{
    int block = bs_type_block(type), bytes = bs_type_block_bytes(type);
    if (block < 256) {
        for (int64_t i = 0; i < n; i += block) {
            float x[32];
            for (int j = 0; j < block; j++) x[j] = noise() + 0.3f;
            assert_int_equal(bs_quantize_row(type, x, row + i / block * bytes, block), BS_STATUS_OK);
        }
        return;
    }
    for (int64_t i = 0; i < n; i += block, row += bytes) { /* fp16 scales at the end, or at the start */
        bs_f16 d = bs_f32_to_f16(0.01f + 0.01f * noise());
        const bool two = type == BS_TYPE_Q2_K || type == BS_TYPE_Q4_K || type == BS_TYPE_Q5_K;
        const bool first = type == BS_TYPE_Q4_K || type == BS_TYPE_Q5_K;
        for (int j = 0; j < bytes; j++) row[j] = (uint8_t)(noise() * 127);
        memcpy(first ? row : row + bytes - 2, &d, 2);
        if (two) memcpy(first ? row + 2 : row + bytes - 4, &d, 2);
    }
}

static void check_view(bs_device *device, bs_stream *stream, bs_type type, int64_t rows, int64_t first,
                       int64_t cols, int tokens, bool bias)
{
    int block = bs_type_block(type);
    int64_t width = (first + cols + block - 1) / block * block + 2 * block;
    size_t row_bytes = (size_t)(width / block) * (size_t)bs_type_block_bytes(type);
    uint8_t *data = malloc((size_t)rows * row_bytes + 1);
    for (int64_t r = 0; r < rows; r++) fill_blocks(type, data + (size_t)r * row_bytes, width);
    int64_t ldx = cols + 3, ldy = rows + 2;
    float *x = malloc((size_t)(tokens * ldx) * 4 + 4), *y = malloc((size_t)(tokens * ldy) * 4 + 4);
    float *b = malloc((size_t)rows * 4 + 4), *w = malloc((size_t)width * 4 + 4);
    for (int64_t i = 0; i < tokens * ldx; i++)
        x[i] = i % ldx < cols ? noise() : NAN; /* gaps must not be read */
    for (int64_t i = 0; i < tokens * ldy; i++) y[i] = -77;
    for (int64_t i = 0; i < rows; i++) b[i] = noise();
    bs_weight weight = {.type = type,
                        .data = data + (size_t)(first / block) * (size_t)bs_type_block_bytes(type),
                        .row_bytes = row_bytes,
                        .n_rows = rows,
                        .n_cols = cols,
                        .first_col = (int)(first % block)};
    size_t bytes = bs_gemm_workspace_bytes(device, rows, cols, tokens);
    void *workspace = malloc(bytes + 1);
    memset(workspace, 0xff, bytes + 1);
    bs_gemm_args args = {.w = &weight,
                         .bias = bias ? b : NULL,
                         .x = x,
                         .ldx = ldx,
                         .n_tokens = tokens,
                         .act = BS_TYPE_F32,
                         .out_type = BS_TYPE_F32,
                         .y = y,
                         .ldy = ldy,
                         .workspace = workspace,
                         .workspace_bytes = bytes};
    assert_int_equal(bs_op_gemm(stream, &args), BS_STATUS_OK);
    assert_int_equal(((uint8_t *)workspace)[bytes], 0xff);
    for (int64_t r = 0; r < rows; r++) {
        assert_int_equal(bs_dequantize_row(type, data + (size_t)r * row_bytes, w, width), BS_STATUS_OK);
        for (int t = 0; t < tokens; t++) {
            double want = bias ? b[r] : 0, size = fabs(want), largest = 0;
            for (int64_t c = 0; c < width; c++) largest = fmax(largest, fabs(w[c]));
            for (int64_t c = 0; c < cols; c++) {
                want += (double)w[first + c] * x[t * ldx + c];
                size += largest * fabs(x[t * ldx + c]); /* d·c and m are summed apart and may cancel */
            }
            double got = y[t * ldy + r];
            if (!(fabs(got - want) <= TOL_GEMM * size))
                fail_msg("%s %dx%d from column %d, %d tokens: row %d is %g, not %g", bs_type_name(type),
                         (int)rows, (int)cols, (int)first, tokens, (int)r, got, want);
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int64_t r = rows; r < ldy; r++) assert_true(y[t * ldy + r] == -77);
    free(workspace);
    free(data);
    free(x);
    free(y);
    free(b);
    free(w);
}

static void test_gemm(void **state)
{
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++)
        for (int threads = 1; threads <= 3; threads += 2) {
            bs_device *device;
            bs_stream *stream;
            bs_device_config config = {.n_threads = threads, .isa = isa};
            if (bs_device_open(&config, &device) != BS_STATUS_OK) {
                bs_error_clear();
                continue;
            }
            assert_int_equal(bs_stream_create(device, &stream), BS_STATUS_OK);
            for (bs_type type = 0; type < BS_TYPE_COUNT; type++) {
                int64_t shapes[][3] = {{1, 0, 256},    {3, 0, 512}, {67, 0, 576}, {33, 64, 192}, {5, 17, 1},
                                       {40, 100, 301}, {7, 0, 0},   {0, 0, 64},   {200, 32, 64}};
                int tokens[] = {1, 2, 3, 4, 5, 8, 9, 17, 40};
                for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
                    for (size_t t = 0; t < sizeof tokens / sizeof tokens[0]; t++)
                        if (threads == 1 || t % 3 == 0)
                            check_view(device, stream, type, shapes[s][0], shapes[s][1], shapes[s][2],
                                       tokens[t], (s + t) % 2);
            }
            bs_stream_destroy(stream);
            bs_device_close(device);
        }
}

static void check_small_ops(bs_isa isa, int threads)
{
    enum { T = 5, N = 67 };
    bs_device *device;
    bs_stream *stream;
    if (bs_device_open(&(bs_device_config){.n_threads = threads, .isa = isa}, &device) != BS_STATUS_OK) {
        bs_error_clear(); /* not on this machine */
        return;
    }
    assert_int_equal(bs_stream_create(device, &stream), BS_STATUS_OK);
    float x[T][N], add[T][N], gain[N], out[T][N], sum[T][N];
    int32_t rows[T] = {4, 0, 0, 2, 3};
    for (int t = 0; t < T; t++)
        for (int i = 0; i < N; i++) {
            x[t][i] = noise() * 100;
            add[t][i] = noise();
            gain[i] = noise();
        }
    for (int way = 0; way < 3; way++) { /* plain, with the residual, with chosen rows */
        memset(out, 0xff, sizeof out);
        bs_rmsnorm_args args = {.x = x[0],
                                .gain = gain,
                                .n_tokens = T,
                                .n = N,
                                .eps = 1e-5f,
                                .act = BS_TYPE_F32,
                                .out = out,
                                .add = way == 1 ? add[0] : NULL,
                                .x_out = way == 1 ? sum[0] : NULL,
                                .rows = way == 2 ? rows : NULL};
        assert_int_equal(bs_op_rmsnorm(stream, &args), BS_STATUS_OK);
        for (int t = 0; t < T; t++) {
            double squares = 0, in[N];
            for (int i = 0; i < N; i++) {
                in[i] = way == 2 ? x[rows[t]][i] : way == 1 ? x[t][i] + add[t][i] : x[t][i];
                squares += in[i] * in[i];
            }
            for (int i = 0; i < N; i++) {
                double want = in[i] / sqrt(squares / N + 1e-5) * gain[i];
                assert_true(fabs(out[t][i] - want) <= 1e-6 * (fabs(want) + 1e-3));
                if (way == 1) assert_true(sum[t][i] == x[t][i] + add[t][i]);
            }
        }
    }
    bs_silu_mul_args silu = {.gate = x,
                             .up = add,
                             .ld = N,
                             .n_tokens = T,
                             .n = N - 1,
                             .act = BS_TYPE_F32,
                             .out = out,
                             .ld_out = N};
    for (int t = 0; t < T; t++) out[t][N - 1] = -77;
    assert_int_equal(bs_op_silu_mul(stream, &silu), BS_STATUS_OK);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < N - 1; i++) {
            double g = x[t][i], want = g / (1 + exp(-g)) * add[t][i];
            assert_true(fabs(out[t][i] - want) <= 1e-6 * fabs(want) + 1e-30);
        }
        assert_true(out[t][N - 1] == -77);
    }
    bs_weight table = {.type = BS_TYPE_F32, .data = x, .row_bytes = sizeof x[0], .n_rows = T, .n_cols = N};
    bs_embed_args embed = {.table = &table, .tokens = rows, .n_tokens = T, .x = out[0]};
    assert_int_equal(bs_op_embed(stream, &embed), BS_STATUS_OK);
    for (int t = 0; t < T; t++) assert_memory_equal(out[t], x[rows[t]], sizeof x[0]);
    rows[2] = T;
    assert_int_equal(bs_op_embed(stream, &embed), BS_STATUS_RANGE);
    bs_error_clear();
    bs_stream_destroy(stream);
    bs_device_close(device);
}

static void test_small_ops(void **state)
{
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++)
        for (int threads = 1; threads <= 3; threads += 2) check_small_ops(isa, threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gemm), cmocka_unit_test(test_small_ops)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
