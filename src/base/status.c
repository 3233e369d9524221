/* status.c: status texts and the kept error line. */
#include "src/base/status.h"
#include "src/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char kept[1024];
static _Thread_local bs_error_diversion diverted;

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

/* One line, whatever a file or a user put into it. The first one wins. */
static void keep(char *text, size_t bytes, const char *format, va_list arguments)
{
    if (text[0] != 0) return;
    vsnprintf(text, bytes, format, arguments);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
}

bs_status bs_fail(bs_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (diverted.text) {
        keep(diverted.text, (size_t)diverted.bytes, format, arguments);
    } else {
        pthread_mutex_lock(&lock);
        keep(kept, sizeof kept, format, arguments);
        pthread_mutex_unlock(&lock);
    }
    va_end(arguments);
    return status;
}

bs_error_diversion bs_error_divert(char *text, int bytes)
{
    const bs_error_diversion before = diverted;
    diverted = (bs_error_diversion){text, bytes};
    if (text) text[0] = 0;
    return before;
}

void bs_error_divert_back(bs_error_diversion before)
{
    diverted = before;
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
