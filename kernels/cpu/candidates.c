/* candidates.c: a vocabulary shard's part of sampling: penalty, temperature, the best few, the log-sum-exp of
 * all.
 *
 * The best n of a shard are kept in a heap whose root is the worst of them: a pass over the logits with few
 * exchanges, then a sort of n. The order is total (by descending logit, then by ascending id), so all shards
 * and devices agree. */
#include "kernels/cpu/cpu_ops.h"

#include <math.h>
#include <stdlib.h>

/* Whether a comes after b in the order of candidates. */
static inline bool is_worse(bs_candidate a, bs_candidate b)
{
    return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
}

static int by_rank(const void *pa, const void *pb)
{
    const bs_candidate *a = pa, *b = pb;
    return is_worse(*a, *b) ? 1 : is_worse(*b, *a) ? -1 : 0;
}

static void sift_down(bs_candidate *heap, int n, int i)
{
    bs_candidate moved = heap[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_worse(heap[child + 1], heap[child])) child++;
        if (!is_worse(heap[child], moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* The best n_best, then padding up to n_out. */
static void keep_best(const float *logits, int32_t vocab0, int n_vocab, int n_best, int n_out,
                      bs_candidate *out)
{
    int n = n_vocab < n_best ? n_vocab : n_best;
    for (int i = 0; i < n; i++) out[i] = (bs_candidate){logits[i], vocab0 + i};
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(out, n, i);
    for (int i = n; i < n_vocab; i++) {
        bs_candidate c = {logits[i], vocab0 + i};
        if (!is_worse(out[0], c)) continue;
        out[0] = c;
        sift_down(out, n, 0);
    }
    qsort(out, (size_t)n, sizeof *out, by_rank);
    for (int i = n; i < n_out; i++) out[i] = (bs_candidate){-INFINITY, -1};
}

static float log_sum_exp(const float *x, int n)
{
    float max = -INFINITY;
    double sum = 0;
    for (int i = 0; i < n; i++) max = fmaxf(max, x[i]);
    if (max == -INFINITY) return -INFINITY;
    for (int i = 0; i < n; i++) sum += expf(x[i] - max);
    return (float)(max + log(sum));
}

static void adjust(float *logits, int32_t vocab0, int n_vocab, const bs_sampling *s, const uint64_t *seen)
{
    if (seen && s->repeat_penalty != 1) {
        float p = s->repeat_penalty;
        for (int i = 0; i < n_vocab; i++) {
            uint32_t id = (uint32_t)(vocab0 + i);
            if (seen[id / 64] >> id % 64 & 1) logits[i] = logits[i] > 0 ? logits[i] / p : logits[i] * p;
        }
    }
    if (s->temperature > 0)
        for (int i = 0; i < n_vocab; i++) logits[i] /= s->temperature;
}

bs_status bs_cpu_candidates(bs_stream *stream, const bs_candidates_args *a)
{
    for (int row = 0; row < a->n_rows; row++) {
        float *logits = a->logits + row * a->ld;
        adjust(logits, a->vocab0, a->n_vocab, &a->sampling[row], a->seen ? a->seen[row] : NULL);
        for (int i = 0; i < a->n_vocab; i++)
            if (isnan(logits[i]))
                return bs_fail(BS_STATUS_NUMERIC, "logit of token %d is not a number", (int)a->vocab0 + i);
        const bool greedy = !(a->sampling[row].temperature > 0) && a->n_out <= BS_MAX_CANDIDATES;
        keep_best(logits, a->vocab0, a->n_vocab, greedy ? 1 : a->n_out, a->n_out,
                  a->out + (int64_t)row * a->n_out);
        a->lse[row] = log_sum_exp(logits, a->n_vocab);
    }
    return BS_STATUS_OK;
}

bs_status bs_cpu_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        if (ids[i] >= 0) bitmap[ids[i] / 64] |= (uint64_t)1 << ids[i] % 64;
    return BS_STATUS_OK;
}

bs_status bs_cpu_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                             int n)
{
    for (int i = 0; i < n; i++)
        if (seq[i] >= 0) last[seq[i]] = token[i];
    return BS_STATUS_OK;
}

bs_status bs_cpu_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < 0) ids[i] = last[-1 - ids[i]];
    return BS_STATUS_OK;
}
