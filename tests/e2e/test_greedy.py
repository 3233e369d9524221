"""Greedy continuations of the real model on every grid: 64 tokens after each of ten prompts are the reference's, except
where its two best logits are closer than 0.05."""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

c.need("numpy", "gguf")
import numpy as np
import reference

MODEL = c.model()
GRIDS = [(0, "1x1"), (2, "1x2"), (3, "3x1"), (4, "1x4"), (5, "1x5"), (6, "3x2"), (6, "1x6")]
MARGIN = c.tolerance("TOL_MARGIN")
PROMPTS = [
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n",
    "Water boils at", "The three most important inventions of the nineteenth century were",
    "1, 1, 2, 3, 5, 8,", "Dear Sir or Madam,\n\nI am writing to", "Q: Why is the sky blue?\nA:",
    "In mathematics, a group is", "The recipe needs two eggs, a cup of flour and",
]


def main():
    with open(c.TEXT, encoding="utf-8") as file:
        text = file.read()
    # Two of the ten are long enough that pages of several shards hold them (stripes of one page below).
    prompts = PROMPTS[:8] + [text[:1500] + "\n\n" + PROMPTS[8], text[3000:5000] + "\n\n" + PROMPTS[9]]
    ref = reference.Model(MODEL)
    logits = {}
    for ranks, grid in GRIDS:
        clear = close = 0
        for i, prompt in enumerate(prompts):
            path = os.path.join(c.WORK, f"prompt.{i}.txt")
            with open(path, "w", encoding="utf-8") as file:
                file.write(prompt)
            done = c.run(ranks, [c.BITSHARD, "generate", "--model", MODEL, "--prompt-file", path, "--kv", "f16", "-n", 64,
                                 "--grid", grid, "--stripe-pages", 1, "--ignore-eos", "--json"])
            if not c.check(done.returncode == 0, f"{grid}, prompt {i}: exit {done.returncode} {done.stderr[-300:]}"):
                continue
            answer = json.loads(done.stdout)
            asked, got = answer["prompt_tokens"], answer["tokens"]
            c.check(len(got) == 64, f"{grid}, prompt {i}: {len(got)} tokens")
            # The reference sees the same ids: it judges each token by the context that led to it.
            key = tuple(asked + got)
            if key not in logits:
                rows = ref.logits(np.array(key), first=len(asked) - 1)[:-1]
                best2 = np.sort(np.partition(rows, -2, axis=1)[:, -2:], axis=1)
                logits[key] = (rows.argmax(axis=1), best2[:, 1] - best2[:, 0])
            best, margin = logits[key]
            wrong = [j for j in range(64) if got[j] != best[j] and margin[j] >= MARGIN]
            clear += int((margin >= MARGIN).sum())
            close += int((margin < MARGIN).sum())
            c.check(not wrong, f"{grid}, prompt {i}: tokens that differ where the reference is clear: {wrong}")
        c.check(clear >= 500, f"{grid}: {clear} tokens judged, {close} too close to call")


np.seterr(over="ignore")
main()
c.finish()
