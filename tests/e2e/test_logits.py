"""Logits of the real model against the float32 reference, f16 cache, on every grid.

Over 512 positions with stripes of one page, so that sequence shards share from position 128 on, and over 4,096 positions
with the default stripes. A merge that is broken on purpose must be noticed: an LSE replaced by 0, a shard's O dropped.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

c.need("numpy", "gguf")
MODEL = c.model()
IDS = c.ids_of(MODEL)
# rounding an f16 cache alone makes 7e-4 over all positions and 3e-3 at the worst
TOTAL, WORST = 2e-3, 1e-2
GRIDS = [(1, "1x1"), (2, "1x2"), (3, "3x1"), (3, "1x3"), (4, "1x4"), (5, "1x5"), (6, "3x2"), (6, "1x6")]
MERGES = ["allreduce", "allgather", "fold"]


def good(got):
    return got["rel_l2"] <= TOTAL and got["worst"] <= WORST and got["clear_differ"] == 0


def main():
    short = c.reference_logits(MODEL, IDS, 512)
    for i, (ranks, grid) in enumerate(GRIDS):
        for merge in MERGES if grid in ("1x2", "3x2") else [MERGES[i % 3]]:
            got = c.model_run(ranks, model=MODEL, tokens=IDS, n=512, grid=grid, merge=merge, stripe_pages=1, step=64,
                              busy_from=128, against=short)
            c.check(good(got), f"512 positions, stripe 1 page, {grid}, {merge}: {got}")
    for merge in MERGES:
        for fault in ("lse0", "drop"):
            got = c.model_run(2, may_fail=True, model=MODEL, tokens=IDS, n=512, grid="1x2", merge=merge, stripe_pages=1,
                              step=64, against=short, **{"break": fault})
            c.check(got is None or not good(got), f"a broken merge ({fault}, {merge}) is noticed: {got}")
    got = c.model_run(2, may_fail=True, model=MODEL, tokens=IDS, n=512, grid="1x2", busy_from=128, against=short)
    c.check(got is None, "with stripes of 1,024 tokens, 512 positions leave a shard empty, and busy-from says so")

    os.remove(short)
    long = c.reference_logits(MODEL, IDS, 4096)
    for i, (ranks, grid) in enumerate(GRIDS):
        if not c.BIG and grid not in ("1x1", "1x3", "3x2", "1x5"):
            continue
        got = c.model_run(ranks, model=MODEL, tokens=IDS, n=4096, grid=grid, merge=MERGES[i % 3], busy_from=1024,
                          against=long)
        c.check(good(got), f"4,096 positions, {grid}, {MERGES[i % 3]}: {got}")
    os.remove(long)


main()
c.finish()
