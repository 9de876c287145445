"""A real Slurm of two virtual nodes on this machine (`lab/`): started, given jobs, watched, stopped."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.parallel.launch import ROOT
from tests.ports import FIRST, reserve_block

LAB_SCRIPTS = Path(__file__).parent / "lab"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
SMALL = ("--ntasks-per-node=2", "--gpus-per-node=2")
# Jobs in `high` end those in `low`, which go back into the queue.
PARTITIONS = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=patient Nodes=ALL PriorityTier=1 GraceTime=300 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
FirstJobId={first}"""


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job.

    Attributes:
        number: its id.
        state: such as RUNNING.
        reason: why it waits.
        code: exit code of its script.
        restarts: how often it was put back into the queue.
    """

    number: int
    state: str
    reason: str
    code: int
    restarts: int


class Cluster:
    """A running cluster; `submit` takes what a user types after `sbatch`."""

    def __init__(self, lab: Path) -> None:
        """Starts it below `lab`, a short path that does not exist yet."""
        self.lab = lab
        # the nodes' ports are neighbours; the others are those of the jobs, which make theirs from their numbers
        controller, first_node, _, first_job, *_ = reserve_block()
        self._environment = {
            **os.environ,
            "LAB": str(lab),
            "NODES": "2",
            "GPUS": "8",
            "GPUTYPE": "h100",
            "CTLPORT": str(controller),
            "NODEPORT": str(first_node),
            "EXTRA": PARTITIONS.format(first=first_job - FIRST),
        }
        started = self._script("start.sh")
        if started.returncode:
            raise RuntimeError(started.stdout + started.stderr)
        self._environment["SLURM_CONF"] = str(lab / "etc" / "slurm.conf")

    def stop(self) -> None:
        """Stops what was started, and nothing else."""
        stopped = self._script("stop.sh")
        assert stopped.returncode == 0, stopped.stderr
        shutil.rmtree(self.lab)

    def submit(self, directory: Path, *arguments: object, **environment: str) -> int:
        """`sbatch` in a directory that has `logs/`, from a shell whose `python` is the tests'; the job's number."""
        done = self.sbatch(directory, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def sbatch(self, directory: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """`sbatch --parsable`, whatever comes of it."""
        command = ["sbatch", "--parsable", *map(str, arguments)]
        return subprocess.run(
            command, cwd=directory, env=self.shell(**environment), capture_output=True, text=True, check=False
        )

    def shell(self, **environment: str) -> dict[str, str]:
        """The submitting shell's environment: megafuser is not installed there, the scripts must find it."""
        inherited = {name: value for name, value in self._environment.items() if name != "PYTHONPATH"}
        inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
        # ranks that share few cores take long to import torch
        own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MEGAFUSER_PREFLIGHT_SECONDS": "600"}
        return inherited | own | environment

    def job(self, number: int) -> Job:
        """What Slurm says of a job now."""
        line = self._slurm("scontrol", "show", "job", "--oneliner", str(number))
        found = {name: _field(line, name) for name in ("JobState", "Reason", "ExitCode", "Restarts")}
        return Job(
            number=number,
            state=found["JobState"],
            reason=found["Reason"],
            code=int(found["ExitCode"].split(":")[0]),
            restarts=int(found["Restarts"]),
        )

    def wait(self, number: int, seconds: float = 900) -> Job:
        """Waits until a job has ended for good."""
        self.until(lambda: self.job(number).state in ENDED, f"job {number} to end", seconds)
        return self.job(number)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 600) -> None:
        """Waits for something; fails with Slurm's view where it does not come."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited for {what}:\n{self._slurm('scontrol', 'show', 'job')}"
            time.sleep(0.1)

    def clear(self) -> None:
        """Cancels the jobs that have not ended, and waits until the nodes are free of them."""
        if left := self._unfinished():
            self.run("scancel", *left)
            self.until(lambda: not self._unfinished(), f"{', '.join(left)} to be cancelled")

    def _unfinished(self) -> list[str]:
        return self._slurm("squeue", "--noheader", "--format=%A").split()

    def limit(self, number: int, minutes: int) -> None:
        """Lowers a running job's time limit, so that it has that many minutes left, or up to one less."""
        line = self._slurm("scontrol", "show", "job", "--oneliner", str(number))
        hours, gone, _ = _field(line, "RunTime").split(":")
        self.run("scontrol", "update", f"JobId={number}", f"TimeLimit={60 * int(hours) + int(gone) + minutes}")

    def run(self, *command: str) -> None:
        """Runs one of Slurm's commands, e.g. `scancel`."""
        self._slurm(*command)

    def kill_node(self, name: str) -> None:
        """Pulls a node's plug."""
        self._node("kill", name)

    def start_node(self, name: str) -> None:
        """Brings a killed node back."""
        self._node("start", name)

    def _node(self, what: str, name: str) -> None:
        done = self._script("node.sh", what, name)
        assert done.returncode == 0, done.stderr

    def _script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Not by pipes: the daemons would keep them open.
        log = self.lab.with_name(self.lab.name + ".log")
        with log.open("w+") as file:
            command = ["bash", str(LAB_SCRIPTS / name), *arguments]
            code = subprocess.run(command, env=self._environment, stdout=file, stderr=file, check=False).returncode
            file.seek(0)
            said = file.read()
        log.unlink()
        return subprocess.CompletedProcess(command, code, "", said)

    def _slurm(self, *command: str) -> str:
        # A controller on a machine with more work than cores does not answer every question in time.
        for _ in range(5):
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
            time.sleep(1)
        raise AssertionError(f"{' '.join(command)} failed with {done.returncode}: {done.stdout}{done.stderr}")


def _field(line: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S+)", line)
    assert found, line
    return found[1]


def script(name: str) -> Path:
    """A job script."""
    return ROOT / "slurm" / name


def log_of(directory: Path, number: int) -> str:
    """What a job has written so far; nothing where it has not begun."""
    (path, *_) = [*(directory / "logs").glob(f"*-{number}.out"), None]
    return path.read_text(errors="replace") if path else ""


def errors_of(directory: Path, number: int) -> list[str]:
    """The lines of a job's log that say what the user has to know."""
    return [line for line in log_of(directory, number).splitlines() if line.startswith("megafuser: error: ")]
