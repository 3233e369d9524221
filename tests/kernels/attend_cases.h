/* attend_cases.h: sequences of mixed pages on a CPU device and what attention over them must give, by a plain
 * reference in double over the dequantized cache: the worst (token, head) counts. Whatever nobody may see is
 * NaN: free slots, other layers, tokens behind the end, parameters of tokens before the window. For the tests
 * of every device. */
#ifndef BS_TEST_ATTEND_CASES_H
#define BS_TEST_ATTEND_CASES_H

#include "kernels/kernels.h"
#include "tests/tolerances.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_SEQS = 4, PAGE = BS_PAGE_TOKENS };

typedef struct fixture {
    bs_device *device;
    bs_stream *stream;
    bs_kv_shape shape;
    bs_kv_pools pools;
    bs_buffer *f16, *quant;
    int n_heads, window;
    int nan_row;               /* this row's q is NaN and so must its result be; −1: none */
    double limit_o, limit_lse; /* of errors */
    /* rounded > 0: max_ are the limits of a row, and what exact arithmetic on the dequantized cache rounded to fp16 does
     * is noted, for a limit of the case's worst rows (test_attend_gpu.c) */
    double rounded, max_o, max_lse;
    double case_o, case_lse;   /* worst errors so far */
    double exact_o, exact_lse; /* of that exact arithmetic */
} fixture;

static uint32_t seed;
static double worst_o, worst_lse; /* of all cases, printed at the end */

static float noise(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        seed = seed * 1664525u + 1013904223u;
        sum += (float)(int32_t)seed * 0x1p-31f;
    }
    return sum;
}

/* ---- a canonical page to double ---- */

static double parameter(const uint8_t *meta, int i, double *zero)
{
    bs_f16 s;
    int16_t z;
    memcpy(&s, meta + 4 * i, 2);
    memcpy(&z, meta + 4 * i + 2, 2);
    *zero = z / 16.0;
    return bs_f16_to_f32(s);
}

static double quantized_value(const bs_kv_format *f, int dim, const uint8_t *codes, const uint8_t *meta,
                              bool is_v, int token, int channel)
{
    int bits = is_v ? f->v_bits : f->k_bits, g = f->group < dim ? f->group : dim, row = dim * bits / 8;
    int code = codes[token * row + channel * bits / 8] >> channel * bits % 8 & ((1 << bits) - 1);
    bool kc = !is_v && f->k_per_channel;
    double zero,
        s = parameter(meta, kc ? token / f->group * dim + channel : token * (dim / g) + channel / g, &zero);
    double x = s * (code + zero);
    if (is_v || !f->k_norm) return x;
    bs_f16 n;
    size_t pairs = kc ? (size_t)(PAGE / f->group * dim) : (size_t)(PAGE * (dim / g));
    memcpy(&n, meta + 4 * pairs + 2 * token, 2);
    return x * bs_f16_to_f32(n);
}

static void dequantize(const fixture *fx, bool quantized, uint32_t slot, int head, double *k, double *v)
{
    const bs_kv_format *f = &fx->shape.format;
    int dim = fx->shape.head_dim;
    bs_kv_page_bytes bytes = bs_kv_canonical_bytes(f, dim);
    uint8_t *kc = malloc(bytes.k + bytes.f16), *km = malloc(bytes.k_meta + 1),
            *vc = malloc(bytes.v + bytes.f16), *vm = malloc(bytes.v_meta + 1);
    bs_kv_page_ref ref = {.slot = slot, .layer = 1, .kv_head = head, .k = kc, .v = vc};
    if (quantized) {
        ref.k_meta = km;
        ref.v_meta = vm;
    }
    bs_pack_args args = {.pools = &fx->pools, .quantized = quantized, .n = 1, .pages = &ref};
    assert_int_equal(bs_op_pack(fx->stream, &args), BS_STATUS_OK);
    for (int t = 0; t < PAGE; t++)
        for (int d = 0; d < dim; d++) {
            k[t * dim + d] = quantized ? quantized_value(f, dim, kc, km, false, t, d)
                                       : bs_f16_to_f32(((bs_f16 *)kc)[t * dim + d]);
            v[t * dim + d] = quantized ? quantized_value(f, dim, vc, vm, true, t, d)
                                       : bs_f16_to_f32(((bs_f16 *)vc)[t * dim + d]);
        }
    free(kc);
    free(km);
    free(vc);
    free(vm);
}

/* ---- pages ---- */

/* Writes a f16 page of all heads; tokens from n_valid on are NaN. Outliers: two channels of K are 30 times
 * larger. */
static void write_page(fixture *fx, uint32_t slot, int n_valid, bool outliers)
{
    int dim = fx->shape.head_dim;
    bs_f16 *k = malloc((size_t)(PAGE * dim) * 2), *v = malloc((size_t)(PAGE * dim) * 2);
    for (int layer = 0; layer < 2; layer++)
        for (int head = 0; head < fx->shape.n_kv_heads; head++) {
            for (int i = 0; i < PAGE * dim; i++) {
                bool valid = i / dim < n_valid && layer == 1;
                float scale = outliers && i % dim % 40 == 7 ? 30 : 1;
                k[i] = valid ? bs_f32_to_f16(noise() * scale + (i % dim == 3 ? 2 : 0)) : 0x7e00;
                v[i] = valid ? bs_f32_to_f16(noise() + 0.5f) : 0x7e00;
            }
            bs_kv_page_ref ref = {.slot = slot, .layer = layer, .kv_head = head, .k = k, .v = v};
            bs_pack_args args = {.pools = &fx->pools, .n = 1, .pages = &ref};
            assert_int_equal(bs_op_unpack(fx->stream, &args), BS_STATUS_OK);
        }
    free(k);
    free(v);
}

/* Makes the first n tokens of a page NaN: nobody's window reaches them. Codes have no NaN, their parameters
 * have. */
static void hide_tokens(fixture *fx, bool quantized, uint32_t slot, int n)
{
    const bs_kv_format *f = &fx->shape.format;
    const int dim = fx->shape.head_dim, g = f->group < dim ? f->group : dim;
    const bs_kv_page_bytes bytes = bs_kv_canonical_bytes(f, dim);
    uint8_t *k = malloc(bytes.k + bytes.f16), *km = malloc(bytes.k_meta + 1);
    uint8_t *v = malloc(bytes.v + bytes.f16), *vm = malloc(bytes.v_meta + 1);
    for (int head = 0; head < fx->shape.n_kv_heads; head++) {
        bs_kv_page_ref ref = {.slot = slot, .layer = 1, .kv_head = head, .k = k, .v = v};
        if (quantized) {
            ref.k_meta = km;
            ref.v_meta = vm;
        }
        bs_pack_args args = {.pools = &fx->pools, .quantized = quantized, .n = 1, .pages = &ref};
        assert_int_equal(bs_op_pack(fx->stream, &args), BS_STATUS_OK);
        memset(k, 0xff, (size_t)(n * dim * (quantized ? f->k_bits : 16) / 8));
        memset(v, 0xff, (size_t)(n * dim * (quantized ? f->v_bits : 16) / 8));
        if (quantized) {
            const size_t pairs = (size_t)(f->k_per_channel ? PAGE / f->group * dim : PAGE * (dim / g));
            memset(vm, 0xff, (size_t)(n * (dim / g)) * 4);
            memset(km, 0xff, (size_t)(f->k_per_channel ? n / f->group * dim : n * (dim / g)) * 4);
            if (f->k_norm) memset(km + 4 * pairs, 0xff, (size_t)n * 2);
        }
        assert_int_equal(bs_op_unpack(fx->stream, &args), BS_STATUS_OK);
    }
    free(k);
    free(km);
    free(v);
    free(vm);
}

typedef struct tables {
    int32_t q_start[MAX_SEQS + 1], q_pos0[MAX_SEQS], page_start[MAX_SEQS + 1], n_sink[MAX_SEQS],
        n_quant[MAX_SEQS], n_f16[MAX_SEQS], n_tokens[MAX_SEQS];
    uint32_t *slot;
    int32_t *index;
} tables;

/* The same call for n of its sequences from `first` on: tables that do not begin at 0, and bounds of their own, but the
 * same rows of q, o and lse. */
static bs_attend_args attend_some(const bs_attend_args *whole, const tables *tb, int first, int n)
{
    bs_attend_args args = *whole;
    args.max_seqs = n;
    args.max_tokens = tb->q_start[first + n] - tb->q_start[first];
    args.max_pages = tb->page_start[first + n] - tb->page_start[first];
    args.q_start += first;
    args.q_pos0 += first;
    args.page_start += first;
    args.n_sink += first;
    args.n_quant += first;
    args.n_f16 += first;
    args.n_tokens += first;
    return args;
}

/* Sequence b: S tokens in all, the last T of them query tokens; this shard owns the pages p with p % share ==
 * 0. S = 0 is an unused slot, though it may have rows. */
static void add_sequence(fixture *fx, tables *tb, int b, int S, int T, int share, bool outliers,
                         uint32_t *next_f16, uint32_t *next_quant)
{
    int n_pages = (S + PAGE - 1) / PAGE, at = tb->page_start[b];
    int quant_end = fx->shape.format.k_bits == 16 ? 1 : S / PAGE - 2;
    for (int pass = 0; pass < 3; pass++)
        for (int p = 0; p < n_pages; p++) {
            int kind = p < 1 ? 0 : p < quant_end ? 1 : 2;
            if (kind != pass || p % share) continue;
            int n_valid = S - p * PAGE < PAGE ? S - p * PAGE : PAGE;
            uint32_t slot = (*next_f16)++;
            write_page(fx, slot, kind == 1 ? PAGE : n_valid, outliers);
            if (kind == 1) {
                /* Layer 0 is NaN: quantize only what is there, by a copy of layer 1 of the page through all
                 * layers. */
                uint32_t to = (*next_quant)++;
                int dim = fx->shape.head_dim;
                bs_f16 *k = malloc((size_t)(PAGE * dim) * 2), *v = malloc((size_t)(PAGE * dim) * 2);
                for (int head = 0; head < fx->shape.n_kv_heads; head++) {
                    bs_kv_page_ref ref = {.slot = slot, .layer = 1, .kv_head = head, .k = k, .v = v};
                    bs_pack_args args = {.pools = &fx->pools, .n = 1, .pages = &ref};
                    assert_int_equal(bs_op_pack(fx->stream, &args), BS_STATUS_OK);
                    ref.layer = 0;
                    assert_int_equal(bs_op_unpack(fx->stream, &args), BS_STATUS_OK);
                }
                free(k);
                free(v);
                bs_quantize_args args = {
                    .pools = &fx->pools, .n_pages = 1, .f16_slot = &slot, .quant_slot = &to};
                assert_int_equal(bs_op_quantize(fx->stream, &args), BS_STATUS_OK);
                assert_int_equal(bs_stream_check(fx->stream), BS_STATUS_OK);
                slot = to;
                (*next_f16)--;
            }
            int seen0 = fx->window > 0 && T > 0 ? S - T - fx->window + 1 - p * PAGE : 0;
            if (seen0 > 0) hide_tokens(fx, kind == 1, slot, seen0 < PAGE ? seen0 : PAGE);
            tb->slot[at] = slot;
            tb->index[at++] = p;
            (pass == 0 ? tb->n_sink : pass == 1 ? tb->n_quant : tb->n_f16)[b]++;
        }
    tb->page_start[b + 1] = at;
    tb->q_start[b + 1] = tb->q_start[b] + T;
    tb->q_pos0[b] = S > 0 ? S - T : -1;
    tb->n_tokens[b] = S;
}

/* ---- comparing ---- */

/* What rounding K and V to fp16 alone does to one row. s: scores of visible tokens, −inf elsewhere. */
static void note_rounding(fixture *fx, const float *q, const double *s, const double *v, int n_pages,
                          const double *k, double max, double sum, const double *want)
{
    const int dim = fx->shape.head_dim;
    double rounded_sum = 0, error = 0, norm = 0, *o = calloc((size_t)dim, sizeof *o);
    for (int i = 0; i < n_pages * PAGE; i++) {
        if (s[i] == -INFINITY) continue;
        double score = 0;
        for (int d = 0; d < dim; d++)
            score += (double)q[d] * bs_f16_to_f32(bs_f32_to_f16((float)k[(size_t)i * dim + d]));
        double p = exp(score * 0.1f - max);
        rounded_sum += p;
        for (int d = 0; d < dim; d++) o[d] += p * bs_f16_to_f32(bs_f32_to_f16((float)v[(size_t)i * dim + d]));
    }
    for (int d = 0; d < dim; d++) {
        double e = o[d] / rounded_sum - want[d] / sum;
        error += e * e;
        norm += want[d] / sum * want[d] / sum;
    }
    fx->exact_o = fmax(fx->exact_o, sqrt(error / norm));
    fx->exact_lse = fmax(fx->exact_lse, fabs(log(rounded_sum / sum)));
    free(o);
}

static void check_sequence(fixture *fx, const tables *tb, int b, const float *q, const float *o,
                           const float *lse)
{
    int dim = fx->shape.head_dim, H = fx->n_heads, G = H / fx->shape.n_kv_heads;
    int first = tb->page_start[b], n = tb->page_start[b + 1] - first, T = tb->q_start[b + 1] - tb->q_start[b];
    double *k = malloc((size_t)(n * PAGE * dim) * 8 + 8), *v = malloc((size_t)(n * PAGE * dim) * 8 + 8);
    double *s = malloc((size_t)(n * PAGE) * 8 + 8), *want = malloc((size_t)dim * 8);
    for (int head = 0; head < fx->shape.n_kv_heads; head++) {
        for (int i = 0; i < n; i++)
            dequantize(fx, i >= tb->n_sink[b] && i < tb->n_sink[b] + tb->n_quant[b], tb->slot[first + i],
                       head, k + (size_t)i * PAGE * dim, v + (size_t)i * PAGE * dim);
        for (int t = 0; t < T; t++)
            for (int g = 0; g < G; g++) {
                size_t row = (size_t)(tb->q_start[b] + t) * H + head * G + g;
                int64_t P = tb->q_pos0[b] + t;
                double max = -INFINITY, sum = 0, error = 0, norm = 0;
                if ((int)row == fx->nan_row) {
                    assert_true(isnan(lse[row]) && isnan(o[row * dim]) && isnan(o[row * dim + dim - 1]));
                    continue;
                }
                memset(want, 0, (size_t)dim * 8);
                for (int i = 0; i < n * PAGE; i++) {
                    int64_t j = (int64_t)tb->index[first + i / PAGE] * PAGE + i % PAGE;
                    s[i] = -INFINITY;
                    if (j > P || j >= tb->n_tokens[b] || (fx->window && j < P - fx->window + 1)) continue;
                    s[i] = 0;
                    for (int d = 0; d < dim; d++) s[i] += (double)q[row * dim + d] * k[(size_t)i * dim + d];
                    s[i] *= 0.1f;
                    max = fmax(max, s[i]);
                }
                for (int i = 0; i < n * PAGE; i++) {
                    if (s[i] == -INFINITY) continue;
                    double p = exp(s[i] - max);
                    sum += p;
                    for (int d = 0; d < dim; d++) want[d] += p * v[(size_t)i * dim + d];
                }
                if (sum == 0) {
                    assert_true(lse[row] == -INFINITY);
                    for (int d = 0; d < dim; d++) assert_true(o[row * dim + d] == 0);
                    continue;
                }
                if (fx->rounded > 0) note_rounding(fx, &q[row * dim], s, v, n, k, max, sum, want);
                for (int d = 0; d < dim; d++) {
                    double e = o[row * dim + d] - want[d] / sum;
                    error += e * e;
                    norm += want[d] / sum * want[d] / sum;
                }
                const double off_o = sqrt(error / norm), off_lse = fabs(lse[row] - (max + log(sum)));
                if (!(off_o <= (fx->rounded > 0 ? fx->max_o : fx->limit_o)) ||
                    !(off_lse <= (fx->rounded > 0 ? fx->max_lse : fx->limit_lse)))
                    fail_msg("K%d V%d D %d G %d window %d: sequence %d token %d head %d: O off by %g, LSE %g "
                             "not %g",
                             fx->shape.format.k_bits, fx->shape.format.v_bits, dim, G, fx->window, b, t,
                             head * G + g, off_o, lse[row], max + log(sum));
                fx->case_o = fmax(fx->case_o, off_o);
                fx->case_lse = fmax(fx->case_lse, off_lse);
                worst_o = fmax(worst_o, off_o);
                worst_lse = fmax(worst_lse, off_lse);
            }
    }
    free(k);
    free(v);
    free(s);
    free(want);
}

/* ---- a case ---- */

typedef struct attend_case {
    fixture fx;
    tables tb;
    float *q; /* [ΣT, H, D] */
} attend_case;

/* Two KV heads, two layers; seqs: one of the lists below. The caller sets window, limits and nan_row of x->fx before, and
 * draws q. */
static void make_case(attend_case *x, bs_device *device, bs_stream *stream, bs_kv_format format, int dim,
                      int G, const int (*seqs)[3], bool outliers)
{
    fixture *fx = &x->fx;
    fx->device = device;
    fx->stream = stream;
    fx->n_heads = 2 * G;
    fx->shape = (bs_kv_shape){.n_layers = 2, .n_kv_heads = 2, .head_dim = dim, .format = format};
    uint32_t n_f16 = 3, n_quant = 3, used_f16 = 1, used_quant = 1;
    for (int b = 0; b < MAX_SEQS; b++) {
        n_f16 += (uint32_t)(format.k_bits == 16 ? seqs[b][0] / PAGE + 2 : 6);
        n_quant += (uint32_t)(seqs[b][0] / PAGE + 1);
    }
    size_t f16_bytes, quant_bytes;
    assert_int_equal(bs_kv_slot_bytes(device, &fx->shape, &f16_bytes, &quant_bytes), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(device, n_f16 * f16_bytes, "f16", &fx->f16), BS_STATUS_OK);
    assert_int_equal(bs_buffer_alloc(device, n_quant * quant_bytes + 64, "quant", &fx->quant), BS_STATUS_OK);
    memset(bs_buffer_at(fx->f16, 0), 0xff, n_f16 * f16_bytes); /* NaN wherever nothing is written */
    memset(bs_buffer_at(fx->quant, 0), 0xff, n_quant * quant_bytes);
    fx->pools = (bs_kv_pools){&fx->shape, bs_buffer_at(fx->f16, 0), bs_buffer_at(fx->quant, 0), n_f16,
                              n_quant};
    x->tb = (tables){.slot = calloc(n_f16 + n_quant, sizeof *x->tb.slot),
                     .index = calloc(n_f16 + n_quant, sizeof *x->tb.index)};
    for (int b = 0; b < MAX_SEQS; b++)
        add_sequence(fx, &x->tb, b, seqs[b][0], seqs[b][1], seqs[b][2], outliers, &used_f16, &used_quant);
    x->q = malloc((size_t)(x->tb.q_start[MAX_SEQS] * fx->n_heads * dim) * sizeof *x->q);
}

static void free_case(attend_case *x)
{
    bs_buffer_free(x->fx.f16);
    bs_buffer_free(x->fx.quant);
    free(x->tb.slot);
    free(x->tb.index);
    free(x->q);
}

/* {tokens, query tokens, one page in how many is ours} of each sequence */
static const int decode[MAX_SEQS][3] = {{1, 1, 1}, {129, 1, 1}, {0, 2, 1}, {1409, 1, 3}};
static const int several[MAX_SEQS][3] = {{128, 2, 1}, {127, 3, 2}, {641, 5, 1}, {1000, 1, 2}};
static const int prefill[MAX_SEQS][3] = {{130, 130, 1}, {700, 17, 1}, {0, 0, 1}, {1280, 64, 2}};
/* Ranks hold nothing of some sequences: hundreds of jobs in a row without a page. */
static const int absent[MAX_SEQS][3] = {{0, 200, 1}, {129, 3, 1}, {0, 300, 1}, {900, 1, 1}};
/* Chunks: of several sequences, one with a single token and one without any; a whole one behind a little; a few tokens
 * behind many, of which a rank holds a part. */
static const int chunks[MAX_SEQS][3] = {{1409, 130, 1}, {800, 1, 1}, {0, 0, 1}, {2500, 200, 3}};
static const int whole_chunk[MAX_SEQS][3] = {{2307, 2048, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
static const int few_rows[MAX_SEQS][3] = {{9000, 68, 2}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
static const int lone[MAX_SEQS][3] = {{5003, 1, 1}, {0, 0, 1}, {0, 0, 1}, {0, 1, 1}};

#endif
