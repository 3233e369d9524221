/* test_append.c: RoPE's table, append and unrotate.
 *
 * What append stores is defined bit for bit (docs/kv-format.md, "What is stored"); the reference here follows
 * it with products forced to memory and fp16 by the compiler, and every instruction set must give its bits.
 * The Hadamard's butterflies are held to the matrix (−1)^popcount(i & j) / √D in double.
 */
#include "tests/kernels/kv_fixture.h"
#include "tests/tolerances.h"

enum { PAGE = BS_PAGE_TOKENS, H = 6, K = 2, L = 2, LAYER = 1, MAX_T = 7, MAX_D = 128, PAD = 5 };

static void ref_rope(float *x, const float *cs, int n_rot, bool interleaved)
{
    for (int i = 0; i < n_rot / 2; i++) {
        float *a = x + (interleaved ? 2 * i : i), *b = x + (interleaved ? 2 * i + 1 : i + n_rot / 2);
        volatile float ac = *a * cs[2 * i], bs = *b * cs[2 * i + 1], bc = *b * cs[2 * i],
                       as = *a * cs[2 * i + 1];
        *a = ac - bs;
        *b = bc + as;
    }
}

/* Recursive: the last butterfly joins the halves. */
static void ref_butterflies(float *x, int d)
{
    if (d == 1) return;
    ref_butterflies(x, d / 2);
    ref_butterflies(x + d / 2, d / 2);
    for (int i = 0; i < d / 2; i++) {
        float u = x[i], v = x[i + d / 2];
        x[i] = u + v;
        x[i + d / 2] = u - v;
    }
}

static void ref_head(float *x, const float *cs, int d, int n_rot, bool interleaved, bool rope, bool hadamard)
{
    if (rope) ref_rope(x, cs, n_rot, interleaved);
    if (!hadamard) return;
    ref_butterflies(x, d);
    for (int i = 0; i < d; i++) x[i] *= d == 64 ? 0.125f : 0.08838834764831845f;
}

typedef struct append_case {
    int d, n_rot, n_tokens;
    bool interleaved, hadamard;
} append_case;

typedef struct append_data {
    float q[MAX_T][H * MAX_D + PAD], k[MAX_T][K * MAX_D + PAD], v[MAX_T][K * MAX_D + PAD], cs[MAX_T * MAX_D];
    int32_t slot[MAX_T], page_token[MAX_T];
} append_data;

static void draw_case(const append_case *c, append_data *x, uint64_t seed)
{
    uint64_t state = seed;
    for (int t = 0; t < MAX_T; t++) {
        for (int i = 0; i < H * MAX_D + PAD; i++) x->q[t][i] = (float)kv_normal(&state);
        for (int i = 0; i < K * MAX_D + PAD; i++) {
            x->k[t][i] = (float)kv_normal(&state);
            x->v[t][i] = (float)(kv_normal(&state) * (i % 3 ? 1e-6 : 1)); /* fp16 subnormals too */
        }
        x->slot[t] = t % 3 == 1 ? -1 : t % 3;
        x->page_token[t] = (127 + 3 * t) % PAGE;
    }
    for (int i = 0; i < c->n_tokens * c->n_rot / 2; i++) {
        double angle = 100 * kv_uniform(&state);
        x->cs[2 * i] = (float)cos(angle);
        x->cs[2 * i + 1] = (float)sin(angle);
    }
}

static bs_status run_append(kv_fixture *f, const append_case *c, append_data *x)
{
    bs_append_args args = {.pools = &f->pools,
                           .layer = LAYER,
                           .n_tokens = c->n_tokens,
                           .n_heads = H,
                           .q = x->q,
                           .k = x->k,
                           .v = x->v,
                           .q_ld = H * MAX_D + PAD,
                           .kv_ld = K * MAX_D + PAD,
                           .act = BS_TYPE_F32,
                           .cos_sin = x->cs,
                           .n_rot = c->n_rot,
                           .rope_interleaved = c->interleaved,
                           .f16_slot = x->slot,
                           .page_token = x->page_token};
    return bs_op_append(f->stream, &args);
}

/* What the f16 pool and q must be after it. */
static void ref_append(const append_case *c, append_data *x, uint16_t *pool)
{
    const int d = c->d;
    for (int t = 0; t < c->n_tokens; t++) {
        const float *cs = x->cs + t * c->n_rot;
        for (int h = 0; h < H; h++)
            ref_head(x->q[t] + h * d, cs, d, c->n_rot, c->interleaved, true, c->hadamard);
        if (x->slot[t] < 0) continue;
        for (int h = 0; h < K; h++) {
            for (int is_v = 0; is_v < 2; is_v++) {
                float head[MAX_D];
                memcpy(head, (is_v ? x->v[t] : x->k[t]) + h * d, (size_t)d * sizeof *head);
                ref_head(head, cs, d, c->n_rot, c->interleaved, !is_v, c->hadamard);
                size_t part = (size_t)(((x->slot[t] * L + LAYER) * K + h) * 2 + is_v);
                for (int i = 0; i < d; i++)
                    pool[(part * PAGE + (size_t)x->page_token[t]) * (size_t)d + (size_t)i] = kv_to_f16(
                        head[i]);
            }
        }
    }
}

static void check_case(const append_case *c, uint64_t seed)
{
    static append_data x, expected;
    static uint16_t pool[KV_F16_SLOTS * L * K * 2 * PAGE * MAX_D];
    bs_kv_format format = {.k_bits = 4, .v_bits = 4, .group = 128, .hadamard = c->hadamard};
    bs_kv_shape shape = {L, K, c->d, format};
    draw_case(c, &expected, seed);
    memset(pool, KV_POISON, sizeof pool);
    ref_append(c, &expected, pool);
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++) {
        kv_fixture f;
        if (!kv_open(&f, &shape, isa)) continue;
        draw_case(c, &x, seed);
        assert_int_equal(run_append(&f, c, &x), BS_STATUS_OK);
        assert_int_equal(bs_stream_check(f.stream), BS_STATUS_OK);
        assert_memory_equal(x.q, expected.q, sizeof x.q);
        assert_memory_equal(x.k, expected.k, sizeof x.k);
        assert_memory_equal(x.v, expected.v, sizeof x.v);
        assert_memory_equal(f.pools.f16_pool, pool, KV_F16_SLOTS * f.f16_slot_bytes);
        kv_close(&f);
    }
}

static void test_append_bits(void **state)
{
    static const append_case cases[] = {
        {64, 64, 1, false, false},  {64, 64, 7, true, true},   {128, 128, 3, false, true},
        {128, 128, 7, true, false}, {128, 96, 5, false, true}, {64, 32, 2, true, false},
        {64, 2, 7, false, false},   {128, 0, 3, false, true},  {128, 74, 3, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(&cases[i], 40 + i);
}

/* NaN, and what becomes infinite by rounding to fp16, in an owned token; not in one that this rank does not
 * own. */
static void test_append_faults(void **state)
{
    static append_data x;
    const append_case c = {64, 64, 3, false, false};
    bs_kv_shape shape = {L, K, 64, {.k_bits = 16, .v_bits = 16}};
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++) {
        for (int i = 0; i < 6; i++) {
            static const float values[] = {NAN, 65520.0f, -INFINITY};
            kv_fixture f;
            if (!kv_open(&f, &shape, isa)) continue;
            draw_case(&c, &x, 50);
            x.v[0][70] = 65519.0f; /* the largest that still rounds to a finite number */
            x.v[i & 1 ? 2 : 1][64 + 13] = values[i / 2];
            assert_int_equal(run_append(&f, &c, &x), BS_STATUS_OK);
            assert_int_equal(bs_stream_check(f.stream), i & 1 ? BS_STATUS_NUMERIC : BS_STATUS_OK);
            if (i & 1) assert_non_null(strstr(bs_error_message(), "layer 1"));
            bs_error_clear();
            kv_close(&f);
        }
    }
}

static void test_rope_table(void **cmocka_state)
{
    const int32_t positions[] = {0, 1, 127, 131071, 1048575, -1};
    enum { T = 6, N_ROT = 34 };
    double inv_freq[N_ROT / 2];
    float table[T * N_ROT];
    bs_device *device;
    bs_stream *stream;
    assert_true(kv_open_device(BS_ISA_AUTO, &device, &stream));
    for (int i = 0; i < N_ROT / 2; i++) inv_freq[i] = pow(10000, -2.0 * i / N_ROT);
    bs_rope_table_args args = {positions, T, inv_freq, N_ROT, 1.25f, table};
    memset(table, KV_POISON, sizeof table);
    assert_int_equal(bs_op_rope_table(stream, &args), BS_STATUS_OK);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < N_ROT / 2; i++) {
            double angle = positions[t] * inv_freq[i], c = 1.25 * cos(angle), s = 1.25 * sin(angle);
            if (positions[t] < 0) c = 1, s = 0;
            assert_true(fabs(table[t * N_ROT + 2 * i] - c) <= TOL_ROPE_TABLE);
            assert_true(fabs(table[t * N_ROT + 2 * i + 1] - s) <= TOL_ROPE_TABLE);
        }
    }
    kv_close_device(device, stream);
}

/* Against the matrix; twice is the identity; without the rotation a copy. */
static void test_unrotate(void **cmocka_state)
{
    enum { ROWS = 5 };
    uint64_t state = 60;
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++) {
        bs_device *device;
        bs_stream *stream;
        if (!kv_open_device(isa, &device, &stream)) continue;
        for (int d = 64; d <= 128; d += 64) {
            float o[ROWS * MAX_D], out[ROWS * MAX_D];
            for (int i = 0; i < ROWS * d; i++) o[i] = (float)kv_normal(&state);
            memset(out, KV_POISON, sizeof out);
            bs_unrotate_args args = {true, ROWS, d, o, BS_TYPE_F32, out};
            assert_int_equal(bs_op_unrotate(stream, &args), BS_STATUS_OK);
            for (int i = 0; i < ROWS * d; i++) {
                double sum = 0;
                for (int j = 0; j < d; j++)
                    sum += o[i / d * d + j] * (__builtin_popcount((unsigned)(i % d & j)) & 1 ? -1 : 1) /
                           sqrt(d);
                assert_true(fabs(out[i] - sum) <= TOL_HADAMARD);
            }
            bs_unrotate_args again = {true, ROWS, d, out, BS_TYPE_F32, out};
            assert_int_equal(bs_op_unrotate(stream, &again), BS_STATUS_OK);
            for (int i = 0; i < ROWS * d; i++) assert_true(fabsf(out[i] - o[i]) <= TOL_HADAMARD);
            args.hadamard = false;
            assert_int_equal(bs_op_unrotate(stream, &args), BS_STATUS_OK);
            assert_memory_equal(out, o, (size_t)(ROWS * d) * sizeof *o);
        }
        kv_close_device(device, stream);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_bits),
        cmocka_unit_test(test_append_faults),
        cmocka_unit_test(test_rope_table),
        cmocka_unit_test(test_unrotate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
