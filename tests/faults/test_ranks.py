"""Ranks that die or stop in mid-decode: the job is gone in 3 s, or in 10 s with the rank, step, layer and phase named;
nobody is left behind. And all ranks fail together when one cannot start."""
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))
import common as c
import resume as r

MODEL = os.environ.get("BITSHARD_TEST_MODEL", "")
RANKS = 4


def tiny():
    path = os.path.join(c.WORK, "faults.gguf")
    done = c.run(0, [c.BITSHARD, "make-model", "tiny", path])
    assert done.returncode == 0, done.stderr
    return path


def start(model, *options):
    process = subprocess.Popen(["sh", c.LAUNCH, str(RANKS), c.BITSHARD, "generate", "--model", model, "-p", "abc " * 100,
                                "-n", "100000", "--ignore-eos", "--grid", "2x2", *options],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)  # an answer has begun: decoding is under way
    pids = r.rank_pids(process, RANKS)
    return process, pids, bool(first)


def hurt(model, which, how, limit):
    process, pids, begun = start(model)
    c.check(begun and len(pids) == RANKS, f"{RANKS} ranks decode (found {len(pids)})")
    if len(pids) != RANKS:
        process.kill()
        return "", pids
    time.sleep(0.5)
    os.kill(pids[which], how)
    took, err = c.wait_for_end(process, limit)
    name = signal.Signals(how).name
    c.check(took <= limit, f"{name} to rank {which}: the job ends in {took:.1f} s, at most {limit}")
    c.check(process.returncode != 0, f"{name}: exit code {process.returncode}")
    time.sleep(0.3)
    left = [p for p in pids if os.path.exists(f"/proc/{p}") and open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"]
    c.check(not left, f"{name}: no rank is left behind {left}")
    for p in left:
        os.kill(p, signal.SIGKILL)
    return err, pids


def main():
    model = tiny()
    for which in (0, 3):
        hurt(model, which, signal.SIGKILL, 3)
    hurt(model, 1, signal.SIGSEGV, 3)
    for which in (2, 0):
        err, pids = hurt(model, which, signal.SIGSTOP, 10)
        lines = [line for line in err.splitlines() if "no progress" in line]
        c.check(len(lines) == 1, f"one line says why: {lines or err[-500:]}")
        named = re.search(r"rank (\d+) \(pid (\d+)\).* step \d+, layer \d+, phase \w+", "".join(lines))
        c.check(named is not None and int(named.group(2)) == pids[which], f"and names the stopped rank, step, layer, phase")

    # All fail together, in one line, whatever the number of ranks.
    for ranks in (0, 1, 3):
        done = c.run(ranks, [c.BITSHARD, "generate", "--model", "/nowhere.gguf", "-p", "x"])
        lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
        c.check(done.returncode == 1 and len(lines) == 1 and "/nowhere.gguf" in lines[0],
                f"{ranks} ranks, no such model: exit {done.returncode}, {lines}")
        done = c.run(ranks, [c.BITSHARD, "generate", "--model", model, "-p", "x", "--top-k", "-3"])
        lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
        c.check(done.returncode == 2 and len(lines) == 1 and "top-k" in lines[0] and "-3" in lines[0],
                f"{ranks} ranks, a bad option: exit {done.returncode}, {lines}")
    # One rank alone fails: its name is in the line.
    wrapper = os.path.join(c.WORK, "one-bad-rank.sh")
    with open(wrapper, "w") as file:
        file.write('#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" != 2 ] || set -- "$@" --model /only-rank-2.gguf\n'
                   f'exec {c.BITSHARD} generate "$@"\n')
    os.chmod(wrapper, 0o755)
    done = c.run(3, [wrapper, "--model", model, "-p", "x"])
    lines = [line for line in done.stderr.splitlines() if line.startswith("bitshard")]
    c.check(done.returncode == 1 and len(lines) == 1 and "rank 2" in lines[0] and "/only-rank-2.gguf" in lines[0],
            f"rank 2 alone fails: exit {done.returncode}, {lines}")


main()
c.finish()
