/* test_random.c: random weights and pages: the same whatever is cut out of them, of the size asked for, and where
 * there is a GPU the CPU's bits. No MPI, so that it can be carried to one. */
#include "tests/kernels/gpu_fixture.h"

#include <math.h>

enum { N_ROWS = 67, N_COLS = 132, N_PAGES = 2 };
static const bs_kv_shape shape = {
    .n_layers = 2, .n_kv_heads = 3, .head_dim = 64, .format = {.k_bits = 16, .v_bits = 16}};
static bool with_gpu;

/* Rows and columns of one matrix [N_ROWS, N_COLS], poison around them. */
static void draw(gpu_side *side, bs_type type, int row, int n_rows, int col, int n_cols, uint16_t *out)
{
    const size_t row_bytes = 2 * N_COLS + 8, bytes = row_bytes * N_ROWS;
    uint8_t *got = malloc(bytes);
    gpu_poison(side, gpu_stage(side, 0), bytes);
    bs_random_fill_args args = {.type = type,
                                .out = gpu_stage(side, 0),
                                .row_bytes = row_bytes,
                                .n_rows = n_rows,
                                .n_cols = n_cols,
                                .first = (int64_t)row * N_COLS + col + (INT64_C(5) << 34),
                                .ld = N_COLS,
                                .seed = 0x123456789abcdef0u,
                                .tensor = 9,
                                .std = 0.25f};
    assert_int_equal(bs_op_random_fill(side->stream, &args), BS_STATUS_OK);
    gpu_get(side, got, gpu_stage(side, 0), bytes);
    for (int r = 0; r < N_ROWS; r++) {
        int used = r < n_rows ? 2 * n_cols : 0;
        memcpy(out + r * N_COLS, got + (size_t)r * row_bytes, (size_t)used);
        for (size_t i = (size_t)used; i < row_bytes; i++)
            assert_int_equal(got[(size_t)r * row_bytes + i], KV_POISON);
    }
    free(got);
}

static void a_part_is_what_it_is_in_the_whole(void **state)
{
    static uint16_t whole[N_ROWS * N_COLS], part[N_ROWS * N_COLS];
    gpu_side *cpu = *state;
    draw(cpu, BS_TYPE_BF16, 0, N_ROWS, 0, N_COLS, whole);
    draw(cpu, BS_TYPE_BF16, 13, 20, 32, 64, part);
    for (int r = 0; r < 20; r++) assert_memory_equal(part + r * N_COLS, whole + (r + 13) * N_COLS + 32, 128);
    double sum = 0, squares = 0;
    for (int i = 0; i < N_ROWS * N_COLS; i++) {
        double x = bs_bf16_to_f32(whole[i]);
        sum += x;
        squares += x * x;
        assert_true(fabs(x) <= 0.25 * 3.46);
    }
    const double n = N_ROWS * N_COLS;
    assert_true(fabs(sum / n) < 0.25 * 0.04); /* 4 standard errors */
    assert_true(fabs(sqrt(squares / n) / 0.25 - 1) < 0.03);
}

/* Page 7 as a rank with heads 3 … 5 and one with heads 4 … 6 of the model draws it: two heads are the same. */
static void pages_belong_to_the_models_heads(void **state)
{
    gpu_side *cpu = *state;
    gpu_open_pools(cpu, &shape, N_PAGES, 0);
    for (uint32_t i = 0; i < N_PAGES; i++)
        assert_int_equal(
            bs_op_random_page(cpu->stream, &(bs_random_page_args){&cpu->pools, i, 7, 3 + (int)i, 11}),
            BS_STATUS_OK);
    const size_t head = (size_t)2 * BS_PAGE_TOKENS * 64 * 2;
    uint8_t *pool = gpu_copy_pool(cpu, false);
    for (size_t layer = 0; layer < 2; layer++) {
        uint8_t *first = pool + layer * 3 * head, *second = pool + cpu->f16_slot_bytes + layer * 3 * head;
        assert_memory_equal(first + head, second, 2 * head);
        assert_memory_not_equal(first, first + head, head);
        assert_memory_not_equal(first, first + head / 2, head / 2);
    }
    double squares = 0;
    for (size_t i = 0; i < cpu->f16_slot_bytes / 2; i++)
        squares += pow(bs_f16_to_f32(((bs_f16 *)pool)[i]), 2);
    assert_true(fabs(sqrt(squares / (double)(cpu->f16_slot_bytes / 2)) - 1) < 0.02);
    free(pool);
    gpu_close_pools(cpu);
}

static void a_gpu_has_the_cpus_bits(void **state)
{
    static uint16_t drawn[GPU_N_SIDES][N_ROWS * N_COLS];
    gpu_side *sides = *state;
    if (!with_gpu) skip();
    for (int i = 0; i < 2; i++) {
        for (int s = 0; s < GPU_N_SIDES; s++)
            draw(&sides[s], i ? BS_TYPE_F16 : BS_TYPE_BF16, 2, N_ROWS - 2, 4, N_COLS - 4, drawn[s]);
        assert_memory_equal(drawn[0], drawn[1], sizeof drawn[0]);
    }
    enum { BYTES = BS_PAGE_TOKENS * 64 * 2 };
    static uint8_t k[GPU_N_SIDES][BYTES], v[GPU_N_SIDES][BYTES];
    for (int s = 0; s < GPU_N_SIDES; s++) gpu_open_pools(&sides[s], &shape, N_PAGES, 0);
    for (int part = 0; part < 6; part++) {
        for (int s = 0; s < GPU_N_SIDES; s++) {
            gpu_side *side = &sides[s];
            bs_kv_page_ref ref = {1,   part / 3, part % 3, gpu_stage(side, 0), NULL, gpu_stage(side, BYTES),
                                  NULL};
            if (part == 0)
                assert_int_equal(
                    bs_op_random_page(side->stream, &(bs_random_page_args){&side->pools, 1, 12345, 3, 11}),
                    BS_STATUS_OK);
            assert_int_equal(bs_op_pack(side->stream, &(bs_pack_args){&side->pools, false, 1, &ref}),
                             BS_STATUS_OK);
            gpu_get(side, k[s], gpu_stage(side, 0), BYTES);
            gpu_get(side, v[s], gpu_stage(side, BYTES), BYTES);
        }
        assert_memory_equal(k[0], k[1], BYTES);
        assert_memory_equal(v[0], v[1], BYTES);
    }
    for (int s = 0; s < GPU_N_SIDES; s++) gpu_close_pools(&sides[s]);
}

static void bad_arguments_are_refused(void **state)
{
    gpu_side *cpu = *state;
    const bs_random_fill_args good = {
        .type = BS_TYPE_BF16, .out = gpu_stage(cpu, 0), .row_bytes = 16, .n_rows = 1, .n_cols = 8, .ld = 8};
    bs_random_fill_args bad[5] = {good, good, good, good, good};
    assert_int_equal(bs_op_random_fill(cpu->stream, &good), BS_STATUS_OK);
    bad[0].n_cols = 6;
    bad[1].first = 2;
    bad[2].row_bytes = 8;
    bad[3].out = NULL;
    bad[4].type = BS_TYPE_F32;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(bs_op_random_fill(cpu->stream, &bad[i]), BS_STATUS_RANGE);
        bs_error_clear();
    }
}

/* Without a GPU the second side is a CPU too, and unused. */
static int open_sides(void **state)
{
    static gpu_side sides[GPU_N_SIDES];
    gpu_open_side(&sides[GPU_CPU_SIDE], BS_DEVICE_CPU);
    gpu_open_side(&sides[GPU_GPU_SIDE], with_gpu ? BS_DEVICE_CUDA : BS_DEVICE_CPU);
    *state = sides;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_part_is_what_it_is_in_the_whole),
                                       cmocka_unit_test(pages_belong_to_the_models_heads),
                                       cmocka_unit_test(a_gpu_has_the_cpus_bits),
                                       cmocka_unit_test(bad_arguments_are_refused)};
    with_gpu = bs_device_count_gpus() > 0;
    return cmocka_run_group_tests(tests, open_sides, gpu_close);
}
