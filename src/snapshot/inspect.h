/* inspect.h: snapshot directories as tools see them: without a model, a cache or other ranks.
 *
 * Nothing here is collective. A directory that a job writes to may be looked at meanwhile: files never change once they have
 * their name. Errors as in snapshot.h. `number` picks one snapshot; 0: the newest that is whole.
 */
#ifndef BS_SNAPSHOT_INSPECT_H
#define BS_SNAPSHOT_INSPECT_H

#include "src/base/status.h"

#include <stdint.h>

typedef struct bs_snapshot_item {
    int64_t number;
    bs_status status; /* OK: manifest, headers, checksum tables and ids are right; pages are not looked at */
    char line[512];   /* what is wrong, or "" */
    /* Known where the manifest could be read. */
    bool readable;
    int64_t created_s, n_cached, n_tokens, n_prompt;
    bool finished;
    uint64_t bytes; /* of its files, shared ones too */
    int n_segments, heads, seq;
    char id[128], kv[80], architecture[80];
} bs_snapshot_item;
/* All snapshots of a directory by number; free() the array. IO when there is no such directory. */
bs_status bs_snapshot_list(const char *path, bs_snapshot_item **items, int *n);
/* The manifest's text; free() it. */
bs_status bs_snapshot_show(const char *path, int64_t number, char **json);

typedef struct bs_snapshot_checked {
    int64_t number, n_pages, n_cached; /* pages of one (layer, KV head) */
    uint64_t bytes;
} bs_snapshot_checked;
/* Reads every byte and checks it against the manifest. FORMAT or IO names the first damage. */
bs_status bs_snapshot_check(const char *path, int64_t number,
                            void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                            bs_snapshot_checked *out);
/* Removes what the newest `keep` snapshots do not need; takes the directory's lock. dry: only counts. */
bs_status bs_snapshot_gc(const char *path, int keep, bool dry, const char *job, int *n_removed,
                         uint64_t *bytes_removed);
/* One HDF5 file of all its pages, checked on the way: the layout of a tail that begins at page 0 (docs/snapshot-format.md).
 * IO when the file exists. */
bs_status bs_snapshot_export(const char *path, int64_t number, const char *file,
                             void (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                             bs_snapshot_checked *out);
/* Lets the page cache go of a directory's files, as far as it will: for benches. */
bs_status bs_snapshot_drop_cache(const char *path);

#endif
