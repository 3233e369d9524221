/* attend_chunk.cuh: what the parts of chunk attention share: attend_chunk.cu (launcher, plan, end),
 * dequantize_tile.cu and attend_chunk_kernel.cuh. */
#ifndef BS_CUDA_ATTEND_CHUNK_CUH
#define BS_CUDA_ATTEND_CHUNK_CUH

#include "kernels/cuda/cuda_private.h"
extern "C" {
#include "kernels/cuda/kv_layout.h"
}

enum {
    CHUNK_ROWS = 128, /* rows (query token, head) of a block */
    CHUNK_MAX_SEQS = 1024
};

/* What the query tokens of one sequence see. Units are its visible pages, in the order of its page list: three runs of
 * entries. */
typedef struct chunk_span {
    int32_t first[3], n[3]; /* visible entries of sink, quantized and f16 pages */
    int32_t unit;           /* units of the sequences before */
    int32_t block;          /* blocks of rows of the sequences before */
    int32_t q_start, n_query, pos0;
    int32_t seen0, seen; /* anybody sees positions seen0 … seen − 1 */
    int32_t pad;
} chunk_span;

typedef struct chunk_params {
    bs_cuda_kv_layout layout;
    const uint8_t *quant_pool, *f16_pool; /* at this layer */
    const void *q;
    int64_t q_ld;
    bs_type act;
    const int32_t *q_start, *q_pos0, *page_start, *page_index, *n_sink, *n_quant, *n_f16, *n_tokens;
    const uint32_t *page_slot;
    float scale;
    int window, max_seqs, n_heads, group;
    chunk_span *spans;            /* [max_seqs + 1]; the last: all units and blocks */
    uint8_t *tiles;               /* K and V of this slab's units, [unit][KV head][K, V][128 · D] fp16 */
    int unit0, n_units;           /* of the slab */
    int n_splits;                 /* pieces that a block's units are cut into */
    float *o, *lse;               /* results, or with splits states of each: [split][row] */
    int64_t o_stride, lse_stride; /* floats from split to split */
} chunk_params;

/* K or V of a page and head as a tile. */
static __host__ __device__ constexpr uint32_t chunk_tile_bytes(int dim)
{
    return (uint32_t)(2 * BS_PAGE_TOKENS * dim);
}

/* Byte of a tile that holds a channel of a token: 64 channels side by side, swizzled as wgmma.cuh says. */
static __host__ __device__ __forceinline__ uint32_t chunk_tile_byte(int token, int channel)
{
    return (uint32_t)(channel / 64 * (BS_PAGE_TOKENS * 128) + token * 128 +
                      ((channel % 64 / 8) ^ (token & 7)) * 16 + channel % 8 * 2);
}

/* The sequence of a unit: the spans' units ascend. */
static __device__ __forceinline__ int chunk_seq_of_unit(const chunk_params &p, int unit)
{
    int first = 0, end = p.max_seqs; /* the first whose successor begins behind the unit */
    while (first < end) {
        const int middle = (first + end) >> 1;
        if (p.spans[middle + 1].unit <= unit) first = middle + 1;
        else end = middle;
    }
    return first;
}

static __device__ __forceinline__ int chunk_seq_of_block(const chunk_params &p, int block)
{
    int first = 0, end = p.max_seqs;
    while (first < end) {
        const int middle = (first + end) >> 1;
        if (p.spans[middle + 1].block <= block) first = middle + 1;
        else end = middle;
    }
    return first;
}

/* Entry of the page lists that a sequence's unit stands for, counted from the sequence's first. */
static __device__ __forceinline__ int chunk_entry_of(const chunk_span &s, int unit, bool *quant)
{
    *quant = unit >= s.n[0] && unit < s.n[0] + s.n[1];
    if (unit < s.n[0]) return s.first[0] + unit;
    return *quant ? s.first[1] + unit - s.n[0] : s.first[2] + unit - s.n[0] - s.n[1];
}

/* Whether a call goes this way, whose sequences have so many query tokens: where there are enough rows for the fp16 tiles
 * to pay, and this build and the current device have warpgroup products. */
bool bs_cuda_chunk_takes(const bs_kv_shape *shape, int group, int n_query);
/* Of all calls with these bounds or smaller ones; 0 where none goes this way. */
size_t bs_cuda_chunk_workspace(const bs_kv_shape *shape, int n_heads, int max_seqs, int max_tokens,
                               int max_pages);
bs_status bs_cuda_attend_chunk(bs_stream *stream, const bs_attend_args *args);

/* The slab's pages into its tiles. */
bs_status bs_cuda_dequantize_tiles(const bs_stream *stream, const chunk_params *p);
/* The slab's tiles into the states. max_blocks: of rows, of all sequences, at most; first: nothing came before. */
bs_status bs_cuda_chunk_slab(const bs_stream *stream, const chunk_params *p, int max_blocks, bool first);

#endif
