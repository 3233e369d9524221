/* attend.cuh: what the launcher and the kernels of attention share. */
#ifndef BS_CUDA_ATTEND_CUH
#define BS_CUDA_ATTEND_CUH

extern "C" {
#include "kernels/cuda/kv_layout.h"
}

#include <cuda_runtime.h>

enum { ATTEND_MAX_CTAS = 160 };

/* A sequence as its jobs see it: a job is one (sequence, KV head, block of rows), made of units in the order
 * f16 sink, quantized, f16 tail; an f16 page is several units. */
typedef struct attend_span {
    int32_t first[3];               /* first visible entry of each part in the page list */
    int32_t n[3];                   /* visible entries */
    uint32_t units;                 /* of one job; 0: no query tokens */
    uint32_t end;                   /* units of all jobs of this sequence and those before it */
    int32_t q_start, n_query, pos0; /* first query token's row and position, and how many there are */
    int32_t n_seen;                 /* tokens of the sequence that anybody sees */
    int32_t blocks;                 /* of rows */
} attend_span;

/* A piece of a job that one CTA computes. */
typedef struct attend_segment {
    int seq, kv_head, block; /* the job */
    uint32_t first, end;     /* units of it */
    uint32_t job_units;
    uint32_t job_start; /* where the job begins in the row of all units */
    int turn;           /* warp that takes the first unit */
} attend_segment;

typedef struct attend_params {
    bs_cuda_kv_layout layout;
    const uint8_t *quant_pool, *f16_pool; /* at this layer */
    const void *q;
    int64_t q_ld;
    bs_type act;
    const int32_t *q_start, *q_pos0, *page_start, *page_index, *n_sink, *n_quant, *n_f16, *n_tokens;
    const uint32_t *page_slot;
    float scale;
    int window, max_seqs, n_heads, group; /* group: G, query heads a KV head */
    int max_query;                        /* query tokens of a sequence, by the launch's bounds */
    float *part_o;                        /* [2 · CTAs][R][D], sums of one CTA over a part of a job */
    float2 *part_ml;                      /* [2 · CTAs][R], their maximum (log2) and sum of weights */
    uint32_t *arrived;                    /* [jobs][R] CTAs that have left their part; 0 between launches */
    float *o, *lse;
    void *attended; /* instead of o, where it is given */
    bs_type attended_type;
    bool hadamard;        /* attended is turned back */
    uint32_t stage_bytes; /* of a ring slot */
    int slice_log2;       /* tokens of an f16 unit */
    int overlap;          /* launched while the kernel before may still run */
} attend_params;

/* Rows (query token, head) of a job: 4, each as two columns of a tile, or 8 in two tiles. */
typedef bs_status attend_launch_fn(const attend_params *p, int rows, int n_ctas, int n_warps, size_t smem,
                                   const bs_stream *stream);
/* One for each pair of code widths; the f16 format takes any. */
attend_launch_fn bs_attend_launch_8_8, bs_attend_launch_4_4, bs_attend_launch_2_2, bs_attend_launch_4_2,
    bs_attend_launch_8_4;

/* Warps of a CTA at most, besides the dispatcher: what the registers of the variant allow, 255, 168 or 128 of
 * them a thread. */
static __host__ __device__ constexpr int attend_max_warps(int k_bits, int v_bits, int dim, int rows)
{
    if (rows == 8) return k_bits == 2 ? 11 : 7;
    return k_bits + v_bits <= 6 && dim == 64 ? 15 : 11;
}

/* Bytes of the buffer that q is copied to: 16 for each lane and each 16 channels of a row. */
static __host__ __device__ constexpr int attend_staging_bytes(int dim)
{
    return dim / 16 * 32 * 16;
}

/* Floats of a warp's or CTA's O of one row in shared memory: D and a pad against bank conflicts. */
static __host__ __device__ constexpr int attend_row_floats(int dim)
{
    return dim + 8;
}

/* Bytes of a kernel's shared memory that it declares itself, or a little more: attend_shared. */
static __host__ __device__ constexpr int attend_fixed_bytes(int dim, int rows, int max_warps)
{
    return max_warps * ((rows == 4 ? 1024 : 2048) + rows * 8 + 288) + 4 * rows * dim +
           (rows == 4 ? 2048 : 4096) + attend_staging_bytes(dim) + 1024;
}

#endif
