/* progress.c: drawing progress. The bar is written with one write a time, over itself by a carriage return.
 */
#include "config.h"

#include "src/base/progress.h"
#include "src/base/log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR_CELLS = 24, LINE_BYTES = 160 };
static const double bar_every_s = 0.1, line_every_s = 10, worth_a_line_s = 1;

double bs_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bs_format_bytes(uint64_t n, char *text, int bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double x = (double)n;
    int unit = 0;
    /* The next unit from where four digits would be shown. */
    for (; x >= 999.5 && unit < 6; unit++) x /= 1024;
    int decimals = unit == 0 || x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2;
    snprintf(text, (size_t)bytes, "%.*f %s", decimals, x, units[unit]);
}

static void format_amount(const bs_progress *progress, uint64_t n, char *text, int bytes)
{
    if (strcmp(progress->unit, "B") == 0) {
        bs_format_bytes(n, text, bytes);
    } else {
        snprintf(text, (size_t)bytes, "%llu", (unsigned long long)n);
    }
}

/* ", 1:05 left", or nothing where it would be a guess. */
static void format_left(const bs_progress *progress, uint64_t done, double elapsed_s, char *text, int bytes)
{
    *text = 0;
    if (done == 0 || done >= progress->total || elapsed_s < worth_a_line_s) return;
    const double share = progress->share > 0 ? progress->share : (double)done / (double)progress->total;
    const double left_s = elapsed_s * (1 - share) / share;
    if (!(left_s >= 0 && left_s < 100 * 3600.0)) return;
    const int s = (int)(left_s + 0.5);
    if (s >= 3600) snprintf(text, (size_t)bytes, ", %d:%02d:%02d left", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, (size_t)bytes, ", %d:%02d left", s / 60, s % 60);
}

void bs_progress_format(const bs_progress *progress, uint64_t done, double elapsed_s, bool bar, char *text,
                        int bytes)
{
    char some[32], all[32], rate[32], left[32], cells[BAR_CELLS + 1];
    bool is_bytes = strcmp(progress->unit, "B") == 0;
    double share = progress->total == 0 || done > progress->total ? 1
                                                                  : (double)done / (double)progress->total;
    format_amount(progress, done, some, sizeof some);
    format_amount(progress, progress->total, all, sizeof all);
    format_amount(progress, elapsed_s > 0 ? (uint64_t)((double)done / elapsed_s + 0.5) : 0, rate,
                  sizeof rate);
    format_left(progress, done, elapsed_s, left, sizeof left);
    const char *unit = is_bytes ? "" : " ", *unit_name = is_bytes ? "" : progress->unit;
    for (int i = 0; i < BAR_CELLS; i++) cells[i] = i < (int)(share * BAR_CELLS) ? '#' : '.';
    cells[BAR_CELLS] = 0;
    snprintf(text, (size_t)bytes, "%s%s %s%s%3d%%  %s of %s%s%s, %s%s%s/s%s", progress->what, bar ? "" : ":",
             bar ? cells : "", bar ? " " : "", (int)(share * 100), some, all, unit, unit_name, rate, unit,
             unit_name, left);
}

static void write_bar(const char *text)
{
    char line[LINE_BYTES + 16];
    int n = snprintf(line, sizeof line, "\r%s\033[K", text);
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* a bar that cannot be drawn is no error */
}

void bs_progress_begin(bs_progress *progress, const char *what, const char *unit, uint64_t total,
                       bool enabled)
{
    double now = bs_now_s();
    *progress = (bs_progress){.what = what,
                              .unit = unit,
                              .total = total,
                              .start_s = now,
                              .last_s = now,
                              .terminal = isatty(STDERR_FILENO) == 1,
                              .enabled = enabled,
                              .open = true};
}

void bs_progress_update(bs_progress *progress, uint64_t done)
{
    double now = bs_now_s();
    if (!progress->enabled || !progress->open) return;
    if (now - progress->last_s < (progress->terminal ? bar_every_s : line_every_s)) return;
    progress->last_s = now;
    char text[LINE_BYTES];
    bs_progress_format(progress, done, now - progress->start_s, progress->terminal, text, sizeof text);
    if (progress->terminal) {
        write_bar(text);
    } else {
        bs_log_info("%s", text);
    }
}

void bs_progress_update_share(bs_progress *progress, uint64_t done, double share)
{
    progress->share = share;
    bs_progress_update(progress, done);
}

void bs_progress_end(bs_progress *progress, uint64_t done)
{
    if (!progress->open) return;
    progress->open = false;
    if (!progress->enabled) return;
    if (progress->terminal) {
        write_bar("");
        return;
    }
    double elapsed_s = bs_now_s() - progress->start_s;
    if (elapsed_s < worth_a_line_s) return;
    char text[LINE_BYTES];
    bs_progress_format(progress, done, elapsed_s, false, text, sizeof text);
    bs_log_info("%s", text);
}

void bs_progress_follow(bs_progress *p, const char *what, uint64_t done, uint64_t total, bool enabled)
{
    if (!p->open && done < total) bs_progress_begin(p, what, "B", total, enabled);
    bs_progress_update(p, done);
    if (done == total) bs_progress_end(p, done);
}
