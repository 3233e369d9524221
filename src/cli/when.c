/* when.c: intervals and ends. */
#define _GNU_SOURCE /* strptime, timegm */
#include "src/cli/when.h"
#include "src/base/log.h"
#include "src/base/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double bs_when_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* "90s", "10m", "2h"; 0: not that. */
static double read_seconds(const char *text)
{
    static const char units[] = "smh";
    static const double unit_s[] = {1, 60, 3600};
    char *end;
    errno = 0;
    const double n = strtod(text, &end);
    if (errno != 0 || end == text || *text < '0' || *text > '9' || !*end || end[1]) return 0;
    const char *unit = strchr(units, *end);
    return unit ? n * unit_s[unit - units] : 0;
}

bs_status bs_when_read_every(const char *text, bs_when *out)
{
    const char *end;
    int64_t tokens;
    const double seconds = read_seconds(text);
    if (seconds >= 1e-3 && seconds <= 1e15) {
        out->every_tokens = 0;
        out->every_s = seconds;
        return BS_STATUS_OK;
    }
    if (bs_options_read_size(text, &end, &tokens) && *end == 0 && tokens >= 1) {
        out->every_tokens = tokens;
        out->every_s = 0;
        return BS_STATUS_OK;
    }
    return bs_fail(BS_STATUS_USAGE,
                   "--snapshot-every %s: must be tokens (4096, 64K, 1G) or a time (90s, 10m, 2h)", text);
}

/* "Z", "+01:00", "-0530", or nothing: local time. */
static bool read_zone(const char *text, struct tm *tm, double *out)
{
    int hours, minutes = 0, n = 0;
    char sign;
    if (*text == 0) {
        tm->tm_isdst = -1;
        time_t t = mktime(tm);
        *out = (double)t;
        return t != (time_t)-1;
    }
    if (strcmp(text, "Z") == 0) {
        *out = (double)timegm(tm);
        return true;
    }
    if (sscanf(text, "%c%2d%n:%2d%n", &sign, &hours, &n, &minutes, &n) < 2 &&
        sscanf(text, "%c%2d%2d%n", &sign, &hours, &minutes, &n) < 2)
        return false;
    if (text[n] != 0 && sscanf(text, "%c%2d%2d%n", &sign, &hours, &minutes, &n) != 3) return false;
    if (text[n] != 0 || (sign != '+' && sign != '-') || hours < 0 || hours > 14 || minutes < 0 ||
        minutes > 59)
        return false;
    *out = (double)timegm(tm) - (sign == '-' ? -1 : 1) * (hours * 3600.0 + minutes * 60.0);
    return true;
}

static bool read_time(const char *text, double *out)
{
    static const char *const forms[] = {"%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M",
                                        "%Y-%m-%d %H:%M"};
    char *end;
    errno = 0;
    const double n = strtod(text, &end);
    if (errno == 0 && end != text && *end == 0 && *text >= '0' && *text <= '9') {
        *out = n;
        return isfinite(n);
    }
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        struct tm tm = {0};
        const char *rest = strptime(text, forms[i], &tm);
        if (rest && read_zone(rest, &tm, out)) return true;
    }
    return false;
}

/* Half a minute for what is not foreseen, but no more than a quarter of what a short job has. */
static void set_end(bs_when *when, double end_s, double now_s)
{
    const double quarter = (end_s - now_s) / 4;
    when->end_s = end_s;
    when->margin_s = quarter < 30 ? quarter : 30;
}

bs_status bs_when_read_end(const char *text, double outer, double now_s, bs_when *out)
{
    double end_s;
    if (!text) {
        if (outer > now_s) set_end(out, outer, now_s);
        else if (outer > 0)
            bs_log_warn("the batch system says that this job has ended %.0f s ago: not believed",
                        now_s - outer);
        return BS_STATUS_OK;
    }
    if (!read_time(text, &end_s))
        return bs_fail(BS_STATUS_USAGE, "--end-time %s: must be unix seconds or as 2026-11-29T12:34:56",
                       text);
    if (end_s <= now_s)
        return bs_fail(BS_STATUS_USAGE, "--end-time %s: is past, by %.0f s", text, now_s - end_s);
    set_end(out, end_s, now_s);
    return BS_STATUS_OK;
}

bool bs_when_is_due(const bs_when *when, int64_t n_tokens, double seconds)
{
    if (n_tokens <= 0) return false;
    return when->every_s > 0 ? seconds >= when->every_s : n_tokens >= when->every_tokens;
}

bool bs_when_must_end(const bs_when *when, double now_s, double snapshot_s)
{
    return when->end_s > 0 && now_s >= when->end_s - when->margin_s - 2 * snapshot_s;
}
