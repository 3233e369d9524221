/* kv_layout.h: how a CPU rank orders the bytes of a KV slot. Private to kernels/cpu/.
 *
 * The order serves decode attention: its inner loop loads 16 lanes of 32-bit words, turns field j of every
 * word into 16 floats and multiplies them by one broadcast number (a channel of q for K, a token of p for V).
 * So the lanes are tokens for K and channels for V, and the fields of a word run along the other axis.
 *
 * f16 slot:        [layer][KV head][K then V][token 128][D] fp16
 * quantized slot:  [layer][KV head] record
 * record:          K codes | V codes | K meta | V meta, each 64-byte aligned, the whole rounded up to 64
 * With b bits and F = 32/b fields a word (field j is bits j·b …, low first):
 *   K codes:  [token tile of 16: 8][channel group of F: D/F][lane 16] u32; lane = token of the tile, field j
 * = channel group·F + j. A canonical little-endian word of a token already holds F channels: this is its
 * transpose. V codes:  [token group of F: 128/F][channel tile of 16: D/16][lane 16] u32; lane = channel of
 * the tile, field j = token group·F + j K meta:   kc: for each token group s fp16[D], then z int16[D]; kt:
 * for each channel group s fp16[128], z int16[128]; with norm n fp16[128] follows V meta:   for each channel
 * group s fp16[128], z int16[128]
 */
#ifndef BS_CPU_KV_LAYOUT_H
#define BS_CPU_KV_LAYOUT_H

#include <string.h>

#include "kernels/kernels.h"

enum { BS_CPU_LANES = 16 }; /* words that stand side by side: one AVX-512 vector, two AVX2 ones */

/* Everything that the order depends on, computed once an op. For f16 only the f16 fields are set. Sizes in
 * bytes. */
typedef struct bs_cpu_kv_layout {
    int n_layers, n_kv_heads, head_dim;
    int k_bits, v_bits;
    int k_fields, v_fields;     /* codes of a u32 word */
    int k_group, v_group;       /* kc: tokens, else channels of a group */
    int n_k_groups, n_v_groups; /* kc: groups of the page's tokens, else groups of a head's channels */
    bool k_per_channel, k_norm;
    size_t f16_part_bytes; /* K or V of one (layer, head) */
    size_t f16_slot_bytes;
    size_t k_codes_bytes, v_codes_bytes, k_meta_bytes, v_meta_bytes; /* without padding */
    size_t v_codes, k_meta, k_norm_at, v_meta; /* offsets in a record; K codes are at 0 */
    size_t record_bytes;
    size_t quant_slot_bytes;
} bs_cpu_kv_layout;

static inline size_t bs_cpu_round64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static inline bs_cpu_kv_layout bs_cpu_kv_layout_of(const bs_kv_shape *shape)
{
    const bs_kv_format *format = &shape->format;
    bs_cpu_kv_layout l;
    memset(&l, 0, sizeof l);
    l.n_layers = shape->n_layers;
    l.n_kv_heads = shape->n_kv_heads;
    l.head_dim = shape->head_dim;
    size_t d = (size_t)shape->head_dim, n_parts = (size_t)l.n_layers * (size_t)l.n_kv_heads;
    l.f16_part_bytes = BS_PAGE_TOKENS * d * sizeof(bs_f16);
    l.f16_slot_bytes = n_parts * 2 * l.f16_part_bytes;
    l.k_bits = format->k_bits;
    l.v_bits = format->v_bits;
    if (l.k_bits == 16) return l;

    int channels = format->group < l.head_dim ? format->group : l.head_dim;
    l.k_per_channel = format->k_per_channel;
    l.k_norm = format->k_norm;
    l.k_fields = 32 / l.k_bits;
    l.v_fields = 32 / l.v_bits;
    l.k_group = l.k_per_channel ? format->group : channels;
    l.v_group = channels;
    l.n_k_groups = (l.k_per_channel ? BS_PAGE_TOKENS : l.head_dim) / l.k_group;
    l.n_v_groups = l.head_dim / l.v_group;

    size_t k_axis = l.k_per_channel ? d : BS_PAGE_TOKENS;
    l.k_codes_bytes = BS_PAGE_TOKENS * d * (size_t)l.k_bits / 8;
    l.v_codes_bytes = BS_PAGE_TOKENS * d * (size_t)l.v_bits / 8;
    l.k_meta_bytes = (size_t)l.n_k_groups * k_axis * 4 + (l.k_norm ? BS_PAGE_TOKENS * sizeof(bs_f16) : 0);
    l.v_meta_bytes = (size_t)l.n_v_groups * BS_PAGE_TOKENS * 4;
    l.v_codes = bs_cpu_round64(l.k_codes_bytes);
    l.k_meta = l.v_codes + bs_cpu_round64(l.v_codes_bytes);
    l.k_norm_at = l.k_meta + (size_t)l.n_k_groups * k_axis * 4;
    l.v_meta = l.k_meta + bs_cpu_round64(l.k_meta_bytes);
    l.record_bytes = l.v_meta + bs_cpu_round64(l.v_meta_bytes);
    l.quant_slot_bytes = n_parts * l.record_bytes;
    return l;
}

/* K (is_v false) or V [128][D] of one layer and head in a slot of the f16 pool. */
static inline bs_f16 *bs_cpu_f16_page(const bs_cpu_kv_layout *l, void *f16_pool, uint32_t slot, int layer,
                                      int kv_head, bool is_v)
{
    size_t part = ((size_t)layer * (size_t)l->n_kv_heads + (size_t)kv_head) * 2 + is_v;
    return (bs_f16 *)((uint8_t *)f16_pool + slot * l->f16_slot_bytes + part * l->f16_part_bytes);
}

/* The record of one layer and head in a slot of the quantized pool; the accessors below take it. */
static inline uint8_t *bs_cpu_quant_record(const bs_cpu_kv_layout *l, void *quant_pool, uint32_t slot,
                                           int layer, int kv_head)
{
    size_t part = (size_t)layer * (size_t)l->n_kv_heads + (size_t)kv_head;
    return (uint8_t *)quant_pool + slot * l->quant_slot_bytes + part * l->record_bytes;
}

/* 16 words: tokens 16·tile …, channels group·F … group·F + F − 1. */
static inline uint32_t *bs_cpu_k_words(const bs_cpu_kv_layout *l, uint8_t *record, int token_tile,
                                       int channel_group)
{
    int index = token_tile * (l->head_dim / l->k_fields) + channel_group;
    return (uint32_t *)record + (size_t)index * BS_CPU_LANES;
}

/* 16 words: channels 16·tile …, tokens group·F … group·F + F − 1. */
static inline uint32_t *bs_cpu_v_words(const bs_cpu_kv_layout *l, uint8_t *record, int token_group,
                                       int channel_tile)
{
    int index = token_group * (l->head_dim / BS_CPU_LANES) + channel_tile;
    return (uint32_t *)(record + l->v_codes) + (size_t)index * BS_CPU_LANES;
}

/* s of a K group: kc [D] of one token group, kt [128] of one channel group. */
static inline bs_f16 *bs_cpu_k_scales(const bs_cpu_kv_layout *l, uint8_t *record, int group)
{
    size_t axis = l->k_per_channel ? (size_t)l->head_dim : BS_PAGE_TOKENS;
    return (bs_f16 *)(record + l->k_meta) + (size_t)group * 2 * axis;
}

/* z, in sixteenths of a code, beside bs_cpu_k_scales. */
static inline int16_t *bs_cpu_k_zeros(const bs_cpu_kv_layout *l, uint8_t *record, int group)
{
    return (int16_t *)bs_cpu_k_scales(l, record, group) + (l->k_per_channel ? l->head_dim : BS_PAGE_TOKENS);
}

/* n [128], only with norm. */
static inline bs_f16 *bs_cpu_k_norms(const bs_cpu_kv_layout *l, uint8_t *record)
{
    return (bs_f16 *)(record + l->k_norm_at);
}

/* s [128] of one channel group of V. */
static inline bs_f16 *bs_cpu_v_scales(const bs_cpu_kv_layout *l, uint8_t *record, int group)
{
    return (bs_f16 *)(record + l->v_meta) + (size_t)group * 2 * BS_PAGE_TOKENS;
}

/* z [128] beside bs_cpu_v_scales. */
static inline int16_t *bs_cpu_v_zeros(const bs_cpu_kv_layout *l, uint8_t *record, int group)
{
    return (int16_t *)bs_cpu_v_scales(l, record, group) + BS_PAGE_TOKENS;
}

#endif
