"""common.py: what the end-to-end tests share: running programs on ranks, ids of a text, the reference's logits.

Environment: BITSHARD_TEST_MODEL (the real model), BITSHARD_BIG (run what make check leaves out). top_srcdir and
top_builddir come from make; by hand both default to what the working directory suggests. Exit 77 is "skipped".
"""
import array
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time

SRC = os.path.abspath(os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "../..")))
BUILD = os.path.abspath(os.environ.get("top_builddir", "."))
WORK = os.path.join(BUILD, "tests", "e2e", "work")
BITSHARD = os.path.join(BUILD, "bitshard")
MODEL_RUN = os.path.join(BUILD, "tests", "e2e", "model_run")
SNAP_RUN = os.path.join(BUILD, "tests", "snapshot", "snap_run")
LAUNCH = os.path.join(SRC, "build-aux", "mpi-launch")
TEXT = os.path.join(SRC, "docs", "examples", "the-long-survey.txt")
BIG = os.environ.get("BITSHARD_BIG", "") not in ("", "0")

os.makedirs(WORK, exist_ok=True)
failures = []


def skip(why):
    print("skipped:", why)
    sys.exit(77)


def model():
    path = os.environ.get("BITSHARD_TEST_MODEL", "")
    if not os.path.exists(path):
        skip("BITSHARD_TEST_MODEL names no file; ./quickstart check fetches the model")
    return path


def need(*modules):
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            skip(f"this Python has no {name}; ./quickstart check installs it")


def check(condition, what):
    """Notes a failure and goes on, so that one run shows all of them."""
    print(("ok    " if condition else "FAIL  ") + what, flush=True)
    if not condition:
        failures.append(what)
    return condition


def finish():
    if failures:
        print(f"{len(failures)} failed")
    sys.exit(1 if failures else 0)


def run(ranks, command, timeout=600, env=None, stdin=subprocess.DEVNULL, launcher=None):
    """Runs a program on `ranks` MPI ranks (0: without a launcher). Never raises for its exit code."""
    line = ([] if ranks == 0 else ["sh", launcher or LAUNCH, str(ranks)]) + [str(word) for word in command]
    return subprocess.run(line, stdin=stdin, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


def run_rank_1_with(variable, words, **options):
    """bitshard on two ranks, of which rank 1 alone has BITSHARD_{variable} in its environment."""
    line = f'[ "$OMPI_COMM_WORLD_RANK" != 1 ] || export "BITSHARD_{variable}"; exec "$0" "$@"'
    return run(2, ["sh", "-c", line, BITSHARD, *words], **options)


def wait_until(condition, process=None, limit=60):
    """Until it holds, the process ends or the time is up: whether it holds then."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return condition()
        time.sleep(0.005)
    return False


class OnTerminal:
    """A program whose standard error is a terminal: it draws its progress ten times a second, so that a test sees where it is."""

    def __init__(self, command, limit=300):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        self.until, self.text, self.terminal = time.monotonic() + limit, "", ours
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:  # EIO: nobody has it open any more
                data = b""
            if not data:
                return
            self.text += data.decode(errors="replace")

    def wait_for(self, pattern):
        """Until this has been drawn or said. False: it ended before."""
        wait_until(lambda: re.search(pattern, self.text) or not self.reader.is_alive(), limit=self.until - time.monotonic())
        seen = bool(re.search(pattern, self.text))
        return check(seen, f"{pattern} was seen" + ("" if seen else f" in {self.text[-300:]!r}"))

    def end(self):
        """Exit code, standard output, what it said line by line, without what was drawn over."""
        out, _ = self.process.communicate(timeout=max(1, self.until - time.monotonic()))
        self.reader.join(timeout=20)
        os.close(self.terminal)
        lines = [line.rsplit("\x1b[K", 1)[-1].strip("\r") for line in self.text.split("\n")]
        return self.process.returncode, out.decode(errors="replace"), [line for line in lines if line]


def wait_for_end(process, limit):
    """Seconds until a job that was harmed is gone, and its standard error; it is killed 20 s behind the limit."""
    began = time.monotonic()
    try:
        _, err = process.communicate(timeout=limit + 20)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
    return time.monotonic() - began, err.decode(errors="replace")


def n_ranks(grid):
    """Of HEADSxSEQ."""
    heads, seq = grid.split("x")
    return int(heads) * int(seq)


def snap_run(command, grid, *more, words=(), env=None, timeout=300):
    """tests/snapshot/snap_run on a grid of ranks, under `words` (one rank: without a launcher)."""
    ranks = n_ranks(grid)
    return run(ranks if ranks > 1 else 0, [*words, SNAP_RUN, command, grid, *more], env=env, timeout=timeout)


def tolerance(name):
    """A number of tests/tolerances.h, where its reason stands."""
    with open(os.path.join(SRC, "tests", "tolerances.h"), encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if words[:2] == ["#define", name]:
                return float(words[2])
    raise KeyError(name)


def ids_of(model_path, text_path=TEXT):
    """File of i32 token ids of a text."""
    out = os.path.join(WORK, os.path.basename(text_path) + "." + os.path.basename(model_path) + ".i32")
    if not os.path.exists(out):
        import array
        with open(text_path, encoding="utf-8") as text:
            done = subprocess.run([BITSHARD, "tokenize", "--model", model_path, "--json"], stdin=text,
                                  capture_output=True, check=True)
        with open(out + ".tmp", "wb") as file:
            array.array("i", json.loads(done.stdout)["tokens"]).tofile(file)
        os.rename(out + ".tmp", out)
    return out


def reference_logits(model_path, ids, n):
    """File of the float32 reference's logits [n, vocab]; computed once a build."""
    out = os.path.join(WORK, f"reference.{os.path.basename(ids)}.{n}.f32")
    if not os.path.exists(out):
        script = os.path.join(SRC, "tests", "e2e", "reference.py")
        subprocess.run([sys.executable, script, model_path, ids, out + ".tmp", str(n)], check=True)
        os.rename(out + ".tmp", out)
    return out


def model_run(ranks, timeout=900, **options):
    """tests/e2e/model_run with name=value options; the comparison it prints, or None. Raises when it fails, unless
    may_fail is given."""
    may_fail, launcher = options.pop("may_fail", False), options.pop("launcher", None)
    words = [f"{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = run(ranks, [MODEL_RUN] + words, timeout, launcher=launcher)
    if done.returncode != 0:
        if may_fail:
            return None
        raise RuntimeError(f"model_run {' '.join(words)} on {ranks} ranks: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def best_tokens(prompt, drawn, **options):
    """What model_run finds best behind the prompt and behind each drawn token but the last, and the lead of each over the next."""
    ids, tops, margins = (os.path.join(WORK, f"best.{end}") for end in ("ids", "tops", "margins"))
    with open(ids, "wb") as file:
        array.array("i", prompt + drawn).tofile(file)
    model_run(0, tokens=ids, tops=tops, margins=margins, **options)
    found = array.array("i"), array.array("f")
    for values, path in zip(found, (tops, margins)):
        with open(path, "rb") as file:
            values.frombytes(file.read())
    return [values[len(prompt) - 1:-1] for values in found]
