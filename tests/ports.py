"""Ports for tests, which run in several processes at once: each process has a block of them for itself.

A port that is free now and listened at some seconds later, when a rank has imported torch, would otherwise be drawn by
another process in between.
"""

import contextlib
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from megafuser.runtime.file_lock import lock

# Below the range from which systems give ports to whoever asks for any: gloo asks for many, and took one that was
# meant for a later command. Slurm's jobs take theirs from the same range.
FIRST, LAST = 20000, 31999
_BLOCK = 500
_held: list[IO[bytes]] = []


def free_ports(count: int) -> list[str]:
    """Ports of this process's own block that nothing listens at right now; none comes again before all others have."""
    free = (str(port) for port in itertools.islice(_own_ports(), _BLOCK) if _is_free(port))
    found = list(itertools.islice(free, count))
    assert len(found) == count, "this process's ports are all in use"
    return found


def reserve_block() -> Sequence[int]:
    """A run of neighbouring ports, all of them free now, that no other process is given until this one ends.

    Raises:
        RuntimeError: none is left.
    """
    directory = Path(tempfile.gettempdir()) / f"megafuser-test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    starts = range(FIRST, LAST + 1, _BLOCK)
    for first in random.sample(starts, len(starts)):
        block = range(first, first + _BLOCK)
        file = (directory / str(first)).open("wb")
        with contextlib.suppress(BlockingIOError):
            lock(file)
            if all(map(_is_free, block)):
                _held.append(file)
                return block
        file.close()
    raise RuntimeError(f"other processes hold all blocks of ports; see {directory}")


def _is_free(port: int) -> bool:
    """Whether nothing on this machine listens at a port right now, whatever the address."""
    try:
        with socket.create_server(("", port)):
            return True
    except OSError:
        return False


@functools.cache
def _own_ports() -> Iterator[int]:
    block = reserve_block()
    return itertools.cycle(random.sample(block, len(block)))
