"""One run at a time in an output directory, and a signal that ends it in order."""

import fcntl
import os
import signal
from pathlib import Path
from types import FrameType


class LockedOutput:
    """Only one run works in an output directory; processes of a killed one hold its lock as long as they live."""

    def __init__(self, out: Path):
        """`out` exists."""
        self._descriptor = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
        os.set_inheritable(self._descriptor, True)

    def __enter__(self) -> None:
        """Waits for an earlier run to end."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for an earlier run to end", flush=True)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        """Lets go."""
        os.close(self._descriptor)


class Stopping:
    """Notes SIGINT and SIGTERM, so that jobs are ended in order."""

    received: int | None = None

    def __enter__(self) -> "Stopping":
        """Takes the signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
