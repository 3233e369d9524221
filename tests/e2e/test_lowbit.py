"""Low-bit caches on every grid.

One step from the same canonical pages gives the same logits on every grid. Over a whole text (teacher-forced, C = 128 as in
`eval`) a grid differs from one rank only by flipped codes: another order of summation changes a K by an ulp, which may flip
a code, and the mean KL stays within what that explains: it is compared with the KL of two orders on one rank. make check takes
2,048 tokens in stripes of two pages, so that five shards have some, and a part of the grids for each format; make bigcheck
4,096 and all grids.
"""
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

MODEL = c.model()
IDS = c.ids_of(MODEL)
# Mean KL of a grid against one rank: at most this, or twice what another order of summation alone makes on one rank (steps of 64
# tokens for 128), whichever is more. Measured on this text, int4: two orders 3.6e-4; 1x2 3.1e-4, 1x3 3.8e-4, 3x1 5.1e-4, of which
# one position of 4,096 makes 0.9e-4. A dropped shard makes more than 1.
KL = {"int8": 2e-5, "int4": 3e-4, "k4v2": 3e-3, "int2": 2e-2}
SAME_PAGES = 1e-3
MERGES = ["allreduce", "allgather", "fold"]


def same_pages():
    grids = [(2, "1x2"), (3, "3x1"), (4, "1x4"), (5, "1x5"), (6, "3x2")]
    for k, kv in enumerate(["f16", "int8", "int4", "k4v2", "int2", "int4:kt"]):
        pages = os.path.join(c.WORK, "pages." + kv.replace(":", "_"))
        shutil.rmtree(pages, ignore_errors=True)
        os.makedirs(pages)
        out = os.path.join(pages, "logits")
        # 1,300 tokens: sink, 7 quantized pages, 2 recent, an open page of 20 (1 of them the step's)
        common = {"model": MODEL, "tokens": IDS, "n": 1300, "kv": kv, "stripe_pages": 1, "chunk": 128}
        c.model_run(1, out=out, pages_out=pages, **common)
        for i, (ranks, grid) in enumerate(grids):
            if not c.BIG and kv != "int4" and (i + k) % 2:
                continue
            got = c.model_run(ranks, grid=grid, merge=MERGES[i % 3], against=out, pages_in=pages, **common)
            c.check(got["worst"] <= SAME_PAGES, f"{kv}, {grid}: one step from the same pages: {got['worst']}")
        shutil.rmtree(pages)


def teacher_forced():
    grids = [(2, "1x2"), (3, "3x1"), (6, "3x2"), (4, "1x4"), (5, "1x5")]
    size = {"n": 4096} if c.BIG else {"n": 2048, "stripe_pages": 2}
    for i, (kv, limit) in enumerate(KL.items()):
        out = os.path.join(c.WORK, f"teacher.{kv}.f32")
        common = {"model": MODEL, "tokens": IDS, "kv": kv, "chunk": 128, **size}
        c.model_run(1, out=out, **common)
        orders = c.model_run(1, step=64, against=out, **common)["kl"]
        limit = max(limit, 2 * orders)
        for j, (ranks, grid) in enumerate(grids if c.BIG else [grids[[2, 0, 4, 1][i]]]):
            got = c.model_run(ranks, grid=grid, merge=MERGES[j % 3], against=out, **common)
            c.check(got["kl"] <= limit, f"{kv}, {grid}: mean KL {got['kl']} <= {limit} (two orders on one rank: {orders}); {got}")
        os.remove(out)


same_pages()
teacher_forced()
c.finish()
