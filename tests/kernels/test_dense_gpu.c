/* test_dense_gpu.c: the GPU's embed, rmsnorm, silu_mul and gemm against f64 over the same rounded numbers, the
 * same bits run to run, in a graph, and with programmatic dependent launch. What must not be read is NaN, what must
 * not be written is checked. */
#include "tests/kernels/dense_fixture.h"
#include "tests/tolerances.h"

static gpu_side *gpu_of(void **state)
{
    return (gpu_side *)*state + GPU_GPU_SIDE;
}

/* ---- gemm ---- */

typedef struct gemm_case {
    bs_type type, act, out;
    int64_t rows, cols;
    int first, tokens;
    int64_t pad_x, pad_y, pad_w; /* elements behind a row */
    bool bias;
} gemm_case;

typedef struct gemm_run {
    bs_weight w;
    bs_gemm_args args;
    size_t y_bytes;
} gemm_run;

static double worst_gemm;

static void *widen_x(const gemm_case *c, uint64_t *seed)
{
    const int64_t ld = c->cols + c->pad_x;
    void *x = dense_noise((size_t)(c->tokens * ld), c->act, seed);
    for (int64_t i = 0; i < c->tokens * ld; i++)
        if (i % ld >= c->cols) dense_store(x, (size_t)i, c->act, NAN);
    return x;
}

static void *widen_w(const gemm_case *c, uint64_t *seed)
{
    const int64_t width = c->first + c->cols + c->pad_w;
    void *w = dense_noise((size_t)(c->rows * width), c->type, seed);
    for (int64_t i = 0; i < c->rows * width; i++)
        if (i % width < c->first || i % width >= c->first + c->cols) dense_store(w, (size_t)i, c->type, NAN);
    return w;
}

/* Everything on the GPU; x, w and bias are host memory. */
static void place(gpu_side *gpu, const gemm_case *c, const void *x, const void *w, const float *bias,
                  gemm_run *r)
{
    const int64_t width = c->first + c->cols + c->pad_w;
    const size_t bytes = bs_gemm_workspace_bytes(gpu->device, c->rows, c->cols, c->tokens);
    r->y_bytes = (size_t)(c->tokens * (c->rows + c->pad_y)) * dense_size(c->out);
    r->w = (bs_weight){.type = c->type,
                       .data = dense_put(gpu, w, (size_t)(c->rows * width) * dense_size(c->type)),
                       .row_bytes = (size_t)width * dense_size(c->type),
                       .n_rows = c->rows,
                       .n_cols = c->cols};
    /* A view that begins inside a row: data moves, as for types whose block is one element. */
    r->w.data = (const uint8_t *)r->w.data + (size_t)c->first * dense_size(c->type);
    r->args = (bs_gemm_args){
        .w = &r->w,
        .bias = c->bias ? dense_put(gpu, bias, (size_t)c->rows * 4) : NULL,
        .x = dense_put(gpu, x, (size_t)(c->tokens * (c->cols + c->pad_x)) * dense_size(c->act)),
        .ldx = c->cols + c->pad_x,
        .n_tokens = c->tokens,
        .act = c->act,
        .out_type = c->out,
        .y = dense_put(gpu, NULL, r->y_bytes),
        .ldy = c->rows + c->pad_y,
        .workspace = dense_put(gpu, NULL, bytes),
        .workspace_bytes = bytes};
}

static void compare(const gemm_case *c, const void *x, const void *w, const float *bias, const void *y)
{
    const int64_t ldx = c->cols + c->pad_x, ldy = c->rows + c->pad_y, width = c->first + c->cols + c->pad_w;
    float *row = malloc((size_t)c->cols * 4 + 4), *xs = malloc((size_t)(c->tokens * c->cols) * 4 + 4);
    assert_true(row && xs);
    for (int64_t i = 0; i < c->tokens * c->cols; i++)
        xs[i] = dense_load(x, (size_t)(i / c->cols * ldx + i % c->cols), c->act);
    for (int64_t r = 0; r < c->rows; r++) {
        for (int64_t i = 0; i < c->cols; i++)
            row[i] = dense_load(w, (size_t)(r * width + c->first + i), c->type);
        for (int t = 0; t < c->tokens; t++) {
            double want = c->bias ? bias[r] : 0, size = fabs(want);
            for (int64_t i = 0; i < c->cols; i++) {
                const double term = (double)row[i] * xs[t * c->cols + i];
                want += term;
                size += fabs(term);
            }
            const double got = dense_load(y, (size_t)(t * ldy + r), c->out), error = fabs(got - want);
            /* cuBLAS rounds the sum before it adds a bias that is rounded too. */
            const double with_bias = c->bias ? fabs(bias[r]) + fabs(want - bias[r]) : 0;
            const double rounding = c->out == BS_TYPE_F32
                                        ? 0
                                        : dense_rounding(c->out) * (fabs(want) + with_bias) + 0x1p-24;
            if (c->out == BS_TYPE_F32 && size > 0) worst_gemm = fmax(worst_gemm, error / size);
            if (!(error <= TOL_GEMM_GPU * size + rounding))
                fail_msg("%s x %s to %s, %dx%d from %d, %d tokens: row %d of token %d is %.9g, not %.9g",
                         bs_type_name(c->type), bs_type_name(c->act), bs_type_name(c->out), (int)c->rows,
                         (int)c->cols, c->first, c->tokens, (int)r, t, got, want);
        }
    }
    for (int64_t i = 0; i < c->tokens * ldy; i++)
        if (i % ldy >= c->rows)
            for (size_t b = 0; b < dense_size(c->out); b++)
                assert_int_equal(((const uint8_t *)y)[(size_t)i * dense_size(c->out) + b], 0xff);
    free(row);
    free(xs);
}

/* Plain, again, and from a graph with overlap: the same bits. */
static void check_gemm(gpu_side *gpu, const gemm_case *c, uint64_t seed)
{
    gemm_run r;
    void *x = widen_x(c, &seed), *w = widen_w(c, &seed), *again;
    float *bias = dense_noise((size_t)c->rows, BS_TYPE_F32, &seed);
    place(gpu, c, x, w, bias, &r);
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_OK);
    void *y = dense_get(gpu, r.args.y, r.y_bytes);
    compare(c, x, w, bias, y);
    gpu_poison(gpu, r.args.y, r.y_bytes + 1);
    bs_graph *graph;
    bs_stream_set_overlap(gpu->stream, true);
    assert_int_equal(bs_capture_begin(gpu->stream), BS_STATUS_OK);
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_OK);
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_OK);
    assert_int_equal(bs_capture_end(gpu->stream, &graph), BS_STATUS_OK);
    bs_stream_set_overlap(gpu->stream, false);
    for (int i = 0; i < 2; i++) assert_int_equal(bs_graph_launch(gpu->stream, graph), BS_STATUS_OK);
    again = dense_get(gpu, r.args.y, r.y_bytes);
    for (int t = 0; t < c->tokens; t++) {
        const size_t at = (size_t)(t * (c->rows + c->pad_y)) * dense_size(c->out);
        assert_memory_equal((uint8_t *)again + at, (uint8_t *)y + at, (size_t)c->rows * dense_size(c->out));
    }
    bs_graph_destroy(graph);
    dense_free();
    free(x);
    free(w);
    free(y);
    free(again);
    free(bias);
}

/* Shapes that the wide ways take and shapes that they leave; every T up to 17 and more. */
static void test_gemm(void **state)
{
    static const int64_t shapes[][3] = {{1, 256, 0},    {3, 64, 0},     {67, 576, 0},  {200, 301, 5},
                                        {33, 192, 64},  {5, 1, 17},     {1000, 64, 8}, {7, 0, 0},
                                        {16, 1024, 0},  {129, 2056, 8}, {520, 776, 3}, {24, 8, 0},
                                        {1100, 136, 0}, {250, 4096, 0}};
    static const int tokens[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 40};
    enum { N_SHAPES = sizeof shapes / sizeof shapes[0], N_TOKENS = sizeof tokens / sizeof tokens[0] };
    for (int i = 0; i < 3 * N_SHAPES * N_TOKENS; i++) {
        if (!gpu_runs_case(i, 11)) continue;
        const bs_type act = dense_types[i % 3], type = i % 7 == 0 ? dense_types[i / 7 % 3] : act;
        const int64_t *shape = shapes[i / 3 % N_SHAPES];
        const bool aligned = i % 2;
        check_gemm(gpu_of(state),
                   &(gemm_case){.type = type,
                                .act = act,
                                .out = i % 5 < 2 ? BS_TYPE_F32 : act,
                                .rows = shape[0],
                                .cols = shape[1],
                                .first = (int)shape[2],
                                .tokens = tokens[i / 3 / N_SHAPES],
                                .pad_x = aligned ? 8 : 3,
                                .pad_y = aligned ? 8 : 2,
                                .pad_w = aligned ? (8 - (shape[1] + shape[2]) % 8) % 8 : 1,
                                .bias = i % 4 == 1},
                   (uint64_t)(1000 + i));
    }
    printf("gemm: worst error %.3g of the sum of |w x|\n", worst_gemm);
}

/* Shapes of Llama-3.1-8B and its shards, and long rows. */
static void test_gemm_large(void **state)
{
    static const int64_t shapes[][2] = {{1024, 4096}, {4096, 4096}, {4096, 14336},
                                        {512, 8192},  {128, 4096},  {2048, 512}};
    static const int tokens[] = {1, 4, 16, 300};
    for (int s = 0; s < 6; s++)
        for (int t = 0; t < 4; t++) {
            if (!gpu_runs_case(4 * s + t, 16)) continue;
            if (t > 0 && s > 0 && (s + t) % 3) continue; /* the reference is slow */
            check_gemm(gpu_of(state),
                       &(gemm_case){.type = s % 2 ? BS_TYPE_F16 : BS_TYPE_BF16,
                                    .act = s % 2 ? BS_TYPE_F16 : BS_TYPE_BF16,
                                    .out = t % 2   ? BS_TYPE_F32
                                           : s % 2 ? BS_TYPE_F16
                                                   : BS_TYPE_BF16,
                                    .rows = t == 3 && shapes[s][0] > 512 ? 512 : shapes[s][0],
                                    .cols = shapes[s][1],
                                    .tokens = tokens[t]},
                       (uint64_t)(77 * s + t));
        }
}

/* More rows than a CTA takes at a time, of few columns. */
static void test_gemm_tall(void **state)
{
    static const int64_t shapes[][2] = {{13003, 72}, {28672, 64}, {60011, 136}};
    static const int tokens[] = {1, 2, 5, 8, 16};
    for (int i = 0; i < 15; i++) {
        const bs_type type = i % 2 ? BS_TYPE_F16 : BS_TYPE_BF16;
        if (!gpu_runs_case(i, 5)) continue;
        check_gemm(gpu_of(state),
                   &(gemm_case){.type = type,
                                .act = type,
                                .out = i % 3 ? BS_TYPE_F32 : type,
                                .rows = shapes[i / 5][0],
                                .cols = shapes[i / 5][1],
                                .tokens = tokens[i % 5],
                                .pad_y = 8,
                                .bias = i % 4 == 1},
                   (uint64_t)(500 + i));
    }
}

/* A gated product is silu_mul of the plain one's f32 sums, which have the same bits; nothing is written behind its rows. */
static void check_gated(gpu_side *gpu, const gemm_case *c, uint64_t seed)
{
    gemm_run r;
    void *x = widen_x(c, &seed), *w = widen_w(c, &seed);
    gemm_case plain = *c;
    plain.out = BS_TYPE_F32;
    place(gpu, &plain, x, w, NULL, &r);
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_OK);
    float *sums = dense_get(gpu, r.args.y, r.y_bytes);
    place(gpu, c, x, w, NULL, &r);
    r.args.gated = true;
    r.args.ldy = c->rows / 2 + c->pad_y;
    assert_true(bs_gemm_gates(gpu->device, &r.args));
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_OK);
    void *y = dense_get(gpu, r.args.y, r.y_bytes);
    for (int t = 0; t < c->tokens; t++)
        for (int64_t i = 0; i < c->rows / 2; i++) {
            const float *row = sums + t * (c->rows + c->pad_y);
            const double want = row[i] / (1 + exp(-(double)row[i])) * row[i + c->rows / 2];
            const double got = dense_load(y, (size_t)(t * r.args.ldy + i), c->out);
            const double rounding = c->out == BS_TYPE_F32 ? 0 : dense_rounding(c->out) * fabs(want) + 0x1p-24;
            if (!(fabs(got - want) <= TOL_GEMM_GPU * fabs(want) + rounding))
                fail_msg("gated %s, %dx%d, %d tokens: channel %d of token %d is %.9g, not %.9g",
                         bs_type_name(c->type), (int)c->rows, (int)c->cols, c->tokens, (int)i, t, got, want);
        }
    for (int64_t i = 0; i < c->tokens * r.args.ldy; i++)
        if (i % r.args.ldy >= c->rows / 2)
            for (size_t b = 0; b < dense_size(c->out); b++)
                assert_int_equal(((const uint8_t *)y)[(size_t)i * dense_size(c->out) + b], 0xff);
    dense_free();
    free(x);
    free(w);
    free(y);
    free(sums);
}

static void test_gemm_gated(void **state)
{
    static const int64_t shapes[][2] = {{2, 64},      {18, 200},   {134, 576},
                                        {1152, 1024}, {6150, 136}, {28672, 64}};
    static const int tokens[] = {1, 3, 8, 9, 16};
    for (int i = 0; i < 60; i++) {
        const bs_type type = i % 2 ? BS_TYPE_F16 : BS_TYPE_BF16;
        if (!gpu_runs_case(i, 7)) continue;
        check_gated(gpu_of(state),
                    &(gemm_case){.type = type,
                                 .act = type,
                                 .out = i % 4 < 2 ? BS_TYPE_F32 : type,
                                 .rows = shapes[i % 6][0],
                                 .cols = shapes[i % 6][1],
                                 .tokens = tokens[i / 6 % 5],
                                 .pad_y = i % 5 ? 8 : 0},
                    (uint64_t)(900 + i));
    }
}

/* Where there is none it is refused in one line. */
static void test_gemm_gated_refused(void **state)
{
    gpu_side *gpu = gpu_of(state), *cpu = (gpu_side *)*state + GPU_CPU_SIDE;
    const gemm_case c = {
        .type = BS_TYPE_BF16, .act = BS_TYPE_BF16, .out = BS_TYPE_BF16, .rows = 4, .cols = 8, .tokens = 17};
    uint64_t seed = 1;
    gemm_run r;
    void *x = widen_x(&c, &seed), *w = widen_w(&c, &seed);
    place(gpu, &c, x, w, NULL, &r);
    r.args.gated = true;
    assert_int_equal(bs_op_gemm(gpu->stream, &r.args), BS_STATUS_UNSUPPORTED);
    assert_non_null(strstr(bs_error_message(), "no gated product of BF16 weights and 17 tokens"));
    bs_error_clear();
    r.args.n_tokens = 1;
    assert_true(bs_gemm_gates(gpu->device, &r.args));
    assert_false(bs_gemm_gates(cpu->device, &r.args));
    dense_free();
    free(x);
    free(w);
}

/* One token's NaN stays in its token, one weight's in its row. */
static void test_gemm_nan(void **state)
{
    for (int i = 0; i < 12; i++) {
        const int tokens[] = {1, 5, 16, 20};
        const gemm_case c = {.type = dense_types[i % 3],
                             .act = dense_types[i % 3],
                             .out = dense_types[i % 3],
                             .rows = 40,
                             .cols = 264,
                             .tokens = tokens[i / 3]};
        uint64_t seed = 9;
        gemm_run r;
        void *x = widen_x(&c, &seed), *w = widen_w(&c, &seed);
        const int bad = c.tokens > 1 ? 3 : -1;
        if (bad >= 0) dense_store(x, (size_t)(bad * c.cols + 100), c.act, INFINITY);
        if (bad >= 0) dense_store(x, (size_t)(bad * c.cols + 101), c.act, NAN);
        dense_store(w, (size_t)(13 * c.cols + 263), c.type, NAN);
        place(gpu_of(state), &c, x, w, NULL, &r);
        assert_int_equal(bs_op_gemm(gpu_of(state)->stream, &r.args), BS_STATUS_OK);
        void *y = dense_get(gpu_of(state), r.args.y, r.y_bytes);
        for (int t = 0; t < c.tokens; t++)
            for (int64_t row = 0; row < c.rows; row++)
                assert_int_equal(isnan(dense_load(y, (size_t)(t * c.rows + row), c.out)) != 0,
                                 t == bad || row == 13);
        dense_free();
        free(x);
        free(w);
        free(y);
    }
}

static void test_gemm_refused(void **state)
{
    gpu_side *gpu = gpu_of(state);
    const bs_weight w = {
        .type = BS_TYPE_Q4_1, .data = gpu_stage(gpu, 0), .row_bytes = 20, .n_rows = 1, .n_cols = 32};
    const size_t bytes = bs_gemm_workspace_bytes(gpu->device, 1, 32, 1);
    bs_gemm_args args = {.w = &w,
                         .x = gpu_stage(gpu, 256),
                         .ldx = 32,
                         .n_tokens = 1,
                         .act = BS_TYPE_BF16,
                         .out_type = BS_TYPE_BF16,
                         .y = gpu_stage(gpu, 512),
                         .ldy = 1,
                         .workspace = dense_put(gpu, NULL, bytes),
                         .workspace_bytes = bytes};
    assert_int_equal(bs_op_gemm(gpu->stream, &args), BS_STATUS_UNSUPPORTED);
    assert_string_equal(bs_error_message(), "gemm: Q4_1 weights; a GPU reads F32, F16 and BF16");
    bs_error_clear();
    const bs_embed_args embed = {
        .table = &w, .tokens = gpu_stage(gpu, 0), .n_tokens = 1, .x = gpu_stage(gpu, 256)};
    assert_int_equal(bs_op_embed(gpu->stream, &embed), BS_STATUS_UNSUPPORTED);
    assert_string_equal(bs_error_message(), "embed: Q4_1 table; a GPU reads F32, F16 and BF16");
    bs_error_clear();
    args.n_tokens = 0; /* nothing to do is never refused */
    assert_int_equal(bs_op_gemm(gpu->stream, &args), BS_STATUS_OK);
    dense_free();
}

/* ---- the small ops ---- */

static void test_embed(void **state)
{
    enum { VOCAB = 11, T = 4 };
    gpu_side *gpu = gpu_of(state);
    for (int i = 0; i < 6; i++) {
        const int n = i < 3 ? 67 : 4096;
        const bs_type type = dense_types[i % 3];
        const int32_t tokens[T] = {10, 0, VOCAB, 3};
        uint64_t seed = (uint64_t)i;
        void *table = dense_noise((size_t)(VOCAB * (n + 1)), type, &seed);
        const bs_weight w = {.type = type,
                             .data = dense_put(gpu, table, (size_t)(VOCAB * (n + 1)) * dense_size(type)),
                             .row_bytes = (size_t)(n + 1) * dense_size(type),
                             .n_rows = VOCAB,
                             .n_cols = n};
        const bs_embed_args args = {&w, dense_put(gpu, tokens, sizeof tokens), T,
                                    dense_put(gpu, NULL, (size_t)(T * n) * 4)};
        assert_int_equal(bs_op_embed(gpu->stream, &args), BS_STATUS_OK);
        float *x = dense_get(gpu, args.x, (size_t)(T * n) * 4);
        for (int t = 0; t < T; t++)
            for (int k = 0; k < n; k++) {
                if (t == 2) assert_true(isnan(x[t * n + k])); /* no such token */
                else assert_true(x[t * n + k] == dense_load(table, (size_t)(tokens[t] * (n + 1) + k), type));
            }
        free(table);
        free(x);
        dense_free();
    }
}

typedef struct norm_case {
    int n, tokens, way; /* way: plain, with the residual, the residual in place, with chosen rows */
    bs_type act;
} norm_case;

static void check_norm(gpu_side *gpu, const norm_case *c, uint64_t seed)
{
    enum { IN_ROWS = 7 };
    const size_t size = (size_t)c->tokens * (size_t)c->n;
    const int in_rows = c->way == 3 ? IN_ROWS : c->tokens;
    float *x = dense_noise((size_t)in_rows * (size_t)c->n, BS_TYPE_F32, &seed),
          *add = dense_noise(size, BS_TYPE_F32, &seed), *gain = dense_noise((size_t)c->n, BS_TYPE_F32, &seed);
    int32_t *rows = malloc((size_t)c->tokens * 4);
    for (int t = 0; t < c->tokens; t++) rows[t] = (3 * t + 2) % IN_ROWS;
    float *x_dev = dense_put(gpu, x, (size_t)in_rows * (size_t)c->n * 4);
    const bs_rmsnorm_args args = {.x = x_dev,
                                  .gain = dense_put(gpu, gain, (size_t)c->n * 4),
                                  .add = c->way == 1 || c->way == 2 ? dense_put(gpu, add, size * 4) : NULL,
                                  .x_out = c->way == 1   ? dense_put(gpu, NULL, size * 4)
                                           : c->way == 2 ? x_dev
                                                         : NULL,
                                  .rows = c->way == 3 ? dense_put(gpu, rows, (size_t)c->tokens * 4) : NULL,
                                  .n_tokens = c->tokens,
                                  .n = c->n,
                                  .eps = 1e-5f,
                                  .act = c->act,
                                  .out = dense_put(gpu, NULL, size * dense_size(c->act))};
    assert_int_equal(bs_op_rmsnorm(gpu->stream, &args), BS_STATUS_OK);
    void *out = dense_get(gpu, args.out, size * dense_size(c->act));
    float *sum = args.add ? dense_get(gpu, args.x_out, size * 4) : NULL;
    for (int t = 0; t < c->tokens; t++) {
        double squares = 0;
        const float *from = x + (c->way == 3 ? rows[t] : t) * c->n;
        for (int i = 0; i < c->n; i++) {
            const float in = args.add ? from[i] + add[t * c->n + i] : from[i];
            squares += (double)in * in;
            if (args.add) assert_true(sum[t * c->n + i] == in);
        }
        for (int i = 0; i < c->n; i++) {
            const double in = args.add ? from[i] + add[t * c->n + i] : from[i];
            const double want = in / sqrt(squares / c->n + 1e-5f) * gain[i];
            const double got = dense_load(out, (size_t)(t * c->n + i), c->act);
            const double tolerance = (TOL_NORM_GPU + (c->act == BS_TYPE_F32 ? 0 : dense_rounding(c->act))) *
                                     fabs(want);
            if (!(fabs(got - want) <= tolerance + 1e-7))
                fail_msg("n %d, %d tokens, way %d, %s: %d of token %d is %.9g, not %.9g", c->n, c->tokens,
                         c->way, bs_type_name(c->act), i, t, got, want);
        }
    }
    free(x);
    free(add);
    free(gain);
    free(rows);
    free(out);
    free(sum);
    dense_free();
}

static void test_rmsnorm(void **state)
{
    static const int sizes[] = {1, 7, 64, 576, 4096, 5120, 16384, 20004, 4099}, tokens[] = {1, 2, 65};
    for (int i = 0; i < 9 * 3 * 4; i++)
        if (gpu_runs_case(i, 5))
            check_norm(gpu_of(state),
                       &(norm_case){sizes[i % 9], tokens[i / 9 % 3], i / 27, dense_types[i % 4 % 3]},
                       (uint64_t)i);
}

static void test_silu_mul(void **state)
{
    gpu_side *gpu = gpu_of(state);
    for (int i = 0; i < 18; i++) {
        const bs_type act = dense_types[i % 3];
        const int n = i / 3 % 3 == 0 ? 1 : i / 3 % 3 == 1 ? 67 : 14336, t = i < 9 ? 1 : 5;
        const int ld = n + (i % 2 ? 8 : 0), ld_out = i % 2 ? n : n + 8;
        uint64_t seed = (uint64_t)i;
        void *gate = dense_noise((size_t)(t * ld), act, &seed),
             *up = dense_noise((size_t)(t * ld), act, &seed);
        for (int k = 0; k < t * ld; k++)
            dense_store(gate, (size_t)k, act, 20 * dense_load(gate, (size_t)k, act));
        dense_store(gate, 0, act, -200);
        const bs_silu_mul_args args = {.gate = dense_put(gpu, gate, (size_t)(t * ld) * dense_size(act)),
                                       .up = dense_put(gpu, up, (size_t)(t * ld) * dense_size(act)),
                                       .ld = ld,
                                       .n_tokens = t,
                                       .n = n,
                                       .act = act,
                                       .out = dense_put(gpu, NULL, (size_t)(t * ld_out) * dense_size(act)),
                                       .ld_out = ld_out};
        assert_int_equal(bs_op_silu_mul(gpu->stream, &args), BS_STATUS_OK);
        void *out = dense_get(gpu, args.out, (size_t)(t * ld_out) * dense_size(act));
        for (int k = 0; k < t * ld_out; k++) {
            const double got = dense_load(out, (size_t)k, act);
            if (k % ld_out >= n) {
                assert_true(isnan(got));
                continue;
            }
            const size_t at = (size_t)(k / ld_out * ld + k % ld_out);
            const double g = dense_load(gate, at, act), want = g / (1 + exp(-g)) * dense_load(up, at, act);
            const double rounding = act == BS_TYPE_F32 ? 0 : dense_rounding(act);
            if (!(fabs(got - want) <=
                  (TOL_SILU_GPU + rounding) * fabs(want) + (act == BS_TYPE_F16 ? 0x1p-25 : 1e-37)))
                fail_msg("%s, n %d: %d is %.9g, not %.9g", bs_type_name(act), n, k, got, want);
        }
        free(gate);
        free(up);
        free(out);
        dense_free();
    }
}

/* ---- a chain, as a layer has it ---- */

enum { CHAIN_N = 1024, CHAIN_F = 3584 };

typedef struct chain {
    bs_weight up, gate, down;
    float *x, *sum, *gain, *y;
    void *normed, *h_gate, *h_up, *workspace;
    size_t workspace_bytes;
    int tokens;
} chain;

static void project(gpu_side *gpu, const chain *c, const bs_weight *w, const void *x, bs_type out, void *y)
{
    const bs_gemm_args args = {.w = w,
                               .x = x,
                               .ldx = w->n_cols,
                               .n_tokens = c->tokens,
                               .act = BS_TYPE_BF16,
                               .out_type = out,
                               .y = y,
                               .ldy = w->n_rows,
                               .workspace = c->workspace,
                               .workspace_bytes = c->workspace_bytes};
    assert_int_equal(bs_op_gemm(gpu->stream, &args), BS_STATUS_OK);
}

/* Norm with the residual, gate, up, SiLU, down; three times over, each reading what the one before wrote. */
static void queue_chain(gpu_side *gpu, const chain *c)
{
    for (int i = 0; i < 3; i++) {
        const bs_rmsnorm_args norm = {.x = c->x,
                                      .gain = c->gain,
                                      .add = c->y,
                                      .x_out = c->sum,
                                      .n_tokens = c->tokens,
                                      .n = CHAIN_N,
                                      .eps = 1e-5f,
                                      .act = BS_TYPE_BF16,
                                      .out = c->normed};
        const bs_silu_mul_args silu = {c->h_gate, c->h_up,      CHAIN_F,   c->tokens,
                                       CHAIN_F,   BS_TYPE_BF16, c->h_gate, CHAIN_F};
        assert_int_equal(bs_op_rmsnorm(gpu->stream, &norm), BS_STATUS_OK);
        project(gpu, c, &c->gate, c->normed, BS_TYPE_BF16, c->h_gate);
        project(gpu, c, &c->up, c->normed, BS_TYPE_BF16, c->h_up);
        assert_int_equal(bs_op_silu_mul(gpu->stream, &silu), BS_STATUS_OK);
        project(gpu, c, &c->down, c->h_gate, BS_TYPE_F32, c->y);
    }
}

static bs_weight chain_weight(gpu_side *gpu, int64_t rows, int64_t cols, uint64_t *seed)
{
    void *w = dense_noise((size_t)(rows * cols), BS_TYPE_BF16, seed);
    const bs_weight weight = {.type = BS_TYPE_BF16,
                              .data = dense_put(gpu, w, (size_t)(rows * cols) * 2),
                              .row_bytes = (size_t)cols * 2,
                              .n_rows = rows,
                              .n_cols = cols};
    free(w);
    return weight;
}

/* Overlapped launches race if a wait is missing: many replays, the same bits as one launch after the other. */
static void test_chain(void **state)
{
    gpu_side *gpu = gpu_of(state);
    static const int tokens[] = {1, 3, 16, 33};
    for (int i = 0; i < 4; i++) {
        uint64_t seed = 5;
        const size_t t = (size_t)tokens[i];
        float *x = dense_noise(t * CHAIN_N, BS_TYPE_F32, &seed), *zeros = calloc(t * CHAIN_N, 4);
        chain c = {.up = chain_weight(gpu, CHAIN_F, CHAIN_N, &seed),
                   .gate = chain_weight(gpu, CHAIN_F, CHAIN_N, &seed),
                   .down = chain_weight(gpu, CHAIN_N, CHAIN_F, &seed),
                   .x = dense_put(gpu, x, t * CHAIN_N * 4),
                   .gain = dense_put(gpu, x, CHAIN_N * 4),
                   .sum = dense_put(gpu, NULL, t * CHAIN_N * 4),
                   .y = dense_put(gpu, zeros, t * CHAIN_N * 4),
                   .normed = dense_put(gpu, NULL, t * CHAIN_N * 2),
                   .h_gate = dense_put(gpu, NULL, t * CHAIN_F * 2),
                   .h_up = dense_put(gpu, NULL, t * CHAIN_F * 2),
                   .workspace_bytes = bs_gemm_workspace_bytes(gpu->device, CHAIN_F, CHAIN_F, tokens[i]),
                   .tokens = tokens[i]};
        c.workspace = dense_put(gpu, NULL, c.workspace_bytes);
        queue_chain(gpu, &c);
        float *want = dense_get(gpu, c.y, t * CHAIN_N * 4);
        for (size_t k = 0; k < t * CHAIN_N; k++) assert_true(isfinite(want[k]));
        bs_graph *graph;
        bs_stream_set_overlap(gpu->stream, true);
        assert_int_equal(bs_capture_begin(gpu->stream), BS_STATUS_OK);
        queue_chain(gpu, &c);
        assert_int_equal(bs_capture_end(gpu->stream, &graph), BS_STATUS_OK);
        bs_stream_set_overlap(gpu->stream, false);
        for (int run = 0; run < (gpu_short ? 2 : 20); run++) {
            gpu_put(gpu, c.y, zeros, t * CHAIN_N * 4);
            assert_int_equal(bs_graph_launch(gpu->stream, graph), BS_STATUS_OK);
            float *got = dense_get(gpu, c.y, t * CHAIN_N * 4);
            assert_memory_equal(got, want, t * CHAIN_N * 4);
            free(got);
        }
        bs_graph_destroy(graph);
        dense_free();
        free(x);
        free(zeros);
        free(want);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),      cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_silu_mul),   cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_gemm_large), cmocka_unit_test(test_gemm_tall),
        cmocka_unit_test(test_gemm_gated), cmocka_unit_test(test_gemm_gated_refused),
        cmocka_unit_test(test_gemm_nan),   cmocka_unit_test(test_gemm_refused),
        cmocka_unit_test(test_chain),
    };
    gpu_need_one(argc, argv);
    return cmocka_run_group_tests(tests, gpu_open, gpu_close);
}
