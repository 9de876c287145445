"""Imports the modules of examples/miniature and examples/smollm2, which are scripts beside each other, no packages."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[3] / "examples"
PATHS = [str(EXAMPLES / name) for name in ("smollm2", "miniature", "quickstart")]


def script(name: str) -> ModuleType:
    """One of the example's modules."""
    sys.path[:0] = PATHS
    try:
        return importlib.import_module(name)
    finally:
        del sys.path[: len(PATHS)]
