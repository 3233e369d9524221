"""generate --batch when a system call on its output fails: each call it makes there, failing once with each error, a short
write, or the program killed there. Either the run is not affected (exit 0, the file of a run without faults), or it ends
with exit 1 and one line that names the file; and run again, it ends with that file whatever happened before."""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
from shim import c

MODEL = os.path.join(c.WORK, "batch-faults.gguf")
DIR = os.path.join(c.WORK, "batch-faults")
IN = os.path.join(c.WORK, "batch-faults.in.jsonl")
OUT = os.path.join(DIR, "out.jsonl")
RANKS = (0, 2) if c.BIG else (0,)


def command(ranks, words):
    return c.run(ranks, [*words, c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", OUT, "--quiet", "--batch-size", "1"])


def read():
    with open(OUT, "rb") as file:
        return file.read()


def fresh(torn):
    """No output, or one of an earlier job that was killed in its second line."""
    if os.path.exists(OUT):
        os.unlink(OUT)
    if torn:
        with open(OUT, "wb") as file:
            file.write(torn)


def judge(what, done, whole, killed):
    lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
    if killed:
        return c.check(done.returncode in (-9, 137), f"{what}: killed ({done.returncode})")
    if done.returncode == 0:
        return c.check(read() == whole, f"{what}: exit 0 and the file is whole")
    errors = [line for line in lines if OUT in line]
    return c.check(done.returncode == 1 and len(errors) == 1 and len(lines) <= 2, f"{what}: exit {done.returncode}, one line: {lines}")


def main():
    if not os.path.exists(s.LIBRARY):
        c.skip("no tests/faults/shim.so: make check builds it")
    os.makedirs(DIR, exist_ok=True)
    assert c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "1"]).returncode == 0
    with open(IN, "w", encoding="utf-8") as file:
        for i in range(3):
            file.write(json.dumps({"custom_id": f"f{i}", "method": "POST", "url": "/v1/completions",
                                   "body": {"prompt": [5 + i, 6, 7], "max_tokens": 4, "temperature": 0}}) + "\n")
    shim, n, outcomes = s.Shim(DIR), 0, {}
    for ranks in RANKS:
        fresh(None)
        done = command(ranks, shim.words())
        whole = read()
        c.check(done.returncode == 0 and len(whole.splitlines()) == 3, f"{ranks} ranks: {done.returncode} {done.stderr}")
        start = whole[: whole.index(b"\n") + 30]
        for torn in (None, start):
            fresh(torn)
            command(ranks, shim.words())
            calls = shim.by_kind()
            print(f"{ranks} ranks, {'torn file' if torn else 'no file'}: {dict(calls)}")
            kinds = {"open", "write", "fsync", "close"} | ({"read", "ftruncate"} if torn else set())
            c.check({kind for _, kind in calls} == kinds, "the library sees the program's calls")
            for (rank, kind), times in sorted(calls.items()):
                for k in range(1, times + 1):
                    for do in (*s.ERRORS, *(["short"] if kind in ("write", "read") else []), "kill", "kill-after"):
                        what = f"{ranks} ranks{', torn' if torn else ''}: {kind} {k} of {times}, {do}"
                        fresh(torn)
                        done = command(ranks, shim.words(kind, k, do, rank=rank if ranks else None))
                        c.check(len(shim.fired()) == 1, f"{what}: it happened")
                        judge(what, done, whole, do.startswith("kill"))
                        outcomes[done.returncode] = outcomes.get(done.returncode, 0) + 1
                        done = command(ranks, [])
                        c.check(done.returncode == 0 and read() == whole, f"{what}: run again, whole ({done.returncode} {done.stderr[-200:]})")
                        n += 1
        # A disk that stays full: from the k-th write on nothing can be written, cut or synced.
        for k in range(1, calls.get(("-" if not ranks else "0", "write"), 1) + 1):
            fresh(None)
            done = command(ranks, shim.words("write", k, "ENOSPC", last=s.FOREVER))
            judge(f"{ranks} ranks: full from write {k} on", done, whole, False)
            c.check(whole.startswith(read()), f"{ranks} ranks: full from write {k} on: the file is a beginning of the whole one")
            n += 1
    # Each call with each error and two kills, and a disk that stays full: no fewer than a job's 3 lines and its lock ask for.
    c.check(n >= 140 * len(RANKS) and {0, 1} < set(outcomes), f"{n} faults, exit codes {outcomes}")


main()
c.finish()
