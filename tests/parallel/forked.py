"""Ranks that are forks of one process, which has imported what they all need: that takes longer than many a test.

Usage: `-m tests.parallel.forked WORLD DIRECTORY MODULE [ARGUMENT ...]`. Runs the module in each rank as `python -m`
does, with `RANK`, `LOCAL_RANK` and `WORLD_SIZE` set; what a rank says on standard error is in `DIRECTORY/RANK.err`.
Once a rank fails, the others are ended, since they may wait for it; the exit code is 1 then.
"""

import contextlib
import importlib
import os
import runpy
import signal
import sys
from pathlib import Path


def run_rank(rank: int, world: int, directory: Path, module: str, arguments: list[str]) -> None:
    """In a fork: the module as the main program."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    errors = os.open(directory / f"{rank}.err", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(errors, sys.stderr.fileno())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def wait(ranks: set[int]) -> int:
    """Waits for all processes; gives the exit code."""
    code = 0
    while ranks:
        process, status = os.wait()
        ranks.remove(process)
        if status and not code:
            code = 1
            for other in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return code


def main() -> int:
    """Starts the ranks and waits for them; in a rank, runs it."""
    world, directory, module = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    arguments = sys.argv[4:]
    importlib.import_module(module)
    ranks: set[int] = set()
    for rank in range(world):
        if process := os.fork():
            ranks.add(process)
        else:
            run_rank(rank, world, directory, module, arguments)
            return 0
    return wait(ranks)


if __name__ == "__main__":
    sys.exit(main())
