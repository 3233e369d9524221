/* snapshot_private.h: what the files of src/snapshot/ share: the format's numbers, its geometry, the manifest.
 *
 *   shape.c           geometry: which pages, in which parts of which file, at which offset
 *   segment_create.c  the HDF5 container: making one, and checking that one is what we make (alone includes hdf5.h)
 *   pages.c           a rank's pages between the cache and a file's parts: pack, copy, CRC32C, and back
 *   staging.c         memory and threads that pages go through;  workers.c  such threads
 *   manifest.c        manifest to JSON, and back with every number checked
 *   fingerprint.c     what a snapshot is bound to;  weights.c  digests of the weights
 *   dirs.c            file systems: the one place that opens, syncs, renames;  lock.c  one writer a directory
 *   snapshots.c       opening, the thread;  capture.c  a snapshot begins;  phases.c  how it goes on, with all ranks
 *   commit.c          what the thread does in each phase
 *   load.c            finding and verifying the snapshot in force;  dir.c  the same for all ranks
 *   restore.c         back into a cache
 *   gc.c              which files may go;  remove.c  all of them
 *   inspect.c         whole directories without a model: list, verify;  export.c  one file for other programs
 */
#ifndef BS_SNAPSHOT_PRIVATE_H
#define BS_SNAPSHOT_PRIVATE_H

#include "src/base/sha256.h"
#include "src/cache/format.h"
#include "src/snapshot/inspect.h"
#include "src/snapshot/snapshot.h"
#include "src/snapshot/workers.h"

#include <stdatomic.h>

/* ---- the format's numbers ---------------------------------------------------------------------------------- */

enum {
    BS_SNAP_VERSION = 1,
    BS_SNAP_BLOCK_PAGES = BS_BLOCK_TOKENS / BS_PAGE_TOKENS,
    BS_SNAP_ALIGN = 1 << 20, /* of large datasets: one Lustre stripe */
    BS_SNAP_MAX_SEGMENTS =
        64, /* of a manifest of up to 2M tokens: small ones are rewritten into whole ones */
    BS_SNAP_READ_SEGMENTS = 65536, /* the most that a reader accepts */
    BS_SNAP_NAME_BYTES = 96,
    BS_SNAP_MANIFEST_NAME = 112,
    BS_SNAP_PATH_BYTES = 1200, /* of lines: a directory, a name */
    BS_SNAP_LINE_BYTES = 512,
    BS_SNAP_MAX_MANIFEST = 16 << 20,                /* bytes that a reader accepts */
    BS_SNAP_MAX_NEW = BS_SNAP_MAX_SEGMENTS / 2 + 2, /* files of one commit */
    BS_SNAP_SEGMENT_TOKENS = 65536
};
#define BS_SNAP_TMP "tmp-"

/* Datasets of a file; those without pages are left out. Pages in canonical order (docs/kv-format.md). */
#define BS_SNAP_PART_LIST(X)                                                                                 \
    X(K, "k")                                                                                                \
    X(K_META, "k_meta")                                                                                      \
    X(V, "v")                                                                                                \
    X(V_META, "v_meta")                                                                                      \
    X(CRC, "crc")         /* CRC-32C of each page of each (head, layer) over k, k_meta, v, v_meta */         \
    X(F16, "f16")         /* pages kept in f16 by a quantized format: sink, recent, open */                  \
    X(F16_CRC, "f16_crc") /* the same of these */                                                            \
    X(TOKENS, "tokens")
typedef enum bs_snap_part {
#define X(name, text) BS_SNAP_##name,
    BS_SNAP_PART_LIST(X)
#undef X
        BS_SNAP_N_PARTS
} bs_snap_part;
extern const char *const bs_snap_part_name[BS_SNAP_N_PARTS];

/* ---- geometry (shape.c), pure ------------------------------------------------------------------------------ */

/* The whole model's. */
typedef struct bs_snap_shape {
    int n_layers, n_kv_heads, head_dim;
    bs_kv_format format;
    int n_sink; /* 0 for f16 */
    bool is_f16;
    uint64_t page
        [4]; /* bytes of a page of one (head, layer) in K, K_META, V, V_META; an f16 format has no metas */
    uint64_t f16_page; /* K and V */
} bs_snap_shape;
bs_snap_shape bs_snap_shape_of(int n_layers, int n_kv_heads, int head_dim, const bs_kv_format *format);

typedef struct bs_snap_extent {
    uint64_t offset, bytes; /* bytes 0: not there */
} bs_snap_extent;

/* A segment or a tail. A segment's quantized parts hold whole blocks, sink pages' places being zero; a tail's only the
 * sealed pages of the last partial block, in groups of one page instead of eight. */
typedef struct bs_snap_file {
    char name[BS_SNAP_NAME_BYTES];
    bool is_tail, is_export;
    int64_t first_page, end_page; /* of the sequence: that this file covers */
    int64_t first_quant, n_quant; /* pages in K … V_META; a segment: all of its pages */
    int64_t n_f16_sink, first_f16,
        n_f16; /* pages in F16: the sink ones from first_page on, then from first_f16 on */
    int64_t first_token, n_tokens;
    bs_snap_extent part[BS_SNAP_N_PARTS];
    uint64_t bytes;
    uint8_t header_sha256[32]; /* of all bytes outside of the parts */
    uint8_t sums_sha256[32];   /* of CRC, then F16_CRC */
    uint8_t chain_sha256[32];  /* of the file's before it (zeros), then TOKENS */
} bs_snap_file;

/* Fills all but name, offsets, and digests. A segment of pages first … end − 1, whole blocks. */
void bs_snap_segment_of(const bs_snap_shape *shape, int64_t first_page, int64_t end_page, bs_snap_file *out);
/* The tail behind first_page of a sequence in this state, which knows n_tokens ids. */
void bs_snap_tail_of(const bs_snap_shape *shape, int64_t first_page, const bs_cache_seq_state *state,
                     int64_t n_tokens, bs_snap_file *out);
/* Pages that a group of the part holds: 8, or 1 in F16 and in tails. */
static inline int bs_snap_group_pages(const bs_snap_file *file, bool f16)
{
    return f16 || file->is_tail ? 1 : BS_SNAP_BLOCK_PAGES;
}
/* Sealed pages of a state (the cache's own rule), and where its segments end: whole blocks of them. */
int64_t bs_snap_sealed_pages(const bs_snap_shape *shape, const bs_cache_seq_state *state);
int64_t bs_snap_segments_end(const bs_snap_shape *shape, const bs_cache_seq_state *state);
/* Whether page of the file lies in F16, and its number there or in the quantized parts. */
bool bs_snap_find_page(const bs_snap_file *file, int64_t page, int64_t *index);
/* Dimensions of a dataset, slowest first; the number of them, 1 to 6. */
int bs_snap_part_dims(const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_part part,
                      uint64_t dims[6]);
/* Where the page `index` of (head, layer) begins in the part, relative to the part; and its bytes there. */
uint64_t bs_snap_page_at(const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_part part,
                         int64_t index, int head, int layer);
uint64_t bs_snap_page_bytes(const bs_snap_shape *shape, bs_snap_part part);
/* New files for a sequence that had `n_old` segments: how many of those stay, and up to BS_SNAP_MAX_NEW new ones, the
 * tail last. n_new counts them. */
void bs_snap_plan_files(const bs_snap_shape *shape, const bs_snap_file *old, int n_old,
                        const bs_cache_seq_state *state, int64_t n_tokens, int64_t segment_tokens,
                        int *n_kept, bs_snap_file *files, int *n_new);

/* ---- fingerprint ------------------------------------------------------------------------------------------- */

/* X(name): what must be equal, in the order in which a difference is named. */
#define BS_SNAP_FIELD_LIST(X)                                                                                \
    X(architecture)                                                                                          \
    X(n_layers)                                                                                              \
    X(n_hidden)                                                                                              \
    X(n_heads)                                                                                               \
    X(n_kv_heads)                                                                                            \
    X(head_dim)                                                                                              \
    X(n_ffn)                                                                                                 \
    X(n_vocab)                                                                                               \
    X(rms_eps)                                                                                               \
    X(attn_scale)                                                                                            \
    X(layers_sha256)                                                                                         \
    X(rope_kind)                                                                                             \
    X(rope_theta)                                                                                            \
    X(rope_dims)                                                                                             \
    X(rope_interleaved)                                                                                      \
    X(rope_attention_factor)                                                                                 \
    X(rope_sha256)                                                                                           \
    X(tokenizer_sha256)                                                                                      \
    X(kv)                                                                                                    \
    X(v_encoder)                                                                                             \
    X(page_tokens)                                                                                           \
    X(block_tokens)                                                                                          \
    X(weights_sha256)
typedef enum bs_snap_field {
#define X(name) BS_SNAP_FIELD_##name,
    BS_SNAP_FIELD_LIST(X)
#undef X
        BS_SNAP_N_FIELDS
} bs_snap_field;
extern const char *const bs_snap_field_name[BS_SNAP_N_FIELDS];
enum { BS_SNAP_FIELD_BYTES = 80 };
/* All values are texts: numbers in decimal, floats as %.17g, digests in hex, "" for no tokenizer. */
typedef struct bs_snap_fingerprint {
    char value[BS_SNAP_N_FIELDS][BS_SNAP_FIELD_BYTES];
} bs_snap_fingerprint;
/* MISMATCH names the first field that differs, and both values. `where`: the snapshot, for the line. */
bs_status bs_snap_fingerprint_compare(const bs_snap_fingerprint *snapshot, const bs_snap_fingerprint *ours,
                                      const char *where);
/* The geometry that a fingerprint names; FORMAT when it does not. */
bs_status bs_snap_fingerprint_shape(const bs_snap_fingerprint *fingerprint, const char *where,
                                    bs_snap_shape *out);
/* Everything but the weights. Pure. */
void bs_snap_fingerprint_fill(const bs_model_desc *desc, const bs_kv_format *format,
                              const uint8_t *tokenizer_sha256, bs_snap_fingerprint *out);
/* The weights' digest, divided over the ranks. Collective, agreed. */
bs_status bs_snap_weights_sha256(bs_comm *comm, const bs_model *model, const char *cache_dir,
                                 void (*progress)(void *context, uint64_t done, uint64_t total),
                                 void *context, uint8_t out[32]);

/* ---- manifest ---------------------------------------------------------------------------------------------- */

typedef struct bs_snap_manifest {
    int64_t number, parent, created_s; /* parent 0: none */
    char writer[64];
    bs_snap_fingerprint fingerprint;
    bs_snap_shape shape; /* as the fingerprint says */
    bs_cache_seq_state cache;
    bs_snapshot_state state;
    int64_t n_tokens;
    int heads, seq, stripe_pages, chunk_tokens;
    int n_files; /* segments, then the tail */
    bs_snap_file *files;
} bs_snap_manifest;
/* JSON text, malloc'ed, and its digest. */
bs_status bs_snap_manifest_write(const bs_snap_manifest *manifest, char **text, size_t *bytes,
                                 uint8_t sha256[32]);
/* Every number is checked, and the files' geometry against what shape.c says it must be. `where` for lines. */
bs_status bs_snap_manifest_read(const char *text, size_t bytes, const char *where, bs_snap_manifest *out);
void bs_snap_manifest_free(bs_snap_manifest *manifest);
/* "manifest-00000012-<sha256>.json", and back; false: not such a name. */
void bs_snap_manifest_name(int64_t number, const uint8_t sha256[32], char name[BS_SNAP_MANIFEST_NAME]);
bool bs_snap_manifest_parse_name(const char *name, int64_t *number, uint8_t sha256[32]);

/* ---- file systems (dirs.c, lock.c) ------------------------------------------------------------------------- */

/* An opened directory of ours: own uid, nobody else may write. */
typedef struct bs_snap_fs {
    int fd; /* −1: closed */
    char path[1024];
} bs_snap_fs;
/* create: with its parents, 0700. *found false: there is none (and create is false). */
bs_status bs_snap_fs_open(const char *path, bool create, bs_snap_fs *out, bool *found);
/* fs->path, whoever else may write there: for a file that goes elsewhere. */
bs_status bs_snap_fs_open_any(bs_snap_fs *fs);
void bs_snap_fs_close(bs_snap_fs *fs);
/* Names in it, sorted, malloc'ed one by one and the array too; n of them. Not . and .. */
bs_status bs_snap_fs_list(const bs_snap_fs *fs, char ***names, int *n);
void bs_snap_fs_free_list(char **names, int n);
/* An opened file, which close(fd) closes, and how lines name it. */
typedef struct bs_snap_handle {
    int fd;
    char path[BS_SNAP_PATH_BYTES]; /* directory/name */
} bs_snap_handle;
/* A new file, 0600, O_EXCL. */
bs_status bs_snap_fs_create(const bs_snap_fs *fs, const char *name, bs_snap_handle *out);
/* An existing one: regular, own, nobody else may write, never through a symlink. write: O_WRONLY, else to read.
 * *bytes (may be NULL): its size. */
bs_status bs_snap_fs_open_file(const bs_snap_fs *fs, const char *name, bool write, bs_snap_handle *out,
                               uint64_t *bytes);
/* Its whole content, malloc'ed, with a 0 behind it; at most `most` bytes. */
bs_status bs_snap_fs_read_file(const bs_snap_fs *fs, const char *name, size_t most, char **text,
                               size_t *bytes);
/* Size of what has this name, a symlink's own. *found false: nothing has, or a directory. */
bs_status bs_snap_fs_file_bytes(const bs_snap_fs *fs, const char *name, bool *found, uint64_t *bytes);
/* Everything or an error. EINTR and short counts are dealt with; a short file is FORMAT. */
bs_status bs_snap_fs_pwrite(const bs_snap_handle *file, const void *data, size_t bytes, uint64_t offset);
bs_status bs_snap_fs_pread(const bs_snap_handle *file, void *data, size_t bytes, uint64_t offset);
/* An error is final: nobody syncs this file again. */
bs_status bs_snap_fs_sync(const bs_snap_handle *file);
/* Starts writing back what was written there, and lets go of clean pages: wishes, no status. */
void bs_snap_fs_start_writeback(int fd, uint64_t offset, uint64_t bytes);
void bs_snap_fs_drop_cache(int fd);
/* Takes the space, so that a full disk is found now. A file system that cannot is fine. */
bs_status bs_snap_fs_allocate(const bs_snap_handle *file, uint64_t bytes);
bs_status bs_snap_fs_rename(const bs_snap_fs *fs, const char *from, const char *to);
bs_status bs_snap_fs_sync_dir(const bs_snap_fs *fs);
/* A file that is not there is fine. */
bs_status bs_snap_fs_unlink(const bs_snap_fs *fs, const char *name);
/* FULL… as IO: "4.25 GiB are needed, 1.1 GiB are free". */
bs_status bs_snap_fs_check_space(const bs_snap_fs *fs, uint64_t bytes);
/* 16 random hex digits. */
bs_status bs_snap_random_hex(char out[17]);

typedef struct bs_snap_lock {
    int fd; /* −1: not held */
} bs_snap_lock;
/* One writer a directory: the file "lock", O_EXCL, with host, pid, its start, job. Takes over one whose owner is known to
 * be gone. BS_STATUS_IO names the owner. */
bs_status bs_snap_lock_take(const bs_snap_fs *fs, const char *job, bs_snap_lock *out);
/* So that others see it alive: now and then. */
void bs_snap_lock_touch(const bs_snap_lock *lock);
void bs_snap_lock_release(const bs_snap_fs *fs, bs_snap_lock *lock);

/* ---- the container (segment_create.c) ---------------------------------------------------------------------- */

/* Makes the empty file fs/name (which must not exist) of this geometry; fills offsets and bytes. Not thread safe with
 * itself: a lock inside. */
bs_status bs_snap_container_create(const bs_snap_fs *fs, const char *name, const bs_snap_shape *shape,
                                   bs_snap_file *file);
/* Whether an opened file, whose header's digest has been checked, has exactly these datasets: contiguous, no filter, no
 * external file, type, dimensions and offset as in the manifest, hard links only. */
bs_status bs_snap_container_check(const bs_snap_handle *handle, const bs_snap_shape *shape,
                                  const bs_snap_file *file);
/* Digest of the bytes outside of the parts. */
bs_status bs_snap_header_sha256(const bs_snap_handle *handle, const bs_snap_file *file, uint8_t out[32]);

/* ---- pages (pages.c) --------------------------------------------------------------------------------------- */

/* KV heads of the model. */
typedef struct bs_snap_heads {
    int first, n;
} bs_snap_heads;

/* Memory through which pages go, in slots of one chunk, and threads that read, write and sum them (staging.c). */
typedef struct bs_snap_staging {
    bs_device *device; /* NULL: no cache, only files */
    bs_stream *stream;
    const bs_kv_pools *pools;
    int n_slots;
    size_t slot_bytes;
    char *host;
    bs_buffer *on_device; /* NULL on a CPU, whose pages are packed into host memory at once */
    bs_kv_page_ref *refs; /* [max_refs] pages of a chunk */
    uint32_t *sums;       /* [n_slots, max_refs] */
    size_t max_refs;
    bs_snap_workers *workers;
} bs_snap_staging;
/* Bytes of all its slots. device may be NULL. Pure. */
size_t bs_snap_staging_bytes(const bs_device *device, const bs_snap_shape *shape);
bs_status bs_snap_staging_open(bs_device *device, const bs_kv_pools *pools, const bs_snap_shape *shape,
                               bs_snap_staging *out);
void bs_snap_staging_close(bs_snap_staging *staging);
static inline char *bs_snap_slot(const bs_snap_staging *s, int slot)
{
    return s->host + (size_t)slot * s->slot_bytes;
}

/* Where pages are taken from, or go to. */
typedef struct bs_snap_source {
    const bs_cache_page_ref *pages; /* ascending; of these, those that the file covers */
    int64_t n;
    const bs_buffer *captured; /* not NULL: `slot` counts pages in it, [slot][head][layer][K, V] of f16 */
} bs_snap_source;

/* Some units of a group: (head, layer) pairs of the rank, head-major, which lie behind each other in a file. */
typedef struct bs_snap_chunk {
    bool f16;
    int64_t group;
    int first_unit, n_units;
    uint32_t mask;  /* pages of the group that are this rank's */
    uint32_t zeros; /* of these, places of sink pages */
    uint32_t slot[BS_SNAP_BLOCK_PAGES];
    bool quantized; /* the pool of the slots */
} bs_snap_chunk;
/* Goes through a file's chunks; zero it but for the first four. */
typedef struct bs_snap_walk {
    const bs_snap_shape *shape;
    const bs_snap_file *file;
    bs_snap_heads heads;
    size_t chunk_bytes;
    bool f16; /* the part it is in */
    int64_t next;
    bs_snap_chunk chunk;
} bs_snap_walk;
bool bs_snap_walk_next(bs_snap_walk *walk, const bs_snap_source *source, bs_snap_chunk *out);

/* What may stop a thread, and what it has done. */
typedef struct bs_snap_progress {
    const atomic_bool *cancel; /* or NULL: INTERRUPTED at the next chunk */
    uint64_t bytes;            /* grows */
} bs_snap_progress;

/* Writes a rank's pages of one file, with their checksums. */
bs_status bs_snap_write_pages(bs_snap_staging *staging, const bs_snap_handle *handle,
                              const bs_snap_shape *shape, const bs_snap_file *file, bs_snap_heads heads,
                              const bs_snap_source *source, bs_snap_progress *progress);

/* A file to be read, and what is done with its chunks. */
typedef struct bs_snap_reading {
    const bs_snap_handle *handle;
    const bs_snap_shape *shape;
    const bs_snap_file *file;
    bs_snap_heads heads;
    const bs_snap_source *source;
    const uint32_t *sums; /* as bs_snap_open_verified gives them */
    /* May be NULL: every chunk. */
    bool (*wants)(void *context, const bs_snap_file *file, const bs_snap_chunk *chunk);
    /* A chunk that is right, in order; may be NULL. Its slot's memory is free again when the staging's stream has done
     * what this has queued. */
    bs_status (*take)(void *context, const bs_snap_file *file, const bs_snap_chunk *chunk, int slot);
    void *context;
} bs_snap_reading;
/* Reads chunks, ahead and by several threads, and compares this rank's pages with their sums. FORMAT names page, head and
 * layer. */
bs_status bs_snap_read_pages(bs_snap_staging *staging, const bs_snap_reading *reading,
                             bs_snap_progress *progress);

/* Chunks in memory (pages.c): their size; from and to the file; from and to the cache, queued on the staging's stream. */
size_t bs_snap_chunk_size(const bs_snap_shape *shape, const bs_snap_file *file, const bs_snap_chunk *chunk);
bs_status bs_snap_read_chunk(const bs_snap_reading *reading, const bs_snap_chunk *chunk, char *buffer);
bs_status bs_snap_check_chunk(const bs_snap_reading *reading, const bs_snap_chunk *chunk, const char *buffer);
bs_status bs_snap_write_chunk(const bs_snap_handle *handle, const bs_snap_shape *shape,
                              const bs_snap_file *file, bs_snap_heads heads, const bs_snap_chunk *chunk,
                              char *buffer, uint32_t *sums, uint64_t *written);
bs_status bs_snap_pack_chunk(bs_snap_staging *staging, const bs_snap_shape *shape, const bs_snap_file *file,
                             bs_snap_heads heads, const bs_snap_chunk *chunk, const bs_snap_source *source,
                             int slot);
bs_status bs_snap_unpack_chunk(bs_snap_staging *staging, const bs_snap_shape *shape, const bs_snap_file *file,
                               bs_snap_heads heads, const bs_snap_chunk *chunk, int slot);

/* ---- one snapshot's verification (load.c) ------------------------------------------------------------------ */

/* An opened file's checksums, malloc'ed: CRC, then F16_CRC; and their digest. */
bs_status bs_snap_read_sums(const bs_snap_handle *handle, const bs_snap_file *file, uint32_t **sums);
void bs_snap_sums_sha256(const bs_snap_file *file, const uint32_t *sums, uint8_t out[32]);
/* The chain's digest behind the file's ids, and that of the one before it (NULL: it is the first). */
void bs_snap_chain_sha256(const bs_snap_file *before, const bs_snap_file *file, const int32_t *ids,
                          uint8_t out[32]);
/* Opens file i of the manifest and checks it up to its pages: size, header digest, container (with_hdf5), sums digest and
 * token chain. *sums: malloc'ed u32s of CRC, then of F16_CRC. *tokens gets n_tokens ids when not NULL. */
bs_status bs_snap_open_verified(const bs_snap_fs *fs, const bs_snap_manifest *manifest, int i, bool with_hdf5,
                                bs_snap_handle *out, uint32_t **sums, int32_t *tokens);
/* The newest snapshot that is whole, up to its pages: its manifest, read and as text (malloc'ed), and its ids (malloc'ed;
 * tokens may be NULL). Of a damaged one a line is warned of and the one before is tried; FORMAT or IO when none is whole.
 * MISMATCH (another version; another fingerprint, when `ours` is not NULL) is final. *found false: there is none.
 * *last_number: the highest number in any manifest's name, or 0. */
typedef struct bs_snap_found {
    bs_snap_manifest manifest;
    char name[BS_SNAP_MANIFEST_NAME];
    char *text;
    size_t bytes;
    int32_t *tokens;
} bs_snap_found;
bs_status bs_snap_find(const bs_snap_fs *fs, const bs_snap_fingerprint *ours, bs_snap_found *out, bool *found,
                       int64_t *last_number);
void bs_snap_found_free(bs_snap_found *found);
/* One manifest by its name; FORMAT when its bytes are not those of the name. */
bs_status bs_snap_read_manifest(const bs_snap_fs *fs, const char *name, bs_snap_found *out);

/* The same with its files, up to their pages, and its ids. */
bs_status bs_snap_read_snapshot(const bs_snap_fs *fs, const char *name, const bs_snap_fingerprint *ours,
                                bs_snap_found *out);
/* That of this number, and its directory; 0: the newest that is whole. IO when there is none. */
bs_status bs_snap_open_number(const char *path, int64_t number, bs_snap_fs *fs, bs_snap_found *out);

/* Reads all pages of all heads, checked, chunk by chunk (inspect.c). sums: the file's, CRC then F16_CRC. visit and
 * progress may be NULL. */
typedef bs_status bs_snap_chunk_visit(void *context, const bs_snap_file *file, const bs_snap_chunk *chunk,
                                      const char *data, const uint32_t *sums);
bs_status bs_snap_each_chunk(const bs_snap_fs *fs, const bs_snap_manifest *manifest,
                             bs_snap_chunk_visit *visit, void *context,
                             void (*progress)(void *context, uint64_t done, uint64_t total),
                             void *progress_context);
uint64_t bs_snap_manifest_bytes(const bs_snap_manifest *manifest);
bs_snapshot_checked bs_snap_checked_of(const bs_snap_manifest *manifest);
/* Which of these pages a shard owns. Pure. */
int64_t bs_snap_list_owned(int64_t first, int64_t end, int start_s, int stripe_pages, int seq, int seq_shard,
                           bs_cache_page_ref *out);

/* ---- collection -------------------------------------------------------------------------------------------- */

/* Removes manifests but the newest `keep` whole ones, files that none of these names, and temporary ones. Only names of
 * ours. n_removed, bytes_removed: may be NULL. dry: only counts. The first error is returned: one of reading stops it, and
 * while a manifest cannot be removed no data goes. */
bs_status bs_snap_collect(const bs_snap_fs *fs, int keep, bool dry, int *n_removed, uint64_t *bytes_removed);
/* Removes all names of ours, in the same order. */
bs_status bs_snap_remove_all(const bs_snap_fs *fs);
/* Whether a name is one of a segment or tail: "seg-…​.h5", "tail-….h5". */
bool bs_snap_is_data_name(const char *name);

#endif
