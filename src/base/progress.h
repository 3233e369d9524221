/* progress.h: a bar with a rate and the time left on a terminal, a plain line now and then in a log. On stderr, rank 0 only.
 *
 * Progress of a load (bytes) or a prefill (tokens). On a terminal the bar is redrawn at most ten times a
 * second and cleared at the end; otherwise a line is printed at most every ten seconds, and one at the end of
 * what took longer than a second.
 */
#ifndef BS_PROGRESS_H
#define BS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct bs_progress {
    const char *what; /* "prefill" */
    const char *unit; /* "tokens", or "B" for bytes with K, M, G */
    uint64_t total;
    double start_s, last_s;
    double share; /* of the work that is done, where tokens do not cost alike; 0: done of total */
    bool terminal, enabled, open;
} bs_progress;

void bs_progress_begin(bs_progress *progress, const char *what, const char *unit, uint64_t total,
                       bool enabled);
void bs_progress_update(bs_progress *progress, uint64_t done);
/* The same, where `done` of the total was so much of the work: what is left is told from that. */
void bs_progress_update_share(bs_progress *progress, uint64_t done, double share);
void bs_progress_end(bs_progress *progress, uint64_t done);
/* Bytes, for callbacks that count up to a total: begins with the first call that is not the last, ends with the last. */
void bs_progress_follow(bs_progress *progress, const char *what, uint64_t done, uint64_t total, bool enabled);

/* The text of the bar or the line after elapsed_s seconds, at most `bytes` bytes with the 0. Pure; for
 * update, end and tests. */
void bs_progress_format(const bs_progress *progress, uint64_t done, double elapsed_s, bool bar, char *text,
                        int bytes);

/* Monotonic seconds. */
double bs_now_s(void);
/* "4.25 GiB"; writes at most `bytes` bytes with the 0. */
void bs_format_bytes(uint64_t n, char *text, int bytes);

#endif
