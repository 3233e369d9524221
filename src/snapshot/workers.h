/* workers.h: a few threads that do jobs by slot: each slot has one job at most, and who gave it waits for it. Private to
 * src/snapshot. */
#ifndef BS_SNAPSHOT_WORKERS_H
#define BS_SNAPSHOT_WORKERS_H

#include "src/base/status.h"

typedef struct bs_snap_workers bs_snap_workers;
/* Its error lines are kept and told by wait. */
typedef bs_status bs_snap_work(void *context, int slot);

bs_status bs_snap_workers_open(int n_threads, int n_slots, bs_snap_workers **out);
/* Waits for what runs. NULL is fine. */
void bs_snap_workers_close(bs_snap_workers *workers);
/* The slot's job is over: waited for. */
void bs_snap_workers_start(bs_snap_workers *workers, int slot, bs_snap_work *work, void *context);
/* The status of the slot's last job, with its line; OK at once when there was none. Then there is none. */
bs_status bs_snap_workers_wait(bs_snap_workers *workers, int slot);

#endif
