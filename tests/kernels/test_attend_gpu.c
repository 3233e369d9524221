/* test_attend_gpu.c: the GPU's attention over the cases of attend_cases.h: pages are made on a CPU device and
 * carried over as canonical bytes. All pairs of widths it has kernels for, both groupings, all group sizes,
 * norm, head sizes, ratios of heads, windows, chunks, activation types; everything unowned is NaN or 0xff.
 * The same bits twice, under programmatic launch, and from a graph while lengths grow; nothing allocated;
 * what has no kernel is refused. */
#include "tests/kernels/attend_cases.h"

static bool is_short; /* `test_attend_gpu.gpu short`: a few cases of each kind, for compute-sanitizer */
static bs_device *cpu, *gpu;
static bs_stream *cpu_stream, *stream;

static void ok(bs_status status)
{
    if (status != BS_STATUS_OK) fail_msg("%s", bs_error_message());
}

static bs_buffer *upload(const void *data, size_t bytes)
{
    bs_buffer *buffer;
    ok(bs_buffer_alloc(gpu, bytes + 16, "test", &buffer));
    ok(bs_copy_to_device(stream, bs_buffer_at(buffer, 0), data, bytes));
    ok(bs_stream_sync(stream));
    return buffer;
}

static void fill(bs_buffer *buffer, int byte)
{
    size_t n = bs_buffer_bytes(buffer);
    void *host = malloc(n);
    memset(host, byte, n);
    ok(bs_copy_to_device(stream, bs_buffer_at(buffer, 0), host, n));
    ok(bs_stream_sync(stream));
    free(host);
}

/* ---- the GPU's side of a case ---- */

typedef struct side {
    bs_kv_pools pools;
    bs_buffer *f16, *quant, *q, *o, *lse, *workspace, *q_start, *q_pos0, *page_start, *n_sink, *n_quant,
        *n_f16, *n_tokens, *slot, *index;
    bs_attend_args args;
    size_t o_bytes, lse_bytes;
} side;

/* One page through canonical bytes, layer 1; layer 0 stays 0xff. */
static void carry_page(const fixture *fx, side *s, bool quantized, uint32_t slot)
{
    bs_kv_page_bytes bytes = bs_kv_canonical_bytes(&fx->shape.format, fx->shape.head_dim);
    size_t part[4] = {bytes.k, bytes.k_meta, bytes.v, bytes.v_meta}, at[4], total = 0;
    if (!quantized) part[0] = part[2] = bytes.f16 / 2, part[1] = part[3] = 0;
    for (int i = 0; i < 4; i++) at[i] = total, total += (part[i] + 255) & ~(size_t)255;
    uint8_t *host = malloc(total);
    for (int head = 0; head < fx->shape.n_kv_heads; head++) {
        bs_kv_page_ref ref = {.slot = slot, .layer = 1, .kv_head = head, .k = host, .v = host + at[2]};
        if (quantized) ref.k_meta = host + at[1], ref.v_meta = host + at[3];
        bs_pack_args args = {.pools = &fx->pools, .quantized = quantized, .n = 1, .pages = &ref};
        ok(bs_op_pack(fx->stream, &args));
        bs_buffer *staging = upload(host, total);
        ref.k = bs_buffer_at(staging, 0);
        ref.v = bs_buffer_at(staging, at[2]);
        if (quantized) ref.k_meta = bs_buffer_at(staging, at[1]), ref.v_meta = bs_buffer_at(staging, at[3]);
        args.pools = &s->pools;
        ok(bs_op_unpack(stream, &args));
        ok(bs_stream_sync(stream));
        bs_buffer_free(staging);
    }
    free(host);
}

static void *convert_q(const float *q, size_t n, bs_type act)
{
    if (act == BS_TYPE_F32) return memcpy(malloc(n * 4), q, n * 4);
    uint16_t *to = malloc(n * 2);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &q[i], 4);
        to[i] = act == BS_TYPE_BF16 ? (uint16_t)(bits >> 16) : bs_f32_to_f16(q[i]);
    }
    return to;
}

static side open_side(const fixture *fx, const tables *tb, const float *q, bs_type act)
{
    side s = {0};
    const int T = tb->q_start[MAX_SEQS], n_pages = tb->page_start[MAX_SEQS], H = fx->n_heads,
              dim = fx->shape.head_dim;
    size_t f16_bytes, quant_bytes;
    ok(bs_kv_slot_bytes(gpu, &fx->shape, &f16_bytes, &quant_bytes));
    ok(bs_buffer_alloc(gpu, fx->pools.n_f16_slots * f16_bytes, "f16", &s.f16));
    ok(bs_buffer_alloc(gpu, fx->pools.n_quant_slots * quant_bytes + 64, "quant", &s.quant));
    fill(s.f16, 0xff);
    fill(s.quant, 0xff);
    s.pools = (bs_kv_pools){&fx->shape, bs_buffer_at(s.f16, 0), bs_buffer_at(s.quant, 0),
                            fx->pools.n_f16_slots, fx->pools.n_quant_slots};
    for (int b = 0; b < MAX_SEQS; b++)
        for (int i = tb->page_start[b]; i < tb->page_start[b + 1]; i++) {
            int place = i - tb->page_start[b] - tb->n_sink[b];
            carry_page(fx, &s, place >= 0 && place < tb->n_quant[b], tb->slot[i]);
        }
    s.o_bytes = (size_t)(T * H * dim) * 4;
    s.lse_bytes = (size_t)(T * H) * 4;
    void *q_act = convert_q(q, (size_t)(T * H * dim), act);
    s.q = upload(q_act, (size_t)(T * H * dim) * (act == BS_TYPE_F32 ? 4 : 2));
    free(q_act);
    ok(bs_buffer_alloc(gpu, s.o_bytes, "o", &s.o));
    ok(bs_buffer_alloc(gpu, s.lse_bytes, "lse", &s.lse));
    s.q_start = upload(tb->q_start, sizeof tb->q_start);
    s.q_pos0 = upload(tb->q_pos0, sizeof tb->q_pos0);
    s.page_start = upload(tb->page_start, sizeof tb->page_start);
    s.n_sink = upload(tb->n_sink, sizeof tb->n_sink);
    s.n_quant = upload(tb->n_quant, sizeof tb->n_quant);
    s.n_f16 = upload(tb->n_f16, sizeof tb->n_f16);
    s.n_tokens = upload(tb->n_tokens, sizeof tb->n_tokens);
    s.slot = upload(tb->slot, (size_t)n_pages * 4);
    s.index = upload(tb->index, (size_t)n_pages * 4);
    size_t bytes = bs_attend_workspace_bytes(gpu, &fx->shape, H, MAX_SEQS, T, n_pages);
    ok(bs_buffer_alloc(gpu, bytes, "workspace", &s.workspace));
    s.args = (bs_attend_args){.pools = NULL,
                              .layer = 1,
                              .max_seqs = MAX_SEQS,
                              .max_tokens = T,
                              .max_pages = n_pages,
                              .n_heads = H,
                              .q = bs_buffer_at(s.q, 0),
                              .q_ld = (int64_t)H * dim,
                              .act = act,
                              .q_start = bs_buffer_at(s.q_start, 0),
                              .q_pos0 = bs_buffer_at(s.q_pos0, 0),
                              .page_start = bs_buffer_at(s.page_start, 0),
                              .page_slot = bs_buffer_at(s.slot, 0),
                              .page_index = bs_buffer_at(s.index, 0),
                              .n_sink = bs_buffer_at(s.n_sink, 0),
                              .n_quant = bs_buffer_at(s.n_quant, 0),
                              .n_f16 = bs_buffer_at(s.n_f16, 0),
                              .n_tokens = bs_buffer_at(s.n_tokens, 0),
                              .scale = 0.1f,
                              .window = fx->window,
                              .workspace = bs_buffer_at(s.workspace, 0),
                              .workspace_bytes = bytes,
                              .o = bs_buffer_at(s.o, 0),
                              .lse = bs_buffer_at(s.lse, 0)};
    return s;
}

static void close_side(side *s)
{
    bs_buffer *all[] = {s->f16,       s->quant,   s->q,        s->o,          s->lse,
                        s->workspace, s->q_start, s->q_pos0,   s->page_start, s->n_sink,
                        s->n_quant,   s->n_f16,   s->n_tokens, s->slot,       s->index};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) bs_buffer_free(all[i]);
}

/* One call into poisoned output; O and LSE on the host. */
static void attend(side *s, const bs_kv_pools *pools, float *o, float *lse)
{
    fill(s->o, 0xff);
    fill(s->lse, 0xff);
    s->args.pools = pools;
    ok(bs_op_attend(stream, &s->args));
    ok(bs_copy_to_host(stream, o, s->args.o, s->o_bytes));
    ok(bs_copy_to_host(stream, lse, s->args.lse, s->lse_bytes));
    ok(bs_stream_sync(stream));
}

/* ---- a case ---- */

/* The CPU's side, and a q that every activation type holds exactly: the kernel keeps q in fp16. */
static void build(attend_case *x, bs_kv_format format, int dim, int G, int window, const int (*seqs)[3],
                  bool outliers)
{
    *x = (attend_case){
        .fx = {
            .window = window, .nan_row = -1, .limit_o = TOL_ATTEND_GPU_O, .limit_lse = TOL_ATTEND_GPU_LSE}};
    if (outliers) {
        x->fx.rounded = TOL_ATTEND_GPU_ROUNDED;
        x->fx.max_o = TOL_ATTEND_GPU_MAX_O;
        x->fx.max_lse = TOL_ATTEND_GPU_MAX_LSE;
    }
    make_case(x, cpu, cpu_stream, format, dim, G, seqs, outliers);
    if (outliers && x->tb.q_start[MAX_SEQS] > 16 * MAX_SEQS) {
        x->fx.max_o = TOL_ATTEND_CHUNK_MAX_O;
        x->fx.max_lse = TOL_ATTEND_CHUNK_MAX_LSE;
    }
    for (int i = 0; i < x->tb.q_start[MAX_SEQS] * x->fx.n_heads * dim; i++) {
        uint32_t bits;
        float value = noise() * 0.7f;
        memcpy(&bits, &value, 4);
        bits &= 0xffff0000u;
        memcpy(&x->q[i], &bits, 4);
        if (fabsf(x->q[i]) < 0x1p-10f) x->q[i] = 0;
    }
}

/* Of case to exact errors, where these exceed the plain limits; printed at the end. */
static double worst_ratio_o, worst_ratio_lse;

/* The worst rows of a case against the worst that exact arithmetic on the rounded cache has; the plain limits hold where
 * that has less. */
static void check_worst(const fixture *fx)
{
    const double limit_o = fmin(fx->max_o, fmax(fx->limit_o, fx->rounded * fx->exact_o)),
                 limit_lse = fmin(fx->max_lse, fmax(fx->limit_lse, fx->rounded * fx->exact_lse));
    if (fx->case_o > fx->limit_o) worst_ratio_o = fmax(worst_ratio_o, fx->case_o / fx->exact_o);
    if (fx->case_lse > fx->limit_lse) worst_ratio_lse = fmax(worst_ratio_lse, fx->case_lse / fx->exact_lse);
    if (!(fx->case_o <= limit_o) || !(fx->case_lse <= limit_lse))
        fail_msg("K%d V%d D %d window %d: worst O off by %g, LSE by %g: must be at most %g and %g",
                 fx->shape.format.k_bits, fx->shape.format.v_bits, fx->shape.head_dim, fx->window, fx->case_o,
                 fx->case_lse, limit_o, limit_lse);
}

/* O as activations: the bits that unrotate makes of O, which is then left alone; refused where a call is too many tokens. */
static void check_attended(fixture *fx, side *s, bs_type type, bool hadamard)
{
    const size_t n = s->o_bytes / 4;
    bs_buffer *apart, *fused;
    const bool had = fx->shape.format.hadamard;
    fx->shape.format.hadamard = hadamard;
    ok(bs_buffer_alloc(gpu, 2 * n, "apart", &apart));
    ok(bs_buffer_alloc(gpu, 2 * n, "fused", &fused));
    fill(apart, 0xff);
    fill(fused, 0xff);
    ok(bs_op_attend(stream, &s->args));
    const bs_unrotate_args turn = {.hadamard = hadamard,
                                   .n_rows = (int)(n / (size_t)fx->shape.head_dim),
                                   .dim = fx->shape.head_dim,
                                   .o = s->args.o,
                                   .act = type,
                                   .out = bs_buffer_at(apart, 0)};
    ok(bs_op_unrotate(stream, &turn));
    fill(s->o, 0xff);
    s->args.attended = bs_buffer_at(fused, 0);
    s->args.attended_type = type;
    if (bs_attend_turns(gpu, &s->args)) {
        uint16_t *want = malloc(2 * n), *got = malloc(2 * n);
        uint32_t *o = malloc(4 * n);
        ok(bs_op_attend(stream, &s->args));
        ok(bs_copy_to_host(stream, want, turn.out, 2 * n));
        ok(bs_copy_to_host(stream, got, s->args.attended, 2 * n));
        ok(bs_copy_to_host(stream, o, s->args.o, 4 * n));
        ok(bs_stream_sync(stream));
        for (size_t i = 0; i < n; i++)
            if (want[i] != got[i] || o[i] != 0xffffffffu)
                fail_msg("K%d V%d D %d, %s%s: element %zu is %#x, not %#x; O %#x", fx->shape.format.k_bits,
                         fx->shape.format.v_bits, fx->shape.head_dim, bs_type_name(type),
                         hadamard ? " turned" : "", i, got[i], want[i], o[i]);
        free(want);
        free(got);
        free(o);
    } else {
        assert_int_equal(bs_op_attend(stream, &s->args), BS_STATUS_UNSUPPORTED);
        assert_non_null(strstr(bs_error_message(), "does not turn O to"));
        bs_error_clear();
    }
    s->args.attended = NULL;
    fx->shape.format.hadamard = had;
    bs_buffer_free(apart);
    bs_buffer_free(fused);
}

static void run_case(bs_kv_format format, int dim, int G, int window, const int (*seqs)[3], bool outliers,
                     bs_type act, int nan_row)
{
    attend_case x;
    if (is_short) { /* which one it was, should a sanitizer be cut off */
        printf("K %d V %d g%d, D %d, G %d, window %d\n", format.k_bits, format.v_bits, format.group, dim, G,
               window);
        fflush(stdout);
    }
    build(&x, format, dim, G, window, seqs, outliers);
    x.fx.nan_row = nan_row;
    for (int d = 0; d < dim && nan_row >= 0; d++) x.q[nan_row * dim + d] = NAN;
    if (seqs[2][1] == 5) x.tb.n_tokens[2] -= 2; /* then the last two see as far as the third last */
    side s = open_side(&x.fx, &x.tb, x.q, act);
    float *o = malloc(s.o_bytes), *lse = malloc(s.lse_bytes), *again = malloc(s.o_bytes);
    const uint64_t n_allocated = bs_device_allocation_count(gpu);
    attend(&s, &s.pools, o, lse);
    assert_int_equal(bs_device_allocation_count(gpu), n_allocated);
    for (int b = 0; b < MAX_SEQS; b++) check_sequence(&x.fx, &x.tb, b, x.q, o, lse);
    if (outliers) check_worst(&x.fx);
    attend(&s, &s.pools, again, lse);
    assert_memory_equal(again, o, s.o_bytes);
    bs_stream_set_overlap(stream, true);
    attend(&s, &s.pools, again, lse);
    bs_stream_set_overlap(stream, false);
    assert_memory_equal(again, o, s.o_bytes);
    check_attended(&x.fx, &s, BS_TYPE_BF16, G % 2 == 0);
    check_attended(&x.fx, &s, BS_TYPE_F16, G % 2 != 0);
    free(o);
    free(lse);
    free(again);
    close_side(&s);
    free_case(&x);
}

static bs_kv_format format(int k_bits, int v_bits, bool kc, int group, bool norm)
{
    return (bs_kv_format){
        .k_bits = k_bits, .v_bits = v_bits, .k_per_channel = kc, .group = group, .k_norm = norm};
}

static void test_cases(void **state)
{
    (void)state;
    static const int pairs[5][2] = {{4, 4}, {2, 2}, {8, 8}, {4, 2}, {8, 4}},
                     groups[] = {1, 3, 4, 7, 8, 9, 16}, windows[] = {0, 200, 500, 1, 0};
    static const int(*const shapes[])[3] = {decode, several, prefill};
    static const bs_type acts[] = {BS_TYPE_BF16, BS_TYPE_F16, BS_TYPE_F32};
    int n = 0;
    for (int pair = 0; pair < 5; pair++)
        for (int group = 32; group <= 128; group *= 2)
            for (int kc = 0; kc < 2; kc++)
                for (int norm = 0; norm < 2; norm++, n++) {
                    if (is_short && n % 11 != 2) continue;
                    seed = 20261124u + (uint32_t)n;
                    run_case(format(pairs[pair][0], pairs[pair][1], kc, group, norm), n / 3 % 2 ? 64 : 128,
                             groups[n % 7], windows[n % 5], shapes[n % 3], n % 4 == 3, acts[n % 3], -1);
                }
    for (int i = 0; i < 6; i++, n++) {
        if (is_short && i != 2) continue;
        seed = 99u + (uint32_t)i;
        run_case(format(16, 16, false, 0, false), i % 2 ? 64 : 128, groups[i], windows[i % 5], shapes[i % 3],
                 i % 2, acts[i % 3], -1);
    }
    /* More than 8 rows, one group a page. */
    static const int many_rows[] = {16, 9, 4, 12, 3, 8};
    for (int i = 0; i < 7; i++) {
        if (is_short && i % 5 != 0) continue;
        seed = 500u + (uint32_t)i;
        run_case(format(i % 2 ? 2 : 4, i % 2 ? 2 : 4, true, 128, false), 128, many_rows[i % 6],
                 windows[i % 5], shapes[(i + i / 6) % 3], i == 3, acts[i % 3], -1);
    }
    run_case(format(4, 4, true, 128, false), 128, 16, 0, absent, false, BS_TYPE_BF16, -1);
    run_case(format(4, 4, true, 128, false), 128, 3, 0, several, false, BS_TYPE_F32, 7);
    run_case(format(2, 2, true, 32, true), 64, 2, 0, decode, false, BS_TYPE_BF16, 5);
    run_case(format(16, 16, false, 0, false), 128, 3, 0, prefill, false, BS_TYPE_F16, 7);
    run_case(format(2, 2, true, 128, false), 128, 4, 0, lone, true, BS_TYPE_F16, -1);
    run_case(format(2, 2, true, 64, false), 64, 16, 0, absent, false, BS_TYPE_BF16, -1);
}

/* Chunks of query tokens: every pair of widths, and what else changes a page's or a row's place. */
static void test_chunks(void **state)
{
    (void)state;
    static const struct {
        int k_bits, v_bits, group, dim, G, window;
        const int (*seqs)[3];
        bool kc, norm, outliers;
        bs_type act;
    } cases[] = {
        {4, 4, 128, 128, 4, 0, chunks, true, false, false, BS_TYPE_BF16},
        {2, 2, 32, 128, 4, 0, chunks, true, true, false, BS_TYPE_F16},
        {8, 8, 64, 64, 3, 300, chunks, true, false, false, BS_TYPE_F32},
        {4, 2, 32, 64, 8, 0, chunks, false, true, false, BS_TYPE_BF16},
        {8, 4, 128, 128, 1, 1000, chunks, false, false, false, BS_TYPE_BF16},
        {2, 2, 128, 64, 5, 129, chunks, false, false, false, BS_TYPE_F32},
        {16, 16, 0, 128, 7, 0, chunks, false, false, false, BS_TYPE_BF16},
        {16, 16, 0, 64, 2, 700, chunks, false, false, false, BS_TYPE_F32},
        {4, 4, 64, 128, 4, 0, chunks, true, true, true, BS_TYPE_BF16},
        {2, 2, 64, 128, 6, 0, chunks, true, true, true, BS_TYPE_F16},
        {4, 4, 32, 128, 2, 0, whole_chunk, true, false, false, BS_TYPE_BF16},
        {2, 2, 32, 64, 1, 0, whole_chunk, true, true, false, BS_TYPE_F16},
        {4, 4, 128, 128, 4, 0, few_rows, true, false, false, BS_TYPE_BF16},
        {2, 2, 32, 128, 1, 0, few_rows, true, true, false, BS_TYPE_BF16},
        {16, 16, 0, 64, 16, 0, few_rows, false, false, false, BS_TYPE_F16},
        {4, 4, 128, 128, 16, 0, absent, true, false, false, BS_TYPE_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (is_short && i != 1 && i != 6 && i != 13) continue;
        seed = 700u + (uint32_t)i;
        run_case(format(cases[i].k_bits, cases[i].v_bits, cases[i].kc, cases[i].group, cases[i].norm),
                 cases[i].dim, cases[i].G, cases[i].window, cases[i].seqs, cases[i].outliers, cases[i].act,
                 -1);
    }
}

/* A step in several calls, each with some of its sequences: tables from there on, and rows and pages that do not begin
 * at 0. */
static void test_subsets(void **state)
{
    (void)state;
    static const int seqs[MAX_SEQS][3] = {{700, 140, 1}, {1409, 3, 1}, {1000, 2, 1}, {2500, 333, 2}};
    static const int calls[][2] = {{3, 1}, {1, 2}, {0, 1}}; /* first sequence, how many */
    attend_case x;
    seed = 11;
    build(&x, format(4, 4, true, 128, false), 128, 4, 0, seqs, false);
    side s = open_side(&x.fx, &x.tb, x.q, BS_TYPE_BF16);
    float *o = malloc(s.o_bytes), *lse = malloc(s.lse_bytes);
    fill(s.o, 0xff);
    fill(s.lse, 0xff);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const int first = calls[i][0], n = calls[i][1];
        bs_attend_args args = attend_some(&s.args, &x.tb, first, n);
        args.pools = &s.pools;
        ok(bs_op_attend(stream, &args));
    }
    ok(bs_copy_to_host(stream, o, s.args.o, s.o_bytes));
    ok(bs_copy_to_host(stream, lse, s.args.lse, s.lse_bytes));
    ok(bs_stream_sync(stream));
    for (int b = 0; b < MAX_SEQS; b++) check_sequence(&x.fx, &x.tb, b, x.q, o, lse);
    free(o);
    free(lse);
    close_side(&s);
    free_case(&x);
}

/* Errors must not grow with the number of tokens. */
static void test_long(void **state)
{
    (void)state;
    if (is_short) skip();
    static const int seqs[MAX_SEQS][3] = {{100001, 1, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
    seed = 7;
    run_case(format(4, 4, true, 128, false), 128, 1, 0, seqs, false, BS_TYPE_BF16, -1);
    run_case(format(2, 2, true, 128, false), 64, 1, 0, seqs, false, BS_TYPE_BF16, -1);
    run_case(format(2, 2, true, 128, false), 128, 16, 0, seqs, false, BS_TYPE_BF16, -1);
    /* Several slabs, of a chunk in splits. */
    static const int chunk[MAX_SEQS][3] = {{150001, 68, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
    run_case(format(4, 4, true, 128, false), 128, 1, 0, chunk, false, BS_TYPE_BF16, -1);
}

/* A graph is captured once; lengths grow in device memory; each replay gives the bits of an eager call. */
static void check_graph(int G)
{
    static const int seqs[MAX_SEQS][3] = {{1409, 1, 1}, {700, 1, 1}, {129, 1, 1}, {1, 1, 1}};
    attend_case x;
    seed = 5;
    build(&x, format(4, 4, true, 128, false), 128, G, 0, seqs, false);
    side s = open_side(&x.fx, &x.tb, x.q, BS_TYPE_BF16);
    float *o = malloc(s.o_bytes), *lse = malloc(s.lse_bytes), *replayed = malloc(s.o_bytes);
    bs_graph *graph;
    s.args.pools = &s.pools;
    for (int overlap = 0; overlap < 2; overlap++) {
        bs_stream_set_overlap(stream, overlap);
        ok(bs_capture_begin(stream));
        for (int i = 0; i < 3; i++)
            ok(bs_op_attend(stream, &s.args)); /* three: they must not disturb each other */
        ok(bs_capture_end(stream, &graph));
        bs_stream_set_overlap(stream, false);
        for (int grown = 0; grown < 4; grown++) {
            int32_t n_tokens[MAX_SEQS], pos0[MAX_SEQS];
            for (int b = 0; b < MAX_SEQS; b++) {
                n_tokens[b] = x.tb.n_tokens[b] > 3 ? x.tb.n_tokens[b] - 3 + grown : 1;
                pos0[b] = n_tokens[b] - 1;
            }
            ok(bs_copy_to_device(stream, bs_buffer_at(s.n_tokens, 0), n_tokens, sizeof n_tokens));
            ok(bs_copy_to_device(stream, bs_buffer_at(s.q_pos0, 0), pos0, sizeof pos0));
            attend(&s, &s.pools, o, lse);
            fill(s.o, 0xff);
            ok(bs_graph_launch(stream, graph));
            ok(bs_copy_to_host(stream, replayed, s.args.o, s.o_bytes));
            ok(bs_stream_sync(stream));
            assert_memory_equal(replayed, o, s.o_bytes);
            tables tb = x.tb;
            memcpy(tb.n_tokens, n_tokens, sizeof n_tokens);
            memcpy(tb.q_pos0, pos0, sizeof pos0);
            for (int b = 0; b < MAX_SEQS; b++) check_sequence(&x.fx, &tb, b, x.q, o, lse);
        }
        bs_graph_destroy(graph);
    }
    free(o);
    free(lse);
    free(replayed);
    close_side(&s);
    free_case(&x);
}

static void test_graph(void **state)
{
    (void)state;
    check_graph(4);
    check_graph(16);
}

static void test_refused(void **state)
{
    (void)state;
    bs_kv_shape shape = {
        .n_layers = 1, .n_kv_heads = 1, .head_dim = 128, .format = format(2, 8, true, 128, false)};
    size_t f16, quant;
    assert_int_equal(bs_kv_slot_bytes(gpu, &shape, &f16, &quant), BS_STATUS_UNSUPPORTED);
    assert_non_null(strstr(bs_error_message(), "2 bits of K and 8 of V"));
    bs_error_clear();
    shape.format = format(4, 4, true, 128, false);
    shape.head_dim = 256;
    assert_int_equal(bs_kv_slot_bytes(gpu, &shape, &f16, &quant), BS_STATUS_UNSUPPORTED);
    assert_non_null(strstr(bs_error_message(), "256"));
    bs_error_clear();
}

int main(int argc, char **argv)
{
    is_short = argc == 2 && strcmp(argv[1], "short") == 0;
    if (argc > 1 && !is_short) {
        printf("usage: %s [short]\n", argv[0]);
        return 2;
    }
    if (bs_device_count_gpus() == 0) {
        printf("skipped: this process sees no GPU\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),   cmocka_unit_test(test_chunks),
                                       cmocka_unit_test(test_subsets), cmocka_unit_test(test_long),
                                       cmocka_unit_test(test_graph),   cmocka_unit_test(test_refused)};
    if (bs_device_open(&(bs_device_config){.n_threads = 1}, &cpu) != BS_STATUS_OK ||
        bs_device_open(&(bs_device_config){.kind = BS_DEVICE_CUDA, .n_threads = 1}, &gpu) != BS_STATUS_OK ||
        bs_stream_create(cpu, &cpu_stream) != BS_STATUS_OK ||
        bs_stream_create(gpu, &stream) != BS_STATUS_OK) {
        printf("%s\n", bs_error_message());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("worst relative L2 of O %.2g, worst LSE error %.2g\n", worst_o, worst_lse);
    printf("beyond the plain limits at most %.2f and %.2f times the errors of exact arithmetic\n",
           worst_ratio_o, worst_ratio_lse);
    bs_stream_destroy(stream);
    bs_stream_destroy(cpu_stream);
    bs_device_close(gpu);
    bs_device_close(cpu);
    return failed;
}
