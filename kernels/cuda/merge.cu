/* merge.cu: partial softmax states of ranks (or splits) become one, by the one rule of DESIGN §3.
 *
 * Math     M = max LSE_r; w_r = LSE_r == -inf ? 0 : exp(LSE_r - M); O = sum w_r O_r / sum w_r;
 *          LSE = M + ln sum w_r. A term with w_r = 0 is skipped, never multiplied: garbage x 0 must not leak.
 *          All empty: O = 0, LSE = -inf.
 * Layout   o [parts][rows, D] f32, lse [parts][rows] f32; rows = tokens x heads. [rows, D + 1] for the
 *          weighted sum.
 * Mapping  one warp a row, 4 rows a CTA, lanes stride over D (64 … 256); each lane sums the parts in rank
 *          order.
 * Cost     reads parts x rows x (D + 1) x 4 B once, writes rows x (D + 1) x 4 B; a token of 32 heads x 128
 *          from 8 ranks is 132 KB: 0.04 us at 3.35 TB/s, so the launch (2 to 3 us) is all of it.
 * Numerics f32, expf and logf of the full-precision library (no fast-math); order of the parts is fixed, so
 *          the bits are the same on every rank.
 * Limits   any number of parts and rows below 2^31; D a positive number.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/overlap.h"

enum { ROWS_PER_CTA = 4, WARP = 32 };

static dim3 grid_of(int n_rows)
{
    return dim3((unsigned)((n_rows + ROWS_PER_CTA - 1) / ROWS_PER_CTA));
}

static __device__ int my_row()
{
    return (int)(blockIdx.x * ROWS_PER_CTA + threadIdx.y);
}

/* Maximum of a row's LSE over the parts; -inf when all are empty. NaN never wins (fmaxf drops it). */
static __device__ float max_lse(const float *lse, int64_t stride, int n_parts, int row)
{
    float max = -INFINITY;
    for (int r = 0; r < n_parts; r++) max = fmaxf(max, lse[r * stride + row]);
    return max;
}

static __device__ float sum_weights(const float *lse, int64_t stride, int n_parts, int row, float max)
{
    float sum = 0;
    for (int r = 0; r < n_parts; r++) {
        float x = lse[r * stride + row];
        if (x != -INFINITY) sum += expf(x - max);
    }
    return sum;
}

static __global__ void merge_kernel(bs_merge_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    int row = my_row();
    if (row >= a.n_rows) return;
    float max = max_lse(a.lse, a.lse_stride, a.n_parts, row);
    float sum = max == -INFINITY ? 0 : sum_weights(a.lse, a.lse_stride, a.n_parts, row, max);
    for (int d = threadIdx.x; d < a.dim; d += WARP) {
        float o = 0;
        for (int r = 0; r < a.n_parts && sum > 0; r++) {
            float x = a.lse[r * a.lse_stride + row];
            float w = x == -INFINITY ? 0 : expf(x - max);
            if (w != 0) o += w * a.o[r * a.o_stride + (int64_t)row * a.dim + d];
        }
        a.o_out[(int64_t)row * a.dim + d] = sum > 0 ? o / sum : 0;
    }
    if (a.lse_out && threadIdx.x == 0) a.lse_out[row] = sum > 0 ? max + logf(sum) : -INFINITY;
}

static __global__ void weigh_kernel(bs_merge_weigh_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    int row = my_row();
    if (row >= a.n_rows) return;
    float x = a.lse[row], w = x == -INFINITY ? 0 : expf(x - a.lse_max[row]);
    float *out = a.out + (int64_t)row * (a.dim + 1);
    for (int d = threadIdx.x; d < a.dim; d += WARP) out[d] = w != 0 ? a.o[(int64_t)row * a.dim + d] * w : 0;
    if (threadIdx.x == 0) out[a.dim] = w;
}

static __global__ void finish_kernel(bs_merge_finish_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    int row = my_row();
    if (row >= a.n_rows) return;
    const float *in = a.sum + (int64_t)row * (a.dim + 1);
    float w = in[a.dim];
    for (int d = threadIdx.x; d < a.dim; d += WARP) a.o[(int64_t)row * a.dim + d] = w > 0 ? in[d] / w : 0;
    if (a.lse && threadIdx.x == 0) a.lse[row] = w > 0 ? a.lse_max[row] + logf(w) : -INFINITY;
}

static __global__ void fold_kernel(bs_merge_fold_args a)
{
    bs_cuda_release_next();
    bs_cuda_wait_before();
    int row = my_row();
    if (row >= a.n_rows) return;
    float max = max_lse(a.lse_all, a.n_rows, a.n_parts, row),
          mine = a.lse_all[(int64_t)a.part * a.n_rows + row];
    float factor = 0;
    if (mine != -INFINITY) factor = expf(mine - max) / sum_weights(a.lse_all, a.n_rows, a.n_parts, row, max);
    float *o = a.o + (int64_t)row * a.dim;
    for (int d = threadIdx.x; d < a.dim; d += WARP) o[d] = factor != 0 ? o[d] * factor : 0;
}

bs_status bs_cuda_merge(bs_stream *stream, const bs_merge_args *args)
{
    return bs_cuda_launch(stream, "merge", merge_kernel, grid_of(args->n_rows), dim3(WARP, ROWS_PER_CTA), 0,
                          *args);
}

bs_status bs_cuda_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *args)
{
    return bs_cuda_launch(stream, "merge_weigh", weigh_kernel, grid_of(args->n_rows),
                          dim3(WARP, ROWS_PER_CTA), 0, *args);
}

bs_status bs_cuda_merge_finish(bs_stream *stream, const bs_merge_finish_args *args)
{
    return bs_cuda_launch(stream, "merge_finish", finish_kernel, grid_of(args->n_rows),
                          dim3(WARP, ROWS_PER_CTA), 0, *args);
}

bs_status bs_cuda_merge_fold(bs_stream *stream, const bs_merge_fold_args *args)
{
    return bs_cuda_launch(stream, "merge_fold", fold_kernel, grid_of(args->n_rows), dim3(WARP, ROWS_PER_CTA),
                          0, *args);
}
