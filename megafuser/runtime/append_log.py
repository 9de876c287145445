"""JSON records that outlive the process that keeps them: a file of lines, each on disk from when it is appended.

A process that was killed may leave half a line, and a machine that broke down worse. What is there is taken up to the
first line that is not a record; the rest is cut off, since what follows damage cannot be trusted either. Files that
change as a whole are `runtime.atomic`.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megafuser.runtime.file_lock import lock


class AppendLog:
    """One JSONL file.

    Attributes:
        path: where it is.
        records: what was there when it was opened, in order.
        damaged: whether something behind them was cut off.
    """

    def __init__(self, path: Path, is_record: Callable[[dict[str, Any]], bool], *, exclusive: bool = False) -> None:
        """Reads what is there, and cuts off what is damaged.

        Args:
            path: made where it is absent, with the directories above it.
            is_record: whether a JSON object is one of this log.
            exclusive: keeps out other processes that ask for the same, as long as the file is open; where the file
                system has no locks, nobody is kept out.

        Raises:
            BlockingIOError: another process has it.
            OSError: it cannot be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b", buffering=0)  # what has no room is not tried again at the end
        try:
            if exclusive:
                lock(self._file)
                if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                    raise BlockingIOError  # whoever had it has put another in its place meanwhile
            content = path.read_bytes()
            self.records, whole = _read(content, is_record)
            self.damaged = whole < len(content)
            self._file.truncate(whole)
            self._file.seek(whole)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Keeps a record, on disk from now on; `records` stays as it is.

        Raises:
            OSError: the disk is full or fails; what is there of the record is cut off when the log is opened again.
        """
        left = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _read(content: bytes, is_record: Callable[[dict[str, Any]], bool]) -> tuple[list[dict[str, Any]], int]:
    """The records, and the number of bytes that they take."""
    records, whole = [], 0
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(record, dict) or not is_record(record):
            break
        records.append(record)
        whole += len(line)
    return records, whole
