"""test_reshard.py: a snapshot of any grid is restored on any other, every page byte for byte; also formats, small stripes,
several segments, and the pages that a common prefix leaves."""
import os

from snapdir import BIG, check, finish, path, restore, snap_run, write

GRIDS = ["1x1", "1x2", "2x1", "1x3", "1x4", "4x1", "2x2", "2x3", "8x1"]
LENGTHS = "1408,4300"  # two snapshots: the second adds blocks and rewrites the tail
SHORTER = LENGTHS if BIG else "1408,2600"

n_matrices = 0


def matrix(kv, grids, stripe=8, lengths=LENGTHS, env=None):
    global n_matrices
    n_matrices += 1
    last = lengths.split(",")[-1]
    dirs = [path(f"{n_matrices}-{grid}") for grid in grids]
    for grid, directory in zip(grids, dirs):
        write(grid, kv, stripe, directory, lengths, env)
    for grid in grids:
        done = restore(grid, kv, stripe, last, dirs, env)
        what = f"{kv}, stripes of {stripe}, {lengths} tokens {env or ''}: {', '.join(grids)} to {grid}"
        check(done.returncode == 0, what + ("" if done.returncode == 0 else ": " + done.stderr.strip()[-400:]))
    return dirs[-1]


def prefixes(kv, directory, lengths, grid):
    length = int(lengths.split(",")[-1])
    common = f"0,127,129,1000,{length * 2 // 3},{length},{length + 50}"
    done = snap_run("prefix", grid, kv, 8, length, common, directory, timeout=120)
    check(done.returncode == 0, f"{kv}: {common} of {length} tokens in common, on {grid} {done.stderr.strip()[-300:]}")


prefixes("int4", matrix("int4", GRIDS), LENGTHS, "2x2")
for kv in ["f16", "int8", "k4v2", "int2", "int4:s9:r0", "int4:kt:g32"]:
    directory = matrix(kv, GRIDS if BIG else ["1x1", "1x3"], lengths=SHORTER)
    prefixes(kv, directory, SHORTER, "1x1")
matrix("int4", GRIDS if BIG else ["1x1", "2x2"], stripe=1)
matrix("int2", GRIDS if BIG else ["1x2"], stripe=3)
# Segments of one block, and tails alone.
matrix("int4", GRIDS if BIG else ["1x2"], lengths="128,1280,2560,3000", env={"SNAP_SEGMENT": "1024"})
for length in ["1", "127", "128", "129", "1024", "1408"]:
    matrix("int4", ["1x1"], lengths=length)
    matrix("f16", ["1x1"], lengths=length)
for verify in ["sample", "none"]:
    matrix("int4", ["1x1"], env={"SNAP_VERIFY": verify})
# A real model: 3 KV heads of 64, 30 layers; its weights' digest is part of what must agree on all grids.
model = os.environ.get("BITSHARD_TEST_MODEL", "")
if os.path.exists(model):
    matrix("int4", ["1x1", "3x1", "1x3", "3x2"], lengths="1408,2600", env={"SNAP_MODEL": model, "SNAP_CACHE": path("cache")})
finish()
