"""The reference of the commands, from the parsers that they really use."""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from generator.literals import ROOT, plain
from megafuser.cli.parser import build_parser

_INTRODUCTION = """\
# Commands

`megafuser COMMAND --help`, `python -m megafuser COMMAND --help` and `tools/NAME.py --help` say the same. One process,
`torchrun --nproc-per-node N -m megafuser …` and `srun python -m megafuser …` all work, and mean the same, for what
computes with a model; `config`, `plan` and `status` run in one process. What is not an option replaces a key of the
[configuration](configuration.md): `warmup.steps=20`.

| exit code | means |
|---|---|
| 0 | done; a stage that is finished already says so |
| 2 | bad input: one line on standard error begins `megafuser: error:` and says what to do |
| 75 | stopped early, by a signal, the time limit or a full disk: the same command goes on. An error line says if \
the last state could not be saved |
| 1 | training cannot continue (non-finite loss, lost rank), a machine fails in the preflight, or a library ends \
the command; one line says what. Of `serve`: its engine failed, with a traceback |
| 3 | of `megafuser plan --check` alone: a stage does not fit |
| 130 | interrupted (Ctrl-C): [what was saved](../stopping.md) |
| another | a bug, or a machine's failure. Under torchrun the launcher's own code is 1 for all of these |

`python -m megafuser.preflight` is `megafuser preflight` ([what it looks at](../../slurm/README.md)). This page
is made from the commands' parsers whenever the site is built.
"""


class _Found(BaseException):
    """Carries a parser out of a program that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of `megafuser`'s commands, by name."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise LookupError("megafuser has no commands")


def tools() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the programs in tools/, by path."""
    return {f"tools/{path.name}": parser_of(path) for path in sorted((ROOT / "tools").glob("*.py"))}


def parser_of(path: Path) -> argparse.ArgumentParser:
    """The parser of a program with a function `main(arguments)`; nothing of the program runs beyond making it."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return captured(lambda: program.main([]))


def captured(run: Callable[[], Any]) -> argparse.ArgumentParser:
    """The parser that a program comes to parse with.

    Raises:
        LookupError: it ended without one.
    """

    def found(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(self)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", found),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", found),
    ):
        try:
            run()
        except _Found as carried:
            return carried.parser
    raise LookupError("the program made no parser")


def page() -> str:
    """The page, a section for each command and tool."""
    sections = [_section(f"megafuser {name}", parser) for name, parser in commands().items()]
    sections += [_section(name, parser) for name, parser in tools().items()]
    return "\n".join([_INTRODUCTION, *sections])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [
        f"## {name}\n",
        f"{_text(parser.description or '')}\n",
        "| argument | default | meaning |",
        "|---|---|---|",
    ]
    lines += [_row(action) for action in _arguments(parser)]
    return "\n".join(lines) + "\n"


def _arguments(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    shown = value if isinstance(value, str) else " ".join(value)
    many = " …" if action.nargs in ("+", "*") else ""
    name = f"{', '.join(action.option_strings)} {shown}{many}".strip() or action.dest
    is_default = action.default not in (None, False, argparse.SUPPRESS, [])
    default = "*required*" if action.required else (f"`{action.default}`" if is_default else "")
    cells = (f"`{name}`", default, _text(action.help or ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _text(text: str) -> str:
    return plain(text.replace("%%", "%").strip())
