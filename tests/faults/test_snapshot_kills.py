"""Snapshots and kill -9: of one rank, of all at once, of the launcher, at a random time or at a random system call on the snapshot's files
(before it or behind it), again and again until the run is done. After each kill: the snapshot in force verifies, holds every token that was
committed, no manifest is broken; the next run goes on from there. In the end:

  generate   int4, one grid: the answer's file is that of an undisturbed run to the byte. f16, another grid after each kill: by DESIGN §7's rule
  pages      caches of noise (snap_run): what is in force is byte-equal, restored on a random grid

Each way to kill takes its turn. make check kills 15 times; BITSHARD_KILLS=500, or BITSHARD_BIG=1, as often as that."""
import itertools
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import shim as s
import resume as r
import snapshots as snap
from answers import Answer, read
from shim import c

KILLS = int(os.environ.get("BITSHARD_KILLS", "500" if c.BIG else "15"))
LIMIT = 60 * KILLS  # a kill takes 2 s
SEED = int(os.environ.get("BITSHARD_FAULT_SEED", str(time.time_ns() % 1000000 if c.BIG else 1)))
TOP = os.path.join(s.FAST, "kills")
DIR, OUT = os.path.join(TOP, "run"), os.path.join(TOP, "out")
GRIDS = ["1x1", "1x2", "2x1", "1x3", "2x2"]
WAYS = ["kill", "all", "kill-after", "one", "launcher"]
turn = itertools.cycle(WAYS)
hit, lost, unrestorable = {}, 0, 0


def check_directory(what, said):
    """After a kill: what is in force, −1 for nothing."""
    global lost, unrestorable
    found = snap.newest(DIR)
    if not c.check(found >= said, f"{what}: {found} tokens in force, {said} were committed"):
        lost += 1
    verified = snap.verify(DIR) if found >= 0 else None
    if not c.check((verified is None or verified.returncode == 0) and not snap.broken(DIR), f"{what}: whole {snap.broken(DIR) or ''} {verified.stderr if verified else ''}"):
        unrestorable += 1
    return found


class Victim:
    """One kill, of the way whose turn it is: where or when it strikes is drawn, and then it does."""

    def __init__(self, source, ranks, calls, seconds, shim):
        self.source, self.ranks, self.shim = source, ranks, shim
        self.what = next(turn)
        self.at_call = self.what.startswith("kill")
        if not self.at_call and ranks == 1:
            self.what = "one"
        self.words, self.after = shim.words(), 0.0
        if self.at_call:
            rank = str(source.randrange(ranks)) if ranks > 1 else None
            self.words = shim.words("any", source.randint(1, calls), self.what, rank=rank)
        else:
            self.after = source.uniform(0, seconds)

    def strike(self, process):
        """Waits for the run's end, by this kill or by its own; True if it was killed."""
        if not self.at_call:
            try:
                process.wait(timeout=self.after)
                return False
            except subprocess.TimeoutExpired:
                pass
            pids = r.rank_pids(process, self.ranks if self.ranks > 1 else 0)
            chosen = {"all": pids, "one": [self.source.choice(pids)] if pids else [], "launcher": [process.pid]}[self.what]
            for pid in chosen or [process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        process.wait(timeout=120)
        # A launcher leaves its ranks to find out that it is gone; a rank that dies leaves the others to the launcher.
        left = snap.wait_until_gone(DIR)
        c.check(left == 0 or self.what == "launcher", f"{self.what}: {left} left behind")
        killed = not self.at_call or bool(self.shim.fired())
        if killed:
            hit[self.what] = hit.get(self.what, 0) + 1
        return killed


def run(ranks, kv, grid, victim, log):
    command = snap.generate(0 if ranks == 1 else ranks, kv, ["--grid", grid, "--snapshot", DIR, "--snapshot-every", "16", "-o", OUT], victim.words if victim else ())
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        killed = victim.strike(process) if victim else bool(process.wait(timeout=120)) and False
    with open(log, encoding="utf-8", errors="replace") as file:
        return process.returncode, killed, file.read()


def errors_of(text):
    return [line for line in text.splitlines() if "error:" in line or "warning:" in line] or text[-500:]


def generate_job(source, shim, whole, times, moving, kills_left):
    """One answer, killed up to eight times; how many kills."""
    snap.copy(None, TOP)
    os.makedirs(TOP)
    grid, kv, said, kills = source.choice(GRIDS[:4]), "f16" if moving else "int4", -1, 0
    first = grid
    for attempt in range(9):
        ranks = c.n_ranks(grid)
        victim = Victim(source, ranks, 400, times[ranks], shim) if attempt < 8 and kills < kills_left else None
        code, killed, text = run(ranks, kv, grid, victim, os.path.join(s.FAST, "log"))
        what = f"generate, {kv}, {grid}, run {attempt + 1}, {victim.what if killed else 'left alone'}"
        said = max(said, snap.committed(text))
        kills += killed
        if code == 0:
            break
        c.check(killed, f"{what}: exit {code}, {'killed' if killed else errors_of(text)}")
        check_directory(what, said)
        if moving:
            grid = source.choice(GRIDS[:4])
    c.check(code == 0, f"{what}: it ended {'' if code == 0 else errors_of(text)}")
    if code == 0 and moving:
        whole["moving"].judge(f"generate, {kv}, {kills} kills", read(OUT))
    elif code == 0:
        c.check(snap.read(OUT) == whole[first], f"generate, {kv}, {first}, {kills} kills: to the byte")
    return kills


def pages_job(source, shim, kills_left):
    """Snapshots of a cache that grows, killed once or twice; then what is in force, on some grid."""
    snap.copy(None, TOP)
    os.makedirs(TOP)
    said, kills = -1, 0
    for _ in range(2):
        if kills >= kills_left:
            break
        grid = source.choice(GRIDS)
        ranks, lengths = c.n_ranks(grid), sorted(128 * source.randrange(1, 36) for _ in range(3))
        lengths = [n for n in sorted(set(lengths)) if n > said]
        if not lengths:
            break
        rank = str(source.randrange(ranks)) if ranks > 1 else None
        do = source.choice(["kill", "kill-after"])
        done = snap.write(grid, DIR, lengths, shim.words("any", source.randint(1, 250), do, rank=rank))
        what = f"pages, {grid}, {lengths}, {do}"
        c.check(snap.wait_until_gone(DIR) == 0, f"{what}: nobody is left behind")
        said = max(said, snap.committed(done.stderr))
        if not shim.fired():
            c.check(done.returncode == 0, f"{what}: not reached, exit {done.returncode} {snap.said_wrong(done)}")
        else:
            kills += 1
            hit[do] = hit.get(do, 0) + 1
        found = check_directory(what, said)
        if found >= 0:
            other = source.choice(GRIDS)
            done = snap.restore(other, DIR, found)
            c.check(done.returncode == 0, f"{what}: {found} tokens byte-equal on {other} {snap.said_wrong(done)}")
    return kills


def lock_jobs(shim):
    """Locks that a killed run leaves: killed in the making of it, and of a process that nobody has waited for yet."""
    command = snap.generate(0, "int4", ["--snapshot", DIR, "--snapshot-every", "16", "-o", OUT])
    for k in range(1, 5):
        for do in ("kill", "kill-after"):
            snap.copy(None, TOP)
            os.makedirs(TOP)
            words = shim.words("any", k, do)
            killed = subprocess.run([*words, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
            c.check(killed.returncode == -9 and done.returncode == 0, f"lock: {do} at call {k}, then exit {done.returncode} {errors_of(done.stderr) if done.returncode else ''}")
    snap.copy(None, TOP)
    os.makedirs(TOP)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.exists(os.path.join(DIR, "lock")) and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    while r.is_alive(process.pid):
        time.sleep(0.001)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    c.check(done.returncode == 0 and "took over the lock" in done.stderr, f"lock: of a process not yet waited for: exit {done.returncode} {errors_of(done.stderr)}")
    c.check(process.wait() == -9, "lock: it had been killed")


def main():
    if not os.path.exists(s.LIBRARY) or not os.path.exists(snap.RUN):
        c.skip("no tests/faults/shim.so or snap_run: make check builds them")
    source, shim = random.Random(SEED), s.Shim(TOP)
    snap.make_model()
    whole, times = {}, {}
    for grid in GRIDS[:4]:
        snap.copy(None, TOP)
        os.makedirs(TOP)
        began = time.monotonic()
        code, _, text = run(c.n_ranks(grid), "int4", grid, None, os.path.join(s.FAST, "log"))
        assert code == 0, text
        times[c.n_ranks(grid)] = time.monotonic() - began
        whole[grid] = snap.read(OUT)
    command = snap.generate(0, "f16", [])
    whole["moving"] = Answer(snap.MODEL, 0, [word for word in command[command.index("--prompt-ids"):] if word != "--quiet"], "kills")
    lock_jobs(shim)
    began, kills, jobs = time.monotonic(), 0, 0
    while kills < KILLS or set(hit) != set(WAYS):
        kind, left = jobs % 4, max(KILLS - kills, 1)
        kills += pages_job(source, shim, left) if kind == 3 else generate_job(source, shim, whole, times, kind == 1, left)
        jobs += 1
        if time.monotonic() - began > LIMIT:
            c.check(False, f"the kills took {LIMIT} s")
            break
    c.check(kills >= KILLS and set(hit) == set(WAYS) and lost == unrestorable == 0,
            f"seed {SEED}: {kills} kills in {jobs} jobs and {time.monotonic() - began:.0f} s, {hit}: {unrestorable} unrestorable, {lost} lost committed tokens")


main()
c.finish()
