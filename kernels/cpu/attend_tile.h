/* attend_tile.h: what attend.c (which pages, which rows, which thread) and the arithmetic of one page agree
 * on. Private to kernels/cpu/.
 *
 * A block is some query tokens of one sequence times the G query heads of one KV head: up to BS_ATTEND_ROWS
 * rows that meet the same pages. attend.c walks the pages; one function an instruction set folds a page into
 * the running softmax state (m, l, O) of the rows:
 *
 *   S = q·K;  m' = max(m, max S);  p = exp(S − m');  O = O·exp(m − m') + Σ p·V;  l = l·exp(m − m') + Σ p
 *
 * A token that a row does not see gets p = 0 by selection, and tokens that no row sees (outside first … end −
 * 1) are never multiplied at all: their bytes may be NaN.
 */
#ifndef BS_CPU_ATTEND_TILE_H
#define BS_CPU_ATTEND_TILE_H

#include "kernels/cpu/kv_layout.h"

enum {
    BS_ATTEND_ROWS = 128,       /* rows of a block at most: what one dequantized page is used for */
    BS_ATTEND_DIRECT_ROWS = 16, /* up to here codes go straight from the cache into the sums */
    BS_ATTEND_TILE_ROWS = 48,   /* rows whose scores are held at a time; a multiple of 6 */
    BS_ATTEND_MAX_GROUPS = 4,   /* groups of 32 in 128 tokens or channels */
};

/* One page of one KV head. */
typedef struct bs_attend_page {
    const bs_cpu_kv_layout *layout;
    uint8_t *record;     /* of a quantized page, else NULL */
    const bs_f16 *k, *v; /* of an f16 page: [128][D] */
    ptrdiff_t next;      /* bytes from here to the next page of the walk, to be prefetched; 0: unknown */
    int first, end;      /* the tokens that some row sees */
    bool full;           /* every row sees all 128 */
} bs_attend_page;

/* The rows' state and the thread's scratch, all 64-byte aligned. Vector code may touch rows beyond n_rows, up
 * to BS_ATTEND_ROWS, as padding. */
typedef struct bs_attend_block {
    int n_rows;
    float *q;         /* [rows, D] times the scale */
    float *o;         /* [rows, D] not yet divided by l */
    float *m, *l;     /* [rows] */
    int32_t *lo, *hi; /* [rows] row r sees tokens lo[r] … hi[r] − 1 of this page; none if hi ≤ lo */

    float *alpha;        /* [rows] exp(m − m') */
    float *s;            /* [BS_ATTEND_TILE_ROWS, 128] scores, then p */
    float *factor;       /* [4, 8, 128] q·s of K's groups, or p·s of V's */
    float *shift;        /* [4, 8] Σ q·s·z or Σ p·s·z of each group and row */
    float *sum;          /* [8, 64] sums of one call of the inner loop */
    float *scale, *zero; /* [4 · 128] a page's parameters in f32 */
    float *k_tile;       /* [D, 128] K of a page, tokens side by side */
    float *v_tile;       /* [128, D] */
} bs_attend_block;

/* Folds a page into the block's m, l and o. */
typedef void bs_attend_page_fn(const bs_attend_page *page, const bs_attend_block *block);
bs_attend_page_fn bs_cpu_attend_page_scalar;
bs_attend_page_fn bs_cpu_attend_page_avx2;
bs_attend_page_fn bs_cpu_attend_page_avx512;

#endif
