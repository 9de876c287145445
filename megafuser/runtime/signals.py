"""What a signal does to a process that has nothing to save: it leaves as one that was stopped early.

Under srun, which gives a job the largest of its tasks' codes, only rank 0 may return 75: any other code of the others,
that of a process killed by a signal included, would hide it.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from megafuser.errors import STOPPED_EARLY
from megafuser.runtime.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def taken_over(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Lets a handler have the signals that ask to stop, and gives them back."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def leaving_at_a_signal(world: World) -> Iterator[None]:
    """Ends the process at once, rank 0 with 75 and the others with 0, when it is asked to stop meanwhile.

    Args:
        world: this process's place.
    """

    def leave(*_: object) -> None:
        os._exit(STOPPED_EARLY if world.rank == 0 else 0)

    with taken_over(leave):
        yield
