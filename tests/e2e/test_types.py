"""A tiny model of every weight type runs end to end: logits against the numpy reference, whose weights are dequantized by the
gguf package, and `generate` on two ranks."""
import array
import os
import random
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

c.need("numpy", "gguf")
import numpy as np
import reference

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
N = 150
WORST = 1e-3  # K and V are rounded to fp16: 2.5e-4 … 3.6e-4 measured


def logits(path, ids, step):
    out = os.path.join(c.WORK, "types.f32")
    c.model_run(1, model=path, tokens=ids, n=N, kv="f16", step=step, out=out)
    return np.fromfile(out, np.float32).reshape(N, -1)


def main():
    rng = random.Random(20260917)
    tokens = [rng.randrange(300) for _ in range(N)]
    ids = os.path.join(c.WORK, "types.i32")
    with open(ids, "wb") as file:
        array.array("i", tokens).tofile(file)
    np.seterr(over="ignore")
    for name in TYPES:
        path = os.path.join(c.WORK, f"type.{name}.gguf")
        done = c.run(0, [c.BITSHARD, "make-model", "tiny", path, "--weight-type", name, "--layers", "2", "--hidden", "256",
                         "--heads", "4", "--kv-heads", "2", "--head-dim", "64", "--ffn", "512", "--vocab", "300"])
        if not c.check(done.returncode == 0, f"{name}: make-model {done.stderr}"):
            continue
        want = reference.Model(path).logits(np.array(tokens))
        for step in (1, 128):  # codes expanded in registers, and in tiles
            got = logits(path, ids, step)
            worst = float(np.max(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)))
            c.check(worst <= WORST, f"{name}, {step} tokens a step: worst row {worst:.2e} <= {WORST}")
        done = c.run(2, [c.BITSHARD, "generate", "--model", path, "-p", "a model of each type", "-n", "8", "--ignore-eos"])
        c.check(done.returncode == 0 and len(done.stdout) > 1, f"{name}: generate on two ranks {done.stderr[-200:]}")
        os.remove(path)


main()
c.finish()
