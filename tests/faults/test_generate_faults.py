"""generate --snapshot -o FILE when a system call on its snapshot or its output fails, once with each error, a short write or read, or killed
there; from the beginning, and going on from a snapshot. Decode goes on: exit 0 and the undisturbed answer whenever the answer itself was
not hit, and one line for a snapshot that failed. What is in force verifies, holds what was committed, and the next run ends with the
undisturbed answer. make check draws a few cases of each kind of call, make bigcheck takes all of them."""
import collections
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
import snapshots as snap
from shim import c

TOP = os.path.join(s.FAST, "generate")
DIR, OUT = os.path.join(TOP, "run"), os.path.join(TOP, "out")
BASE = TOP + ".base"
MORE = ["--snapshot", DIR, "--snapshot-every", "16", "-o", OUT]
KINDS = {"open", "mkdir", "write", "read", "fallocate", "ftruncate", "fsync", "rename", "unlink", "close"}
CASES = 4  # of each kind of call, from the beginning and from a snapshot
LIMIT = 6 * 3600 if c.BIG else 900  # a run of make check takes a minute


def run(words=()):
    return subprocess.run(snap.generate(0, "int4", MORE, words), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=120, check=False)


def judge(what, done, fired, whole, old, do):
    said, lines = snap.committed(done.stderr), [line for line in done.stderr.splitlines() if "error:" in line or "warning:" in line]
    names = {os.path.basename(call.path) for call in fired}
    # Not the answer's file, nor the directory or a snapshot that was to be read before the first step.
    spares_answer = not names & {"out", "generate", "run", "lock", *(os.listdir(os.path.join(BASE, "run")) if old else [])}
    if do.startswith("kill"):
        c.check(done.returncode == -9, f"{what}: killed ({done.returncode})")
    elif done.returncode == 0:
        c.check(snap.read(OUT) == whole and len(lines) <= 1, f"{what}: exit 0, the answer, {lines}")
    else:
        c.check(done.returncode == 1 and len(lines) == 1 and not spares_answer, f"{what}: exit {done.returncode}, one line: {lines}")
    found = snap.newest(DIR)
    c.check(found >= max(said, old) and not snap.broken(DIR), f"{snap.broken(DIR) or ''}{what}: {found} tokens in force, {said} said, {old} before")
    if found >= 0:
        verified = snap.verify(DIR)
        c.check(verified.returncode == 0, f"{what}: verifies {verified.stdout}{verified.stderr}")
    done = run()
    c.check(done.returncode == 0 and snap.read(OUT) == whole, f"{what}: run again: exit {done.returncode}, the answer {done.stderr[-300:] if done.returncode else ''}")
    c.check((found < 0) == ("goes on at token" not in done.stderr and "is finished" not in done.stderr) or found == snap.N_PROMPT + snap.N_ANSWER - 1,
            f"{what}: it went on from {found}")
    c.check(not snap.leftovers(DIR), f"{what}: left over {snap.leftovers(DIR)}")


def cases_of(old, kind, times, source):
    """All, or some: different things done to calls that are drawn."""
    dos = [*s.ERRORS, "kill", "kill-after"] + (["short"] if kind in ("write", "read") else [])
    if c.BIG:
        return [(old, kind, k, do) for k in range(1, times + 1) for do in dos]
    return [(old, kind, 1 + int(times * source.random()), do) for do in source.sample(dos, CASES)]


def main():
    if not os.path.exists(s.LIBRARY):
        c.skip("no tests/faults/shim.so: make check builds it")
    seed = int(os.environ.get("BITSHARD_FAULT_SEED", str(time.time_ns() % 1000000 if c.BIG else 1)))
    source = random.Random(seed)
    snap.make_model()
    os.makedirs(TOP, exist_ok=True)
    shim = s.Shim(TOP)
    whole, bases, cases = None, {}, []
    for old in (-1, 1150):
        snap.copy(bases.get(old), TOP)
        os.makedirs(TOP, exist_ok=True)
        if old > 0:  # a run that was stopped: its snapshot and its output, taken from a whole run's shorter answer
            short = snap.generate(0, "int4", [*MORE, "--max-tokens", str(old - snap.N_PROMPT)])
            done = subprocess.run(short, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
            assert done.returncode == 0, done.stderr
            old = snap.newest(DIR)
            snap.copy(TOP, BASE)
            bases[old] = BASE
        done = run(shim.words())
        calls = shim.by_kind()
        print(f"seed {seed}, {old} tokens before: {dict(calls)}\n{done.stderr}")
        whole = whole or snap.read(OUT)
        c.check(done.returncode == 0 and snap.read(OUT) == whole, f"{old} tokens before: the same answer without faults {done.stderr[-300:] if done.returncode else ''}")
        c.check({kind for _, kind in calls} == KINDS, f"{old} tokens before: the library sees the calls: {sorted(KINDS ^ {kind for _, kind in calls})}")
        for (_, kind), times in sorted(calls.items()):
            cases += cases_of(old, kind, times, source)
    began, n, outcomes, done_to = time.monotonic(), 0, collections.Counter(), collections.Counter()
    for old, kind, k, do in cases:
        what = f"{old} before: {kind} {k}, {do}"
        snap.copy(bases.get(old), TOP)
        os.makedirs(TOP, exist_ok=True)
        done = run(shim.words(kind, k, do))
        fired = shim.fired()
        if not fired:
            print(f"      {what}: not reached this time")
            continue
        judge(f"{what} on {os.path.basename(fired[0].path)[:24]}", done, fired, whole, old, do)
        outcomes[done.returncode] += 1
        done_to[kind] += 1
        n += 1
        if time.monotonic() - began > LIMIT:
            c.check(False, f"{n} of {len(cases)} cases took {LIMIT} s")
            break
    # How many snapshots there are, and so how many calls, is a matter of time; most cases are reached all the same.
    c.check(n >= len(cases) * 3 // 4 and set(done_to) == KINDS and {0, 1, -9} == set(outcomes),
            f"{n} of {len(cases)} faults, exit codes {dict(outcomes)}, {dict(done_to)}")


main()
c.finish()
