"""The scripts of jobs/ with a program in bitshard's place that ends as it is told: what they do with each exit code and signal, with
jobs that come no further, with another number of tasks, with parts of a batch. No Slurm and no MPI here: a few seconds.
test_slurm.py runs the scripts for real."""
import json
import os
import shutil
import signal
import stat
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c

JOBS = os.path.join(c.SRC, "jobs")
DIR = os.path.join(c.WORK, "jobs")
BIN = os.path.join(DIR, "bin")

# Takes the first word of the plan away and does it: N: exit N; +N: come further, then exit N; wait: until USR2, come further, exit 85.
# What it was called with, and each signal, goes to a log; "ready" to it, once signals are caught. For a batch it answers all lines of its part.
PROGRAM = r"""#!/bin/bash
echo "$*" >>"$PLAN.calls"
while [ $# -gt 0 ]; do
    case $1 in --output) out=$2 ;; --batch) batch=$2 ;; --snapshot) snapshot=$2 ;; --csv) csv=$2 ;; info) exit 0 ;; esac
    shift
done
[ -z "$csv" ] || { echo row >"$csv"; exit 0; }
word=$(sed -n 1p "$PLAN"); sed -i 1d "$PLAN"
further() { mkdir -p "$snapshot"; date +%N >"$snapshot/$RANDOM.json"; echo more >>"$out"; }
trap 'echo USR1 >>"$PLAN.signals"' USR1
trap 'echo USR2 >>"$PLAN.signals"; further; exit 85' USR2
trap 'echo TERM >>"$PLAN.signals"; exit 143' TERM
case $word in
wait) echo ready >>"$PLAN.ready"; for _ in {1..400}; do sleep 0.05; done; exit 99 ;;
answer) cp "$batch" "$out"; exit 0 ;;
+*) further; exit "${word#+}" ;;
0) : >>"$out"; exit 0 ;;
*) exit "$word" ;;
esac
"""
SCONTROL = r"""#!/bin/bash
case $1 in
show) echo "JobId=7 NumTasks=${TASKS_NOW:-2} NumCPUs=2 " ;;
requeue) echo "$2" >>"$PLAN.requeued"; [ -z "$NO_REQUEUE" ] || exit 1; kill -KILL "$PPID" ;;
esac
"""
SQUEUE = "#!/bin/sh\ndate -d '+1 hour' +%Y-%m-%dT%H:%M:%S\n"
LAUNCH = r"""#!/bin/bash
echo "$SLURM_NTASKS $*" >>"$PLAN.launches"
while case $1 in -*) true ;; *) false ;; esac do case $1 in -np) shift 2 ;; *) shift ;; esac done
exec "$@"
"""


class Run:
    """One start of a script; the plan goes on from one to the next."""

    def __init__(self, name, plan, **env):
        self.name = name
        self.plan = os.path.join(DIR, "plan")
        for entry in os.listdir(DIR):
            if entry != "bin":
                path = os.path.join(DIR, entry)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        with open(self.plan, "w", encoding="ascii") as file:
            file.write("\n".join(plan) + "\n")
        prompt = os.path.join(DIR, "prompt.txt")
        for path in (prompt, os.path.join(DIR, "requests.jsonl")):
            with open(path, "w", encoding="ascii") as file:
                file.write("text\n")
        self.env = {**os.environ, "PATH": BIN + os.pathsep + os.environ["PATH"], "PLAN": self.plan, "BITSHARD_MODEL": "m.gguf", "BITSHARD_PROMPT_FILE": prompt,
                    "BITSHARD_OUTPUT": os.path.join(DIR, "out"), "BITSHARD_PAUSE": "0.1"}
        if name.endswith(".sbatch"):
            self.env.update(SLURM_JOB_ID="7", SLURM_NTASKS="2", BITSHARD_LAUNCH="srun --mpi=pmix")
        else:
            self.env["BITSHARD_LAUNCH"] = "mpirun -np 2"
        self.env.update(env)

    text = ""

    def start(self, *words, signals=(), **env):
        """Runs the script, sends it signals, each when the one before has come through, and returns its exit code."""
        process = subprocess.Popen(["bash", os.path.join(JOBS, self.name), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   env={**self.env, **env}, cwd=DIR, text=True)
        for i, number in enumerate(signals):
            came = c.wait_until(lambda: self.lines("ready") and len(self.lines("signals")) >= i, process)
            self.check(came, f"signal {i + 1} is sent when the program waits for it")
            process.send_signal(number)
        self.text, _ = process.communicate(timeout=90)
        return process.returncode

    def lines(self, what):
        path = f"{self.plan}.{what}"
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()

    def check(self, condition, what):
        if not c.check(condition, f"{self.name}: {what}"):
            print(self.text, self.lines("calls"), self.lines("signals"), self.lines("requeued"), sep="\n")


def test_slurm_script(name, what):
    run = Run(name, ["0"], **what)
    run.check(run.start("--top-k", "3") == 0 and not run.lines("requeued"), "exit 0 ends it")
    call = run.lines("calls")[0]
    run.check("--resume auto" in call and "--end-time 1" in call and "--snapshot " in call and call.endswith("--top-k 3"), f"what it calls: {call}")
    run.check(run.lines("launches")[0].startswith("2 --mpi=pmix bitshard generate"), "two tasks, by srun")

    run = Run(name, ["85", "0"], **what)
    run.start()
    run.check(run.lines("requeued") == ["7"], "exit 85: requeued")
    run.check(run.start(SLURM_RESTART_COUNT="1", TASKS_NOW="3") == 0 and run.lines("launches")[1].startswith("3 "), "then on three tasks")

    run = Run(name, ["wait"], **what)
    run.start(signals=[signal.SIGUSR1])
    run.check(run.lines("signals") == ["USR2"] and run.lines("requeued") == ["7"], "USR1 becomes USR2, then it is requeued")
    run = Run(name, ["wait"], **what)
    run.start(signals=[signal.SIGTERM])
    run.check(run.lines("signals") == ["USR2"] and run.lines("requeued") == ["7"], "TERM becomes USR2, too")
    run = Run(name, ["wait"], **what)
    code = run.start(signals=[signal.SIGUSR1], NO_REQUEUE="1")
    run.check(code == 85 and "again" in run.text, "a job that cannot be requeued says so")

    run = Run(name, ["2"], **what)
    run.check(run.start() == 2 and not run.lines("requeued"), "wrong usage is not requeued")
    run = Run(name, ["+137"] * 9, **what)
    for _ in range(9):
        run.start()
    run.check(len(run.lines("requeued")) == 9, "lost ranks: requeued as long as each job comes further")
    run = Run(name, ["137", "1", "+137", "137", "137", "137"], **what)
    codes = [run.start() for _ in range(6)]
    run.check(len(run.lines("requeued")) == 5 and codes[-1] == 137 and "given up" in run.text, "three in a row without: given up")
    run = Run(name, ["1", "1"], **what)
    run.check(run.start(BITSHARD_RETRIES="0") == 1 and not run.lines("requeued"), "no retries, if so wanted")
    run = Run(name, ["0"], SLURM_NTASKS_PER_NODE="4", SLURM_JOB_NUM_NODES="3", **{**what, "BITSHARD_LAUNCH": "mpirun"})
    run.check(run.start() == 0 and run.lines("launches")[0].startswith("12 -np 12 bitshard"), "nodes times tasks, by mpirun")
    for variable in ("BITSHARD_MODEL", "SLURM_JOB_ID"):
        run = Run(name, ["0"], **what)
        run.check(run.start(**{variable: ""}) != 0 and variable in run.text and not run.lines("calls"), f"{variable} must be set")


def test_plain_script(name, what):
    run = Run(name, ["+137", "137", "137", "+1", "0"], **what)
    run.check(run.start("--top-k", "3") == 0 and len(run.lines("calls")) == 5, "starts again after lost ranks, until it is done")
    run.check(run.lines("launches")[0].startswith(" -np 2 bitshard generate") and run.lines("calls")[0].endswith("--top-k 3"), f"what it calls: {run.lines('calls')[0]}")
    run = Run(name, ["137"] * 9, **what)
    run.check(run.start() == 137 and len(run.lines("calls")) == 3, "three in a row without progress: given up")
    run = Run(name, ["2"], **what)
    run.check(run.start() == 2 and len(run.lines("calls")) == 1, "wrong usage is not tried again")
    for number in (signal.SIGINT, signal.SIGTERM):
        run = Run(name, ["wait"], **what)
        run.check(run.start(signals=[number]) == 85 and run.lines("signals") == ["USR2"], f"{number.name} becomes USR2, and it ends with 85")
    run = Run(name, ["wait"], **what)
    run.check(run.start(signals=[signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM]) == 85 and run.lines("signals") == ["USR1", "USR1", "USR2"], "USR1 is passed on")


def test_parts():
    requests = os.path.join(DIR, "in.jsonl")
    run = Run("batch.sbatch", ["answer"] * 3, BITSHARD_BATCH=requests, SLURM_ARRAY_TASK_COUNT="3", SLURM_ARRAY_TASK_MIN="4", SLURM_ARRAY_TASK_STEP="2")
    lines = [json.dumps({"custom_id": f"r{i}"}) for i in range(8)]
    with open(requests, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    for i, task in enumerate(("8", "4", "6")):
        run.check(run.start(SLURM_ARRAY_TASK_ID=task) == 0, f"part of task {task}")
        run.check(os.path.exists(run.env["BITSHARD_OUTPUT"]) == (i == 2), f"{i + 1} of 3 parts done: the answers are {'' if i == 2 else 'not '}there")
    with open(run.env["BITSHARD_OUTPUT"], encoding="ascii") as file:
        run.check(file.read().splitlines() == lines[0::3] + lines[1::3] + lines[2::3], "the answers of all parts")


def test_empty_part():
    requests = os.path.join(DIR, "in.jsonl")
    run = Run("batch.sbatch", ["answer"], BITSHARD_BATCH=requests, SLURM_ARRAY_TASK_COUNT="2", SLURM_ARRAY_TASK_MIN="0")
    with open(requests, "w", encoding="ascii") as file:
        file.write('{"custom_id": "only"}\n')
    run.check(run.start(SLURM_ARRAY_TASK_ID="1") == 0 and not run.lines("calls"), "a part without a line is done")
    run.check(run.start(SLURM_ARRAY_TASK_ID="0") == 0 and os.path.getsize(run.env["BITSHARD_OUTPUT"]) > 0, "more jobs than lines")


def test_bench(name):
    run = Run(name, [])
    run.check(run.start("--steps", "3", BITSHARD_BENCH_DIR="results") == 0, "runs")
    run.check(sorted(os.listdir(os.path.join(DIR, "results"))) == ["comm.csv", "commands.txt", "decode.csv", "kernel.csv", "machine.txt"], "its files")
    run.check(len(run.lines("calls")) == 4 and run.lines("calls")[3].endswith("--steps 3"), f"what it calls: {run.lines('calls')}")


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and so by all scripts
    for word in ("bash", "awk", "cksum"):
        if not shutil.which(word):
            c.skip(f"no {word} here")
    shutil.rmtree(DIR, ignore_errors=True)
    os.makedirs(BIN)
    for name, text in (("bitshard", PROGRAM), ("scontrol", SCONTROL), ("squeue", SQUEUE), ("srun", LAUNCH), ("mpirun", LAUNCH)):
        path = os.path.join(BIN, name)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, stat.S_IRWXU)
    requests = os.path.join(DIR, "requests.jsonl")
    for name in sorted(name for name in os.environ if name.startswith(("SLURM_", "BITSHARD_"))):
        del os.environ[name]
    for what in ({}, {"BITSHARD_BATCH": requests}):
        stem = "batch" if what else "long-context"
        test_slurm_script(stem + ".sbatch", what)
        test_plain_script(stem + ".sh", what)
    test_parts()
    test_empty_part()
    test_bench("bench.sh")
    test_bench("bench.sbatch")


main()
c.finish()
