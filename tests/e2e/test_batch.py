"""test_batch.py: generate --batch: answers equal single ones, what is wrong becomes an error line, restarts go on where
the file ends, and a file that is full, foreign or in use is left alone. Kills are tests/faults/test_batch_kills.py."""
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c

MODEL = os.path.join(c.WORK, "batch.gguf")
IN = os.path.join(c.WORK, "batch.in.jsonl")
OUT = os.path.join(c.WORK, "batch.out.jsonl")
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def line(custom_id, url, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "any", **body}})


def write(lines, path=IN):
    with open(path, "wb") as file:
        for text in lines:
            file.write((text if isinstance(text, bytes) else text.encode()) + b"\n")


def batch(*words, ranks=0, out=OUT, fresh=True, **options):
    if fresh and os.path.exists(out) and os.path.isfile(out):
        os.unlink(out)
    return c.run(ranks, [c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", out, *words], timeout=120, **options)


def said(done):
    return [text for text in done.stderr.splitlines() if text.startswith("bitshard")]


def answers(path=OUT):
    with open(path, "rb") as file:
        data = file.read()
    c.check(data.endswith(b"\n") or not data, "the output is whole lines")
    return [json.loads(text) for text in data.splitlines()]


def text_of(answer):
    choice = answer["response"]["body"]["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def single(*words):
    done = c.run(0, [c.BITSHARD, "generate", "--model", MODEL, "--json", *words])
    return json.loads(done.stdout)


def test_answers():
    """Each field reaches the engine: the answer of a line is that of the same options."""
    cases = {
        "plain": (line("plain", TEXT, prompt="abc def", max_tokens=9), ("-p", "abc def", "-n", "9")),
        "default": (line("default", TEXT, prompt="abc def"), ("-p", "abc def", "-n", "13")),
        "chat": (line("chat", CHAT, messages=[{"role": "system", "content": "Be."}, {"role": "user", "content": "hi"}], max_tokens=7),
                 ("--chat", "--system", "Be.", "-p", "hi", "-n", "7")),
        "parts": (line("parts", CHAT, messages=[{"role": "developer", "content": "Be."},
                                                {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
                       max_completion_tokens=7), ("--chat", "--system", "Be.", "-p", "hi", "-n", "7")),
        "drawn": (line("drawn", TEXT, prompt=["abc"], max_tokens=9, temperature=1, seed=7, n=1, stream=False, user="u", stop=None),
                  ("-p", "abc", "-n", "9", "--temperature", "1", "--seed", "7")),
        "narrow": (line("narrow", TEXT, prompt="abc", max_tokens=9, temperature=1.5, seed=3, top_p=0.5, top_k=9, min_p=0.05,
                        repeat_penalty=1.2, ignore_eos=True),
                   ("-p", "abc", "-n", "9", "--temperature", "1.5", "--seed", "3", "--top-p", "0.5", "--top-k", "9", "--min-p", "0.05",
                    "--repeat-penalty", "1.2", "--ignore-eos")),
        "none": (line("none", TEXT, prompt="abc", max_tokens=0), ("-p", "abc", "-n", "0")),
    }
    part = single("-p", "abc def", "-n", "9")["text"][2:4]
    cases["stopped"] = (line("stopped", TEXT, prompt="abc def", max_tokens=9, stop=["never there", part]),
                        ("-p", "abc def", "-n", "9", "--stop", part))
    write(text for text, _ in cases.values())
    for ranks, size in ((0, 1), (0, 4), (2, 3)):
        done = batch("--batch-size", size, "-n", "13", "--kv", "f16", ranks=ranks)
        found = {answer["custom_id"]: answer for answer in answers()}
        c.check(done.returncode == 0 and sorted(found) == sorted(cases), f"{ranks} ranks, {size} at a time: exit {done.returncode} {said(done)}")
        if ranks == 0 and size == 1:
            c.check([answer["custom_id"] for answer in answers()] == list(cases), "one at a time keeps the order")
            alone = {name: single("--kv", "f16", *words) for name, (_, words) in cases.items()}
        for name, answer in found.items():
            one, body = alone[name], answer["response"]["body"]
            usage = {"prompt_tokens": len(one["prompt_tokens"]), "completion_tokens": len(one["tokens"]),
                     "total_tokens": len(one["prompt_tokens"]) + len(one["tokens"])}
            # Drawn tokens may differ where the order of a sum does; greedy ones have margins.
            same = ranks > 0 and name in ("drawn", "narrow") or (text_of(answer) == one["text"] and body["usage"] == usage and
                                                               body["choices"][0]["finish_reason"] == one["finish_reason"])
            c.check(same and answer["error"] is None and answer["response"]["status_code"] == 200,
                    f"{name}: {text_of(answer)!r}, alone {one['text']!r}")
    shapes = {answer["custom_id"]: answer for answer in answers()}
    c.check(list(shapes["plain"]) == ["id", "custom_id", "response", "error"] and
            list(shapes["plain"]["response"]) == ["status_code", "request_id", "body"] and
            list(shapes["plain"]["response"]["body"]) == ["id", "object", "created", "model", "choices", "usage"] and
            shapes["plain"]["response"]["body"]["object"] == "text_completion" and
            shapes["chat"]["response"]["body"]["object"] == "chat.completion" and
            shapes["chat"]["response"]["body"]["choices"][0]["message"]["role"] == "assistant", "the shape of a line")


BAD = (
    ("{", "not JSON"), ("7", "not JSON"), ("[]", "not a JSON object"), ('{"method":"POST"}', "custom_id is missing"),
    ('{"custom_id":7}', "custom_id must be a text"), ('{"custom_id":""}', "custom_id of 0 bytes"),
    ('{"custom_id":"' + "x" * 513 + '"}', "custom_id of 513 bytes"), ('{"custom_id":"k","custom_id":"l"}', "duplicate object key"),
    (b'{"custom_id":"\xff"}', "not JSON"), ('{"custom_id":"nul\\u0000"}', "not JSON"), ("{}" * 2, "not JSON"),
    ('{"custom_id":"no-method"}', "method is missing"),
    ('{"custom_id":"get","method":"GET","url":"/v1/completions","body":{}}', 'method "GET"'),
    ('{"custom_id":"url","method":"POST","url":"/v1/embeddings","body":{}}', 'url "/v1/embeddings"'),
    ('{"custom_id":"body","method":"POST","url":"/v1/completions","body":[]}', "body must be an object"),
    (line("no-prompt", TEXT), "prompt is missing"), (line("two", TEXT, prompt=["a", "b"]), "prompt has 2 items"),
    (line("id", TEXT, prompt=[1, 512]), "prompt 512: an id"), (line("real-id", TEXT, prompt=[1.5]), "prompt 1.5"),
    (line("number", TEXT, prompt=7), "prompt 7: must be a text"), (line("empty", TEXT, prompt=[]), "prompt is empty"),
    (line("no-messages", CHAT, prompt="x"), "prompt"), (line("messages", CHAT, messages=[]), "messages []"),
    (line("role", CHAT, messages=[{"role": "tool", "content": "x"}]), 'messages[0].role "tool"'),
    (line("content", CHAT, messages=[{"role": "user"}]), "messages[0].content is missing"),
    (line("image", CHAT, messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
    (line("hot", TEXT, prompt="x", temperature=2.1), "temperature 2.1: must be a number, 0 to 2"),
    (line("text", TEXT, prompt="x", temperature="hot"), 'temperature "hot"'), (line("p", TEXT, prompt="x", top_p=0), "top_p 0"),
    (line("k", TEXT, prompt="x", top_k=-1), "top_k -1"), (line("n", TEXT, prompt="x", n=2), "n 2: must be 1"),
    (line("max", TEXT, prompt="x", max_tokens=-5), "max_tokens -5"), (line("max2", TEXT, prompt="x", max_tokens=1.5), "max_tokens 1.5"),
    (line("both", CHAT, messages=[{"role": "user", "content": "x"}], max_tokens=1, max_completion_tokens=2), "max_completion_tokens 2"),
    (line("seed", TEXT, prompt="x", seed="s"), 'seed "s"'), (line("stop", TEXT, prompt="x", stop=[""]), 'stop ""'),
    (line("stops", TEXT, prompt="x", stop=["a"] * 17), "stop has 17"), (line("stream", TEXT, prompt="x", stream=True), "stream true: not supported"),
    (line("bias", TEXT, prompt="x", logit_bias={"5": 1}), "logit_bias"), (line("typo", TEXT, prompt="x", temprature=1), '"temprature"'),
    (line("long", TEXT, prompt="x", max_tokens=1 << 29), "need 536870913: the model was trained for 131072"),
    (line("dup", TEXT, prompt="x", max_tokens=1), None), (line("dup", TEXT, prompt="y", max_tokens=1), "line 42 has it, too"),
)


def test_errors():
    write([text for text, _ in BAD] + ["", " \r"])
    done = batch("--batch-size", "2")
    first = open(OUT, "rb").read()
    found = answers()
    by_line = {int(answer["id"].removeprefix("batch_req_")): answer for answer in found}
    c.check(done.returncode == 0 and len(found) == len(by_line) == len(BAD), f"a line for each line: {len(found)} {said(done)}")
    for number, (text, part) in enumerate(BAD, 1):
        answer = by_line.get(number, {})
        if part is None:
            c.check(answer.get("error", 1) is None, f"line {number} is answered")
            continue
        error = answer.get("error") or {}
        c.check(part in error.get("message", "") and error.get("line") == number and answer["response"]["status_code"] == 400 and
                answer["response"]["body"]["error"]["message"] == error["message"], f"line {number}, {text[:60]!r}: {error}")
    again = batch("--batch-size", "2", fresh=False)
    c.check(again.returncode == 0 and open(OUT, "rb").read() == first and "43 answered before" in again.stderr,
            f"a second run has nothing to do: {said(again)}")
    done = batch("--context", "8")
    c.check("the context is 8" in open(OUT).read(), "--context bounds a request")


def test_restarts():
    """From any byte of the output on, a second run gives the file of an uninterrupted one."""
    short = [line(f"r{i}", TEXT, prompt="abc " * (i % 3 + 1), max_tokens=4 + i % 5) for i in range(6)]
    short += ["bad", line("r1", TEXT, prompt="x"), line("last", CHAT, messages=[{"role": "user", "content": "hi"}], max_tokens=5, temperature=1)]
    # Long enough, drawn and in 2 bits: another order of the sums over sequence shards would draw other tokens.
    draw = random.Random(1)
    long = [line(f"r{i}", TEXT, prompt=[draw.randrange(3, 500) for _ in range(n)], max_tokens=n_answer, temperature=1, ignore_eos=True)
            for i, (n, n_answer) in enumerate(((20, 5), (800, 180), (5, 5)))]
    words = ("--batch-size", "1", "--stripe-pages", "1", "--kv", "int2")
    for ranks, lines in ((0, short), (3, long)):
        write(lines)
        done = batch(*words, ranks=ranks)
        whole = open(OUT, "rb").read()
        c.check(done.returncode == 0 and whole.count(b"\n") == len(lines), f"{ranks} ranks: a line each, {said(done)}")
        ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
        for cut in (0, 1, 15, 16, ends[0] - 1, ends[2], ends[5] + 40, ends[6], len(whole) - 1) if ranks == 0 else (ends[0], ends[1] - 1):
            with open(OUT, "wb") as file:
                file.write(whole[:cut])
            done = batch(*words, ranks=ranks, fresh=False)
            c.check(done.returncode == 0 and open(OUT, "rb").read() == whole, f"{ranks} ranks, cut at byte {cut}: exit {done.returncode} {said(done)}")
        if ranks == 0:
            with open(OUT, "wb") as file:
                file.write(whole[:ends[3]] + bytes(50))
            done = batch(*words, fresh=False)
            c.check(done.returncode == 0 and open(OUT, "rb").read() == whole, "zeros behind the last line, as a crash may leave them")


def test_files():
    write([line(f"f{i}", TEXT, prompt="abc", max_tokens=3) for i in range(5)])
    for content, part in ((b"my notes\n", "line 1 is not an answer"), (b"my notes", "line 1 is not an answer"), (b'{"id":"x"}\n', "line 1"),
                          (b'{"id":"batch_req_1","custom_id":"f0","response":{},"error":null}\n{}\n', "line 2")):
        for ranks in (0, 2):
            with open(OUT, "wb") as file:
                file.write(content)
            done = batch(ranks=ranks, fresh=False)
            c.check(done.returncode == 1 and len(said(done)) == 1 and part in said(done)[0] and open(OUT, "rb").read() == content,
                    f"{ranks} ranks, a foreign file {content[:20]}: exit {done.returncode} {said(done)}")
    with open(OUT, "wb") as file:
        file.write(b'{"id":"batch_req_1","custom_id":"f0","response":{},"error":null}')
    done = batch(fresh=False)
    c.check(done.returncode == 0 and [a["custom_id"] for a in answers()] == [f"f{i}" for i in range(5)], "a last line that only lacks its newline")
    done = batch()
    whole = open(OUT, "rb").read()

    def small(limit):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for limit in (10, len(whole) // 2, len(whole) - 1):  # a write stops in the middle of a line
        os.unlink(OUT)
        done = subprocess.run([c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", OUT, "--batch-size", "1"], preexec_fn=small(limit),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        kept = open(OUT, "rb").read()
        c.check(done.returncode == 1 and len(said(done)) == 1 and "File too large" in said(done)[0] and whole.startswith(kept) and
                (kept.endswith(b"\n") or not kept) and len(kept) <= limit, f"room for {limit} bytes: exit {done.returncode} {said(done)}, {len(kept)} kept")
        done = batch("--batch-size", "1", fresh=False)
        c.check(done.returncode == 0 and open(OUT, "rb").read() == whole, "and with room again it goes on")
    for ranks in (0, 2):
        done = batch(out="/dev/full", ranks=ranks)
        c.check(done.returncode == 1 and len(said(done)) == 1 and "/dev/full: No space left" in said(done)[0], f"{ranks} ranks, full: {said(done)}")
    with open(OUT, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        waiting = subprocess.Popen([c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", OUT], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(1)
        early = waiting.poll()
    err = waiting.communicate(timeout=30)[1]
    c.check(early is None and waiting.returncode == 0 and "5 answered before" in err, f"a file in use is waited for: {early} {err}")
    with open(OUT, "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        done = batch(fresh=False, out=OUT)
    c.check(done.returncode == 1 and len(said(done)) == 1 and "another job is writing it" in said(done)[0] and open(OUT, "rb").read() == whole,
            f"and not forever: {said(done)}")


def test_usage():
    write([line("u", TEXT, prompt="abc", max_tokens=3)])
    base = [c.BITSHARD, "generate", "--model", MODEL]
    for words, part, code in ((("--batch", IN), "needs --output", 2), (("-o", "-", "-p", "x"), "--output -", 2),
                              (("--batch", IN, "-o", IN), "is the file of --batch", 2), (("--batch", IN, "-o", "-"), "--output -", 2),
                              (("--batch", IN, "-o", OUT, "-p", "x"), "--prompt: not together", 2),
                              (("--batch", IN, "-o", OUT, "--json"), "--json: not together", 2),
                              (("--batch", IN, "-o", OUT, "--batch-size", "0"), "--batch-size 0", 2),
                              (("-p", "x", "--batch-size", "2"), "--batch-size: only", 2),
                              (("--batch", "/nowhere.jsonl", "-o", OUT), "--batch /nowhere.jsonl", 1),
                              (("--batch", os.devnull, "-o", OUT), "has no line", 1), (("--batch", IN, "-o", c.WORK), "Is a directory", 1),
                              (("--batch", IN, "-o", "/nowhere/x"), "/nowhere/x: No such", 1)):
        done = c.run(2 if words[0] == "--batch" else 0, [*base, *words])
        c.check(done.returncode == code and len(said(done)) == 1 and part in said(done)[0], f"{words}: exit {done.returncode} {said(done)}")
    wrapper = os.path.join(c.WORK, "batch-one-differs.sh")
    for words in (f"--batch {IN} -o {OUT}", "-p x --dry-run"):
        with open(wrapper, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nset -- -p x\n[ "$OMPI_COMM_WORLD_RANK" != 1 ] || set -- {words}\n'
                       f'exec {c.BITSHARD} generate --model {MODEL} "$@"\n')
        os.chmod(wrapper, 0o755)
        done = c.run(2, [wrapper], timeout=60)
        c.check(done.returncode == 1 and len(said(done)) == 1 and "rank 1" in said(done)[0] and "--batch" in said(done)[0],
                f"rank 1 alone has {words.split()[-1]}: exit {done.returncode} {said(done)}")
    done = c.run(2, [*base, "--batch", IN, "--dry-run"])
    c.check(done.returncode == 0 and "quantized pages" in done.stdout, f"--dry-run: {done.stdout}")
    with open(IN, encoding="utf-8") as stdin:
        done = c.run(2, [*base, "--batch", "-", "-o", OUT + ".stdin"], stdin=stdin)
    c.check(done.returncode == 0 and len(answers(OUT + ".stdin")) == 1, f"requests from standard input: {said(done)}")
    os.unlink(OUT + ".stdin")


def test_signal():
    write([line(f"s{i}", TEXT, prompt="abc", max_tokens=100, ignore_eos=True) for i in range(160)])
    if os.path.exists(OUT):
        os.unlink(OUT)
    process = subprocess.Popen([c.BITSHARD, "generate", "--model", MODEL, "--batch", IN, "-o", OUT, "--batch-size", "2"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 90
    while time.monotonic() < until and not (os.path.exists(OUT) and os.path.getsize(OUT) > 0):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=30)[1]
    there = len(answers())
    c.check(process.returncode == 1 and f"stopped by SIGTERM with {160 - there} lines to go" in err and 0 < there < 160,
            f"SIGTERM: exit {process.returncode}, {there} lines, {err[-160:]!r}")


made = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL])
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    test_answers()
    test_errors()
    test_restarts()
    test_files()
    test_usage()
    test_signal()
c.finish()
