"""A rank that is killed, stopped, hangs or fails in the middle of a step ends the job: in 3 s, or in 10 s with one line
that names rank, step, layer and phase. Over MPI on CPUs; where there is a GPU over NCCL on it, where the other ranks
then wait in a kernel that never ends."""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))
import common as c

PROGRAM = os.path.join(c.BUILD, "tests", "faults", "comm_run")
GPU_LAUNCH = os.path.join(c.SRC, "build-aux", "gpu-launch")


def harm(launcher, ranks, device, transport, how, limit):
    name = f"{ranks} ranks, {device}, {transport}, rank 1 {how}"
    process = subprocess.Popen(["sh", launcher, str(ranks), PROGRAM, device, transport, how],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = any(line.strip() == b"now" for line in iter(process.stdout.readline, b""))  # NCCL_DEBUG's come before
    took, err = c.wait_for_end(process, limit)
    c.check(begun, f"{name}: steps run" + ("" if begun else ": " + err[-500:]))
    c.check(took <= limit, f"{name}: the job ends in {took:.1f} s, at most {limit}")
    c.check(process.returncode != 0, f"{name}: exit code {process.returncode}")
    return [line for line in err.splitlines() if line.startswith("bitshard")]


def run(launcher, ranks, device, transport):
    harm(launcher, ranks, device, transport, "killed", 3)
    lines = harm(launcher, ranks, device, transport, "failed", 3)
    c.check(len(lines) == 1 and "rank 1 fails" in lines[0], f"one line says so: {lines}")
    for how in ("stopped", "hung"):
        lines = harm(launcher, ranks, device, transport, how, 10)
        word = "is stopped or dead" if how == "stopped" else "hangs"
        named = re.search(r"rank 1 \(pid \d+\) " + word + r" at step 40, layer 3, phase attend: no progress", "".join(lines))
        c.check(named is not None and len(lines) == 1, f"one line names rank, step, layer, phase: {lines}")


run(c.LAUNCH, 3, "cpu", "auto")
if subprocess.run([PROGRAM, "gpus"], stdout=subprocess.DEVNULL).returncode == 0:
    for n in (2, 4):
        run(GPU_LAUNCH, n, "gpu", "nccl")
else:
    print("no GPU: CPUs only")
c.finish()
