/* weights.c: the digest of a model's weights, and where it is kept so that it is computed once.
 *
 * SHA-256 over each tensor's name, type, dimensions and SHA-256 of bytes, in the order of names: the same from one file or
 * from eight shards, whatever else the files hold. Tensors are dealt to the ranks by size. The result is kept in the user's
 * cache directory under the digest of what names the files: dev, inode, size, mtime and ctime of each. Weights that are
 * drawn (random:NAME) have their name and shape instead of bytes.
 */
#define _GNU_SOURCE
#include "src/base/checked.h"
#include "src/base/log.h"
#include "src/snapshot/snapshot_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the cache --------------------------------------------------------------------------------------------- */

static bool is_weight_file(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".safetensors") == 0 || strcmp(name, "config.json") == 0);
}

static int hash_stat(bs_sha256_state *state, const char *path)
{
    struct stat st;
    char line[512];
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return -1;
    int n = snprintf(line, sizeof line, "%ju %ju %jd %jd.%09ld %jd.%09ld\n", (uintmax_t)st.st_dev,
                     (uintmax_t)st.st_ino, (intmax_t)st.st_size, (intmax_t)st.st_mtim.tv_sec,
                     (long)st.st_mtim.tv_nsec, (intmax_t)st.st_ctim.tv_sec, (long)st.st_ctim.tv_nsec);
    bs_sha256_update(state, line, (size_t)n);
    return 0;
}

/* Digest of what names the model's files; false: they cannot be told. */
static bool files_key(const char *path, char hex[BS_SHA256_HEX])
{
    bs_sha256_state state;
    uint8_t digest[32];
    struct dirent **entries;
    bs_sha256_init(&state);
    if (hash_stat(&state, path) != 0) {
        int n = scandir(path, &entries, NULL, alphasort), n_hashed = 0;
        bool ok = n >= 0;
        for (int i = 0; i < n; i++) {
            char file[4096];
            if (ok && is_weight_file(entries[i]->d_name)) {
                ok = snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name) < (int)sizeof file &&
                     hash_stat(&state, file) == 0;
                n_hashed++;
            }
            free(entries[i]);
        }
        if (n >= 0) free(entries);
        if (!ok || n_hashed == 0) return false;
    }
    bs_sha256_final(&state, digest);
    bs_sha256_to_hex(digest, hex);
    return true;
}

/* ~/.cache/bitshard/weights, or under `dir`; found by the user database: the environment is the options table's. */
static bool open_cache(const char *dir, bs_snap_fs *fs)
{
    char path[1024];
    bool found;
    const struct passwd *user = dir ? NULL : getpwuid(getuid());
    if (!dir && !user) return false;
    int n = dir ? snprintf(path, sizeof path, "%s/weights", dir)
                : snprintf(path, sizeof path, "%s/.cache/bitshard/weights", user->pw_dir);
    if (n >= (int)sizeof path) return false;
    char kept[256];
    const bs_error_diversion before = bs_error_divert(
        kept, sizeof kept); /* a cache that cannot be had is no error */
    bool ok = bs_snap_fs_open(path, true, fs, &found) == BS_STATUS_OK && found;
    bs_error_divert_back(before);
    if (!ok) bs_log_debug("weights' digest is not kept: %s", kept);
    return ok;
}

static bool recall(const bs_snap_fs *fs, const char *key, uint8_t out[32])
{
    char *text, kept[256];
    size_t bytes;
    const bs_error_diversion before = bs_error_divert(kept, sizeof kept);
    bool ok = bs_snap_fs_read_file(fs, key, 256, &text, &bytes) == BS_STATUS_OK;
    bs_error_divert_back(before);
    if (!ok) return false;
    if (bytes == BS_SHA256_HEX && text[bytes - 1] == '\n') text[bytes - 1] = 0;
    ok = bs_sha256_from_hex(text, out);
    free(text);
    return ok;
}

static void keep(const bs_snap_fs *fs, const char *key, const uint8_t digest[32])
{
    char text[BS_SHA256_HEX + 1], random[17], temporary[64], kept[256];
    bs_snap_handle file;
    const bs_error_diversion before = bs_error_divert(kept, sizeof kept);
    bs_sha256_to_hex(digest, text);
    strcat(text, "\n");
    if (bs_snap_random_hex(random) == BS_STATUS_OK) {
        snprintf(temporary, sizeof temporary, BS_SNAP_TMP "%s", random);
        if (bs_snap_fs_create(fs, temporary, &file) == BS_STATUS_OK) {
            bool ok = bs_snap_fs_pwrite(&file, text, strlen(text), 0) == BS_STATUS_OK &&
                      bs_snap_fs_rename(fs, temporary, key) == BS_STATUS_OK;
            close(file.fd);
            if (!ok) bs_snap_fs_unlink(fs, temporary);
        }
    }
    bs_error_divert_back(before);
}

/* ---- the digest -------------------------------------------------------------------------------------------- */

typedef struct item {
    const bs_tensor *tensor;
    uint8_t sha256[32];
    int rank; /* who hashes it */
} item;

static int by_name(const void *a, const void *b)
{
    const bs_string x = ((const item *)a)->tensor->name, y = ((const item *)b)->tensor->name;
    const size_t n = x.bytes < y.bytes ? x.bytes : y.bytes;
    const int order = memcmp(x.text, y.text, n);
    return order != 0 ? order : x.bytes < y.bytes ? -1 : x.bytes > y.bytes;
}

/* Each to whoever has least so far: the same on every rank. */
static bs_status deal(item *items, int64_t n, int n_ranks)
{
    uint64_t *load = calloc((size_t)n_ranks, sizeof *load);
    if (!load) return bs_fail(BS_STATUS_NOMEM, "weights' digest: no memory for %d ranks", n_ranks);
    for (int64_t i = 0; i < n; i++) {
        int least = 0;
        for (int r = 1; r < n_ranks; r++)
            if (load[r] < load[least]) least = r;
        items[i].rank = least;
        load[least] += items[i].tensor->bytes;
    }
    free(load);
    return BS_STATUS_OK;
}

static void hash_tensor(item *it, uint64_t *done, uint64_t total,
                        void (*progress)(void *context, uint64_t done, uint64_t total), void *context)
{
    enum { PIECE = 64 << 20 };
    bs_sha256_state state;
    bs_sha256_init(&state);
    for (uint64_t at = 0; at < it->tensor->bytes; at += PIECE) {
        const uint64_t n = it->tensor->bytes - at < PIECE ? it->tensor->bytes - at : PIECE;
        bs_sha256_update(&state, (const char *)it->tensor->data + at, (size_t)n);
        *done += n;
        if (progress) progress(context, *done, total);
    }
    bs_sha256_final(&state, it->sha256);
}

static void hash_mine(item *items, int64_t n, int rank, void (*progress)(void *, uint64_t, uint64_t),
                      void *context)
{
    uint64_t total = 0, done = 0;
    for (int64_t i = 0; i < n; i++) total += items[i].rank == rank ? items[i].tensor->bytes : 0;
    for (int64_t i = 0; i < n; i++)
        if (items[i].rank == rank) hash_tensor(&items[i], &done, total, progress, context);
}

static void hash_description(bs_sha256_state *state, const bs_tensor *t)
{
    const char *type = bs_type_name(t->type);
    const int64_t n_dims = t->n_dims;
    bs_sha256_update(state, t->name.text, t->name.bytes);
    bs_sha256_update(state, "", 1);
    bs_sha256_update(state, type, strlen(type) + 1);
    bs_sha256_update(state, &n_dims, sizeof n_dims);
    bs_sha256_update(state, t->dims, (size_t)t->n_dims * sizeof t->dims[0]);
}

/* Rank 0 joins what all have hashed; `all`: [ranks][n][32]. */
static void join(const item *items, int64_t n, const uint8_t *all, uint8_t out[32])
{
    bs_sha256_state state;
    bs_sha256_init(&state);
    for (int64_t i = 0; i < n; i++) {
        hash_description(&state, items[i].tensor);
        bs_sha256_update(&state, all + ((int64_t)items[i].rank * n + i) * 32, 32);
    }
    bs_sha256_final(&state, out);
}

static bs_status hash_all(bs_comm *comm, const bs_model *model, item *items, int64_t n,
                          void (*progress)(void *, uint64_t, uint64_t), void *context, uint8_t out[32])
{
    const int rank = bs_comm_rank(comm), n_ranks = bs_comm_size(comm);
    const size_t bytes = (size_t)n * 32;
    uint8_t *mine = calloc(1, bytes), *all = rank == 0 ? malloc(bytes * (size_t)n_ranks) : NULL;
    bs_status status = mine && (all || rank != 0) ? BS_STATUS_OK
                                                  : bs_fail(BS_STATUS_NOMEM, "weights' digest: no memory");
    for (int64_t i = 0; i < n; i++) items[i].tensor = bs_model_tensor_at(model, i);
    qsort(items, (size_t)n, sizeof *items, by_name);
    if (status == BS_STATUS_OK) status = deal(items, n, n_ranks);
    status = bs_comm_agree(comm, status);
    if (status == BS_STATUS_OK) {
        hash_mine(items, n, rank, progress, context);
        for (int64_t i = 0; i < n; i++) memcpy(mine + i * 32, items[i].sha256, 32);
        status = bs_comm_gather_host(comm, mine, bytes, all, 0);
        if (status == BS_STATUS_OK && rank == 0) join(items, n, all, out);
    }
    free(all);
    free(mine);
    return status;
}

/* Nothing of its tensors may be read: there are addresses and no bytes. */
static void hash_random(const bs_model *model, uint8_t out[32])
{
    bs_sha256_state state;
    bs_sha256_init(&state);
    bs_sha256_update(&state, bs_model_path(model), strlen(bs_model_path(model)) + 1);
    for (int64_t i = 0; i < bs_model_n_tensors(model); i++)
        hash_description(&state, bs_model_tensor_at(model, i));
    bs_sha256_final(&state, out);
}

bs_status bs_snap_weights_sha256(bs_comm *comm, const bs_model *model, const char *cache_dir,
                                 void (*progress)(void *context, uint64_t done, uint64_t total),
                                 void *context, uint8_t out[32])
{
    struct {
        uint8_t sha256[32];
        int32_t known;
    } told = {0};
    const bool leader = bs_comm_rank(comm) == 0;
    char key[BS_SHA256_HEX] = "";
    bs_snap_fs fs = {.fd = -1};
    if (bs_model_is_random(model)) {
        hash_random(model, out);
        return BS_STATUS_OK;
    }
    if (leader && files_key(bs_model_path(model), key) && open_cache(cache_dir, &fs))
        told.known = recall(&fs, key, told.sha256);
    bs_status status = bs_comm_bcast_host(comm, &told, sizeof told, 0);
    if (status == BS_STATUS_OK && !told.known) {
        const int64_t n = bs_model_n_tensors(model);
        item *items = calloc((size_t)n, sizeof *items);
        status = bs_comm_agree(
            comm,
            items ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "weights' digest: no memory for %" PRId64, n));
        if (status == BS_STATUS_OK) status = hash_all(comm, model, items, n, progress, context, told.sha256);
        free(items);
        if (status == BS_STATUS_OK && fs.fd >= 0) keep(&fs, key, told.sha256);
        if (status == BS_STATUS_OK) status = bs_comm_bcast_host(comm, &told, sizeof told, 0);
    }
    bs_snap_fs_close(&fs);
    if (status == BS_STATUS_OK) memcpy(out, told.sha256, 32);
    return status;
}
