/* prefill_model.h: what a prompt costs, in operations and from the times of some of its chunks. Pure.
 *
 * A token at position p passes the dense layers and meets p + 1 cached ones, so its time is taken as a line a + b·p. Times
 * are summed where chunks were measured, drawn straight between them where chunks lie apart, and follow the line fitted
 * through all of them beyond the last.
 */
#ifndef BS_CLI_PREFILL_MODEL_H
#define BS_CLI_PREFILL_MODEL_H

#include "src/model/model.h"

/* Floating-point operations (a multiply-add is two) of n tokens from position `first` on: the matrices of all layers, and
 * scores and sums of attention over what each token may see. The output head's one row is left out. */
double bs_prefill_dense_flop(const bs_model_desc *desc, int64_t n);
/* Pairs of a query token and a cached one that it sees: token p sees p + 1 tokens, or a window (0: none) where that is less. */
double bs_prefill_seen_pairs(int64_t window, int64_t first, int64_t n);
double bs_prefill_attend_flop(const bs_model_desc *desc, int64_t first, int64_t n);

/* A chunk that was timed: tokens first … first + n_tokens − 1. */
typedef struct bs_prefill_point {
    int64_t first;
    int64_t n_tokens;
    double ms;
} bs_prefill_point;

typedef struct bs_prefill_line {
    double token_ms, pair_ms; /* a and b, neither negative */
} bs_prefill_line;

/* Least squares over the points' ms a token at their middle positions, each weighing as its tokens; one point gives b = 0,
 * none a line of zeros. */
bs_prefill_line bs_prefill_fit(const bs_prefill_point *points, int n);
/* Milliseconds of tokens first … end − 1; *n_measured gets how many of them lie in points. Points ascend and do not
 * overlap. */
double bs_prefill_total_ms(const bs_prefill_point *points, int n, int64_t first, int64_t end,
                           int64_t *n_measured);

#endif
