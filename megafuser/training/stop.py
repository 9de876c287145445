"""When a stage stops before its end: signals and the time limit, agreed between the ranks after each step.

A signal may reach any of the ranks, and clocks differ: so after each step all ranks say whether they would stop, and
all stop if any would. A rank that is lost is noticed by `runtime.heartbeat`; what has nothing to save leaves by
`runtime.signals`.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from megafuser.errors import StoppedEarly
from megafuser.runtime.distributed import by_every_rank, is_rank_zero, rank_zero_leaves_last
from megafuser.runtime.signals import leave_at_once, taken_over, watched
from megafuser.runtime.world import detect_world

logger = logging.getLogger(__name__)

# Launchers pass on a signal that their whole process group was sent: two at once are one.
_ONE_SIGNAL_SECONDS = 0.5
# Before a save was measured: a share of the time limit, but not more than this.
_ASSUMED_SHARE, _ASSUMED_SECONDS = 0.1, 300.0
# Steps and saves are not all alike.
_MARGIN = 1.5


@dataclass(frozen=True)
class ExitTime:
    """How long the save on leaving would take, going by one that was measured.

    Attributes:
        seconds: of that one.
        of_its_kind: whether states were gathered then, too, as they are on leaving. A save by rank may take a part of
            the time only, since all ranks write.
    """

    seconds: float
    of_its_kind: bool


class Stop:
    """Whether a stage shall stop; a context manager that takes the signals over, and gives them back.

    A second signal ends the process at once: what is being written has another name until it is complete, so no half
    checkpoint is left. So does the first one before the ranks have met: those that have come would wait for those that
    have left.
    """

    def __init__(self, device: torch.device, time_limit: float | None = None, started: float | None = None) -> None:
        """Knows of no reason yet.

        Args:
            device: this rank's, on which ranks agree.
            time_limit: seconds that the command may take from its start; the stage stops early enough to save.
            started: when it was started, in seconds of `time.monotonic`; now where it is not given.
        """
        self._device = device
        self._limit = time_limit
        self._started = time.monotonic() if started is None else started
        self._signal: signal.Signals | None = None
        self._first_signal: float | None = None
        self._signals = contextlib.ExitStack()
        self._have_met = threading.Event()
        self._longest_step = 0.0
        self._last_step = time.monotonic()

    def __enter__(self) -> Self:
        """Takes the signals over."""
        self._signals.enter_context(taken_over(self._received))
        self._signals.enter_context(watched(self._leave_at_once))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives them back."""
        self._signals.close()

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)

    def _leave_at_once(self, number: int) -> None:
        """Ends the process at a signal that is not waited with, in a thread of its own."""
        if not self._have_met.is_set():
            leave_at_once(detect_world())
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > _ONE_SIGNAL_SECONDS:
            os._exit(128 + number)

    def meet(self) -> None:
        """Waits for all ranks; from then on a signal is something to agree about. Every rank calls it.

        That process groups are there does not say that all ranks are: NCCL connects at its first collective.
        """
        by_every_rank(lambda *_: None)
        self._have_met.set()

    def after_step(self, save: ExitTime | None) -> str | None:
        """Whether all ranks shall stop now; every rank calls it after each step, validation and all.

        Args:
            save: how long saving would take now; None where none was measured.

        Returns:
            Why, on every rank; None to go on.
        """
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._last_step)
        return self.agreed(save)

    def agreed(self, save: ExitTime | None = None) -> str | None:
        """The same without a step: before the first one, which takes no longer for what had to be loaded."""
        self._last_step = time.monotonic()
        # [out of time, signal's number]: the largest over the ranks
        wanted = torch.tensor([float(self._out_of_time(save)), float(self._signal or 0)], device=self._device)
        if dist.get_world_size() > 1:
            dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        out_of_time, number = wanted.tolist()
        if number:
            return f"{signal.Signals(int(number)).name} was received"
        return "the time limit is near" if out_of_time else None

    def _out_of_time(self, save: ExitTime | None) -> bool:
        if self._limit is None:
            return False
        save_seconds = save.seconds if save is not None else 0.0
        if save is None or not save.of_its_kind:
            save_seconds = max(save_seconds, min(_ASSUMED_SHARE * self._limit, _ASSUMED_SECONDS))
        left = self._limit - (time.monotonic() - self._started)
        return left < _MARGIN * (self._longest_step + save_seconds)


def leave(reason: str, stage: str, step: int, saved: object) -> StoppedEarly:
    """What ends the stage; said by rank 0.

    Args:
        reason: why it stops.
        stage: `warmup` or `joint`.
        step: that was the last.
        saved: the checkpoint; None where nothing is to be saved yet.
    """
    rank_zero_leaves_last()
    where = f"saved {saved}" if saved is not None else "nothing is to be saved yet"
    message = f"{stage} stopped at step {step}, since {reason}; {where}; run the same command again to go on"
    if is_rank_zero():
        logger.info("%s", message)
    return StoppedEarly(message)
