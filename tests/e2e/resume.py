"""resume.py: what the tests of snapshots and resuming share: jobs that are stopped in many ways and started again."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import common as c
from common import wait_until as wait_for  # noqa: F401

STOPPED = 85


def launched(ranks, words):
    """ranks 0: without a launcher."""
    return ([] if ranks == 0 else ["sh", c.LAUNCH, str(ranks)]) + [c.BITSHARD] + [str(word) for word in words]


def begin(ranks, words, env=None):
    return subprocess.Popen(launched(ranks, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, **(env or {})})


def end(process, timeout=120):
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err.decode(errors="replace")


def printed(process, n):
    """The next n bytes of its standard output, fewer when it ends; end() has the others."""
    data = b""
    while len(data) < n and (more := os.read(process.stdout.fileno(), n - len(data))):
        data += more
    return data


def run(ranks, words, timeout=300, env=None):
    return end(begin(ranks, words, env), timeout)


def rank_pids(process, ranks):
    """Pids of the program's processes of this job that live."""
    if ranks == 0:
        return [process.pid]
    children = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as file:
                head, tail = file.read().rsplit(")", 1)
            state, parent = tail.split()[:2]
            children.setdefault(int(parent), []).append((int(entry), head.endswith("(bitshard") and state not in "ZX"))
        except (OSError, ValueError):
            continue
    found, todo = [], [process.pid]
    while todo:
        for pid, ours in children.get(todo.pop(), []):
            todo.append(pid)
            found += [pid] if ours else []
    return sorted(found)


def send(process, ranks, number, only=None):
    """A signal to all ranks of the job, as srun would send it, or to the one of this number."""
    pids = rank_pids(process, ranks)
    for i, pid in enumerate(pids):
        if only is None or i == only % max(1, len(pids)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
    return len(pids)


def names(path):
    """Of a directory that a job may be removing, or that is not there."""
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def manifests(path):
    """Numbers of a directory's manifests, ascending."""
    return sorted(int(name.split("-")[1]) for name in names(path) if name.startswith("manifest-"))


def state(path):
    """What the newest manifest says."""
    newest = max(name for name in os.listdir(path) if name.startswith("manifest-"))
    with open(os.path.join(path, newest), encoding="utf-8") as file:
        return json.load(file)


def remove(*paths):
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            os.unlink(path)


def stop_and_wait(process, ranks, number, only=None, timeout=60):
    """Signals the job and waits until all of its ranks are gone, which mpirun does not. As end()."""
    pids = rank_pids(process, ranks)
    send(process, ranks, number, only)
    try:
        done = end(process, timeout)
    except subprocess.TimeoutExpired:
        if any(is_alive(pid) for pid in pids):
            raise
        print("note: all ranks are gone and mpirun is not (PMIx_server_finalize waits for itself, OpenMPI 4.1.4): killed")
        process.kill()
        done = end(process)
    wait_for(lambda: not any(is_alive(pid) for pid in pids), limit=20)
    return done


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def read(path):
    with open(path, "rb") as file:
        return file.read()


def listing(path):
    return sorted((name, read(os.path.join(path, name))) for name in os.listdir(path) if name != "lock")


def one_line(err):
    """The error lines of a job; progress and notes are not."""
    return [line for line in err.splitlines() if "error:" in line]

