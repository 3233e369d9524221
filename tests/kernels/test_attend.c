/* test_attend.c: attention over mixed pages against a plain reference in double over the dequantized cache:
 * the worst (token, head) counts. Every K/V pair, grouping, group size and norm; head sizes, ratios of heads,
 * windows, several sequences, shards with holes, unused slots, chunks. Whatever nobody may see is NaN: free
 * slots, other layers, tokens behind the end, parameters of tokens before the window. Every instruction set
 * of the machine, one and three threads; the same bits twice, and nothing allocated. */
#include "tests/kernels/attend_cases.h"

/* The same sequences in two calls, as a step of decode tokens and a prompt's chunk makes them. */
static void check_in_parts(fixture *fx, tables *tb, const bs_attend_args *whole, const float *q, float *o,
                           float *lse, bs_stream *stream)
{
    const int cuts[3] = {0, 1, MAX_SEQS}, T = tb->q_start[MAX_SEQS];
    memset(o, 0xff, (size_t)(T * fx->n_heads * fx->shape.head_dim) * 4);
    memset(lse, 0xff, (size_t)(T * fx->n_heads) * 4);
    for (int part = 0; part < 2; part++) {
        const int first = cuts[part], end = cuts[part + 1];
        bs_attend_args args = attend_some(whole, tb, first, end - first);
        args.o = o;
        args.lse = lse;
        assert_int_equal(bs_op_attend(stream, &args), BS_STATUS_OK);
    }
    for (int b = 0; b < MAX_SEQS; b++) check_sequence(fx, tb, b, q, o, lse);
}

static void run_case(bs_device *device, bs_stream *stream, bs_kv_format format, int dim, int G, int window,
                     const int (*seqs)[3], bool outliers, int nan_row)
{
    attend_case x = {
        .fx = {.window = window, .nan_row = nan_row, .limit_o = TOL_ATTEND_O, .limit_lse = TOL_ATTEND_LSE}};
    make_case(&x, device, stream, format, dim, G, seqs, outliers);
    fixture *fx = &x.fx;
    tables *tb = &x.tb;
    if (seqs[2][1] == 5) tb->n_tokens[2] -= 2; /* then the last two see as far as the third last */
    int T = tb->q_start[MAX_SEQS], n_pages = tb->page_start[MAX_SEQS], H = fx->n_heads;
    float *q = x.q, *o = malloc((size_t)(T * H * dim) * 4), *lse = malloc((size_t)(T * H) * 4);
    for (int i = 0; i < T * H * dim; i++) q[i] = noise() * 0.7f;
    for (int d = 0; d < dim && nan_row >= 0; d++) q[nan_row * dim + d] = NAN;
    memset(o, 0xff, (size_t)(T * H * dim) * 4);
    memset(lse, 0xff, (size_t)(T * H) * 4);
    size_t bytes = bs_attend_workspace_bytes(device, &fx->shape, H, MAX_SEQS, T, n_pages);
    uint8_t *workspace = malloc(bytes + 1);
    memset(workspace, 0xff, bytes + 1);
    bs_attend_args args = {.pools = &fx->pools,
                           .layer = 1,
                           .max_seqs = MAX_SEQS,
                           .max_tokens = T,
                           .max_pages = n_pages,
                           .n_heads = H,
                           .q = q,
                           .q_ld = (int64_t)H * dim,
                           .act = BS_TYPE_F32,
                           .q_start = tb->q_start,
                           .q_pos0 = tb->q_pos0,
                           .page_start = tb->page_start,
                           .page_slot = tb->slot,
                           .page_index = tb->index,
                           .n_sink = tb->n_sink,
                           .n_quant = tb->n_quant,
                           .n_f16 = tb->n_f16,
                           .n_tokens = tb->n_tokens,
                           .scale = 0.1f,
                           .window = window,
                           .workspace = workspace,
                           .workspace_bytes = bytes,
                           .o = o,
                           .lse = lse};
    const uint64_t n_allocated = bs_device_allocation_count(device);
    assert_int_equal(bs_op_attend(stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_device_allocation_count(device), n_allocated);
    assert_int_equal(workspace[bytes], 0xff);
    for (int b = 0; b < MAX_SEQS; b++) check_sequence(fx, tb, b, q, o, lse);
    float *again = malloc((size_t)(T * H * dim) * 4);
    args.o = again;
    memset(again, 0xff, (size_t)(T * H * dim) * 4);
    assert_int_equal(bs_op_attend(stream, &args), BS_STATUS_OK);
    assert_memory_equal(again, o, (size_t)(T * H * dim) * 4);
    check_in_parts(fx, tb, &args, q, again, lse, stream);
    free(again);
    free(workspace);
    free(o);
    free(lse);
    free_case(&x);
}

static bool open_device(bs_isa isa, int n_threads, bs_device **device, bs_stream **stream)
{
    if (bs_device_open(&(bs_device_config){.n_threads = n_threads, .isa = isa}, device) != BS_STATUS_OK) {
        bs_error_clear();
        return false;
    }
    assert_int_equal(bs_stream_create(*device, stream), BS_STATUS_OK);
    return true;
}

static void close_device(bs_device *device, bs_stream *stream)
{
    bs_stream_destroy(stream);
    bs_device_close(device);
}

/* The i-th of 109 formats: f16, then 9 pairs × kc, kt × 3 group sizes × norm. */
static bs_kv_format format_of(int i)
{
    static const int bits[3] = {2, 4, 8};
    if (i == 0) return (bs_kv_format){.k_bits = 16, .v_bits = 16};
    i--;
    return (bs_kv_format){.k_bits = bits[i % 3],
                          .v_bits = bits[i / 3 % 3],
                          .k_per_channel = i / 9 % 2 == 0,
                          .k_norm = i / 18 % 2,
                          .group = 32 << i / 36};
}

/* The other choices go round with steps that share no factor, each instruction set from another start. */
static void test_formats(bs_isa isa)
{
    static const int groups[] = {1, 3, 4, 7, 8, 9, 16}, windows[] = {0, 200, 500, 1, 0};
    static const int(*const shapes[])[3] = {decode, several, prefill};
    bs_device *device[2];
    bs_stream *stream[2];
    for (int i = 0; i < 2; i++)
        if (!open_device(isa, 1 + 2 * i, &device[i], &stream[i])) return;
    for (int f = 0, n = 29 * (int)isa; f < 109; f += isa == BS_ISA_SCALAR ? 3 : 1, n++) {
        seed = 20260917u + (uint32_t)n;
        run_case(device[n / 2 % 2], stream[n / 2 % 2], format_of(f), n % 2 ? 64 : 128, groups[n % 7],
                 windows[n % 5], shapes[n / 3 % 3], n % 4 == 3, -1);
    }
    for (int n = 0; n < 14;
         n++) { /* f16, which the round above meets once, and chunks of each format class */
        seed = 77u + (uint32_t)n;
        run_case(device[n % 2], stream[n % 2], format_of(n < 7 ? 0 : 15 * (n - 6)), n % 3 ? 64 : 128,
                 groups[n % 7], windows[n % 5], shapes[n % 3], n % 2, -1);
    }
    for (int i = 0; i < 2; i++) {
        run_case(device[i], stream[i], format_of(5), 64, 3, 0, lone, true, -1);
        run_case(device[i], stream[i], format_of(5), 64, 3, 0, several, false, 7);
        run_case(device[i], stream[i], format_of(0), 64, 3, 0, prefill, false, 7);
        close_device(device[i], stream[i]);
    }
}

static void test_scalar(void **state)
{
    test_formats(BS_ISA_SCALAR);
}

static void test_avx2(void **state)
{
    test_formats(BS_ISA_AVX2);
}

static void test_avx512(void **state)
{
    test_formats(BS_ISA_AVX512);
}

/* Errors must not grow with the number of tokens. */
static void test_long(void **state)
{
    static const int seqs[MAX_SEQS][3] = {{100001, 1, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
    bs_device *device;
    bs_stream *stream;
    assert_true(open_device(BS_ISA_AUTO, 1, &device, &stream));
    seed = 7;
    run_case(device, stream, (bs_kv_format){.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128},
             64, 3, 0, seqs, true, -1);
    close_device(device, stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scalar), cmocka_unit_test(test_avx2),
                                       cmocka_unit_test(test_avx512), cmocka_unit_test(test_long)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("worst relative L2 of O %.2g, worst LSE error %.2g\n", worst_o, worst_lse);
    return failed;
}
