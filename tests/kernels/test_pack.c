/* test_pack.c: pack, unpack, slot sizes and clearing.
 *
 * Canonical bytes of every format go into a slot and come back; each code is then looked for in the slot by
 * kv_layout.h's written order, worked out here bit by bit, because attention reads it by that order.
 */
#include "kernels/cpu/kv_layout.h"
#include "tests/kernels/kv_fixture.h"

enum { PAGE = BS_PAGE_TOKENS, MAX_PART = PAGE * 128 * 2 };

typedef struct page_bytes {
    uint8_t k[MAX_PART], k_meta[MAX_PART], v[MAX_PART], v_meta[MAX_PART];
} page_bytes;

static void draw_bytes(uint8_t *bytes, size_t n, uint64_t *state)
{
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)kv_random(state);
}

/* n bits from bit `at`, low first. */
static unsigned bits_at(const uint8_t *bytes, size_t at, int n)
{
    unsigned value = 0;
    for (int i = 0; i < n; i++)
        value |= (unsigned)(bytes[(at + (size_t)i) / 8] >> (at + (size_t)i) % 8 & 1) << i;
    return value;
}

static unsigned half_at(const uint8_t *bytes, size_t index)
{
    return bits_at(bytes, 16 * index, 16);
}

/* kv_layout.h's words, fields and parameter arrays against the canonical places. */
static void check_slot(const bs_kv_format *format, int d, const uint8_t *record, const page_bytes *p)
{
    const int kb = format->k_bits, vb = format->v_bits, kf = 32 / kb, vf = 32 / vb;
    const int g = format->group, vg = g < d ? g : d;
    const uint8_t *k = record, *v = k + PAGE * d * kb / 8, *k_meta = v + PAGE * d * vb / 8;
    for (int t = 0; t < PAGE; t++) {
        for (int c = 0; c < d; c++) {
            size_t word = (size_t)((t / 16 * (d / kf) + c / kf) * 16 + t % 16);
            assert_int_equal(bits_at(k, 32 * word + (size_t)(c % kf * kb), kb),
                             bits_at(p->k, (size_t)((t * d + c) * kb), kb));
            word = (size_t)((t / vf * (d / 16) + c / 16) * 16 + c % 16);
            assert_int_equal(bits_at(v, 32 * word + (size_t)(t % vf * vb), vb),
                             bits_at(p->v, (size_t)((t * d + c) * vb), vb));
        }
    }
    size_t n_pairs = format->k_per_channel ? (size_t)(PAGE / g * d) : (size_t)(PAGE * (d / vg));
    for (size_t i = 0; i < n_pairs; i++) {
        size_t axis = format->k_per_channel ? (size_t)d : PAGE;
        size_t group = format->k_per_channel ? i / axis : i % (size_t)(d / vg);
        size_t place = format->k_per_channel ? i % axis : i / (size_t)(d / vg);
        assert_int_equal(half_at(k_meta, group * 2 * axis + place), half_at(p->k_meta, 2 * i));
        assert_int_equal(half_at(k_meta, group * 2 * axis + axis + place), half_at(p->k_meta, 2 * i + 1));
    }
    const uint8_t *v_meta = k_meta + 4 * n_pairs;
    if (format->k_norm) {
        assert_memory_equal(v_meta, p->k_meta + 4 * n_pairs, 2 * PAGE);
        v_meta += 2 * PAGE;
    }
    for (int t = 0; t < PAGE; t++) {
        for (int group = 0; group < d / vg; group++) {
            size_t i = (size_t)(t * (d / vg) + group);
            assert_int_equal(half_at(v_meta, (size_t)(group * 2 * PAGE + t)), half_at(p->v_meta, 2 * i));
            assert_int_equal(half_at(v_meta, (size_t)(group * 2 * PAGE + PAGE + t)),
                             half_at(p->v_meta, 2 * i + 1));
        }
    }
}

static void check_round_trip(kv_fixture *f, uint64_t *state)
{
    static page_bytes in, out, clean;
    const bs_kv_format *format = &f->shape.format;
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(format, f->shape.head_dim);
    const int layer = 1, kv_head = 2;
    const uint32_t slot = 1;
    draw_bytes(in.k, bytes.k, state);
    draw_bytes(in.v, bytes.v, state);
    draw_bytes(in.k_meta, bytes.k_meta, state);
    draw_bytes(in.v_meta, bytes.v_meta, state);
    memset(&out, KV_POISON, sizeof out);
    memset(&clean, KV_POISON, sizeof clean);

    /* Parts apart, to see that NULL skips. */
    bs_kv_page_ref refs[] = {{slot, layer, kv_head, in.k, NULL, NULL, in.v_meta},
                             {slot, layer, kv_head, NULL, in.k_meta, in.v, NULL}};
    bs_pack_args unpack = {&f->pools, true, 2, refs};
    assert_int_equal(bs_op_unpack(f->stream, &unpack), BS_STATUS_OK);
    bs_kv_page_ref ref = {slot, layer, kv_head, out.k, out.k_meta, out.v, out.v_meta};
    bs_pack_args pack = {&f->pools, true, 1, &ref};
    assert_int_equal(bs_op_pack(f->stream, &pack), BS_STATUS_OK);
    assert_memory_equal(in.k, out.k, bytes.k);
    assert_memory_equal(in.v, out.v, bytes.v);
    assert_memory_equal(in.k_meta, out.k_meta, bytes.k_meta);
    assert_memory_equal(in.v_meta, out.v_meta, bytes.v_meta);
    /* Nothing behind the canonical bytes. */
    assert_memory_equal(out.k + bytes.k, clean.k, sizeof clean.k - bytes.k);
    assert_memory_equal(out.v + bytes.v, clean.v, sizeof clean.v - bytes.v);
    assert_memory_equal(out.k_meta + bytes.k_meta, clean.k_meta, sizeof clean.k_meta - bytes.k_meta);
    assert_memory_equal(out.v_meta + bytes.v_meta, clean.v_meta, sizeof clean.v_meta - bytes.v_meta);

    size_t record_bytes = f->quant_slot_bytes / (size_t)(f->shape.n_layers * f->shape.n_kv_heads);
    const uint8_t *pool = f->pools.quant_pool;
    size_t at = f->quant_slot_bytes + (size_t)(layer * f->shape.n_kv_heads + kv_head) * record_bytes;
    check_slot(format, f->shape.head_dim, pool + at, &in);
    kv_assert_untouched(pool, at);
    kv_assert_untouched(pool + at + record_bytes, KV_QUANT_SLOTS * f->quant_slot_bytes - at - record_bytes);

    bs_clear_slots_args clear = {&f->pools, true, 1, &slot};
    assert_int_equal(bs_op_clear_slots(f->stream, &clear), BS_STATUS_OK);
    kv_assert_untouched(pool, f->quant_slot_bytes);
    kv_assert_untouched(pool + 2 * f->quant_slot_bytes, f->quant_slot_bytes);
    for (size_t i = 0; i < f->quant_slot_bytes; i++) assert_int_equal(pool[f->quant_slot_bytes + i], 0);
}

static void test_quantized(void **cmocka_state)
{
    static const int widths[] = {8, 4, 2};
    uint64_t state = 11;
    for (int i = 0; i < 3 * 3 * 2 * 3 * 2 * 2; i++) {
        bs_kv_format format = {.k_bits = widths[i % 3],
                               .v_bits = widths[i / 3 % 3],
                               .k_per_channel = i / 9 % 2,
                               .group = 32 << i / 18 % 3,
                               .k_norm = i / 54 % 2};
        bs_kv_shape shape = {2, 3, i / 108 ? 128 : 64, format};
        kv_fixture f;
        assert_true(kv_open(&f, &shape, BS_ISA_AUTO));
        check_round_trip(&f, &state);
        kv_close(&f);
    }
}

static void test_f16(void **cmocka_state)
{
    static uint8_t k[MAX_PART], v[MAX_PART], back[MAX_PART];
    uint64_t state = 12;
    for (int d = 64; d <= 128; d += 64) {
        bs_kv_shape shape = {2, 3, d, {.k_bits = 16, .v_bits = 16}};
        kv_fixture f;
        assert_true(kv_open(&f, &shape, BS_ISA_AUTO));
        assert_int_equal(f.quant_slot_bytes, 0);
        assert_int_equal(f.f16_slot_bytes, 2 * 3 * bs_kv_canonical_bytes(&shape.format, d).f16);
        size_t part = (size_t)(PAGE * d * 2), at = f.f16_slot_bytes + (size_t)(1 * 3 + 2) * 2 * part;
        draw_bytes(k, part, &state);
        draw_bytes(v, part, &state);
        bs_kv_page_ref ref = {1, 1, 2, k, NULL, v, NULL};
        bs_pack_args args = {&f.pools, false, 1, &ref};
        assert_int_equal(bs_op_unpack(f.stream, &args), BS_STATUS_OK);
        const uint8_t *pool = f.pools.f16_pool;
        assert_memory_equal(pool + at, k, part);
        assert_memory_equal(pool + at + part, v, part);
        kv_assert_untouched(pool, at);
        kv_assert_untouched(pool + at + 2 * part, KV_F16_SLOTS * f.f16_slot_bytes - at - 2 * part);
        ref.k = NULL;
        ref.v = back;
        assert_int_equal(bs_op_pack(f.stream, &args), BS_STATUS_OK);
        assert_memory_equal(back, v, part);
        kv_close(&f);
    }
}

/* docs/kv-format.md's bits per element. */
static void test_canonical_bytes(void **cmocka_state)
{
    static const struct {
        bs_kv_format format;
        double bits;
    } cases[] = {
        {{.k_bits = 8, .v_bits = 8, .k_per_channel = true, .group = 128}, 8.25},
        {{.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128}, 4.25},
        {{.k_bits = 4, .v_bits = 2, .k_per_channel = true, .group = 128, .k_norm = true}, 3.3125},
        {{.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32, .k_norm = true}, 3.0625},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bs_kv_page_bytes b = bs_kv_canonical_bytes(&cases[i].format, 128);
        size_t total = b.k + b.k_meta + b.v + b.v_meta;
        assert_int_equal(total * 8, (size_t)(cases[i].bits * 2 * PAGE * 128));
        assert_int_equal(b.f16, 2 * 2 * PAGE * 128);
    }
}

static void test_unsupported(void **cmocka_state)
{
    bs_device *device;
    bs_stream *stream;
    size_t f16, quant;
    assert_true(kv_open_device(BS_ISA_AUTO, &device, &stream));
    bs_kv_shape shape = {1, 1, 80, {.k_bits = 4, .v_bits = 4, .group = 128}};
    assert_int_equal(bs_kv_slot_bytes(device, &shape, &f16, &quant), BS_STATUS_UNSUPPORTED);
    bs_error_clear();
    kv_close_device(device, stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_canonical_bytes),
        cmocka_unit_test(test_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
