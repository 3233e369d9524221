/* status.c: status texts and the kept error line. */
#include "src/base/status.h"
#include "src/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char kept[1024];

const char *bs_status_text(bs_status status)
{
    switch (status) {
#define X(name, number, text, code)                                                                          \
    case BS_STATUS_##name: return text;
        BS_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

int bs_status_exit_code(bs_status status)
{
    switch (status) {
#define X(name, number, text, code)                                                                          \
    case BS_STATUS_##name: return code;
        BS_STATUS_LIST(X)
#undef X
    }
    return 1;
}

bs_status bs_fail(bs_status status, const char *format, ...)
{
    pthread_mutex_lock(&lock);
    if (kept[0] == 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(kept, sizeof kept, format, arguments);
        va_end(arguments);
        /* One line, whatever a file or a user put into it. */
        for (char *c = kept; *c; c++)
            if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    }
    pthread_mutex_unlock(&lock);
    return status;
}

const char *bs_error_message(void)
{
    return kept;
}

void bs_error_flush(void)
{
    pthread_mutex_lock(&lock);
    if (kept[0]) bs_log_error("%s", kept);
    kept[0] = 0;
    pthread_mutex_unlock(&lock);
}

void bs_error_clear(void)
{
    pthread_mutex_lock(&lock);
    kept[0] = 0;
    pthread_mutex_unlock(&lock);
}
