/* snapshot.h: a sequence's quantized cache on disk: written while it decodes, verified, resumed on any grid.
 *
 * A snapshot is a directory for one sequence (docs/snapshot-format.md): immutable segments of whole 1024-token blocks in
 * the canonical order, a tail, and a manifest that seals them. A token is committed when a manifest that covers it is
 * durable. Whatever fails before leaves the snapshot before in force.
 *
 * Two objects. bs_snapshots is a rank's machinery, one an engine: fingerprint, staging memory, a thread that packs,
 * checksums and writes. bs_snapshot_dir is one directory. One snapshot is under way at a time, of one directory; a batch
 * takes its sequences in turn.
 *
 * Life of one, all on the thread that runs the steps:
 *   bs_snapshot_capture   every rank, between the same two steps: pins sealed pages, copies the tail. Sends nothing
 *   bs_snapshot_commit    rank 0, once the ids are known (a GPU's drawn token is known a step later)
 *   bs_snapshots_poll     every rank at every step boundary: moves on when this rank's thread and the others are ready;
 *                         never waits
 * Decode and prefill go on meanwhile. Ranks agree through exchanges that do not wait (bs_comm_exchange_begin), on a
 * communicator of their own, begun and ended by this thread alone: so MPI_THREAD_FUNNELED is enough, ranks need not poll
 * at the same steps, and nothing of it is part of a plan but "capture now" (BS_PLAN_SNAPSHOT).
 *
 *   phase     every rank's thread                                   rank 0's besides
 *   CREATE    free space                                            need, temporary files, their offsets for all
 *   WRITE     own runs: pack, copy, CRC32C, pwrite; fsync           token ids
 *   CHECK     reads back and checks what rank + 1 wrote             –
 *   SEAL      –                                                     sizes, digests, renames, manifest, collection
 * After each one all ranks know whether all succeeded. On any error: rank 0 removes the temporary files, one line says
 * what and where, and everything goes on as if none had been begun.
 *
 * Errors: BS_STATUS_IO names file and reason, FORMAT what is damaged, MISMATCH the field and both values, RANGE a wrong
 * argument. No function here ends the job; BS_STATUS_COMM alone is fatal to the caller.
 */
#ifndef BS_SNAPSHOT_H
#define BS_SNAPSHOT_H

#include "comm/comm.h"
#include "src/cache/cache.h"
#include "src/model/model.h"

typedef struct bs_snapshots bs_snapshots;
typedef struct bs_snapshot_dir bs_snapshot_dir;

/* ---- the machinery ---------------------------------------------------------------------------------------- */

typedef enum bs_snapshot_verify {
    BS_SNAPSHOT_VERIFY_FULL,   /* every byte written is read back from the file and checked */
    BS_SNAPSHOT_VERIFY_SAMPLE, /* one block in 16, the first and the last */
    BS_SNAPSHOT_VERIFY_NONE
} bs_snapshot_verify;
/* "full", "sample", "none"; BS_STATUS_USAGE names the value. */
bs_status bs_snapshot_verify_parse(const char *text, bs_snapshot_verify *out);

/* The same on all ranks but for pointers. What it points at outlives the machinery. */
typedef struct bs_snapshots_config {
    bs_device *device;
    bs_comm *comm;                /* its grid is set */
    bs_cache *cache;              /* the engine's: pages are pinned in it, sequences staged */
    bs_cache_config cache_config; /* as the cache was opened */
    const bs_model *model;
    const uint8_t *tokenizer_sha256; /* [32], rank 0; NULL: no tokenizer (ids in, ids out) */
    bs_snapshot_verify verify;
    int keep;               /* manifests, ≥ 2; 0: 2 */
    int64_t segment_tokens; /* most of a segment, a multiple of 1024; 0: 65536 */
    const char *cache_dir;  /* for the weights' digests; NULL: ~/.cache/bitshard */
    bool quiet;             /* no lines of progress */
} bs_snapshots_config;

/* What it takes on this rank, for --dry-run. Pure. */
typedef struct bs_snapshots_memory {
    uint64_t device_bytes, host_bytes;
} bs_snapshots_memory;
bs_status bs_snapshots_plan_memory(const bs_device *device, const bs_cache_config *config,
                                   bs_snapshots_memory *out);

/* Takes all memory, starts the thread, computes the model's fingerprint (each rank hashes a part of the weights; cached
 * by dev, inode, size and mtime). Collective, agreed. `progress` as in bs_weights_place, of the bytes hashed. */
bs_status bs_snapshots_open(const bs_snapshots_config *config,
                            void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                            bs_snapshots **out);
/* Behind its directories' bs_snapshot_dir_close. Not collective. NULL is fine. */
void bs_snapshots_close(bs_snapshots *snapshots);

/* ---- a directory ------------------------------------------------------------------------------------------ */

/* What a sequence is besides its cache. Ints and floats only mean what their comments say; a resume uses them all. */
enum { BS_SNAPSHOT_ID_BYTES = 128 };
typedef struct bs_snapshot_state {
    char id[BS_SNAPSHOT_ID_BYTES]; /* the request's, in a batch or service; "" for generate */
    int64_t n_prompt;     /* of the tokens, the first n_prompt are the prompt's, the others the answer's */
    int64_t max_tokens;   /* of the answer */
    int64_t output_bytes; /* length of -o FILE up to the last of these tokens; −1: written elsewhere */
    bs_sampling sampling; /* Philox counts by position and draw: the seed is all of its state */
    bool finished;        /* the answer is complete: there is nothing to go on with */
} bs_snapshot_state;

/* The snapshot in force, the same on all ranks (tokens apart). */
typedef struct bs_snapshot_info {
    int64_t number;   /* of its manifest, from 1 */
    int64_t n_cached; /* tokens whose K and V it holds */
    int64_t
        n_tokens; /* ids it holds: the whole prompt, the answer so far, the drawn one that is in no page */
    const int32_t *tokens; /* [n_tokens] rank 0; NULL elsewhere. Verified */
    bs_snapshot_state state;
    bs_cache_seq_state cache;                   /* as it was captured */
    int heads, seq, stripe_pages, chunk_tokens; /* of the ranks that wrote it: informational */
    bool
        same_grid; /* heads, seq, stripe_pages are this job's: start_s is kept, and the same steps give the same bits */
    int64_t created_s; /* unix time */
    uint64_t bytes;    /* of all its files */
    int n_segments;
} bs_snapshot_info;

enum {
    BS_SNAPSHOT_CREATE = 1, /* makes the directory (0700, with its parents) where there is none */
    BS_SNAPSHOT_LOCK = 2    /* to write: nobody else may; held until close */
};
/* Opens a directory, verifies the newest manifest that is whole, and compares its fingerprint: MISMATCH when the snapshot
 * is of another model, RoPE, tokenizer, KV format, page size or version. An empty directory (or, without CREATE, none) is
 * fine: info is NULL then. What is captured afterwards is a sequence of its own, written from its beginning, unless this
 * snapshot was restored: then it goes on from the pages that were kept. FORMAT when there are manifests and none of them is whole. Collective, agreed. */
bs_status bs_snapshot_dir_open(bs_snapshots *snapshots, const char *path, int flags, bs_snapshot_dir **out);
/* Call bs_snapshots_wait first. Where that failed, one that is under way is given up (its temporary files go) and the machinery
 * can only be closed. NULL is fine. Not collective. */
void bs_snapshot_dir_close(bs_snapshot_dir *dir);
/* What was found when it was opened; snapshots taken since do not change it. NULL: there was none. Valid until the next restore
 * or close. */
const bs_snapshot_info *bs_snapshot_dir_info(const bs_snapshot_dir *dir);

/* Removes all snapshots of a directory, and it, if nothing else is in it. IO when somebody is writing there (it is locked
 * meanwhile; job: bs_comm_job). One that is not there is fine. Not collective: rank 0. */
bs_status bs_snapshot_remove(const char *path, const char *job);

/* ---- writing ---------------------------------------------------------------------------------------------- */

/* Begins a snapshot of sequence `seq` as it stands between two steps: pins its sealed pages that are not on disk, and
 * packs its tail into staging memory, queued on `stream` (the engine's; on a GPU it takes well under a millisecond and
 * nobody waits). The sequence goes on; its pages stay until bs_snapshots_holds says otherwise. Every rank, at the same
 * boundary, the same arguments. RANGE when one is under way, the directory is not locked, or the sequence is not in use:
 * then all ranks say so. */
bs_status bs_snapshot_capture(bs_snapshot_dir *dir, bs_stream *stream, int seq);
/* Rank 0, after the capture: the ids of prompt and answer, n_tokens ≥ the captured length (so the prompt whole, also
 * while it is in prefill), and the state that belongs to them. Copied. RANGE names what is wrong; the snapshot is then
 * given up. */
bs_status bs_snapshot_commit(bs_snapshot_dir *dir, const int32_t *tokens, int64_t n_tokens,
                             const bs_snapshot_state *state);
/* Rank 0, in the place of commit: nobody wants it any more (the request was cancelled). All ranks see it fail, silently. */
void bs_snapshot_give_up(bs_snapshot_dir *dir);

/* How the one that ended last went. */
typedef struct bs_snapshot_result {
    bs_status status;
    char line[512];             /* the error's, on rank 0; "" otherwise */
    int64_t number, n_cached;   /* of the snapshot */
    uint64_t bytes, read_bytes; /* written and read back, all ranks */
    double stall_s;             /* this rank's capture */
    double write_s, check_s,
        total_s; /* first pwrite to last fsync; reading back; capture to manifest: rank 0's clock */
} bs_snapshot_result;

/* Moves on. Every rank, as often as there are steps; any rank may call it more often. *ended (may be NULL): one ended in
 * this call, and *result (may be NULL) says how. Rank 0 has then logged a line. Only BS_STATUS_COMM is returned as an
 * error. */
bs_status bs_snapshots_poll(bs_snapshots *snapshots, bool *ended, bs_snapshot_result *result);
/* Polls until nothing is under way (or at once, when nothing is); on rank 0 one that was captured and never committed is given
 * up. Collective in so far as every rank must call it or go
 * on polling. */
bs_status bs_snapshots_wait(bs_snapshots *snapshots, bool *ended, bs_snapshot_result *result);
/* On this rank one has been begun and has not ended. */
bool bs_snapshots_busy(const bs_snapshots *snapshots);
/* Whether some rank may still read pages of `seq`. Rank 0's scheduler plans no free of it until this says no (it turns
 * when all ranks have written, before the files are sealed). */
bool bs_snapshots_holds(const bs_snapshots *snapshots, int seq);

/* ---- restoring -------------------------------------------------------------------------------------------- */

typedef struct bs_snapshot_restore_args {
    int seq;            /* a slot not in use */
    int64_t n_reserved; /* tokens it may grow to, as in bs_cache_seq_start */
    /* exact: the sequence as it was captured, to go on with the step that would have been next: position n_cached, decode
     * or prefill as info.cache says. Else the rules of DESIGN §4 for a prefix of n_common tokens: keeps the pages
     * p < ⌊n_common/128⌋ − recent that are sealed in it, and the prompt is computed again from *first_pos on. */
    bool exact;
    int64_t n_common;
    int start_s; /* where the sequence begins on another grid (bs_cache_fits); on the same grid it is as it was */
} bs_snapshot_restore_args;

/* Reads and verifies everything it needs, stages it in fresh pages, and publishes the sequence when all ranks have
 * succeeded; otherwise nothing has changed, on any rank. *first_pos: the position of the next token to be computed (0:
 * nothing could be kept; the sequence is then started and empty). Same arguments on all ranks, between steps. Collective,
 * blocking, agreed. RANGE and FULL as bs_cache_seq_start; MISMATCH when an exact state in mid-prompt needs other
 * chunk_tokens; FORMAT, IO name the file. */
bs_status bs_snapshot_restore(bs_snapshot_dir *dir, bs_stream *stream, const bs_snapshot_restore_args *args,
                              int64_t *first_pos);
/* The longest common prefix of the snapshot's ids and these. Rank 0. */
int64_t bs_snapshot_common_prefix(const bs_snapshot_dir *dir, const int32_t *tokens, int64_t n_tokens);

/* Bytes read and how long the last restore took, this rank's: for lines and benches. */
typedef struct bs_snapshot_restore_stats {
    uint64_t bytes;
    double read_s, total_s; /* pages; all of it, manifest, headers and digests included */
} bs_snapshot_restore_stats;
bs_snapshot_restore_stats bs_snapshot_last_restore(const bs_snapshot_dir *dir);

#endif
