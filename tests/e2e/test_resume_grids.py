"""Answers that go on on another grid at each stop, of a real model and of a tiny one with 8 KV heads. With an f16 cache each
token is the one-rank model's best after the ids before it, but where its best two logits are closer than 0.05; with int4 the
tokens' perplexity by an int4 cache on one rank is that of an answer which never moved. BITSHARD_BIG=1: 100 answers of the tiny
one, 20 of the real one; BITSHARD_MOVES and BITSHARD_REAL_MOVES: as many."""
import array
import json
import math
import os
import random
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c
import resume as r

c.need("numpy")
import numpy as np

RUNS = int(os.environ.get("BITSHARD_MOVES", "100" if c.BIG else "4"))
REAL_RUNS = int(os.environ.get("BITSHARD_REAL_MOVES", "20" if c.BIG else "2"))
SEED = int(os.environ.get("BITSHARD_SEED", "1"))
REAL, TINY = c.model(), os.path.join(c.WORK, "moves.gguf")
GRIDS = {REAL: [(0, "1x1"), (3, "3x1"), (3, "1x3"), (6, "3x2")],
         TINY: [(0, "1x1"), (2, "2x1"), (2, "1x2"), (3, "1x3"), (4, "2x2"), (4, "4x1")]}
MARGIN, TOKENS = c.tolerance("TOL_MARGIN"), 72
DIR, OUT = os.path.join(c.WORK, "moves.dir"), os.path.join(c.WORK, "moves.txt")


def words(model, prompt, kv, grid, n, *more):
    return ["generate", "--model", model, "-p", prompt, "--kv", kv, "--grid", grid, "-n", n, "--stripe-pages", 1, "--ignore-eos",
            "--watchdog-s", 60, *more]


def moved(model, prompt, kv, source):
    """The answer's ids, and the grids it was written on: stopped by a length, or by a signal in mid-answer."""
    r.remove(DIR, OUT)
    grids, n, where = [], 0, None
    while n < TOKENS:
        n = min(TOKENS, n + source.randrange(8, 40))
        where = source.choice([g for g in GRIDS[model] if g is not where])
        more = ["--snapshot", DIR, "--snapshot-every", 8, "--resume", "require" if grids else "auto"]
        if n < TOKENS and source.random() < 0.3:  # this one is to be stopped by a signal; the next one goes on from wherever
            process = r.begin(where[0], words(model, prompt, kv, where[1], TOKENS, *more))
            before = r.manifests(DIR)[-1:] or [0]
            r.wait_for(lambda: (r.manifests(DIR)[-1:] or [0])[0] > before[0] + 1, process)
            code, _, err = r.stop_and_wait(process, where[0], r.signal.SIGTERM)
            c.check(code in (0, r.STOPPED), f"{where[1]}: stopped: exit {code} {r.one_line(err)}")
            n = max(n, r.state(DIR)["sequence"]["n_tokens"] - r.state(DIR)["state"]["n_prompt"])
        else:
            code, out, err = r.run(where[0], words(model, prompt, kv, where[1], n, *more, "--json"))
            c.check(code == 0 and (not grids or "goes on at token" in err), f"{where[1]}, {n} tokens: exit {code} {r.one_line(err)}")
        grids.append(where[1])
    code, out, err = r.run(0, words(model, prompt, kv, "1x1", TOKENS + 1, *more, "--json"))
    answer = json.loads(out)
    return answer["prompt_tokens"], answer["tokens"], grids


def judge(model, ids, kv, first):
    """Of each token behind `first`: how far its logit is below the best, that one's lead, and its negative log-likelihood, by one
    rank that sees each position as decode does."""
    tokens, logits = os.path.join(c.WORK, "moves.i32"), os.path.join(c.WORK, "moves.f32")
    with open(tokens, "wb") as file:
        array.array("i", ids).tofile(file)
    c.model_run(0, model=model, tokens=tokens, kv=kv, out=logits, chunk=128, step=128)
    rows = np.fromfile(logits, dtype=np.float32).reshape(len(ids), -1)[first - 1:-1].astype(np.float64)
    got = rows[np.arange(len(rows)), ids[first:]]
    best = np.sort(np.partition(rows, -2, axis=1)[:, -2:], axis=1)
    top = rows.max(axis=1)
    nll = top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - got
    return best[:, 1] - got, best[:, 1] - best[:, 0], nll


def test(model, runs):
    source = random.Random(SEED)
    print(f"{os.path.basename(model)}: seed {SEED}, {runs} answers", flush=True)
    with open(c.TEXT, encoding="utf-8") as file:
        text = file.read()
    clear = moves = 0
    losses = {"moved": [], "still": []}
    for i in range(runs):
        kv = ("f16", "int4")[i % 2]
        # With int4 long enough that pages of several shards are quantized.
        bytes_of = source.randrange(300, 2400) if kv == "f16" or model is TINY else source.randrange(3200, 4400)
        start = source.randrange(0, len(text) - bytes_of)
        prompt = text[start:start + bytes_of]
        asked, got, grids = moved(model, prompt, kv, source)
        moves += len(grids)
        lost, lead, nll = judge(model, asked + got, kv, len(asked))
        what = f"{kv}, {len(asked)} + {len(got)} tokens on {' '.join(grids)}"
        if kv == "f16":
            wrong = [j for j in range(len(got)) if lost[j] > 0 and lead[j] >= MARGIN]
            clear += int((lead >= MARGIN).sum())
            c.check(not wrong, f"{what}: tokens that differ where one rank is clear: {wrong}")
            continue
        code, out, _ = r.run(0, words(model, prompt, kv, "1x1", TOKENS + 1, "--json"))
        still = json.loads(out)
        lost_still, _, nll_still = judge(model, still["prompt_tokens"] + still["tokens"], kv, len(asked))
        losses["moved"].append(lost.mean())
        losses["still"].append(lost_still.mean())
        c.check(lost.mean() <= lost_still.mean() + 0.05,
                f"{what}: {lost.mean():.4f} below the best logit on average, unmoved {lost_still.mean():.4f}; perplexity "
                f"{math.exp(nll.mean()):.2f}, unmoved {math.exp(nll_still.mean()):.2f}")
    c.check(clear >= 48 * ((runs + 1) // 2), f"{moves} stretches; {clear} tokens judged with f16")
    if losses["moved"]:
        c.check(np.mean(losses["moved"]) <= np.mean(losses["still"]) + 0.01,
                f"int4: {np.mean(losses['moved']):.5f} below the best on average, unmoved {np.mean(losses['still']):.5f}")


made = c.run(0, [c.BITSHARD, "make-model", "tiny", TINY, "--layers", "2"])
assert made.returncode == 0, made.stderr
test(TINY, RUNS)
test(REAL, REAL_RUNS)
c.finish()
