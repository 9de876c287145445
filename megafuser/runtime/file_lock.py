"""Locks on files that keep other processes out, where the file system has locks.

Checkpoints that are read have locks of their own: `checkpoint.read_lock`.
"""

import fcntl
from typing import IO, Any


def lock(file: IO[Any]) -> None:
    """Keeps other processes from the same lock, as long as the file is open; where there are no locks, nobody.

    Args:
        file: open to be written, as locks on a file in the network need it.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return
