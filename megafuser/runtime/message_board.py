"""Messages between ranks that threads may send: through the process group's store, without collectives.

A collective from a second thread would meet those of training on the same group in another order on each rank, and
wait for ever. The store (TCP to rank 0) has no order to keep. Work whose outcome all ranks get by
collectives is `runtime.distributed`.
"""

import itertools
import pickle
import threading
import time
import zlib
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

_POLL_SECONDS = 0.02
_numbers = itertools.count()


class NothingPostedError(Exception):
    """Nothing was posted in time, or somebody asked for the waiting to end."""


class Board:
    """A place for messages by key; every rank makes its boards in the same order.

    Messages are pickled: they come from the ranks of this job, as those of PyTorch's object collectives do. They must
    be small, below a few megabytes.
    """

    def __init__(self) -> None:
        """An empty board; needs the process group."""
        self._store = dist.distributed_c10d._get_default_store()
        self._name = f"megafuser/board/{next(_numbers)}"

    def post(self, key: str, message: Any) -> None:
        """Puts a message up, once for each key."""
        self._store.set(self._place(key), zlib.compress(pickle.dumps(message)))  # type: ignore[arg-type]

    def wait(self, keys: Sequence[str], stop: threading.Event, seconds: float) -> tuple[str, Any]:
        """Waits until there is a message at one of the keys.

        Args:
            keys: of messages, the most wanted first.
            stop: ends the waiting.
            seconds: ends it too.

        Returns:
            The first of the keys that has a message, and the message.

        Raises:
            NothingPostedError: it ended without one.
        """
        deadline = time.monotonic() + seconds
        while True:
            for key in keys:
                if self._store.check([self._place(key)]):
                    return key, pickle.loads(zlib.decompress(self._store.get(self._place(key))))
            if time.monotonic() > deadline or stop.wait(_POLL_SECONDS):
                raise NothingPostedError(", ".join(keys))

    def remove(self, key: str) -> None:
        """Takes a message down, when everybody has read it."""
        self._store.delete_key(self._place(key))

    def _place(self, key: str) -> str:
        return f"{self._name}/{key}"
