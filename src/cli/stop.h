/* stop.h: signals, for commands that end between two steps: remembered until the command looks. The launcher sends them to all
 * ranks; rank 0's counts. */
#ifndef BS_CLI_STOP_H
#define BS_CLI_STOP_H

#include <stdbool.h>

/* From now on the first SIGINT or SIGTERM asks to stop, a second one ends the process. */
void bs_cli_catch_stop(void);
/* For a run that takes a last snapshot. SIGTERM asks to stop, however often it comes: batch systems send several, and the
 * snapshot is on its way. A second SIGINT ends the process: it comes from somebody who does not want to wait. SIGUSR2 is SIGTERM
 * for job scripts: mpirun gives its ranks a second behind a SIGTERM, and srun none at all, but both pass SIGUSR2 on and wait.
 * SIGUSR1 asks for a snapshot. */
void bs_cli_catch_stop_and_snapshot(void);
/* The signal that asks to stop, or 0. */
int bs_cli_stop_signal(void);
/* Its name, for the line that says why the command ended. */
const char *bs_cli_stop_name(void);
/* SIGUSR1 has come since the last call. */
bool bs_cli_snapshot_asked(void);

#endif
