/* stop.h: SIGINT and SIGTERM, for commands that end between two steps. */
#ifndef BS_CLI_STOP_H
#define BS_CLI_STOP_H

/* From now on the first SIGINT or SIGTERM is only remembered (the launcher sends it to all ranks; rank 0's counts), a
 * second one ends the process. */
void bs_cli_catch_stop(void);
/* The signal that came, or 0. */
int bs_cli_stop_signal(void);
/* Its name, for the line that says why the command ended. */
const char *bs_cli_stop_name(void);

#endif
