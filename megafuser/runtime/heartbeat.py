"""Ends a job in which a rank is lost or hangs, and names the rank.

Collectives wait for whoever is not there: for half an hour over gloo, for ever where a process is stopped. Each rank's
thread therefore gives a sign every few seconds, through the process group's store and without collectives; rank 0
watches all, and the others watch rank 0. Who of all is behind, only rank 0 can tell, so the others let it speak first.
Stopping on purpose is `training.stop`.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from megafuser.errors import StoppedEarly, first_line

_SIGNS_WITHIN_SILENCE = 6
LOST_CODE = 1
_TELLING_SECONDS = 10.0


@dataclass
class _Seen:
    """What was last seen of a rank, and since when it is so.

    Attributes:
        sign: its last message.
        changed: when the message last changed, in seconds of a monotonic clock.
        moved: when it last got on.
    """

    sign: Mapping[str, Any]
    changed: float
    moved: float


class Watcher:
    """Judges signs; knows nothing of where they come from."""

    def __init__(self, silent_seconds: float, stuck_seconds: float, own: int | None = None) -> None:
        """Has seen nothing yet.

        Args:
            silent_seconds: a rank that gives no sign for so long is lost.
            stuck_seconds: if no rank gets on for so long, those that are behind are stuck.
            own: the rank that watches, where its own signs are taken too; once all others are done, nobody waits for
                it, and it is never stuck.
        """
        self._silent, self._stuck, self._own = silent_seconds, stuck_seconds, own
        self._seen: dict[int, _Seen] = {}

    def take(self, rank: int, sign: Mapping[str, Any], now: float) -> None:
        """Notes what a rank said: `count` of its signs, `step`, `marks` of getting on, `host`, `done` at its end."""
        if sign.get("done"):
            self._seen.pop(rank, None)
            return
        known = self._seen.get(rank)
        if known is None:
            self._seen[rank] = _Seen(sign, now, now)
            return
        if sign["count"] != known.sign["count"]:
            known.changed = now
        if sign["marks"] != known.sign["marks"]:
            known.moved = now
        known.sign = sign

    def verdict(self, now: float) -> str | None:
        """What is wrong, in one line; None where nothing is."""
        silent = [rank for rank, seen in self._seen.items() if now - seen.changed > self._silent]
        if silent:
            who = ", ".join(f"rank {rank} on {self._seen[rank].sign['host']}" for rank in sorted(silent))
            step = max(self._seen[rank].sign["step"] for rank in silent)
            nodes = ",".join(sorted({self._seen[rank].sign["host"] for rank in silent}))
            return (
                f"{who} gave no sign for {self._silent:.0f} s, after step {step}: ended, stopped or cut off; see its "
                f"last lines in the log, or exclude its node (sbatch --exclude={nodes}), and run the same command again"
            )
        others = self._seen.keys() - {self._own}
        if others and all(now - seen.moved > self._stuck for seen in self._seen.values()):
            steps = {rank: seen.sign["step"] for rank, seen in self._seen.items()}
            marks = {rank: seen.sign["marks"] for rank, seen in self._seen.items()}
            behind = [rank for rank, count in marks.items() if count == min(marks.values())]
            everybody = len(behind) == len(steps) > 1
            who = (
                "all ranks"
                if everybody
                else ", ".join(f"rank {rank} on {self._seen[rank].sign['host']}" for rank in sorted(behind))
            )
            nodes = ",".join(sorted({self._seen[rank].sign["host"] for rank in behind}))
            remedy = f"exclude the node (sbatch --exclude={nodes}) and run the same command again"
            if everybody:
                remedy = "run the same command again"
            return (
                f"nothing has gone on for {self._stuck / 60:.0f} min; {who} stand after step {min(steps.values())}; "
                f"{remedy}, or raise faults.stuck_minutes where a step takes so long"
            )
        return None


class Heartbeat:
    """One rank's thread; a context manager around the steps. Does nothing where there is one rank."""

    def __init__(
        self,
        silent_seconds: float,
        stuck_seconds: float,
        *,
        lost: Callable[[str], None] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            silent_seconds: see `Watcher`.
            stuck_seconds: likewise.
            lost: called with what is wrong before the process ends.
        """
        self._interval = silent_seconds / _SIGNS_WITHIN_SILENCE
        self._silent, self._stuck = silent_seconds, stuck_seconds
        self._lost = lost
        self._step, self._marks = 0, 0
        self._count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Gives the first sign."""
        self._ranks, self._rank = dist.get_world_size(), dist.get_rank()
        if self._ranks > 1:
            if self._rank == 0:
                self._watched, self._watcher = range(self._ranks), Watcher(self._silent, self._stuck, own=0)
            else:
                self._watched, self._watcher = range(1), Watcher(self._silent, self._stuck + 2 * self._silent)
            # A connection of its own: a waiting call of the main thread would hold the other's.
            self._store: Any = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._give()
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread, and tells the others not to wait for signs.

        A rank that ends with an error does not tell them: they may be in a collective that waits for it, and name it
        when its signs are missed, whether its process then ends or hangs.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if kind is None or issubclass(kind, StoppedEarly):
                with contextlib.suppress(RuntimeError):  # rank 0 may be gone
                    self._give(done=True)

    def mark(self, step: int | None = None) -> None:
        """Something is done: a step, or a validation or a save after it."""
        self._step = self._step if step is None else step
        self._marks += 1

    def _give(self, *, done: bool = False) -> None:
        self._count += 1
        sign = {
            "count": self._count,
            "step": self._step,
            "marks": self._marks,
            "host": socket.gethostname(),
            "done": done,
        }
        self._store.set(self._key(self._rank), json.dumps(sign))

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._give()
                now = time.monotonic()
                there = [rank for rank in self._watched if self._store.check([self._key(rank)])]
                for rank in there:
                    self._watcher.take(rank, json.loads(self._store.get(self._key(rank))), now)
                problem = self._watcher.verdict(now)
            except (RuntimeError, ValueError) as error:
                # The store is rank 0's or the launcher's.
                remedy = "see its last lines in the log, and run the same command again"
                problem = f"rank 0 cannot be reached ({first_line(error)}); {remedy}"
            if problem is not None and not self._ended.is_set():
                self._leave(problem)

    def _leave(self, problem: str) -> None:
        def tell() -> None:
            print(f"megafuser: error: rank {self._rank} ends the job: {problem}", file=sys.stderr, flush=True)
            if self._lost is not None:
                self._lost(problem)

        # Beside this thread: a disk that is full or does not answer, as the lost rank's may be, must not keep the job.
        telling = threading.Thread(target=tell, name="heartbeat's last words", daemon=True)
        telling.start()
        telling.join(_TELLING_SECONDS)
        # The main thread waits for a collective that will not end.
        os._exit(LOST_CODE)

    @staticmethod
    def _key(rank: int) -> str:
        return f"megafuser/heartbeat/{rank}"
