"""Runs jobs that need each other, a few at a time, each in a process of its own; what is done is not done again.

A job is done when `done/NAME.json` is there, which is written by rename after its command ended with 0. A killed run
therefore does again only what was under way, and those commands resume or begin anew by themselves. A job that fails
keeps nothing waiting but what needs it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.shared.files import kept_beside, write_by_rename
from examples.shared.one_run import LockedOutput, Stopping

LOG_LINES = 30
POLL_SECONDS = 0.2
# Of a job's time: on the clock, and of all processors.
KINDS = ("seconds", "processor_seconds")


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: unique; also that of its log.
        command: program and arguments.
        output: file or directory that the command leaves.
        needs: names of the jobs that must be done before, and whose outputs it is made from.
        after: names of those that must be done before, but that it takes nothing from.
        seconds: what it is expected to take, for the order and the estimate of the time left.
        leaves: everything that it writes, if that is more than its output.
        always: done again in every run, since it depends on which jobs a run has.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()
    seconds: float = 10.0
    leaves: tuple[Path, ...] = ()
    always: bool = False
    after: tuple[str, ...] = ()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Names of all jobs that must be done before."""
        return self.needs + self.after


@dataclass
class Running:
    """A job's process, when it was started, and, once it has ended, the time that it took."""

    job: Job
    process: subprocess.Popen[bytes]
    start: float
    seconds: float = 0.0
    processor_seconds: float = 0.0

    def ended(self) -> bool:
        """Whether the process has ended."""
        if self.process.returncode is None:
            # what Popen.poll does, and the processor time: unlike the time on the wall, others' work hardly changes it
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self.start
                self.processor_seconds = usage.ru_utime + usage.ru_stime
        return self.process.returncode is not None


@dataclass
class Scheduler:
    """Runs jobs below one output directory.

    Attributes:
        out: directory of the logs, the marks of what is done, and durations.json.
        workers: jobs at a time.
        environment: of every job.
        name: of the example, in messages.
        grace: seconds that a job may take to end in order when the run is stopped.
    """

    out: Path
    workers: int
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    name: str = "examples"
    grace: float = 20.0

    def __post_init__(self) -> None:
        """Makes the directories."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.marks.mkdir(parents=True, exist_ok=True)

    @property
    def logs(self) -> Path:
        """One file a job."""
        return self.out / "logs"

    @property
    def marks(self) -> Path:
        """One file a job that is done, with the time it took."""
        return self.out / "done"

    def done(self, job: Job) -> bool:
        """Whether the job is done and its output still there."""
        return self._mark_file(job.name).exists() and job.output.exists()

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs all that is not done.

        Raises:
            SystemExit: 1 where a job failed, after all that does not need it; 75 after a signal.
        """
        todo = {job.name: job for job in jobs}
        ranks = critical_paths(list(todo.values()))
        with LockedOutput(self.out), Stopping() as stopping:
            finished = self._finished(todo, ranks)
            progress = Progress(todo, finished, ranks, self.workers)
            for name in finished:
                progress.learn(todo[name], self._mark(name)["seconds"])
            running: dict[str, Running] = {}
            failed: set[str] = set()
            with progress:
                try:
                    while self._start_ready(todo, finished | failed, finished, running, ranks):
                        time.sleep(POLL_SECONDS)
                        for name in [name for name, own in running.items() if own.ended()]:
                            if self._finish(running.pop(name)):
                                finished.add(name)
                                progress.finished(todo[name], self._mark(name)["seconds"])
                            else:
                                failed.add(name)
                        progress.show(running)
                        if stopping.received:
                            raise SystemExit(75)
                finally:
                    _end(running.values(), self.grace)
                    for own in running.values():
                        self._keep_spent(own)
                    self._write_durations()
            if failed:
                waiting = len(todo) - len(finished) - len(failed)
                names = ", ".join(sorted(failed))
                print(f"{self.name}: error: failed: {names}; not begun, since they need these: {waiting}")
                raise SystemExit(1)

    def _finished(self, todo: Mapping[str, Job], ranks: Mapping[str, float]) -> set[str]:
        """What is done; what needs a job that is to be done again is to be done again too.

        So is what was only begun, and needs a job that was done before: else its command would go on from what was
        made from the old output, or take it as its result. From a job that was never done, nothing was begun.
        """
        finished = {name for name, job in todo.items() if self.done(job) and not job.always}
        lost = [name for name, job in todo.items() if self._mark_file(name).exists() and not job.output.exists()]
        anew = set(lost)
        for name in sorted(todo, key=lambda name: -ranks[name]):
            job = todo[name]
            stale = not anew.isdisjoint(job.needs) or (name in finished and not finished.issuperset(job.needs))
            if stale and not job.always:
                finished.discard(name)
                anew.add(name)
                self._forget(job)
        for name in lost:
            # half of its new output must not count as done; last, so that a run that is killed here finds the same
            self._mark_file(name).unlink(missing_ok=True)
        return finished

    def _start_ready(
        self,
        todo: Mapping[str, Job],
        ended: set[str],
        finished: set[str],
        running: dict[str, Running],
        ranks: Mapping[str, float],
    ) -> bool:
        """Starts as many as there are workers for, first those that most waits for; returns whether any are at work.

        Args:
            todo: all jobs by name.
            ended: those that are not to be started, `finished` or failed.
            finished: those that others may need.
            running: those under way; the new ones are added.
            ranks: by name, see `critical_paths`.
        """
        ready = [
            job
            for name, job in todo.items()
            if name not in ended and name not in running and finished.issuperset(job.waits_for)
        ]
        for job in sorted(ready, key=lambda job: -ranks[job.name])[: self.workers - len(running)]:
            running[job.name] = self._start(job)
        return bool(running)

    def _mark_file(self, name: str) -> Path:
        return self.marks / f"{name}.json"

    def _spent_file(self, name: str) -> Path:
        return self.marks / f"{name}.spent"

    def _mark(self, name: str) -> dict[str, Any]:
        """What is known of a job that is done."""
        mark: dict[str, Any] = json.loads(self._mark_file(name).read_text("utf-8"))
        return mark

    def _forget(self, job: Job) -> None:
        """Removes what a job left, since it was made from something that is made anew."""
        for mark in (self._mark_file(job.name), self._spent_file(job.name)):
            mark.unlink(missing_ok=True)
        for path in (*(job.leaves or (job.output,)), kept_beside(job.output)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _start(self, job: Job) -> Running:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{job.name}.log").open("ab") as log:
            log.write(f"$ {' '.join(job.command)}\n".encode())
            log.flush()
            # its own session: a signal to this process is passed on once, by us
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
                close_fds=False,  # the children hold the output's lock as long as they live
            )
        return Running(job, process, time.monotonic())

    def _finish(self, own: Running) -> bool:
        """Marks a job whose process has ended as done, or tells why it is not; returns whether it is."""
        log = self.logs / f"{own.job.name}.log"
        end = None
        if own.process.returncode:
            end = f"ended with {own.process.returncode}"
        elif not own.job.output.exists():
            end = f"left no {own.job.output}"
        if end:
            lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
            lines.append(f"{self.name}: error: job {own.job.name} {end}; see its log {log}")
            print("\n".join(["", *lines]), flush=True)
            self._keep_spent(own)
            return False
        facts = self._spent(own) | {"command": own.job.command}
        write_by_rename(self._mark_file(own.job.name), json.dumps(facts) + "\n")
        self._spent_file(own.job.name).unlink(missing_ok=True)
        return True

    def _spent(self, own: Running) -> dict[str, float]:
        """The time of a job's process that has ended, and of all those before it that did not finish the job."""
        before = self._spent_file(own.job.name)
        spent = json.loads(before.read_text("utf-8")) if before.exists() else dict.fromkeys(KINDS, 0.0)
        return {kind: round(spent[kind] + getattr(own, kind), 2) for kind in KINDS}

    def _keep_spent(self, own: Running) -> None:
        """Keeps the time of a process that did not finish its job, for when the job is done."""
        if own.ended():
            write_by_rename(self._spent_file(own.job.name), json.dumps(self._spent(own)) + "\n")

    def _write_durations(self) -> None:
        marks = {path.stem: self._mark(path.stem) for path in sorted(self.marks.glob("*.json"))}
        durations = {name: {kind: mark[kind] for kind in KINDS} for name, mark in marks.items()}
        write_by_rename(self.out / "durations.json", json.dumps(durations, indent=2) + "\n")
        total = sum(mark["processor_seconds"] for mark in marks.values())
        print(f"Processor time of all jobs that are done: {total / 60:.1f} minutes", flush=True)


class Progress:
    """One line: jobs done, running and left, and an estimate of the time left."""

    def __init__(self, jobs: Mapping[str, Job], finished: set[str], ranks: Mapping[str, float], workers: int):
        """`finished` is the set that the scheduler goes on filling."""
        self._jobs, self._finished, self._ranks, self._workers = jobs, finished, ranks, workers
        self._expected = self._spent = 0.0

    def __enter__(self) -> "Progress":
        """Begins the line."""
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=len(self._jobs),
            initial=len(self._finished),
            unit="job",
            mininterval=interval,
            bar_format="{n_fmt}/{total_fmt} jobs |{bar:20}| {elapsed}{postfix}",
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the line."""
        self._bar.close()

    def learn(self, job: Job, seconds: float) -> None:
        """Learns from a job that is done how fast this machine is."""
        self._expected += job.seconds
        self._spent += seconds

    def finished(self, job: Job, seconds: float) -> None:
        """Counts a job."""
        self.learn(job, seconds)
        self._bar.update()

    def show(self, running: Mapping[str, Running]) -> None:
        """Shows what is under way."""
        text = f"about {self.seconds_left(running) / 60:.0f} min left; running: {', '.join(running) or '-'}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(0)

    def seconds_left(self, running: Mapping[str, Running]) -> float:
        """The expected times of what is left, spread over the workers, at the pace seen so far."""
        pace = self._spent / self._expected if self._expected else 1.0
        left, longest = 0.0, 0.0
        for name, job in self._jobs.items():
            if name not in self._finished:
                gone = time.monotonic() - running[name].start if name in running else 0.0
                left += max(0.0, pace * job.seconds - gone)
                longest = max(longest, pace * self._ranks[name] - gone)
        return max(left / self._workers, longest)


def critical_paths(jobs: list[Job]) -> dict[str, float]:
    """For each job the expected seconds from its start to the end of all that waits for it.

    Raises:
        ValueError: a job needs one that is not there, or jobs need each other in a circle.
    """
    by_name = {job.name: job for job in jobs}
    if len(by_name) < len(jobs):
        raise ValueError("two jobs have the same name")
    dependents: dict[str, list[str]] = {name: [] for name in by_name}
    for job in jobs:
        for need in job.waits_for:
            if need not in by_name:
                raise ValueError(f"{job.name} needs {need}, which is not a job")
            dependents[need].append(job.name)
    ranks: dict[str, float] = {}
    left = dict(by_name)
    while left:
        ends = [name for name in left if all(other in ranks for other in dependents[name])]
        if not ends:
            raise ValueError(f"jobs need each other in a circle: {', '.join(sorted(left))}")
        for name in ends:
            ranks[name] = left.pop(name).seconds + max((ranks[other] for other in dependents[name]), default=0.0)
    return ranks


def _end(running: Iterable[Running], grace: float) -> None:
    """Ends the processes that are still at work, with their children."""
    for own in running:
        if not own.ended():
            os.killpg(own.process.pid, signal.SIGTERM)
    for own in running:
        deadline = time.monotonic() + grace
        while not own.ended():
            if time.monotonic() > deadline:
                os.killpg(own.process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
