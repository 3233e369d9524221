/* sample.c: the candidates of all shards become one token, the same on every rank.
 *
 * The shards' sorted lists are merged into one, in the total order of candidates.c. Then top-k cuts the list;
 * top-p keeps the fewest whose probability, renormalised over what top-k left, reaches p; min-p keeps those
 * at least that share as likely as the best. Without a cut the list is the whole vocabulary, or nothing
 * beyond it was asked for. The draw is the first whose cumulative probability exceeds u. Sums in double, in
 * list order. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/philox.h"

#include <math.h>
#include <stdlib.h>

static inline bool is_better(bs_candidate a, bs_candidate b)
{
    return a.id >= 0 && (b.id < 0 || a.logit > b.logit || (a.logit == b.logit && a.id < b.id));
}

static int by_rank(const void *pa, const void *pb)
{
    const bs_candidate *a = pa, *b = pb;
    return is_better(*a, *b) ? -1 : is_better(*b, *a) ? 1 : 0;
}

enum { MAX_HEADS = 64 };

/* More shards than heads to keep: all of them sorted. */
static int sort_lists(const bs_sample_args *a, int row, int limit)
{
    int n = 0;
    for (int s = 0; s < a->n_shards; s++) {
        const bs_candidate *list = a->candidates + s * a->shard_stride + (int64_t)row * a->n_per_shard;
        for (int i = 0; i < a->n_per_shard && list[i].id >= 0; i++) a->scratch[n++] = list[i];
    }
    qsort(a->scratch, (size_t)n, sizeof *a->scratch, by_rank);
    return n < limit ? n : limit;
}

/* The best `limit` of the shards' sorted lists of one row, in order, into scratch; how many there are. */
static int merge_lists(const bs_sample_args *a, int row, int limit)
{
    int heads[MAX_HEADS] = {0}, n = 0;
    if (a->n_shards > MAX_HEADS) return sort_lists(a, row, limit);
    while (n < limit) {
        int best = -1;
        bs_candidate found = {-INFINITY, -1};
        for (int s = 0; s < a->n_shards; s++) {
            if (heads[s] == a->n_per_shard) continue;
            bs_candidate c = a->candidates[s * a->shard_stride + (int64_t)row * a->n_per_shard + heads[s]];
            if (is_better(c, found)) {
                found = c;
                best = s;
            }
        }
        if (best < 0) break;
        heads[best]++;
        a->scratch[n++] = found;
    }
    return n;
}

static float total_lse(const bs_sample_args *a, int row)
{
    float max = -INFINITY;
    double sum = 0;
    for (int s = 0; s < a->n_shards; s++) max = fmaxf(max, a->lse[s * a->lse_stride + row]);
    if (max == -INFINITY) return max;
    for (int s = 0; s < a->n_shards; s++) {
        float lse = a->lse[s * a->lse_stride + row];
        if (lse != -INFINITY) sum += exp((double)lse - max);
    }
    return (float)(max + log(sum));
}

static double weight(const bs_candidate *list, int i)
{
    return exp((double)list[i].logit - list[0].logit);
}

static int cut_top_p(const bs_candidate *list, int n, float top_p)
{
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += weight(list, i);
    for (int i = 0; i < n; i++) {
        sum += weight(list, i);
        if (sum >= (double)top_p * total) return i + 1;
    }
    return n;
}

static int cut_min_p(const bs_candidate *list, int n, float min_p)
{
    int kept = 1;
    while (kept < n && weight(list, kept) >= min_p) kept++;
    return kept;
}

static int draw(const bs_candidate *list, int n, const bs_sampling *s, int32_t position, int32_t number)
{
    double u = bs_philox_uniform(s->seed, position, number), total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += weight(list, i);
    for (int i = 0; i < n; i++) {
        sum += weight(list, i);
        if (sum > u * total) return i;
    }
    return n - 1;
}

static bs_status sample_row(const bs_sample_args *a, int row)
{
    const bs_sampling *s = &a->sampling[row];
    bool greedy = !(s->temperature > 0);
    int limit = a->n_shards * a->n_per_shard;
    if (greedy) limit = 1;
    else if (s->top_k > 0 && s->top_k < limit) limit = s->top_k;
    int n = merge_lists(a, row, limit);
    if (n < 1)
        return bs_fail(BS_STATUS_NUMERIC, "no candidate to draw from at position %d", (int)a->position[row]);
    int chosen = 0;
    if (!greedy) {
        if (s->top_p < 1) n = cut_top_p(a->scratch, n, s->top_p);
        if (s->min_p > 0) n = cut_min_p(a->scratch, n, s->min_p);
        chosen = draw(a->scratch, n, s, a->position[row], a->draw[row]);
    }
    a->token[row] = a->scratch[chosen].id;
    if (a->logprob) a->logprob[row] = a->scratch[chosen].logit - total_lse(a, row);
    return BS_STATUS_OK;
}

bs_status bs_cpu_sample(bs_stream *stream, const bs_sample_args *a)
{
    for (int row = 0; row < a->n_rows; row++) BS_TRY(sample_row(a, row));
    return BS_STATUS_OK;
}
