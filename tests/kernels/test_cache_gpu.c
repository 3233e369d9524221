/* test_cache_gpu.c: the GPU's slots, pack, unpack and quantize against the CPU's, bit for bit.
 *
 * The CPU's kernels have references of their own (test_quantize.c, test_pack.c); here canonical bytes of both
 * devices are compared after the same calls, over every format that GPUs take and the data that are hard to
 * quantize. The order inside a GPU's slot is held to kv_layout.h, which attention reads by, code by code. */
#include "kernels/cuda/kv_layout.h"
#include "tests/kernels/gpu_fixture.h"
#include "tests/kernels/kv_draw.h"

enum { PAGE = BS_PAGE_TOKENS, MAX_PART = PAGE * KV_MAX_D * 2, N_LAYERS = 2, N_HEADS = KV_N_KINDS / N_LAYERS };

/* Canonical bytes of one quantized (page, layer, head), or K and V of an f16 one. */
typedef struct page_bytes {
    uint8_t k[MAX_PART], k_meta[MAX_PART], v[MAX_PART], v_meta[MAX_PART];
} page_bytes;

static const int pairs[][2] = {{8, 8}, {4, 4}, {2, 2}, {8, 4}, {4, 2}};
enum { N_PAIRS = sizeof pairs / sizeof *pairs };

static bs_kv_page_ref staged_ref(gpu_side *side, uint32_t slot, int layer, int kv_head, size_t at)
{
    return (bs_kv_page_ref){slot,
                            layer,
                            kv_head,
                            gpu_stage(side, at),
                            gpu_stage(side, at + MAX_PART),
                            gpu_stage(side, at + 2 * MAX_PART),
                            gpu_stage(side, at + 3 * MAX_PART)};
}

static void pack_page(gpu_side *side, uint32_t slot, int layer, int kv_head, page_bytes *out)
{
    bs_kv_page_ref page = staged_ref(side, slot, layer, kv_head, 0);
    bs_pack_args args = {&side->pools, true, 1, &page};
    gpu_poison(side, gpu_stage(side, 0), sizeof *out);
    assert_int_equal(bs_op_pack(side->stream, &args), BS_STATUS_OK);
    gpu_get(side, out, gpu_stage(side, 0), sizeof *out);
}

static void assert_same(const char *what, const char *part, const uint8_t *cpu, const uint8_t *gpu)
{
    for (int i = 0; i < MAX_PART; i++)
        if (cpu[i] != gpu[i]) fail_msg("%s: byte %d of %s is %02x, not %02x", what, i, part, gpu[i], cpu[i]);
}

/* The whole of all four arrays: behind a page's bytes both hold poison. */
static void assert_same_page(const char *what, const page_bytes *cpu, const page_bytes *gpu)
{
    assert_same(what, "k_meta", cpu->k_meta, gpu->k_meta);
    assert_same(what, "v_meta", cpu->v_meta, gpu->v_meta);
    assert_same(what, "k", cpu->k, gpu->k);
    assert_same(what, "v", cpu->v, gpu->v);
}

/* ---- quantize ---- */

/* Two pages of all kinds of data, one a (layer, head), from slots 2 and 0 into slots 1 and 2 of three. */
static const uint32_t f16_slots[] = {2, 0}, quant_slots[] = {1, 2};

static void quantize_pages(gpu_side *side, uint16_t k[KV_N_KINDS][PAGE * KV_MAX_D],
                           uint16_t v[KV_N_KINDS][PAGE * KV_MAX_D])
{
    for (int p = 0; p < 2; p++)
        for (int i = 0; i < KV_N_KINDS; i++)
            gpu_fill_page(side, f16_slots[p], i / N_HEADS, i % N_HEADS, k[(i + 5 * p) % KV_N_KINDS],
                          v[(i + 3 + 2 * p) % KV_N_KINDS]);
    uint8_t *before = gpu_copy_pool(side, false);
    gpu_put(side, gpu_stage(side, 0), f16_slots, sizeof f16_slots);
    gpu_put(side, gpu_stage(side, 256), quant_slots, sizeof quant_slots);
    bs_quantize_args args = {&side->pools, 2, gpu_stage(side, 0), gpu_stage(side, 256)};
    assert_int_equal(bs_op_quantize(side->stream, &args), BS_STATUS_OK);
    assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
    uint8_t *after = gpu_copy_pool(side, false), *quant = gpu_copy_pool(side, true);
    assert_memory_equal(before, after, 3 * side->f16_slot_bytes);
    kv_assert_untouched(quant, side->quant_slot_bytes); /* slot 0 */
    free(before);
    free(after);
    free(quant);
}

static void check_format(gpu_side *sides, const bs_kv_format *format, int d,
                         uint16_t k[KV_N_KINDS][PAGE * KV_MAX_D], uint16_t v[KV_N_KINDS][PAGE * KV_MAX_D])
{
    static page_bytes bytes[GPU_N_SIDES];
    const bs_kv_shape shape = {N_LAYERS, N_HEADS, d, *format};
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_open_pools(&sides[s], &shape, 3, 3);
        quantize_pages(&sides[s], k, v);
    }
    for (int i = 0; i < 2 * KV_N_KINDS; i++) {
        char what[96];
        const int p = i / KV_N_KINDS, layer = i % KV_N_KINDS / N_HEADS, head = i % N_HEADS;
        for (int s = 0; s < GPU_N_SIDES; s++) pack_page(&sides[s], quant_slots[p], layer, head, &bytes[s]);
        snprintf(what, sizeof what, "D %d, K %d V %d bits, %s g%d%s, encoder %d, page %d layer %d head %d", d,
                 format->k_bits, format->v_bits, format->k_per_channel ? "kc" : "kt", format->group,
                 format->k_norm ? " norm" : "", format->v_encoder, p, layer, head);
        assert_same_page(what, &bytes[GPU_CPU_SIDE], &bytes[GPU_GPU_SIDE]);
    }
    for (int s = 0; s < GPU_N_SIDES; s++) gpu_close_pools(&sides[s]);
}

static void test_quantize(void **state)
{
    static uint16_t k[KV_N_KINDS][PAGE * KV_MAX_D], v[KV_N_KINDS][PAGE * KV_MAX_D];
    int n = 0;
    for (int d = 64; d <= 128; d += 64) {
        for (int group = 32; group <= 128; group *= 2) {
            for (int i = 0; i < KV_N_KINDS; i++) {
                const uint64_t seed = (uint64_t)(1000 * d + 100 * group + i);
                kv_draw_page(i, d, seed, k[i]);
                kv_draw_page(i, d, seed + 20, v[i]);
            }
            for (int i = 0; i < N_PAIRS * 8; i++) {
                bs_kv_format format = {.k_bits = pairs[i / 8][0],
                                       .v_bits = pairs[i / 8][1],
                                       .k_per_channel = i & 1,
                                       .group = group,
                                       .k_norm = i >> 1 & 1,
                                       .v_encoder = i >> 2 & 1 ? BS_V_ENCODER_PLAIN : BS_V_ENCODER_BEST};
                if (format.v_bits > 2 && format.v_encoder == BS_V_ENCODER_PLAIN) continue;
                if (gpu_runs_case(n++, 19)) check_format(*state, &format, d, k, v);
            }
        }
    }
}

/* A launch of so many pages goes through them otherwise than one of a few: the first two as a CPU has them,
 * the others, from the same two f16 slots, as those. */
enum { N_MANY = 2048 / KV_N_KINDS + 2 };

static void check_many(gpu_side *sides, const bs_kv_format *format, int d,
                       uint16_t k[KV_N_KINDS][PAGE * KV_MAX_D], uint16_t v[KV_N_KINDS][PAGE * KV_MAX_D])
{
    static page_bytes bytes[GPU_N_SIDES];
    const bs_kv_shape shape = {N_LAYERS, N_HEADS, d, *format};
    uint32_t from[N_MANY], to[N_MANY];
    for (uint32_t i = 0; i < N_MANY; i++) {
        from[i] = i % 2;
        to[i] = i;
    }
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_side *side = &sides[s];
        const int n = s == GPU_GPU_SIDE ? N_MANY : 2;
        gpu_open_pools(side, &shape, 2, (uint32_t)n);
        for (int i = 0; i < 2 * KV_N_KINDS; i++)
            gpu_fill_page(side, (uint32_t)(i / KV_N_KINDS), i % KV_N_KINDS / N_HEADS, i % N_HEADS,
                          k[i % KV_N_KINDS], v[(i + 5 * (i / KV_N_KINDS)) % KV_N_KINDS]);
        gpu_put(side, gpu_stage(side, 0), from, sizeof from);
        gpu_put(side, gpu_stage(side, sizeof from), to, sizeof to);
        bs_quantize_args args = {&side->pools, n, gpu_stage(side, 0), gpu_stage(side, sizeof from)};
        assert_int_equal(bs_op_quantize(side->stream, &args), BS_STATUS_OK);
        assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
    }
    for (int i = 0; i < 2 * KV_N_KINDS; i++) {
        char what[64];
        for (int s = 0; s < GPU_N_SIDES; s++)
            pack_page(&sides[s], (uint32_t)(i / KV_N_KINDS), i % KV_N_KINDS / N_HEADS, i % N_HEADS,
                      &bytes[s]);
        snprintf(what, sizeof what, "many, D %d, %d bits, g%d, page and head %d", d, format->k_bits,
                 format->group, i);
        assert_same_page(what, &bytes[GPU_CPU_SIDE], &bytes[GPU_GPU_SIDE]);
    }
    const size_t slot_bytes = sides[GPU_GPU_SIDE].quant_slot_bytes;
    uint8_t *pool = gpu_copy_pool(&sides[GPU_GPU_SIDE], true);
    for (size_t i = 2; i < N_MANY; i++)
        assert_memory_equal(pool + i * slot_bytes, pool + i % 2 * slot_bytes, slot_bytes);
    free(pool);
    for (int s = 0; s < GPU_N_SIDES; s++) gpu_close_pools(&sides[s]);
}

static void test_quantize_many(void **state)
{
    static const bs_kv_format formats[] = {
        {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32, .k_norm = true},
        {.k_bits = 2,
         .v_bits = 2,
         .k_per_channel = true,
         .group = 64,
         .k_norm = true,
         .v_encoder = BS_V_ENCODER_PLAIN},
        {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128},
        {.k_bits = 4, .v_bits = 2, .k_per_channel = true, .group = 128, .k_norm = true}};
    static uint16_t k[KV_N_KINDS][PAGE * KV_MAX_D], v[KV_N_KINDS][PAGE * KV_MAX_D];
    for (int d = 64; d <= 128; d += 64) {
        for (int i = 0; i < KV_N_KINDS; i++) {
            kv_draw_page(i, d, (uint64_t)(7000 + d + i), k[i]);
            kv_draw_page(i, d, (uint64_t)(8000 + d + i), v[i]);
        }
        for (int i = 0; i < (int)(sizeof formats / sizeof *formats); i++)
            if (gpu_runs_case(i + d / 64, 4)) check_many(*state, &formats[i], d, k, v);
    }
}

/* What is queued may be captured, and slots are read at each launch: a graph that clears a slot, quantizes a
 * page into it and packs a head gives what the same calls gave. */
static void test_graph(void **cmocka_state)
{
    static uint16_t page[2][PAGE * KV_MAX_D];
    static page_bytes direct, replayed;
    gpu_side *gpu = (gpu_side *)*cmocka_state + GPU_GPU_SIDE;
    const bs_kv_shape shape = {
        2, 1, 128, {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32, .k_norm = true}};
    bs_graph *graph;
    gpu_open_pools(gpu, &shape, 2, 2);
    for (uint32_t p = 0; p < 2; p++) {
        kv_draw_page(0, 128, 90 + p, page[p]);
        for (int layer = 0; layer < 2; layer++) gpu_fill_page(gpu, p, layer, 0, page[p], page[1 - p]);
    }
    void *from = gpu_stage(gpu, sizeof direct), *to = gpu_stage(gpu, sizeof direct + 256);
    bs_kv_page_ref ref = staged_ref(gpu, 1, 1, 0, 0);
    bs_clear_slots_args clear = {&gpu->pools, true, 1, to};
    bs_quantize_args quantize = {&gpu->pools, 1, from, to};
    bs_pack_args pack = {&gpu->pools, true, 1, &ref};
    assert_int_equal(bs_capture_begin(gpu->stream), BS_STATUS_OK);
    assert_int_equal(bs_op_clear_slots(gpu->stream, &clear), BS_STATUS_OK);
    assert_int_equal(bs_op_quantize(gpu->stream, &quantize), BS_STATUS_OK);
    assert_int_equal(bs_op_pack(gpu->stream, &pack), BS_STATUS_OK);
    assert_int_equal(bs_capture_end(gpu->stream, &graph), BS_STATUS_OK);
    for (uint32_t p = 0; p < 2; p++) {
        const uint32_t quant_slot = 1;
        gpu_put(gpu, from, &p, sizeof p);
        gpu_put(gpu, to, &quant_slot, sizeof quant_slot);
        assert_int_equal(bs_op_quantize(gpu->stream, &quantize), BS_STATUS_OK);
        pack_page(gpu, 1, 1, 0, &direct);
        gpu_poison(gpu, gpu_stage(gpu, 0), sizeof replayed);
        gpu_poison(gpu, gpu->pools.quant_pool, 2 * gpu->quant_slot_bytes);
        assert_int_equal(bs_graph_launch(gpu->stream, graph), BS_STATUS_OK);
        assert_int_equal(bs_stream_check(gpu->stream), BS_STATUS_OK);
        gpu_get(gpu, &replayed, gpu_stage(gpu, 0), sizeof replayed);
        assert_same_page("graph", &direct, &replayed);
    }
    bs_graph_destroy(graph);
    gpu_close_pools(gpu);
}

/* ---- the order of a slot, pack and unpack ---- */

/* 66 pages: more than one launch takes. */
enum { N_SLOTS = 11, N_LAYERS_OF_ORDER = 2, N_HEADS_OF_ORDER = 3, N_REFS = N_SLOTS * 6 };

/* One page's canonical bytes, side by side. */
typedef struct canonical {
    const uint8_t *k, *k_meta, *v, *v_meta;
} canonical;

static unsigned code_at(const uint8_t *bytes, int index, int bits)
{
    return bytes[index * bits / 8] >> index * bits % 8 & ((1u << bits) - 1);
}

static uint16_t half_at(const uint8_t *bytes, uint32_t at)
{
    return (uint16_t)(bytes[at] | bytes[at + 1] << 8);
}

static void check_codes(const bs_cuda_kv_layout *l, const uint8_t *record, const canonical *p)
{
    int shift;
    for (int i = 0; i < PAGE * l->head_dim; i++) {
        const int t = i / l->head_dim, c = i % l->head_dim;
        uint32_t at = bs_cuda_kv_k_code(l->head_dim, l->k_bits, t, c, &shift);
        assert_int_equal(record[at] >> shift & ((1 << l->k_bits) - 1), code_at(p->k, i, l->k_bits));
        at = l->k_half + bs_cuda_kv_v_code(l->v_bits, t, c, &shift);
        assert_int_equal(record[at] >> shift & ((1 << l->v_bits) - 1), code_at(p->v, i, l->v_bits));
    }
}

/* A pair whose z lies as high and low bytes. */
static void check_split_pair(uint16_t s, const uint8_t *z, const uint8_t *pair)
{
    const int16_t expected = (int16_t)half_at(pair, 2);
    assert_int_equal(s, half_at(pair, 0));
    assert_int_equal((int8_t)z[0], bs_cuda_kv_z_high(expected));
    assert_int_equal((int8_t)z[4], bs_cuda_kv_z_low(expected));
}

static void check_k_meta(const bs_cuda_kv_layout *l, const uint8_t *k, const uint8_t *meta)
{
    const int d = l->head_dim, n_groups = l->k_per_channel ? PAGE / l->k_group : d / l->k_group;
    for (int g = 0; g < n_groups; g++) {
        const uint32_t group = (uint32_t)(g * (l->k_per_channel ? 2 * d : 256));
        for (int c = 0; l->k_per_channel && c < d; c++)
            check_split_pair(half_at(k, l->k_s + group + bs_cuda_kv_k_channel_s(c)),
                             k + l->k_z + group + bs_cuda_kv_k_channel_z(c), meta + 4 * (g * d + c));
        for (int t = 0; !l->k_per_channel && t < PAGE; t++) {
            const uint8_t *pair = meta + 4 * (t * n_groups + g);
            assert_int_equal(half_at(k, l->k_s + group + bs_cuda_kv_token_byte(t)), half_at(pair, 0));
            assert_int_equal(half_at(k, l->k_z + group + bs_cuda_kv_token_byte(t)), half_at(pair, 2));
        }
    }
    const uint8_t *norms = meta + 4 * n_groups * (l->k_per_channel ? d : PAGE);
    for (int t = 0; l->k_norm && t < PAGE; t++)
        assert_int_equal(half_at(k, l->k_n + bs_cuda_kv_token_byte(t)), half_at(norms, (uint32_t)(2 * t)));
}

static void check_v_meta(const bs_cuda_kv_layout *l, const uint8_t *v, const uint8_t *meta)
{
    const int n_groups = l->head_dim / l->v_group;
    for (int t = 0; t < PAGE; t++)
        for (int g = 0; g < n_groups; g++)
            check_split_pair(half_at(v, l->v_s + (uint32_t)(g * 256) + bs_cuda_kv_token_byte(t)),
                             v + l->v_z + g * 256 + bs_cuda_kv_v_z(t), meta + 4 * (t * n_groups + g));
}

static void check_f16(const uint8_t *pages, int d, const canonical *p)
{
    for (int i = 0; i < PAGE * d; i++) {
        const uint32_t k = bs_cuda_kv_f16_byte(d, false, i / d, i % d),
                       v = (uint32_t)(2 * PAGE * d) + bs_cuda_kv_f16_byte(d, true, i / d, i % d);
        assert_int_equal(half_at(pages, k), half_at(p->k, (uint32_t)(2 * i)));
        assert_int_equal(half_at(pages, v), half_at(p->v, (uint32_t)(2 * i)));
    }
}

/* Page i of canonical bytes that begin at `first`. */
static bs_kv_page_ref ref_at(uint8_t *first, int i, const bs_kv_page_bytes *n, bool quantized)
{
    const size_t half = n->f16 / 2, bytes = quantized ? n->k + n->k_meta + n->v + n->v_meta : n->f16;
    uint8_t *k = first + (size_t)i * bytes;
    bs_kv_page_ref ref = {
        (uint32_t)(i / 6), i / N_HEADS_OF_ORDER % 2, i % N_HEADS_OF_ORDER, k, NULL, NULL, NULL};
    ref.k_meta = quantized ? k + n->k : NULL;
    ref.v = quantized ? k + n->k + n->k_meta : k + half;
    ref.v_meta = quantized ? k + n->k + n->k_meta + n->v : NULL;
    return ref;
}

static void move_all(gpu_side *gpu, uint8_t *at, bool quantized, bool pack)
{
    const bs_kv_page_bytes n = bs_kv_canonical_bytes(&gpu->pools.shape->format, gpu->pools.shape->head_dim);
    bs_kv_page_ref refs[N_REFS];
    for (int i = 0; i < N_REFS; i++) refs[i] = ref_at(at, i, &n, quantized);
    bs_pack_args args = {&gpu->pools, quantized, N_REFS, refs};
    assert_int_equal(pack ? bs_op_pack(gpu->stream, &args) : bs_op_unpack(gpu->stream, &args), BS_STATUS_OK);
}

/* The last page in the slot against kv_layout.h. */
static void check_order(gpu_side *gpu, uint8_t *bytes, bool quantized)
{
    const bs_kv_shape *shape = gpu->pools.shape;
    const bs_cuda_kv_layout l = bs_cuda_kv_layout_of(shape);
    const bs_kv_page_bytes n = bs_kv_canonical_bytes(&shape->format, shape->head_dim);
    const bs_kv_page_ref ref = ref_at(bytes, N_REFS - 1, &n, quantized);
    const canonical page = {ref.k, ref.k_meta, ref.v, ref.v_meta};
    uint8_t *pool = gpu_copy_pool(gpu, quantized);
    if (quantized) {
        const uint8_t *record = pool + bs_cuda_kv_record_at(&l, ref.slot, ref.layer, ref.kv_head);
        check_codes(&l, record, &page);
        check_k_meta(&l, record, page.k_meta);
        check_v_meta(&l, record + l.k_half, page.v_meta);
    } else {
        check_f16(pool + bs_cuda_kv_f16_at(&l, ref.slot, ref.layer, ref.kv_head, false), shape->head_dim,
                  &page);
    }
    free(pool);
}

/* K codes and V's parameters of page 5 alone: the rest of it stays. */
static void check_parts(gpu_side *gpu, uint8_t *at, uint8_t *bytes, bool quantized, uint64_t *state)
{
    const bs_kv_page_bytes n = bs_kv_canonical_bytes(&gpu->pools.shape->format, gpu->pools.shape->head_dim);
    bs_kv_page_ref on_host = ref_at(bytes, 5, &n, quantized), ref = ref_at(at, 5, &n, quantized);
    const size_t k_bytes = quantized ? n.k : n.f16 / 2;
    for (size_t i = 0; i < k_bytes; i++) ((uint8_t *)on_host.k)[i] = (uint8_t)kv_random(state);
    for (size_t i = 0; i < n.v_meta && quantized; i++)
        ((uint8_t *)on_host.v_meta)[i] = (uint8_t)kv_random(state);
    gpu_put(gpu, ref.k, on_host.k, k_bytes);
    if (quantized) gpu_put(gpu, ref.v_meta, on_host.v_meta, n.v_meta);
    ref.v = ref.k_meta = NULL;
    bs_pack_args args = {&gpu->pools, quantized, 1, &ref};
    assert_int_equal(bs_op_unpack(gpu->stream, &args), BS_STATUS_OK);
}

static void check_round_trip(gpu_side *gpu, const bs_kv_format *format, int d, uint64_t *state)
{
    const bool quantized = format->k_bits < 16;
    const bs_kv_shape shape = {N_LAYERS_OF_ORDER, N_HEADS_OF_ORDER, d, *format};
    const bs_kv_page_bytes n = bs_kv_canonical_bytes(format, d);
    const size_t bytes = N_REFS * (quantized ? n.k + n.k_meta + n.v + n.v_meta : n.f16);
    uint8_t *in = malloc(bytes), *out = malloc(bytes);
    bs_buffer *stage;
    assert_true(in && out);
    assert_int_equal(bs_buffer_alloc(gpu->device, bytes, "pages", &stage), BS_STATUS_OK);
    uint8_t *at = bs_buffer_at(stage, 0);
    gpu_open_pools(gpu, &shape, quantized ? 0 : N_SLOTS, quantized ? N_SLOTS : 0);
    for (size_t i = 0; i < bytes; i++) in[i] = (uint8_t)kv_random(state);
    gpu_put(gpu, at, in, bytes);
    move_all(gpu, at, quantized, false);
    check_order(gpu, in, quantized);
    check_parts(gpu, at, in, quantized, state);
    gpu_poison(gpu, at, bytes);
    move_all(gpu, at, quantized, true);
    gpu_get(gpu, out, at, bytes);
    assert_memory_equal(in, out, bytes);
    gpu_close_pools(gpu);
    bs_buffer_free(stage);
    free(in);
    free(out);
}

static void test_pack(void **cmocka_state)
{
    gpu_side *gpu = (gpu_side *)*cmocka_state + GPU_GPU_SIDE;
    const bs_kv_format f16 = {.k_bits = 16, .v_bits = 16};
    uint64_t state = 21;
    for (int d = 64; d <= 128; d += 64) {
        check_round_trip(gpu, &f16, d, &state);
        for (int i = 0; i < N_PAIRS * 3 * 4; i++) {
            const bs_kv_format format = {.k_bits = pairs[i / 12][0],
                                         .v_bits = pairs[i / 12][1],
                                         .group = 32 << i / 4 % 3,
                                         .k_per_channel = i & 1,
                                         .k_norm = i >> 1 & 1};
            if (gpu_runs_case(i + d / 64, 7)) check_round_trip(gpu, &format, d, &state);
        }
    }
}

static void test_pack_refuses(void **cmocka_state)
{
    gpu_side *gpu = (gpu_side *)*cmocka_state + GPU_GPU_SIDE;
    const bs_kv_shape shape = {1, 1, 64, {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128}};
    gpu_open_pools(gpu, &shape, 1, 1);
    bs_kv_page_ref ref = {0, 0, 0, gpu_stage(gpu, 2), NULL, NULL, NULL};
    bs_pack_args args = {&gpu->pools, true, 1, &ref};
    assert_int_equal(bs_op_pack(gpu->stream, &args), BS_STATUS_RANGE);
    bs_error_clear();
    gpu_close_pools(gpu);
}

/* ---- slots ---- */

static void test_clear_slots(void **cmocka_state)
{
    gpu_side *gpu = (gpu_side *)*cmocka_state + GPU_GPU_SIDE;
    const bs_kv_shape shape = {3, 2, 64, {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32}};
    const uint32_t slots[] = {3, 0};
    for (int quantized = 0; quantized < 2; quantized++) {
        gpu_open_pools(gpu, &shape, 5, 5);
        const size_t bytes = quantized ? gpu->quant_slot_bytes : gpu->f16_slot_bytes;
        gpu_put(gpu, gpu_stage(gpu, 0), slots, sizeof slots);
        bs_clear_slots_args args = {&gpu->pools, quantized, 2, gpu_stage(gpu, 0)};
        assert_int_equal(bs_op_clear_slots(gpu->stream, &args), BS_STATUS_OK);
        for (int which = 0; which < 2; which++) {
            uint8_t *pool = gpu_copy_pool(gpu, which);
            const size_t slot_bytes = which ? gpu->quant_slot_bytes : gpu->f16_slot_bytes;
            for (size_t i = 0; i < 5 * slot_bytes; i++) {
                const bool cleared = which == quantized && (i / bytes == 0 || i / bytes == 3);
                if (pool[i] != (cleared ? 0 : KV_POISON)) fail_msg("byte %zu of slot %zu", i, i / slot_bytes);
            }
            free(pool);
        }
        gpu_close_pools(gpu);
    }
}

/* The bytes that docs/kv-format.md counts and no more; what attention does not take is refused. */
static void test_slot_bytes(void **cmocka_state)
{
    gpu_side *gpu = (gpu_side *)*cmocka_state + GPU_GPU_SIDE;
    size_t f16 = 1, quant = 1;
    for (int i = 0; i < N_PAIRS; i++) {
        const bs_kv_shape shape = {
            2, 3, 128, {.k_bits = pairs[i][0], .v_bits = pairs[i][1], .k_per_channel = true, .group = 64}};
        const bs_kv_page_bytes n = bs_kv_canonical_bytes(&shape.format, 128);
        assert_int_equal(bs_kv_slot_bytes(gpu->device, &shape, &f16, &quant), BS_STATUS_OK);
        assert_int_equal(f16, 6 * n.f16);
        assert_int_equal(quant, 6 * (n.k + n.k_meta + n.v + n.v_meta));
    }
    const bs_kv_shape bad[] = {{1, 1, 80, {.k_bits = 4, .v_bits = 4, .group = 128}},
                               {1, 1, 128, {.k_bits = 4, .v_bits = 8, .group = 128}},
                               {1, 1, 128, {.k_bits = 16, .v_bits = 8, .group = 128}},
                               {1, 1, 128, {.k_bits = 4, .v_bits = 4, .group = 16}}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(bs_kv_slot_bytes(gpu->device, &bad[i], &f16, &quant), BS_STATUS_UNSUPPORTED);
        bs_error_clear();
    }
}

/* ---- faults ---- */

/* One bad value; both devices say the same line, once. */
static void check_fault(gpu_side *sides, const bs_kv_format *format, int d, int token, int channel, bool is_v,
                        uint16_t bad)
{
    static uint16_t page[PAGE * KV_MAX_D];
    const bs_kv_shape shape = {2, 2, d, *format};
    const uint32_t slot = 1;
    char line[256] = "";
    memset(page, 0, sizeof page);
    for (int s = 0; s < GPU_N_SIDES; s++) {
        gpu_side *side = &sides[s];
        gpu_open_pools(side, &shape, 2, 2);
        page[token * d + channel] = 0;
        for (int i = 0; i < 4; i++) gpu_fill_page(side, slot, i / 2, i % 2, page, page);
        page[token * d + channel] = bad;
        gpu_fill_page(side, slot, 1, 0, is_v ? NULL : page, is_v ? page : NULL);
        gpu_put(side, gpu_stage(side, 0), &slot, sizeof slot);
        bs_quantize_args args = {&side->pools, 1, gpu_stage(side, 0), gpu_stage(side, 0)};
        for (int again = 0; again < 2; again++) {
            assert_int_equal(bs_op_quantize(side->stream, &args), BS_STATUS_OK);
            assert_int_equal(bs_stream_check(side->stream), BS_STATUS_NUMERIC);
            if (s == GPU_CPU_SIDE) snprintf(line, sizeof line, "%s", bs_error_message());
            assert_string_equal(bs_error_message(), line);
            bs_error_clear();
            assert_int_equal(bs_stream_check(side->stream), BS_STATUS_OK);
        }
        gpu_close_pools(side);
    }
}

static void test_faults(void **state)
{
    static const uint16_t bad[] = {0x7e00, 0xfc00, 0x7c00, 0x7c01};
    static const int places[][2] = {{0, 0}, {37, 63}, {64, 18}, {127, 33}};
    for (int i = 0; i < 4 * 4 * 2; i++) {
        const bs_kv_format format = {.k_bits = i & 1 ? 2 : 4,
                                     .v_bits = i & 2   ? 2
                                               : i & 1 ? 2
                                                       : 4,
                                     .k_per_channel = i >> 1 & 1,
                                     .group = i & 4 ? 128 : 32,
                                     .k_norm = i >> 2 & 1};
        const int place = i / 2 % 4, d = i & 8 ? 128 : 64;
        check_fault(*state, &format, d, places[place][0], places[place][1], i & 16, bad[i / 4 % 4]);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slot_bytes), cmocka_unit_test(test_clear_slots),
        cmocka_unit_test(test_pack),       cmocka_unit_test(test_pack_refuses),
        cmocka_unit_test(test_quantize),   cmocka_unit_test(test_quantize_many),
        cmocka_unit_test(test_faults),     cmocka_unit_test(test_graph),
    };
    gpu_need_one(argc, argv);
    return cmocka_run_group_tests(tests, gpu_open, gpu_close);
}
