/* job.h: a rank's machinery and the snapshot that is under way. Private to src/snapshot.
 *
 * The steps' thread owns everything but what a task uses while it runs: between start_task and the moment that the thread
 * says done, the job's files, staging and task fields are the thread's.
 */
#ifndef BS_SNAPSHOT_JOB_H
#define BS_SNAPSHOT_JOB_H

#include "src/snapshot/snapshot_private.h"

#include <pthread.h>

typedef enum bs_snap_phase {
    BS_SNAP_IDLE,
    BS_SNAP_CREATE,
    BS_SNAP_WRITE,
    BS_SNAP_CHECK,
    BS_SNAP_SEAL,
    BS_SNAP_CLEAN /* after an error: rank 0 removes what was begun; no exchange follows */
} bs_snap_phase;

/* What ranks tell each other after each phase. */
typedef struct bs_snap_word {
    int32_t status, silent; /* silent: given up on purpose, no line */
    uint64_t bytes;         /* written, or read back */
    char line[BS_SNAP_LINE_BYTES];
} bs_snap_word;

/* What rank 0 tells all after CREATE. */
typedef struct bs_snap_offer {
    struct {
        char name[BS_SNAP_NAME_BYTES];
        uint64_t bytes, offset[BS_SNAP_N_PARTS], part_bytes[BS_SNAP_N_PARTS];
        int64_t n_tokens;
    } file[BS_SNAP_MAX_NEW];
} bs_snap_offer;

typedef struct bs_snap_job {
    bs_snapshot_dir *dir;
    bs_snap_phase phase;
    int seq;
    bool holds; /* some rank may still read its pages */
    bs_cache_seq_state state;
    /* Ids and what belongs to them: rank 0, once committed. */
    bool committed, given_up;
    bool is_sealed;  /* its manifest is durable: nothing takes it back any more */
    int32_t *tokens; /* [capacity] */
    int64_t n_tokens, tokens_capacity;
    bs_snapshot_state request;
    int64_t number;

    int n_kept; /* segments of the snapshot before that stay */
    int n_files;
    bs_snap_file files[BS_SNAP_MAX_NEW];

    bs_cache_page_ref *pinned; /* [max_pages] sealed pages to be written, this rank's */
    int64_t n_pinned;
    bool is_pinned;
    bs_cache_page_ref *captured; /* pages of the tail in staging memory; slot counts them */
    int64_t n_captured;

    double started_s, stall_s, write_from_s, write_s, check_s; /* rank 0's clock; started: the capture */
    uint64_t bytes, read_bytes;                                /* all ranks */
} bs_snap_job;

struct bs_snapshots {
    bs_snapshots_config config;
    const bs_grid *grid;
    int rank, n_ranks;
    bs_snap_shape shape;
    bs_snap_fingerprint fingerprint;
    bs_snap_heads heads;
    bs_snap_staging staging;
    bs_buffer *tail; /* [max_captured] pages of f16, canonical */
    int64_t max_captured, max_pages;
    bs_kv_page_ref *tail_refs; /* [max_captured · heads · layers] */
    bs_timer *captured_mark;   /* stopped on the engine's stream behind the capture */

    bs_snap_job job;
    bs_snapshot_result result; /* of the one that ended last */

    /* The thread: does job.phase while task_done is false, and waits else. */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, ended;
    bool has_thread, task_done;
    atomic_bool quit; /* stops a task as well */
    bs_status task_status;
    char task_line[BS_SNAP_LINE_BYTES];
    bs_snap_progress progress;
    bs_snapshot_dir *locked; /* directories whose lock is kept fresh */
    double touched_s;        /* when that was done last */

    /* The exchange. */
    bool exchanging;
    bs_snap_word word, *words; /* [n_ranks] */
    bs_snap_offer *offer;
};

struct bs_snapshot_dir {
    bs_snapshots *snapshots;
    bs_snap_fs fs;     /* fd −1: there is no such directory */
    bs_snap_lock lock; /* rank 0's */
    bool may_write;
    bool committed_here; /* since it was read: of those files only rank 0 knows the digests */
    int64_t
        n_ours; /* pages 0 … n_ours − 1 of the snapshot in force are the sequence's that is written here */
    int64_t last_number; /* of any manifest here, and of any attempt */
    bs_snapshot_dir *next_locked;
    /* The snapshot in force; n_files 0: none. */
    bs_snap_manifest manifest;
    int32_t *tokens; /* rank 0: of the one that was found */
    bs_snapshot_info info;
    bool has_info;
    bs_snapshot_restore_stats restore;
};

/* Gives the thread a task, and enters its phase; whether it is done, after waiting so long at most. */
void bs_snap_start_task(bs_snapshots *s, bs_snap_phase phase);
bool bs_snap_is_task_done(bs_snapshots *s, double wait_ms);
/* A phase that is over without the thread, and failed: all ranks will see it fail. */
void bs_snap_refuse(bs_snapshots *s, bs_snap_phase phase, bs_status status, const char *line);
/* Ends the thread for good, and gives up what is under way. */
void bs_snap_stop(bs_snapshots *s);
/* Gives up the captured pages, if that has not been done. */
void bs_snap_unpin(bs_snapshots *s);
/* A task on the thread: what it does in a phase (commit.c). Lines go where the thread diverts them. */
bs_status bs_snap_run_phase(bs_snapshots *s, bs_snap_phase phase);
/* The manifest of the job's snapshot: kept segments, new files. files: malloc'ed. Rank 0. */
bs_status bs_snap_job_manifest(const bs_snapshots *s, bs_snap_manifest *out);
/* Finds the snapshot in force, on all ranks. Collective, agreed. */
bs_status bs_snap_dir_load(bs_snapshot_dir *dir);
static inline bool bs_snap_leader(const bs_snapshots *s)
{
    return s->rank == 0;
}

#endif
