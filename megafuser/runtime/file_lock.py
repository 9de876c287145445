"""Locks on files that keep other processes out, where the file system has locks.

What follows where it has none is decided by who asks. Checkpoints that are read have locks of their own:
`checkpoint.read_lock`.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any


def attempt(file: IO[Any] | int, *, shared: bool = False, wait: bool = False) -> OSError | None:
    """Tries to get a lock, which lasts as long as the file is open.

    Args:
        file: or its descriptor; open to be written, as locks on a file in the network need it, unless it is shared.
        shared: others may have shared ones too.
        wait: for those who have it now.

    Returns:
        None: it is ours. A BlockingIOError: somebody else has one. Another error: the file system has none.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def lock(file: IO[Any]) -> None:
    """Keeps other processes from the same lock, as long as the file is open; where there are no locks, nobody.

    Args:
        file: as for `attempt`.

    Raises:
        BlockingIOError: another process has it.
    """
    refused = attempt(file)
    if isinstance(refused, BlockingIOError):
        raise refused


def has_name(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at a path, and not one that was removed since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # the second is what the network says of a removed one
            return False
        raise
