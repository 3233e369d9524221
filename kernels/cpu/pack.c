/* pack.c: between a slot and canonical bytes (docs/kv-format.md), bit for bit, for snapshots, tests and
 * tools.
 *
 * K codes: a canonical u32 word (F channels of a token) is a word of kv_layout.h; only the order of words
 * differs, a transposition in each tile of 16 tokens. V codes: the fields of a word are tokens, so each
 * token's codes are taken out as bytes and joined again along the channels. Parameters: s and z stand apart
 * here, side by side there. Plain loops that the compiler makes vectors of; memory and the disk behind it are
 * slower. Little-endian machines.
 */
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kv_layout.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "canonical bytes are little-endian"
#endif

/* Canonical side of K codes: [token][word], any alignment. */
static void move_k_codes(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    const int n_words = l->head_dim / l->k_fields;
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        for (int w = 0; w < n_words; w++) {
            uint32_t *word = bs_cpu_k_words(l, record, token / BS_CPU_LANES, w) + token % BS_CPU_LANES;
            uint8_t *bytes = canonical + ((size_t)token * (size_t)n_words + (size_t)w) * sizeof *word;
            if (pack) memcpy(bytes, word, sizeof *word);
            else memcpy(word, bytes, sizeof *word);
        }
    }
}

/* n codes, a byte each, to n·bits/8 bytes, low bits first; and back. */
static void join_codes(const uint8_t *restrict codes, uint8_t *restrict bytes, int n, int bits)
{
    if (bits == 8) {
        memcpy(bytes, codes, (size_t)n);
    } else if (bits == 4) {
        for (int i = 0; i < n / 2; i++) bytes[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
    } else {
        for (int i = 0; i < n / 4; i++) {
            const uint8_t *c = codes + 4 * i;
            bytes[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
        }
    }
}

static void pack_v_codes(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical)
{
    const int d = l->head_dim, bits = l->v_bits;
    const uint32_t mask = (1u << bits) - 1;
    uint8_t codes[BS_MAX_HEAD_DIM];
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        const uint32_t *words = bs_cpu_v_words(l, record, token / l->v_fields, 0);
        const int shift = token % l->v_fields * bits;
        for (int c = 0; c < d; c++) codes[c] = (uint8_t)(words[c] >> shift & mask);
        join_codes(codes, canonical + token * d * bits / 8, d, bits);
    }
}

/* The words of one group of tokens, which are the fields of a word, from 16 canonical bytes of each token. A byte holds
 * n = 8/bits channels of a token, and a word's byte n tokens of a channel: an n × n transposition of codes in every byte, and
 * then bytes are put together. On bytes side by side, so that the compiler makes vectors of it; bits is known to it. */
static inline __attribute__((always_inline)) void
join_tokens(const uint8_t *restrict canonical, int row_bytes, uint32_t *restrict words, const int bits)
{
    enum { WIDTH = 16 };
    const int n = 8 / bits, mask = (1 << bits) - 1;
    for (int channel = 0; channel < n; channel++) {
        uint8_t part[4][WIDTH] = {{0}};
        for (int k = 0; k < 4; k++)
            for (int t = 0; t < n; t++)
                for (int i = 0; i < WIDTH; i++)
                    part[k][i] |= (uint8_t)((canonical[(k * n + t) * row_bytes + i] >> channel * bits & mask)
                                            << t * bits);
        for (int i = 0; i < WIDTH; i++)
            words[i * n + channel] = part[0][i] | (uint32_t)part[1][i] << 8 | (uint32_t)part[2][i] << 16 |
                                     (uint32_t)part[3][i] << 24;
    }
}

static void unpack_v_codes(const bs_cpu_kv_layout *l, uint8_t *record, const uint8_t *canonical)
{
    const int bits = l->v_bits, row = l->head_dim * bits / 8, fields = l->v_fields;
    for (int group = 0; group < BS_PAGE_TOKENS / fields; group++) {
        uint32_t *words = bs_cpu_v_words(l, record, group, 0);
        const uint8_t *tokens = canonical + group * fields * row;
        for (int at = 0; at < row; at += 16) {
            if (bits == 8) join_tokens(tokens + at, row, words + at, 8);
            else if (bits == 4) join_tokens(tokens + at, row, words + at * 2, 4);
            else join_tokens(tokens + at, row, words + at * 4, 2);
        }
    }
}

/* One (s, z) pair of the slot and its canonical place. */
static void move_pair(bs_f16 *s, int16_t *z, uint8_t *canonical, bool pack)
{
    if (pack) {
        memcpy(canonical, s, sizeof *s);
        memcpy(canonical + sizeof *s, z, sizeof *z);
    } else {
        memcpy(s, canonical, sizeof *s);
        memcpy(z, canonical + sizeof *s, sizeof *z);
    }
}

/* kc: [group][channel] on both sides, then n. */
static void move_channel_meta(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    for (int g = 0; g < l->n_k_groups; g++) {
        bs_f16 *s = bs_cpu_k_scales(l, record, g);
        int16_t *z = bs_cpu_k_zeros(l, record, g);
        for (int c = 0; c < l->head_dim; c++, canonical += 4) move_pair(s + c, z + c, canonical, pack);
    }
}

/* kt and V: [group][token] here (128 s, then 128 z a group), [token][group] there. */
static void move_token_meta(bs_f16 *meta, int n_groups, uint8_t *canonical, bool pack)
{
    for (int token = 0; token < BS_PAGE_TOKENS; token++) {
        for (int g = 0; g < n_groups; g++, canonical += 4) {
            bs_f16 *s = meta + g * 2 * BS_PAGE_TOKENS + token;
            move_pair(s, (int16_t *)s + BS_PAGE_TOKENS, canonical, pack);
        }
    }
}

static void move_k_meta(const bs_cpu_kv_layout *l, uint8_t *record, uint8_t *canonical, bool pack)
{
    if (l->k_per_channel) move_channel_meta(l, record, canonical, pack);
    else move_token_meta(bs_cpu_k_scales(l, record, 0), l->n_k_groups, canonical, pack);
    if (!l->k_norm) return;
    const size_t at = l->k_norm_at - l->k_meta, bytes = BS_PAGE_TOKENS * sizeof(bs_f16);
    if (pack) memcpy(canonical + at, bs_cpu_k_norms(l, record), bytes);
    else memcpy(bs_cpu_k_norms(l, record), canonical + at, bytes);
}

static void move_quantized(const bs_cpu_kv_layout *l, uint8_t *record, const bs_kv_page_ref *page, bool pack)
{
    if (page->k) move_k_codes(l, record, page->k, pack);
    if (page->k_meta) move_k_meta(l, record, page->k_meta, pack);
    if (page->v && pack) pack_v_codes(l, record, page->v);
    if (page->v && !pack) unpack_v_codes(l, record, page->v);
    if (page->v_meta) move_token_meta(bs_cpu_v_scales(l, record, 0), l->n_v_groups, page->v_meta, pack);
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
