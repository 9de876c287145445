"""Ranks that are forks of one process, which has imported what they all need: that takes longer than many a test.

Usage: `-m tests.parallel.forked [MODULE]`, once for all tests, see `launch`; the module's `install` is called before
anything else is imported. Each line of standard input starts ranks: it is the JSON of `start`'s arguments. The answer
is a line with the process that they are forks of, which leads a session of its own, and, when all have ended, a line
with its exit code. An empty line, or the end of standard input, ends it.

A rank runs a module as `python -m` does, with `RANK`, `LOCAL_RANK` and `WORLD_SIZE` set; what it says is in
`DIRECTORY/RANK.out` and `DIRECTORY/RANK.err`. Once a rank fails, the others are ended, since they may wait for it; the
exit code is 1 then.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Here, before the ranks are forked, and not in each of them where it is used.
NEEDED = (
    "megafuser.report.command",
    "megafuser.training.reshard",
    "megafuser.training.stages",
    "megafuser.watching.gate_pictures",
    "tests.parallel.layout_cases",
    "transformers.models.auto.tokenization_auto",
)


def say_into(directory: Path, name: str) -> None:
    """What this process says from now on goes to files of that name."""
    for stream, kind in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(directory / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(file, stream.fileno())
        os.close(file)


def run_rank(rank: int, world: int, directory: Path, module: str, arguments: Sequence[str]) -> None:
    """In a fork: the module as the main program."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    say_into(directory, str(rank))
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


def start(world: int, directory: str, environment: Mapping[str, str], module: str, arguments: Sequence[str]) -> int:
    """In a fork: starts the ranks and waits for them; in a rank, runs it."""
    os.setsid()
    say_into(Path(directory), "all")
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module(module)
    ranks: set[int] = set()
    for rank in range(world):
        if process := os.fork():
            ranks.add(process)
        else:
            run_rank(rank, world, Path(directory), module, arguments)
            return 0
    return wait(ranks)


def main() -> int:
    """Starts what is asked for, one after the other; in a fork, gives its exit code."""
    # what a library prints while it is imported is no answer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for module in sys.argv[1:]:
        importlib.import_module(module).install()
    for name in NEEDED:
        importlib.import_module(name)
    # a collection in a rank would look at all of it, and get a copy of it to write down what it saw
    gc.freeze()
    while line := sys.stdin.readline().strip():
        if process := os.fork():
            print(process, file=answers, flush=True)
            _, status = os.waitpid(process, 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
        else:
            return start(**json.loads(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
