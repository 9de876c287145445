"""When a stage stops before its end: signals and the time limit, agreed between the ranks after each step.

A signal may reach any of the ranks, and clocks differ: so after each step all ranks say whether they would stop, and
all stop if any would.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from megafuser.errors import StoppedEarly
from megafuser.runtime.distributed import is_rank_zero
from megafuser.runtime.signals import SIGNALS, taken_over

logger = logging.getLogger(__name__)

# Launchers pass on a signal that their whole process group was sent: two at once are one.
_ONE_SIGNAL_SECONDS = 0.5
# Before a save was measured: a share of the time limit, but not more than this.
_ASSUMED_SHARE, _ASSUMED_SECONDS = 0.1, 300.0
# Steps and saves are not all alike.
_MARGIN = 1.5


class Stop:
    """Whether a stage shall stop; a context manager that takes the signals over, and gives them back.

    A second signal ends the process at once: what is being written has another name until it is complete, so no half
    checkpoint is left.
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
        self._taken = taken_over(self._received)
        self._longest_step = 0.0
        self._last_step = time.monotonic()

    def __enter__(self) -> Self:
        """Takes the signals over."""
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._woken_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=_leave_at_the_second, args=[reading], name="second signal", daemon=True).start()
        self._taken.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives them back."""
        self._taken.__exit__(None, None, None)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._writing)  # which ends the thread

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)

    def after_step(self, save_seconds: float | None) -> str | None:
        """Whether all ranks shall stop now; every rank calls it after each step, validation and all.

        Args:
            save_seconds: how long saving would take now; None where none was measured.

        Returns:
            Why, on every rank; None to go on.
        """
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._last_step)
        return self.agreed(save_seconds)

    def agreed(self, save_seconds: float | None = None) -> str | None:
        """The same without a step: before the first one, which takes no longer for what had to be loaded."""
        self._last_step = time.monotonic()
        # [out of time, signal's number]: the largest over the ranks
        wanted = torch.tensor([float(self._out_of_time(save_seconds)), float(self._signal or 0)], device=self._device)
        if dist.get_world_size() > 1:
            dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        out_of_time, number = wanted.tolist()
        if number:
            return f"{signal.Signals(int(number)).name} was received"
        return "the time limit is near" if out_of_time else None

    def _out_of_time(self, save_seconds: float | None) -> bool:
        if self._limit is None:
            return False
        if save_seconds is None:
            save_seconds = min(_ASSUMED_SHARE * self._limit, _ASSUMED_SECONDS)
        left = self._limit - (time.monotonic() - self._started)
        return left < _MARGIN * (self._longest_step + save_seconds)


def _leave_at_the_second(pipe: int) -> None:
    """Ends the process at the second signal, read from a pipe, whatever the main thread waits for.

    Python runs handlers in the main thread, between two of its own instructions: not while a collective waits.
    """
    first: float | None = None
    while number := os.read(pipe, 1):
        if number[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > _ONE_SIGNAL_SECONDS:
            os._exit(128 + number[0])
    os.close(pipe)


def leave(reason: str, stage: str, step: int, saved: object) -> StoppedEarly:
    """What ends the stage; said by rank 0.

    Args:
        reason: why it stops.
        stage: `warmup` or `joint`.
        step: that was the last.
        saved: the checkpoint; None where nothing is to be saved yet.
    """
    if dist.get_world_size() > 1:
        dist.barrier()  # rank 0 leaves last
    where = f"saved {saved}" if saved is not None else "nothing is to be saved yet"
    message = f"{stage} stopped at step {step}, since {reason}; {where}; run the same command again to go on"
    if is_rank_zero():
        logger.info("%s", message)
    return StoppedEarly(message)
