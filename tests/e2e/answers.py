"""answers.py: an undisturbed answer, and whether another run's is the same by DESIGN §7: on another grid with an f16 cache the same text up
to the first step at which the two best tokens were closer than TOL_MARGIN."""
import array
import json
import os
import re
import subprocess

import common as c

MARGIN = c.tolerance("TOL_MARGIN")


class Answer:
    def __init__(self, model, ranks, words, name, timeout=600):
        """Computes it: `words` are generate's, without --snapshot and -o."""
        done = c.run(ranks, [c.BITSHARD, "generate", "--model", model, "--json", "--quiet", *words], timeout=timeout)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        self.model, self.name, self.timings = model, os.path.join(c.WORK, name), answer["timings"]
        self.prompt_ids, self.ids, self.text = answer["prompt_tokens"], answer["tokens"], answer["text"]

    def judge(self, what, got):
        """Notes a failure when `got`, a text, is not this answer."""
        got, text = comparable(got), comparable(self.text)
        if got == text:
            return c.check(True, f"{what}: the undisturbed answer ({len(self.ids)} tokens)")
        same = len(os.path.commonprefix([got, text]))
        at, end = 0, len(self.ids)  # the token in which they part: the most ids whose text is still shared
        while at < end:
            middle = (at + end + 1) // 2
            at, end = (middle, end) if len(self.text_of(middle)) <= same else (at, middle - 1)
        margin = self.margin(at)
        return c.check(margin < MARGIN, f"{what}: parts from the undisturbed answer at token {at} of {len(self.ids)}, margin {margin:.4f} (< {MARGIN})")

    def text_of(self, n):
        done = subprocess.run([c.BITSHARD, "tokenize", "--model", self.model, "--decode"], input=" ".join(map(str, self.ids[:n])).encode(),
                              capture_output=True, check=True)
        return comparable(done.stdout.decode(errors="replace"))

    def margin(self, at):
        """Between the two best tokens of the undisturbed run's step `at`."""
        with open(self.name + ".ids", "wb") as file:
            array.array("i", self.prompt_ids + self.ids[:at]).tofile(file)
        c.model_run(1, model=self.model, kv="f16", tokens=self.name + ".ids", margins=self.name + ".margins")
        with open(self.name + ".margins", "rb") as file:
            return array.array("f", file.read())[-1]


def comparable(text):
    """What is no UTF-8 is one mark: JSON and Python count such bytes in different ways."""
    return re.sub("\ufffd+", "\ufffd", text.rstrip("\n"))


def read(path):
    """A text that may not be UTF-8, as --json shows it; a carriage return is one."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return file.read()
