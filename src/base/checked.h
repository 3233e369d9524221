/* checked.h: arithmetic on sizes that come from files, options and requests.
 *
 * Each returns false on overflow and leaves *out alone. Built on the compiler's overflow builtins.
 */
#ifndef BS_CHECKED_H
#define BS_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool bs_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline bool bs_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

/* Rounds up to a multiple of `to` (> 0). */
static inline bool bs_round_up_u64(uint64_t a, uint64_t to, uint64_t *out)
{
    uint64_t rest = a % to;
    if (rest == 0) {
        *out = a;
        return true;
    }
    return bs_add_u64(a, to - rest, out);
}

/* For numbers already known to be small. */
static inline int64_t bs_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t bs_min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t bs_max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
