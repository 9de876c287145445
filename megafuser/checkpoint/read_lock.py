"""Keeps checkpoints from being removed while they are read.

A reader locks the manifest, which a file system in the network can do too where it has locks at all; where it has none,
nothing is kept. Which checkpoints are too old to keep is decided by `training.kept_checkpoints`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megafuser.config.run_directory import MANIFEST
from megafuser.runtime.atomic import remove_directory
from megafuser.runtime.file_lock import attempt


@contextmanager
def reading(directory: str | Path) -> Iterator[None]:
    """Keeps `remove_unless_read` from a checkpoint, in any process; readers do not keep each other out."""
    descriptor = _open(Path(directory), os.O_RDONLY)
    try:
        if descriptor is not None:
            attempt(descriptor, shared=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_unless_read(directory: Path) -> bool:
    """Removes a checkpoint that nobody reads.

    Returns:
        Whether it is gone.

    Raises:
        OSError: it may not be removed.
    """
    # to write: an exclusive lock on a file in the network needs it
    descriptor = _open(directory, os.O_RDWR)
    try:
        if descriptor is not None and isinstance(attempt(descriptor), BlockingIOError):
            return False
        remove_directory(directory)
        return True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(directory: Path, how: int) -> int | None:
    try:
        return os.open(directory / MANIFEST, how)
    except OSError:  # none, so that nobody can read the checkpoint, or one that is not ours to lock
        return None
