"""Answers that are stopped and go on on a GPU, and that move between a GPU, several ranks of one and a CPU. On one GPU the output
file is the uninterrupted run's to the byte; behind a move each token is the CPU's best after the ids before it, or nearly so. A
model of 32/8 heads of 128. Skipped without a GPU; BITSHARD_TEST_DEVICE=cpu runs it on CPU ranks alone."""
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c
import resume as r

DEVICE = os.environ.get("BITSHARD_TEST_DEVICE", "cuda")
MARGIN, N_PROMPT, N = c.tolerance("TOL_MARGIN"), 700, 3000 if DEVICE == "cuda" else 420
MODEL, DIR, OUT = (os.path.join(c.WORK, f"gpusnap.{end}") for end in ("gguf", "dir", "txt"))
PLACES = {"gpu": (0, "1x1", DEVICE), "gpu 1x2": (2, "1x2", DEVICE), "gpu 2x1": (2, "2x1", DEVICE), "cpu": (0, "1x1", "cpu"), "cpu 1x3": (3, "1x3", "cpu")}


def words(prompt, kv, place, n, *more):
    return ["generate", "--model", MODEL, "--prompt-ids", " ".join(map(str, prompt)), "--kv", kv, "--grid", place[1], "--device", place[2],
            "--transport", "mpi", "--stripe-pages", 1, "-n", n, "--ignore-eos", "--watchdog-s", 60, *more]


def stopped(prompt, kv, place, after, number, *more):
    """Signalled when `after` more snapshots are there. How far the directory has come."""
    before = (r.manifests(DIR)[-1:] or [0])[0]
    process = r.begin(place[0], words(prompt, kv, place, N, "--snapshot", DIR, "--snapshot-every", 16, *more))
    r.wait_for(lambda: (r.manifests(DIR)[-1:] or [0])[0] >= before + after, process)
    code, _, err = r.stop_and_wait(process, place[0], number)
    wanted = r.STOPPED if number == r.signal.SIGTERM else -r.signal.SIGKILL if place[0] == 0 else 1
    c.check(code == wanted, f"{kv}, {place}: signal {number}: exit {code}, {wanted} wanted; {r.one_line(err)}")
    return r.state(DIR)["sequence"]["n_tokens"] - N_PROMPT


def judge(prompt, drawn, kv, what):
    """By a CPU that sees the same ids. f16: the best, or the best two are close; others: close on average."""
    best, margin = c.best_tokens(prompt, drawn, model=MODEL, kv=kv, chunk=128, step=128)
    lost = [margin[i] for i in range(len(drawn)) if drawn[i] != best[i]]
    right = max(lost, default=0) < MARGIN if kv == "f16" else sum(lost) <= 0.02 * len(drawn)
    c.check(len(drawn) == N and right and len(lost) < N / 4,
            f"{what}: {len(drawn)} tokens, {len(lost)} not the CPU's best, whose lead there is {sum(lost) / max(1, len(lost)):.4f} on average, {max(lost, default=0):.4f} at most")


def on_one_gpu(prompt, kv):
    """A SIGTERM, a kill -9, and on: the file of the run that nobody disturbed."""
    place = PLACES["gpu"]
    r.remove(DIR, OUT, OUT + ".still")
    done = r.run(0, words(prompt, kv, place, N, "-o", OUT + ".still"))
    c.check(done[0] == 0, f"{kv}: uninterrupted: exit {done[0]} {r.one_line(done[2])}")
    came = [stopped(prompt, kv, place, 3, number, "-o", OUT) for number in (r.signal.SIGTERM, r.signal.SIGKILL)]
    code, _, err = r.run(0, words(prompt, kv, place, N, "--snapshot", DIR, "-o", OUT))
    c.check(0 < came[0] < came[1] < N and "goes on at token" in err, f"{kv}: stopped behind tokens {came} of {N}; then: {r.one_line(err)}")
    c.check(code == 0 and r.read(OUT) == r.read(OUT + ".still"), f"{kv}: exit {code}; the output file is the uninterrupted run's")


def over_places(prompt, kv, route):
    """Stopped at each place but the last, which ends the answer."""
    r.remove(DIR)
    came = [0]
    for name in route[:-1]:
        came.append(stopped(prompt, kv, PLACES[name], 2, r.signal.SIGTERM))
    last = PLACES[route[-1]]
    code, out, err = r.run(last[0], words(prompt, kv, last, N, "--snapshot", DIR, "--json"))
    what = f"{kv}, {' -> '.join(route)}, moved behind tokens {came[1:]}"
    c.check(code == 0 and sorted(set(came)) == came and "goes on at token" in err, f"{what}: exit {code} {r.one_line(err)}")
    judge(prompt, json.loads(out)["tokens"] if code == 0 else [], kv, what)


def main():
    if DEVICE == "cuda" and c.run(0, [c.MODEL_RUN, "gpus"]).returncode != 0:
        c.skip("this process sees no GPU")
    made = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL])
    assert made.returncode == 0, made.stderr
    source = random.Random(20261129)
    prompt = [source.randrange(3, 500) for _ in range(N_PROMPT)]
    for kv in ("f16", "int4", "int2"):
        on_one_gpu(prompt, kv)
    for kv in ("f16", "int4"):
        for route in (["gpu", "cpu"], ["cpu", "gpu"], ["gpu", "gpu 1x2", "cpu 1x3"], ["cpu 1x3", "gpu 2x1", "gpu"]):
            over_places(prompt, kv, route)


main()
c.finish()
