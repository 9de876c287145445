"""Files that are flushed while they are written."""

import errno
import os
from pathlib import Path

import pytest

from megafuser.checkpoint import early_flush
from megafuser.checkpoint.early_flush import EarlyFlush


def test_a_flush_that_failed_last_fails_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of it once: the flush at the end would not know of it."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(early_flush, "_EVERY_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", fail)
    with open(tmp_path / "file", "wb") as file:
        flush = EarlyFlush(file.fileno())
        flush.wrote(10)
        with pytest.raises(OSError, match="Input/output error"):
            flush.finish()
