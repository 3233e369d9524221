/* load.c: which snapshot is in force, and whether its files are what they were.
 *
 * The valid state is the manifest of the highest number whose bytes have the digest in its name; there is no pointer to it
 * that could be out of date. Nothing of a file is parsed or used before the manifest's digests of it were found right, in
 * this order: size, bytes outside of the datasets, container, table of checksums, token ids. Pages are checked as they are
 * read (pages.c).
 */
#include "src/base/log.h"
#include "src/snapshot/snapshot_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool bs_snap_is_data_name(const char *name)
{
    const bool segment = strncmp(name, "seg-", 4) == 0, tail = strncmp(name, "tail-", 5) == 0;
    const size_t n = strlen(name);
    if ((!segment && !tail) || n >= BS_SNAP_NAME_BYTES - sizeof BS_SNAP_TMP || n < 4 ||
        strcmp(name + n - 3, ".h5") != 0)
        return false;
    return strspn(name, "0123456789abcdefgilst-.h") == n && strspn(name + n - 3, ".h5") == 3;
}

/* ---- manifests --------------------------------------------------------------------------------------------- */

void bs_snap_found_free(bs_snap_found *found)
{
    bs_snap_manifest_free(&found->manifest);
    free(found->text);
    free(found->tokens);
    *found = (bs_snap_found){0};
}

bs_status bs_snap_read_manifest(const bs_snap_fs *fs, const char *name, bs_snap_found *out)
{
    uint8_t digest[32], wanted[32];
    int64_t number;
    bs_snap_found f = {0};
    char path[BS_SNAP_PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", fs->path, name);
    if (!bs_snap_manifest_parse_name(name, &number, wanted))
        return bs_fail(BS_STATUS_FORMAT, "%s: is not a manifest's name", path);
    BS_TRY(bs_snap_fs_read_file(fs, name, BS_SNAP_MAX_MANIFEST, &f.text, &f.bytes));
    bs_sha256(f.text, f.bytes, digest);
    bs_status status = memcmp(digest, wanted, 32) == 0
                           ? bs_snap_manifest_read(f.text, f.bytes, path, &f.manifest)
                           : bs_fail(BS_STATUS_FORMAT, "%s: its bytes do not have the SHA-256 in its name",
                                     path);
    if (status == BS_STATUS_OK && f.manifest.number != number)
        status = bs_fail(BS_STATUS_FORMAT, "%s: is number %" PRId64 " inside", path, f.manifest.number);
    if (status != BS_STATUS_OK) {
        bs_snap_found_free(&f);
        return status;
    }
    snprintf(f.name, sizeof f.name, "%s", name);
    *out = f;
    return BS_STATUS_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------- */

bs_status bs_snap_read_sums(const bs_snap_handle *h, const bs_snap_file *f, uint32_t **out)
{
    const size_t n = (size_t)f->part[BS_SNAP_CRC].bytes, n_f16 = (size_t)f->part[BS_SNAP_F16_CRC].bytes;
    char *sums = malloc(n + n_f16 + 1);
    if (!sums) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its checksums", h->path);
    bs_status status = bs_snap_fs_pread(h, sums, n, f->part[BS_SNAP_CRC].offset);
    if (status == BS_STATUS_OK)
        status = bs_snap_fs_pread(h, sums + n, n_f16, f->part[BS_SNAP_F16_CRC].offset);
    if (status == BS_STATUS_OK) *out = (uint32_t *)(void *)sums;
    else free(sums);
    return status;
}

void bs_snap_sums_sha256(const bs_snap_file *f, const uint32_t *sums, uint8_t out[32])
{
    bs_sha256(sums, (size_t)(f->part[BS_SNAP_CRC].bytes + f->part[BS_SNAP_F16_CRC].bytes), out);
}

void bs_snap_chain_sha256(const bs_snap_file *before, const bs_snap_file *f, const int32_t *ids,
                          uint8_t out[32])
{
    static const uint8_t nothing[32];
    bs_sha256_state state;
    bs_sha256_init(&state);
    bs_sha256_update(&state, before ? before->chain_sha256 : nothing, 32);
    bs_sha256_update(&state, ids, (size_t)f->part[BS_SNAP_TOKENS].bytes);
    bs_sha256_final(&state, out);
}

static bs_status check_sums(const bs_snap_handle *h, const bs_snap_file *f, uint32_t **out)
{
    uint32_t *sums;
    uint8_t digest[32];
    BS_TRY(bs_snap_read_sums(h, f, &sums));
    bs_snap_sums_sha256(f, sums, digest);
    if (memcmp(digest, f->sums_sha256, 32) != 0) {
        free(sums);
        return bs_fail(BS_STATUS_FORMAT, "%s: its table of checksums is not the manifest's", h->path);
    }
    *out = sums;
    return BS_STATUS_OK;
}

static bs_status check_tokens(const bs_snap_handle *h, const bs_snap_file *before, const bs_snap_file *f,
                              int32_t *tokens)
{
    const size_t bytes = (size_t)f->part[BS_SNAP_TOKENS].bytes;
    uint8_t digest[32];
    int32_t *ids = malloc(bytes + 1);
    if (!ids) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its token ids", h->path);
    bs_status status = bs_snap_fs_pread(h, ids, bytes, f->part[BS_SNAP_TOKENS].offset);
    if (status == BS_STATUS_OK) {
        bs_snap_chain_sha256(before, f, ids, digest);
        if (memcmp(digest, f->chain_sha256, 32) != 0)
            status = bs_fail(BS_STATUS_FORMAT, "%s: its token ids are not the manifest's", h->path);
    }
    if (status == BS_STATUS_OK && tokens) memcpy(tokens + f->first_token, ids, bytes);
    free(ids);
    return status;
}

static bs_status check_file(const bs_snap_handle *h, const bs_snap_manifest *m, int i, bool with_hdf5,
                            uint32_t **sums, int32_t *tokens)
{
    const bs_snap_file *f = &m->files[i];
    uint8_t digest[32];
    BS_TRY(bs_snap_header_sha256(h, f, digest));
    if (memcmp(digest, f->header_sha256, 32) != 0)
        return bs_fail(BS_STATUS_FORMAT, "%s: its header is not the manifest's", h->path);
    if (with_hdf5) BS_TRY(bs_snap_container_check(h, &m->shape, f));
    BS_TRY(check_tokens(h, i > 0 ? f - 1 : NULL, f, tokens));
    return check_sums(h, f, sums);
}

bs_status bs_snap_open_verified(const bs_snap_fs *fs, const bs_snap_manifest *m, int i, bool with_hdf5,
                                bs_snap_handle *out, uint32_t **sums, int32_t *tokens)
{
    uint64_t bytes;
    const bs_snap_file *f = &m->files[i];
    BS_TRY(bs_snap_fs_open_file(fs, f->name, false, out, &bytes));
    bs_status status = bytes == f->bytes
                           ? check_file(out, m, i, with_hdf5, sums, tokens)
                           : bs_fail(BS_STATUS_FORMAT, "%s: %" PRIu64 " bytes: the manifest says %" PRIu64,
                                     out->path, bytes, f->bytes);
    if (status != BS_STATUS_OK) close(out->fd);
    return status;
}

/* ---- the newest that is whole ------------------------------------------------------------------------------ */

bs_status bs_snap_read_snapshot(const bs_snap_fs *fs, const char *name, const bs_snap_fingerprint *ours,
                                bs_snap_found *out)
{
    bs_snap_found f;
    BS_TRY(bs_snap_read_manifest(fs, name, &f));
    bs_status status = ours ? bs_snap_fingerprint_compare(&f.manifest.fingerprint, ours, fs->path)
                            : BS_STATUS_OK;
    if (status == BS_STATUS_OK && !(f.tokens = malloc((size_t)(f.manifest.n_tokens + 1) * sizeof *f.tokens)))
        status = bs_fail(BS_STATUS_NOMEM, "%s/%s: no memory for %" PRId64 " ids", fs->path, name,
                         f.manifest.n_tokens);
    for (int i = 0; status == BS_STATUS_OK && i < f.manifest.n_files; i++) {
        bs_snap_handle handle;
        uint32_t *sums;
        status = bs_snap_open_verified(fs, &f.manifest, i, true, &handle, &sums, f.tokens);
        if (status != BS_STATUS_OK) break;
        close(handle.fd);
        free(sums);
    }
    if (status != BS_STATUS_OK) {
        bs_snap_found_free(&f);
        return status;
    }
    *out = f;
    return BS_STATUS_OK;
}

static bs_status find_in(const bs_snap_fs *fs, char **names, int n, const bs_snap_fingerprint *ours,
                         bs_snap_found *out, bool *found, int64_t *last_number)
{
    char first[512] = "";
    bs_status status = BS_STATUS_OK;
    /* Numbers have eight digits at least: the order of names is theirs, up to a hundred million. */
    for (int i = n - 1; i >= 0; i--) {
        int64_t number;
        uint8_t sha256[32];
        char line[512];
        if (!bs_snap_manifest_parse_name(names[i], &number, sha256)) continue;
        if (number > *last_number) *last_number = number;
        const bs_error_diversion before = bs_error_divert(line, sizeof line);
        bs_status one = bs_snap_read_snapshot(fs, names[i], ours, out);
        bs_error_divert_back(before);
        if (one == BS_STATUS_OK) {
            if (first[0]) bs_log_warn("%s; going back to snapshot %" PRId64, first, number);
            *found = true;
            return BS_STATUS_OK;
        }
        if (one == BS_STATUS_MISMATCH || one == BS_STATUS_NOMEM) return bs_fail(one, "%s", line);
        if (!first[0]) {
            snprintf(first, sizeof first, "%s", line);
            status = one;
        }
    }
    return status == BS_STATUS_OK ? status : bs_fail(status, "%s", first);
}

bs_status bs_snap_find(const bs_snap_fs *fs, const bs_snap_fingerprint *ours, bs_snap_found *out, bool *found,
                       int64_t *last_number)
{
    char **names;
    int n;
    *found = false;
    *last_number = 0;
    BS_TRY(bs_snap_fs_list(fs, &names, &n));
    bs_status status = find_in(fs, names, n, ours, out, found, last_number);
    bs_snap_fs_free_list(names, n);
    return status;
}
