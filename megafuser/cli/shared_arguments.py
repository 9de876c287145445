"""What the commands' arguments have in common: how a mistake in one is told, types of values, help texts."""

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from megafuser.errors import UserError

Number = TypeVar("Number", int, float)

OVERRIDES = """\
A key=value replaces one key of the configuration, e.g. warmup.steps=20 parallel.tensor=2
optimizer.betas=[0.9,0.99] specialists.0.template=plain. Relative paths start at the working directory.
"""

LAUNCH = """\
One process, `torchrun --nproc-per-node N -m megafuser ...` and `srun python -m megafuser ...` mean the same.
"""

EXIT_CODES = """\
Exit codes: 0 done; 1 cannot go on (losses that are no numbers, a lost rank); 2 bad input, with one line that says what
to do; 75 stopped early, run the same command again to go on.
"""

CHECKPOINT = "a step's directory, a stage's (its latest) or a run's (the latest of its last stage)"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other mistake of the user."""

    def error(self, message: str) -> NoReturn:
        """Raises it as a `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def add_command(
    subparsers: "argparse._SubParsersAction[Parser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    example: str,
    usage: str | None = None,
    has_config: bool = True,
) -> argparse.ArgumentParser:
    """A command with its help: what it is for, an example, how it is launched, how it ends."""
    command = subparsers.add_parser(
        name,
        help=summary,
        usage=usage or f"megafuser {name} --config FILE [key=value ...]",
        description=description,
        epilog=f"{OVERRIDES}\nExample:\n  {example}\n\n{LAUNCH}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if has_config:
        command.add_argument("--config", metavar="FILE", required=True, help="the run's configuration (YAML)")
    command.set_defaults(run=run, parser=command)
    return command


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _parsed(text, int, lambda number: number >= 1, "a whole number of at least 1")


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    return _parsed(text, int, lambda number: number >= 0, "a whole number of at least 0")


def port(text: str) -> int:
    """A port to listen at; 0 takes a free one."""
    return _parsed(text, int, lambda number: 0 <= number < 65536, "a whole number from 0 to 65535")


def number(text: str) -> float:
    """A finite number."""
    return _parsed(text, float, math.isfinite, "a number")


def above_zero(text: str) -> float:
    """A finite number above 0."""
    return _parsed(text, float, lambda number: 0 < number < math.inf, "a number above 0")


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    return _parsed(text, float, lambda number: 0 < number <= 1, "above 0 and at most 1")


def duration(text: str) -> float:
    """Seconds of HH:MM or HH:MM:SS."""
    match = re.fullmatch(r"(\d+):([0-5]?\d)(?::([0-5]?\d))?", text)
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"must be HH:MM or HH:MM:SS, above 0, not {text!r}")
    return float(seconds)


def _parsed(text: str, convert: Callable[[str], Number], holds: Callable[[Number], bool], what: str) -> Number:
    try:
        value = convert(text)
    except ValueError:
        pass
    else:
        if holds(value):
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
