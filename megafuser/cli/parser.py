"""The arguments of every command, and the help that explains them."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import NoReturn

from megafuser import __version__
from megafuser.cli import commands
from megafuser.errors import UserError

_OVERRIDES = """\
A key=value replaces one key of the configuration, e.g. warmup.steps=20 parallel.tensor=2
optimizer.betas=[0.9,0.99] specialists.0.template=plain. Relative paths start at the working directory.
"""

_LAUNCH = """\
One process, `torchrun --nproc-per-node N -m megafuser ...` and `srun python -m megafuser ...` mean the same.
"""

_EXIT_CODES = """\
Exit codes: 0 done; 2 bad input, with one line that says what to do; 75 stopped early with everything saved, run the
same command again to go on.
"""

_WARMUP = """\
Stage 1: trains the gate that mixes the specialists' logits; the specialists stay as they are.

Writes checkpoints to RUN_DIR/warmup/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl, curves to
RUN_DIR/tensorboard/ and the resolved configuration to RUN_DIR/config.yaml. Run again, it goes on from the last
checkpoint; a finished stage says so and ends at once.
"""

_JOINT = """\
Stage 2: trains the gate and all specialists, from the run's last warm-up checkpoint or from joint.init_from.

Writes checkpoints to RUN_DIR/joint/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl and curves to
RUN_DIR/tensorboard/. Run again, it goes on from the last checkpoint; a finished stage says so and ends at once.
"""

_REPORT = """\
Measures a checkpoint on the validation samples: per domain the cross-entropy of each specialist alone, of their
uniform mixture, of the fused model and of the best specialist at each token; the gate's mean weights and its entropy.

Writes OUT/report.json and OUT/report.html, a page of its own with plots and texts coloured by the gate.
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other mistake of the user."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `megafuser`, a sub-parser for each command."""
    parser = _Parser(
        prog="megafuser",
        description="Fuses finished language models: all of them active on every token, a gate mixes their logits.",
        epilog=f"`megafuser COMMAND --help` explains a command.\n\n{_LAUNCH}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"megafuser {__version__}")
    parser.set_defaults(parser=parser, run=_no_command)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=_Parser)
    _add_command(
        subparsers,
        "warmup",
        commands.warmup,
        summary="stage 1: train the gate, specialists frozen",
        description=_WARMUP,
        example="megafuser warmup --config config.yaml warmup.steps=20",
    )
    _add_command(
        subparsers,
        "joint",
        commands.joint,
        summary="stage 2: train everything",
        description=_JOINT,
        example="megafuser joint --config config.yaml joint.lr=1e-5",
    )
    report = _add_command(
        subparsers,
        "report",
        commands.report,
        summary="compare the fused model with its specialists, domain by domain",
        description=_REPORT,
        example="megafuser report --checkpoint runs/ultrafuser-13b --config config.yaml --out report",
        usage="megafuser report --checkpoint DIR --config FILE --out DIR [options] [key=value ...]",
    )
    report.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        help="a step's directory, a stage's (its latest) or a run's (the latest of its last stage)",
    )
    report.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    report.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    report.add_argument(
        "--max-samples", metavar="N", type=_positive, help="validation samples per domain at most (default: all)"
    )
    report.add_argument("--tensor", metavar="N", type=_positive, help="parallel.tensor, for this command")
    report.add_argument("--pipeline", metavar="N", type=_positive, help="parallel.pipeline, for this command")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; what is no option is an override, wherever it stands.

    Raises:
        UserError: an unknown command or option, a missing or wrong value.
    """
    arguments, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("-"):
            options = [option for action in arguments.parser._actions for option in action.option_strings]
            close = difflib.get_close_matches(argument.split("=")[0], options, n=1)
            nearest = f", the nearest valid one is {close[0]}" if close else ""
            arguments.parser.error(f"unknown option {argument}{nearest}")
    arguments.overrides = rest
    return arguments


def _add_command(
    subparsers: "argparse._SubParsersAction[_Parser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    example: str,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(
        name,
        help=summary,
        usage=usage or f"megafuser {name} --config FILE [key=value ...]",
        description=description,
        epilog=f"{_OVERRIDES}\nExample:\n  {example}\n\n{_LAUNCH}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--config", metavar="FILE", required=True, help="the run's configuration (YAML)")
    command.set_defaults(run=run, parser=command)
    return command


def _no_command(arguments: argparse.Namespace) -> NoReturn:
    raise UserError("give a command: warmup, joint or report; see megafuser --help")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number
