/* when.h: when a snapshot is due, and when a job must end: --snapshot-every and --end-time. Clocks and counts, nothing
 * else. Rank 0.
 */
#ifndef BS_CLI_WHEN_H
#define BS_CLI_WHEN_H

#include "src/base/status.h"

#include <stdint.h>

typedef struct bs_when {
    int64_t every_tokens; /* 0: not by tokens */
    double every_s;       /* 0: not by time */
    double end_s;         /* unix time; 0: no end is known */
    double margin_s;      /* before it, for whatever must be done then */
} bs_when;

/* "4096", "64K", "1G" (tokens, as a scaled option; but a small m is minutes), "90s", "10m", "2h". USAGE. */
bs_status bs_when_read_every(const char *text, bs_when *out);
/* Unix seconds, or 2026-11-29T12:34[:56] of this machine's clock, or with Z or ±HH:MM behind. `now_s`: unix time. USAGE, also
 * for one that is past. NULL: `outer` (unix seconds, 0: none) is the end, as the batch system says, unless it is past. */
bs_status bs_when_read_end(const char *text, double outer, double now_s, bs_when *out);
/* Whether n_tokens more tokens and `seconds` since the last snapshot make the next one due. */
bool bs_when_is_due(const bs_when *when, int64_t n_tokens, double seconds);
/* Whether it is time to stop, when the last snapshot took snapshot_s. */
bool bs_when_must_end(const bs_when *when, double now_s, double snapshot_s);
/* Unix time. */
double bs_when_now_s(void);

#endif
