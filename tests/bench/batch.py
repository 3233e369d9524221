"""batch.py MODEL [N [ANSWER [REPEATS]]]: throughput of generate --batch with 1, 4 and 16 requests together, on one rank and two.

N requests of about 200 tokens of prose each, ANSWER tokens to each; the runs of a repeat follow each other, medians over the
repeats are printed as a table. Run it in a build directory.
"""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import common as c

model, n, answer, repeats = (sys.argv[1:] + ["16", "64", "3"][len(sys.argv) - 2:])[:4]
SIZES, RANKS = (1, 4, 16), (0, 2)


def requests(path):
    with open(c.TEXT, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        for i in range(int(n)):
            start = text.index(" ", i * len(text) // int(n))
            body = {"prompt": text[start:start + 800], "max_tokens": int(answer), "ignore_eos": True}
            file.write(json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")


def one(ranks, size, source, out):
    if os.path.exists(out):
        os.unlink(out)
    done = c.run(ranks, [c.BITSHARD, "generate", "--model", model, "--batch", source, "-o", out, "--batch-size", size])
    said = re.search(r"(\d+) prompt and (\d+) answer tokens in ([\d.]+) s", done.stderr)
    if done.returncode != 0 or not said:
        sys.exit(f"{ranks} ranks, {size} at a time: exit {done.returncode}\n{done.stderr}")
    return int(said[1]), int(said[2]), float(said[3])


with tempfile.TemporaryDirectory() as work:
    source, out = os.path.join(work, "in.jsonl"), os.path.join(work, "out.jsonl")
    requests(source)
    took = {(ranks, size): [] for ranks in RANKS for size in SIZES}
    for _ in range(int(repeats)):
        for case in took:
            prompt, answers, seconds = one(*case, source, out)
            took[case].append(seconds)
print(f"{n} requests, {prompt} prompt and {answers} answer tokens, medians of {repeats} (fastest, slowest)")
print("| ranks | together | seconds | answer tokens/s | x |\n|---|---|---|---|---|")
for (ranks, size), seconds in took.items():
    median = statistics.median(seconds)
    print(f"| {max(ranks, 1)} | {size} | {median:.1f} ({min(seconds):.1f}, {max(seconds):.1f}) | {answers / median:.0f} | "
          f"{statistics.median(took[ranks, 1]) / median:.2f} |")
