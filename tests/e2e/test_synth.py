"""test_synth.py: models and caches of random numbers, memory that is capped, and the decode bench on them."""
import json
import os
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


made = bitshard("make-model", "tiny", TINY)
if c.check(made.returncode == 0, f"make-model: {made.stderr}"):
    test_device_mem()
c.finish()
