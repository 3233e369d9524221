"""generate --batch killed with -9 at any moment, mpirun or a rank or the one process, and started again, until it is done:
every id is answered once, in whole lines, and with one request at a time the file is that of an uninterrupted run to the
byte. make check kills a few times; BITSHARD_KILLS=100 and BITSHARD_BIG=1 more often."""
import json
import os
import random
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))
import common as c
import resume as r

KILLS = int(os.environ.get("BITSHARD_KILLS", "100" if c.BIG else "5"))
SEED = int(os.environ.get("BITSHARD_SEED", "1"))
MODEL = os.path.join(c.WORK, "kills.gguf")
IN = os.path.join(c.WORK, "kills.in.jsonl")
OUT = os.path.join(c.WORK, "kills.out.jsonl")
N = 24 if KILLS > 20 else 6


def line(i):
    """Some are long enough, drawn and in 2 bits, that another order of the sums over sequence shards would draw others."""
    draw = random.Random(i)
    body = {"max_tokens": 180 if i % 4 == 1 else 10 + i, "temperature": 1, "ignore_eos": True}
    if i % 3 == 0:
        body["messages"] = [{"role": "user", "content": "abc " * (i + 1)}]
    else:
        body["prompt"] = [draw.randrange(3, 500) for _ in range(800 if i % 4 == 1 else 20 * i)]
    return json.dumps({"custom_id": f"k{i}", "method": "POST", "url": "/v1/chat/completions" if i % 3 == 0 else "/v1/completions",
                       "body": body})


def command(ranks, size, out):
    return ([] if ranks == 0 else ["sh", c.LAUNCH, str(ranks)]) + [c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", out, "--quiet",
                                                                   "--batch-size", str(size), "--stripe-pages", "1", "--kv", "int2"]


def lines_written():
    return r.read(OUT).count(b"\n") if os.path.exists(OUT) else 0


def kill_one(process, ranks, draw, hit):
    """-9 to the launcher or a rank, whichever was hit less; what was hit."""
    pids = r.rank_pids(process, ranks)
    launcher = ranks > 0 and (not pids or hit.get("the launcher", 0) <= hit.get("a rank", 0))
    try:
        os.kill(process.pid if launcher else pids[int(draw * len(pids))], signal.SIGKILL)
    except ProcessLookupError:
        return "nobody"
    return "the launcher" if launcher else "a rank"


def check_output(what, whole, size):
    data = r.read(OUT)
    ids = [json.loads(text)["custom_id"] for text in data.splitlines()]
    c.check(data.endswith(b"\n") and sorted(ids) == sorted(f"k{i}" for i in range(N)), f"{what}: each id once, in whole lines ({len(ids)} lines)")
    if size == 1:
        c.check(data == whole, f"{what}: and byte for byte as an uninterrupted run")


def uninterrupted(ranks):
    r.remove(OUT)
    done = subprocess.run(command(ranks, 1, OUT), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    c.check(done.returncode == 0, f"{ranks} ranks, uninterrupted: exit {done.returncode} {done.stderr[-200:]}")
    return r.read(OUT)


def main():
    source = random.Random(SEED)
    print(f"seed {SEED}, {KILLS} kills")
    done = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "2"])
    assert done.returncode == 0, done.stderr
    with open(IN, "w", encoding="utf-8") as file:
        file.writelines(line(i) + "\n" for i in range(N))
    kills, midway, hit, runs = 0, 0, {}, 0
    whole = {ranks: uninterrupted(ranks) for ranks in (0, 3)}
    while kills < KILLS:
        ranks, size = source.choice((0, 3, 3)), source.choice((1, 1, 4))
        r.remove(OUT)
        runs += 1
        for _ in range(3):  # killed up to three times, then left to end
            if kills == KILLS:
                break
            process = subprocess.Popen(command(ranks, size, OUT), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # Behind a number of lines, and somewhere in the next one.
            wanted, moment, draw = source.randrange(N), source.uniform(0, 0.2), source.random()
            r.wait_for(lambda: lines_written() >= wanted, process)
            r.wait_for(lambda: False, process, moment)
            if process.poll() is not None:
                break  # it was done before
            written = lines_written()
            what = kill_one(process, ranks, draw, hit)
            process.wait(timeout=60)
            hit[what] = hit.get(what, 0) + 1
            midway += 0 < written < N
            kills += 1
        done = subprocess.run(command(ranks, size, OUT), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        c.check(done.returncode == 0, f"{ranks} ranks, {size} at a time, after kills: exit {done.returncode} {done.stderr[-300:]}")
        check_output(f"{ranks} ranks, {size} at a time", whole[ranks], size)
    c.check(midway > 0 and set(hit) >= {"a rank", "the launcher"}, f"{kills} kills in {runs} jobs, {midway} of them between lines: {hit}")


main()
c.finish()
