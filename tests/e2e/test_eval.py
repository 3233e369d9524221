"""bitshard eval: its figures against numpy's from the same logits, windows, every grid and merge, refusals.

On tiny models the figures must be those that float64 sums over model_run's logits give; on SmolLM2 a grid's perplexity must
be one rank's.
"""
import array
import csv
import functools
import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c
import resume as r

c.need("numpy")
import numpy as np

SHAPE = ("--layers", "3", "--hidden", "128", "--heads", "8", "--kv-heads", "4", "--head-dim", "64", "--ffn", "256", "--vocab", "512")
MODEL = os.path.join(c.WORK, "eval.gguf")
SHORT = os.path.join(c.WORK, "eval.txt")
MERGES = ("allreduce", "allgather", "fold")
FORMATS = ("f16", "int8", "int4:r0", "k4v2:g64", "int2:s0:r1")
KEYS = ["kv", "perplexity", "kl", "kl_p99", "top1", "bits_per_element", "bits_per_element_d128"]
# What the order of sums may change in a perplexity, relative: the limits, for 6,000 tokens of SmolLM2.
GRID = {"f16": 1e-4, "int8": 3e-4, "int4": 1e-3, "int2": 1e-2}
GRIDS = [(2, "1x2"), (3, "3x1"), (4, "1x4"), (6, "3x2"), (5, "1x5"), (3, "1x3")]


def evaluate(*words, model=MODEL, text=SHORT, ranks=0, timeout=600):
    done = c.run(ranks, [c.BITSHARD, "eval", "--model", model, "--text", text, "--quiet", "--json", *words], timeout)
    if not c.check(done.returncode == 0 and done.stdout.count("\n") == 1, f"eval {' '.join(words)}: exit {done.returncode} {done.stderr[-300:]}"):
        c.finish()
    c.check(not done.stderr, f"--quiet leaves warnings and errors: {done.stderr}")
    return json.loads(done.stdout)


@functools.lru_cache(maxsize=None)
def logits_of(ids, kv):
    """f32 logits [n, vocab] of a tuple of ids at C = 128, from a pass that gathers them whole."""
    path, out = os.path.join(c.WORK, "eval.i32"), os.path.join(c.WORK, "eval.f32")
    with open(path, "wb") as file:
        array.array("i", ids).tofile(file)
    c.model_run(1, model=MODEL, tokens=path, kv=kv, chunk=128, out=out)
    return np.fromfile(out, "<f4").reshape(len(ids), -1).astype(np.float64)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def expected(windows, kv):
    """perplexity, kl, kl_p99, top1; windows: (ids, positions that count) each."""
    nll, kl, same = [], [], []
    for ids, rows in windows:
        p, q = log_softmax(logits_of(tuple(ids), "f16")), log_softmax(logits_of(tuple(ids), kv))
        nll += [-q[row, ids[row + 1]] for row in rows]
        kl += [(np.exp(p[row]) * (p[row] - q[row])).sum() for row in rows]
        same += [p[row].argmax() == q[row].argmax() for row in rows]
    return np.exp(np.mean(nll)), np.mean(kl), np.percentile(kl, 99), np.mean(same)


def matches(row, want, what):
    got = [row[name] for name in KEYS[1:5]]
    # a step of another length may sum in another order: an ulp of a logit
    near = abs(got[0] / want[0] - 1) <= 1e-5 and abs(got[1] - want[1]) <= 1e-6 + 1e-3 * want[1] and abs(got[2] - want[2]) <= 1e-5 + 1e-2 * want[2]
    c.check(near and abs(got[3] - want[3]) <= 1e-9, f"{what}: {got}, from the logits {[float(x) for x in want]}")


def test_figures(ids):
    got = evaluate("--kv", ",".join(FORMATS))
    c.check(list(got) == ["tokens", "results"] and got["tokens"] == len(ids) and [row["kv"] for row in got["results"]] == list(FORMATS)
            and all(list(row) == KEYS for row in got["results"]), f"keys of --json: {got}")
    for kv, row in zip(FORMATS, got["results"]):
        matches(row, expected([(ids, range(len(ids) - 1))], kv), f"one pass, {kv}")
    f16, int8, _, _, int2 = got["results"]
    c.check(f16["kl"] == 0 and f16["top1"] == 1 and 0 < int8["kl"] < 1e-3 < int2["kl"] and int2["top1"] < 0.98, f"f16 is the reference, int2 is far: {got}")
    c.check([row["bits_per_element"] for row in got["results"]] == [16, 8.375, 4.375, 3.625, 3.125]
            and [row["bits_per_element_d128"] for row in got["results"]] == [16, 8.25, 4.25, 3.5625, 3.0625], f"bits: {got}")
    alone = evaluate("--kv", "int2:s0:r1,f16,f16")
    c.check(alone["results"] == [int2, f16, f16], f"a format alone, f16 last and twice: {alone}")
    plain = evaluate("--kv", "int2:s0:r1", "--v-encoder", "plain")["results"][0]
    c.check(plain["kl"] > 1.05 * int2["kl"], f"--v-encoder plain is worse: {plain['kl']}, {int2['kl']}")


def windows_of(ids, context, overlap, bos=None):
    """What the manual says: each token counted once, in the first window that has something before it."""
    begin, windows, first, counted = [] if bos is None else [bos], [], 0, 0
    while True:
        end = min(first + context - len(begin), len(ids))
        part = begin + ids[first:end]
        rows = [row for row in range(len(part) - 1) if first + row + 1 - len(begin) >= counted]
        windows.append((part, rows))
        if end == len(ids):
            return windows
        first, counted = end - overlap, end


def test_windows(ids):
    for context, overlap in ((300, 150), (290, 0), (257, 1), (len(ids) + 5, None), (300, None)):
        words = ("-c", str(context)) + (() if overlap is None else ("--overlap", str(overlap)))
        windows = windows_of(ids, context, context // 2 if overlap is None else overlap)
        matches(evaluate("--kv", "int2:s0:r0", *words)["results"][0], expected(windows, "int2:s0:r0"), f"windows {words}")
    path = os.path.join(c.WORK, "eval.bos.gguf")
    data = bytearray(open(MODEL, "rb").read())
    at = data.index(b"tokenizer.ggml.add_bos_token") + len(b"tokenizer.ggml.add_bos_token") + 4
    assert data[at] == 0
    data[at] = 1
    open(path, "wb").write(data)
    for words, context, overlap in (((), len(ids) + 1, 0), (("-c", "300", "--overlap", "0"), 300, 0), (("-c", "301", "--overlap", "77"), 301, 77)):
        matches(evaluate("--kv", "int2:s0:r0", *words, model=path)["results"][0], expected(windows_of(ids, context, overlap, bos=1), "int2:s0:r0"),
                f"a begin token, {words}")
    os.unlink(path)


def test_output(ids):
    path = os.path.join(c.WORK, "eval.csv")
    command = [c.BITSHARD, "eval", "--model", MODEL, "--text", SHORT, "--kv", "f16,int2:s0:r0"]
    done = c.run(0, command + ["--csv", path, "--every", "200"])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    points = [200, 400, 600][: (len(ids) - 1) // 200] + [len(ids)]
    c.check([(int(row["tokens"]), row["kv"]) for row in rows] == [(n, kv) for n in points for kv in ("f16", "int2:s0:r0")]
            and list(rows[0]) == ["tokens"] + KEYS, f"--every 200: {[(row['tokens'], row['kv']) for row in rows]}")
    part = expected([(ids, range(399))], "int2:s0:r0")
    c.check(abs(float(rows[3]["perplexity"]) / part[0] - 1) < 1e-5 and abs(float(rows[3]["kl"]) - part[1]) < 1e-5, f"the first 400: {rows[3]}, {part}")
    lines = done.stdout.splitlines()
    c.check(len(lines) == 4 and f"{len(ids)} tokens in one pass, {len(ids) - 1} predicted" in lines[0] and lines[3].split()[0] == "int2:s0:r0"
            and abs(float(lines[3].split()[3]) - float(rows[-1]["perplexity"])) < 1e-3, f"the table: {done.stdout}")
    c.check(sum("eval:" in line for line in done.stderr.splitlines()) in (1, 2, 3), f"plain lines in a log: {done.stderr}")
    to_stdout = c.run(0, command + ["--csv", "-", "--quiet"])
    c.check(list(csv.DictReader(to_stdout.stdout.splitlines()))[-1] == rows[-1], f"--csv -: {to_stdout.stdout}")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command + ["--quiet"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    c.check(done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, f"a full disk: {done.returncode} {done.stderr}")
    endless = [c.BITSHARD, "eval", "--model", MODEL, "--text", c.TEXT, "--kv", "f16,int2:s0:r0", "-c", "600", "--overlap", "599"]
    job = c.OnTerminal(endless)
    job.wait_for("eval .*%")
    job.process.send_signal(signal.SIGTERM)
    code, out, lines = job.end()
    c.check(code == 1 and not out and sum("stopped by SIGTERM after" in line for line in lines) == 1, f"SIGTERM: exit {code} {lines}")
    # Two ranks: rows of figures show that they have begun. mpirun may end its ranks before they have said so.
    os.unlink(path)
    process = r.begin(2, [*endless[1:], "--csv", path, "--every", "100"])
    c.check(r.wait_for(lambda: os.path.exists(path) and r.read(path).count(b"\n") > 1, process), "2 ranks: they have begun")
    process.send_signal(signal.SIGTERM)
    code, out, err = r.end(process)
    c.check(code not in (0, None) and not out, f"SIGTERM, 2 ranks: exit {code} {err}")


def test_refusals():
    def text(name, content):
        path = os.path.join(c.WORK, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    good = ("--model", MODEL, "--text", SHORT)
    empty, single, latin = text("eval.empty", b""), text("eval.single", b"a"), text("eval.latin", b"Gr\xfc\xdfe, Welt")
    for code, part, *words in (
            (2, "--text FILE is needed", "--model", MODEL),
            (2, "--model FILE is needed", "--text", SHORT),
            (1, "--text /nowhere.txt", "--model", MODEL, "--text", "/nowhere.txt"),
            (1, "irectory", "--model", MODEL, "--text", c.WORK),
            (2, "is empty", "--model", MODEL, "--text", empty),
            (2, "1 token", "--model", MODEL, "--text", single),
            (1, "UTF-8", "--model", MODEL, "--text", latin),
            (1, SHORT, "--model", SHORT, "--text", SHORT),
            (2, '"int3"', *good, "--kv", "f16,int3"),
            (2, '--kv: KV format ""', *good, "--kv", "f16,,int4"),
            (2, '"g16"', *good, "--kv", "int2:g16"),
            (2, "more than 64", *good, "--kv", ",".join(["f16"] * 65)),
            (2, "-c 1:", *good, "-c", "1"),
            (2, "--overlap 300", *good, "-c", "300", "--overlap", "300"),
            (2, "--every", *good, "--every", "100"),
            (2, "--csv -", *good, "--csv", "-", "--json"),
            (1, "--csv /nowhere/x", *good, "--csv", "/nowhere/x"),
            (2, "--grid 2x2", *good, "--grid", "2x2"),
            (2, "--prompt", *good, "--prompt", "x")):
        for ranks in (0, 2) if part in ("is empty", '"int3"', "--csv /nowhere/x") else (0,):
            done = c.run(ranks, [c.BITSHARD, "eval", *words], timeout=60)
            lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
            c.check(done.returncode == code and len(lines) == 1 and part in lines[0] and not done.stdout,
                    f"{' '.join(words)[-60:]}, {ranks} ranks: exit {done.returncode}, {lines}")
    small = os.path.join(c.WORK, "eval.small.gguf")
    c.run(0, [c.BITSHARD, "make-model", "tiny", small, *SHAPE, "--context-length", "500"])
    done = c.run(0, [c.BITSHARD, "eval", "--model", small, "--text", SHORT], timeout=60)
    c.check(done.returncode == 2 and done.stderr.count("\n") == 1 and "give --context 500" in done.stderr, f"longer than the model's context: {done.stderr}")
    done = c.run(0, [c.BITSHARD, "eval", "--model", small, "--text", SHORT, "--kv", "int8", "-c", "500"], timeout=60)
    c.check(done.returncode == 0 and "windows of 500, 250 shared" in done.stdout and "trained" not in done.stderr, f"and with windows: {done.stdout} {done.stderr}")
    done = c.run(0, [c.BITSHARD, "eval", "--model", small, "--text", SHORT, "--kv", "int8", "-c", "501"], timeout=60)
    c.check(done.returncode == 0 and "trained for 500" in done.stderr, f"a window beyond the context is a warning: {done.stderr}")
    for variable, part in (("KV=f16,int2", "--kv"), ("DTYPE=bf16", "--dtype is bf16, rank 0's auto")):
        done = c.run_rank_1_with(variable, ["eval", *good], timeout=60)
        lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
        c.check(done.returncode == 1 and len(lines) == 1 and "rank 1" in lines[0] and part in lines[0],
                f"a rank with BITSHARD_{variable} in its environment: {done.returncode} {lines}")


def compare(got, one, limits, what):
    for row, want in zip(got["results"], one["results"]):
        limit = limits[row["kv"].split(":")[0]]
        moved = abs(row["perplexity"] / want["perplexity"] - 1)
        c.check(moved <= limit and abs(row["kl"] - want["kl"]) <= limit + 0.1 * want["kl"] and abs(row["top1"] - want["top1"]) <= 0.02,
                f"{what}, {row['kv']}: perplexity moved by {moved:.2g} <= {limit}, KL {row['kl']:.5f} for {want['kl']:.5f}")


def test_tiny_grids():
    """Shards of the vocabulary of every size, empty ones of the cache, every merge."""
    one = evaluate("--kv", "f16,int8,int4,int2:s0:r0")
    for i, (ranks, grid) in enumerate(((2, "2x1"), (2, "1x2"), (3, "1x3"), (4, "2x2"), (4, "4x1"), (5, "1x5"), (6, "2x3"), (8, "4x2"))):
        for merge in MERGES if c.BIG else MERGES[i % 3:i % 3 + 1]:
            got = evaluate("--kv", "f16,int8,int4,int2:s0:r0", "--stripe-pages", "1", "--grid", grid, "--merge", merge, ranks=ranks)
            compare(got, one, GRID, f"tiny, {grid}, {merge}")


def test_grids():
    """SmolLM2: the whole text in make bigcheck, on every grid and merge; else 1,100 tokens, on one that shards heads and sequence."""
    if not os.path.exists(os.environ.get("BITSHARD_TEST_MODEL", "")):
        print("skipped: SmolLM2's grids; BITSHARD_TEST_MODEL names no file")
        return
    text = os.path.join(c.WORK, "eval.long.txt")
    with open(c.TEXT, encoding="utf-8") as file, open(text, "w", encoding="utf-8") as out:
        out.write(file.read() if c.BIG else file.read(4900))
    words = ("--kv", "f16,int8,int4,int2" if c.BIG else "f16,int4,int2", "--stripe-pages", "1")
    one = evaluate(*words, model=c.model(), text=text, timeout=3600)
    # Codes that flip move single tokens either way: over fewer tokens their mean moves by more, as a mean's noise does.
    noise = max(1, (6000 / one["tokens"]) ** 0.5)
    limits = {kv: limit * (1 if kv == "f16" else noise) for kv, limit in GRID.items()}
    for ranks, grid in GRIDS if c.BIG else GRIDS[3:4]:
        for merge in MERGES if c.BIG else MERGES[2:]:
            got = evaluate(*words, "--grid", grid, "--merge", merge, model=c.model(), text=text, ranks=ranks, timeout=3600)
            compare(got, one, limits, f"SmolLM2, {one['tokens']} tokens, {grid}, {merge}")


made = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, *SHAPE])
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    with open(c.TEXT, encoding="utf-8") as long_text, open(SHORT, "w", encoding="utf-8") as short:
        short.write(long_text.read(1100))
    with open(c.ids_of(MODEL, SHORT), "rb") as file:
        all_ids = np.fromfile(file, "<i4").tolist()
    test_figures(all_ids)
    test_windows(all_ids)
    test_output(all_ids)
    test_refusals()
    test_tiny_grids()
    test_grids()
c.finish()
