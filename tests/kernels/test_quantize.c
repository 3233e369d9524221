/* test_quantize.c: the quantizer against a plain reading of docs/kv-format.md, bit for bit, on every
 * instruction set.
 *
 * The reference shares no line with kernels/: it works on canonical codes [token][channel], takes fp16 from
 * the compiler, and sums by the recursive form of the halving. Pages are compared as canonical bytes, so pack
 * is under test too (test_pack.c has its own reference). A second property keeps reference and kernel from
 * being wrong together: the dequantized value is within half a step of x.
 */
#include "tests/kernels/kv_draw.h"

enum {
    PAGE = BS_PAGE_TOKENS,
    N_KINDS = KV_N_KINDS,
    N_LAYERS = 2,
    N_HEADS = N_KINDS / N_LAYERS,
    MAX_D = KV_MAX_D
};

/* One part (K or V) of a page of one head, as the reference quantizes it. */
typedef struct reference {
    uint8_t codes[PAGE][MAX_D];
    uint16_t s[PAGE * MAX_D / 32];
    int16_t z[PAGE * MAX_D / 32];
    uint16_t norm[PAGE];
    float x[PAGE][MAX_D]; /* what the groups see */
    int group_of[PAGE][MAX_D];
} reference;

/* ---- reference ---- */

/* Sum over the class i, i + step, i + 2·step … */
static float class_sum(const float *x, int n, int i, int step)
{
    return step == n ? x[i] : class_sum(x, n, i, 2 * step) + class_sum(x, n, i + step, 2 * step);
}

/* x in codes, before it is clamped. */
static float ref_place(float x, uint16_t s, int16_t z)
{
    return nearbyintf(fmaf(x, 1.0f / kv_from_f16(s), -(float)z / 16.0f));
}

static int ref_code(float x, uint16_t s, int16_t z, int bits)
{
    float c = ref_place(x, s, z);
    int max = (1 << bits) - 1;
    return c < 0 ? 0 : c > (float)max ? max : (int)c;
}

static void ref_group(const float *x, int n, int bits, float margin, uint16_t *s, int16_t *z)
{
    float m = x[0], M = x[0];
    for (int i = 0; i < n; i++) {
        if (x[i] < m) m = x[i];
        if (x[i] > M) M = x[i];
    }
    volatile float w = (M - m) * margin;
    m += w;
    M -= w;
    float a = (M - m) / (float)((1 << bits) - 1), b = fabsf(m) / 1790.0f, scale = a > b ? a : b;
    if (scale < ldexpf(1, -14)) scale = ldexpf(1, -14);
    *s = kv_to_f16(scale);
    if (*s == 0x7c00) *s = 0x7bff;
    float zero = nearbyintf(16.0f * m / kv_from_f16(*s));
    *z = (int16_t)(zero > 28687 ? 28687 : zero < -28687 ? -28687 : zero);
}

/* What a 2-bit range loses at each end. */
static float ref_margin(int n, bool k_without_norm)
{
    switch (n) {
    case 32: return k_without_norm ? 0.0375f : 0.075f;
    case 64: return k_without_norm ? 0.05f : 0.1f;
    default: return k_without_norm ? 0.0625f : 0.125f;
    }
}

/* n of a token of 2-bit K: `sum` is Σ k². The products are whole numbers of 2⁻¹³, so a double adds them exactly. */
static uint16_t ref_norm(const reference *r, int t, int d, float sum)
{
    float n = kv_from_f16(r->norm[t]);
    double products = 0;
    for (int c = 0; c < d; c++) {
        int g = r->group_of[t][c];
        float s = kv_from_f16(r->s[g]);
        volatile float offset = s * ((float)r->z[g] / 16.0f);
        /* fmaf(a, b, 1536) is the product to the nearest 2⁻¹³: 1536 is twelve bits over the last of 24 */
        products += fmaf(r->x[t][c], fmaf(s, r->codes[t][c], offset), 1536.0f) - 1536.0;
    }
    assert_true(fabs(products) < 2048);
    volatile float over_n = sum / n;
    float e = over_n / (float)products;
    if (!(e >= n / 2 && e <= 2 * n)) return r->norm[t];
    if (e < ldexpf(1, -14)) e = ldexpf(1, -14);
    return e > 65504 ? 0x7bff : kv_to_f16(e);
}

/* Groups of n along tokens (kc) or channels; parameters in canonical order. */
static void ref_part(const uint16_t *page, int d, int bits, int group, bool along_tokens, bool norm,
                     bool draw_in, bool is_v, reference *r)
{
    float sums[PAGE];
    for (int t = 0; t < PAGE; t++) {
        float squares[MAX_D];
        for (int c = 0; c < d; c++) {
            r->x[t][c] = kv_from_f16(page[t * d + c]);
            squares[c] = r->x[t][c] * r->x[t][c];
        }
        if (!norm) continue;
        sums[t] = class_sum(squares, d, 0, 1);
        float rms = sqrtf(sums[t] / (float)d);
        r->norm[t] = kv_to_f16(rms < ldexpf(1, -14) ? ldexpf(1, -14) : rms);
        for (int c = 0; c < d; c++) r->x[t][c] /= kv_from_f16(r->norm[t]);
    }
    int n = along_tokens || group < d ? group : d, n_groups = PAGE * d / n;
    for (int g = 0; g < n_groups; g++) {
        /* kc: [group][channel]; else [token][group]. */
        float x[PAGE] = {0};
        for (int i = 0; i < n; i++) {
            int t = along_tokens ? g / d * n + i : g / (d / n),
                c = along_tokens ? g % d : g % (d / n) * n + i;
            x[i] = r->x[t][c];
            r->group_of[t][c] = g;
        }
        ref_group(x, n, bits, draw_in ? ref_margin(n, !is_v && !norm) : 0.0f, &r->s[g], &r->z[g]);
    }
    for (int t = 0; t < PAGE; t++)
        for (int c = 0; c < d; c++) {
            int g = r->group_of[t][c];
            float place = ref_place(r->x[t][c], r->s[g], r->z[g]);
            r->codes[t][c] = (uint8_t)ref_code(r->x[t][c], r->s[g], r->z[g], bits);
            /* Only a 2-bit group of 128 needs the clamp: GPU code relies on that. */
            if (n < 128 || bits > 2) assert_true(place == r->codes[t][c]);
        }
    for (int t = 0; norm && bits == 2 && t < PAGE; t++) r->norm[t] = ref_norm(r, t, d, sums[t]);
}

/* ---- comparison ---- */

static void compare_part(const char *what, const reference *r, int d, int bits, const uint8_t *codes,
                         const uint8_t *meta, size_t meta_bytes, bool norm)
{
    size_t n_groups = (meta_bytes - (norm ? 2 * PAGE : 0)) / 4;
    for (size_t g = 0; g < n_groups; g++) {
        uint16_t s;
        int16_t z;
        memcpy(&s, meta + 4 * g, 2);
        memcpy(&z, meta + 4 * g + 2, 2);
        if (s != r->s[g] || z != r->z[g])
            fail_msg("%s: group %zu has s %04x z %d, not s %04x z %d", what, g, s, z, r->s[g], r->z[g]);
    }
    if (norm && memcmp(meta + 4 * n_groups, r->norm, sizeof r->norm) != 0) fail_msg("%s: norms differ", what);
    for (int t = 0; t < PAGE; t++) {
        for (int c = 0; c < d; c++) {
            size_t bit = (size_t)(t * d + c) * (size_t)bits;
            int code = codes[bit / 8] >> bit % 8 & ((1 << bits) - 1);
            if (code != r->codes[t][c])
                fail_msg("%s: token %d channel %d (%.9g) has code %d, not %d", what, t, c, r->x[t][c], code,
                         r->codes[t][c]);
        }
    }
}

/* x is within half a step of its dequantized value, a 32nd more for z, and what the range lacks when fp16
 * rounds s down. At 2 bits an eighth of the width, the most that is taken off an end, is half a step. */
static void check_half_step(const char *what, const reference *r, int d, int bits)
{
    for (int t = 0; t < PAGE; t++) {
        for (int c = 0; c < d; c++) {
            int g = r->group_of[t][c];
            double s = kv_from_f16(r->s[g]), value = s * (r->codes[t][c] + r->z[g] / 16.0);
            double bound = s * (0.5 + 1.0 / 32 + ldexp(1 << bits, -11)) + 1e-6 * fabs(r->x[t][c]);
            if (!(fabs(value - r->x[t][c]) <= bound))
                fail_msg("%s: token %d channel %d: %.9g became %.9g (s %.9g)", what, t, c, r->x[t][c], value,
                         s);
        }
    }
}

/* All kinds of data, one a (layer, head); K and V of a head get different kinds. */
static void compare_heads(kv_fixture *f, bs_isa isa, uint32_t slot, uint16_t pages[2][N_KINDS][PAGE * MAX_D],
                          reference refs[2][N_KINDS])
{
    static uint8_t k[PAGE * MAX_D], v[PAGE * MAX_D], k_meta[PAGE * MAX_D], v_meta[PAGE * MAX_D];
    const bs_kv_format *format = &f->shape.format;
    const int d = f->shape.head_dim;
    bs_kv_page_bytes bytes = bs_kv_canonical_bytes(format, d);
    for (int i = 0; i < N_KINDS; i++) {
        bs_kv_page_ref page = {slot, i / N_HEADS, i % N_HEADS, k, k_meta, v, v_meta};
        bs_pack_args pack = {&f->pools, true, 1, &page};
        char what[96];
        memset(k, KV_POISON, sizeof k);
        memset(v, KV_POISON, sizeof v);
        assert_int_equal(bs_op_pack(f->stream, &pack), BS_STATUS_OK);
        snprintf(what, sizeof what, "isa %d, D %d, K %d bits %s g%d%s, data %d", isa, d, format->k_bits,
                 format->k_per_channel ? "kc" : "kt", format->group, format->k_norm ? " norm" : "", i);
        compare_part(what, &refs[0][i], d, format->k_bits, k, k_meta, bytes.k_meta, format->k_norm);
        snprintf(what, sizeof what, "isa %d, D %d, V %d bits g%d encoder %d, data %d", isa, d, format->v_bits,
                 format->group, format->v_encoder, i);
        compare_part(what, &refs[1][i], d, format->v_bits, v, v_meta, bytes.v_meta, false);
    }
}

static void check_format(const bs_kv_format *format, int d, uint64_t seed)
{
    static uint16_t pages[2][N_KINDS][PAGE * MAX_D];
    static reference refs[2][N_KINDS];
    bs_kv_shape shape = {N_LAYERS, N_HEADS, d, *format};
    const bool k_in = format->k_bits == 2,
               v_in = format->v_bits == 2 && format->v_encoder == BS_V_ENCODER_BEST;
    for (int i = 0; i < N_KINDS; i++) {
        kv_draw_page(i, d, seed + (uint64_t)i, pages[0][i]);
        kv_draw_page((i + 3) % N_KINDS, d, seed + 100 + (uint64_t)i, pages[1][i]);
        ref_part(pages[0][i], d, format->k_bits, format->group, format->k_per_channel, format->k_norm, k_in,
                 false, &refs[0][i]);
        ref_part(pages[1][i], d, format->v_bits, format->group, false, false, v_in, true, &refs[1][i]);
        check_half_step("K", &refs[0][i], d, format->k_bits);
        check_half_step("V", &refs[1][i], d, format->v_bits);
    }
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++) {
        kv_fixture f;
        if (!kv_open(&f, &shape, isa)) continue;
        const uint32_t f16_slot = 2, quant_slot = 1;
        for (int i = 0; i < N_KINDS; i++) {
            bs_kv_page_ref page = {f16_slot, i / N_HEADS, i % N_HEADS, pages[0][i], NULL, pages[1][i], NULL};
            bs_pack_args unpack = {&f.pools, false, 1, &page};
            assert_int_equal(bs_op_unpack(f.stream, &unpack), BS_STATUS_OK);
        }
        bs_quantize_args args = {&f.pools, 1, &f16_slot, &quant_slot};
        assert_int_equal(bs_op_quantize(f.stream, &args), BS_STATUS_OK);
        assert_int_equal(bs_stream_check(f.stream), BS_STATUS_OK);
        compare_heads(&f, isa, quant_slot, pages, refs);
        kv_assert_untouched(f.pools.quant_pool, f.quant_slot_bytes);
        kv_assert_untouched((uint8_t *)f.pools.quant_pool + 2 * f.quant_slot_bytes, f.quant_slot_bytes);
        kv_close(&f);
    }
}

/* Every K format with every group and D; V's bits and encoders take turns so that each meets each group. */
static void test_all_formats(void **state)
{
    static const int widths[] = {8, 4, 2};
    for (int d = 64; d <= 128; d += 64) {
        for (int group = 32; group <= 128; group *= 2) {
            for (int i = 0; i < 12; i++) {
                bs_kv_format format = {.k_bits = widths[i / 4],
                                       .v_bits = widths[i % 3],
                                       .k_per_channel = i & 1,
                                       .group = group,
                                       .k_norm = i >> 1 & 1,
                                       .v_encoder = i / 3 & 1 ? BS_V_ENCODER_PLAIN : BS_V_ENCODER_BEST};
                check_format(&format, d, (uint64_t)(1000 * d + 10 * group + i));
            }
        }
    }
}

static void test_default_formats(void **state)
{
    const bs_kv_format formats[] = {
        {.k_bits = 8, .v_bits = 8, .k_per_channel = true, .group = 128},
        {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128},
        {.k_bits = 4, .v_bits = 2, .k_per_channel = true, .group = 128, .hadamard = true, .k_norm = true},
        {.k_bits = 2, .v_bits = 2, .k_per_channel = true, .group = 32, .hadamard = true, .k_norm = true},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        for (int d = 64; d <= 128; d += 64) check_format(&formats[i], d, 77 + i);
}

/* NaN or infinity anywhere is found, told once, and forgotten. */
static void test_faults(void **state)
{
    const uint16_t bad[] = {0x7e00, 0xfc00, 0x7c00, 0x7c01};
    bs_kv_shape shape = {2, 2, 64, {.k_bits = 4, .v_bits = 4, .k_per_channel = true, .group = 128}};
    static uint16_t page[PAGE * 64];
    for (bs_isa isa = BS_ISA_SCALAR; isa <= BS_ISA_AVX512; isa++) {
        for (int i = 0; i < 8; i++) {
            kv_fixture f;
            if (!kv_open(&f, &shape, isa)) continue;
            memset(f.pools.f16_pool, 0, KV_F16_SLOTS * f.f16_slot_bytes);
            uint32_t slot = 1;
            memset(page, 0, sizeof page);
            page[i * 16 * 64 + 63 - i] = bad[i % 4];
            bs_kv_page_ref ref = {slot, 1, 0, i & 1 ? NULL : page, NULL, i & 1 ? page : NULL, NULL};
            bs_pack_args unpack = {&f.pools, false, 1, &ref};
            assert_int_equal(bs_op_unpack(f.stream, &unpack), BS_STATUS_OK);
            bs_quantize_args args = {&f.pools, 1, &slot, &slot};
            assert_int_equal(bs_op_quantize(f.stream, &args), BS_STATUS_OK);
            assert_int_equal(bs_stream_check(f.stream), BS_STATUS_NUMERIC);
            assert_non_null(strstr(bs_error_message(), "layer 1"));
            bs_error_clear();
            assert_int_equal(bs_stream_check(f.stream), BS_STATUS_OK);
            kv_close(&f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_formats),
        cmocka_unit_test(test_default_formats),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
