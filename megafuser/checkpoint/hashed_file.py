"""The files of a checkpoint's tensors: hashed while they are written, and flushed to the disk at their end.

It knows nothing of the format: `checkpoint.snapshot` and `checkpoint.stream_writer` do.
"""

import contextlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from megafuser.checkpoint.early_flush import EarlyFlush

BYTES_PER_FILE = 4 << 30
"""About how large a file becomes before another one is begun."""

_BYTES_PER_CALL = 8 << 20


class HashedFile(io.RawIOBase):
    """A new file that is hashed while it is written; what takes long is hashed on a thread of its own.

    As a context it is finished where nothing was raised, and given up otherwise: closed as it is, for nobody to read.

    Attributes:
        path: where it is.
        error: the first that a write met; PyTorch's writer covers it with one of its own.
        hash: XXH3 hash of what was written (see `megafuser.checkpoint.manifest`), 32 hexadecimal digits, once it is
            finished.
    """

    def __init__(self, path: Path) -> None:
        """Makes the file.

        Args:
            path: where; another file there is replaced.

        Raises:
            OSError: it cannot be made.
        """
        super().__init__()
        self.path = path
        self.error: OSError | None = None
        self.hash = ""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._digest = xxhash.xxh3_128()
        self._pool = ThreadPoolExecutor(1)
        self._flush = EarlyFlush(self._descriptor)
        self._position = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, content: Any) -> int:
        """Writes all of it.

        Raises:
            OSError: the disk is full or fails.
        """
        data = memoryview(content).cast("B")
        hashing = self._pool.submit(self._digest.update, data) if len(data) > _BYTES_PER_CALL else None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written : written + _BYTES_PER_CALL])
            self._flush.wrote(written)
        except OSError as error:
            self.error = self.error or error
            raise
        if hashing is None:
            self._digest.update(data)
        else:
            hashing.result()
        self._position += written
        return written

    def flush(self) -> None:
        """Nothing: PyTorch asks for it after every tensor; the file is flushed at its end."""

    def finish(self) -> None:
        """Flushes to the disk, and closes; nothing where it is closed already.

        Raises:
            OSError: the disk is full or fails.
        """
        if self.closed:
            return
        try:
            self._flush.finish()
        except BaseException:
            self._give_up()
            raise
        self.hash = self._digest.hexdigest()
        self.close()

    def close(self) -> None:
        """Closes the file as it is, once."""
        if self.closed:
            return
        super().close()
        self._pool.shutdown()
        self._flush.stop()
        os.close(self._descriptor)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes the file, or gives it up after an error."""
        if kind is None:
            self.finish()
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Closes the file whatever it holds: nobody will read it, and what went wrong is known already."""
        with contextlib.suppress(OSError):
            self.close()
