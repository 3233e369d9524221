/* test_chain_gpu.c: the dense chain of a layer against fp64 that rounds where the chain rounds; pieces of both widths, odd
 * sizes, with and without q, k, v, a bias, f32 input; the same bits again, also overlapped in a graph. */
#include "tests/kernels/dense_fixture.h"
#include "tests/tolerances.h"

#include <math.h>

typedef struct shape {
    int n_attended, n_hidden, n_ffn, n_qkv; /* n_qkv 0: out is the norm */
    bs_type act;
    bool bias, f32_out;
} shape;

static const shape shapes[] = {
    {64, 64, 96, 64, BS_TYPE_F16, false, false}, /* fewer columns than a warp takes at once */
    {768, 576, 1536, 960, BS_TYPE_BF16, false, true},
    {1032, 1032, 2056, 1000, BS_TYPE_F16, true, true},   /* a last piece of 8 columns */
    {512, 136, 20488, 0, BS_TYPE_BF16, false, false},    /* too wide for pieces of 1024 columns */
    {20488, 520, 1000, 522, BS_TYPE_F16, true, false},   /* so is this */
    {64, 8192, 1024, 0, BS_TYPE_F16, false, true},       /* the widest norm */
    {4096, 4096, 14336, 6144, BS_TYPE_BF16, true, true}, /* Llama-3.1-8B's; so is the next */
    {4096, 4096, 14336, 6144, BS_TYPE_F16, false, false},
    {2048, 2048, 8192, 0, BS_TYPE_BF16, false, true},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };
enum { N_BEHIND = 8 }; /* elements behind out, which stay as they are */

/* ---- the reference --------------------------------------------------------------------------------------- */

typedef struct matrix {
    void *host;
    bs_weight w;
} matrix;

static matrix make_matrix(gpu_side *gpu, int rows, int cols, bs_type type, uint64_t *seed)
{
    matrix m = {.host = malloc((size_t)rows * (size_t)cols * 2)};
    const float scale = 1.7f / sqrtf((float)cols);
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++)
        dense_store(m.host, i, type, scale * (float)(2 * kv_uniform(seed) - 1));
    m.w = (bs_weight){.type = type,
                      .data = dense_put(gpu, m.host, (size_t)rows * (size_t)cols * 2),
                      .row_bytes = (size_t)cols * 2,
                      .n_rows = rows,
                      .n_cols = cols};
    return m;
}

static double dot(const matrix *m, int64_t row, const float *x)
{
    double sum = 0;
    for (int64_t c = 0; c < m->w.n_cols; c++)
        sum += (double)dense_load(m->host, (size_t)(row * m->w.n_cols + c), m->w.type) * x[c];
    return sum;
}

static float round_to(bs_type type, double x)
{
    uint32_t bits[1];
    dense_store(bits, 0, type, (float)x);
    return dense_load(bits, 0, type);
}

static void norm(const double *x, const float *gain, int n, float eps, bs_type act, float *out)
{
    double squares = 0;
    for (int i = 0; i < n; i++) squares += x[i] * x[i];
    for (int i = 0; i < n; i++)
        out[i] = round_to(act, x[i] / sqrt(squares / n + (double)eps) * (double)gain[i]);
}

typedef struct data {
    matrix o, gate_up, down, qkv;
    void *attended;
    float *x, *ffn_gain, *next_gain, *bias;
} data;

/* x [hidden] and out. */
static void reference(const shape *s, const data *d, double *x, float *out)
{
    const int n = s->n_hidden;
    float *a = malloc(sizeof *a * (size_t)s->n_attended), *normed = malloc(sizeof *normed * (size_t)n),
          *ffn = malloc(sizeof *ffn * (size_t)s->n_ffn);
    for (int i = 0; i < s->n_attended; i++) a[i] = dense_load(d->attended, (size_t)i, s->act);
    for (int i = 0; i < n; i++) x[i] = (double)d->x[i] + dot(&d->o, i, a);
    norm(x, d->ffn_gain, n, 1e-5f, s->act, normed);
    for (int i = 0; i < s->n_ffn; i++) {
        const double gate = dot(&d->gate_up, i, normed), up = dot(&d->gate_up, s->n_ffn + i, normed);
        ffn[i] = round_to(s->act, gate / (1 + exp(-gate)) * up);
    }
    for (int i = 0; i < n; i++) x[i] += dot(&d->down, i, ffn);
    norm(x, d->next_gain, n, 1e-5f, s->act, normed);
    if (s->n_qkv == 0) memcpy(out, normed, sizeof *out * (size_t)n);
    for (int i = 0; i < s->n_qkv; i++)
        out[i] = (float)(dot(&d->qkv, i, normed) + (d->bias ? (double)d->bias[i] : 0));
    free(a);
    free(normed);
    free(ffn);
}

/* ---- a case ---------------------------------------------------------------------------------------------- */

static float *noise(int n, float about, float spread, uint64_t *seed)
{
    float *x = malloc(sizeof *x * (size_t)n);
    for (int i = 0; i < n; i++) x[i] = about + spread * (float)(2 * kv_uniform(seed) - 1);
    return x;
}

static void make_data(gpu_side *gpu, const shape *s, data *d, uint64_t *seed)
{
    d->o = make_matrix(gpu, s->n_hidden, s->n_attended, s->act, seed);
    d->gate_up = make_matrix(gpu, 2 * s->n_ffn, s->n_hidden, s->act, seed);
    d->down = make_matrix(gpu, s->n_hidden, s->n_ffn, s->act, seed);
    d->qkv = make_matrix(gpu, s->n_qkv, s->n_hidden, s->act, seed);
    d->attended = dense_noise((size_t)s->n_attended, s->act, seed);
    d->x = noise(s->n_hidden, 0, 2, seed);
    d->ffn_gain = noise(s->n_hidden, 1, 0.3f, seed);
    d->next_gain = noise(s->n_hidden, 1, 0.3f, seed);
    d->bias = s->bias ? noise(s->n_qkv, 0, 1, seed) : NULL;
}

static void free_data(data *d)
{
    void *all[] = {d->o.host, d->gate_up.host, d->down.host, d->qkv.host, d->attended,
                   d->x,      d->ffn_gain,     d->next_gain, d->bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    dense_free();
}

static double relative_error(const void *got, bs_type type, const float *out, const double *x, int n)
{
    double error = 0, size = 0;
    for (int i = 0; i < n; i++) {
        const double want = out ? (double)out[i] : x[i], g = (double)dense_load(got, (size_t)i, type);
        error += (g - want) * (g - want);
        size += want * want;
    }
    return sqrt(error / size);
}

static double worst_x[2], worst_out[2]; /* F16, BF16 */

static void check_case(gpu_side *gpu, const shape *s, int number)
{
    uint64_t seed = 100 + (uint64_t)number;
    data d;
    make_data(gpu, s, &d, &seed);
    const int n = s->n_hidden, n_out = s->n_qkv ? s->n_qkv : n;
    const bs_type out_type = s->f32_out && s->n_qkv ? BS_TYPE_F32 : s->act;
    const size_t x_bytes = 4 * (size_t)n, out_size = (size_t)bs_type_block_bytes(out_type),
                 out_bytes = out_size * (size_t)(n_out + N_BEHIND);
    const uint64_t zeros[BS_CHAIN_COUNTERS] = {0};
    bs_dense_chain_args args = {
        .n_hidden = n,
        .n_ffn = s->n_ffn,
        .act = s->act,
        .o = &d.o.w,
        .gate_up = &d.gate_up.w,
        .down = &d.down.w,
        .qkv = s->n_qkv ? &d.qkv.w : NULL,
        .qkv_bias = s->bias ? dense_put(gpu, d.bias, 4 * (size_t)s->n_qkv) : NULL,
        .attended = dense_put(gpu, d.attended, 2 * (size_t)s->n_attended),
        .x = dense_put(gpu, d.x, x_bytes),
        .x_other = dense_put(gpu, NULL, x_bytes),
        .sum = dense_put(gpu, NULL, x_bytes),
        .ffn = dense_put(gpu, NULL, 2 * (size_t)s->n_ffn),
        .ffn_gain = dense_put(gpu, d.ffn_gain, 4 * (size_t)n),
        .next_gain = dense_put(gpu, d.next_gain, 4 * (size_t)n),
        .eps = 1e-5f,
        .out = dense_put(gpu, NULL, out_bytes),
        .out_type = out_type,
        .counter = dense_put(gpu, zeros, sizeof zeros),
    };
    assert_int_equal(bs_op_dense_chain(gpu->stream, &args), BS_STATUS_OK);
    float *x = dense_get(gpu, args.x, x_bytes), *x_again;
    uint8_t *out = dense_get(gpu, args.out, out_bytes), *out_again;

    double *want_x = malloc(sizeof *want_x * (size_t)n);
    float *want_out = malloc(sizeof *want_out * (size_t)n_out);
    reference(s, &d, want_x, want_out);
    const int bf16 = s->act == BS_TYPE_BF16;
    const double in_x = relative_error(x, BS_TYPE_F32, NULL, want_x, n),
                 in_out = relative_error(out, out_type, want_out, NULL, n_out),
                 most = bf16 ? TOL_CHAIN_BF16 : TOL_CHAIN_F16;
    worst_x[bf16] = fmax(worst_x[bf16], in_x);
    worst_out[bf16] = fmax(worst_out[bf16], in_out);
    if (!(in_x <= most) || !(in_out <= most))
        fail_msg("case %d: error of x %.3g, of out %.3g", number, in_x, in_out);
    for (size_t i = (size_t)n_out * out_size; i < out_bytes; i++) assert_int_equal(out[i], 0xff);

    /* Again: the same x and the same bits; then in a graph whose kernels overlap, three launches behind each other. */
    gpu_put(gpu, args.x, d.x, x_bytes);
    assert_int_equal(bs_op_dense_chain(gpu->stream, &args), BS_STATUS_OK);
    x_again = dense_get(gpu, args.x, x_bytes);
    out_again = dense_get(gpu, args.out, out_bytes);
    assert_memory_equal(x, x_again, x_bytes);
    assert_memory_equal(out, out_again, out_bytes);
    free(x_again);
    free(out_again);
    for (int i = 0; i < 3; i++) assert_int_equal(bs_op_dense_chain(gpu->stream, &args), BS_STATUS_OK);
    x_again = dense_get(gpu, args.x, x_bytes);
    bs_graph *graph;
    gpu_put(gpu, args.x, x, x_bytes);
    bs_stream_set_overlap(gpu->stream, true);
    assert_int_equal(bs_capture_begin(gpu->stream), BS_STATUS_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(bs_op_dense_chain(gpu->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_capture_end(gpu->stream, &graph), BS_STATUS_OK);
    assert_int_equal(bs_graph_launch(gpu->stream, graph), BS_STATUS_OK);
    bs_stream_set_overlap(gpu->stream, false);
    float *x_graph = dense_get(gpu, args.x, x_bytes);
    assert_memory_equal(x_again, x_graph, x_bytes);
    bs_graph_destroy(graph);
    free(x_graph);
    free(x_again);
    free(x);
    free(out);
    free(want_x);
    free(want_out);
    free_data(&d);
}

static void test_shapes(void **state)
{
    gpu_side *sides = *state, *gpu = &sides[GPU_GPU_SIDE];
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        if (gpu_short && s->n_hidden * s->n_ffn > 4000000) continue;
        if (!bs_dense_chain_fits(gpu->device, s->n_attended, s->n_hidden, s->n_ffn, s->act)) {
            printf("case %d: this GPU has no chain for it\n", i);
            continue;
        }
        check_case(gpu, s, i);
    }
    printf("worst relative error: f16 x %.2g out %.2g, bf16 x %.2g out %.2g\n", worst_x[0], worst_out[0],
           worst_x[1], worst_out[1]);
}

static void test_refused(void **state)
{
    gpu_side *sides = *state, *gpu = &sides[GPU_GPU_SIDE];
    assert_false(bs_dense_chain_fits(sides[GPU_CPU_SIDE].device, 64, 64, 64, BS_TYPE_F32));
    assert_false(bs_dense_chain_fits(gpu->device, 64, 64, 64, BS_TYPE_F32));
    assert_false(bs_dense_chain_fits(gpu->device, 60, 64, 64, BS_TYPE_F16));
    assert_false(bs_dense_chain_fits(gpu->device, 64, 16384, 64, BS_TYPE_F16));
    assert_false(bs_dense_chain_fits(gpu->device, 64, 64, 1 << 20, BS_TYPE_F16));
    assert_int_equal(bs_op_dense_chain(gpu->stream, &(bs_dense_chain_args){0}), BS_STATUS_RANGE);
    bs_error_clear();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_refused)};
    gpu_need_one(argc, argv);
    return cmocka_run_group_tests(tests, gpu_open, gpu_close);
}
