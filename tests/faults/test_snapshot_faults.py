"""Snapshots when a system call in their directory fails: every call that a snapshot makes, once with each error, a short write or read,
and killed there. A snapshot of 1536 tokens is in force; another run goes on to 2560 and 4000. Whatever fails:

  the snapshot in force is whole and holds every token that was committed, the old ones at least, and its pages are byte-equal
  one line says what failed, and where
  the next run without faults ends with 4000 tokens, and leaves no temporary file

make check takes a fixed part of the calls with one error each, make bigcheck all of them, and two ranks of which one has the fault."""
import os
import random
import re
import sys

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
import snapshots as snap
from shim import c

DIR = os.path.join(s.FAST, "snapshot")
BASE = DIR + ".base"
LENGTHS = (2560, 4000)
OLD = 1536
N_OTHERS = 30  # of make check


def judge(what, done, killed, outcomes):
    outcomes[done.returncode] = outcomes.get(done.returncode, 0) + 1
    said, lines = snap.committed(done.stderr), snap.lines_of(done.stderr)
    if killed:
        c.check(done.returncode in (-9, 137), f"{what}: killed ({done.returncode})")
    elif done.returncode == 0:
        c.check(said == LENGTHS[-1] and len(lines) <= 1, f"{what}: not felt: {lines}")
    else:  # 3: the snapshot failed; 1: the directory could not be opened
        c.check(done.returncode in (1, 3) and len(lines) == 1 and re.search(r"(seg|tail|manifest|lock|/).*: .*(error|space|quota|call|short|Interrupted|cannot be|close failed)", lines[0]), f"{what}: exit {done.returncode}, one line: {lines}")
    found, verified = snap.newest(DIR), snap.verify(DIR)
    c.check(found >= max(said, OLD) and verified.returncode == 0 and not snap.broken(DIR), f"{snap.broken(DIR) or ''}{what}: {found} tokens in force, {said} said: {verified.stdout}{verified.stderr}")
    restored = snap.restore("1x1", DIR, found)
    c.check(restored.returncode == 0, f"{what}: restores to the byte {restored.stderr[-300:]}")
    done = snap.write("1x1", DIR, LENGTHS)
    c.check(done.returncode == 0 and snap.newest(DIR) == LENGTHS[-1] and not snap.leftovers(DIR),
            f"{what}: then without faults: exit {done.returncode}, {snap.newest(DIR)} tokens, left over {snap.leftovers(DIR)} {snap.lines_of(done.stderr)}")


def cases_of(calls, source):
    """(rank, kind, k, what to do): all of them in bigcheck; else those at the end of a snapshot, when it is sealed and older ones are
    collected, and N_OTHERS more, by the seed."""
    first, others = [], []
    for (rank, kind), times in sorted(calls.items()):
        for k in range(1, times + 1):
            dos = [*s.ERRORS, "kill", "kill-after"] + (["short"] if kind in ("write", "read") else [])
            if k > times - 6 and kind in ("open", "read", "unlink", "rename"):
                first.append((rank, kind, k, "EIO"))
                dos.remove("EIO")
            others += [(rank, kind, k, do) for do in (dos if c.BIG else source.sample(dos, 1))]
    source.shuffle(others)
    return first + (others if c.BIG else others[:N_OTHERS])


def main():
    if not os.path.exists(s.LIBRARY) or not os.path.exists(snap.RUN):
        c.skip("no tests/faults/shim.so or snap_run: make check builds them")
    seed = int(os.environ.get("BITSHARD_FAULT_SEED", str(time.time_ns() % 1000000 if c.BIG else 1)))
    source = random.Random(seed)
    shim, n, outcomes = s.Shim(DIR), 0, {}
    snap.copy(None, BASE)
    done = snap.write("1x1", BASE, (OLD,))
    assert done.returncode == 0 and snap.newest(BASE) == OLD, done.stderr
    for grid in ("1x1", "1x2") if c.BIG else ("1x1",):
        snap.copy(BASE, DIR)
        done = snap.write(grid, DIR, LENGTHS, shim.words())
        calls = shim.by_kind()
        print(f"seed {seed}, {grid}: {dict(calls)}")
        c.check(done.returncode == 0 and {kind for _, kind in calls} >= {"open", "write", "fallocate", "fsync", "rename", "close", "read"},
                f"{grid}: the library sees the calls {done.stderr[-300:]}")
        cases = cases_of(calls, source)
        for rank, kind, k, do in cases:
            what = f"{grid}: rank {rank}, {kind} {k} of {calls[rank, kind]}, {do}"
            snap.copy(BASE, DIR)
            done = snap.write(grid, DIR, LENGTHS, shim.words(kind, k, do, rank=None if rank == "-" else rank))
            if not shim.fired():
                print(f"      {what}: not reached this time")
                continue
            judge(what, done, do.startswith("kill"), outcomes)
            n += 1
    # A disk that is full from some write on, and stays so.
    writes = calls["-" if ("-", "write") in calls else "0", "write"]
    for k in range(1, writes + 1, 1 if c.BIG else writes // 5):
        for kind in ("write", "fallocate", "open"):
            snap.copy(BASE, DIR)
            done = snap.write("1x1", DIR, LENGTHS, shim.words(kind, k if kind == "write" else 1 + k % 4, "ENOSPC", last=s.FOREVER))
            judge(f"full from {kind} {k} on", done, False, outcomes)
            n += 1
    print(f"{n} faults, exit codes {outcomes}")
    c.check(n >= 50 and outcomes.get(3, 0) >= 15 and outcomes.get(-9, 0) >= 5, "faults of every kind were felt")


main()
c.finish()
