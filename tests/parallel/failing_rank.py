"""A command of megafuser in which the disk of rank 1 is full for its first save.

Usage, under torchrun: `-m tests.parallel.failing_rank COMMAND [ARGUMENT ...]`.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from megafuser.checkpoint.snapshot import Snapshot
from megafuser.cli.main import main

write, saves = Snapshot.write, itertools.count()


def full_at_first(self: Snapshot, directory: Path, *arguments: Any) -> Any:
    """Writes, but for rank 1's first time."""
    if os.environ["RANK"] == "1" and next(saves) == 0:
        raise OSError(28, "No space left on device")
    return write(self, directory, *arguments)


if __name__ == "__main__":
    Snapshot.write = full_at_first  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
