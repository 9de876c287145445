"""Benchmark texts that a recipe's samples must not hold, from files and from data sets.

The search is `data.decontamination.ngrams`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megafuser.data.recipe.config import Recipe, RecipeBenchmark, as_source
from megafuser.data.sources.hub import load_split
from megafuser.errors import UserError

if TYPE_CHECKING:
    from megafuser.data.decontamination import BenchmarkItem, NgramIndex


def benchmark_index(recipe: Recipe, files: Sequence[Path], local: str | None) -> "NgramIndex":
    """Everything to search for, from the recipe's data sets and from files as their publishers ship them.

    Args:
        recipe: names data sets and the length of an n-gram.
        files: benchmark files beside them.
        local: directory that stands for the hub.

    Raises:
        UserError: a benchmark does not load, or has no such column.
    """
    from megafuser.data.decontamination import NgramIndex, read_benchmarks

    def items() -> Iterator["BenchmarkItem"]:
        if files:
            yield from read_benchmarks(files)
        for benchmark in recipe.benchmarks:
            yield from _items(benchmark, local)

    return NgramIndex(items(), recipe.ngram)


def _items(benchmark: RecipeBenchmark, local: str | None) -> Iterator["BenchmarkItem"]:
    from megafuser.data.decontamination import BenchmarkItem

    source = as_source(benchmark, local)
    rows = load_split(source)
    for column in benchmark.texts:
        if column not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise UserError(f"benchmark {source} has no column {column!r}; it has {there}; correct its `texts`")
    rows = rows.select_columns(list(benchmark.texts))
    for number, row in enumerate(rows, start=1):
        for column in benchmark.texts:
            for text in _strings(row[column]):
                where = f"{source}: row {number}"
                yield BenchmarkItem(source=benchmark.dataset, where=where, field=column, text=text)


def _strings(value: Any) -> list[str]:
    """A column's text, or its texts where it holds a list."""
    found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str)]
