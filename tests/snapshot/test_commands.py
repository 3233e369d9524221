"""test_commands.py: bitshard snapshot ls, show, verify, export, gc and bench snapshot as a script sees them: JSON, tables,
exit codes, one line for what is wrong."""
import json
import os

from snapdir import BITSHARD, check, copy, finish, manifests, path, run, snapshot, write


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
    done = run(0, [BITSHARD, "bench", "snapshot"], timeout=60)
    check(done.returncode == 2 and "takes a directory" in done.stderr, "bench snapshot without a directory")


good = path("good")
write("1x1", "int4", 8, good, "1408,3000")
listing(good)
verifying(good)
collecting(good)
bench()
fails(["ls", path("nowhere")], 1, "there is no such directory")
fails(["verify", path("")], 1, "holds no snapshot")
fails(["verify", "--number", 9, good], 1, "holds no snapshot 9")
fails(["list", good], 2, "must be ls, show, verify, export or gc")
fails(["ls", good, "more"], 2, "snapshot ls: takes DIR")
fails(["export", good], 2, "takes DIR and FILE.h5")
finish()
