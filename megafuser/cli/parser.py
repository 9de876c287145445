"""The parser of `megafuser`, put together from its commands, and how a command line is parsed.

A command's own options are in `cli.commands`; errors become exit codes in `cli.main`.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from megafuser import __version__
from megafuser.cli.commands import COMMANDS
from megafuser.cli.shared_arguments import (
    BAD_INPUT,
    CANNOT_CONTINUE,
    DONE,
    STOPPED_EARLY,
    Parser,
    exit_codes,
)
from megafuser.config.values import nearest
from megafuser.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The parser of `megafuser`, a sub-parser for each command."""
    parser = Parser(
        prog="megafuser",
        description="Fuses finished language models: all of them active on every token, a gate mixes their logits.",
        epilog="`megafuser COMMAND --help` explains a command, and says whether it runs on many processes.\n\n"
        + exit_codes(DONE, CANNOT_CONTINUE, BAD_INPUT, STOPPED_EARLY),
    )
    parser.add_argument("--version", action="version", version=f"megafuser {__version__}")
    parser.set_defaults(parser=parser, run=_no_command)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)
    for add in COMMANDS:
        add(subparsers)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; what is not an option is an override, wherever it stands.

    Raises:
        UserError: an unknown command or option, a missing or wrong value.
    """
    arguments, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("-"):
            options = [option for action in arguments.parser._actions for option in action.option_strings]
            arguments.parser.error(f"unknown option {argument}; {nearest(argument.split('=')[0], options)}")
    arguments.overrides = rest
    return arguments


def _no_command(arguments: argparse.Namespace) -> NoReturn:
    *most, last = next(action.choices for action in arguments.parser._actions if isinstance(action.choices, dict))
    raise UserError(f"give a command: {', '.join(most)} or {last}; see megafuser --help")
