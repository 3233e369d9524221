"""snapdir.py: what the tests of snapshots share: snap_run and bitshard snapshot, manifests made anew, scratch directories."""
import hashlib
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from common import BIG, BITSHARD, BUILD, SRC, check, finish, n_ranks, need, run, run_rank_1_with, skip, snap_run  # noqa: E402,F401

WORK = os.path.join(BUILD, "tests", "snapshot", "work", os.path.basename(sys.argv[0]))
shutil.rmtree(WORK, ignore_errors=True)
os.makedirs(WORK)


def path(name):
    return os.path.join(WORK, name)


def write(grid, kv, stripe, directory, lengths, env=None, expect=0):
    done = snap_run("write", grid, kv, stripe, directory, lengths, env=env, timeout=120)
    if done.returncode != expect:
        check(False, f"write {grid} {kv} {lengths}: exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return done


def restore(grid, kv, stripe, length, directories, env=None):
    return snap_run("restore", grid, kv, stripe, length, *directories, env=env)


def snapshot(*words):
    return run(0, [BITSHARD, "snapshot", *words], timeout=120)


def manifests(directory):
    return sorted(name for name in os.listdir(directory) if name.startswith("manifest-"))


def read_manifest(directory):
    with open(os.path.join(directory, manifests(directory)[-1])) as file:
        return json.load(file)


def seal(directory, manifest):
    """Makes this the only manifest of the directory, with the right digest: what somebody could do who may write there."""
    for name in manifests(directory):
        os.unlink(os.path.join(directory, name))
    text = json.dumps(manifest, sort_keys=True, indent=1).encode()
    name = f"manifest-{manifest['number']:08d}-{hashlib.sha256(text).hexdigest()}.json"
    with open(os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(text)


def header_sha256(file_path, entry):
    """Of the bytes that lie in no dataset."""
    with open(file_path, "rb") as file:
        data = file.read()
    digest, at = hashlib.sha256(), 0
    for part in sorted(entry["datasets"].values(), key=lambda p: p["offset"]):
        digest.update(data[at:part["offset"]])
        at = part["offset"] + part["bytes"]
    digest.update(data[at:])
    return digest.hexdigest()


def copy(source, name):
    shutil.rmtree(path(name), ignore_errors=True)
    shutil.copytree(source, path(name))
    return path(name)
