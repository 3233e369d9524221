"""slurm.py: a real Slurm on this one machine, for as long as a test runs: munged, slurmctld and slurmd of Debian's slurm-wlm,
each with its own key, socket, ports and spool in a temporary directory, as whoever runs the test. Nothing of a Slurm that
the machine may have is read or touched; the daemons end with the test.

The node claims sixteen CPUs whatever there are (config_overrides), processes are found by /proc (proctrack/linuxproc) and not
by cgroups, so that it runs in a container too. Waits are cut down to what Slurm allows: a limit is at least one minute.
"""
import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import common as c

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CPUS = 16
CREDENTIAL_SECONDS = 15
CONF = """
ClusterName=bitshard
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmdPort={port1}
SrunPortRange={port2}-{port3}
AuthType=auth/munge
CredType=cred/munge
# A requeued job may begin once its credential has run out, 120 s otherwise; a busy machine needs a few to start a job with it.
AuthInfo=socket={dir}/munge.socket,cred_expire={lifetime}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MpiDefault=none
MailProg=/bin/true
JobRequeue=1
KillWait=5
OverTimeLimit=0
MinJobAge=3600
ReturnToService=2
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard={cpus} CoresPerSocket=1 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


def find(program):
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def free_ports(n):
    """The first of n ports in a row that nobody listens on; below the range that the system gives out."""
    for first in range(17000 + os.getpid() % 1000 * 10, 32000, n):
        held = []
        try:
            for port in range(first, first + n):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise RuntimeError("no free ports")


class Slurm:
    def __init__(self):
        missing = [name for name in NEEDED if not find(name)]
        if missing:
            c.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
        self.dir = tempfile.mkdtemp(prefix="bitshard-slurm-")
        self.daemons = []
        atexit.register(self.stop)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: os._exit(self.stop() or 1))
        os.makedirs(f"{self.dir}/state")
        os.makedirs(f"{self.dir}/spool")
        with open(f"{self.dir}/munge.key", "wb", opener=lambda path, flags: os.open(path, flags, 0o400)) as file:
            file.write(os.urandom(128))
        self.start_daemon("munged", "--foreground", "--key-file", f"{self.dir}/munge.key", "--socket", f"{self.dir}/munge.socket", "--pid-file",
                          f"{self.dir}/munged.pid", "--log-file", f"{self.dir}/munged.log", "--seed-file", f"{self.dir}/munge.seed", "--num-threads", "2",
                          "--force")
        self.wait_for(lambda: os.path.exists(f"{self.dir}/munge.socket"), "munged's socket")
        port = free_ports(40)
        self.conf = f"{self.dir}/slurm.conf"
        with open(self.conf, "w", encoding="utf-8") as file:
            file.write(CONF.format(dir=self.dir, user=pwd.getpwuid(os.getuid()).pw_name, host=socket.gethostname().split(".")[0], port=port, port1=port + 1,
                                   port2=port + 2, port3=port + 39, cpus=CPUS, lifetime=CREDENTIAL_SECONDS))
        self.env = {**os.environ, "SLURM_CONF": self.conf}
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_", "OMPI_COMM", "PMIX_")) and name != "SLURM_CONF"]:
            del self.env[name]
        self.start_daemon("slurmctld", "-D", "-i")
        self.start_daemon("slurmd", "-D")
        self.wait_for(lambda: self.command("sinfo", "-h", "-o", "%T").stdout.strip() == "idle", "an idle node")

    def start_daemon(self, name, *words):
        env = getattr(self, "env", os.environ)
        with open(f"{self.dir}/{name}.out", "wb") as out:
            self.daemons.append((name, subprocess.Popen([find(name), *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True)))

    def wait_for(self, condition, what, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            for name, process in self.daemons:
                if process.poll() is not None:
                    self.give_up(f"{name} ended with {process.returncode}")
            if time.monotonic() > end:
                self.give_up(f"no {what} after {seconds} s")
            time.sleep(0.1)

    def give_up(self, why):
        """Daemons that do not run are no fault of bitshard's where they never could (a container without some right), but are not
        silence either: the logs are shown, and BITSHARD_SLURM=require makes it a failure."""
        for name in sorted(os.listdir(self.dir)):
            if name.endswith((".out", ".log")):
                with open(f"{self.dir}/{name}", encoding="utf-8", errors="replace") as file:
                    print(f"== {name}\n{file.read()[-3000:]}")
        if os.environ.get("BITSHARD_SLURM") == "require":
            raise RuntimeError(f"Slurm does not start: {why}")
        c.skip(f"Slurm does not start here: {why}")

    def command(self, *words, timeout=60):
        return subprocess.run([find(words[0]), *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=self.env)

    def submit(self, *words, env=None, directory=None):
        """sbatch; the job's number."""
        done = subprocess.run([find("sbatch"), "--parsable", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                              env={**self.env, **(env or {})}, cwd=directory or self.dir)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.strip())

    def show(self, job):
        """The job's fields, as scontrol has them; {} for one it does not know."""
        done = self.command("scontrol", "show", "-o", "job", str(job))
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def update(self, job, **fields):
        done = self.command("scontrol", "update", f"JobId={job}", *(f"{name}={value}" for name, value in fields.items()))
        assert done.returncode == 0, done.stderr

    def wait_for_job(self, job, states, seconds, restarts=None):
        """Waits until the job is in one of the states (and has been requeued that often); its fields."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            fields = self.show(job)
            if fields.get("JobState") in states and (restarts is None or int(fields.get("Restarts", 0)) >= restarts):
                return fields
            time.sleep(0.25)
        return self.show(job)

    def complaints(self):
        """What the daemons' logs say of errors, for a job that went wrong."""
        found = []
        for name in ("slurmctld", "slurmd"):
            with open(f"{self.dir}/{name}.log", encoding="utf-8", errors="replace") as file:
                found += [line for line in file if "error" in line.lower()][-20:]
        return "".join(found)

    def stop(self):
        """Ends the jobs, then the daemons, by their ids; removes the directory."""
        if not os.path.isdir(self.dir):
            return
        if len(self.daemons) == 3 and self.daemons[1][1].poll() is None:
            subprocess.run([find("scancel"), "-f", "--partition", "main"], env=self.env, capture_output=True, timeout=30, check=False)
            end = time.monotonic() + 10
            while time.monotonic() < end and self.command("squeue", "-h", "-t", "R,CG").stdout.strip():
                time.sleep(0.2)
        for _, process in reversed(self.daemons):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
        if not os.environ.get("BITSHARD_KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)
