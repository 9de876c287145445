"""`metrics.jsonl` as it is written.

What its lines say is `training.metrics`.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megafuser.runtime.atomic import write_text_atomic
from megafuser.runtime.json_values import finite
from megafuser.watching.json_lines import read_lines

logger = logging.getLogger(__name__)


class MetricsFile:
    """`metrics.jsonl`: a line per step, across restarts, no step twice.

    A disk that is full does not end a run: the lines wait for room, which is said once.
    """

    def __init__(self, path: Path, stage: str, last_step: int) -> None:
        """Opens the file to go on after `last_step` of the stage; lines of later steps were lost with their state."""
        self._path = path
        lines = read_lines(path, ("stage", "step"))  # a kill may have cut the last one
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= last_step]
        before = path.stat() if path.is_file() else None
        # what is not finite was written by older versions
        write_text_atomic(path, "".join(json.dumps(finite(line)) + "\n" for line in kept))
        if before is not None:  # the file's time says when the last line was written
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        # without a buffer, so that what a full disk took of a line is known
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._is_told = False

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line, visible to readers at once.

        Raises:
            ValueError: a number is not finite; JSON has none for it.
        """
        self._waiting += json.dumps(line, allow_nan=False).encode() + b"\n"
        self._try(self._put)

    def flush(self) -> None:
        """Flushes to the disk, before a checkpoint that goes on after these lines."""
        self._try(self._put, lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        """Flushes to the disk and closes."""
        self.flush()
        if self._waiting:
            logger.warning("%s lacks its last lines, for which there was no room", self._path)
        self._file.close()

    def _put(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]

    def _try(self, *actions: Callable[[], None]) -> None:
        try:
            for action in actions:
                action()
            self._is_told = False
        except OSError as error:
            if not self._is_told:
                logger.warning("%s cannot be written (%s); its lines wait for room", self._path, error)
            self._is_told = True
