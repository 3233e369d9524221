"""shim.py: running bitshard under tests/faults/shim.c: which calls it makes on files of a directory, and each of them failing."""
import atexit
import collections
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))
import common as c

LIBRARY = os.path.join(c.BUILD, "tests", "faults", "shim.so")
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EINTR")
FOREVER = 1000000000
# What a killed process leaves is the same on any file system; where syncs cost nothing ten times as many cases fit into the time.
SHM = "/dev/shm"
FAST = tempfile.mkdtemp(prefix="bitshard-faults-", dir=SHM if os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > 1 << 30 else c.WORK)
atexit.register(shutil.rmtree, FAST, ignore_errors=True)
Call = collections.namedtuple("Call", "failed rank kind number path")


class Shim:
    """Faults on files under one directory. The log of the last run is in calls()."""

    def __init__(self, directory):
        self.directory = os.path.realpath(directory)
        self.log = os.path.join(c.WORK, f"{os.path.basename(directory)}.{os.getpid()}.calls")

    def words(self, call=None, k=0, do="EIO", last=None, rank=None):
        """What goes in front of a program so that it runs under the library: env and its settings. mpirun itself does not."""
        if os.path.exists(self.log):
            os.unlink(self.log)
        settings = {"LD_PRELOAD": LIBRARY, "BITSHARD_FAULT_DIR": self.directory, "BITSHARD_FAULT_LOG": self.log, "BITSHARD_FAULT_K": k,
                    "BITSHARD_FAULT_DO": do, "BITSHARD_FAULT_CALL": call or "any",
                    "ASAN_OPTIONS": "verify_asan_link_order=0:" + os.environ.get("ASAN_OPTIONS", "")}
        if last is not None:
            settings["BITSHARD_FAULT_LAST"] = last
        if rank is not None:
            settings["BITSHARD_FAULT_RANK"] = rank
        return ["env", *(f"{name}={value}" for name, value in settings.items())]

    def calls(self):
        found = []
        if not os.path.exists(self.log):
            return found
        with open(self.log, encoding="utf-8", errors="replace") as file:
            for line in file:
                rank, kind, number, path = line.rstrip("\n").split(" ", 3)
                found.append(Call(rank.startswith("!"), rank.lstrip("!"), kind, int(number), path))
        return found

    def fired(self):
        return [call for call in self.calls() if call.failed]

    def by_kind(self):
        """{(rank, kind): how many}, of the last run."""
        return collections.Counter((call.rank, call.kind) for call in self.calls())
