"""Imports the modules of examples/miniature, which are scripts beside each other and not a package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[3] / "examples"
PATHS = [str(EXAMPLES / "miniature"), str(EXAMPLES / "quickstart")]


def script(name: str) -> ModuleType:
    """One of the example's modules."""
    sys.path[:0] = PATHS
    try:
        return importlib.import_module(name)
    finally:
        del sys.path[: len(PATHS)]
