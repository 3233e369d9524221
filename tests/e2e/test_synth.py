"""test_synth.py: models and caches of random numbers, memory that is capped, and the decode bench on them."""
import array
import json
import os
import random
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c

TINY = os.path.join(c.WORK, "synth.gguf")


def bitshard(*words, ranks=0, **options):
    return c.run(ranks, [c.BITSHARD, *words], timeout=120, **options)


def lines_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("bitshard")]


def refused(code, part, *words, ranks=0, out=False):
    done = bitshard(*words, ranks=ranks)
    lines = lines_of(done)
    c.check(done.returncode == code and len(lines) == 1 and part in lines[0] and (out or not done.stdout),
            f"{' '.join(words)[:90]}: exit {done.returncode}, {lines}")
    return lines[0] if lines else ""


def test_device_mem():
    """A cap refuses before anything is taken, and says what fits; that does fit, with --dry-run and without."""
    command = ("generate", "--model", TINY, "--kv", "int4", "-p", "a b c", "-n", "4", "--ignore-eos", "--device-mem", "192M")
    line = refused(1, "--device-mem: ", *command, "--context", "256K", ranks=2)
    refused(1, "--device-mem: ", *command, "--context", "256K", "--dry-run", ranks=2, out=True)
    found = re.search(r"([\d.]+) MiB are needed, .* and 192 MiB are left: a context of (\d+) tokens would fit, 262144 on \d+ such devices", line)
    if not c.check(found and float(found[1]) > 192, f"the line has what is needed, left, and would fit: {line}"):
        return
    for more, good in ((0, True), (1024, False)):
        for words in ((), ("--dry-run",)):
            done = bitshard(*command, "--context", str(int(found[2]) + more), *words, ranks=2)
            c.check((done.returncode == 0) == good, f"{found[2]} + {more} tokens {words}: exit {done.returncode} {lines_of(done)[:1]}")
    refused(1, "no context would fit", *command, "--device-mem", "1M")
    refused(2, "--device-mem -1", *command, "--device-mem", "-1")
    refused(1, "--device-mem", "bench", "kernel", "read", "--device", "cpu", "--device-mem", "1M", out=True)


def generate(*words, ranks=0):
    done = bitshard("generate", "--json", "--ignore-eos", *words, ranks=ranks)
    if not c.check(done.returncode == 0, f"generate {' '.join(words)[:90]} on {ranks} ranks: exit {done.returncode} {done.stderr[-300:]}"):
        c.finish()
    return json.loads(done.stdout)


def test_random():
    """The same model on any grid: logits within what another order of summation costs, and so the same tokens."""
    ids = os.path.join(c.WORK, "synth.i32")
    rng = random.Random(20261128)
    with open(ids, "wb") as file:
        array.array("i", [rng.randrange(512) for _ in range(300)]).tofile(file)
    for name, ranks, grid in (("tiny-d128", 2, "2x1"), ("tiny-qwen2", 3, "1x3"), ("tiny-qwen3", 2, "1x2")):
        out = os.path.join(c.WORK, f"synth.{name}.f32")
        common = {"model": f"random:{name}", "tokens": ids, "n": 300, "kv": "f16", "stripe_pages": 1, "chunk": 128}
        c.model_run(1, out=out, **common)
        got = c.model_run(ranks, grid=grid, against=out, **common)
        c.check(got["worst"] <= 1e-3, f"random:{name} on {grid}: worst {got['worst']} <= 1e-3")
        os.remove(out)
    one = generate("--model", "random:tiny-d128", "--prompt-ids", "5 17,300\n4", "-n", "40", "--kv", "f16")
    c.check(one["prompt_tokens"] == [5, 17, 300, 4] and len(one["tokens"]) == 40 and one["text"] == "" and len(set(one["tokens"])) > 8,
            f"ids in, ids out: {one}")
    three = generate("--model", "random:tiny-d128", "--prompt-ids", "5 17 300 4", "-n", "40", "--kv", "f16", ranks=3)
    c.check(three["tokens"] == one["tokens"], "the same tokens on 3 ranks")
    other = generate("--model", "random:tiny-d128:2", "--prompt-ids", "5 17 300 4", "-n", "40", "--kv", "f16")
    c.check(other["tokens"] != one["tokens"], "and others with another seed")
    plain = bitshard("generate", "--model", "random:tiny-d128", "--prompt-ids", "5 17 300 4", "-n", "40", "--kv", "f16", "-q")
    c.check(plain.stdout == " ".join(map(str, one["tokens"])) + "\n", f"without --json the ids on a line: {plain.stdout}")
    same = generate("--model", TINY, "--prompt-ids", " ".join(map(str, generate("--model", TINY, "-p", "abc def", "-n", "3")["prompt_tokens"])), "-n", "3")
    c.check(same["text"] == generate("--model", TINY, "-p", "abc def", "-n", "3")["text"], "--prompt-ids of a model with a tokenizer")
    refused(2, "random:tiny-d64: has no tokenizer: give the prompt as --prompt-ids", "generate", "--model", "random:tiny-d64", "-p", "x", ranks=2)
    refused(2, "NAME one of tiny-d128", "generate", "--model", "random:tiny", "--prompt-ids", "1")
    refused(1, "random:tiny-d64: has no tokenizer", "tokenize", "--model", "random:tiny-d64", "-p", "x")
    refused(1, "'600' is not an id from 0 to 599", "generate", "--model", "random:tiny-d64", "--prompt-ids", "1 600")
    refused(2, "--prompt-ids: has no id", "generate", "--model", "random:tiny-d64", "--prompt-ids", ", ")
    refused(2, "--prompt-ids: not together with --prompt", "generate", "--model", TINY, "--prompt-ids", "1", "-p", "x")
    refused(2, "--dry-run: give --context or --prompt-ids", "generate", "--model", "random:llama-3.1-8b", "--dry-run")
    done = bitshard("generate", "--model", "random:llama-3.1-8b", "--dry-run", "--context", "1M", "--kv", "int4", ranks=4)
    c.check(done.returncode == 0 and "15.0 GiB" not in done.stdout.split("activations")[1] and "weights" in done.stdout, f"--dry-run of 8B: {done.stdout}")
    refused(1, "--device-mem", "generate", "--model", "random:llama-3.1-70b", "--prompt-ids", "1", "--device-mem", "1G")


def test_kv_fill():
    """Behind N tokens of noise: positions go on at N, and one and three ranks draw the same tokens."""
    words = ("--model", "random:tiny-d128", "--prompt-ids", "1 2 3", "-n", "24", "--stripe-pages", "1")
    answers = {}
    for kv, fill in (("f16", "700"), ("f16", "1K"), ("int4", "700")):
        one = answers[kv, fill] = generate(*words, "--kv", kv, "--kv-fill", fill)
        three = generate(*words, "--kv", kv, "--kv-fill", fill, ranks=3)
        n = int(fill.replace("K", "")) * (1024 if "K" in fill else 1) + 26
        each = 2 * 2 * 4 * 8 * 128
        c.check(one["cache_bytes_f16"] == three["cache_bytes_f16"] and 0 <= one["cache_bytes_f16"] / each - n <= 2 and one["cache_bytes"] == three["cache_bytes"],
                f"{kv} --kv-fill {fill}: {one['cache_bytes_f16'] / each} tokens in the cache")
        if kv == "f16":
            c.check(one["tokens"] == three["tokens"] and len(one["prompt_tokens"]) == 3, "the same tokens on 3 ranks")
    c.check(answers["f16", "700"]["tokens"] != answers["f16", "1K"]["tokens"] != generate(*words, "--kv", "f16")["tokens"], "what is in the cache matters")
    refused(2, "--kv-fill: not together with --batch", "generate", "--model", TINY, "--batch", "x", "-o", "y", "--kv-fill", "9")
    refused(2, "--context 1000", "generate", "--model", "random:tiny-d64", "--prompt-ids", "1", "--kv-fill", "1000", "--context", "1000")


made = bitshard("make-model", "tiny", TINY)
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    test_device_mem()
    test_random()
    test_kv_fill()
c.finish()
