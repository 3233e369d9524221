/* score.h: what a position's logits say: how likely the token that follows is, which token is best, and how far the
 * distribution lies from a reference's (KL).
 *
 * Logits are cut over ranks by vocabulary. A shard's part of a row is a few numbers, and the parts of all shards make the
 * row's score: logits are never gathered. All in f64, with plain sums: of 10⁵ positive terms they lose 1e-13 or so.
 *
 * Several rows of the same position are scored together, the first being the reference r: KL(r ‖ x) = Σ p (r − x) −
 * (lse r − lse x), p = exp(r − lse r); so p is computed once for all of them.
 */
#ifndef BS_ENGINE_SCORE_H
#define BS_ENGINE_SCORE_H

#include "src/model/model.h"

typedef struct bs_score_part {
    double max, sum; /* of the shard: its largest logit, Σ exp(x − max); −inf and 0 for an empty shard */
    double moved;    /* Σ exp(r − its max)·(r − x), the reference's r and max */
    double next;     /* logit of the token that follows; −inf where that is another shard's */
    int64_t best;    /* id of the largest, the lowest on ties; −1 for an empty shard */
} bs_score_part;

typedef struct bs_score {
    double nll; /* −ln p of the token that follows; +inf when no shard had it */
    double kl;  /* of the reference to this, natural log, ≥ 0 */
    int64_t best;
    bool finite; /* false: a logit was NaN or infinite, and nothing else holds */
} bs_score;

/* rows[i]: [ids.n] f32, i = 0 … n_rows − 1, the logits of this shard's ids; next: the id that follows, or −1. weights:
 * [ids.n], overwritten. out: [n_rows]. */
void bs_score_shard(const float *const *rows, int n_rows, bs_range ids, int32_t next, double *weights,
                    bs_score_part *out);
/* The scores of n_rows rows from the parts of all shards: part of row i and shard s at parts[s · stride + i]. */
void bs_score_merge(const bs_score_part *parts, int n_shards, size_t stride, int n_rows, bs_score *out);

/* The q-quantile (0 … 1) of n numbers, n ≥ 1, linear between neighbours in order. Sorts x. */
double bs_score_quantile(float *x, int64_t n, double q);

#endif
