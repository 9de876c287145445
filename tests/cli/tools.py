"""The programs in tools/, run in the tests' own process: importing torch anew for each call would take minutes."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
