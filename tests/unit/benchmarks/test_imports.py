"""What benchmarks import, most of it inside functions that no test runs, is there."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[3] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_is_imported_is_defined_there(path: Path) -> None:
    """In that very module: what it happens to import itself may be gone tomorrow."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("megafuser"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}"):
                    continue  # itself a module
                found = getattr(module, name)
                assert getattr(found, "__module__", node.module) == node.module, f"{name} is not {node.module}'s"


def test_there_are_benchmarks() -> None:
    assert len(BENCHMARKS) > 5
