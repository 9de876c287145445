"""What the commands' arguments have in common: how a mistake in one is told, types of values, help texts.

What opens a checkpoint is in `cli.model_arguments`, what the tools share in `cli.tool`.
"""

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from megafuser.errors import UserError

Number = TypeVar("Number", int, float)

_WIDTH = 119  # letters of a line of help

LAUNCH = "One process, `torchrun --nproc-per-node N -m megafuser ...` and `srun python -m megafuser ...` mean the same."
ONE_PROCESS = "Runs in one process."

# exit codes, as a command's help lists those that it has
DONE = "0 done"
CANNOT_CONTINUE = "1 training cannot continue (non-finite loss, lost rank)"
BAD_INPUT = "2 bad input, with one line that says what to do"
NOT_SAVED = "75 what was made could not be saved (a full disk)"
STOPPED_EARLY = "75 stopped early, run the same command again to go on"

# overrides that the help shows: of a run, and of what only uses its model
RUN_OVERRIDES = "warmup.steps=20 parallel.tensor=2 optimizer.betas=[0.9,0.99] specialists.0.template=plain"
MODEL_OVERRIDES = "device=cpu"

CHECKPOINT = "a step's directory, a stage's (its latest) or a run's (the latest of its last stage)"


class Parser(argparse.ArgumentParser):
    """A parser of `megafuser`, of its commands and of the programs in `tools/`.

    It shows texts as they are written, takes no part of an option's name for the option, and reports a wrong argument
    as every other mistake of the user.
    """

    def __init__(self, **settings: Any) -> None:
        """Takes argparse's settings: which of them argparse itself passes to a command's parser depends on Python."""
        ours: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**ours | settings)

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
    overrides: str | None = RUN_OVERRIDES,
    launch: str = LAUNCH,
    exits: Sequence[str] = (DONE, BAD_INPUT),
) -> argparse.ArgumentParser:
    """A command with its help: what it is for, an example, how it is launched, how it ends.

    Args:
        subparsers: of `megafuser`.
        name: the command's.
        run: what it does.
        summary: in the list of commands.
        description: in its own help.
        example: a command line.
        usage: by default that of a command with a configuration and no other argument.
        has_config: whether it needs `--config`.
        overrides: some that it takes, for the help; None: it takes none.
        launch: on how many processes it runs.
        exits: the exit codes that it has.
    """
    parts = [f"Example:\n  {example}", launch, exit_codes(*exits)]
    if overrides is not None:
        said = f"A key=value replaces one key of the configuration, e.g. {overrides}."
        parts.insert(0, _filled(f"{said} Relative paths start at the working directory."))
    command = subparsers.add_parser(
        name,
        help=summary,
        usage=usage or f"megafuser {name} --config FILE [key=value ...]",
        description=description,
        epilog="\n\n".join(parts),
    )
    if has_config:
        command.add_argument("--config", metavar="FILE", required=True, help="the run's configuration (YAML)")
    command.set_defaults(run=run, parser=command)
    return command


def exit_codes(*exits: str) -> str:
    """The line of a help text about them."""
    return _filled(f"Exit codes: {'; '.join(exits)}.")


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


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


def ngram_size(text: str) -> int:
    """Words in a row that make a leak."""
    return _parsed(text, int, lambda number: 3 <= number <= 100, "from 3 to 100 words")


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
