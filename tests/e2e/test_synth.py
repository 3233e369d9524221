"""test_synth.py: models and caches of random numbers, memory that is capped, and the decode bench on them."""
import array
import csv
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


def test_no_gpu():
    """A GPU that is not there is one line, before a model is read."""
    if c.run(0, [c.MODEL_RUN, "gpus"]).returncode == 0:
        print("this process sees a GPU: tests/e2e/test_gpu.py")
        return
    for words in (("--device", "gpu:0"), ("--device", "cuda"), ("--device", "gpu:0", "--dtype", "bf16", "--device-mem", "8G")):
        for ranks in (0, 2):
            refused(1, "GPU 0: ", "generate", "--model", TINY, "-p", "a", "-n", "2", *words, ranks=ranks)
    refused(1, "GPU 3: ", "info", "--device", "gpu:3", out=True)
    refused(2, "--device gpu:x", "generate", "--model", TINY, "-p", "a", "--device", "gpu:x")
    refused(2, "--dtype f32", "generate", "--model", TINY, "-p", "a", "--dtype", "f32")
    refused(2, "--transport nccl", "generate", "--model", TINY, "-p", "a", "--device", "cpu", "--transport", "nccl", ranks=2)


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
    """Behind N tokens of noise: positions go on at N, and all grids draw the same tokens."""
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
            heads = generate(*words, "--kv", kv, "--kv-fill", fill, "--grid", "2x1", ranks=2)
            c.check(one["tokens"] == heads["tokens"], "the same tokens on 2 ranks with half of the heads each")
    c.check(answers["f16", "700"]["tokens"] != answers["f16", "1K"]["tokens"] != generate(*words, "--kv", "f16")["tokens"], "what is in the cache matters")
    refused(2, "--kv-fill: not together with --batch", "generate", "--model", TINY, "--batch", "x", "-o", "y", "--kv-fill", "9")
    refused(2, "--context 1000", "generate", "--model", "random:tiny-d64", "--prompt-ids", "1", "--kv-fill", "1000", "--context", "1000")


def test_bench_decode():
    """Rows of every context, format and batch; CSV and JSON say the same; what does not fit is a row; floors are counted."""
    path = os.path.join(c.WORK, "synth.csv")
    words = ("bench", "decode", "--model", "random:tiny-d128", "--device", "cpu", "--steps", "8", "--device-mem", "1G")
    done = bitshard(*words, "--contexts", "600,2K,64M", "--kv", "f16,int4", "--batches", "1,2", "--csv", path, "--json")
    rows = json.loads(done.stdout) if done.returncode == 0 else []
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    c.check(len(rows) == len(table) == 12 and done.stdout.count("\n") == 1 and all(list(a) == list(b) for a, b in zip(rows, table)),
            f"a row a case, in JSON as in CSV: exit {done.returncode}, {len(rows)} {len(table)} {done.stderr[-300:]}")
    c.check(rows and list(rows[0]) == "op model kv grid merge transport device ranks batch context check steps ms ms_p10 ms_p90 tokens_s weight_bytes "
            "kv_bytes read_gb_s floor_ms ratio attend_ms dense_ms comm_ms other_ms rest_ms".split(), f"columns: {list(rows[0]) if rows else ''}")
    c.check([(row["kv"].split(":")[0], row["batch"], row["context"]) for row in rows]
            == [(kv, batch, context) for kv in ("f16", "int4") for batch in (1, 2) for context in (600, 2048, 64 << 20)], "and in their order")
    weights = 2 * (4 * (256 * (32 + 16) * 128 + 32 * 128 * 256 + 3 * 256 * 512) + 512 * 256)
    for row in rows:
        if row["context"] == 64 << 20:
            c.check(row["check"].startswith("skipped: needs ") and row["ms"] is None and row["steps"] == 0, f"64M tokens: {row['check']}")
            continue
        n, f16 = row["context"] + 8 + 4 + 9, 4 * 8 * 128 * 4  # timed, before and after them; bytes of a token in f16
        kv = n * f16
        if row["kv"] != "f16":  # a sink page, two recent ones and the open one in f16; K 4 bytes a channel, V a token, beside the codes
            quant = (n - 1) // 128 - 2 - 1
            kv = (n - quant * 128) * f16 + quant * 4 * 8 * 2 * (128 * 64 + 128 * 4)
        c.check(row["check"] == "passed" and 0 < row["ms_p10"] <= row["ms"] <= row["ms_p90"] and row["steps"] == 8
                and abs(row["tokens_s"] * row["ms"] / row["batch"] - 1000) < 1e-3 and abs(row["ratio"] * row["floor_ms"] / row["ms"] - 1) < 1e-6
                and abs((weights + row["kv_bytes"]) / row["read_gb_s"] * 1e-6 / row["floor_ms"] - 1) < 1e-6, f"a row is sound: {row}")
        c.check(row["weight_bytes"] == weights and row["kv_bytes"] == row["batch"] * kv, f"bytes of {row['kv']}, {row['context']}: {row['kv_bytes']} {kv}")
        parts = [row[name] for name in ("attend_ms", "dense_ms", "comm_ms", "other_ms")]
        c.check(min(parts) >= 0 and parts[0] > 0 and parts[1] > 10 * (parts[2] + parts[3]) and abs(sum(parts) + row["rest_ms"] - row["ms"]) < 1e-6, f"parts: {parts}")
    done = bitshard(*words, "--contexts", "600", "--kv", "f16", "--grid", "1x2", "--stripe-pages", "1", "--merge", "fold", "--json", ranks=2)
    row = json.loads(done.stdout)[0] if done.returncode == 0 else {}
    c.check(row.get("kv_bytes") == (2 * 128 + 109) * 4 * 8 * 128 * 4 and row["grid"] == "1x2" and row["merge"] == "fold" and row["comm_ms"] > 0,
            f"of 5 pages one by one, the rank that reads most has the last: exit {done.returncode} {row} {done.stderr[-300:]}")
    done = bitshard(*words, "--contexts", "2K", "--stripe-pages", "1", ranks=2)
    lines = done.stdout.splitlines()
    c.check(done.returncode == 0 and len(lines) == 3 and "2 ranks, grid 2x1" in lines[0] and lines[2].startswith("int4:kc:g128:nohad:s1:r2"), f"2 ranks: {done.stdout}")
    for part, *more in (("--contexts 1K,x", "--contexts", "1K,x"), ("--contexts 0", "--contexts", "0"), ("--batches 1,,2", "--batches", "1,,2"),
                        ("--kv: KV format \"int3\"", "--kv", "int3"), ("takes no operand", "attend"), ("--steps 2", "--steps", "2"), ("--grid 3x1", "--grid", "3x1"),
                        ("--dry-run: not of bench decode", "--dry-run"), ("--case: not of bench decode", "--case", "1"),
                        ("--kv: more than 64 formats", "--kv", ",".join(65 * ["f16"]))):
        refused(2, part, "bench", "decode", *more, *words[2:] if part != "--steps 2" else words[2:6])
    many = 20 * "int2:kc:g32:had:norm:s1:r2,"
    for variable, part in (("DTYPE=bf16", "--dtype is bf16, rank 0's auto"), ("KV=int4,int2", "--kv"), ("CONTEXTS=1K", "--contexts"), ("BATCHES=2", "--batches"),
                           (f"KV={many}int8", "--kv")):
        done = c.run_rank_1_with(variable, [*words], env={"BITSHARD_KV": many + "int4"} if many in variable else None)
        c.check(done.returncode == 1 and len(lines_of(done)) == 1 and "rank 1" in lines_of(done)[0] and part in lines_of(done)[0],
                f"a rank with BITSHARD_{variable} in its environment: exit {done.returncode} {lines_of(done)}")
    refused(2, "--model FILE is needed", "bench", "decode", "--device", "cpu")
    refused(2, "is for one rank", "bench", "kernel", "read", "--device", "cpu", ranks=2)


made = bitshard("make-model", "tiny", TINY)
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    test_device_mem()
    test_no_gpu()
    test_random()
    test_kv_fill()
    test_bench_decode()
c.finish()
