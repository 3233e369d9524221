/* score.c: scores of rows of logits, a shard at a time. */
#include "src/engine/score.h"

#include <math.h>
#include <stdlib.h>

/* exp(x − max) of a row and their sum; weights may be NULL. Where max is NaN, all is. */
static double exponentials(const float *x, int64_t n, double max, double *weights)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = exp(x[i] - max);
        if (weights) weights[i] = e;
        sum += e;
    }
    return sum;
}

/* Index of the largest, the first on ties; of the first NaN, if there is one. */
static int64_t index_of_best(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i])) return i;
        if (x[i] > x[best]) best = i;
    }
    return best;
}

void bs_score_shard(const float *const *rows, int n_rows, bs_range ids, int32_t next, double *weights,
                    bs_score_part *out)
{
    const bool has_next = next >= ids.first && next < ids.first + ids.n;
    for (int row = 0; row < n_rows; row++) {
        const float *r = rows[0], *x = rows[row];
        bs_score_part part = {.max = -INFINITY, .next = -INFINITY, .best = -1};
        if (ids.n > 0) {
            int64_t best = index_of_best(x, ids.n);
            part.best = ids.first + best;
            part.max = x[best];
            part.sum = exponentials(x, ids.n, part.max, row == 0 ? weights : NULL);
        }
        for (int64_t i = 0; i < ids.n && row > 0; i++) part.moved += weights[i] * ((double)r[i] - x[i]);
        if (has_next) part.next = x[next - ids.first];
        out[row] = part;
    }
}

static double log_sum_exp(const bs_score_part *parts, int n_shards, size_t stride, double *max_out)
{
    double max = -INFINITY, sum = 0;
    for (int s = 0; s < n_shards; s++) max = parts[s * stride].max > max ? parts[s * stride].max : max;
    for (int s = 0; s < n_shards; s++)
        if (parts[s * stride].best >= 0) sum += parts[s * stride].sum * exp(parts[s * stride].max - max);
    *max_out = max;
    return max + log(sum);
}

void bs_score_merge(const bs_score_part *parts, int n_shards, size_t stride, int n_rows, bs_score *out)
{
    double max, lse_ref = log_sum_exp(parts, n_shards, stride, &max);
    for (int row = 0; row < n_rows; row++) {
        const bs_score_part *p = parts + row;
        double lse = log_sum_exp(p, n_shards, stride, &max), moved = 0, next = -INFINITY;
        bs_score score = {.best = -1};
        for (int s = 0; s < n_shards; s++) {
            const bs_score_part *shard = p + s * stride, *ref = parts + s * stride;
            if (shard->best < 0) continue;
            if (shard->max == max && score.best < 0)
                score.best = shard->best; /* shards are in order of ids */
            moved += exp(ref->max - lse_ref) * shard->moved;
            if (shard->next > next) next = shard->next;
        }
        score.finite = isfinite(lse) && isfinite(moved);
        score.nll = lse - next;
        score.kl = fmax(0, moved - (lse_ref - lse)); /* below 0 by rounding only */
        out[row] = score;
    }
}

static int by_value(const void *pa, const void *pb)
{
    float a = *(const float *)pa, b = *(const float *)pb;
    return (a > b) - (a < b);
}

double bs_score_quantile(float *x, int64_t n, double q)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    double at = q * (double)(n - 1);
    int64_t i = (int64_t)at < n - 1 ? (int64_t)at : n - 1;
    return i + 1 < n ? x[i] + (at - (double)i) * ((double)x[i + 1] - x[i]) : x[i];
}
