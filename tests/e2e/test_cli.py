"""test_cli.py: the program as a user meets it: help, exit codes, one line an error, where output goes, JSON, signals.

Runs on a tiny model of its own making; what the numbers of an answer are is for the other tests.
"""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c

COMMANDS = ("generate", "tokenize", "make-model", "info", "bench", "eval")
MODEL = os.path.join(c.WORK, "cli.gguf")


def bitshard(*words, ranks=0, text=None, **options):
    stdin = subprocess.DEVNULL
    if text is not None:
        path = os.path.join(c.WORK, "cli.stdin")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        stdin = open(path, encoding="utf-8")
    return c.run(ranks, [c.BITSHARD, *words], stdin=stdin, timeout=120, **options)


def lines_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("bitshard")]


def refused(code, part, *words, **options):
    done = bitshard(*words, **options)
    lines = lines_of(done)
    c.check(done.returncode == code and len(lines) == 1 and part in lines[0] and not done.stdout,
            f"{' '.join(words)[:70]} {options or ''}: exit {done.returncode}, {lines}")


def answer(*words, **options):
    done = bitshard("generate", "--model", MODEL, "--json", *words, **options)
    if not c.check(done.returncode == 0 and done.stdout.count("\n") == 1,
                   f"generate {words} {options}: exit {done.returncode} {done.stderr[-200:]}"):
        c.finish()
    return json.loads(done.stdout)


def test_help():
    done = bitshard("--version")
    c.check(done.returncode == 0 and done.stdout.startswith("bitshard "), "--version")
    done = bitshard("--help")
    c.check(done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS), "--help lists the commands")
    man = bitshard("--man").stdout
    for name in COMMANDS:
        done = bitshard(name, "--help", "--nonsense")
        c.check(done.returncode == 0 and done.stdout.startswith(f"Usage: bitshard {name} ") and not done.stderr, f"{name} --help")
        wide = [line for line in done.stdout.splitlines() if len(line) > 100]
        c.check(not wide, f"{name} --help fits 100 columns: {wide}")
        options = [word for line in done.stdout.splitlines() if line.startswith("  ") for word in line.split()[:2] if word.startswith("--")]
        missing = [o for o in options if f"\\-\\-{o[2:].replace('-', chr(92) + '-')}\\fR" not in man and o != "--help"]
        c.check(len(options) > 2 and not missing, f"bitshard(1) has the options of {name}: {missing}")
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-K", "utf8", "-ww", "-z"], input=man, capture_output=True, text=True)
        c.check(done.returncode == 0 and not done.stderr, f"bitshard(1) is clean roff: {done.stderr[:200]}")
    done = bitshard("info", "--help", ranks=3)
    c.check(done.returncode == 0 and done.stdout.count("Usage:") == 1, "--help on 3 ranks is printed once")


def test_usage():
    refused(2, "no command")
    refused(2, "frobnicate", "frobnicate", ranks=2)
    refused(2, "--model FILE is needed", "generate", "-p", "x")
    for words, part in ((("--top-k", "-3"), "--top-k -3"), (("--temperature", "nan"), "--temperature nan"), (("-n", "1T"), "-n 1T"),
                        (("--seed", "99999999999999999999"), "--seed 9999"), (("--merge", "best"), "--merge best"),
                        (("--chunk-tokens", "200"), "--chunk-tokens 200"), (("--kv", "int3"), "--kv"), (("--stop", ""), "--stop"),
                        (("--system", "x"), "--system"), (("--quiet", "--verbose"), "--quiet"), (("--prompt-file", "/x"), "--prompt"),
                        (("--context", "3"), "--context 3"), (("--grid", "2x2"), "--grid 2x2"), (("--stop-token", "70000"), "--stop-token"),
                        (("--dry-run", "--json"), "--dry-run"), (("--layers", "3"), "--layers"), (("operand",), "operand")):
        refused(2, part, "generate", "--model", MODEL, "-p", "x", *words)
    refused(2, "BITSHARD_TOP_K soon", "generate", "--model", MODEL, "-p", "x", env={"BITSHARD_TOP_K": "soon"})
    refused(1, "/nowhere.txt", "generate", "--model", MODEL, "--prompt-file", "/nowhere.txt", ranks=2)
    refused(1, "rank 0", "generate", "--model", MODEL, "--prompt-file", "/nowhere.txt", ranks=2)
    refused(2, "operand", "make-model", "tiny")
    refused(2, "huge", "make-model", "huge", "/nowhere/x.gguf")
    refused(1, "/nowhere/x.gguf", "make-model", "tiny", "/nowhere/x.gguf")
    refused(1, "512", "tokenize", "--model", MODEL, "--decode", "-p", "3 512")


def test_make_model():
    paths = [os.path.join(c.WORK, f"cli.{i}.gguf") for i in range(3)]
    for path, options in zip(paths, ((), ("--layers", "4"), ("--seed", "2"))):
        done = bitshard("make-model", "tiny", path, *options)
        c.check(done.returncode == 0, f"make-model tiny {options}: exit {done.returncode}")
    data = [open(path, "rb").read() for path in paths]
    c.check(data[0] == data[1] and data[0] != data[2] and len(data[0]) == len(data[2]), "the same options, the same bytes")
    for path in paths:
        os.unlink(path)


def test_tokenize():
    for text in ("", "a", "Grüße, Welt!\n", "<|im_start|>user\n\tTabs  and spaces \n\n"):
        done = bitshard("tokenize", "--model", MODEL, text=text)
        ids = done.stdout.split()
        c.check(done.returncode == 0 and done.stdout == " ".join(ids) + "\n", f"tokenize {text!r}: {done.stdout[:60]!r}")
        as_json = json.loads(bitshard("tokenize", "--model", MODEL, "--json", text=text).stdout)
        c.check(as_json == {"tokens": [int(i) for i in ids]}, "--json has the same ids, and nothing else")
        back = bitshard("tokenize", "--model", MODEL, "--decode", text=done.stdout)
        c.check(back.returncode == 0 and back.stdout == text, f"and back: {back.stdout!r}")
    plain = bitshard("tokenize", "--model", MODEL, "-p", "<|im_start|>").stdout.split()
    special = bitshard("tokenize", "--model", MODEL, "--parse-special", "-p", "<|im_start|>").stdout.split()
    c.check(len(plain) > 1 and len(special) == 1, f"special tokens only on request: {plain}, {special}")


def test_answer():
    one = answer("-p", "abc def", "-n", "20", "--ignore-eos")
    c.check(list(one) == ["id", "prompt_tokens", "tokens", "text", "finish_reason", "kv", "grid", "timings", "cache_bytes",
                          "cache_bytes_f16"], f"keys of --json: {list(one)}")
    c.check(list(one["timings"]) == ["load_ms", "prefill_ms", "decode_ms", "ms_per_token"] and one["grid"] == {"heads": 1, "seq": 1},
            f"its timings and grid: {one['timings']}, {one['grid']}")
    times = one["timings"]
    c.check(all(times[name] > 0 for name in times) and abs(times["ms_per_token"] * 19 - times["decode_ms"]) < 1e-3, "times are sound")
    c.check(len(one["tokens"]) == 20 and one["finish_reason"] == "length" and one["kv"].startswith("int4:kc:g128") and one["id"] == "0",
            f"20 tokens as asked: {one}")
    text = bitshard("generate", "--model", MODEL, "-p", "abc def", "-n", "20", "--ignore-eos")
    c.check(text.stdout == one["text"] + "\n", "standard output is the text and a newline")
    c.check(len(lines_of(text)) == 4, f"and standard error a summary: {text.stderr}")
    quiet = bitshard("generate", "--model", MODEL, "-p", "abc def", "-n", "20", "--ignore-eos", "--quiet")
    c.check(quiet.stdout == text.stdout and not quiet.stderr, f"--quiet: {quiet.stderr}")

    def same(other, what):
        c.check(all(other[key] == one[key] for key in ("prompt_tokens", "tokens", "text", "finish_reason", "cache_bytes")), what)

    same(answer("-n", "20", "--ignore-eos", text="abc def"), "the prompt from standard input")
    same(answer("-n", "20", "--ignore-eos", "--prompt-file", os.path.join(c.WORK, "cli.stdin")), "from a file")
    same(answer("-p", "abc def", env={"BITSHARD_MAX_TOKENS": "20", "BITSHARD_IGNORE_EOS": "1"}), "options from the environment")
    same(answer("-p", "abc def", "-n", "20", env={"BITSHARD_MAX_TOKENS": "5", "BITSHARD_IGNORE_EOS": "1"}), "the command line wins")
    stopped = answer("-p", "abc def", "-n", "20", "--ignore-eos", "--stop-token", str(one["tokens"][5]))
    end = one["tokens"].index(one["tokens"][5])
    c.check(stopped["tokens"] == one["tokens"][:end] and stopped["finish_reason"] == "stop", f"--stop-token: {stopped['tokens']}")
    part = one["text"][4:7]
    stopped = answer("-p", "abc def", "-n", "20", "--ignore-eos", "--stop", part)
    c.check(stopped["text"] == one["text"].split(part)[0] and stopped["finish_reason"] == "stop", f"--stop: {stopped['text']!r}")
    none = answer("-p", "abc def", "-n", "0")
    c.check(none["tokens"] == [] and none["text"] == "" and none["timings"]["ms_per_token"] is None, "no token asked, none given")
    chat = answer("--chat", "-p", "abc def", "-n", "1")
    system = answer("--chat", "-p", "abc def", "-n", "1", "--system", "Be brief.")
    c.check(len(one["prompt_tokens"]) < len(chat["prompt_tokens"]) and chat["prompt_tokens"] != system["prompt_tokens"], "--chat, --system")
    draws = [answer("-p", "abc", "-n", "24", "--temperature", "1", "--seed", seed)["tokens"] for seed in ("7", "7", "8")]
    c.check(draws[0] == draws[1] != draws[2], "a seed repeats, another does not")


def test_ranks():
    """Bytes in use are summed over the ranks, whatever the grid."""
    prompt = ("-p", "word " * 300, "-n", "3", "--ignore-eos", "--kv", "int4", "--stripe-pages", "1")
    one = answer(*prompt)
    tokens = len(one["prompt_tokens"]) + 3
    layers, kv_heads, dim = 4, 8, 128
    each = 2 * 2 * layers * kv_heads * dim
    c.check(0 <= one["cache_bytes_f16"] / each - tokens + 1 <= 2 and one["cache_bytes"] < one["cache_bytes_f16"],
            f"cache of {tokens} tokens: {one['cache_bytes']}, f16 {one['cache_bytes_f16'] / each} tokens")
    for ranks, grid in ((3, "1x3"), (4, "2x2")):
        other = answer(*prompt, "--grid", grid, ranks=ranks)
        c.check(other["cache_bytes"] == one["cache_bytes"] and other["cache_bytes_f16"] == one["cache_bytes_f16"], f"the same on {grid}")
        c.check(other["prompt_tokens"] == one["prompt_tokens"] and f"{other['grid']['heads']}x{other['grid']['seq']}" == grid, f"grid {grid}")
    done = bitshard("generate", "--model", MODEL, "--dry-run", "--context", "64K", "--merge", "fold", "--grid", "2x2", ranks=4)
    c.check(done.returncode == 0 and all(word in done.stdout for word in ("weights", "quantized pages", "context 65536", "merge fold: o_proj")),
            f"--dry-run: {done.stdout}")
    other = os.path.join(c.WORK, "cli.other.gguf")
    c.run(0, [c.BITSHARD, "make-model", "tiny", other, "--layers", "1"])
    for variable, part in (("KV=int2", "--kv"), ("DTYPE=bf16", "--dtype is bf16, rank 0's auto"), ("GRID=1x2", "--grid is 1x2, rank 0's 2x1"),
                           ("MERGE=fold", "--merge is fold, rank 0's allreduce"), ("STRIPE_PAGES=3", "--stripe-pages is 3, rank 0's 8"),
                           ("TRANSPORT=mpi", "--transport is mpi, rank 0's auto"), (f"MODEL={other}", f"--model has {os.path.getsize(other)} bytes, rank 0's {os.path.getsize(MODEL)}"), ("CHUNK_TOKENS=128", "--chunk-tokens")):
        done = c.run_rank_1_with(variable, ["generate", "-p", "x"], env={"BITSHARD_MODEL": MODEL})
        c.check(done.returncode == 1 and len(lines_of(done)) == 1 and "rank 1" in lines_of(done)[0] and part in lines_of(done)[0],
                f"a rank with BITSHARD_{variable} in its environment: exit {done.returncode} {lines_of(done)}")
    done = bitshard("info", "--model", MODEL, ranks=3)
    c.check(done.returncode == 0 and "grid              1x3" in done.stdout and "32 heads on 8 KV heads of 128" in done.stdout, "info on 3 ranks")


def test_bench():
    """Small shapes on the CPU: the table, CSV and JSON say the same, every check passed; bad options give one line."""
    path = os.path.join(c.WORK, "bench.csv")
    shape = ("--heads", "8/2", "--context", "700", "--tokens", "3", "--head-dim", "64", "--window", "400", "--kv", "f16,int4,int2")
    done = bitshard("bench", "kernel", "attend", "--device", "cpu", *shape, "--csv", path)
    rows = [line for line in done.stdout.splitlines() if " attend " in line]
    c.check(done.returncode == 0 and len(rows) == 3 and all("1x8/2x700 T3 D64 W400" in row and " passed " in row for row in rows),
            f"bench kernel on a small shape: exit {done.returncode}, {done.stdout} {done.stderr}")
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    as_json = bitshard("bench", "kernel", "--device", "cpu", "--kv", "int4", "--context", "1K", "--heads", "2/1", "--json")
    json_rows = json.loads(as_json.stdout) if as_json.returncode == 0 else []
    c.check(len(table) == 3 and len(json_rows) == 1 and list(table[0]) == list(json_rows[0]) and as_json.stdout.count("\n") == 1,
            f"--json has a row under the columns of --csv: {as_json.stdout} {as_json.stderr}")
    for row in table + json_rows:
        us = [float(row[name]) for name in ("us_p10", "us", "us_p90")]
        rate = float(row["bytes"]) / us[1] * 1e-3
        c.check(row["check"] == "passed" and row["op"] == "attend" and 0 < us[0] <= us[1] <= us[2] and 0 <= float(row["error_o"]) < 1e-5
                and abs(float(row["gb_s"]) / rate - 1) < 1e-6 and abs(float(row["percent"]) * float(row["read_gb_s"]) / rate - 100) < 1e-3,
                f"a row is sound: {row}")
    tokens, low = 700, 700 - 3 - 400 + 1  # one sink page, pages 1 and 2 quantized of 0 … 2, the rest f16; the window begins in page 2
    each = 2 * (128 * 64 // 2 + (64 + 128) * 2)  # codes of K and V; 4 bytes a channel of K and a token of V
    c.check(float(table[0]["bytes"]) == 2 * (tokens - low) * 256 and float(table[1]["bytes"]) == 2 * (each + (tokens - 3 * 128) * 256),
            f"bytes count what is visible: {table[0]['bytes']}, {table[1]['bytes']}")
    done = bitshard("bench", "kernel", "gemv", "--device", "cpu", "--case", "x576 Q4_1,4096 Q2_K", "--json")
    rows = json.loads(done.stdout) if done.returncode == 0 else []
    c.check([(row["op"], row["shape"], row["check"], row["bytes"], row["tokens"], row["context"]) for row in rows]
            == [("gemv", "1536x576 Q4_1", "passed", 1536 * 18 * 20, 1, None), ("gemv", "4096x4096 Q2_K", "passed", 4096 * 16 * 84, 1, None)]
            and all(row["gb_s"] > 0 and row["percent"] > 0 for row in rows), f"bench kernel gemv: {done.stdout} {done.stderr}")
    done = bitshard("bench", "kernel", "--device", "cpu", "--dry-run", "--case", "1-3,quantize")
    listed = done.stdout.splitlines()
    c.check(done.returncode == 0 and [line.split()[1] for line in listed[:3]] == ["read", "attend", "attend"] and len(listed) > 3
            and all(line.split()[1] == "quantize" for line in listed[3:]), f"--dry-run lists the cases: {done.stdout}")
    for part, *words in (("bench com", "com"), ("bench comm x", "comm", "x"), ("--case foo", "comm", "--case", "foo"), ("--grid 1x5", "comm", "--grid", "1x5"), ("bench kernel x", "kernel", "x"), ("operand",), ("--heads 8/3", "kernel", "--heads", "8/3"),
                         ("--kv", "kernel", "--kv", "int4,int3"), ("--tokens 9", "kernel", "--tokens", "9", "--context", "8"),
                         ("--case 999", "kernel", "--case", "999"), ("--case 1", "kernel", "--case", "1", "--kv", "int4"),
                         ("--device gpu:", "kernel", "--device", "gpu:"), ("--head-dim 96", "kernel", "--head-dim", "96"),
                         ("--batch", "kernel", "quantize", "--batch", "2")):
        refused(2, part if part != "--case 1" else "--kv", "bench", *words, *(() if "--device" in words else ("--device", "cpu")))
    refused(1, "/nowhere/x.csv", "bench", "kernel", "read", "--device", "cpu", "--csv", "/nowhere/x.csv")


def test_bench_comm():
    """Collectives and merges on CPU ranks: exact, timed on all ranks; JSON, CSV and the table say the same."""
    for ranks, grid, shape in ((1, None, "1x32x128"), (2, None, "1x32x128"), (4, "2x2", "1x16x128")):
        path = os.path.join(c.WORK, "bench-comm.csv")
        words = ["bench", "comm", "--device", "cpu", "--case", "T1 eager,T4 graph", "--csv", path, "--json"] + (["--grid", grid] if grid else [])
        done = c.run(ranks, [c.BITSHARD, *words])
        rows = json.loads(done.stdout) if done.returncode == 0 else []
        with open(path, newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        c.check([row["op"] for row in rows] == ["allreduce", "merge-allreduce", "merge-allgather", "merge-fold"] and len(table) == 4
                and list(table[0]) == list(rows[0]), f"bench comm on {ranks} ranks: exit {done.returncode} {done.stdout} {done.stderr[-300:]}")
        for row in rows:
            n = row["seq"] if row["op"] != "allreduce" else ranks
            floats = {"allreduce": 2 * (n - 1) / n * 4096, "merge-allreduce": 2 * (n - 1) / n * 130 * 32 / row["heads"],
                      "merge-allgather": (n - 1) * 129 * 32 / row["heads"], "merge-fold": (n - 1) * 32 / row["heads"]}[row["op"]]
            rate = 4 * floats / row["us"] * 1e-3 if row["us"] > 0 else 0
            c.check(row["check"] == "passed" and row["transport"] == ("self" if ranks == 1 else "mpi") and row["ranks"] == ranks
                    and row["shape"] == ("1x4096" if row["op"] == "allreduce" else shape) and row["rounds"] >= 20
                    and 0 <= row["us_p10"] <= row["us"] <= row["us_p90"] <= row["us_p99"] and abs(row["bus_gb_s"] - rate) <= 1e-6 * rate,
                    f"a row is sound: {row}")
    done = c.run(2, [c.BITSHARD, "bench", "comm", "--device", "cpu", "--transport", "nccl"])
    c.check(done.returncode == 2 and "--transport nccl: rank 0 has no GPU" in done.stderr, f"nccl on CPUs: {done.returncode} {done.stderr}")
    for ranks, transport in ((0, "self"), (2, "mpi")):
        refused(2, f"--case T4 graph: no graphs over transport {transport}", "bench", "comm", "--device", "cpu", "--case", "T4 graph", ranks=ranks)
    for variable, part in (("GRID=2x1", "--grid is 2x1, rank 0's 1x2"), ("CASE=allreduce", "--case is not"), ("DRY_RUN=1", "--dry-run is not"),
                           ("TRANSPORT=mpi", "--transport is mpi, rank 0's auto")):
        done = c.run_rank_1_with(variable, ["bench", "comm", "--device", "cpu"], timeout=60)
        c.check(done.returncode == 1 and len(lines_of(done)) == 1 and "rank 1" in lines_of(done)[0] and part in lines_of(done)[0] and not done.stdout,
                f"bench comm, a rank with BITSHARD_{variable}: exit {done.returncode} {lines_of(done)}")
    done = c.run(2, [c.BITSHARD, "bench", "kernel", "read", "--device", "cpu"])
    c.check(done.returncode == 2 and "is for one rank, not 2" in done.stderr, f"bench kernel on 2 ranks: {done.returncode} {done.stderr}")


def test_output_fails():
    for ranks in (0, 2):
        command = ([] if ranks == 0 else ["sh", c.LAUNCH, str(ranks)]) + [c.BITSHARD, "generate", "--model", MODEL, "-p", "x", "-n", "5000",
                                                                       "--ignore-eos"]
        if ranks == 0:  # mpirun reads its ranks' output itself
            with open("/dev/full", "w") as full:
                done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=60)
            c.check(done.returncode == 1 and "No space left" in "".join(lines_of(done)[-1:]), f"full disk: exit {done.returncode} {lines_of(done)}")
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            process.stdout.read(1)
            process.stdout.close()
            err = process.stderr.read().decode()
            c.check(process.wait(timeout=60) == 1 and "Broken pipe" in err, f"a reader that leaves: exit {process.returncode} {err}")
            process.stderr.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            begun = process.stdout.read(1)
            start = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            said = f"stopped by {number.name}" in err.decode() or ranks > 0  # mpirun leaves its ranks a second, and no way to tell
            c.check(begun and process.returncode != 0 and said and time.monotonic() - start < 5,
                    f"{number.name}, {ranks} ranks: exit {process.returncode} {err.decode()[-120:]!r}")
            if ranks == 0:
                c.check(process.returncode == 1 and out.endswith(b"\n"), "exit 1, and the answer so far is whole")


made = bitshard("make-model", "tiny", MODEL)
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    test_help()
    test_usage()
    test_make_model()
    test_tokenize()
    test_answer()
    test_ranks()
    test_bench()
    test_bench_comm()
    test_output_fails()
c.finish()
