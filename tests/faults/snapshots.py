"""snapshots.py: what the fault tests know of a snapshot directory: what is in force, whether it verifies, whether every page of it is
what was written (tests/snapshot/snap_run, whose caches hold a noise that is the same on every grid), and what a run said that it committed."""
import json
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
from shim import c

RUN = os.path.join(c.BUILD, "tests", "snapshot", "snap_run")
KV = "int4"
os.environ["SNAP_CACHE"] = c.WORK


def ranks_of_grid(grid):
    heads, seq = grid.split("x")
    return int(heads) * int(seq)


def write(grid, directory, lengths, words=(), stripe=1, env=None):
    """Snapshots at these numbers of tokens, by a grid of ranks; 0 ranks' launcher for one."""
    ranks = ranks_of_grid(grid)
    return c.run(0 if ranks == 1 else ranks, [*words, RUN, "write", grid, KV, stripe, directory, ",".join(map(str, lengths))], env=env, timeout=120)


def restore(grid, directory, n, words=(), stripe=1):
    """Exit code 0: the snapshot in force holds n tokens, and every page is what it must be."""
    ranks = ranks_of_grid(grid)
    return c.run(0 if ranks == 1 else ranks, [*words, RUN, "restore", grid, KV, stripe, n, directory], timeout=120)


def newest(directory):
    """Tokens of the newest whole snapshot; −1: there is none."""
    done = c.run(0, [c.BITSHARD, "snapshot", "ls", directory, "--json"])
    if done.returncode != 0:
        return -1
    whole = [item for item in json.loads(done.stdout) if item["whole"]]
    return max(whole, key=lambda item: item["number"])["cached"] if whole else -1


def verify(directory):
    return c.run(0, [c.BITSHARD, "snapshot", "verify", directory, "--quiet"])


def committed(text):
    """The most tokens that a run's standard error says are on the disk; −1: none."""
    return max((int(found) for found in re.findall(r"snapshot \d+: (\d+) tokens; .* written", text)), default=-1)


def lines_of(text):
    """What the program said besides good news."""
    return [line for line in text.splitlines() if line.startswith("bitshard") and not re.search(r"snapshot \d+: \d+ tokens", line)]


def leftovers(directory):
    return [name for name in os.listdir(directory) if name.startswith("tmp-")]


def copy(source, target):
    if os.path.isdir(target):
        shutil.rmtree(target)
    if source:
        shutil.copytree(source, target)
