/* pack.c: between a slot and canonical bytes (docs/kv-format.md), bit for bit, for snapshots, tests and
 * tools.
 *
 * K codes: a canonical u32 word (F channels of a token) is a word of kv_layout.h; only the order of words differs, a
 * transposition in each tile of 16 tokens. V codes: the fields of a word are tokens, those of a byte here channels, so codes
 * are transposed inside bytes and then bytes. Parameters: s and z stand apart here, side by side there. All of it on vectors
 * of 16 bytes that any x86-64 has: a core moves 6 to 9 GB/s of canonical bytes (docs/perf/LOG.md). Little-endian machines.
 */
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kv_layout.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "canonical bytes are little-endian"
#endif

/* ---- perfect shuffles ----
 *
 * Both orders are the same elements with the bits of their index turned round, so that one step does it all: the elements
 * of the first half of n vectors between those of the second, which turns the index left by one bit. */

enum { WIDTH = 16, MAX_VECTORS = 16 };
#define UNROLL _Pragma("GCC unroll 16") /* so that the vectors are registers at -O2, too */
typedef uint8_t v16u8 __attribute__((vector_size(WIDTH)));
typedef uint16_t v8u16 __attribute__((vector_size(WIDTH)));
typedef uint32_t v4u32 __attribute__((vector_size(WIDTH)));

#define DEFINE_WEAVE(name, vec, low, high)                                                                   \
    static inline __attribute__((always_inline)) void name(vec *x, int n_vectors, int times)                 \
    {                                                                                                        \
        UNROLL for (int i = 0; i < times; i++)                                                               \
        {                                                                                                    \
            vec y[MAX_VECTORS];                                                                              \
            UNROLL for (int v = 0; v < n_vectors / 2; v++)                                                   \
            {                                                                                                \
                y[2 * v] = __builtin_shuffle(x[v], x[v + n_vectors / 2], low);                               \
                y[2 * v + 1] = __builtin_shuffle(x[v], x[v + n_vectors / 2], high);                          \
            }                                                                                                \
            UNROLL for (int v = 0; v < n_vectors; v++) x[v] = y[v];                                          \
        }                                                                                                    \
    }

DEFINE_WEAVE(weave_bytes, v16u8, ((v16u8){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}),
             ((v16u8){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}))
DEFINE_WEAVE(weave_halves, v8u16, ((v8u16){0, 8, 1, 9, 2, 10, 3, 11}), ((v8u16){4, 12, 5, 13, 6, 14, 7, 15}))
DEFINE_WEAVE(weave_words, v4u32, ((v4u32){0, 4, 1, 5}), ((v4u32){2, 6, 3, 7}))

/* n vectors that stand `stride` bytes apart. */
static inline __attribute__((always_inline)) void load(void *x, const void *from, size_t stride, int n)
{
    UNROLL for (int i = 0; i < n; i++)
        memcpy((uint8_t *)x + i * WIDTH, (const uint8_t *)from + (size_t)i * stride, WIDTH);
}

static inline __attribute__((always_inline)) void store(void *to, const void *x, size_t stride, int n)
{
    UNROLL for (int i = 0; i < n; i++)
        memcpy((uint8_t *)to + (size_t)i * stride, (const uint8_t *)x + i * WIDTH, WIDTH);
}

/* ---- codes ---- */

/* Canonical side of K codes: [token][word], any alignment; tiles of 4 words of 4 tokens are turned. */
static void move_k_codes(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    const size_t row = (size_t)(l->head_dim / l->k_fields) * sizeof(uint32_t);
    const size_t lanes = BS_CPU_LANES * sizeof(uint32_t);
    for (int token = 0; token < BS_PAGE_TOKENS; token += 4) {
        for (size_t at = 0; at < row; at += WIDTH) {
            uint8_t *bytes = canonical + (size_t)token * row + at;
            uint32_t *words = bs_cpu_k_words(l, record, token / BS_CPU_LANES, (int)(at / sizeof *words)) +
                              token % BS_CPU_LANES;
            v4u32 x[4];
            load(x, pack ? (void *)words : bytes, pack ? lanes : row, 4);
            weave_words(x, 4, 2);
            store(pack ? bytes : (void *)words, x, pack ? row : lanes, 4);
        }
    }
}

static inline __attribute__((always_inline)) void swap_codes(v16u8 *a, v16u8 *b, int shift, uint8_t mask)
{
    const v16u8 t = (*a >> shift ^ *b) & mask;
    *b ^= t;
    *a ^= t << shift;
}

/* A canonical byte holds n = 8/bits channels of a token, a byte of a word n tokens of a channel: vectors [token of the n][byte
 * of a word] become [channel of the n][byte of a word], and back. */
static inline __attribute__((always_inline)) void turn_codes(v16u8 *x, int bits)
{
    UNROLL for (int byte = 0; byte < 4; byte++, x++)
    {
        if (bits == 4) swap_codes(x, x + 4, 4, 0x0f);
        if (bits != 2) continue;
        swap_codes(x, x + 4, 2, 0x33);
        swap_codes(x + 8, x + 12, 2, 0x33);
        swap_codes(x, x + 8, 4, 0x0f);
        swap_codes(x + 4, x + 12, 4, 0x0f);
    }
}

/* V codes of the tokens that are the fields of a word, 16 canonical bytes of each. Words' bytes are [byte of a row][channel of
 * it][byte of a word]; the vectors between as turn_codes has them, their bytes those of a row. */
static inline __attribute__((always_inline)) void move_v_tile(uint32_t *words, uint8_t *canonical, size_t row,
                                                              const int bits, bool pack)
{
    const int n = 8 / bits, turns = bits == 8 ? 2 : bits == 4 ? 3 : 4;
    v16u8 x[MAX_VECTORS];
    if (pack) {
        load(x, words, WIDTH, 4 * n);
        weave_bytes(x, 4 * n, 4);
        turn_codes(x, bits);
        UNROLL for (int token = 0; token < 4 * n; token++)
            memcpy(canonical + (size_t)token * row, &x[token % n * 4 + token / n], WIDTH);
    } else {
        UNROLL for (int token = 0; token < 4 * n; token++)
            memcpy(&x[token % n * 4 + token / n], canonical + (size_t)token * row, WIDTH);
        turn_codes(x, bits);
        weave_bytes(x, 4 * n, turns);
        store(words, x, WIDTH, 4 * n);
    }
}

static void move_v_codes(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    const size_t row = (size_t)(l->head_dim * l->v_bits / 8);
    for (int group = 0; group < BS_PAGE_TOKENS / l->v_fields; group++) {
        uint32_t *words = bs_cpu_v_words(l, record, group, 0);
        uint8_t *tokens = canonical + (size_t)(group * l->v_fields) * row;
        for (size_t at = 0; at < row; at += WIDTH) {
            if (l->v_bits == 8) move_v_tile(words + at, tokens + at, row, 8, pack);
            else if (l->v_bits == 4) move_v_tile(words + at * 2, tokens + at, row, 4, pack);
            else move_v_tile(words + at * 4, tokens + at, row, 2, pack);
        }
    }
}

/* ---- parameters ---- */

/* Planes [plane][axis] here, [axis][plane] there; a power of two of planes, known to the compiler. */
static inline __attribute__((always_inline)) void move_planes(uint8_t *planes, int axis, uint8_t *canonical,
                                                              const int n_planes, const int turns, bool pack)
{
    const size_t stride = (size_t)axis * sizeof(uint16_t);
    for (size_t at = 0; at < stride; at += WIDTH, canonical += n_planes * WIDTH) {
        v8u16 x[MAX_VECTORS];
        load(x, pack ? planes + at : canonical, pack ? stride : WIDTH, n_planes);
        weave_halves(x, n_planes, pack ? turns : 3);
        store(pack ? canonical : planes + at, x, pack ? WIDTH : stride, n_planes);
    }
}

/* (s, z) pairs of n groups: [group][s, z][axis] here, [axis][group][s, z] there. */
static void move_pairs(bs_f16 *meta, int n_groups, int axis, uint8_t *canonical, bool pack)
{
    uint8_t *planes = (uint8_t *)meta;
    if (n_groups == 1) move_planes(planes, axis, canonical, 2, 1, pack);
    else if (n_groups == 2) move_planes(planes, axis, canonical, 4, 2, pack);
    else move_planes(planes, axis, canonical, 8, 3, pack); /* 4 groups of 32: the most */
}

static void move_k_meta(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    if (l->k_per_channel) { /* each group's pairs apart */
        const int d = l->head_dim;
        for (int g = 0; g < l->n_k_groups; g++)
            move_pairs(bs_cpu_k_scales(l, record, g), 1, d, canonical + g * d * 4, pack);
    } else {
        move_pairs(bs_cpu_k_scales(l, record, 0), l->n_k_groups, BS_PAGE_TOKENS, canonical, pack);
    }
    if (!l->k_norm) return;
    const size_t at = l->k_norm_at - l->k_meta, bytes = BS_PAGE_TOKENS * sizeof(bs_f16);
    if (pack) memcpy(canonical + at, bs_cpu_k_norms(l, record), bytes);
    else memcpy(bs_cpu_k_norms(l, record), canonical + at, bytes);
}

static void move_quantized(const bs_cpu_kv_layout *l, uint8_t *record, const bs_kv_page_ref *page, bool pack)
{
    if (page->k) move_k_codes(l, record, page->k, pack);
    if (page->k_meta) move_k_meta(l, record, page->k_meta, pack);
    if (page->v) move_v_codes(l, record, page->v, pack);
    if (page->v_meta)
        move_pairs(bs_cpu_v_scales(l, record, 0), l->n_v_groups, BS_PAGE_TOKENS, page->v_meta, pack);
}

static void move_f16(const bs_cpu_kv_layout *l, void *f16_pool, const bs_kv_page_ref *page, bool pack)
{
    for (int is_v = 0; is_v < 2; is_v++) {
        void *canonical = is_v ? page->v : page->k;
        bs_f16 *part = bs_cpu_f16_page(l, f16_pool, page->slot, page->layer, page->kv_head, is_v);
        if (!canonical) continue;
        if (pack) memcpy(canonical, part, l->f16_part_bytes);
        else memcpy(part, canonical, l->f16_part_bytes);
    }
}

static bs_status move_pages(const bs_pack_args *args, bool pack)
{
    const bs_kv_pools *pools = args->pools;
    const bs_cpu_kv_layout l = bs_cpu_kv_layout_of(pools->shape);
    for (int i = 0; i < args->n; i++) {
        const bs_kv_page_ref *page = &args->pages[i];
        if (args->quantized)
            move_quantized(&l,
                           bs_cpu_quant_record(&l, pools->quant_pool, page->slot, page->layer, page->kv_head),
                           page, pack);
        else move_f16(&l, pools->f16_pool, page, pack);
    }
    return BS_STATUS_OK;
}

bs_status bs_cpu_pack(bs_stream *stream, const bs_pack_args *args)
{
    return move_pages(args, true);
}

bs_status bs_cpu_unpack(bs_stream *stream, const bs_pack_args *args)
{
    return move_pages(args, false);
}
