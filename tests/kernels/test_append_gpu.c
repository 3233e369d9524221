/* test_append_gpu.c: the GPU's append, rope_table, unrotate and merge against the CPU's.
 *
 * With F32 activations all bits are the CPU's. With F16 and BF16 the CPU is given the same rounded numbers
 * in F32, and its q is rounded here; what is stored in the pages is the same bits again. */
#include "tests/kernels/gpu_fixture.h"
#include "tests/tolerances.h"

enum { PAGE = BS_PAGE_TOKENS, H = 6, K = 2, L = 2, LAYER = 1, MAX_T = 7, MAX_D = 128, PAD = 5, N_SLOTS = 3 };
enum { Q_LD = H * MAX_D + PAD, KV_LD = K * MAX_D + PAD };

typedef struct append_case {
    int d, n_rot, n_tokens;
    bool interleaved, hadamard;
    bs_type act;
} append_case;

typedef struct append_data {
    float q[MAX_T * Q_LD], k[MAX_T * KV_LD], v[MAX_T * KV_LD], cs[MAX_T * MAX_D];
    int32_t slot[MAX_T], page_token[MAX_T];
} append_data;

/* n numbers as a device of that activation type holds them. */
static size_t to_act(const float *x, int n, bs_type act, void *out)
{
    for (int i = 0; i < n; i++) {
        if (act == BS_TYPE_F32) ((float *)out)[i] = x[i];
        else ((uint16_t *)out)[i] = act == BS_TYPE_F16 ? kv_to_f16(x[i]) : bs_f32_to_bf16(x[i]);
    }
    return (size_t)n * (act == BS_TYPE_F32 ? 4 : 2);
}

static float round_to_act(float x, bs_type act)
{
    return act == BS_TYPE_F32   ? x
           : act == BS_TYPE_F16 ? kv_from_f16(kv_to_f16(x))
                                : bs_bf16_to_f32(bs_f32_to_bf16(x));
}

static void draw_data(const append_case *c, append_data *x, uint64_t seed)
{
    uint64_t state = seed;
    for (int i = 0; i < MAX_T * Q_LD; i++) x->q[i] = round_to_act((float)kv_normal(&state), c->act);
    for (int i = 0; i < MAX_T * KV_LD; i++) {
        x->k[i] = round_to_act((float)kv_normal(&state), c->act);
        x->v[i] = round_to_act((float)(kv_normal(&state) * (i % 3 ? 1e-6 : 1)), c->act);
    }
    for (int i = 0; i < MAX_T * MAX_D / 2; i++) {
        double angle = 100 * kv_uniform(&state);
        x->cs[2 * i] = (float)cos(angle);
        x->cs[2 * i + 1] = (float)sin(angle);
    }
    for (int t = 0; t < MAX_T; t++) {
        x->slot[t] = t % 3 == 1 ? -1 : t % 3;
        x->page_token[t] = (127 + 3 * t) % PAGE;
    }
}

/* Places of the parts of an append_data in the stage. */
typedef struct append_stage {
    void *q, *k, *v, *cs, *slot, *page_token;
} append_stage;

static append_stage put_data(gpu_side *side, const append_data *x, bs_type act)
{
    static uint8_t bytes[MAX_T * Q_LD * 4];
    append_stage s;
    size_t at = 0;
    const float *parts[] = {x->q, x->k, x->v};
    const int counts[] = {MAX_T * Q_LD, MAX_T * KV_LD, MAX_T * KV_LD};
    void **places[] = {&s.q, &s.k, &s.v};
    for (int i = 0; i < 3; i++) {
        *places[i] = gpu_stage(side, at);
        gpu_put(side, *places[i], bytes, to_act(parts[i], counts[i], act, bytes));
        at += ((size_t)counts[i] * 4 + 255) / 256 * 256;
    }
    s.cs = gpu_stage(side, at);
    s.slot = gpu_stage(side, at + sizeof x->cs);
    s.page_token = gpu_stage(side, at + sizeof x->cs + sizeof x->slot);
    gpu_put(side, s.cs, x->cs, sizeof x->cs);
    gpu_put(side, s.slot, x->slot, sizeof x->slot);
    gpu_put(side, s.page_token, x->page_token, sizeof x->page_token);
    return s;
}

static bs_status run_append(gpu_side *side, const append_case *c, const append_stage *s, bs_type act)
{
    bs_append_args args = {.pools = &side->pools,
                           .layer = LAYER,
                           .n_tokens = c->n_tokens,
                           .n_heads = H,
                           .q = s->q,
                           .k = s->k,
                           .v = s->v,
                           .q_ld = Q_LD,
                           .kv_ld = KV_LD,
                           .act = act,
                           .cos_sin = s->cs,
                           .n_rot = c->n_rot,
                           .rope_interleaved = c->interleaved,
                           .f16_slot = s->slot,
                           .page_token = s->page_token};
    return bs_op_append(side->stream, &args);
}

/* All slots of both sides, K and V, as canonical bytes: what was not written is poison in both. */
static void compare_pages(gpu_side *sides, const append_case *c)
{
    static uint16_t page[GPU_N_SIDES][2 * PAGE * MAX_D];
    const size_t half = (size_t)(PAGE * c->d) * sizeof(uint16_t);
    for (int i = 0; i < N_SLOTS * L * K; i++) {
        for (int s = 0; s < GPU_N_SIDES; s++) {
            bs_kv_page_ref ref = {(uint32_t)(i / (L * K)),    i / K % L, i % K, gpu_stage(&sides[s], 0), NULL,
                                  gpu_stage(&sides[s], half), NULL};
            bs_pack_args args = {&sides[s].pools, false, 1, &ref};
            assert_int_equal(bs_op_pack(sides[s].stream, &args), BS_STATUS_OK);
            gpu_get(&sides[s], page[s], gpu_stage(&sides[s], 0), 2 * half);
        }
        if (memcmp(page[GPU_CPU_SIDE], page[GPU_GPU_SIDE], 2 * half) != 0)
            fail_msg("D %d, n_rot %d, act %d: slot %d differs", c->d, c->n_rot, (int)c->act, i / (L * K));
    }
}

static void check_append(gpu_side *sides, const append_case *c, uint64_t seed)
{
    static append_data x;
    static float q[MAX_T * Q_LD];
    static uint8_t expected[sizeof q], got[sizeof q];
    const bs_kv_shape shape = {
        L, K, c->d, {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128, .hadamard = c->hadamard}};
    draw_data(c, &x, seed);
    for (int s = 0; s < GPU_N_SIDES; s++) {
        const bs_type act = s == GPU_CPU_SIDE ? BS_TYPE_F32 : c->act;
        gpu_open_pools(&sides[s], &shape, N_SLOTS, 0);
        const append_stage stage = put_data(&sides[s], &x, act);
        assert_int_equal(run_append(&sides[s], c, &stage, act), BS_STATUS_OK);
        assert_int_equal(bs_stream_check(sides[s].stream), BS_STATUS_OK);
        gpu_get(&sides[s], s == GPU_CPU_SIDE ? (void *)q : (void *)got, stage.q,
                sizeof q / (act == BS_TYPE_F32 ? 1 : 2));
    }
    const size_t bytes = to_act(q, MAX_T * Q_LD, c->act, expected);
    for (size_t i = 0; i < bytes; i++)
        if (expected[i] != got[i])
            fail_msg("D %d, n_rot %d, act %d: byte %zu of q is %02x, not %02x", c->d, c->n_rot, (int)c->act,
                     i, got[i], expected[i]);
    compare_pages(sides, c);
    for (int s = 0; s < GPU_N_SIDES; s++) gpu_close_pools(&sides[s]);
}

static void test_append(void **state)
{
    static const bs_type acts[] = {BS_TYPE_F32, BS_TYPE_F16, BS_TYPE_BF16};
    for (int i = 0; i < 2 * 4 * 2 * 2 * 3; i++) {
        const int d = i & 1 ? 128 : 64, rots[] = {d, d / 2, 34, 0};
        const append_case c = {.d = d,
                               .n_rot = rots[i / 2 % 4],
                               .n_tokens = 1 + i % MAX_T,
                               .interleaved = i >> 3 & 1,
                               .hadamard = i >> 4 & 1,
                               .act = acts[i / 32]};
        if (gpu_runs_case(i, 7)) check_append(*state, &c, (uint64_t)(300 + i));
    }
}

/* The largest number that rounds to a finite fp16 is fine; NaN and what rounds to infinity are told, of owned
 * tokens only. */
static void test_append_faults(void **state)
{
    static const float values[] = {NAN, 65520.0f, -INFINITY};
    const append_case c = {.d = 64, .n_rot = 64, .n_tokens = 4, .act = BS_TYPE_F32};
    const bs_kv_shape shape = {L, K, c.d, {.k_bits = 16, .v_bits = 16}};
    static append_data x;
    for (int i = 0; i < 6; i++) {
        char line[256] = "";
        draw_data(&c, &x, 50);
        x.v[0 * KV_LD + 70] = 65519.0f;
        x.v[(i & 1 ? 2 : 1) * KV_LD + 64 + 13] = values[i / 2];
        for (int s = 0; s < GPU_N_SIDES; s++) {
            gpu_side *side = (gpu_side *)*state + s;
            gpu_open_pools(side, &shape, N_SLOTS, 0);
            const append_stage stage = put_data(side, &x, BS_TYPE_F32);
            assert_int_equal(run_append(side, &c, &stage, BS_TYPE_F32), BS_STATUS_OK);
            assert_int_equal(bs_stream_check(side->stream), i & 1 ? BS_STATUS_NUMERIC : BS_STATUS_OK);
            if (s == GPU_CPU_SIDE && i & 1) snprintf(line, sizeof line, "%s", bs_error_message());
            if (i & 1) assert_string_equal(bs_error_message(), line);
            bs_error_clear();
            gpu_close_pools(side);
        }
    }
}

/* Distance of two floats of one sign in units of the last place. */
static int64_t ulps(float a, float b)
{
    int64_t x = (int32_t)bs_f32_bits(a), y = (int32_t)bs_f32_bits(b);
    return x > y ? x - y : y - x;
}

static void test_rope_table(void **state)
{
    const int32_t positions[] = {0, 1, 127, 131071, 1048575, -1};
    enum { T = 6, N_ROT = 34 };
    double inv_freq[N_ROT / 2];
    float table[GPU_N_SIDES][T * N_ROT];
    for (int i = 0; i < N_ROT / 2; i++) inv_freq[i] = pow(10000, -2.0 * i / N_ROT);
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_side *side = (gpu_side *)*state + s;
        gpu_poison(side, gpu_stage(side, 1024), sizeof table[s]);
        gpu_put(side, gpu_stage(side, 0), positions, sizeof positions);
        gpu_put(side, gpu_stage(side, 256), inv_freq, sizeof inv_freq);
        bs_rope_table_args args = {gpu_stage(side, 0),   T, gpu_stage(side, 256), N_ROT, 1.25f,
                                   gpu_stage(side, 1024)};
        assert_int_equal(bs_op_rope_table(side->stream, &args), BS_STATUS_OK);
        gpu_get(side, table[s], gpu_stage(side, 1024), sizeof table[s]);
    }
    for (int i = 0; i < T * N_ROT; i++)
        if (!(ulps(table[GPU_CPU_SIDE][i], table[GPU_GPU_SIDE][i]) <= TOL_GPU_ROPE_ULPS))
            fail_msg("place %d: %.9g, not %.9g", i, table[GPU_GPU_SIDE][i], table[GPU_CPU_SIDE][i]);
}

static void check_unrotate(gpu_side *sides, bool hadamard, int d, bs_type act, bool in_place)
{
    enum { ROWS = 5 };
    float o[ROWS * MAX_D], cpu[ROWS * MAX_D];
    uint8_t expected[sizeof o], got[sizeof o];
    uint64_t seed = (uint64_t)d;
    size_t bytes = 0;
    for (int i = 0; i < ROWS * d; i++) o[i] = (float)kv_normal(&seed);
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_side *side = &sides[s];
        const bs_type type = s == GPU_CPU_SIDE ? BS_TYPE_F32 : act;
        void *from = gpu_stage(side, 0), *to = in_place ? from : gpu_stage(side, 65536);
        gpu_poison(side, gpu_stage(side, 65536), sizeof o);
        gpu_put(side, from, o, (size_t)(ROWS * d) * sizeof *o);
        bs_unrotate_args args = {hadamard, ROWS, d, from, type, to};
        assert_int_equal(bs_op_unrotate(side->stream, &args), BS_STATUS_OK);
        gpu_get(side, s == GPU_CPU_SIDE ? (void *)cpu : (void *)got, to,
                s == GPU_CPU_SIDE ? sizeof cpu : sizeof got);
    }
    bytes = to_act(cpu, ROWS * d, act, expected);
    assert_memory_equal(expected, got, bytes);
    for (size_t i = bytes; i < sizeof got && !in_place; i++) assert_int_equal(got[i], KV_POISON);
}

static void test_unrotate(void **state)
{
    static const bs_type acts[] = {BS_TYPE_F32, BS_TYPE_F16, BS_TYPE_BF16};
    gpu_side *gpu = (gpu_side *)*state + GPU_GPU_SIDE;
    for (int i = 0; i < 3; i++) {
        for (int d = 64; d <= 128; d += 64) {
            check_unrotate(*state, true, d, acts[i], false);
            check_unrotate(*state, false, d, acts[i], false);
        }
        check_unrotate(*state, false, 37, acts[i], false);
    }
    check_unrotate(*state, true, 128, BS_TYPE_F32, true);
    bs_unrotate_args args = {true, 1, 32, gpu_stage(gpu, 0), BS_TYPE_F32, gpu_stage(gpu, 0)};
    assert_int_equal(bs_op_unrotate(gpu->stream, &args), BS_STATUS_UNSUPPORTED);
    bs_error_clear();
}

/* ---- merge ---- */

enum { PARTS = 5, MERGE_ROWS = 11 };

typedef struct merge_data {
    int d;
    float o[PARTS * MERGE_ROWS * MAX_D], lse[PARTS * MERGE_ROWS], max[MERGE_ROWS];
} merge_data;

/* What the four ops give: floats of each, one after the other, from 0 on. */
enum { MERGE_OPS = 4, MERGE_OUT = MERGE_ROWS * (MAX_D + 1) };
typedef struct merge_results {
    float out[MERGE_OPS][MERGE_OUT], lse[2][MERGE_ROWS];
} merge_results;

/* Empty states carry NaN; row 0 is empty in all parts, row 1 in all but one, row 2 has an LSE far above the others. */
static void draw_merge(merge_data *x, int d, uint64_t seed)
{
    x->d = d;
    for (int row = 0; row < MERGE_ROWS; row++) x->max[row] = -INFINITY;
    for (int i = 0; i < PARTS * MERGE_ROWS; i++) {
        const int part = i / MERGE_ROWS, row = i % MERGE_ROWS;
        const bool empty = row == 0 || (row == 1 && part != 3) || (row == 5 && part % 2 == 0);
        x->lse[i] = empty ? -INFINITY : (float)(3 * kv_normal(&seed)) + (row == 2 && part == 1 ? 1e4f : 0);
        x->max[row] = fmaxf(x->max[row], x->lse[i]);
        for (int k = 0; k < d; k++) x->o[i * d + k] = empty ? NAN : (float)kv_normal(&seed);
    }
}

static void run_merge(gpu_side *side, const merge_data *x, merge_results *r)
{
    float *const o = gpu_stage(side, 0), *const lse = gpu_stage(side, 1 << 18),
                 *const max = gpu_stage(side, (1 << 18) + 4096), *const out = gpu_stage(side, 1 << 19),
                 *const lse_out = gpu_stage(side, (1 << 18) + 8192);
    const int rows = MERGE_ROWS, d = x->d;
    gpu_put(side, o, x->o, sizeof x->o);
    gpu_put(side, lse, x->lse, sizeof x->lse);
    gpu_put(side, max, x->max, sizeof x->max);
    const bs_merge_args merge = {PARTS, rows, d, o, lse, (int64_t)rows * d, rows, out, lse_out};
    const bs_merge_weigh_args weigh = {rows, d, o + 3 * rows * d, lse + 3 * rows, max, out};
    /* A sum of five shares is a share: the third part's goes through finish. */
    const bs_merge_finish_args finish = {rows, d, out + MERGE_OUT, max, out, lse_out};
    const bs_merge_fold_args fold = {PARTS, 3, rows, d, lse, out};
    for (int op = 0; op < MERGE_OPS; op++) {
        gpu_poison(side, out, sizeof r->out[op]);
        gpu_poison(side, lse_out, sizeof r->lse[0]);
        if (op == 2) gpu_put(side, out + MERGE_OUT, r->out[1], sizeof r->out[1]);
        if (op == 3) gpu_put(side, out, x->o + 3 * rows * d, (size_t)(rows * d) * sizeof(float));
        assert_int_equal(op == 0   ? bs_op_merge(side->stream, &merge)
                         : op == 1 ? bs_op_merge_weigh(side->stream, &weigh)
                         : op == 2 ? bs_op_merge_finish(side->stream, &finish)
                                   : bs_op_merge_fold(side->stream, &fold),
                         BS_STATUS_OK);
        gpu_get(side, r->out[op], out, sizeof r->out[op]);
        if (op % 2 == 0) gpu_get(side, r->lse[op / 2], lse_out, sizeof r->lse[0]);
    }
}

static void assert_near(const char *what, int op, const float *cpu, const float *gpu, int n, double relative)
{
    for (int i = 0; i < n; i++) {
        if (cpu[i] == gpu[i]) continue; /* infinities too */
        if (!(fabs(cpu[i] - gpu[i]) <= relative * (1 + fabs(cpu[i]))))
            fail_msg("op %d, %s %d: %.9g, not %.9g", op, what, i, gpu[i], cpu[i]);
    }
}

static void test_merge(void **state)
{
    static merge_data x;
    static merge_results results[GPU_N_SIDES];
    for (int d = 64; d <= 128; d += 64) {
        draw_merge(&x, d, (uint64_t)(900 + d));
        for (int s = 0; s < GPU_N_SIDES; s++) run_merge((gpu_side *)*state + s, &x, &results[s]);
        for (int op = 0; op < MERGE_OPS; op++)
            assert_near("O", op, results[GPU_CPU_SIDE].out[op], results[GPU_GPU_SIDE].out[op],
                        MERGE_ROWS * (op == 1 ? d + 1 : d), TOL_MERGE_O);
        for (int i = 0; i < 2; i++)
            assert_near("LSE", 2 * i, results[GPU_CPU_SIDE].lse[i], results[GPU_GPU_SIDE].lse[i], MERGE_ROWS,
                        TOL_MERGE_LSE);
        for (int k = 0; k < d; k++) assert_true(results[GPU_GPU_SIDE].out[0][k] == 0);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append),     cmocka_unit_test(test_append_faults),
        cmocka_unit_test(test_rope_table), cmocka_unit_test(test_unrotate),
        cmocka_unit_test(test_merge),
    };
    gpu_need_one(argc, argv);
    return cmocka_run_group_tests(tests, gpu_open, gpu_close);
}
