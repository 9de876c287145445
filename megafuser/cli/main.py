"""`megafuser COMMAND`: from the arguments to an exit code.

Parsing is `cli.parser`; the commands are in `cli.commands`.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from megafuser.cli.parser import build_parser, parse
from megafuser.errors import (
    BAD_INPUT,
    CANNOT_GO_ON,
    STOPPED_EARLY,
    NotSavedError,
    StoppedEarly,
    TrainingFailedError,
    UserError,
    full_disks_told,
)
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import World, detect_world

INTERRUPTED = 130

_RANK_ZERO_SPEAKS_WITHIN = 30.0  # seconds
_OTHERS_LEAVE_WITHIN = 10.0  # seconds, after a barrier and rank 0's own clearing up


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name; the process's own where none are given.

    Returns:
        The exit code: 0 done, 1 training cannot continue (non-finite loss, lost rank), 2 bad input, both with one line
        on standard error, 3 a plan that does not fit (`--check`), 75 stopped early with everything saved, or a full
        disk, 130 interrupted. Anything else that goes wrong is a bug and keeps its traceback.
    """

    def command() -> int:
        arguments = parse(build_parser(), sys.argv[1:] if argv is None else argv)
        code: int = arguments.run(arguments)
        return code

    return run_guarded(command)


def run_guarded(command: Callable[[], int]) -> int:
    """Runs a command and turns a user's mistake, or a full disk, into one line and its exit code; the tools share it.

    Returns:
        The command's exit code, or 1 (training cannot go on), 2 (bad input), 75 (stopped early, or not saved) or 130
        (interrupted).
    """
    try:
        # Of another rank the traceback is worth more: it comes at once, and rank 0 knows nothing of that disk.
        with full_disks_told() if _world().rank == 0 else nullcontext():
            return command()
    except UserError as error:
        _print_error(error)
        return BAD_INPUT
    except NotSavedError as error:
        _print_error(error)
        return _leave_last() if _world().rank == 0 else STOPPED_EARLY
    except StoppedEarly:
        return _leave_last()
    except TrainingFailedError as error:
        _print_error(error)
        return CANNOT_GO_ON
    except KeyboardInterrupt:
        if _world().rank == 0:
            print("megafuser: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except SystemExit as done:
        # What argparse does after --help and --version, and libraries that do not know that they are one.
        if isinstance(done.code, int):
            return done.code
        _print_error(done if done.code else RuntimeError("a library ended the command; see what it said above"))
        return CANNOT_GO_ON


def _leave_last() -> int:
    """Rank 0's code is 75; the others have left with 0 by then, so that no launcher ends them for rank 0's code."""
    world = _world()
    if world.rank > 0:
        if world.launcher == "slurm":
            # At once: the interpreter takes its time to end, and a task that srun has to end has 143 for a code.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        return 0
    if world.size > 1:
        with leaving_at_a_signal(world):  # what asks twice, as the end of a grace time does, shall not change the code
            time.sleep(_OTHERS_LEAVE_WITHIN)
    return STOPPED_EARLY


def console() -> None:
    """The `megafuser` command and `python -m megafuser`."""
    sys.exit(main())


def _world() -> World:
    """This process's place; where the launcher's variables are wrong, which may be what is to be said, alone."""
    try:
        return detect_world()
    except UserError:
        return World(rank=0, size=1, local_rank=0, launcher="single", local_size=1)


def _print_error(error: BaseException) -> None:
    """One line, from one rank: as a rule all ranks find the same mistake, and rank 0 says it.

    A launcher ends all ranks when the first one leaves with an error, so the others give rank 0 the time to say why.
    Who is still there after that has found a mistake of its own, such as a file that its node lacks.
    """
    world = _world()
    message = re.sub(r"\s*[\r\n]+\s*", " ", str(error)).strip()
    if world.rank > 0:
        with leaving_at_a_signal(world):
            time.sleep(_RANK_ZERO_SPEAKS_WITHIN)
        message = f"rank {world.rank}: {message}"
    print(f"megafuser: error: {message}", file=sys.stderr, flush=True)
