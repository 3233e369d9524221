/* snap_run.c: snapshots of a cache of noise, without an engine: written by some grid of ranks, restored and compared on
 * another. the programs beside it run it under mpirun.
 *
 *   snap_run [gpu] write   GRID KV STRIPE DIR N1[,N2…]  a snapshot each at N1, N2 … tokens, of one sequence
 *   snap_run [gpu] restore GRID KV STRIPE N DIR…        each DIR holds N tokens: every page equals the noise's
 *   snap_run [gpu] prefix  GRID KV STRIPE N C1[,C2…] DIR  of N tokens the pages that C1, C2 … common ones leave */
#include "tests/snapshot/rig.h"

/* ---- commands ---------------------------------------------------------------------------------------------- */

static void write_all(rig *r, bool gpu, char **argv)
{
    int64_t last = 0;
    bs_snapshot_dir *dir;
    for (const char *at = argv[4]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) last = atoll(at);
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), last);
    int32_t *ids = make_ids(last + 1);
    OK(bs_snapshot_dir_open(r->snapshots, argv[3], BS_SNAPSHOT_CREATE | BS_SNAPSHOT_LOCK, &dir));
    OK(bs_cache_seq_start(r->cache, 0, r->grid.seq > 1, last)); /* not at shard 0 */
    for (const char *at = argv[4]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        fill(r, 0, atoll(at));
        take_snapshot(r, dir, atoll(at), ids);
    }
    free(ids);
    bs_snapshot_dir_close(dir);
    close_rig(r);
}

/* EXPECTED_SEQ holds n tokens of noise from this shard on. Drawing them is most of what a restore here costs, so they stay
 * as long as they can serve. */
static void expect(rig *r, int start, int64_t n, int64_t n_reserved)
{
    if (bs_cache_seq_length(r->cache, EXPECTED_SEQ) == n &&
        bs_cache_seq_start_shard(r->cache, EXPECTED_SEQ) == start)
        return;
    bs_cache_seq_free(r->cache, EXPECTED_SEQ);
    OK(bs_cache_seq_start(r->cache, EXPECTED_SEQ, start, n_reserved));
    fill(r, EXPECTED_SEQ, n);
}

/* Where the sequence of the i-th of n directories is to begin, if another grid wrote it: the last shard, the first, that
 * of write_all; each for a third of them, as each costs new noise. */
static int start_of(const rig *r, int i, int n)
{
    const int starts[] = {r->grid.seq - 1, 0, 1 % r->grid.seq};
    return starts[i * 3 / n];
}

static void restore_all(rig *r, bool gpu, int argc, char **argv)
{
    const int64_t n = atoll(argv[3]);
    const int first = 4;
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), n + 1024);
    for (int i = first; i < argc; i++) {
        bs_snapshot_dir *dir;
        int64_t first_pos;
        OK(bs_snapshot_dir_open(r->snapshots, argv[i], 0, &dir));
        const bs_snapshot_info *info = bs_snapshot_dir_info(dir);
        check_info(r, info, n);
        const bs_snapshot_restore_args args = {.seq = 0,
                                               .n_reserved = n + 100,
                                               .exact = true,
                                               .start_s = start_of(r, i - first, argc - first)};
        OK(bs_snapshot_restore(dir, r->stream, &args, &first_pos));
        CHECK(first_pos == n && bs_cache_seq_length(r->cache, 0) == n);
        const int start = bs_cache_seq_start_shard(r->cache, 0);
        CHECK(start == (info->same_grid ? info->cache.start_s : args.start_s));
        expect(r, start, n, n + 100);
        compare(r, (n + 127) / 128, argv[i]);
        bs_cache_seq_free(r->cache, 0);
        if (getenv("SNAP_SHOW") && r->grid.rank == 0) {
            const bs_snapshot_restore_stats st = bs_snapshot_last_restore(dir);
            printf("restored %.3f GB in %.3f s, %.3f s of it reading\n", (double)st.bytes * 1e-9, st.total_s,
                   st.read_s);
        }
        bs_snapshot_dir_close(dir);
    }
    close_rig(r);
}

/* Against what bs_cache_seq_reuse makes of the same tokens in a live sequence. */
static void restore_prefix(rig *r, bs_snapshot_dir *dir, int64_t n, int64_t common, const char *name)
{
    int64_t first_pos, expected_pos;
    bs_cache_seq_state a, b;
    const bs_snapshot_restore_args args = {.seq = 0, .n_reserved = n + 100, .n_common = common};
    OK(bs_snapshot_restore(dir, r->stream, &args, &first_pos));
    const int start = bs_cache_seq_start_shard(r->cache, 0);
    OK(bs_cache_seq_get_state(r->cache, 0, &a));
    expect(r, start, n, n);
    compare(r, first_pos / 128, name);
    CHECK(bs_cache_reusable(r->cache, EXPECTED_SEQ, common) == first_pos);
    bs_cache_seq_free(r->cache, 0);
    OK(bs_cache_seq_reuse(r->cache, EXPECTED_SEQ, 0, common < n ? common : n, n + 100, &expected_pos));
    OK(bs_cache_seq_get_state(r->cache, 0, &b));
    CHECK(expected_pos == first_pos && a.length == b.length && a.quant_end == b.quant_end &&
          a.in_prompt == b.in_prompt);
    CHECK(!a.in_prompt || a.prompt_base == b.prompt_base);
    bs_cache_seq_free(r->cache, 0);
}

static void restore_prefixes(rig *r, bool gpu, char **argv)
{
    const int64_t n = atoll(argv[3]);
    bs_snapshot_dir *dir;
    open_rig(r, gpu, argv[0], argv[1], atoi(argv[2]), n + 1024);
    OK(bs_snapshot_dir_open(r->snapshots, argv[5], 0, &dir));
    for (const char *at = argv[4]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        restore_prefix(r, dir, n, atoll(at), argv[5]);
    bs_snapshot_dir_close(dir);
    close_rig(r);
}

int main(int argc, char **argv)
{
    rig r = {0};
    OK(bs_comm_init(&argc, &argv, &r.comm));
    const bool gpu = argc > 1 && strcmp(argv[1], "gpu") == 0;
    argc -= 1 + gpu;
    argv += 1 + gpu;
    CHECK(argc >= 6);
    if (strcmp(argv[0], "write") == 0) write_all(&r, gpu, argv + 1);
    else if (strcmp(argv[0], "restore") == 0) restore_all(&r, gpu, argc - 1, argv + 1);
    else if (strcmp(argv[0], "prefix") == 0) restore_prefixes(&r, gpu, argv + 1);
    else CHECK(!"a command");
    bs_comm_finalize(r.comm);
    return 0;
}
