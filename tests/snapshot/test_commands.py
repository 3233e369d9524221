"""test_commands.py: bitshard snapshot ls, show, verify, export, gc and bench snapshot as a script sees them: JSON, tables,
exit codes, one line for what is wrong."""
import json
import os

from snapdir import BITSHARD, check, copy, finish, manifests, path, read_manifest, restore, run, run_rank_1_with, snapshot, write


def fails(words, code, text):
    done = snapshot(*words)
    check(done.returncode == code and text in done.stderr and done.stderr.count("\n") == 1,
          f"snapshot {' '.join(map(str, words))}: {code}, {done.stderr.strip()}")


def listing(directory):
    good = snapshot("ls", "--json", directory)
    rows = json.loads(good.stdout)
    check(good.returncode == 0 and [r["number"] for r in rows] == [1, 2] and all(r["whole"] and r["error"] == "" for r in rows), "ls --json")
    check(rows[1]["cached"] == 3000 and rows[1]["tokens"] == 3001 and rows[1]["prompt"] == 1500 and rows[1]["segments"] == 2, "ls: tokens")
    check(rows[1]["kv"] == "int4:kc:g128:nohad:s1:r2" and rows[1]["grid"] == {"heads": 1, "seq": 1}, "ls: format and grid")
    size = sum(os.path.getsize(os.path.join(directory, n)) for n in os.listdir(directory) if n.endswith(".h5"))
    check(rows[0]["bytes"] < rows[1]["bytes"] <= size, "ls: bytes")
    table = snapshot("ls", directory).stdout.splitlines()
    check(len(table) == 3 and table[2].split()[3] == "3000" and table[2].endswith("whole"), "ls")
    manifest = json.loads(snapshot("show", "--json", directory).stdout)
    check(manifest["number"] == 2 and manifest["state"]["sampling"]["seed"] == "18364758544493064720", "show --json")
    shown = snapshot("show", "--number", "1", directory).stdout
    check("sequence.length                      1408" in shown and "fingerprint.n_kv_heads               8" in shown, "show --number 1")


def verifying(directory):
    done = json.loads(snapshot("verify", "--json", directory).stdout)
    check(done["number"] == 2 and done["whole"] and done["pages"] == 24 * 8 * 4 and done["bytes"] > 1 << 20, "verify --json")
    check(": whole in" in snapshot("verify", "--number", "1", directory).stdout, "verify --number 1")
    out = path("export.h5")
    done = json.loads(snapshot("export", "--json", directory, out).stdout)
    check(done["cached"] == 3000 and os.path.exists(out) and os.stat(out).st_mode & 0o777 == 0o600, "export --json")
    fails(["export", directory, out], 1, "File exists")
    fails(["export", directory, path("no/such/place.h5")], 1, "No such file")
    bad = copy(directory, "bad")
    os.truncate(os.path.join(bad, [n for n in os.listdir(bad) if n.startswith("tail-00000002")][0]), 4096)
    done = snapshot("verify", bad)
    check(done.returncode == 0 and "going back to snapshot 1" in done.stderr, "the newest that is whole is verified")
    fails(["verify", "--number", 2, bad], 1, "4096 bytes: the manifest says")
    rows = json.loads(snapshot("ls", "--json", bad).stdout)
    check(rows[0]["whole"] and not rows[1]["whole"] and "4096 bytes" in rows[1]["error"], "ls says which is damaged, and how")


def collecting(directory):
    mine = copy(directory, "gc")
    before = sorted(os.listdir(mine))
    done = json.loads(snapshot("gc", "--json", "--dry-run", "--snapshot-keep", 1, mine).stdout)
    check(done["dry_run"] and done["files"] == 2 and sorted(os.listdir(mine)) == before, "gc --dry-run")
    done = json.loads(snapshot("gc", "--json", "--snapshot-keep", 1, mine).stdout)
    check(not done["dry_run"] and done["files"] == 2 and done["bytes"] > 4096 and len(manifests(mine)) == 1, "gc")
    check(snapshot("verify", mine).returncode == 0, "what is left is whole")
    with open(os.open(os.path.join(mine, "lock"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write("host elsewhere pid 7 start 9 job 12.0\n")
    fails(["gc", mine], 1, "in use by process 7 on elsewhere (job 12.0")


def bench():
    words = ["bench", "snapshot", path(""), "--model", "random:tiny-d64", "--context", "2K", "--kv", "int4,f16", "--json", "--device", "cpu"]
    for ranks in [0, 2]:
        done = run(ranks, [BITSHARD, *words], timeout=300)
        rows = json.loads(done.stdout) if done.returncode == 0 else []
        check([r["kv"] for r in rows] == ["int4:kc:g128:nohad:s1:r2", "f16"] and all(r["write_gb_s"] > 0 and r["warm_gb_s"] > 0 for r in rows),
              f"bench snapshot on {ranks or 1} {done.stderr.strip()[-300:]}")
    check(not [n for n in os.listdir(path("")) if n.startswith("bitshard-bench")], "it leaves nothing behind")
    for part, *more in (("takes a directory",), ("int3", path(""), "--kv", "f16,int3"),
                        ("--dry-run: not of bench snapshot", path(""), "--dry-run"), ("--case: not of bench snapshot", path(""), "--case", "1")):
        done = run(0, [BITSHARD, "bench", "snapshot", "--device", "cpu", *more], timeout=60)
        check(done.returncode == 2 and part in done.stderr and done.stderr.count("\n") == 1 and done.stdout == "",
              f"bench snapshot {more}: exit {done.returncode} {done.stderr.strip()[-300:]}")
    for variable, part in (("KV=int4,int2", "--kv"), ("CONTEXT=1K", "--context"), ("SNAPSHOT_VERIFY=none", "--snapshot-verify"), ("STRIPE_PAGES=2", "--stripe-pages")):
        done = run_rank_1_with(variable, [word for word in words if word not in ("--context", "2K", "--kv", "int4,f16")],
                               env={"BITSHARD_CONTEXT": "2K", "BITSHARD_KV": "int4,f16"}, timeout=60)
        check(done.returncode == 1 and done.stderr.count("error:") == 1 and "rank 1" in done.stderr and part in done.stderr,
              f"bench snapshot, a rank with BITSHARD_{variable}: exit {done.returncode} {done.stderr.strip()[-300:]}")


def bench_memory():
    """Device memory that suffices for all but the last thing that is taken: a line, and nothing is left behind."""
    def ends(size):
        done = run(0, [BITSHARD, "bench", "snapshot", path(""), "--model", "random:tiny-d64", "--context", "1K", "--kv", "int4", "--device", "cpu",
                       "--device-mem", str(size)], timeout=60)
        if done.returncode != 0:
            check(done.returncode == 1 and done.stderr.count("\n") == 1 and "--device-mem" in done.stderr, f"{size} bytes: exit {done.returncode} {done.stderr.strip()}")
        return done.returncode == 0

    least, most = 1 << 16, 1 << 24
    check(ends(most) and not ends(least), "16 MiB suffice")
    while most - least > 1024:
        middle = (least + most) // 2
        least, most = (least, middle) if ends(middle) else (middle, most)
    check(not [n for n in os.listdir(path("")) if n.startswith("bitshard-bench")], f"it takes {most} bytes, and leaves nothing behind")


def weights():
    """A snapshot is bound to the bytes of its model's weights, whose digest is kept by dev, inode, size and times."""
    models = [path("a.gguf"), path("b.gguf")]
    for seed, model in enumerate(models):
        done = run(0, [BITSHARD, "make-model", "tiny", model, "--layers", "2", "--seed", str(seed)], timeout=60)
        check(done.returncode == 0, f"make-model {done.stderr.strip()}")
    env = [{"SNAP_MODEL": model, "SNAP_CACHE": path("cache")} for model in models]
    write("1x1", "int4", 8, path("of-a"), "600", env[0])
    kept = os.listdir(path("cache/weights"))
    digest = read_manifest(path("of-a"))["fingerprint"]["weights_sha256"]
    check(len(kept) == 1 and open(path("cache/weights/" + kept[0])).read().strip() == digest, "the digest is kept")
    for grid in ["1x1", "2x1", "1x3"]:  # here and on others computed anew, by several ranks
        done = restore(grid, "int4", 8, 600, [path("of-a")], {**env[0], "SNAP_CACHE": path(f"cache-{grid}")})
        check(done.returncode == 0, f"the same weights, hashed by {grid} {done.stderr.strip()[-300:]}")
    done = restore("1x1", "int4", 8, 600, [path("of-a")], env[1])
    check(done.returncode == 1 and f'weights_sha256: the snapshot\'s is "{digest}"' in done.stderr, "other weights are refused")
    with open(path("cache/weights/" + kept[0]), "w") as file:
        file.write("0" * 64 + "\n")
    done = restore("1x1", "int4", 8, 600, [path("of-a")], env[0])
    check(done.returncode == 1 and f'this run\'s is "{"0" * 64}"' in done.stderr, "what is kept is used")
    os.utime(models[0], (1, 1))
    done = restore("1x1", "int4", 8, 600, [path("of-a")], env[0])
    check(done.returncode == 0, f"and computed anew for a file with other times {done.stderr.strip()[-300:]}")
    with open(models[0], "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"!")
    done = restore("1x1", "int4", 8, 600, [path("of-a")], env[0])
    check(done.returncode == 1 and "weights_sha256" in done.stderr, "one byte of the weights")


good = path("good")
write("1x1", "int4", 8, good, "1408,3000")
listing(good)
verifying(good)
collecting(good)
bench()
bench_memory()
weights()
fails(["ls", path("nowhere")], 1, "there is no such directory")
fails(["verify", path("")], 1, "holds no snapshot")
fails(["verify", "--number", 9, good], 1, "holds no snapshot 9")
fails(["list", good], 2, "must be ls, show, verify, export or gc")
fails(["ls", good, "more"], 2, "snapshot ls: takes DIR")
fails(["export", good], 2, "takes DIR and FILE.h5")
finish()
