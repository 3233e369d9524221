"""The scripts of jobs/ under a real Slurm on this machine (slurm.py), each job with a limit of one minute:

  decode    one long answer, signalled, requeued, resumed on another number of tasks, srun
  prefill   a long prompt, stopped in its middle, requeued, resumed on another number of tasks, mpirun
  lost      one rank killed with -9, requeued by the script, srun
  batch     an array of two over six requests, stopped by scancel --signal=USR1 --batch, requeued, srun

All at once, as there are waits. Outputs equal those of a run that nobody disturbed, by the rule of DESIGN §7: with an f16 cache
the same text up to the first step at which the two best tokens were closer than 0.05.
"""
import json
import os
import random
import re
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import common as c
import slurm
from answers import Answer, read

JOBS = os.path.join(c.SRC, "jobs")
DIR = os.path.join(c.WORK, "slurm")
MODEL = os.path.join(DIR, "tiny.gguf")
# How long a case should take with the machine to itself and its two ranks; all together take as many times longer as there are fewer
# than seven cores. Slurm looks at limits every 30 s, so the warning comes within 40.
SECONDS = 60 / max(1, 7 / len(os.sched_getaffinity(0)))
COMMON = ["--kv", "f16", "--ignore-eos"]


class Case:
    """One prompt and its answer, undisturbed and from jobs."""

    def __init__(self, name, n_prompt, n_tokens, like=None):
        self.name, self.n_tokens, self.like = name, n_tokens, like
        self.prompt, self.output = f"{DIR}/{like.name if like else name}.prompt", f"{DIR}/{name}.out"
        draw = random.Random(1)
        with open(self.prompt, "w", encoding="ascii") as file:
            file.write("".join(draw.choice("abcdefgh ijklmnop qrstuvwx yz.") for _ in range(n_prompt)))

    def words(self):
        return ["--max-tokens", str(self.n_tokens), *COMMON]

    def run_undisturbed(self):
        self.answer = self.like.answer if self.like else Answer(MODEL, 2, ["--prompt-file", self.prompt, *self.words()], f"slurm.{self.name}")
        print(f"{self.name}: {len(self.answer.prompt_ids)} + {len(self.answer.ids)} tokens undisturbed, {self.answer.timings}", flush=True)
        return self.answer.timings

    def environment(self):
        return {"BITSHARD_MODEL": MODEL, "BITSHARD_PROMPT_FILE": self.prompt, "BITSHARD_OUTPUT": self.output, "BITSHARD_SNAPSHOT_EVERY": "256"}


def log_of(path):
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def pids_of_job(job):
    """The program's processes of a Slurm job, by their environment."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/comm", encoding="ascii") as file:
                name = file.read().strip()
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read().split(b"\0")
        except OSError:
            continue
        if entry.isdigit() and name == "bitshard" and b"SLURM_JOB_ID=%d" % job in environment:
            found.append(int(entry))
    return found


class Job:
    def __init__(self, rig, case, script, tasks, launch, then_tasks=None):
        self.rig, self.case, self.tasks, self.then_tasks, self.resized = rig, case, tasks, then_tasks, False
        self.log = f"{DIR}/{case.name}.log"
        self.id = rig.submit("--time=1", f"--ntasks={tasks}", "--signal=B:USR1@55", f"--output={self.log}", os.path.join(JOBS, script), *case.words(),
                             env={**case.environment(), "BITSHARD_LAUNCH": launch})
        self.fields = {}

    def look(self):
        """Once a while: the state; resizes the job while it waits to be started again."""
        self.fields = self.rig.show(self.id)
        if self.then_tasks and not self.resized and self.fields.get("JobState") == "PENDING" and int(self.fields.get("Restarts", 0)) > 0:
            self.rig.update(self.id, NumTasks=self.then_tasks, NumCPUs=f"{self.then_tasks}-{self.then_tasks}")
            self.resized = True
        return self.fields.get("JobState")

    def n_restarts(self):
        return int(self.fields.get("Restarts", 0))

    def judge(self):
        text, name = log_of(self.log), self.case.name
        good = c.check(self.fields.get("JobState") == "COMPLETED" and int(self.fields.get("Restarts", 0)) >= 1,
                       f"{name}: requeued {self.fields.get('Restarts')} times, {self.fields.get('JobState')}")
        good &= c.check("requeueing" in text and "goes on at token" in text, f"{name}: the log says that it was requeued, and goes on")
        if self.then_tasks:
            good &= c.check(f"{self.tasks} tasks, until" in text and f"{self.then_tasks} tasks, until" in text,
                            f"{name}: on {self.tasks} tasks, then on {self.then_tasks}")
        if not good:
            print(f"== {self.log}\n{text}\n{self.fields}\n{self.rig.complaints()}")
        else:
            self.case.answer.judge(name, read(self.case.output))


class BatchJob:
    """An array of two jobs of one task each over six requests."""

    def __init__(self, n_tokens):
        self.requests, self.output, self.whole = f"{DIR}/batch.in", f"{DIR}/batch.out", f"{DIR}/batch.whole"
        with open(self.requests, "w", encoding="ascii") as file:
            for i in range(6):
                body = {"prompt": [5 + i, 6, 7], "max_tokens": n_tokens // 3, "temperature": 0, "ignore_eos": True}
                file.write(json.dumps({"custom_id": f"b{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
        self.words = ["--batch-size", "1", "--kv", "int4"]
        done = c.run(0, [c.BITSHARD, "generate", "--model", MODEL, "--batch", self.requests, "-o", self.whole, "--quiet", *self.words])
        assert done.returncode == 0, done.stderr

    def submit(self, rig):
        self.rig = rig
        first = rig.submit("--time=1", "--ntasks=1", "--array=0-1", "--signal=B:USR1@55", f"--output={DIR}/batch.%a.log", os.path.join(JOBS, "batch.sbatch"),
                           *self.words, env={"BITSHARD_MODEL": MODEL, "BITSHARD_BATCH": self.requests, "BITSHARD_OUTPUT": self.output,
                                             "BITSHARD_SNAPSHOT_EVERY": "64"})
        self.ids, self.warned = [f"{first}_{i}" for i in range(2)], set()

    def look(self):
        """The state; warns each part once, when it has a snapshot of a line, as its time limit would a little later."""
        self.fields = [self.rig.show(name) for name in self.ids]
        for i, name in enumerate(self.ids):
            path = f"{self.output}.parts/{i}-of-2.snapshots"
            if i not in self.warned and any(entry.startswith("manifest-") for _, _, entries in os.walk(path) for entry in entries):
                self.rig.command("scancel", "--signal=USR1", "--batch", name)
                self.warned.add(i)
        states = {fields.get("JobState") for fields in self.fields}
        return states.pop() if len(states) == 1 else "/".join(sorted(map(str, states)))

    @staticmethod
    def answers(path):
        """Lines by id, without the ids that number the lines of a part."""
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]
        return {json.loads(line)["custom_id"]: re.sub(rb'"(batch_req_|req_|cmpl-)\d+"', b"", line) for line in lines}

    def n_restarts(self):
        """Of the part that was started again more often."""
        return max(int(fields.get("Restarts", 0)) for fields in self.fields)

    def judge(self):
        good = c.check(self.look() == "COMPLETED" and self.n_restarts() >= 1, f"batch: requeued {self.n_restarts()} times, {self.look()}")
        if good:
            got, whole = self.answers(self.output), self.answers(self.whole)
            good = c.check(got == whole and len(got) == 6, "batch: the answers are the undisturbed ones, to the byte")
        if not good:
            print("\n".join(log_of(f"{DIR}/batch.{i}.log") for i in range(2)), self.rig.complaints())


def has_snapshot(case):
    path = f"{case.output}.snapshot"
    return os.path.isdir(path) and any(name.startswith("manifest-") for name in os.listdir(path))


def run_all(rig, n_tokens, n_prompt):
    """All four at once, to their ends: the jobs, when a rank was killed (None: never), and how much there was to do."""
    shutil.rmtree(DIR, ignore_errors=True)
    os.makedirs(DIR)
    done = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "8", "--context-length", "65536"])
    assert done.returncode == 0, done.stderr
    if not n_tokens:
        tried = Case("tried", 1000, 60).run_undisturbed()
        n_tokens = int(min(8000, max(600, SECONDS * 1000 / tried["ms_per_token"])))
        # Prompts cost more a token the longer they are: the estimate is on the safe side.
        n_prompt = int(min(60000, max(4000, SECONDS * 1000 / tried["prefill_ms"] * 1000)))
    decode = Case("decode", 200, n_tokens)
    prefill, lost = Case("prefill", n_prompt, 30), Case("lost", 200, n_tokens, like=decode)
    for case in (decode, prefill, lost):
        case.run_undisturbed()
    batch = BatchJob(n_tokens)
    srun = "srun --mpi=pmix --kill-on-bad-exit=1"
    jobs = [Job(rig, decode, "long-context.sbatch", 2, srun, then_tasks=3), Job(rig, prefill, "long-context.sbatch", 3, "mpirun", then_tasks=2),
            Job(rig, lost, "long-context.sbatch", 2, srun), batch]
    batch.submit(rig)
    began, killed, before = time.monotonic(), None, None
    while time.monotonic() - began < 480:
        states = [job.look() for job in jobs]
        if all(state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") for state in states):
            break
        # The third loses a rank once a snapshot of it is there.
        pids = pids_of_job(jobs[2].id) if not killed and has_snapshot(lost) else []
        if pids:
            killed = time.monotonic() - began
            os.kill(random.choice(pids), signal.SIGKILL)
            print(f"lost: killed one of the ranks {pids}")
        if states != before:
            print(f"{time.monotonic() - began:.0f} s: {states}", flush=True)
        before = states
        time.sleep(0.25)
    return jobs, killed, n_tokens, n_prompt


def main():
    if "--snapshot " not in c.run(0, [c.BITSHARD, "generate", "--help"]).stdout:
        c.skip("this build has no snapshots")
    if not c.BIG:
        c.skip("a quarter of an hour on two cores: make bigcheck runs it")
    rig = slurm.Slurm()
    os.environ["PATH"] = c.BUILD + os.pathsep + os.environ["PATH"]
    for name, value in (("OMPI_MCA_rmaps_base_oversubscribe", "1"), ("OMPI_MCA_hwloc_base_binding_policy", "none"), ("OMPI_MCA_mpi_yield_when_idle", "1"),
                        ("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"), ("PATH", os.environ["PATH"])):
        rig.env[name] = value
    n_tokens = n_prompt = 0
    for _ in range(3):
        jobs, killed, n_tokens, n_prompt = run_all(rig, n_tokens, n_prompt)
        if all(job.n_restarts() > 0 or job.look() != "COMPLETED" for job in jobs[:2]):
            break
        print("a job was done before its warning: again, with twice as much to do")
        n_tokens, n_prompt = 2 * n_tokens, 3 * n_prompt // 2
    c.check(killed is not None, "lost: a rank was killed")
    for job in jobs[:2]:
        c.check("stopped by SIGUSR2 after" in log_of(job.log), f"{job.case.name}: stopped by Slurm's warning")
    c.check("of the answer, in its prompt" in log_of(jobs[1].log) or "0 of the answer" in log_of(jobs[1].log), "prefill: stopped in its prompt")
    for job in jobs:
        job.judge()
    rig.stop()


main()
c.finish()
