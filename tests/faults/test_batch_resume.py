"""generate --batch --snapshot killed with -9 or stopped with SIGTERM in mid-answer and started again: each id once, in whole
lines, with one request at a time the file of an uninterrupted run to the byte, lines that were in mid-answer are not begun
anew, and no directory is left. make check stops a few times; BITSHARD_KILLS=100 and BITSHARD_BIG=1 more often."""
import json
import os
import random
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))
import common as c
import resume as r

KILLS = int(os.environ.get("BITSHARD_KILLS", "100" if c.BIG else "3"))
SEED = int(os.environ.get("BITSHARD_SEED", "1"))
MODEL, IN = os.path.join(c.WORK, "lines.gguf"), os.path.join(c.WORK, "lines.in.jsonl")
OUT, DIR = os.path.join(c.WORK, "lines.out.jsonl"), os.path.join(c.WORK, "lines.dir")
# Names that are none for a directory, and two that differ in what a file system might not.
NAMES = ["plain", "../up", "a/b", "x" * 200, ".hidden", "id-looks-like-one", "über", "Plain"]
N = len(NAMES)


def line(i, **more):
    draw = random.Random(i)
    body = {"max_tokens": 150 + 20 * i, "temperature": 1 if i % 2 else 0, "seed": i, "ignore_eos": True,
            "prompt": [draw.randrange(3, 500) for _ in range(700 if i % 4 == 1 else 20 + i)], **more}
    if i % 3 == 2:
        body["repeat_penalty"] = 1.2
    return json.dumps({"custom_id": NAMES[i], "method": "POST", "url": "/v1/completions", "body": body})


def write(lines):
    with open(IN, "w", encoding="utf-8") as file:
        file.writelines(text + "\n" for text in lines)


def words(size, *more):
    return ["generate", "--model", MODEL, "--batch", IN, "-o", OUT, "--batch-size", size, "--stripe-pages", 1, "--watchdog-s", 60, "--kv", "int2", *more]


def keep(*more):
    return ["--snapshot", DIR, "--snapshot-every", 24, *more]


def left():
    return r.names(DIR)


def went_on(err):
    return len(re.findall(r"of its tokens are reused, [1-9]", err))


def snapshots():
    """What is there of all lines: (directory, number)."""
    return {(name, number) for name in left() for number in r.manifests(os.path.join(DIR, name))}


def wait_for_snapshots(process, n):
    """Until so many have been seen that were not there before."""
    before, seen = snapshots(), set()

    def enough():
        seen.update(snapshots() - before)
        return len(seen) >= n
    return r.wait_for(enough, process)


def test_kills():
    source = random.Random(SEED)
    print(f"seed {SEED}, {KILLS} kills")
    whole = {}
    for ranks in (0, 3):
        r.remove(OUT)
        code, _, err = r.run(ranks, words(1))
        whole[ranks] = r.read(OUT)
        c.check(code == 0 and whole[ranks].count(b"\n") == N, f"{ranks} ranks, uninterrupted: exit {code} {r.one_line(err)}")
    kills = runs = on = 0
    while kills < KILLS:
        ranks, size = ((0, 1), (3, 1), (0, 4), (3, 4))[runs % 4]
        runs += 1
        r.remove(OUT, DIR)
        done = 1
        for _ in range(4):
            process = r.begin(ranks, words(size, *keep()))
            wait_for_snapshots(process, source.randint(1, 25))
            how = source.choice([r.signal.SIGKILL, r.signal.SIGKILL, r.signal.SIGTERM])
            done, _, err = r.stop_and_wait(process, ranks, how, None if how == r.signal.SIGTERM else source.choice([None, 0, 1, 2]))
            on += went_on(err)
            if done == 0:
                break
            kills += 1
            if how == r.signal.SIGTERM and "to go" in err:
                c.check(done == r.STOPPED, f"SIGTERM: exit {done} {r.one_line(err)}")
        code, _, err = r.run(ranks, words(size, *keep()))
        on += went_on(err)
        data = r.read(OUT)
        ids = sorted(json.loads(text)["custom_id"] for text in data.splitlines())
        c.check(code == 0 and data.endswith(b"\n") and ids == sorted(NAMES), f"{ranks} ranks, {size} at a time: exit {code}, each id once {r.one_line(err)}")
        if size == 1:
            c.check(data == whole[ranks], f"{ranks} ranks: and byte for byte as an uninterrupted run")
        c.check(left() == [], f"no directory is left: {left()}")
    c.check(on >= runs, f"{kills} kills in {runs} jobs; {on} times a line went on in mid-answer")


def stopped(size=2):
    """A batch that was stopped with lines in mid-answer."""
    r.remove(OUT, DIR)
    process = r.begin(0, words(size, *keep()))
    r.wait_for(lambda: len(left()) >= size and all(r.manifests(os.path.join(DIR, name)) for name in left()), process)
    code, _, err = r.stop_and_wait(process, 0, r.signal.SIGTERM)
    c.check(code == r.STOPPED and f"{size} of them in mid-answer" in err, f"stopped: exit {code} {r.one_line(err)}")


def test_changes():
    lines = [line(i, max_tokens=3000) for i in range(3)]
    write(lines)
    stopped()
    names = left()
    c.check(len(names) == 2 and all(name.startswith("id-") or name in NAMES for name in names), f"directories: {names}")
    # Another prompt of the same length, another seed.
    changed = json.loads(lines[0])
    changed["body"]["temperature"] = 0.5
    write([json.dumps(changed)] + lines[1:])
    code, _, err = r.run(0, words(2, *keep()))
    c.check(code == 1 and len(r.one_line(err)) == 1 and "--temperature 0, this is 0.5" in err and sorted(left()) == sorted(names),
            f"another temperature: exit {code} {r.one_line(err)}")
    changed = json.loads(lines[0])
    changed["body"].update(prompt=[9] + changed["body"]["prompt"][1:], max_tokens=20)
    write([json.dumps(changed)] + lines[1:2])
    short = json.loads(lines[1])
    code, _, err = r.run(0, words(2, *keep("--resume", "never", "-n", 5)))
    c.check(code == 0 and left() == [] and went_on(err) == 0, f"--resume never: exit {code} {r.one_line(err)}, left {left()}")
    # An answer was written, its directory is still there: it goes.
    write(lines[:2])
    stopped()
    there = left()
    answered = json.dumps({"id": "batch_req_1", "custom_id": NAMES[0], "response": {"status_code": 200}, "error": None})
    with open(OUT, "a", encoding="utf-8") as file:
        file.write(answered + "\n")
    process = r.begin(0, words(2, *keep()))
    r.wait_for(lambda: NAMES[0] not in left(), process, 20)
    c.check(NAMES[0] in there and NAMES[0] not in left(), f"of a line that is answered nothing stays: {left()}")
    code, _, err = r.stop_and_wait(process, 0, r.signal.SIGTERM)
    c.check(code in (0, r.STOPPED), f"and the other goes on: exit {code}")
    for more, part in ((["--resume", "require"], "--resume require: not with --batch"),):
        code, _, err = r.run(0, words(2, *keep(*more)))
        c.check(code == 2 and part in err, f"{more}: exit {code} {r.one_line(err)}")


def test_complete():
    """A line of which the snapshot has the whole answer, because fewer tokens are asked for now: it is written, and its directory goes."""
    lines = [line(i, max_tokens=3000) for i in range(2)]
    write(lines)
    stopped()
    names, cut = left(), []
    for text in lines:
        body = json.loads(text)
        found = next(r.state(os.path.join(DIR, name)) for name in names
                     if r.state(os.path.join(DIR, name))["state"]["id"] == body["custom_id"])
        body["body"]["max_tokens"] = found["sequence"]["n_tokens"] - found["state"]["n_prompt"]
        cut.append(json.dumps(body))
    write(cut)
    code, _, err = r.run(0, words(2, *keep()))
    n_tokens = [json.loads(text)["response"]["body"]["usage"]["completion_tokens"] for text in r.read(OUT).splitlines()]
    c.check(code == 0 and sorted(n_tokens) == sorted(json.loads(text)["body"]["max_tokens"] for text in cut),
            f"both are complete as they are: exit {code}, {n_tokens} tokens {r.one_line(err)}")
    c.check(left() == [], f"no directory is left: {left()}")


made = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "2"])
assert made.returncode == 0, made.stderr
write(line(i) for i in range(N))
test_kills()
test_changes()
test_complete()
c.finish()
