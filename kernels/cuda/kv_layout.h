/* kv_layout.h: the order of bytes inside a GPU's KV slots. Private to kernels/; pack and unpack turn it into
 * the canonical order of docs/kv-format.md, bit for bit.
 *
 * Quantized slot: [layer][KV head] records. A record is its K half and then its V half, each one bulk copy:
 *
 *   K half   codes 128·D·bits/8 | s | z | n          V half   codes | s | z
 *
 * Codes lie in the order of the A operand of mma.m16n8k32 (rows of 16, k of 32 bytes), so that a lane fetches
 * its four registers of a tile with one 16-byte load. For K a row is a token and k runs over channels; for V
 * a row is a channel and k runs over tokens. A byte holds the codes of one k place of several row tiles,
 * field j (bits j·b …) of tile F·group + j, F = 8/b: an AND with 0x03030303 << 2j turns 16 2-bit codes into
 * an operand scaled by 4^j. Below, lane = 4·r + i (r: row of 8, i: quad along k), as the PTX manual names
 * groupID and threadID_in_group.
 *
 * K: tile = token / 16, row = token % 16; k tile = channel / 32; quad i holds channels 4i … 4i + 3 and
 * 16 + 4i … 16 + 4i + 3 of it.
 *
 * V: tile = channel / 16, row = channel % 16; the k tiles are no runs of tokens: token r + 8j (r < 8) is in
 * quad i = r / 2 of k tile 2·(r % 2) + j / 8, at place j % 8 of the quad (0 … 3: its first register). So the
 * 16 bytes of weights that a lane of the score tiles holds for its row r are one lane's operands of two k
 * tiles.
 *
 * Parameters s (fp16) and z (int16) of K per channel: [group of tokens] s as lanes read q, z as an A operand
 * whose rows 0 … 7 are the high bytes and rows 8 … 15 the low ones (z = 256·high + low, both signed). K per
 * token: [group of channels] s, z in token order below. V: [group of channels] s in token order, z as an A
 * operand. n (norm) in token order. Token order: row r of the score tiles holds tokens r + 8j, j = 0 … 15,
 * together.
 *
 * f16 slot: [layer][KV head][K page, V page][token][D] fp16, as ldmatrix wants it: 16-byte chunk c of token t
 * lies at chunk c ^ (t % 8), and within 16 channels of K channel 4i + e lies at 2i + e (e < 2) or 8 + 2i + e
 * − 2, so that mma.m16n8k16 meets q in the registers that mma.m16n8k32 wants.
 */
#ifndef BS_CUDA_KV_LAYOUT_H
#define BS_CUDA_KV_LAYOUT_H

#include "kernels/kernels.h"

#ifdef __CUDACC__
#define BS_KV_FN static __host__ __device__ __forceinline__
#else
#define BS_KV_FN static inline
#endif

/* Offsets within a record and its slot, in bytes. All halves and parts are multiples of 128. */
typedef struct bs_cuda_kv_layout {
    int n_layers, n_kv_heads, head_dim;
    int k_bits, v_bits; /* 16: there are no quantized slots */
    int k_group;        /* tokens (per channel) or channels (per token) of a group of K */
    int v_group;        /* channels of a group of V */
    bool k_per_channel, k_norm;
    uint32_t k_s, k_z, k_n, k_half; /* in the K half; k_half: its size */
    uint32_t v_s, v_z, v_half;      /* in the V half */
    uint32_t record;                /* k_half + v_half */
    uint32_t f16_page;              /* K or V of one f16 page and head: 256·D */
    size_t quant_slot, f16_slot;
} bs_cuda_kv_layout;

static inline bs_cuda_kv_layout bs_cuda_kv_layout_of(const bs_kv_shape *shape)
{
    const bs_kv_format *f = &shape->format;
    bs_cuda_kv_layout l = {0};
    uint32_t dim = (uint32_t)shape->head_dim;
    size_t heads = (size_t)shape->n_layers * (size_t)shape->n_kv_heads;
    l.n_layers = shape->n_layers;
    l.n_kv_heads = shape->n_kv_heads;
    l.head_dim = shape->head_dim;
    l.k_bits = f->k_bits;
    l.v_bits = f->v_bits;
    l.f16_page = 2 * BS_PAGE_TOKENS * dim;
    l.f16_slot = heads * 2 * l.f16_page;
    if (f->k_bits == 16) return l;
    l.k_per_channel = f->k_per_channel;
    l.k_norm = f->k_norm;
    l.v_group = f->group < shape->head_dim ? f->group : shape->head_dim;
    l.k_group = f->k_per_channel ? f->group : l.v_group;
    uint32_t k_part = f->k_per_channel ? BS_PAGE_TOKENS / (uint32_t)f->group * dim * 2
                                       : dim / (uint32_t)l.k_group * 256;
    uint32_t v_part = dim / (uint32_t)l.v_group * 256;
    l.k_s = BS_PAGE_TOKENS * dim * (uint32_t)f->k_bits / 8;
    l.k_z = l.k_s + k_part;
    l.k_n = l.k_z + k_part;
    l.k_half = l.k_n + (f->k_norm ? 256 : 0);
    l.v_s = BS_PAGE_TOKENS * dim * (uint32_t)f->v_bits / 8;
    l.v_z = l.v_s + v_part;
    l.v_half = l.v_z + v_part;
    l.record = l.k_half + l.v_half;
    l.quant_slot = heads * l.record;
    return l;
}

/* Byte of a slot where a record, or an f16 page, begins. */
BS_KV_FN size_t bs_cuda_kv_record_at(const bs_cuda_kv_layout *l, uint32_t slot, int layer, int kv_head)
{
    return slot * l->quant_slot + (size_t)(layer * l->n_kv_heads + kv_head) * l->record;
}

BS_KV_FN size_t bs_cuda_kv_f16_at(const bs_cuda_kv_layout *l, uint32_t slot, int layer, int kv_head,
                                  bool is_v)
{
    return slot * l->f16_slot + ((size_t)(layer * l->n_kv_heads + kv_head) * 2 + is_v) * l->f16_page;
}

/* Byte in an f16 page of K or V. */
BS_KV_FN uint32_t bs_cuda_kv_f16_byte(int dim, bool is_v, int token, int channel)
{
    int place = channel % 16, e = place % 4;
    if (!is_v) place = e < 2 ? place / 4 * 2 + e : 8 + place / 4 * 2 + e - 2;
    int chunk = channel / 16 * 2 + place / 8;
    return (uint32_t)(token * dim * 2 + (chunk ^ (token & 7)) * 16 + place % 8 * 2);
}

/* Byte of the K half that holds a code; *shift: its lowest bit there. */
BS_KV_FN uint32_t bs_cuda_kv_k_code(int dim, int bits, int token, int channel, int *shift)
{
    int fields = 8 / bits, tile = token / 16, lane = token % 8 * 4 + channel % 16 / 4;
    int word = token % 16 / 8 + 2 * (channel % 32 / 16);
    *shift = tile % fields * bits;
    return (uint32_t)(((tile / fields * (dim / 32) + channel / 32) * 32 + lane) * 16 + word * 4 +
                      channel % 4);
}

/* Byte of the V half that holds a code. */
BS_KV_FN uint32_t bs_cuda_kv_v_code(int bits, int token, int channel, int *shift)
{
    int fields = 8 / bits, tile = channel / 16, lane = channel % 8 * 4 + token % 8 / 2;
    int word = channel % 16 / 8 + 2 * (token / 32 % 2), k_tile = token % 2 * 2 + token / 64;
    *shift = tile % fields * bits;
    return (uint32_t)(((tile / fields * 4 + k_tile) * 32 + lane) * 16 + word * 4 + token % 32 / 8);
}

/* Byte of a token's fp16 or int16 in token order (256 bytes in all). */
BS_KV_FN uint32_t bs_cuda_kv_token_byte(int token)
{
    return (uint32_t)(token % 8 * 32 + token / 8 * 2);
}

/* Byte of a channel's fp16 scale within its group's 2·D bytes (K per channel). */
BS_KV_FN uint32_t bs_cuda_kv_k_channel_s(int channel)
{
    return (uint32_t)((channel / 32 * 4 + channel % 16 / 4) * 16 + (channel % 32 / 16 * 4 + channel % 4) * 2);
}

/* Byte of the high byte of a channel's z within its group's 2·D bytes; the low byte is 4 further. */
BS_KV_FN uint32_t bs_cuda_kv_k_channel_z(int channel)
{
    return (uint32_t)((channel / 32 * 4 + channel % 16 / 4) * 16 + channel % 32 / 16 * 8 + channel % 4);
}

/* Byte of the high byte of a token's z within V's group's 256 bytes; the low byte is 4 further. */
BS_KV_FN uint32_t bs_cuda_kv_v_z(int token)
{
    int k_tile = token % 2 * 2 + token / 64;
    return (uint32_t)((k_tile * 4 + token % 8 / 2) * 16 + token / 32 % 2 * 8 + token % 32 / 8);
}

/* z = 256·high + low. */
BS_KV_FN int8_t bs_cuda_kv_z_low(int16_t z)
{
    return (int8_t)(z & 255);
}

BS_KV_FN int8_t bs_cuda_kv_z_high(int16_t z)
{
    return (int8_t)((z - bs_cuda_kv_z_low(z)) >> 8);
}

#endif
