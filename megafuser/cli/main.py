"""`megafuser COMMAND`: from the arguments to an exit code."""

import re
import sys
from collections.abc import Callable, Sequence

from megafuser.cli.parser import build_parser, parse
from megafuser.errors import UserError
from megafuser.runtime.world import detect_world

BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name; the process's own where none are given.

    Returns:
        The exit code: 0 done, 2 bad input (one line on standard error), 130 interrupted, 75 stopped early with
        everything saved. Anything else that goes wrong is a bug and keeps its traceback.
    """

    def command() -> int:
        arguments = parse(build_parser(), sys.argv[1:] if argv is None else argv)
        code: int = arguments.run(arguments)
        return code

    return run_guarded(command)


def run_guarded(command: Callable[[], int]) -> int:
    """Runs a command and turns a user's mistake into one line and exit code 2; the tools share it.

    Returns:
        The command's exit code, or 2 (bad input) or 130 (interrupted).
    """
    try:
        return command()
    except UserError as error:
        _print_error(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as done:
        # What argparse does after --help and --version.
        return done.code if isinstance(done.code, int) else 0


def console() -> None:
    """The `megafuser` command and `python -m megafuser`."""
    sys.exit(main())


def _print_error(error: UserError) -> None:
    """One line, from one rank: all ranks find the same mistake."""
    try:
        rank = detect_world().rank
    except UserError:
        rank = 0
    if rank == 0:
        message = re.sub(r"\s*[\r\n]+\s*", " ", str(error)).strip()
        print(f"megafuser: error: {message}", file=sys.stderr, flush=True)
