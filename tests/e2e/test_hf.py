"""Hugging Face directories: small models of each architecture written by transformers, whose float32 logits are the
golden data (tests/data/make_hf_golden.py), on 1, 2 and 3 ranks, in steps of many tokens and of one.

The f16 cache rounds K and V. So there are two comparisons: with logits of transformers whose attention rounds them as
well, which leaves the order of sums, and with its logits as they are.
"""
import array
import json
import math
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

DATA = os.path.join(c.SRC, "tests", "data", "hf")
MIDDLE = c.tolerance("TOL_HF_LOGITS_MIDDLE")
WORST = c.tolerance("TOL_HF_LOGITS_WORST")
EXACT = c.tolerance("TOL_HF_LOGITS_EXACT")


def floats(path):
    values = array.array("f")
    with open(path, "rb") as file:
        values.frombytes(file.read())
    return values


def distances(got, want, n_vocab):
    """Relative L2 of each row, in order of size; NaN counts as infinite."""
    rows = []
    for at in range(0, len(want), n_vocab):
        error = math.sqrt(sum((g - w) ** 2 for g, w in zip(got[at:at + n_vocab], want[at:at + n_vocab])))
        norm = math.sqrt(sum(w * w for w in want[at:at + n_vocab]))
        rows.append(error / norm if error <= 1e30 else math.inf)
    return sorted(rows)


def check_model(name):
    path = os.path.join(DATA, name)
    with open(os.path.join(path, "golden.json")) as file:
        golden = json.load(file)
    exact, rounded = (floats(os.path.join(path, f)) for f in ("logits.f32", "logits16.f32"))
    n_vocab = len(exact) // len(golden["rows"])
    ids, out = (os.path.join(c.WORK, "hf" + end) for end in (".i32", ".f32"))
    with open(ids, "wb") as file:
        array.array("i", golden["tokens"]).tofile(file)
    for ranks, step, grid in ((1, 256, "auto"), (1, 1, "auto"), (2, 256, "auto"), (3, 1, "1x3")):
        options = {} if grid == "auto" else {"grid": grid}
        c.model_run(ranks, model=path, tokens=ids, kv="f16", step=step, stripe_pages=1, out=out, **options)
        every = floats(out)
        got = array.array("f")
        for row in golden["rows"]:
            got.extend(every[row * n_vocab:(row + 1) * n_vocab])
        rows, far = distances(got, rounded, n_vocab), distances(got, exact, n_vocab)[-1]
        middle, worst = rows[len(rows) // 2], rows[-1]
        what = f"{name}, {ranks} ranks, {step} tokens a step"
        c.check(middle <= MIDDLE and worst <= WORST, f"{what}: middle row {middle:.1e} <= {MIDDLE}, worst {worst:.1e} <= "
                f"{WORST} of transformers with an fp16 cache")
        c.check(far <= EXACT, f"{what}: worst row {far:.1e} <= {EXACT} of transformers")


names = sorted(os.listdir(DATA))
c.check(len(names) >= 10, f"{len(names)} models")
for name in names:
    check_model(name)
c.finish()
