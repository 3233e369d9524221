/* segment_create.c: the HDF5 container: making an empty one, and checking that one is what we make. Alone sees hdf5.h.
 *
 * HDF5 creates the file and is then out of the way: contiguous datasets, space taken at once, nothing filled, large ones at
 * multiples of 1 MiB, the latest file format (whose metadata has checksums: of 16,384 flipped bits none went unnoticed,
 * where the old format missed 1579). Ranks write at H5Dget_offset, and the result is still a plain file for h5dump and
 * h5py. Rejected: collective writes through the library (needs its MPI build and all ranks at once), chunks and filters
 * (fletcher32 doubles the file at this alignment and misses 0x0000 turned 0xFFFF).
 *
 * libhdf5 parses hostile files badly, so it parses only files whose bytes outside of the datasets have the digest that the
 * manifest names; and then, too, whatever could lead out of the file is refused: filters, external storage, soft and
 * external links, other layouts. Plugins are off. The library is not thread safe: one lock.
 */
#include "config.h"

#include "src/snapshot/snapshot_private.h"

#include <hdf5.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Library errors are ours to tell. */
static void begin(void)
{
    static bool started;
    pthread_mutex_lock(&lock);
    if (!started) {
        H5dont_atexit();
        H5open();
        H5PLset_loading_state(0);
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
        started = true;
    }
}

static void end(void)
{
    H5Eclear2(H5E_DEFAULT);
    pthread_mutex_unlock(&lock);
}

/* The innermost message of the library's stack. */
static herr_t take_message(unsigned n, const H5E_error2_t *error, void *text)
{
    if (n == 0 && error->desc) snprintf(text, 200, "%s", error->desc);
    return 0;
}

static bs_status fail_hdf5(bs_status status, const char *name, const char *what)
{
    char text[200] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_message, text);
    return bs_fail(status, "%s: HDF5: %s: %s", name, what, text);
}

/* IEEE binary16, which HDF5 can describe but has no name for. */
static hid_t make_f16_type(void)
{
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (type < 0) return type;
    if (H5Tset_fields(type, 15, 10, 5, 0, 10) < 0 || H5Tset_size(type, 2) < 0 || H5Tset_ebias(type, 15) < 0) {
        H5Tclose(type);
        return -1;
    }
    return type;
}

/* The caller closes it. */
static hid_t make_part_type(const bs_snap_shape *shape, bs_snap_part part)
{
    switch (part) {
    case BS_SNAP_CRC:
    case BS_SNAP_F16_CRC:
    case BS_SNAP_TOKENS: return H5Tcopy(H5T_STD_U32LE);
    case BS_SNAP_F16: return make_f16_type();
    default: return shape->is_f16 ? make_f16_type() : H5Tcopy(H5T_STD_U8LE);
    }
}

static hid_t make_file_access(void)
{
    hid_t plist = H5Pcreate(H5P_FILE_ACCESS);
    if (plist < 0) return plist;
    /* Metadata comes in pieces of 32 KiB, below the threshold: so only datasets are aligned. */
    bool ok = H5Pset_libver_bounds(plist, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) >= 0 &&
              H5Pset_alignment(plist, 1 << 16, BS_SNAP_ALIGN) >= 0 &&
              H5Pset_meta_block_size(plist, 1 << 15) >= 0 && H5Pset_small_data_block_size(plist, 0) >= 0;
#if H5_VERSION_GE(1, 10, 7)
    /* The library's own lock fails on file systems without flock; ours is lock.c. */
    ok = ok && H5Pset_file_locking(plist, 0, 1) >= 0;
#endif
    if (ok) return plist;
    H5Pclose(plist);
    return -1;
}

static hid_t make_dataset_creation(void)
{
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    if (plist < 0) return plist;
    if (H5Pset_layout(plist, H5D_CONTIGUOUS) >= 0 && H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER) >= 0 && H5Pset_obj_track_times(plist, false) >= 0)
        return plist;
    H5Pclose(plist);
    return -1;
}

/* ---- making one -------------------------------------------------------------------------------------------- */

static bool write_int(hid_t file, const char *name, int64_t value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    if (space >= 0) H5Sclose(space);
    return ok;
}

static bool write_text(hid_t file, const char *name, const char *value)
{
    hid_t space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(value) + 1);
    hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    return ok;
}

/* For people and h5py; a restore goes by the manifest alone. */
static bool write_attributes(hid_t file, const bs_snap_shape *shape, const bs_snap_file *f)
{
    char kv[BS_KV_FORMAT_NAME];
    bs_kv_format_name(&shape->format, kv);
    return write_text(file, "bitshard",
                      f->is_export ? "snapshot export"
                      : f->is_tail ? "snapshot tail"
                                   : "snapshot segment") &&
           write_int(file, "version", BS_SNAP_VERSION) && write_text(file, "kv", kv) &&
           write_int(file, "head_dim", shape->head_dim) && write_int(file, "first_page", f->first_page) &&
           write_int(file, "end_page", f->end_page) &&
           write_int(file, "first_quantized_page", f->first_quant) &&
           write_int(file, "n_sink_pages", f->n_f16_sink) &&
           write_int(file, "first_f16_page", f->first_f16) && write_int(file, "first_token", f->first_token);
}

static bool create_part(hid_t file, hid_t creation, const bs_snap_shape *shape, bs_snap_file *f,
                        bs_snap_part part)
{
    uint64_t dims[6];
    hsize_t sizes[6];
    const int n = bs_snap_part_dims(shape, f, part, dims);
    for (int i = 0; i < n; i++) sizes[i] = dims[i];
    hid_t space = H5Screate_simple(n, sizes, NULL), type = make_part_type(shape, part);
    hid_t dataset = H5Dcreate2(file, bs_snap_part_name[part], type, space, H5P_DEFAULT, creation,
                               H5P_DEFAULT);
    haddr_t offset = dataset >= 0 ? H5Dget_offset(dataset) : HADDR_UNDEF;
    bool ok = offset != HADDR_UNDEF && H5Dget_storage_size(dataset) == f->part[part].bytes;
    if (ok) f->part[part].offset = (uint64_t)offset;
    if (dataset >= 0) ok = H5Dclose(dataset) >= 0 && ok;
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    return ok;
}

static bs_status create_all(const char *path, const char *name, const bs_snap_shape *shape, bs_snap_file *f)
{
    hid_t access = make_file_access(), creation = make_dataset_creation();
    hid_t file = access >= 0 && creation >= 0 ? H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access) : -1;
    bool ok = file >= 0 && write_attributes(file, shape, f);
    for (bs_snap_part part = 0; ok && part < BS_SNAP_N_PARTS; part++)
        ok = f->part[part].bytes == 0 || create_part(file, creation, shape, f, part);
    if (file >= 0) ok = H5Fclose(file) >= 0 && ok;
    bs_status status = ok ? BS_STATUS_OK : fail_hdf5(BS_STATUS_IO, name, "create");
    if (creation >= 0) H5Pclose(creation);
    if (access >= 0) H5Pclose(access);
    return status;
}

bs_status bs_snap_container_create(const bs_snap_fs *fs, const char *name, const bs_snap_shape *shape,
                                   bs_snap_file *file)
{
    bs_snap_handle handle;
    uint64_t bytes;
    char path[64];
    BS_TRY(bs_snap_fs_create(fs, name, &handle)); /* 0600, ours, new; HDF5 then empties it */
    snprintf(path, sizeof path, "/proc/self/fd/%d", handle.fd);
    begin();
    bs_status status = create_all(path, handle.path, shape, file);
    end();
    close(handle.fd);
    if (status == BS_STATUS_OK) {
        status = bs_snap_fs_open_file(fs, name, true, &handle, &bytes);
        if (status == BS_STATUS_OK) {
            file->bytes = bytes;
            status = bs_snap_fs_allocate(&handle, bytes);
            close(handle.fd);
        }
    }
    if (status != BS_STATUS_OK) bs_snap_fs_unlink(fs, name);
    return status;
}

/* ---- checking one ------------------------------------------------------------------------------------------ */

static bs_status refuse(const char *name, const char *dataset, const char *what)
{
    return bs_fail(BS_STATUS_FORMAT, "%s: dataset %s: %s", name, dataset, what);
}

static bs_status check_part_shape(hid_t dataset, const char *name, const bs_snap_shape *shape,
                                  const bs_snap_file *f, bs_snap_part part)
{
    const char *what = bs_snap_part_name[part];
    uint64_t dims[6];
    hsize_t sizes[8] = {0};
    const int n = bs_snap_part_dims(shape, f, part, dims);
    hid_t space = H5Dget_space(dataset), type = H5Dget_type(dataset), wanted = make_part_type(shape, part);
    bool same = space >= 0 && H5Sget_simple_extent_type(space) == H5S_SIMPLE &&
                H5Sget_simple_extent_ndims(space) == n && H5Sget_simple_extent_dims(space, sizes, NULL) == n;
    for (int i = 0; same && i < n; i++) same = sizes[i] == dims[i];
    bool same_type = type >= 0 && wanted >= 0 && H5Tequal(type, wanted) > 0;
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (wanted >= 0) H5Tclose(wanted);
    if (!same) return refuse(name, what, "dimensions are not those of the manifest");
    return same_type ? BS_STATUS_OK : refuse(name, what, "type is not the format's");
}

static bs_status check_part_storage(hid_t dataset, const char *name, const bs_snap_file *f, bs_snap_part part)
{
    const char *what = bs_snap_part_name[part];
    hid_t creation = H5Dget_create_plist(dataset);
    if (creation < 0) return refuse(name, what, "has no creation properties");
    const H5D_layout_t layout = H5Pget_layout(creation);
    const int n_external = H5Pget_external_count(creation), n_filters = H5Pget_nfilters(creation);
    H5Pclose(creation);
    if (layout != H5D_CONTIGUOUS) return refuse(name, what, "layout is not contiguous");
    if (n_external != 0) return refuse(name, what, "is stored in another file");
    if (n_filters != 0) return refuse(name, what, "has a filter");
    if (H5Dget_offset(dataset) != (haddr_t)f->part[part].offset ||
        H5Dget_storage_size(dataset) != f->part[part].bytes)
        return refuse(name, what, "is not where the manifest says");
    return BS_STATUS_OK;
}

static bs_status check_part(hid_t file, const char *name, const bs_snap_shape *shape, const bs_snap_file *f,
                            bs_snap_part part)
{
    const char *what = bs_snap_part_name[part];
    H5L_info_t link;
    if (f->part[part].bytes == 0)
        return H5Lexists(file, what, H5P_DEFAULT) == 0 ? BS_STATUS_OK
                                                       : refuse(name, what, "is not in the manifest");
    if (H5Lget_info(file, what, &link, H5P_DEFAULT) < 0) return refuse(name, what, "is missing");
    if (link.type != H5L_TYPE_HARD) return refuse(name, what, "is a soft or external link");
    hid_t dataset = H5Dopen2(file, what, H5P_DEFAULT);
    if (dataset < 0) return refuse(name, what, "cannot be opened");
    bs_status status = check_part_storage(dataset, name, f, part);
    if (status == BS_STATUS_OK) status = check_part_shape(dataset, name, shape, f, part);
    H5Dclose(dataset);
    return status;
}

static bs_status check_all(const char *path, const char *name, const bs_snap_shape *shape,
                           const bs_snap_file *f)
{
    hid_t access = make_file_access();
    hid_t file = access >= 0 ? H5Fopen(path, H5F_ACC_RDONLY, access) : -1;
    bs_status status = file >= 0 ? BS_STATUS_OK : fail_hdf5(BS_STATUS_FORMAT, name, "open");
    int n_parts = 0;
    for (bs_snap_part part = 0; status == BS_STATUS_OK && part < BS_SNAP_N_PARTS; part++) {
        n_parts += f->part[part].bytes != 0;
        status = check_part(file, name, shape, f, part);
    }
    H5G_info_t group;
    if (status == BS_STATUS_OK && (H5Gget_info(file, &group) < 0 || group.nlinks != (hsize_t)n_parts))
        status = bs_fail(BS_STATUS_FORMAT, "%s: holds more than its %d datasets", name, n_parts);
    if (file >= 0) H5Fclose(file);
    if (access >= 0) H5Pclose(access);
    return status;
}

bs_status bs_snap_container_check(const bs_snap_handle *handle, const bs_snap_shape *shape,
                                  const bs_snap_file *file)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", handle->fd);
    begin();
    bs_status status = check_all(path, handle->path, shape, file);
    end();
    return status;
}

/* ---- the bytes outside of the parts ------------------------------------------------------------------------ */

static int by_offset(const void *a, const void *b)
{
    const bs_snap_extent *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bs_status hash_range(const bs_snap_handle *handle, uint64_t from, uint64_t to, bs_sha256_state *state)
{
    enum { PIECE = 1 << 18 };
    if (from >= to) return BS_STATUS_OK;
    char *buffer = malloc(PIECE);
    if (!buffer) return bs_fail(BS_STATUS_NOMEM, "%s: no memory to read its header", handle->path);
    bs_status status = BS_STATUS_OK;
    while (status == BS_STATUS_OK && from < to) {
        const size_t n = to - from < PIECE ? (size_t)(to - from) : PIECE;
        status = bs_snap_fs_pread(handle, buffer, n, from);
        if (status == BS_STATUS_OK) bs_sha256_update(state, buffer, n);
        from += n;
    }
    free(buffer);
    return status;
}

bs_status bs_snap_header_sha256(const bs_snap_handle *handle, const bs_snap_file *file, uint8_t out[32])
{
    bs_snap_extent parts[BS_SNAP_N_PARTS];
    bs_sha256_state state;
    uint64_t at = 0;
    int n = 0;
    for (int i = 0; i < BS_SNAP_N_PARTS; i++)
        if (file->part[i].bytes != 0) parts[n++] = file->part[i];
    qsort(parts, (size_t)n, sizeof *parts, by_offset);
    bs_sha256_init(&state);
    for (int i = 0; i < n; i++) {
        BS_TRY(hash_range(handle, at, parts[i].offset, &state));
        at = parts[i].offset + parts[i].bytes;
    }
    BS_TRY(hash_range(handle, at, file->bytes, &state));
    bs_sha256_final(&state, out);
    return BS_STATUS_OK;
}
