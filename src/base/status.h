/* status.h: the one error convention.
 *
 * Every function that can fail returns a bs_status; 0 is success, always, and outputs are set only on success.
 * The first function that knows what went wrong calls bs_fail() with one full line (the field and the value);
 * everybody above passes the status on.
 *
 * The line is not printed at once: it is kept until bs_error_flush() (main, at exit) or until bs_comm_agree()
 * (comm/comm.h) has found out which ranks failed and lets one of them speak. So a bad option gives one line on
 * eight ranks, and a file missing on rank 3 alone gives one line that names rank 3.
 */
#ifndef BS_STATUS_H
#define BS_STATUS_H

#include <stdbool.h>

/* X(name, number, text, exit code of the program) */
#define BS_STATUS_LIST(X)                                                                                    \
    X(OK, 0, "ok", 0)                                                                                        \
    X(USAGE, 1, "wrong usage", 2)                                                                            \
    X(NOMEM, 2, "out of memory", 1)                                                                          \
    X(IO, 3, "input/output error", 1)                                                                        \
    X(FORMAT, 4, "malformed data", 1)                                                                        \
    X(UNSUPPORTED, 5, "not supported", 1)                                                                    \
    X(MISMATCH, 6, "does not match", 1)                                                                      \
    X(RANGE, 7, "out of range", 1)                                                                           \
    X(NUMERIC, 8, "NaN or infinity", 1)                                                                      \
    X(COMM, 9, "communication failed", 1)                                                                    \
    X(FULL, 10, "no space left in the cache", 1)                                                             \
    X(STOPPED, 11, "stopped early", 85)                                                                      \
    X(INTERNAL, 12, "internal error", 1)                                                                     \
    X(INTERRUPTED, 13, "interrupted", 1)

typedef enum bs_status {
#define X(name, number, text, code) BS_STATUS_##name = number,
    BS_STATUS_LIST(X)
#undef X
} bs_status;

/* Short text of a status, never NULL. */
const char *bs_status_text(bs_status status);
/* Exit code of the program that ends with this status: 0 done, 1 failed, 2 wrong usage, 85 stopped early with a
 * good snapshot. */
int bs_status_exit_code(bs_status status);

/* Keeps one line about the error (the first one of this process wins until it is flushed or cleared) and returns
 * status, so that callers write `return bs_fail(BS_STATUS_RANGE, "--top-k %d: must be 0 … %d", k, max);`. No
 * newline in the text. Thread safe. */
__attribute__((format(printf, 2, 3))) bs_status bs_fail(bs_status status, const char *format, ...);
/* Text of the kept line or "" if none. Valid until the next bs_fail, flush or clear. */
const char *bs_error_message(void);
/* Prints the kept line to stderr, if there is one, and forgets it. */
void bs_error_flush(void);
/* Forgets the kept line (another rank speaks for all, or the caller deals with the error). */
void bs_error_clear(void);

/* From now on this thread's lines are kept in `text` (the first one; "" at once), not in the process's: for threads whose
 * errors another thread deals with later, and for what may fail. NULL: in the process's again. Gives what was before, for
 * bs_error_divert_back. */
typedef struct bs_error_diversion {
    char *text; /* NULL: none */
    int bytes;
} bs_error_diversion;
bs_error_diversion bs_error_divert(char *text, int bytes);
void bs_error_divert_back(bs_error_diversion before);

/* Passes an error on: BS_TRY(bs_foo(…)); */
#define BS_TRY(call)                                                                                         \
    do {                                                                                                     \
        bs_status bs_try_status_ = (call);                                                                   \
        if (bs_try_status_ != BS_STATUS_OK) return bs_try_status_;                                           \
    } while (0)
/* The same for functions with an undo ladder: sets `status` and jumps. */
#define BS_TRY_GOTO(call, label)                                                                             \
    do {                                                                                                     \
        status = (call);                                                                                     \
        if (status != BS_STATUS_OK) goto label;                                                              \
    } while (0)

#endif
