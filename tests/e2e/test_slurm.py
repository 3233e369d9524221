"""The scripts of jobs/ under a real Slurm on this machine (slurm.py), each job with a limit of one minute:

  decode    one long answer, stopped by the warning once a snapshot is there, requeued, resumed on another number of tasks, srun
  prefill   a long prompt, stopped by the warning in its middle, requeued, resumed on another number of tasks, mpirun
  lost      one rank killed with -9 once a snapshot is there, requeued by the script, srun
  batch     an array of two over six requests, stopped in mid-answer, requeued, srun

The warning is scancel --signal=USR1 --batch, which is what --signal=B:USR1 sends at its time, but here once a job has come so far. All at
once, as there are waits. Outputs equal those of a run that nobody disturbed, by the rule of DESIGN §7: with an f16 cache
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
# Long enough that a job is in the middle of it when it is looked at, a few times a second.
N_TOKENS, N_PROMPT = 1500, 10000
MINUTES = 10
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


def kill_one(job):
    """-9 to one of the job's ranks; False: there is none at this moment."""
    pids = pids_of_job(job.id)
    if pids:
        os.kill(random.choice(pids), signal.SIGKILL)
        print(f"{job.case.name}: killed one of the ranks {pids}", flush=True)
    return bool(pids)


def warn(job):
    """What --signal=B:USR1 does at its time."""
    return job.rig.command("scancel", "--signal=USR1", "--batch", str(job.id)).returncode == 0


class Job:
    """One that is harmed, once, when it has a snapshot."""

    def __init__(self, rig, case, script, tasks, launch, harm, then_tasks=None):
        self.rig, self.case, self.tasks, self.then_tasks, self.resized = rig, case, tasks, then_tasks, False
        self.harm, self.harmed = harm, False
        self.log = f"{DIR}/{case.name}.log"
        self.id = rig.submit(f"--time={MINUTES}", f"--ntasks={tasks}", "--signal=B:USR1@30", f"--output={self.log}", os.path.join(JOBS, script), *case.words(),
                             env={**case.environment(), "BITSHARD_LAUNCH": launch})
        self.fields = {}

    def look(self):
        """Once a while: the state; harms the job, and resizes it while it waits to be started again."""
        if not self.harmed and has_snapshot(self.case):
            self.harmed = self.harm(self)
        self.fields = self.rig.show(self.id)
        if self.then_tasks and not self.resized and self.fields.get("JobState") == "PENDING" and int(self.fields.get("Restarts", 0)) > 0:
            self.rig.update(self.id, NumTasks=self.then_tasks, NumCPUs=f"{self.then_tasks}-{self.then_tasks}")
            self.resized = True
        return self.fields.get("JobState")

    def judge(self):
        text, name = log_of(self.log), self.case.name
        good = c.check(self.fields.get("JobState") == "COMPLETED" and int(self.fields.get("Restarts", 0)) >= 1,
                       f"{name}: requeued {self.fields.get('Restarts')} times, {self.fields.get('JobState')}")
        c.check(self.harmed, f"{name}: it was harmed")
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
        first = rig.submit(f"--time={MINUTES}", "--ntasks=1", "--array=0-1", "--signal=B:USR1@30", f"--output={DIR}/batch.%a.log", os.path.join(JOBS, "batch.sbatch"),
                           *self.words, env={"BITSHARD_MODEL": MODEL, "BITSHARD_BATCH": self.requests, "BITSHARD_OUTPUT": self.output,
                                             "BITSHARD_SNAPSHOT_EVERY": "64"})
        self.ids, self.warned = [f"{first}_{i}" for i in range(2)], set()

    def look(self):
        """The state; warns each part once, when it has a snapshot of a line."""
        self.fields = [self.rig.show(name) for name in self.ids]
        for i, name in enumerate(self.ids):
            path = f"{self.output}.parts/{i}-of-2.snapshots"
            if i not in self.warned and any(entry.startswith("manifest-") for _, _, entries in os.walk(path) for entry in entries):
                self.rig.command("scancel", "--signal=USR1", "--batch", name)
                self.warned.add(i)
        states = {fields.get("JobState") for fields in self.fields}
        self.harmed = len(self.warned) == len(self.ids)
        return states.pop() if len(states) == 1 else "/".join(sorted(map(str, states)))

    @staticmethod
    def answers(path):
        """Lines by id, without the ids that number the lines of a part."""
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]
        return {json.loads(line)["custom_id"]: re.sub(rb'"(batch_req_|req_|cmpl-)\d+"', b"", line) for line in lines}

    def judge(self):
        state, restarts = self.look(), max(int(fields.get("Restarts", 0)) for fields in self.fields)
        good = c.check(state == "COMPLETED" and restarts >= 1 and self.harmed, f"batch: requeued {restarts} times, {state}, parts warned: {self.warned}")
        if good:
            got, whole = self.answers(self.output), self.answers(self.whole)
            good = c.check(got == whole and len(got) == 6, "batch: the answers are the undisturbed ones, to the byte")
        if not good:
            print("\n".join(log_of(f"{DIR}/batch.{i}.log") for i in range(2)), self.rig.complaints())


def has_snapshot(case):
    path = f"{case.output}.snapshot"
    return os.path.isdir(path) and any(name.startswith("manifest-") for name in os.listdir(path))


def run_all(rig):
    """All four at once, to their ends."""
    shutil.rmtree(DIR, ignore_errors=True)
    os.makedirs(DIR)
    done = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "8", "--context-length", "65536"])
    assert done.returncode == 0, done.stderr
    decode, prefill = Case("decode", 200, N_TOKENS), Case("prefill", N_PROMPT, 30)
    lost = Case("lost", 200, N_TOKENS, like=decode)
    for case in (decode, prefill, lost):
        case.run_undisturbed()
    batch = BatchJob(N_TOKENS)
    srun = "srun --mpi=pmix --kill-on-bad-exit=1"
    jobs = [Job(rig, decode, "long-context.sbatch", 2, srun, warn, then_tasks=3), Job(rig, prefill, "long-context.sbatch", 3, "mpirun", warn, then_tasks=2),
            Job(rig, lost, "long-context.sbatch", 2, srun, kill_one), batch]
    batch.submit(rig)
    began, before = time.monotonic(), None
    while time.monotonic() - began < 60 * MINUTES:
        states = [job.look() for job in jobs]
        if states != before:
            print(f"{time.monotonic() - began:.0f} s: {states}", flush=True)
        if all(state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") for state in states):
            break
        before = states
        time.sleep(0.1)
    return jobs


def main():
    if "--snapshot " not in c.run(0, [c.BITSHARD, "generate", "--help"]).stdout:
        c.skip("this build has no snapshots")
    if not c.BIG:
        c.skip("minutes on two cores: make bigcheck runs it")
    rig = slurm.Slurm()
    os.environ["PATH"] = c.BUILD + os.pathsep + os.environ["PATH"]
    for name, value in (("OMPI_MCA_rmaps_base_oversubscribe", "1"), ("OMPI_MCA_hwloc_base_binding_policy", "none"), ("OMPI_MCA_mpi_yield_when_idle", "1"),
                        ("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"), ("PATH", os.environ["PATH"])):
        rig.env[name] = value
    jobs = run_all(rig)
    for job in jobs[:2]:
        c.check("stopped by SIGUSR2 after" in log_of(job.log), f"{job.case.name}: stopped by Slurm's warning")
    c.check("of the answer, in its prompt" in log_of(jobs[1].log) or "0 of the answer" in log_of(jobs[1].log), "prefill: stopped in its prompt")
    for job in jobs:
        job.judge()
    rig.stop()


main()
c.finish()
