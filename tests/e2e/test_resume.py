"""generate --snapshot: stopped in every way and started again, on one grid the output is that of an uninterrupted run to the
byte, files and standard output; signals, end times, what is refused, other prompts. make check stops a few runs,
BITSHARD_STOPS=100 and BITSHARD_BIG=1 more."""
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c
import resume as r

STOPS = int(os.environ.get("BITSHARD_STOPS", "100" if c.BIG else "6"))
SEED = int(os.environ.get("BITSHARD_SEED", "1"))
MODEL, OTHER = os.path.join(c.WORK, "resume.gguf"), os.path.join(c.WORK, "resume.other.gguf")
DIR, OUT = os.path.join(c.WORK, "resume.dir"), os.path.join(c.WORK, "resume.txt")
SHORT = "Once upon a time there was a"


def ids(n, seed):
    draw = random.Random(seed)
    return " ".join(str(draw.randrange(3, 500)) for _ in range(n))


# name: ranks, options. Long prompts span chunks and segments; one page a stripe, so that every shard has pages.
JOBS = {
    "greedy": (0, ["-p", SHORT, "-n", 400, "--kv", "int4"]),
    "drawn": (0, ["--prompt-ids", ids(900, 1), "-n", 300, "--kv", "int2", "--temperature", 1, "--seed", 7, "--repeat-penalty", 1.1]),
    "f16": (0, ["--prompt-ids", ids(2300, 2), "-n", 200, "--kv", "f16", "--temperature", 0.8, "--top-k", 40, "--seed", 3]),
    "sequence": (3, ["--prompt-ids", ids(2500, 3), "-n", 150, "--kv", "int4", "--grid", "1x3", "--temperature", 1]),
    "heads": (2, ["--prompt-ids", ids(1100, 4), "-n", 150, "--kv", "k4v2", "--grid", "2x1"]),
    "both": (4, ["--prompt-ids", ids(1500, 5), "-n", 100, "--kv", "int8", "--grid", "2x2", "--temperature", 1, "--merge", "allgather"]),
}
# The watchdog waits for a machine that does other things besides.
BASE = ["generate", "--model", MODEL, "--ignore-eos", "--stripe-pages", 1, "--chunk-tokens", 256, "--watchdog-s", 60]


def words(name, *more):
    return BASE + JOBS[name][1] + list(more)


def uninterrupted(name, cache={}):
    if name not in cache:
        code, out, err = r.run(JOBS[name][0], words(name))
        c.check(code == 0 and len(out) > 0, f"{name}, uninterrupted: exit {code} {err[-200:]}")
        cache[name] = out
    return cache[name]


def whole_answer(cache={}):
    """The greedy one's, by --json."""
    if not cache:
        code, out, err = r.run(0, words("greedy", "--json"))
        c.check(code == 0, f"greedy, uninterrupted, --json: exit {code} {err[-200:]}")
        cache.update(json.loads(out))
    return cache


def has_begun(process):
    return r.wait_for(lambda: os.path.exists(os.path.join(DIR, "lock")), process)


def size(path):
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def stop(process, ranks, how, source):
    if how == "usr1-kill":
        r.send(process, ranks, r.signal.SIGUSR1)
        r.time.sleep(source.uniform(0, 0.2))
    number = r.signal.SIGTERM if how == "term" else r.signal.SIGKILL
    return r.stop_and_wait(process, ranks, number, source.randrange(8) if how == "kill-one" else None)


def test_stopped_and_resumed():
    source = random.Random(SEED)
    print(f"seed {SEED}, {STOPS} stops")
    names, hit, runs, went_on = list(JOBS), {}, 0, 0
    stops = 0
    while stops < STOPS:
        name = names[runs % len(names)]
        ranks = JOBS[name][0]
        whole = uninterrupted(name)
        runs += 1
        r.remove(DIR, OUT)
        line = words(name, "--snapshot", DIR, "--snapshot-every", source.choice([16, 50, 300]), "-o", OUT)
        for _ in range(source.randrange(1, 4)):
            process = r.begin(ranks, line)
            # At once, or when a drawn part of what is left has been written.
            part, there = source.uniform(-0.2, 1), size(OUT)
            has_begun(process)
            r.wait_for(lambda: size(OUT) >= there + part * (len(whole) - there), process)
            how = source.choice(["kill", "kill-one", "term", "term", "usr1-kill"])
            code, out, err = stop(process, ranks, how, source)
            went_on += "goes on at token" in err
            if code == 0:
                break
            stops += 1
            hit[how] = hit.get(how, 0) + 1
            if how == "term":
                good = code == r.STOPPED and len(r.one_line(err)) == 1 and "stopped by SIGTERM" in err
                # A process that was only just started dies of it, as any would.
                c.check(good or code in (-r.signal.SIGTERM, 128 + r.signal.SIGTERM), f"{name}: SIGTERM: exit {code} {r.one_line(err)}")
        code, out, err = r.run(ranks, line)
        went_on += "goes on at token" in err
        c.check(code == 0 and out == b"", f"{name}, at the end: exit {code} {r.one_line(err)} {out[:80]}")
        c.check(r.read(OUT) == whole, f"{name}: the file is that of an uninterrupted run ({len(whole)} bytes)")
        before = r.listing(DIR)
        code, out, err = r.run(ranks, line)
        c.check(code == 0 and out == b"" and "complete: nothing to do" in err and r.read(OUT) == whole and r.listing(DIR) == before,
                f"{name}, once more: exit {code}, nothing is done")
        os.unlink(OUT)
        code, out, err = r.run(ranks, line)
        c.check(code == 0 and out == b"" and r.read(OUT) == whole and r.listing(DIR) == before, f"{name}: a file that is gone is written again: exit {code}")
    c.check(went_on >= runs // 3 and len(hit) > 1, f"{stops} stops in {runs} jobs, {hit}; {went_on} runs went on in mid-answer")


def test_stdout():
    """What stopped runs print, one behind the other, is what one run prints."""
    whole = uninterrupted("greedy")
    r.remove(DIR)
    printed, n = b"", 0
    for _ in range(30):
        process = r.begin(0, words("greedy", "--snapshot", DIR))
        printed += r.printed(process, len(whole) // 8)  # each run comes further
        process.send_signal(r.signal.SIGTERM)
        code, out, err = r.end(process)
        printed += out
        n += 1
        if code != r.STOPPED:
            break
    c.check(code == 0 and printed == whole and n > 1, f"standard output of {n} runs: exit {code}, {len(printed)} of {len(whole)} bytes {r.one_line(err)}")


def test_json():
    r.remove(DIR, OUT)
    line = words("greedy", "--json", "--snapshot", DIR, "--snapshot-every", 50, "-o", OUT)
    process = r.begin(0, line)
    r.wait_for(lambda: bool(r.manifests(DIR)), process)
    process.send_signal(r.signal.SIGTERM)
    first = r.end(process)
    c.check(first[0] in (0, r.STOPPED) and (first[0] == 0 or r.read(OUT) == b""), f"--json, stopped: exit {first[0]}, no line yet")
    code, out, err = r.run(0, line)
    answer, whole = json.loads(r.read(OUT)), whole_answer()
    for key in ("prompt_tokens", "tokens", "text", "finish_reason", "kv", "cache_bytes", "cache_bytes_f16"):
        c.check(answer[key] == whole[key], f"--json, resumed: {key}")
    c.check(code == 0 and set(answer) - set(whole) == {"snapshots"}, f"its keys: {sorted(set(answer) ^ set(whole))}")
    s = answer["snapshots"]
    c.check(s["taken"] >= 1 and s["failed"] == 0 and s["bytes"] > 0 and s["stall_ms"] > 0 and
            list(s) == ["taken", "failed", "bytes", "tokens_reused", "stall_ms", "total_ms_max", "steps_quiet", "steps_snapshot"] and
            list(s["steps_quiet"]) == ["n", "ms", "ms_p99", "ms_max"], f"snapshots: {s}")


def test_ends():
    """Answers that end at a stop string or a token of their own, found again or gone on behind."""
    whole, tokens = uninterrupted("greedy"), whole_answer()["tokens"]
    late = next(i for i in range(200, 400) if tokens[i] not in tokens[:i])
    text = whole.decode(errors="replace")
    stop = next(text[i:i + 3] for i in range(300, len(text) - 3) if text[i:i + 3].isascii() and text[i:i + 3].isprintable() and text[i:i + 3] not in text[:i])
    for more in (["--stop-token", tokens[late]], ["--stop", stop]):
        r.remove(DIR, OUT)
        code, out, _ = r.run(0, words("greedy", *more))
        line = words("greedy", *more, "--snapshot", DIR, "--snapshot-every", 20, "-o", OUT)
        first, _, _ = r.run(0, line + ["-n", 100])
        code, _, err = r.run(0, line)
        c.check(first == code == 0 and "goes on at token" in err and r.read(OUT) == out and len(out) < len(whole),
                f"{more}: exit {first}, {code}, {len(out)} bytes {r.one_line(err)}")
        before = r.listing(DIR)
        code, _, err = r.run(0, line)
        c.check(code == 0 and "nothing to do" in err and r.read(OUT) == out and r.listing(DIR) == before, f"{more}: once more: exit {code}")
        os.unlink(OUT)
        code, _, err = r.run(0, line)
        c.check(code == 0 and r.read(OUT) == out, f"{more}: the file is written again: exit {code}, {r.one_line(err)}")
    # A larger --max-tokens goes on behind an answer that had reached its length.
    r.remove(DIR, OUT)
    for n in (50, 51, 120, 400):
        code, out, err = r.run(0, words("greedy", "-n", n, "--snapshot", DIR, "-o", OUT))
        c.check(code == 0 and (n == 50 or "goes on at token" in err), f"-n {n}: exit {code} {r.one_line(err)}")
    c.check(r.read(OUT) == whole, "an answer made longer three times is the long one")


def test_prefill():
    """Signals act between two steps of a prompt, too."""
    prompt = ids(5000, 9)
    line = ["generate", "--model", MODEL, "--prompt-ids", prompt, "-n", 20, "--ignore-eos", "--chunk-tokens", 128, "--kv", "int4", "-o", OUT, "--watchdog-s", 60]
    r.remove(DIR, OUT)
    code, _, err = r.run(0, line)
    whole = r.read(OUT)
    line += ["--snapshot", DIR, "--snapshot-every", "1M"]
    for how in ("usr1", "term"):
        job = c.OnTerminal([c.BITSHARD, *line])
        process = job.process
        job.wait_for("prefill .*%")
        if how == "usr1":
            process.send_signal(r.signal.SIGUSR1)
            c.check(r.wait_for(lambda: r.manifests(DIR) != [], process, 20), "SIGUSR1 in prefill: a snapshot")
            c.check(process.poll() is None, "and it goes on")
            process.kill()
        else:
            process.send_signal(r.signal.SIGTERM)
        code, out, lines = job.end()
        cached = r.state(DIR)["sequence"]["length"] if r.manifests(DIR) else 0
        c.check(0 < cached < 5000, f"{how}: {cached} tokens of the prompt are there")
        if how == "term":
            c.check(code == r.STOPPED and any("after 0 tokens of the answer" in text for text in lines), f"SIGTERM in prefill: exit {code} {lines}")
    code, out, err = r.run(0, line)
    c.check(code == 0 and f"goes on at token {cached}" in err and r.read(OUT) == whole, f"prefill goes on: exit {code} {r.one_line(err)}")


def test_usr1():
    whole = uninterrupted("greedy")
    r.remove(DIR)
    process = r.begin(0, words("greedy", "--snapshot", DIR, "--snapshot-every", "1h"))
    first = r.printed(process, 1)
    process.send_signal(r.signal.SIGUSR1)
    there = r.wait_for(lambda: r.manifests(DIR) != [], process, 10)
    code, out, err = r.end(process)
    c.check(there and code == 0 and first + out == whole and r.manifests(DIR) == [1, 2], f"SIGUSR1: exit {code}, snapshots {r.manifests(DIR)}")


def test_end_time():
    r.remove(DIR)
    line = words("greedy", "-n", 20000, "--snapshot", DIR, "--snapshot-every", "1h")
    for how, form in (("localtime", "%Y-%m-%dT%H:%M:%S"), ("gmtime", "%Y-%m-%dT%H:%M:%SZ"), ("slurm", None)):
        at = int(r.time.time()) + 6
        text = r.time.strftime(form, getattr(r.time, how)(at)) if form else None
        env = {} if form else {"SLURM_JOB_END_TIME": str(at)}
        start = r.time.monotonic()
        code, out, err = r.run(0, line + (["--end-time", text] if text else []), env=env)
        seconds = r.time.monotonic() - start
        c.check(code == r.STOPPED and 1 < seconds < 6 and "stopped before the job's end time after" in err,
                f"end time {text or env}: exit {code} after {seconds:.1f} s {r.one_line(err)}")
    for text, part in (("yesterday", "must be unix seconds"), (str(int(r.time.time()) - 60), "is past"), ("2026-13-01T00:00", "must be unix seconds"),
                       ("2026-11-29T12:34Q", "must be unix seconds")):
        code, _, err = r.run(0, line + ["--end-time", text])
        c.check(code == 2 and part in err and len(r.one_line(err)) == 1, f"--end-time {text}: exit {code} {r.one_line(err)}")


def refused(what, line, parts, code=1, ranks=0, env=None):
    files = r.listing(DIR) if os.path.isdir(DIR) else None
    text = r.read(OUT) if os.path.exists(OUT) else None
    got, out, err = r.run(ranks, line, env=env)
    lines = r.one_line(err)
    c.check(got == code and len(lines) == 1 and all(part in lines[0] for part in parts) and out == b"", f"{what}: exit {got} {lines}")
    c.check((r.listing(DIR) if os.path.isdir(DIR) else None) == files and (r.read(OUT) if os.path.exists(OUT) else None) == text,
            f"{what}: nothing has changed")


def interrupted(line, n=20):
    """A snapshot in mid-answer, for what follows."""
    r.remove(DIR, OUT)
    process = r.begin(0, line)
    r.wait_for(lambda: bool(r.manifests(DIR)) and r.manifests(DIR)[-1] >= 2, process)
    process.send_signal(r.signal.SIGTERM)
    code, _, err = r.end(process)
    c.check(code == r.STOPPED, f"stopped in mid-answer: exit {code} {r.one_line(err)}")


def test_refusals():
    line = words("greedy", "-n", 3000, "--snapshot", DIR, "--snapshot-every", 30, "-o", OUT)
    interrupted(line)
    at = lambda **more: [more.get(str(word), word) for word in line]
    refused("another model", [OTHER if word == MODEL else word for word in line], ["weights", "resume"])
    refused("another KV format", ["int2" if word == "int4" else word for word in line], ["int4", "int2"])
    refused("on three ranks, too", ["int2" if word == "int4" else word for word in line], ["int4", "int2"], ranks=3)
    refused("another temperature", line + ["--temperature", 1], ["--temperature 0, this is 1", "--resume never"])
    refused("a shorter answer", line + ["-n", 5], ["--max-tokens is 5", "--resume never"])
    refused("require, another prompt", line + ["-p", SHORT + "!", "--resume", "require"], ["--resume require: the prompt has"])
    with open(OUT, "r+b") as file:
        file.write(b"?")
    refused("another file", line, ["is not what the snapshot's run wrote"])
    interrupted(line)
    for part in ("tail", "manifest"):
        for name in [name for name in os.listdir(DIR) if name.startswith(part)]:
            data = bytearray(r.read(os.path.join(DIR, name)))
            data[len(data) * 2 // 3 if part == "tail" else 100] ^= 4
            with open(os.path.join(DIR, name), "wb") as file:
                file.write(data)
        refused(f"a damaged {part}", line, [DIR.rsplit("/", 1)[-1]] if part == "manifest" else ["tail-"])
    code, out, err = r.run(0, line + ["-n", 30, "--resume", "never"])
    c.check(code == 0 and len(r.manifests(DIR)) > 0, f"--resume never: exit {code} {r.one_line(err)}")
    r.remove(DIR, OUT)
    code, _, err = r.run(0, line + ["--resume", "require"])
    c.check(code == 1 and "has no snapshot" in err and len(r.one_line(err)) == 1, f"require, none there: exit {code} {r.one_line(err)}")
    for extra, part in ((["--resume", "auto"], "--resume: only with --snapshot"), (["--snapshot-every", 5], "--snapshot-every: only with"),
                        (["--snapshot", DIR, "--snapshot-every", "10x"], "--snapshot-every 10x"), (["--snapshot", ""], "must not be empty"),
                        (["--snapshot", DIR, "--snapshot-keep", 1], "--snapshot-keep"), (["-o", "-"], "--output -")):
        code, _, err = r.run(0, words("greedy") + extra)
        c.check(code == 2 and part in err and len(r.one_line(err)) == 1, f"{extra}: exit {code} {r.one_line(err)}")


def test_held_back():
    """What a refused run's request still holds back, because a stop string may begin with it, is not written over the file."""
    n = next(n for n in range(12, 60) if r.run(0, words("greedy", "-n", n))[1][:-1][-2:].isalnum())
    stop = r.run(0, words("greedy", "-n", n))[1][:-1][-2:].decode() + "~never~"
    line = words("greedy", "--snapshot", DIR, "-o", OUT, "--stop", stop)
    r.remove(DIR, OUT)
    code, _, err = r.run(0, line + ["-n", n])
    c.check(code == 0, f"{n} tokens, which may begin {stop}: exit {code} {r.one_line(err)}")
    text = r.read(OUT)
    with open(OUT, "wb") as file:
        file.write(b"?" + text[1:])
    refused("another file, and text held back", line + ["-n", n + 40], ["is not what the snapshot's run wrote"])
    with open(OUT, "wb") as file:
        file.write(text)
    code, _, err = r.run(0, line + ["-n", n + 40])
    c.check(code == 0 and r.read(OUT) == r.run(0, words("greedy", "-n", n + 40))[1], f"the same file goes on: exit {code} {r.one_line(err)}")


def test_other_end():
    """A complete answer that would go on with other rules for its end is refused, not gone on with out of thin air."""
    r.remove(DIR, OUT)
    tokens = json.loads(r.run(0, words("greedy", "-n", 40, "--json"))[1])["tokens"]
    end = next(token for i, token in enumerate(tokens) if i > 3 and tokens.index(token) == i)
    line = words("greedy", "--snapshot", DIR, "-o", OUT)
    code, _, err = r.run(0, line + ["--stop-token", end])
    text = r.read(OUT)
    c.check(code == 0, f"ends at token {end}: exit {code} {r.one_line(err)}")
    r.remove(OUT)
    refused("another end", line, ["its answer is complete", "--stop-token", "--resume never"])
    code, _, err = r.run(0, line + ["--stop-token", end])
    c.check(code == 0 and r.read(OUT) == text, f"as it was asked for, its lost file is written again: exit {code} {r.one_line(err)}")


def test_locked():
    line = words("greedy", "-n", 5000, "--snapshot", DIR, "--snapshot-every", 30)
    r.remove(DIR)
    process = r.begin(0, line)
    r.wait_for(lambda: bool(r.manifests(DIR)), process)
    process.send_signal(r.signal.SIGSTOP)  # or a fast machine ends it while the other one waits
    code, out, err = r.run(0, line)
    c.check(code == 1 and len(r.one_line(err)) == 1 and str(process.pid) in err, f"a directory in use: exit {code} {r.one_line(err)}")
    process.send_signal(r.signal.SIGTERM)
    process.send_signal(r.signal.SIGCONT)
    c.check(r.end(process)[0] == r.STOPPED, "its owner is not disturbed")
    # One that is dead, and nobody has asked how it died.
    process = r.begin(0, line)
    has_begun(process)
    process.kill()
    r.wait_for(lambda: not r.is_alive(process.pid))
    start = r.time.monotonic()
    code, out, err = r.run(0, words("greedy", "-n", 5, "--snapshot", DIR, "--resume", "never"))
    c.check(code == 0 and r.time.monotonic() - start < 5, f"a zombie's lock is taken over: exit {code} {r.one_line(err)}")
    r.end(process)


def answer_of(*more, ranks=0):
    code, out, err = r.run(ranks, ["generate", "--model", MODEL, "--ignore-eos", "--chunk-tokens", 256, "--json", *more])
    c.check(code == 0, f"{more[-4:]}: exit {code} {r.one_line(err)}")
    return json.loads(out) if code == 0 else {"tokens": []}, err


def test_other_prompt():
    """What two prompts begin with is computed once; with f16 pages the answer is that of a run of its own."""
    first = ids(2000, 11).split()
    second = first[:1500] + ids(700, 12).split()
    r.remove(DIR)
    keep = ["--kv", "f16", "--snapshot", DIR]
    answer_of("--prompt-ids", " ".join(first), "-n", 20, *keep)
    got, err = answer_of("--prompt-ids", " ".join(second), "-n", 20, *keep)
    alone, _ = answer_of("--prompt-ids", " ".join(second), "-n", 20, "--kv", "f16")
    reused = got["snapshots"]["tokens_reused"]
    c.check(1200 <= reused <= 1500 and got["tokens"] == alone["tokens"] and "first 1500 of 2200" in err, f"another prompt: {reused} tokens reused {err[:300]}")
    # The directory is now the second's.
    again, err = answer_of("--prompt-ids", " ".join(second), "-n", 40, *keep)
    longer, _ = answer_of("--prompt-ids", " ".join(second), "-n", 40, "--kv", "f16")
    c.check("goes on at token" in err and again["tokens"] == longer["tokens"] and again["snapshots"]["tokens_reused"] >= 2200, "a longer answer goes on")
    other, err = answer_of("--prompt-ids", " ".join(second), "-n", 20, "--temperature", 1, "--seed", 5, *keep)
    fresh, _ = answer_of("--prompt-ids", " ".join(second), "-n", 20, "--temperature", 1, "--seed", 5, "--kv", "f16")
    c.check(other["tokens"] == fresh["tokens"] and other["snapshots"]["tokens_reused"] > 1800, "another answer over the same prompt")
    nothing, err = answer_of("--prompt-ids", ids(300, 13), "-n", 20, *keep)
    fresh, _ = answer_of("--prompt-ids", ids(300, 13), "-n", 20, "--kv", "f16")
    c.check(nothing["tokens"] == fresh["tokens"] and "nothing in common" in err, "a prompt with nothing in common begins afresh")
    back, err = answer_of("--prompt-ids", ids(300, 13), "-n", 60, *keep)
    longer, _ = answer_of("--prompt-ids", ids(300, 13), "-n", 60, "--kv", "f16")
    c.check(back["tokens"] == longer["tokens"] and "goes on at token" in err, "and its own snapshot is whole")
    # A prompt that was only read in.
    r.remove(DIR)
    answer_of("--prompt-ids", " ".join(first), "-n", 0, *keep)
    got, err = answer_of("--prompt-ids", " ".join(first), "-n", 20, *keep)
    alone, _ = answer_of("--prompt-ids", " ".join(first), "-n", 20, "--kv", "f16")
    c.check(got["tokens"] == alone["tokens"] and got["snapshots"]["tokens_reused"] >= 1700, f"a prompt read in before: {got['snapshots']['tokens_reused']} reused")
    for kv in ("int4", "int2"):
        r.remove(DIR)
        answer_of("--prompt-ids", " ".join(first), "-n", 20, "--kv", kv, "--snapshot", DIR)
        got, err = answer_of("--prompt-ids", " ".join(second), "-n", 20, "--kv", kv, "--snapshot", DIR, ranks=2)
        c.check(900 <= got["snapshots"]["tokens_reused"] <= 1300 and len(got["tokens"]) == 20, f"{kv}, two ranks: {got['snapshots']['tokens_reused']} reused")


def test_dry_run():
    done = {}
    for more in ([], ["--snapshot", DIR]):
        code, out, err = r.run(0, words("greedy", "--dry-run", *more))
        done[len(more)] = out.decode()
        c.check(code == 0, f"--dry-run {more}: exit {code} {r.one_line(err)}")
    for every, code in (("1", 0), ("64K", 0), ("64k", 0), ("2M", 0), ("1G", 0), ("8g", 0), ("90s", 0), ("0.5h", 0), ("10m", 0),
                        ("0", 2), ("0s", 2), ("-5", 2), ("1.5K", 2), ("1T", 2), ("K", 2), ("1Gs", 2), ("8589934592G", 2), ("0x10", 2), ("nans", 2), ("", 2)):
        got, _, err = r.run(0, words("greedy", "--dry-run", "--snapshot", DIR, f"--snapshot-every={every}"))
        c.check(got == code and len(r.one_line(err)) == (code != 0) and (code == 0 or f"--snapshot-every {every}: must be tokens" in err),
                f"--snapshot-every {every}: exit {got} {r.one_line(err)}")
    c.check("snapshots" in done[2] and "snapshots" not in done[0], "--dry-run counts what snapshots take")


for path, seed in ((MODEL, 1), (OTHER, 2)):
    made = c.run(0, [c.BITSHARD, "make-model", "tiny", path, "--layers", "2", "--seed", str(seed), "--context-length", "16384"])
    assert made.returncode == 0, made.stderr
only = sys.argv[1:]
for test in (test_dry_run, test_stdout, test_json, test_ends, test_usr1, test_prefill, test_end_time, test_refusals, test_held_back, test_other_end, test_locked, test_other_prompt, test_stopped_and_resumed):
    if not only or test.__name__ in only:
        print(f"-- {test.__name__}", flush=True)
        test()
c.finish()
