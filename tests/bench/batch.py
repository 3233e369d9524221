"""batch.py MODEL [N [ANSWER [REPEATS [BYTES]]]]: throughput of generate --batch with 1, 4 and 16 requests together, on one
rank and two.

N requests of BYTES of prose each, ANSWER tokens to each; the runs of a repeat follow each other, medians over the repeats are
printed as a table. CPU seconds, loading included, say more than the clock on a machine that is shared; those of two ranks
count their waiting for each other. Run it in a build directory.
"""
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import common as c

model, n, answer, repeats, size_bytes = (sys.argv[1:] + ["16", "64", "3", "800"][len(sys.argv) - 2:])[:5]
SIZES, RANKS = (1, 4, 16), (0, 2)


def requests(path):
    with open(c.TEXT, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        for i in range(int(n)):
            start = text.index(" ", i * len(text) // int(n))
            body = {"prompt": text[start:start + int(size_bytes)], "max_tokens": int(answer), "ignore_eos": True}
            file.write(json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")


def one(ranks, size, source, out):
    if os.path.exists(out):
        os.unlink(out)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = c.run(ranks, [c.BITSHARD, "generate", "--model", model, "--batch", source, "-o", out, "--batch-size", size])
    said = re.search(r"(\d+) prompt and (\d+) answer tokens in ([\d.]+) s", done.stderr)
    if done.returncode != 0 or not said:
        sys.exit(f"{ranks} ranks, {size} at a time: exit {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int(said[1]), int(said[2]), float(said[3]), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


with tempfile.TemporaryDirectory() as work:
    source, out = os.path.join(work, "in.jsonl"), os.path.join(work, "out.jsonl")
    requests(source)
    took = {(ranks, size): [] for ranks in RANKS for size in SIZES}
    for _ in range(int(repeats)):
        for case in took:
            prompt, answers, *seconds = one(*case, source, out)
            took[case].append(seconds)
print(f"{n} requests, {prompt} prompt and {answers} answer tokens, medians of {repeats} (fastest, slowest)")
print("| ranks | together | seconds | answer tokens/s | x | CPU seconds | x |\n|---|---|---|---|---|---|---|")
for (ranks, size), runs in took.items():
    seconds, cpu = (statistics.median(run[i] for run in runs) for i in (0, 1))
    alone, alone_cpu = (statistics.median(run[i] for run in took[ranks, 1]) for i in (0, 1))
    spread = ", ".join(f"{extreme(run[0] for run in runs):.1f}" for extreme in (min, max))
    print(f"| {max(ranks, 1)} | {size} | {seconds:.1f} ({spread}) | {answers / seconds:.0f} | {alone / seconds:.2f} | {cpu:.1f} | "
          f"{alone_cpu / cpu:.2f} |")
