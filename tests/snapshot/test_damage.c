/* test_damage.c: whatever is changed in a snapshot is found, and each refusal says what it refuses. One rank, a small cache of
 * noise; the snapshot checked is one that the library wrote. */
#define _GNU_SOURCE
#include "tests/snapshot/rig.h"

#include "src/snapshot/inspect.h"
#include "src/snapshot/job.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { N = 1600 }; /* one block, a tail with quantized pages, f16 ones, an open one */
static char dir_path[256];
static rig r;

static void remove_tree(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir) closedir(dir);
    rmdir(path);
}

/* A fresh snapshot of N tokens in dir_path. */
static void make_snapshot(void)
{
    bs_snapshot_dir *dir;
    int32_t *ids = make_ids(N);
    remove_tree(dir_path);
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    take_snapshot(&r, dir, N, ids);
    bs_snapshot_dir_close(dir);
    free(ids);
}

static int set_up(void **state)
{
    setenv("SNAP_MODEL", "random:tiny-d64", 1);
    snprintf(dir_path, sizeof dir_path, "/tmp/bitshard-damage-%d", (int)getpid());
    OK(bs_comm_init(&(int){0}, &(char **){NULL}, &r.comm));
    bs_log_set_level(BS_LOG_QUIET);
    open_rig(&r, false, "1x1", "int4", 8, 4096);
    OK(bs_cache_seq_start(r.cache, 0, 0, 4096));
    fill(&r, 0, N);
    make_snapshot();
    return 0;
}

static int tear_down(void **state)
{
    close_rig(&r);
    bs_comm_finalize(r.comm);
    remove_tree(dir_path);
    return 0;
}

/* ---- finding files ----------------------------------------------------------------------------------------- */

static void find_file(const char *prefix, char path[600])
{
    DIR *dir = opendir(dir_path);
    const struct dirent *entry;
    assert_non_null(dir);
    path[0] = 0;
    while ((entry = readdir(dir)) != NULL)
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0)
            snprintf(path, 600, "%s/%s", dir_path, entry->d_name);
    closedir(dir);
    assert_true(path[0]);
}

static int open_file(const char *prefix, off_t *bytes)
{
    char path[600];
    struct stat st;
    find_file(prefix, path);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    *bytes = st.st_size;
    return fd;
}

static void flip(int fd, off_t at, int bit)
{
    unsigned char byte;
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= (unsigned char)(1 << bit);
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}

/* The check's status; an error has a line that names the directory, and is forgotten. */
static bs_status check_all(void)
{
    bs_snapshot_checked checked;
    bs_status status = bs_snapshot_check(dir_path, 0, NULL, NULL, &checked);
    if (status != BS_STATUS_OK) assert_non_null(strstr(bs_error_message(), dir_path));
    bs_error_clear();
    return status;
}

/* Opening it as a run would: info or not, and the kept line. */
static bs_status open_all(char line[512])
{
    bs_snapshot_dir *dir;
    const bs_error_diversion before = bs_error_divert(line, 512);
    bs_status status = bs_snapshot_dir_open(r.snapshots, dir_path, 0, &dir);
    bs_error_divert_back(before);
    if (status == BS_STATUS_OK) bs_snapshot_dir_close(dir);
    else assert_non_null(strstr(line, dir_path));
    return status;
}

/* ---- bits -------------------------------------------------------------------------------------------------- */

static bool is_big(void)
{
    const char *big = getenv("BITSHARD_BIG");
    return big && *big && strcmp(big, "0") != 0;
}

/* One in each 4 KiB of each file: datasets, what lies between them, checksums, ids. */
static void test_bit_in_every_page(void **state)
{
    static const char *const prefixes[] = {"seg-", "tail-"};
    uint64_t random = 1;
    int n = 0;
    assert_int_equal(check_all(), BS_STATUS_OK);
    for (int i = 0; i < 2; i++) {
        off_t bytes;
        int fd = open_file(prefixes[i], &bytes);
        for (off_t at = 0; at < bytes; at += is_big() ? 4096 : 3 * 4096) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const off_t place = at + (off_t)(random >> 33) % (bytes - at < 4096 ? bytes - at : 4096);
            const int bit = (int)(random >> 60) % 8;
            flip(fd, place, bit);
            if (check_all() == BS_STATUS_OK)
                fail_msg("%s: bit %d of byte %lld", prefixes[i], bit, (long long)place);
            flip(fd, place, bit);
            n++;
        }
        close(fd);
    }
    assert_int_equal(check_all(), BS_STATUS_OK);
    print_message("%d bits\n", n);
}

/* Each bit of the manifest: its digest is its name. */
static void test_bits_of_manifest(void **state)
{
    off_t bytes;
    int fd = open_file("manifest-", &bytes);
    for (off_t at = 0; at < bytes; at++)
        for (int bit = 0; bit < 8; bit += is_big() ? 1 : 3) {
            char *text;
            flip(fd, at, bit);
            assert_int_not_equal(bs_snapshot_show(dir_path, 0, &text), BS_STATUS_OK);
            bs_error_clear();
            flip(fd, at, bit);
        }
    close(fd);
    assert_int_equal(check_all(), BS_STATUS_OK);
}

/* Each bit of HDF5's metadata, of which nothing is parsed before its digest is found right. */
static void test_bits_of_header(void **state)
{
    off_t bytes;
    bs_snap_fs fs = {.fd = -1};
    bs_snap_found found;
    bool any;
    int64_t last;
    OK(bs_snap_fs_open(dir_path, false, &fs, &any));
    OK(bs_snap_find(&fs, NULL, &found, &any, &last));
    assert_true(any);
    for (int i = 0; i < found.manifest.n_files; i++) {
        const bs_snap_file *f = &found.manifest.files[i];
        int fd = open_file(f->name, &bytes);
        for (off_t at = 0; at < 8192; at += is_big() ? 1 : 7)
            for (int bit = 0; bit < 8; bit += is_big() ? 1 : 5) {
                bs_snap_handle opened;
                uint32_t *sums;
                flip(fd, at, bit);
                assert_int_equal(bs_snap_open_verified(&fs, &found.manifest, i, true, &opened, &sums, NULL),
                                 BS_STATUS_FORMAT);
                assert_non_null(strstr(bs_error_message(), "header is not the manifest's"));
                bs_error_clear();
                flip(fd, at, bit);
            }
        close(fd);
    }
    bs_snap_found_free(&found);
    bs_snap_fs_close(&fs);
}

/* ---- whole files ------------------------------------------------------------------------------------------- */

static void test_truncation(void **state)
{
    static const char *const prefixes[] = {"seg-", "tail-", "manifest-"};
    char path[600], line[512];
    for (int i = 0; i < 3; i++)
        for (int part = 0; part < 8; part++) {
            struct stat st;
            make_snapshot();
            find_file(prefixes[i], path);
            assert_int_equal(stat(path, &st), 0);
            assert_int_equal(truncate(path, st.st_size * part / 8), 0);
            assert_int_not_equal(check_all(), BS_STATUS_OK);
            assert_int_not_equal(open_all(line), BS_STATUS_OK);
            make_snapshot();
            find_file(prefixes[i], path);
            assert_int_equal(truncate(path, st.st_size + 1), 0); /* one byte too many, too */
            assert_int_not_equal(check_all(), BS_STATUS_OK);
        }
    make_snapshot();
}

/* Segment and tail change names; a file that is gone; a hole of zeros. */
static void test_swapped_files(void **state)
{
    char a[600], b[600], c[700];
    make_snapshot();
    find_file("seg-", a);
    find_file("tail-", b);
    snprintf(c, sizeof c, "%s.x", a);
    assert_int_equal(rename(a, c) | rename(b, a) | rename(c, b), 0);
    assert_int_not_equal(check_all(), BS_STATUS_OK);
    make_snapshot();
    find_file("seg-", a);
    assert_int_equal(unlink(a), 0);
    assert_int_equal(check_all(), BS_STATUS_IO);
    make_snapshot();
    off_t bytes;
    int fd = open_file("seg-", &bytes);
    assert_int_equal(fallocate(fd, 3 /* punch a hole, keep the size */, (1 << 20) + 4096, 4096), 0);
    close(fd);
    assert_int_equal(check_all(), BS_STATUS_FORMAT);
    make_snapshot();
}

static void copy_file(const char *from, const char *to)
{
    char buffer[65536];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_TRUNC);
    ssize_t n;
    assert_true(in >= 0 && out >= 0);
    while ((n = read(in, buffer, sizeof buffer)) > 0) assert_int_equal(write(out, buffer, (size_t)n), n);
    assert_int_equal(n, 0);
    close(in);
    close(out);
}

/* Seq 0 anew: the same number of tokens, of this seed's noise. */
static void draw(uint64_t seed)
{
    bs_cache_seq_free(r.cache, 0);
    OK(bs_cache_seq_start(r.cache, 0, 0, 4096));
    OK(bs_cache_seq_fill(r.cache, r.stream, 0, N, &(bs_cache_noise){.seed = seed}));
}

/* An older tail in the place of a newer one of the same size, whose last id or whose pages differ. */
static void test_older_tail(void **state)
{
    for (int pages = 0; pages < 2; pages++) {
        bs_snapshot_dir *dir;
        bs_snapshot_checked checked;
        char older[600], newer[600], line[512];
        struct stat a, b;
        int32_t *ids = make_ids(N);
        if (!pages) ids[N] ^= 1;
        make_snapshot();
        if (pages) draw(SEED + 1);
        OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
        take_snapshot(&r, dir, N, ids);
        bs_snapshot_dir_close(dir);
        free(ids);
        find_file("tail-00000001", older);
        find_file("tail-00000002", newer);
        assert_int_equal(stat(older, &a) | stat(newer, &b), 0);
        assert_int_equal(a.st_size, b.st_size);
        OK(bs_snapshot_check(dir_path, 2, NULL, NULL, &checked));
        copy_file(older, newer);
        assert_int_equal(bs_snapshot_check(dir_path, 2, NULL, NULL, &checked), BS_STATUS_FORMAT);
        assert_non_null(strstr(bs_error_message(), "tail-00000002"));
        bs_error_clear();
        find_file("manifest-00000001", older); /* nothing to go back to */
        assert_int_equal(unlink(older), 0);
        assert_int_equal(open_all(line), BS_STATUS_FORMAT);
        assert_non_null(strstr(line, "tail-00000002"));
    }
    draw(SEED);
    make_snapshot();
}

/* Two snapshots: when the newer is damaged the older is in force; when both are there is none. */
static void test_goes_back(void **state)
{
    bs_snapshot_dir *dir;
    int32_t *ids = make_ids(N + 640);
    char path[600], line[512];
    make_snapshot();
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
    take_snapshot(&r, dir, N, ids);
    bs_snapshot_dir_close(dir);
    free(ids);
    find_file("manifest-00000002", path);
    assert_int_equal(truncate(path, 100), 0);
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, 0, &dir));
    assert_int_equal(bs_snapshot_dir_info(dir)->number, 1);
    bs_snapshot_dir_close(dir);
    find_file("manifest-00000001", path);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(open_all(line), BS_STATUS_FORMAT);
    make_snapshot();
}

static void test_stale_manifest(void **state)
{
    char path[600], moved[700], line[512];
    make_snapshot();
    find_file("manifest-", path);
    snprintf(moved, sizeof moved, "%s", path);
    char *number = strstr(moved, "manifest-") + 9;
    memcpy(number, "00000009", 8); /* an old one that claims to be new */
    assert_int_equal(rename(path, moved), 0);
    assert_int_equal(open_all(line), BS_STATUS_FORMAT);
    assert_non_null(strstr(line, "is number 1 inside"));
    make_snapshot();
}

/* ---- who may write ----------------------------------------------------------------------------------------- */

static void test_owners_and_links(void **state)
{
    char path[600], moved[700], line[512];
    make_snapshot();
    find_file("seg-", path);
    snprintf(moved, sizeof moved, "%s.real", path);
    assert_int_equal(rename(path, moved) | symlink(moved, path), 0);
    assert_int_equal(open_all(line), BS_STATUS_IO);
    assert_non_null(strstr(line, "is a symbolic link"));
    assert_int_equal(unlink(path) | rename(moved, path), 0);
    assert_int_equal(open_all(line), BS_STATUS_OK);

    assert_int_equal(chmod(path, 0620), 0);
    assert_int_equal(open_all(line), BS_STATUS_IO);
    assert_non_null(strstr(line, "mode 0620: others may write to it"));
    assert_int_equal(chmod(path, 0600), 0);

    assert_int_equal(unlink(path) | mkfifo(path, 0600), 0); /* must not hang */
    assert_int_equal(open_all(line), BS_STATUS_IO);
    assert_non_null(strstr(line, "is not a regular file"));

    make_snapshot();
    assert_int_equal(chmod(dir_path, 0777), 0);
    assert_int_equal(open_all(line), BS_STATUS_IO);
    assert_non_null(strstr(line, "mode 0777"));
    assert_int_equal(chmod(dir_path, 0700), 0);

    if (geteuid() == 0) {
        find_file("tail-", path);
        assert_int_equal(chown(path, 12345, (gid_t)-1), 0);
        assert_int_equal(open_all(line), BS_STATUS_IO);
        assert_non_null(strstr(line, "owner 12345: must be 0"));
        assert_int_equal(chown(path, 0, (gid_t)-1), 0);
    }
    assert_int_equal(open_all(line), BS_STATUS_OK);
}

static void test_drop_cache(void **state)
{
    char path[600], moved[700];
    make_snapshot();
    OK(bs_snapshot_drop_cache(dir_path));
    find_file("tail-", path);
    snprintf(moved, sizeof moved, "%s.real", path);
    assert_int_equal(rename(path, moved) | symlink(moved, path), 0);
    assert_int_equal(bs_snapshot_drop_cache(dir_path),
                     BS_STATUS_IO); /* and, says a sanitizer, nothing leaks */
    assert_non_null(strstr(bs_error_message(), "is a symbolic link"));
    bs_error_clear();
    make_snapshot();
}

static void test_modes(void **state)
{
    struct stat st;
    char path[600];
    const mode_t old = umask(0);
    make_snapshot();
    umask(old);
    assert_int_equal(stat(dir_path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    static const char *const prefixes[] = {"seg-", "tail-", "manifest-"};
    for (int i = 0; i < 3; i++) {
        find_file(prefixes[i], path);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
    }
}

/* ---- fields ------------------------------------------------------------------------------------------------ */

/* Rewrites the only manifest with one text replaced, under the name that its new bytes ask for. */
static void edit_manifest(const char *from, const char *to)
{
    char *text, path[600], name[BS_SNAP_MANIFEST_NAME];
    uint8_t sha256[32];
    make_snapshot();
    OK(bs_snapshot_show(dir_path, 0, &text));
    char *at = strstr(text, from);
    if (!at) fail_msg("no %s in the manifest", from);
    char *edited = malloc(strlen(text) + strlen(to) + 1);
    sprintf(edited, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    find_file("manifest-", path);
    assert_int_equal(unlink(path), 0);
    bs_sha256(edited, strlen(edited), sha256);
    bs_snap_manifest_name(1, sha256, name);
    snprintf(path, sizeof path, "%s/%s", dir_path, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0 && write(fd, edited, strlen(edited)) == (ssize_t)strlen(edited));
    close(fd);
    free(edited);
    free(text);
}

/* Every field of the fingerprint, changed alone: refused, named, with both values; and nothing is passed over. */
static void test_fingerprint_fields(void **state)
{
    char line[512], from[200], to[200], expected[300];
    for (int i = 0; i < BS_SNAP_N_FIELDS; i++) {
        const bs_snap_field field = (bs_snap_field)i;
        char *text;
        make_snapshot();
        OK(bs_snapshot_show(dir_path, 0, &text));
        snprintf(from, sizeof from, "\"%s\": \"", bs_snap_field_name[field]);
        const char *value = strstr(text, from) + strlen(from);
        char ours[100], theirs[100];
        snprintf(ours, sizeof ours, "%.*s", (int)strcspn(value, "\""), value);
        free(text);
        /* Values that can be read, but that are others'. */
        snprintf(theirs, sizeof theirs, "%s", field == BS_SNAP_FIELD_kv ? "int4:kc:g64:nohad:s1:r2" : "1");
        if (field == BS_SNAP_FIELD_head_dim) snprintf(theirs, sizeof theirs, "128");
        if (strcmp(ours, theirs) == 0) snprintf(theirs, sizeof theirs, "2");
        snprintf(from, sizeof from, "\"%s\": \"%s\"", bs_snap_field_name[field], ours);
        snprintf(to, sizeof to, "\"%s\": \"%s\"", bs_snap_field_name[field], theirs);
        edit_manifest(from, to);
        const bs_status status = open_all(line);
        if (status == BS_STATUS_FORMAT) { /* what decides the geometry is already wrong there */
            assert_true(field == BS_SNAP_FIELD_n_layers || field == BS_SNAP_FIELD_n_kv_heads ||
                        field == BS_SNAP_FIELD_head_dim || field == BS_SNAP_FIELD_kv ||
                        field == BS_SNAP_FIELD_page_tokens || field == BS_SNAP_FIELD_block_tokens);
            continue;
        }
        assert_int_equal(status, BS_STATUS_MISMATCH);
        snprintf(expected, sizeof expected, "%s: the snapshot's is \"%s\", this run's is \"%s\"",
                 bs_snap_field_name[field], theirs, ours);
        if (!strstr(line, expected)) fail_msg("\"%s\" is not in \"%s\"", expected, line);
    }
    make_snapshot();
}

/* Numbers out of range, things that are missing or of another kind: one line that names them. */
static void test_manifest_fields(void **state)
{
    static const struct {
        const char *from, *to, *named;
        bs_status status;
    } cases[] = {
        {"\"version\": 1,", "\"version\": 2,", "version: the snapshot's is 2, this program's is 1",
         BS_STATUS_MISMATCH},
        {"\"format\": \"bitshard snapshot\"", "\"format\": \"other\"", "format", BS_STATUS_FORMAT},
        {"\"number\": 1", "\"number\": 0", "number", BS_STATUS_FORMAT},
        {"\"number\": 1", "\"number\": 2", "is number 2 inside", BS_STATUS_FORMAT},
        {"\"length\": 1600", "\"length\": -1", "length", BS_STATUS_FORMAT},
        {"\"length\": 1600", "\"length\": 99999999999", "length", BS_STATUS_FORMAT},
        {"\"length\": 1600", "\"length\": \"1600\"", "length", BS_STATUS_FORMAT},
        {"\"quant_end\": 10", "\"quant_end\": 13", "quant_end", BS_STATUS_FORMAT},
        {"\"quant_end\": 10", "\"quant_end\": 0", "quant_end", BS_STATUS_FORMAT},
        {"\"start_s\": 0", "\"start_s\": -1", "start_s", BS_STATUS_FORMAT},
        {"\"heads\": 1", "\"heads\": 0", "heads", BS_STATUS_FORMAT},
        {"\"seq\": 1", "\"seq\": 1e9", "seq", BS_STATUS_FORMAT},
        {"\"n_prompt\": 800", "\"n_prompt\": 5000", "n_prompt", BS_STATUS_FORMAT},
        {"\"finished\": false", "\"finished\": 0", "finished", BS_STATUS_FORMAT},
        {"\"seed\": \"18364758544493064720\"", "\"seed\": \"x\"", "seed", BS_STATUS_FORMAT},
        {"\"temperature\"", "\"temperatur\"", "temperature", BS_STATUS_FORMAT},
        {"\"first_page\": 0", "\"first_page\": 8", "first_page", BS_STATUS_FORMAT},
        {"\"end_page\": 8", "\"end_page\": 7", "end_page", BS_STATUS_FORMAT},
        {"\"end_page\": 8", "\"end_page\": 16", "end_page", BS_STATUS_FORMAT},
        {"\"file\": \"seg-", "\"file\": \"../seg-", "is not a segment's or tail's name", BS_STATUS_FORMAT},
        {"\"file\": \"seg-", "\"file\": \"/seg-", "is not a segment's or tail's name", BS_STATUS_FORMAT},
        {"\"file\": \"seg-", "\"file\": \"seg-0", "", BS_STATUS_IO},
        {"\"offset\": 1048576", "\"offset\": 99999999999", "lies beyond the file's end", BS_STATUS_FORMAT},
        {"\"offset\": 1048576", "\"offset\": -8", "offset", BS_STATUS_FORMAT},
        {"\"offset\": 1048576", "\"offset\": 1048584", "", BS_STATUS_FORMAT},
        {"\"header_sha256\": \"", "\"header_sha256\": \"0", "header_sha256", BS_STATUS_FORMAT},
        {"\"chain_sha256\"", "\"chain\"", "chain_sha256", BS_STATUS_FORMAT},
        {"\"tail\"", "\"tai\"", "tail", BS_STATUS_FORMAT},
        {"\"segments\": [", "\"segments\": [1, ", "segment", BS_STATUS_FORMAT},
        {"{", "[", "", BS_STATUS_FORMAT},
        {"\"kv\": \"int4", "\"kv\": \"int5", "kv", BS_STATUS_FORMAT},
        {"\"n_layers\": \"3\"", "\"n_layers\": \"99999999\"", "n_layers", BS_STATUS_FORMAT},
        {"\"head_dim\": \"64\"", "\"head_dim\": \"65\"", "head_dim", BS_STATUS_FORMAT},
        {"\"page_tokens\": \"128\"", "\"page_tokens\": \"64\"", "page_tokens", BS_STATUS_FORMAT},
    };
    char line[512];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        edit_manifest(cases[i].from, cases[i].to);
        const bs_status status = open_all(line);
        if (status != cases[i].status || !strstr(line, cases[i].named) || strlen(line) < 10)
            fail_msg("%s -> %s: %s, \"%s\"", cases[i].from, cases[i].to, bs_status_text(status), line);
    }
    make_snapshot();
    assert_int_equal(open_all(line), BS_STATUS_OK);
}

/* ---- restores that fail ------------------------------------------------------------------------------------ */

/* Damage in a page is found while pages are being restored: nothing has changed, and the same slot serves another. */
static void test_failed_restore(void **state)
{
    bs_snapshot_dir *dir;
    int64_t first_pos;
    off_t bytes;
    make_snapshot();
    const uint32_t n_f16 = bs_cache_free_slots(r.cache, false), n_quant = bs_cache_free_slots(r.cache, true);
    int fd = open_file("seg-", &bytes);
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, 0, &dir));
    const bs_snapshot_restore_args args = {.seq = 1, .n_reserved = 2048, .exact = true};
    flip(fd, bytes - 1048576, 3); /* in the datasets behind k */
    bs_log_set_level(BS_LOG_QUIET);
    bs_status status = bs_snapshot_restore(dir, r.stream, &args, &first_pos);
    assert_int_equal(status, BS_STATUS_FORMAT);
    assert_int_equal(bs_cache_seq_length(r.cache, 1), -1);
    assert_int_equal(bs_cache_seq_length(r.cache, 0), N);
    assert_int_equal(bs_cache_free_slots(r.cache, false), n_f16);
    assert_int_equal(bs_cache_free_slots(r.cache, true), n_quant);
    flip(fd, bytes - 1048576, 3);
    close(fd);
    OK(bs_snapshot_restore(dir, r.stream, &args, &first_pos));
    assert_int_equal(first_pos, N);
    bs_cache_seq_free(r.cache, 1);
    assert_int_equal(
        bs_snapshot_restore(dir, r.stream,
                            &(bs_snapshot_restore_args){.seq = 0, .n_reserved = 2048, .exact = true},
                            &first_pos),
        BS_STATUS_RANGE); /* in use */
    assert_int_equal(bs_snapshot_restore(
                         dir, r.stream,
                         &(bs_snapshot_restore_args){.seq = 1, .n_reserved = 100, .exact = true}, &first_pos),
                     BS_STATUS_RANGE); /* too little */
    bs_snapshot_dir_close(dir);
}

/* ---- reading back ------------------------------------------------------------------------------------------ */

/* How many bytes are read back of a snapshot that has a segment of three blocks. */
static uint64_t read_back(const char *verify)
{
    enum { LENGTH = 4000 };
    rig other = {.comm = r.comm};
    bs_snapshot_dir *dir;
    int32_t *ids = make_ids(LENGTH);
    setenv("SNAP_VERIFY", verify, 1);
    remove_tree(dir_path);
    open_rig(&other, false, "1x1", "int4", 8, 4096);
    OK(bs_cache_seq_start(other.cache, 0, 0, 4096));
    fill(&other, 0, LENGTH);
    OK(bs_snapshot_dir_open(other.snapshots, dir_path, BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    const bs_snapshot_result result = take_snapshot(&other, dir, LENGTH, ids);
    bs_snapshot_dir_close(dir);
    close_rig(&other);
    unsetenv("SNAP_VERIFY");
    free(ids);
    assert_int_equal(check_all(), BS_STATUS_OK);
    return result.read_bytes;
}

/* In full: every page. A sample: all but the middle block. */
static void test_verify(void **state)
{
    const uint64_t quantized = page_bytes(&r, true), f16 = page_bytes(&r, false);
    /* 32 pages: the sink (which has an empty place among the quantized ones, too), 28, 2 recent ones, an open one. */
    assert_int_equal(read_back("full"), 29 * quantized + 4 * f16);
    assert_int_equal(read_back("sample"), 21 * quantized + 4 * f16);
    assert_int_equal(read_back("none"), 0);
    make_snapshot();
}

/* ---- the lock ---------------------------------------------------------------------------------------------- */

static void write_lock(const char *text)
{
    char path[600];
    snprintf(path, sizeof path, "%s/lock", dir_path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static bs_status take_lock(const char *job, char line[512])
{
    bs_snap_fs fs;
    bs_snap_lock lock = {.fd = -1};
    bool found;
    OK(bs_snap_fs_open(dir_path, false, &fs, &found));
    const bs_error_diversion before = bs_error_divert(line, 512);
    bs_status status = bs_snap_lock_take(&fs, job, &lock);
    bs_error_divert_back(before);
    bs_snap_lock_release(&fs, &lock);
    bs_snap_fs_close(&fs);
    return status;
}

static void test_lock(void **state)
{
    char line[512], host[200], text[400], path[600];
    struct stat st;
    make_snapshot();
    bs_snapshot_dir *dir, *second;
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
    assert_int_equal(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &second), BS_STATUS_IO);
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, 0, &second)); /* to read is fine */
    bs_snapshot_dir_close(second);
    bs_snapshot_dir_close(dir);
    snprintf(path, sizeof path, "%s/lock", dir_path);
    assert_int_not_equal(stat(path, &st), 0);

    gethostname(host, sizeof host);
    snprintf(text, sizeof text, "host %s pid 4194999 start 1 job -\n", host); /* beyond any pid: gone */
    write_lock(text);
    assert_int_equal(take_lock("", line), BS_STATUS_OK);
    snprintf(text, sizeof text, "host %s pid %d start 1 job -\n", host,
             (int)getpid()); /* the number was given again */
    write_lock(text);
    assert_int_equal(take_lock("", line), BS_STATUS_OK);
    write_lock("host elsewhere pid 7 start 9 job 12.0\n");
    assert_int_equal(take_lock("", line), BS_STATUS_IO);
    assert_non_null(strstr(line, "in use by process 7 on elsewhere (job 12.0"));
    assert_int_equal(take_lock("12.0", line), BS_STATUS_IO);
    assert_int_equal(take_lock("13.1", line), BS_STATUS_IO);
    assert_int_equal(take_lock("12.1", line), BS_STATUS_OK); /* the same job, started again */
    write_lock("host elsewhere pid 7 start 9 job -\n");
    const struct timespec old[2] = {{.tv_sec = time(NULL) - 1000}, {.tv_sec = time(NULL) - 1000}};
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    assert_int_equal(take_lock("", line), BS_STATUS_OK); /* nobody has touched it */
    write_lock("nonsense");
    assert_int_equal(take_lock("", line), BS_STATUS_IO);
    unlink(path);
}

/* A task that takes longer than a lock lives: who polls keeps the lock fresh. */
static void test_lock_stays_fresh(void **state)
{
    const struct timespec old[2] = {{.tv_sec = time(NULL) - 1000}, {.tv_sec = time(NULL) - 1000}};
    char path[600];
    struct stat st;
    bs_snapshot_dir *dir;
    make_snapshot();
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
    find_file("lock", path);
    bs_snap_is_task_done(r.snapshots, 0);
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    bs_snap_is_task_done(r.snapshots, 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mtime, old[0].tv_sec); /* not at every step */
    r.snapshots->touched_s -= 1000;
    bs_snap_is_task_done(r.snapshots, 0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(time(NULL) - st.st_mtime < 100);
    bs_snapshot_dir_close(dir);
}

static atomic_bool is_over;

/* Takes the lock and gives it back, as fast as it can. */
static void *take_and_give(void *context)
{
    char held[600], lock[600];
    snprintf(held, sizeof held, "%s/held", dir_path);
    snprintf(lock, sizeof lock, "%s/lock", dir_path);
    while (!is_over)
        if (link(held, lock) == 0) unlink(lock);
    return NULL;
}

/* A lock that is given back between our try and our look at it is free, and no error. */
static void test_lock_vanishes(void **state)
{
    char held[600], lock[600], line[512];
    pthread_t rival;
    int n_taken = 0;
    make_snapshot();
    write_lock("host elsewhere pid 7 start 9 job 12.0\n");
    snprintf(held, sizeof held, "%s/held", dir_path);
    snprintf(lock, sizeof lock, "%s/lock", dir_path);
    assert_int_equal(rename(lock, held), 0);
    is_over = false;
    assert_int_equal(pthread_create(&rival, NULL, take_and_give, NULL), 0);
    for (int i = 0; i < 5000; i++) {
        const bs_status status = take_lock("", line);
        n_taken += status == BS_STATUS_OK;
        if (status != BS_STATUS_OK && !strstr(line, "in use by process 7 on elsewhere")) break;
        line[0] = 0;
    }
    is_over = true;
    pthread_join(rival, NULL);
    assert_string_equal(line, "");
    assert_true(n_taken > 0);
    unlink(held);
}

/* ---- collection -------------------------------------------------------------------------------------------- */

static int count_files(const char *prefix)
{
    DIR *dir = opendir(dir_path);
    const struct dirent *entry;
    int n = 0;
    while ((entry = readdir(dir)) != NULL) n += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    closedir(dir);
    return n;
}

/* Only what the newest need stays, and what is not ours. */
static void test_collection(void **state)
{
    char path[600];
    bs_snapshot_dir *dir;
    int32_t *ids = make_ids(N);
    make_snapshot();
    static const char *const others[] = {"notes.txt", "manifest-1.json", "seg-notes.txt", "out.h5"};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", dir_path, others[i]);
        close(open(path, O_WRONLY | O_CREAT, 0600));
    }
    snprintf(path, sizeof path, "%s/tmp-seg-00000000-1-0123456789abcdef.h5",
             dir_path); /* of a job that was killed */
    close(open(path, O_WRONLY | O_CREAT, 0600));
    OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
    for (int i = 0; i < 4; i++) take_snapshot(&r, dir, N, ids);
    bs_snapshot_dir_close(dir);
    free(ids);
    assert_int_equal(count_files("manifest-0"), 2);
    assert_int_equal(count_files("tail-"), 2);
    assert_int_equal(count_files("seg-0"), 1); /* the first one's went with it; the others share one */
    assert_int_equal(count_files("tmp-"), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(count_files(others[i]), 1);
    int n;
    uint64_t freed;
    OK(bs_snapshot_gc(dir_path, 1, true, "", &n, &freed));
    assert_int_equal(n, 2);
    assert_int_equal(count_files("manifest-0"), 2);
    OK(bs_snapshot_gc(dir_path, 1, false, "", &n, &freed));
    assert_int_equal(count_files("manifest-0"), 1);
    assert_int_equal(check_all(), BS_STATUS_OK);
    remove_tree(dir_path);
}

/* Closed in any phase: no temporary file stays, and what is in force is whole. */
static void test_close_gives_up(void **state)
{
    int32_t *ids = make_ids(N);
    make_snapshot();
    const uint32_t n_quant = bs_cache_free_slots(r.cache, true);
    for (int n_tasks = 0; n_tasks < 6; n_tasks++) {
        bs_snapshot_dir *dir;
        OK(bs_snapshot_dir_open(r.snapshots, dir_path, BS_SNAPSHOT_LOCK, &dir));
        OK(bs_snapshot_capture(dir, r.stream, 0));
        OK(bs_snapshot_commit(dir, ids, N + 1, &(bs_snapshot_state){.n_prompt = N}));
        for (int i = 0; i < n_tasks; i++) {
            while (!bs_snap_is_task_done(r.snapshots, 5)) continue;
            if (i + 1 < n_tasks) OK(bs_snapshots_poll(r.snapshots, NULL, NULL));
        }
        bs_snapshot_dir_close(dir);
        bs_snapshots_close(r.snapshots);
        open_snapshots(&r);
        assert_int_equal(count_files("tmp-"), 0);
        assert_int_equal(count_files("lock"), 0);
        assert_int_equal(bs_cache_free_slots(r.cache, true), n_quant);
        assert_int_equal(check_all(), BS_STATUS_OK);
    }
    assert_int_equal(count_files("manifest-"), 2);
    free(ids);
}

/* ---- geometry ---------------------------------------------------------------------------------------------- */

/* Growing by any steps, segments cover all sealed blocks, none overlaps, and there are never many. */
static void test_plan_of_files(void **state)
{
    bs_kv_format format;
    OK(bs_kv_format_parse("int4", &format));
    const bs_snap_shape shape = bs_snap_shape_of(2, 2, 64, &format);
    static bs_snap_file old[1024], files[BS_SNAP_MAX_NEW];
    for (int64_t step = 1; step < 400000; step = step * 3 + 1) {
        int n_old = 0;
        uint64_t rewritten = 0;
        for (int64_t length = step; length < step * 2000 && length < 9000000; length += step) {
            const bs_cache_seq_state seq = {.length = length,
                                            .quant_end = length / 128 - 2 > 1 ? length / 128 - 2 : 1};
            int n_kept, n_new;
            bs_snap_plan_files(&shape, old, n_old, &seq, length + 1, 65536, &n_kept, files, &n_new);
            assert_true(n_kept <= n_old && n_new >= 1 && n_new <= BS_SNAP_MAX_NEW);
            assert_true(n_kept + n_new - 1 <= BS_SNAP_MAX_SEGMENTS + length / 65536);
            assert_true(length > 1000000 || n_kept + n_new - 1 <= BS_SNAP_MAX_SEGMENTS);
            int64_t at = n_kept > 0 ? old[n_kept - 1].end_page : 0;
            for (int i = 0; i + 1 < n_new; i++) {
                assert_int_equal(files[i].first_page, at);
                assert_true(files[i].end_page > at && files[i].end_page % 8 == 0);
                at = files[i].end_page;
                rewritten += files[i].part[BS_SNAP_K].bytes;
                old[n_kept + i] = files[i];
            }
            assert_int_equal(files[n_new - 1].first_page, at);
            assert_int_equal(at, bs_snap_segments_end(&shape, &seq));
            assert_true(bs_snap_sealed_pages(&shape, &seq) - at < 8);
            n_old = n_kept + n_new - 1;
        }
        /* Each token is written to segments few times, however small the steps. */
        const uint64_t once = n_old > 0 ? (uint64_t)old[n_old - 1].end_page * 4 * shape.page[BS_SNAP_K] : 1;
        if (n_old > 0) assert_true(rewritten <= 3 * once);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_of_files),
        cmocka_unit_test(test_bit_in_every_page),
        cmocka_unit_test(test_bits_of_manifest),
        cmocka_unit_test(test_bits_of_header),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_swapped_files),
        cmocka_unit_test(test_older_tail),
        cmocka_unit_test(test_verify),
        cmocka_unit_test(test_goes_back),
        cmocka_unit_test(test_stale_manifest),
        cmocka_unit_test(test_owners_and_links),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_drop_cache),
        cmocka_unit_test(test_fingerprint_fields),
        cmocka_unit_test(test_manifest_fields),
        cmocka_unit_test(test_failed_restore),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_lock_stays_fresh),
        cmocka_unit_test(test_lock_vanishes),
        cmocka_unit_test(test_collection),
        cmocka_unit_test(test_close_gives_up),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
