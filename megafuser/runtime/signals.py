"""What a signal does to a process that has nothing to save: it leaves as one that was stopped early.

Under srun, which gives a job the largest of its tasks' codes, only rank 0 may return 75: any other code of the others,
that of a process killed by a signal included, would hide it. Stopping with everything saved is `training.stop` and
`inference.stopping`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from megafuser.errors import STOPPED_EARLY
from megafuser.runtime.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def taken_over(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Lets a handler have the signals that ask to stop, and gives them back.

    Who watched them with `watched` around this does not see them meanwhile.
    """
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    watcher = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(watcher)
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def watched(see: Callable[[int], None]) -> Iterator[None]:
    """Tells a thread of each of these signals as it comes, whatever the main thread waits for.

    Python runs handlers in the main thread, between two of its own instructions: not while a collective or a rendezvous
    waits. There must be a handler of Python's: use it within `taken_over`.

    Args:
        see: called in the thread, with the signal's number.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def read() -> None:
        while number := os.read(reading, 1):
            if number[0] in SIGNALS:
                see(number[0])
        os.close(reading)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=read, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread


@contextlib.contextmanager
def leaving_at_a_signal(world: World) -> Iterator[None]:
    """Ends the process at once, rank 0 with 75 and the others with 0, when it is asked to stop meanwhile.

    Args:
        world: this process's place.
    """
    with taken_over(lambda *_: leave_at_once(world)), watched(lambda _: leave_at_once(world)):
        yield


def leave_at_once(world: World) -> NoReturn:
    """Ends the process as one that was stopped early, rank 0 with 75 and the others with 0.

    Args:
        world: this process's place.
    """
    os._exit(STOPPED_EARLY if world.rank == 0 else 0)
