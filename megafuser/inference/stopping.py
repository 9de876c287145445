"""How answering many prompts ends when it is asked to stop: between two steps, with the answers so far on disk.

In a step all ranks take part, so rank 0 does not leave in the middle of one; the others hear from it that it is all
over. Outside of steps, where an evaluation scores its tasks and runs programs, it leaves at once. A stage of training
stops by `training.stop`.
"""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn, Self

from megafuser.errors import StoppedEarly
from megafuser.inference.engine import Engine
from megafuser.runtime.signals import SIGNALS, taken_over

logger = logging.getLogger(__name__)


class AskedToStop(BaseException):
    """Ends the work; no `Exception`, since tasks catch those of their own scoring."""


class Stopping:
    """A context manager that takes the signals over on rank 0, and gives them back."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._asked: signal.Signals | None = None
        self._stepping = False
        self._taken = taken_over(self._received)

    def __enter__(self) -> Self:
        """Takes the signals over."""
        self._taken.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives them back."""
        self._taken.__exit__(None, None, None)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Goes around a step, which is never left in its middle.

        Raises:
            AskedToStop: a signal came during the step, or one before it was swallowed.
        """
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        if self._asked is not None:
            self._leave(self._asked)

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._asked is not None:  # on the way out
            return
        self._asked = signal.Signals(number)
        if not self._stepping:
            self._leave(self._asked)

    def _leave(self, number: signal.Signals) -> NoReturn:
        raise AskedToStop(number.name)


@contextlib.contextmanager
def until_asked_to_stop(engine: Engine, told: Callable[[AskedToStop], str]) -> Iterator[None]:
    """Goes around the work of the rank that leads; a signal ends it between two of the engine's steps.

    Args:
        engine: runs the steps.
        told: what is said then: what is kept, and how to go on.

    Raises:
        StoppedEarly: by a signal.
    """
    with Stopping() as stopping:
        engine.around_step = stopping.step
        try:
            yield
        except AskedToStop as asked:
            message = told(asked)
            logger.warning("%s", message)
            raise StoppedEarly(message) from None


def leave_it_to_rank_zero() -> None:
    """On the other ranks: a launcher tells all of them, and rank 0 ends them in good order."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
