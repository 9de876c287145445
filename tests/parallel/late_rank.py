"""A command of megafuser whose rank 1 hears late how a save has ended, when rank 0 may have left.

Usage, as ranks that meet at rank 0 itself: `-m tests.parallel.late_rank PORT COMMAND [ARGUMENT ...]`.
"""

import os
import sys
import time
from typing import Any

from megafuser.cli.main import main
from megafuser.runtime.message_board import Board

wait = Board.wait


def wait_late(self: Board, keys: Any, *arguments: Any) -> Any:
    """Looks for an outcome some seconds after it could be there."""
    if os.environ["RANK"] == "1" and list(keys) == ["outcome"]:
        time.sleep(4.0)
    return wait(self, keys, *arguments)


if __name__ == "__main__":
    os.environ["MASTER_PORT"] = sys.argv[1]
    Board.wait = wait_late  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
