/* gemm_any.cu: y = x Wᵀ for what the fast ways do not take: mixed types, odd alignment, no columns.
 *
 * Math     y[t, r] = Σ_c x[t, c] · W[r, c] (+ bias[r]).
 * Layout   W [rows, cols] F32, F16 or BF16, row_bytes from row to row; x [T, cols] and y [T, rows] with ldx and ldy.
 * Mapping  a warp a row of W and 4 tokens, lanes along the columns, an element at a time; 8 rows a CTA.
 * Cost     W is read ⌈T/4⌉ times in pieces of 64 or 128 B a warp: about a third of the read bandwidth for one token.
 * Numerics f32: a lane's terms in order, then 32 lanes by halving. One rounding to the output's type.
 * Limits   T ≤ 262,140.
 * Measured not: nothing that is timed comes here. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

enum { WARP = 32, ROWS = 8, TOKENS = 4 };

typedef struct job {
    const uint8_t *w;
    size_t row_bytes;
    int64_t n_rows, n_cols, ldx, ldy;
    const float *bias;
    const void *x;
    void *y;
    bs_type type, act, out_type;
    int n_tokens;
} job;

static __global__ void __launch_bounds__(WARP *ROWS) gemm_any_kernel(job j)
{
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    const int t0 = (int)blockIdx.y * TOKENS, lane = threadIdx.x;
    float sums[TOKENS] = {};
    bs_cuda_release_next();
    bs_cuda_wait_before();
    if (row >= j.n_rows) return;
    const uint8_t *w = j.w + (size_t)row * j.row_bytes;
    for (int64_t c = lane; c < j.n_cols; c += WARP) {
        const float weight = bs_cuda_load_act(w, c, j.type);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (t0 + t < j.n_tokens)
                sums[t] = fmaf(weight, bs_cuda_load_act(j.x, (t0 + t) * j.ldx + c, j.act), sums[t]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float sum = bs_cuda_sum_warp(sums[t]);
        if (lane == 0 && t0 + t < j.n_tokens)
            bs_cuda_store_act(j.y, (t0 + t) * j.ldy + row, j.out_type, sum + (j.bias ? j.bias[row] : 0));
    }
}

bs_status bs_cuda_gemm_any(bs_stream *stream, const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    const int64_t n_ctas = (w->n_rows + ROWS - 1) / ROWS, n_groups = (a->n_tokens + TOKENS - 1) / TOKENS;
    if (n_ctas > INT32_MAX || n_groups > 65535)
        return bs_fail(BS_STATUS_RANGE, "gemm: %lld rows by %d tokens are too many for one launch",
                       (long long)w->n_rows, a->n_tokens);
    const job j = {(const uint8_t *)bs_cuda_weight_data(w),
                   w->row_bytes,
                   w->n_rows,
                   w->n_cols,
                   a->ldx,
                   a->ldy,
                   a->bias,
                   a->x,
                   a->y,
                   w->type,
                   a->act,
                   a->out_type,
                   a->n_tokens};
    return bs_cuda_launch(stream, "gemm", gemm_any_kernel, dim3((unsigned)n_ctas, (unsigned)n_groups),
                          dim3(WARP, ROWS), 0, j);
}
