"""snapshots.py: what the fault tests know of a snapshot directory: what is in force, whether it verifies, whether every page of it is
what was written (tests/snapshot/snap_run, whose caches hold a noise that is the same on every grid), and what a run said that it committed."""
import json
import os
import re
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
from resume import read  # noqa: F401
from shim import c

RUN = c.SNAP_RUN
KV = "int4"
os.environ["SNAP_CACHE"] = c.WORK


def write(grid, directory, lengths, words=(), stripe=1, env=None):
    """Snapshots at these numbers of tokens, by a grid of ranks."""
    return c.snap_run("write", grid, KV, stripe, directory, ",".join(map(str, lengths)), words=words, env=env, timeout=120)


def restore(grid, directory, n, words=(), stripe=1):
    """Exit code 0: the snapshot in force holds n tokens, and every page is what it must be."""
    return c.snap_run("restore", grid, KV, stripe, n, directory, words=words, timeout=120)


def newest(directory):
    """Tokens of the newest whole snapshot; −1: there is none."""
    done = c.run(0, [c.BITSHARD, "snapshot", "ls", directory, "--json"])
    if done.returncode != 0:
        return -1
    whole = [item for item in json.loads(done.stdout) if item["whole"]]
    return max(whole, key=lambda item: item["number"])["cached"] if whole else -1


def broken(directory):
    """What is said of manifests that are not whole: a manifest is only there once all else is durable, and goes before its files do."""
    done = c.run(0, [c.BITSHARD, "snapshot", "ls", directory, "--json"])
    return [item["error"] for item in json.loads(done.stdout) if not item["whole"]] if done.returncode == 0 else []


def verify(directory):
    return c.run(0, [c.BITSHARD, "snapshot", "verify", directory, "--quiet"])


def committed(text):
    """The most tokens that a run's standard error says are on the disk; −1: none."""
    return max((int(found) for found in re.findall(r"snapshot \d+: (\d+) tokens; .* written", text)), default=-1)


def lines_of(text):
    """What the program said besides good news."""
    return [line for line in text.splitlines() if line.startswith("bitshard") and not re.search(r"snapshot \d+: \d+ tokens", line)]


def said_wrong(done):
    """What a run that failed said, without mpirun's frames."""
    return "" if done.returncode == 0 else [line for line in done.stderr.splitlines() if line.startswith(("bitshard", "../", "/")) or "snap_run" in line]


def leftovers(directory):
    return [name for name in os.listdir(directory) if name.startswith("tmp-")]


def copy(source, target):
    if os.path.isdir(target):
        shutil.rmtree(target)
    if source:
        shutil.copytree(source, target)


# ---- generate --snapshot ----

MODEL = os.path.join(c.WORK, "snapshot-faults.gguf")
N_PROMPT, N_ANSWER = 1100, 90


def make_model():
    done = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "1"])
    assert done.returncode == 0, done.stderr


def generate(ranks, kv, more, words=()):
    """The command of a run: 1,100 tokens of prompt, so that there is a segment, and 90 of answer."""
    prompt = " ".join(str(5 + i * 37 % 400) for i in range(N_PROMPT))
    return ([] if ranks == 0 else ["sh", c.LAUNCH, str(ranks)]) + [*words, c.BITSHARD, "generate", "--model", MODEL, "--prompt-ids", prompt, "--kv", kv,
                                                                   "--max-tokens", str(N_ANSWER), "--ignore-eos", "--stripe-pages", "1", *map(str, more)]


def with_text(text):
    """Pids of the processes that have this text in their command line."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if text.encode() in file.read() and int(entry) != os.getpid():
                    found.append(int(entry))
        except OSError:
            continue
    return found


def wait_until_gone(text, seconds=20):
    """Waits until no process has this text in its command line, as a launcher may end before its ranks do, and kills those that stay. How
    many these were: OpenMPI 4.1.4 leaves ranks waiting in PMIx_Init for ever when mpirun is killed just then."""
    end = time.monotonic() + seconds
    while (found := with_text(text)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)
