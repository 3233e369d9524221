"""test_prefill.py: `bench prefill`, and a prompt that is being read when a signal comes."""
import csv
import json
import os
import re
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c
import resume as r

COLUMNS = ("op model kv grid merge transport device ranks chunk_tokens position tokens timed_tokens steps check ms tokens_s tflop tflop_s "
           "gemm_tflop_s percent gemm_ms attend_ms quantize_ms comm_ms other_ms attend_tflop_s attend_percent").split()
PARTS = ("gemm_ms", "attend_ms", "quantize_ms", "comm_ms", "other_ms")
MODEL = ("--model", "random:tiny-d128", "--device", "cpu")
BENCH = ("bench", "prefill", *MODEL, "--chunk-tokens", "256")


def lines_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("bitshard") and not re.search(r" prefill: +\d+%", line)]


def bench(*words, ranks=0):
    done = c.run(ranks, [c.BITSHARD, *BENCH, *words, "--json"], timeout=120)
    rows = json.loads(done.stdout) if done.returncode == 0 else []
    c.check(rows, f"bench prefill {' '.join(words)} on {ranks} ranks: exit {done.returncode} {done.stderr[-300:]}")
    return [row for row in rows if row["op"] == "chunk"], [row for row in rows if row["op"] == "prompt"]


def refused(part, *words, code=2, ranks=0):
    done = c.run(ranks, [c.BITSHARD, *words], timeout=120)
    c.check(done.returncode == code and len(lines_of(done)) == 1 and part in lines_of(done)[0] and not done.stdout,
            f"{' '.join(words)[:90]}: exit {done.returncode}, {lines_of(done)}")


def operations(first, n):
    """Of tiny-d128: 4 layers, 256 channels, 32 heads on 8 KV heads of 128, FFN 512."""
    dense = 2 * n * 4 * (256 * (32 + 16) * 128 + 32 * 128 * 256 + 3 * 256 * 512)
    return dense + 4 * 4 * 32 * 128 * sum(range(first + 1, first + n + 1))


def test_rows():
    """Chunks in order, prompts their sums; CSV and JSON say the same; rates follow from the operations."""
    path = os.path.join(c.WORK, "prefill.csv")
    chunks, prompts = bench("--contexts", "700,256", "--kv", "f16,int4", "--csv", path)
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    c.check(len(table) == 10 and [(float(a["ms"]), a["op"]) for a in table]
            == [(b["ms"], b["op"]) for kv in ("f16", "int4") for rows in (chunks, prompts) for b in rows if b["kv"].startswith(kv)], "the rows, in CSV as in JSON")
    c.check(all(list(row) == COLUMNS for row in chunks + prompts + table), f"columns: {list(chunks[0])}")
    c.check([(row["position"], row["tokens"]) for row in chunks] == 2 * [(0, 256), (256, 256), (512, 188)], f"chunks: {chunks}")
    c.check([(row["position"], row["tokens"], row["steps"]) for row in prompts] == 2 * [(0, 256, 0), (0, 700, 0)], "prompts, the short one first")
    for i, kv in enumerate(("f16", "int4")):
        ms = [row["ms"] for row in chunks[3 * i:3 * i + 3]]
        c.check(abs(prompts[2 * i]["ms"] / ms[0] - 1) < 1e-7 and abs(prompts[2 * i + 1]["ms"] / sum(ms) - 1) < 1e-7, f"{kv}: a prompt is its chunks {ms}")
    for row in chunks + prompts:
        n = row["tokens"]
        c.check(row["check"] == "passed" and row["timed_tokens"] == n and row["ms"] > 0 and abs(row["tokens_s"] * row["ms"] / n / 1000 - 1) < 1e-7
                and abs(row["tflop"] * 1e12 / operations(row["position"], n) - 1) < 1e-7 and abs(row["tflop"] / row["ms"] * 1e3 / row["tflop_s"] - 1) < 1e-7
                and abs(row["percent"] * row["gemm_tflop_s"] / row["tflop_s"] / 100 - 1) < 1e-7, f"a row is sound: {row}")
    for row in chunks:
        apart = row["position"] != 256
        c.check(all((row[name] is not None) == apart for name in (*PARTS, "attend_percent")), f"parts where they were taken: {row}")
        if apart:
            c.check(row["gemm_ms"] > 0 and row["attend_ms"] > 0 and (row["quantize_ms"] > 0) == (row["kv"] != "f16" and row["position"] == 512)
                    and min(row[name] for name in PARTS) >= 0, f"parts: {row}")
    chunks, prompts = bench("--contexts", "256", "--kv", "int4", "--kv-fill", "600", "--step-ms", "1")
    c.check([(row["position"], row["tokens"]) for row in chunks] == [(600, 168), (768, 88)] and prompts[0]["position"] == 600 and all(row["steps"] > 2 for row in chunks),
            f"behind noise, cut into short steps: {[(row['position'], row['tokens'], row['steps']) for row in chunks]}")


def test_parts_of_a_prompt():
    """Samples, an end by time, and a length that does not fit: each row says what was timed, and the sums follow."""
    chunks, prompts = bench("--contexts", "512,2K", "--kv", "int4", "--samples", "3")
    c.check([(row["position"], row["tokens"]) for row in chunks] == [(0, 256), (768, 256), (1792, 256)] and all(row["gemm_ms"] > 0 for row in chunks), f"samples: {chunks}")
    c.check([row["timed_tokens"] for row in prompts] == [256, 768] and prompts[1]["check"].startswith("sampled: 768 of 2048")
            and prompts[1]["ms"] > prompts[0]["ms"] > chunks[0]["ms"], f"prompts: {[(row['check'], row['ms']) for row in prompts]}")
    a, b, d = [row["ms"] / 256 for row in chunks]
    # Between two samples, which stand for their middles, the middle of what was left out.
    first, second = (a * (895.5 - 511.5) + b * (511.5 - 127.5)) / 768, (b * (1919.5 - 1407.5) + d * (1407.5 - 895.5)) / 1024
    total = 256 * (a + b + d) + 512 * first + 768 * second
    c.check(abs(prompts[1]["ms"] / total - 1) < 1e-7, f"straight lines between samples: {prompts[1]['ms']} {total}")
    chunks, prompts = bench("--contexts", "512,64K", "--kv", "int4", "--seconds", "1")
    timed = sum(row["tokens"] for row in chunks)
    c.check(512 <= timed < 65536 and prompts[0]["check"] == "passed" and prompts[1]["timed_tokens"] == timed
            and prompts[1]["check"] == f"extrapolated: {timed} of 65536 tokens were timed" and prompts[1]["ms"] > 1000, f"an end by time: {prompts}")
    chunks, prompts = bench("--contexts", "512,64M", "--kv", "int4", "--device-mem", "1G")
    c.check(len(chunks) == 2 and prompts[1]["check"].startswith(f"extrapolated: 512 of {64 << 20} tokens were timed; needs ") and prompts[1]["ms"] > prompts[0]["ms"],
            f"what does not fit follows the line: {prompts[1]}")
    chunks, prompts = bench("--contexts", "64M", "--kv", "int4", "--device-mem", "1G")
    c.check(not chunks and prompts[0]["check"].startswith("skipped: needs ") and prompts[0]["ms"] is None, f"and nothing where nothing fits: {prompts}")


def test_ranks():
    chunks, prompts = bench("--contexts", "600", "--kv", "int4", "--grid", "1x2", "--stripe-pages", "1", "--merge", "allgather", ranks=2)
    c.check(len(chunks) == 3 and chunks[0]["comm_ms"] > 0 and chunks[0]["grid"] == "1x2" and chunks[0]["merge"] == "allgather" and chunks[0]["ranks"] == 2
            and abs(chunks[0]["percent"] * 2 * chunks[0]["gemm_tflop_s"] / chunks[0]["tflop_s"] / 100 - 1) < 1e-7, f"2 ranks: {chunks[0]}")
    for variable, part in (("STEP_MS=3", "--step-ms"), ("SAMPLES=2", "--samples"), ("KV=int2", "--kv"), ("DTYPE=bf16", "--dtype is bf16")):
        done = c.run_rank_1_with(variable, [*BENCH, "--contexts", "512"])
        c.check(done.returncode == 1 and len(lines_of(done)) == 1 and "rank 1" in lines_of(done)[0] and part in lines_of(done)[0],
                f"a rank with BITSHARD_{variable} in its environment: exit {done.returncode} {lines_of(done)}")


def test_table_and_refusals():
    done = c.run(0, [c.BITSHARD, *BENCH, "--contexts", "512"])
    lines = done.stdout.splitlines()
    c.check(done.returncode == 0 and len(lines) == 6 and "GEMM" in lines[2] and "chunks of 256" in lines[0] and lines[1].split()[:3] == ["kv", "what", "from"]
            and [line.split()[1] for line in lines[3:]] == ["chunk", "chunk", "prompt"], f"the table: {done.stdout}")
    for part, *more in (("--contexts 1K,x", "--contexts", "1K,x"), ("int3", "--kv", "int3"), ("takes no operand", "attend"), ("--grid 3x1", "--grid", "3x1"),
                        ("--dry-run: not of bench prefill", "--dry-run"), ("--case: not of bench prefill", "--case", "1"), ("--samples 1", "--samples", "1"),
                        ("--kv-fill 100: with --samples", "--kv-fill", "100", "--samples", "2"),
                        ("--seconds -1", "--seconds", "-1")):
        refused(part, *BENCH[:2], *more, *BENCH[2:])
    refused("--chunk-tokens 200: must be a multiple of 128", "bench", "prefill", *MODEL, "--chunk-tokens", "200")
    refused("--model FILE is needed", "bench", "prefill", "--device", "cpu")
    refused("/nowhere/x.csv", *BENCH, "--contexts", "256", "--csv", "/nowhere/x.csv", code=1)


def stop(number, *words):
    """Sends a signal to a program once it has drawn where it is in the prompt; exit, output, lines."""
    job = c.OnTerminal([c.BITSHARD, *words])
    job.wait_for("prefill .*%")
    job.process.send_signal(number)
    return job.end()


def test_signals():
    """SIGTERM and SIGINT end a prompt behind the step that runs: one line, exit 1."""
    ids = os.path.join(c.WORK, "prefill.ids")
    with open(ids, "w") as file:
        file.write("the quick brown fox " * 8000)
    tiny = os.path.join(c.WORK, "prefill.gguf")
    c.run(0, [c.BITSHARD, "make-model", "tiny", tiny])
    for number in (signal.SIGTERM, signal.SIGINT):
        code, out, lines = stop(number, "generate", "--model", tiny, "--prompt-file", ids, "-n", "4", "--device", "cpu")
        read = re.search(r"prompt: (\d+) of 96001 tokens in", "\n".join(lines))
        c.check(code == 1 and read and 0 < int(read[1]) < 48000 and f"stopped by {number.name} after 0 tokens of the answer" in lines[-1],
                f"generate, {number.name} in a prompt: exit {code}, {lines}")
        code, out, lines = stop(number, *BENCH, "--contexts", "128K", "--kv", "int4")
        c.check(code == 1 and len(lines) == 1 and f"bench prefill: stopped by {number.name}" in lines[0]
                and re.search("prompt +0 +131072 .*(extrapolated: |skipped: too few)", out.splitlines()[-1]), f"bench prefill, {number.name}: exit {code}, {lines}, {out[-200:]}")


def test_signals_on_ranks():
    """A signal to all ranks of a job ends the answer as it does on one: the others wait for rank 0."""
    out, tiny = os.path.join(c.WORK, "prefill.txt"), os.path.join(c.WORK, "prefill.gguf")
    r.remove(out)
    process = r.begin(2, ["generate", "--model", tiny, "-p", "the", "-n", "100000", "--ignore-eos", "--device", "cpu", "--watchdog-s", 60, "-o", out])
    r.wait_for(lambda: os.path.exists(out) and os.path.getsize(out) > 0, process)
    code, _, err = r.stop_and_wait(process, 2, signal.SIGTERM)
    c.check(code == 1 and len(r.one_line(err)) == 1 and "stopped by SIGTERM after" in err, f"generate, SIGTERM to 2 ranks: exit {code} {r.one_line(err)}")


test_rows()
test_parts_of_a_prompt()
test_ranks()
test_table_and_refusals()
test_signals()
test_signals_on_ranks()
c.finish()
