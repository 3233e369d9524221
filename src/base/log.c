/* log.c: lines on stderr, each written with one call so that ranks do not cut into each other's. */
#include "src/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int log_rank, log_size = 1;
static bs_log_level log_level = BS_LOG_INFO;

void bs_log_set_rank(int rank, int size)
{
    log_rank = rank;
    log_size = size;
}

void bs_log_set_level(bs_log_level level)
{
    log_level = level;
}

bs_log_level bs_log_get_level(void)
{
    return log_level;
}

static void write_line(const char *kind, const char *format, va_list arguments)
{
    char line[1400];
    int n = log_size > 1 && log_rank > 0 ? snprintf(line, sizeof line, "bitshard[%d]: %s", log_rank, kind)
                                         : snprintf(line, sizeof line, "bitshard: %s", kind);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, arguments);
    size_t end = (size_t)n + (m < 0 ? 0 : (size_t)m);
    if (end > sizeof line - 2) end = sizeof line - 2;
    line[end] = '\n';
    ssize_t written = write(STDERR_FILENO, line, end + 1);
    (void)written; /* nowhere left to say so */
}

#define WRITE_LINE(kind)                                                                                     \
    do {                                                                                                     \
        va_list arguments;                                                                                   \
        va_start(arguments, format);                                                                         \
        write_line(kind, format, arguments);                                                                 \
        va_end(arguments);                                                                                   \
    } while (0)

void bs_log_info(const char *format, ...)
{
    if (log_rank == 0 && log_level >= BS_LOG_INFO) WRITE_LINE("");
}

void bs_log_debug(const char *format, ...)
{
    if (log_rank == 0 && log_level >= BS_LOG_DEBUG) WRITE_LINE("");
}

void bs_log_warn(const char *format, ...)
{
    WRITE_LINE("warning: ");
}

void bs_log_error(const char *format, ...)
{
    WRITE_LINE("error: ");
}
