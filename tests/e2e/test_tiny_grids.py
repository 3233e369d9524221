"""Tiny models on grids {1, 2, 4, 8} x {1, 2, 3}: logits against one rank, for f16 and low-bit caches, every merge.

8 KV heads of 128 reach shapes that SmolLM2 (3 KV heads of 64) cannot: several head shards times several sequence shards, a
weight format whose blocks straddle heads, uneven shards of FFN and vocabulary. More than 8 ranks only in make bigcheck.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import array
import random

import common as c

MERGES = ["allreduce", "allgather", "fold"]
GRIDS = [(h, s) for h in (1, 2, 4, 8) for s in (1, 2, 3)]
N = 600


def make(name, *options):
    path = os.path.join(c.WORK, name + ".gguf")
    if not os.path.exists(path):
        done = c.run(0, [c.BITSHARD, "make-model", "tiny", path, *options])
        assert done.returncode == 0, done.stderr
    return path


def main():
    models = {
        "q4_1": make("q4_1"),
        "q6_k": make("q6_k", "--weight-type", "Q6_K", "--head-dim", "64", "--seed", "2"),
        "q8_0": make("q8_0", "--weight-type", "Q8_0", "--vocab", "773", "--ffn", "544", "--seed", "3"),
    }
    ids = os.path.join(c.WORK, "tiny.i32")
    rng = random.Random(20260917)
    with open(ids, "wb") as file:
        array.array("i", [rng.randrange(256) for _ in range(N)]).tofile(file)
    # f16: sums in another order; low bits: the same, and what a flipped code of a tiny model adds
    cases = [("q4_1", "f16", 1e-3), ("q6_k", "f16", 1e-3), ("q8_0", "f16", 1e-3), ("q4_1", "int8", 1e-2),
             ("q4_1", "int4", 5e-2), ("q6_k", "int2", 3e-1)]
    for name, kv, worst in cases:
        out = os.path.join(c.WORK, f"tiny.{name}.{kv}.f32")
        common = {"model": models[name], "tokens": ids, "n": N, "kv": kv, "stripe_pages": 1, "chunk": 128}
        c.model_run(1, out=out, **common)
        for i, (heads, seq) in enumerate(GRIDS):
            ranks = heads * seq
            if ranks == 1 or (ranks > 8 and not c.BIG):
                continue
            if not c.BIG and kv != "f16" and i % 2:
                continue
            merge = MERGES[(i + len(kv)) % 3]
            got = c.model_run(ranks, grid=f"{heads}x{seq}", merge=merge, busy_from=256 if seq > 1 else -1, against=out,
                              **common)
            c.check(got["worst"] <= worst, f"{name}, {kv}, {heads}x{seq}, {merge}: worst {got['worst']} <= {worst}")
        os.remove(out)


main()
c.finish()
