/* prefill_model.c: operations of a prompt, and its time from the times of some of its chunks. */
#include "src/cli/prefill_model.h"
#include "src/base/checked.h"

double bs_prefill_dense_flop(const bs_model_desc *desc, int64_t n)
{
    const double hidden = desc->n_hidden, dim = desc->head_dim;
    const double attention = hidden * dim * (2.0 * desc->n_heads + 2.0 * desc->n_kv_heads);
    return 2 * (double)n * desc->n_layers * (attention + 3 * hidden * desc->n_ffn);
}

double bs_prefill_seen_pairs(int64_t window, int64_t first, int64_t n)
{
    const int64_t n_short = window == 0 ? n : bs_max_i64(0, bs_min_i64(n, window - first));
    return (double)n_short * ((double)first + ((double)n_short + 1) / 2) +
           (double)(n - n_short) * (double)window;
}

double bs_prefill_attend_flop(const bs_model_desc *desc, int64_t first, int64_t n)
{
    double pairs = 0;
    for (int layer = 0; layer < desc->n_layers; layer++)
        pairs += bs_prefill_seen_pairs(desc->layers[layer].window, first, n);
    return 4 * pairs * desc->n_heads * desc->head_dim;
}

static double middle_of(const bs_prefill_point *point)
{
    return (double)point->first + ((double)point->n_tokens - 1) / 2;
}

static double token_ms(const bs_prefill_point *point)
{
    return point->ms / (double)point->n_tokens;
}

bs_prefill_line bs_prefill_fit(const bs_prefill_point *points, int n)
{
    double weight = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < n; i++) {
        weight += (double)points[i].n_tokens;
        x += (double)points[i].n_tokens * middle_of(&points[i]);
        y += points[i].ms;
    }
    if (n == 0) return (bs_prefill_line){0, 0};
    x /= weight;
    y /= weight;
    for (int i = 0; i < n; i++) {
        const double dx = middle_of(&points[i]) - x;
        xx += (double)points[i].n_tokens * dx * dx;
        xy += (double)points[i].n_tokens * dx * (token_ms(&points[i]) - y);
    }
    bs_prefill_line line = {y, 0};
    if (xx > 0 && xy > 0) line.pair_ms = xy / xx;
    line.token_ms = y - line.pair_ms * x;
    if (line.token_ms >= 0) return line;
    return (bs_prefill_line){0, x > 0 ? y / x : 0}; /* through the origin and the mean */
}

/* ms a token at a position between two neighbours, by the straight line through their middles. */
static double between(const bs_prefill_point *left, const bs_prefill_point *right, double position)
{
    const double share = (position - middle_of(left)) / (middle_of(right) - middle_of(left));
    return token_ms(left) + share * (token_ms(right) - token_ms(left));
}

double bs_prefill_total_ms(const bs_prefill_point *points, int n, int64_t first, int64_t end,
                           int64_t *n_measured)
{
    const bs_prefill_line line = bs_prefill_fit(points, n);
    double ms = 0;
    *n_measured = 0;
    for (int64_t at = first; at < end;) {
        int i = 0; /* the first point that ends behind `at` */
        while (i < n && points[i].first + points[i].n_tokens <= at) i++;
        const bool inside = i < n && points[i].first <= at;
        const int64_t to = bs_min_i64(end, i == n   ? end
                                           : inside ? points[i].first + points[i].n_tokens
                                                    : points[i].first);
        const double n_tokens = (double)(to - at), middle = (double)at + (n_tokens - 1) / 2;
        if (inside) {
            ms += n_tokens * token_ms(&points[i]);
            *n_measured += to - at;
        } else if (i > 0 && i < n) {
            ms += n_tokens * between(&points[i - 1], &points[i], middle);
        } else {
            ms += n_tokens * (line.token_ms + line.pair_ms * middle);
        }
        at = to;
    }
    return ms;
}
