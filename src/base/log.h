/* log.h: lines on stderr. Tokens go to stdout; everything else comes through here.
 *
 * A line is "bitshard: …" on one rank and "bitshard[r]: …" when a job has several and this rank is not 0. Info
 * lines are printed by rank 0 only; warnings and errors by whoever has them.
 */
#ifndef BS_LOG_H
#define BS_LOG_H

typedef enum bs_log_level { BS_LOG_QUIET, BS_LOG_INFO, BS_LOG_DEBUG } bs_log_level;

/* Names this process in its lines. Before the call: rank 0 of 1. */
void bs_log_set_rank(int rank, int size);
void bs_log_set_level(bs_log_level level);
bs_log_level bs_log_get_level(void);
/* Info: rank 0 only, not when quiet. Debug: rank 0 only, at BS_LOG_DEBUG. Warning: always, every rank. */
__attribute__((format(printf, 1, 2))) void bs_log_info(const char *format, ...);
__attribute__((format(printf, 1, 2))) void bs_log_debug(const char *format, ...);
__attribute__((format(printf, 1, 2))) void bs_log_warn(const char *format, ...);
/* One error line, at once. For threads that cannot return a status (the watchdog) and bs_error_flush. */
__attribute__((format(printf, 1, 2))) void bs_log_error(const char *format, ...);

#endif
