/* merge.c: merging partial softmax states (O normalised, LSE natural log), the one rule of kernels.h.
 *
 *   M = max LSE_r;  w_r = LSE_r == −inf ? 0 : exp(LSE_r − M);  O = Σ w_r O_r / Σ w_r;  LSE = M + ln Σ w_r
 *
 * A state of weight zero is skipped, never multiplied: its O may hold garbage or NaN. Emptiness is Σ w_r = 0
 * and not M = −inf, so that a NaN among the LSE shows in the result instead of passing for an empty state.
 * All loops over D are one product and one sum an element, in the order of the parts: the same bits whatever
 * the compiler's vectors.
 */
#include <math.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"

static float weight_of(float lse, float max)
{
    return lse == -INFINITY ? 0.0f : expf(lse - max);
}

/* Maximum of n LSE, stride floats apart; −inf if all are empty. */
static float max_lse(const float *lse, int n, int64_t stride)
{
    float max = -INFINITY;
    for (int r = 0; r < n; r++)
        if (lse[r * stride] > max) max = lse[r * stride];
    return max;
}

bs_status bs_cpu_merge(bs_stream *stream, const bs_merge_args *args)
{
    const size_t dim = (size_t)args->dim;
    for (int row = 0; row < args->n_rows; row++) {
        const float *lse = args->lse + row, *o = args->o + (size_t)row * dim;
        float *out = args->o_out + (size_t)row * dim;
        float max = max_lse(lse, args->n_parts, args->lse_stride), total = 0.0f;
        memset(out, 0, dim * sizeof *out);
        for (int r = 0; r < args->n_parts; r++) {
            float w = weight_of(lse[r * args->lse_stride], max);
            if (w == 0.0f) continue;
            total += w;
            for (size_t d = 0; d < dim; d++) out[d] += w * o[r * args->o_stride + (int64_t)d];
        }
        if (total != 0.0f)
            for (size_t d = 0; d < dim; d++) out[d] /= total;
        if (args->lse_out) args->lse_out[row] = total != 0.0f ? max + logf(total) : -INFINITY;
    }
    return BS_STATUS_OK;
}

bs_status bs_cpu_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *args)
{
    const size_t dim = (size_t)args->dim;
    for (int row = 0; row < args->n_rows; row++) {
        const float *o = args->o + (size_t)row * dim;
        float *out = args->out + (size_t)row * (dim + 1);
        float w = weight_of(args->lse[row], args->lse_max[row]);
        if (w == 0.0f) {
            memset(out, 0, (dim + 1) * sizeof *out);
            continue;
        }
        for (size_t d = 0; d < dim; d++) out[d] = o[d] * w;
        out[dim] = w;
    }
    return BS_STATUS_OK;
}

bs_status bs_cpu_merge_finish(bs_stream *stream, const bs_merge_finish_args *args)
{
    const size_t dim = (size_t)args->dim;
    for (int row = 0; row < args->n_rows; row++) {
        const float *sum = args->sum + (size_t)row * (dim + 1);
        float *o = args->o + (size_t)row * dim;
        float total = sum[dim];
        for (size_t d = 0; d < dim; d++) o[d] = total != 0.0f ? sum[d] / total : 0.0f;
        if (args->lse) args->lse[row] = total != 0.0f ? args->lse_max[row] + logf(total) : -INFINITY;
    }
    return BS_STATUS_OK;
}

/* The factor is w_part / Σ w and not exp(LSE_part − LSE): the f32 nearest an LSE of 10⁴ is off by up to 5e-4.
 */
bs_status bs_cpu_merge_fold(bs_stream *stream, const bs_merge_fold_args *args)
{
    const size_t dim = (size_t)args->dim;
    for (int row = 0; row < args->n_rows; row++) {
        const float *lse = args->lse_all + row;
        float *o = args->o + (size_t)row * dim;
        float max = max_lse(lse, args->n_parts, args->n_rows), total = 0.0f;
        for (int r = 0; r < args->n_parts; r++) total += weight_of(lse[(int64_t)r * args->n_rows], max);
        float w = weight_of(lse[(int64_t)args->part * args->n_rows], max);
        if (w == 0.0f) {
            memset(o, 0, dim * sizeof *o);
            continue;
        }
        float factor = w / total;
        for (size_t d = 0; d < dim; d++) o[d] *= factor;
    }
    return BS_STATUS_OK;
}
