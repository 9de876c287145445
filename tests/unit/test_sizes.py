"""Files and functions stay of a size that is read in one go."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION = 400, 200, 80


def sources() -> list[Path]:
    """Python files, but for what programs write."""
    roots = ("megafuser", "tools", "examples", "benchmarks", "docs/generator", "tests")
    return sorted(
        path for root in roots for path in (ROOT / root).rglob("*.py") if not {".venv", "out"} & set(path.parts)
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_or_function_is_too_long(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    too_long = {
        node.name: node.end_lineno - node.lineno + 1  # without decorators, such as a table of cases
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    }
    assert not too_long


def test_most_are_short() -> None:
    lengths = [len(path.read_text("utf-8").splitlines()) for path in sources()]
    assert len(lengths) > 500 and statistics.median(lengths) <= MEDIAN_FILE
