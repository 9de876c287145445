"""The programs in tools/, run in the tests' own process (importing torch anew for each call takes long), or as such."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(name: str, *arguments: object) -> int:
    """Runs `tools/NAME.py ARGUMENTS` and gives its exit code."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with _same_logs():
        return module.main([str(argument) for argument in arguments])


@contextmanager
def _same_logs() -> Iterator[None]:
    """A tool sets up the logs of its process."""
    logger = logging.getLogger("megafuser")
    before = logger.level, logger.propagate, list(logger.handlers)
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers = before


def tree(root: Path) -> list[tuple[str, int]]:
    """Every path below a directory with its time of change: equal where nothing was written."""
    return sorted((str(path.relative_to(root)), path.lstat().st_mtime_ns) for path in root.rglob("*"))


def refusal(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> str:
    """Runs a tool that refuses its input as all do, exit code 2 and one line, and gives what the line says."""
    assert run_tool(name, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    start = "megafuser: error: "
    assert line.startswith(start)
    return line.removeprefix(start)


def run_program(name: str, *arguments: object, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a tool as a user does: from another directory, megafuser not installed for it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
