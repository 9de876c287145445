"""Command lines of the documentation, checked by the parsers that the programs really use; nothing is run."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from unittest import mock

from generator.commands import captured, commands, tools

from megafuser.cli.parser import parse
from megafuser.config.error_messages import key_problem
from megafuser.errors import UserError
from tests.parallel.launch import ROOT

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.S)
# Programs that are not ours: harmless here, or of no use without what the block must then say that it needs.
_CHECKS = {"codespell", "lint-imports", "mkdocs", "mypy", "pytest", "ruff", "shellcheck", "vulture"}
_OTHERS = _CHECKS | {
    "cd",
    "export",
    "grep",
    "mkdir",
    "nvidia-smi",
    "openssl",
    "scontrol",
    "source",
    "squeue",
    "tail",
    "tensorboard",
}
_NEEDING = {
    "curl": "network",
    "docker": "network",
    "git": "network",
    "hf": "network",
    "lm_eval": "network",
    "pip": "network",
}
_SHELL = {"for", "do", "done", "if", "then", "fi"}
_SCRIPTS = {"warmup", "joint", "report", "evaluate", "serve"}


class Wrong(Exception):
    """Why a command line cannot work."""


def command_lines(text: str) -> Iterator[str]:
    """The commands of a shell block, one by one; those in `$(…)` after the one that holds them."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        inner = re.findall(r"\$\(([^()]*)\)", line)
        for part in re.split(r"\s(?:&&|\|\||\||;)\s|;\s", re.sub(r"\$\([^()]*\)", "VALUE", _uncommented(line))):
            if part.strip():
                yield part.strip()
        yield from (part for part in inner if part.strip())


def _uncommented(line: str) -> str:
    return re.sub(r"(^|\s)#\s.*$", "", line)


def check(command: str, needs: frozenset[str], *, whole: bool = True) -> bool:
    """Checks one command.

    Args:
        command: as it would be typed.
        needs: what its block says that it needs.
        whole: whether arguments that a command requires must be there.

    Returns:
        Whether it is one of ours.

    Raises:
        Wrong: it cannot work.
    """
    words = shlex.split(command)
    while words and (words[0] in _SHELL or _ASSIGNMENT.fullmatch(words[0])):
        words = [] if words[0] == "for" else words[1:]
    if not words:
        return False
    program, rest = words[0], words[1:]
    if program in ("torchrun", "srun"):
        return _launched(rest, needs, whole)
    if program == "$run":  # a launcher that the block has put into a variable
        _megafuser(rest, whole)
        return True
    if program == "sbatch":
        return _submitted(rest, needs, whole)
    if program in ("bash", "python", "python3"):
        return _interpreted(program, rest, needs, whole)
    if program == "megafuser":
        _megafuser(rest, whole)
        _check_tasks(rest, needs, whole)
    elif program.startswith("tools/") and program.endswith(".py"):
        _tool(program, rest, whole)
    elif "/" in program:
        _script(program, needs, whole)
    elif program in _NEEDING:
        if whole and not needs & {_NEEDING[program]}:
            raise Wrong(f"{program} needs {_NEEDING[program]}, which the block does not say (`# needs: …`)")
        return False
    elif program not in _OTHERS:
        raise Wrong(f"{program} is no program that this test knows")
    else:
        return False
    return True


def program_of(command: str) -> str | None:
    """Which of our programs a command starts: `megafuser plan`, `tools/build_data.py`, a module; None for others."""
    if match := re.search(r"(?:^|\s)(?:-m )?megafuser (\w+)", command):
        return f"megafuser {match[1]}"
    if match := re.search(r"slurm/(\w+)\.sh", command):
        return f"megafuser {match[1]}"
    if match := re.search(r"-m ((?:megafuser|tests)\.[\w.]+)", command):
        return match[1]
    match = re.search(r"(?:tools|benchmarks|examples|tests)/[\w./-]+\.(?:py|sh)", command)
    return match[0] if match else None


def _launched(words: Sequence[str], needs: frozenset[str], whole: bool) -> bool:
    many = "--nproc-per-node" in words and int(words[list(words).index("--nproc-per-node") + 1]) > 4
    if whole and many and not any("GPU" in need for need in needs):
        raise Wrong("so many processes are for GPUs, which the block does not say (`# needs: …`)")
    if "-m" not in words:
        raise Wrong("a launcher without -m MODULE")
    place = list(words).index("-m")
    return _interpreted("python", words[place:], needs, whole)


def _submitted(words: Sequence[str], needs: frozenset[str], whole: bool) -> bool:
    scripts = [index for index, word in enumerate(words) if re.fullmatch(r"slurm/\w+\.sh", word)]
    if not scripts:
        raise Wrong("sbatch without a script of slurm/")
    if whole and not any("cluster" in need for need in needs):
        raise Wrong("sbatch needs a cluster, which the block does not say (`# needs: …`)")
    script = words[scripts[0]]
    _exists(script)
    name, arguments = script[len("slurm/") : -len(".sh")], list(words[scripts[0] + 1 :])
    if name not in _SCRIPTS:
        raise Wrong(f"{script} is not a job")
    if name in ("warmup", "joint") and "--config" not in arguments:
        arguments += ["--config", "examples/ultrafuser-13b/config.yaml"]
    _megafuser([name, *arguments], whole)
    _check_tasks([name, *arguments], needs, whole)
    return True


def _interpreted(program: str, words: Sequence[str], needs: frozenset[str], whole: bool) -> bool:
    if program == "bash":
        _script(words[0], needs, whole)
    elif words[0] == "-m" and words[1] == "megafuser":
        _megafuser(words[2:], whole)
        _check_tasks(words[2:], needs, whole)
    elif words[0] == "-m" and words[1] == "megafuser.preflight":
        _megafuser(["preflight", *words[2:]], whole)
    elif words[0] == "-m" and words[1] == "torch.distributed.run":
        place = next(index for index, word in enumerate(words) if word.endswith(".py"))
        return _interpreted("python", words[place:], needs, whole)
    elif words[0] == "-m":
        _module(words[1], words[2:])
    elif words[0] == "-c":
        return False
    elif words[0].startswith("tools/"):
        _tool(words[0], words[1:], whole)
    else:
        _exists(words[0])
        _program(words[0], words[1:])
    return True


def _script(path: str, needs: frozenset[str], whole: bool) -> None:
    """A script of the repository; one that makes the environment where it is absent has to download packages."""
    _exists(path)
    if whole and "network" not in needs and "venv.sh" in path + (ROOT / path).read_text(encoding="utf-8"):
        raise Wrong(f"{path} needs network, which the block does not say (`# needs: …`)")


def _check_tasks(words: Sequence[str], needs: frozenset[str], whole: bool) -> None:
    """The harness's own tasks have their data on the hub."""
    theirs = words[:1] == ["evaluate"] and "--tasks" in words and "--include-path" not in words
    if whole and theirs and "network" not in needs:
        raise Wrong("evaluate without --include-path needs network, which the block does not say (`# needs: …`)")


def _megafuser(words: Sequence[str], whole: bool) -> None:
    if list(words) in (["--help"], ["--version"], []):
        return
    if words[0] == "COMMAND" or list(words[1:]) == ["--help"]:
        return
    known = commands()
    if words[0] not in known:
        raise Wrong(f"megafuser has no command {words[0]}")
    _parse(known[words[0]], words[1:], whole)


def _tool(path: str, words: Sequence[str], whole: bool) -> None:
    _exists(path)
    if list(words) != ["--help"]:
        _parse(_tools()[path], words, whole)


def _module(module: str, words: Sequence[str]) -> None:
    path = module.replace(".", "/")
    path = f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"
    _exists(path)
    _program(path, words)


def _program(path: str, words: Sequence[str]) -> None:
    """A program of Python: its options, where it has a parser."""
    if "argparse" in (ROOT / path).read_text(encoding="utf-8"):
        _parse(_parser_of(path), words, whole=True)


@cache
def _tools() -> dict[str, argparse.ArgumentParser]:
    return tools()


@cache
def _parser_of(path: str) -> argparse.ArgumentParser:
    module = path.removesuffix("/__main__.py").replace("/", ".")

    def run() -> None:
        if path.endswith("/__main__.py"):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            with mock.patch.object(sys, "path", [str((ROOT / path).parent), *sys.path]):
                runpy.run_path(str(ROOT / path), run_name="__main__")

    with mock.patch.object(sys, "argv", [path]):
        return captured(run)


def _parse(parser: argparse.ArgumentParser, words: Sequence[str], whole: bool) -> None:
    parser.set_defaults(parser=parser)
    if not whole:
        words = ["1" if word == "N" else word for word in words]
    required = [action for action in parser._actions if action.required] if not whole else []
    try:
        for action in required:
            action.required = False
        with contextlib.redirect_stderr(io.StringIO()) as said:
            overrides = parse(parser, words).overrides
    except UserError as error:
        raise Wrong(str(error)) from None
    except SystemExit:
        raise Wrong(said.getvalue().strip().splitlines()[-1]) from None
    finally:
        for action in required:
            action.required = True
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise Wrong(f"{override} is neither an option nor key=value")
        if (problem := key_problem(key.split("."))) and key != "key":
            raise Wrong(f"{key}: {problem}")


def _exists(path: str) -> None:
    if not (ROOT / path).exists():
        raise Wrong(f"{path} is not in the repository")
