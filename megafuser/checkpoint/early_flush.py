"""Flushes a large file to the disk while it is still being written, so that the end need not wait for all of it.

The writing is done by `checkpoint.hashed_file` and `conversion.safetensors_writer`.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor

_EVERY_BYTES = 256 << 20


class EarlyFlush:
    """The flushing of one file, on a thread of its own; at most one flush runs at a time."""

    def __init__(self, descriptor: int) -> None:
        """Begins nothing yet.

        Args:
            descriptor: the open file; it must stay open until `finish` or `stop`.
        """
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        self._unflushed = 0

    def wrote(self, nbytes: int) -> None:
        """Counts what was written, and flushes from time to time.

        Raises:
            OSError: an earlier flush failed.
        """
        self._unflushed += nbytes
        if self._unflushed >= _EVERY_BYTES and (self._running is None or self._running.done()):
            self._check()
            self._unflushed = 0
            self._running = self._pool.submit(os.fdatasync, self._descriptor)

    def finish(self) -> None:
        """Flushes the rest, and waits for it.

        Raises:
            OSError: a flush failed.
        """
        self.stop()
        self._check()
        os.fsync(self._descriptor)

    def stop(self) -> None:
        """Waits for the flush that runs, if any, and begins no other."""
        self._pool.shutdown()

    def _check(self) -> None:
        if self._running is not None:
            self._running.result()
