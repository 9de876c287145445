"""The build itself: every domain's candidates are collected, then drawn, searched and written, and all is reported.

Which rows may be drawn is `data.recipe.candidates`; what is searched for is `data.recipe.leaks`.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megafuser.data.near_duplicates import NearDuplicates, sketch
from megafuser.data.recipe.candidates import (
    Filter,
    Record,
    Spill,
    as_record,
    first_instruction,
    record_texts,
)
from megafuser.data.recipe.config import Recipe, RecipeDomain, RecipeSource, as_source
from megafuser.data.recipe.leaks import benchmark_index
from megafuser.data.recipe.report import Report, SourceReport
from megafuser.data.sources.hub import dataset_hash, load_split
from megafuser.data.sources.samples import parse_block
from megafuser.data.sources.split import in_valid
from megafuser.data.sources.table_columns import ROWS, needed_columns, table_blocks
from megafuser.errors import UserError
from megafuser.runtime.atomic import atomic_directory

if TYPE_CHECKING:
    from megafuser.data.decontamination import NgramIndex

_BLOCK_BYTES = 1 << 20
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], Any]]]


@dataclass(frozen=True)
class Options:
    """How a recipe is built here.

    Attributes:
        out: directory to make.
        local: directory with ORG/NAME below it, which stands for the hub.
        benchmarks: benchmark files, beside the recipe's.
        decontaminate: whether anything is searched for.
        overwrite: replace what is at `out`.
    """

    out: Path
    local: str | None = None
    benchmarks: tuple[Path, ...] = ()
    decontaminate: bool = True
    overwrite: bool = False


def build_data(recipe: Recipe, options: Options, bar: Bar) -> Report:
    """Makes OUT with two files for each domain, `leaks.jsonl` and `report.json`.

    Args:
        recipe: what is made.
        options: where, and from what.
        bar: makes a progress bar of a description, a total and a unit.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: no benchmark is named, a data set does not load, or OUT exists.
    """
    if options.decontaminate and not options.benchmarks and not recipe.benchmarks:
        raise UserError(
            "no benchmark is named, so nothing could be searched for; give --benchmarks FILE …, name data sets in the "
            "recipe's `benchmarks`, or pass --no-decontamination"
        )
    with atomic_directory(options.out, overwrite=options.overwrite) as directory:
        # The benchmarks first: they are small, and a mistake in them must not cost an hour.
        index = benchmark_index(recipe, options.benchmarks, options.local) if options.decontaminate else None
        check_columns(recipe, options.local)
        report = Report(recipe, [str(path) for path in options.benchmarks], options.decontaminate)
        seen: set[bytes] = set()
        with (directory / "leaks.jsonl").open("w", encoding="utf-8") as leaks:
            for name, domain in recipe.domains.items():
                with Spill(directory / f"{name}.candidates", recipe.seed) as spill:
                    reports = collect(domain, options.local, spill, seen, bar, name)
                    draw = Draw(recipe, domain, index, reports, lambda leak: _write(leaks, leak))
                    with bar(f"{name}: search and write", min(domain.samples, len(spill)), "sample") as moved:
                        write_split(directory, name, recipe, draw.taken(spill, moved))
                    report.add(name, domain, reports)
        (directory / "report.json").write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    return report


def check_columns(recipe: Recipe, local: str | None) -> None:
    """Loads every data set and refuses columns that none has, before the first row is read.

    Raises:
        UserError: the first that is missing.
    """
    for name, domain in recipe.domains.items():
        for index, source in enumerate(domain.sources):
            there = load_split(as_source(source, local)).column_names
            for key in ("columns", "not_columns"):
                for column in getattr(source, key):
                    if column not in there:
                        where = f"domains.{name}.sources.{index}.{key}.{column}"
                        raise UserError(f"{where}: {source.dataset} has no such column; name one of {', '.join(there)}")


def collect(
    domain: RecipeDomain, local: str | None, spill: Spill, seen: set[bytes], bar: Bar, name: str
) -> list[SourceReport]:
    """Reads a domain's data sets into the spill.

    Args:
        domain: what is read.
        local: directory that stands for the hub.
        spill: takes the candidates.
        seen: digests of the samples so far, of all domains.
        bar: makes a progress bar.
        name: the domain's name, for the bar.

    Returns:
        What happened, for each data set.
    """
    reports = []
    for number, source in enumerate(domain.sources):
        there = as_source(source, local)
        rows = load_split(there)
        rules = Filter(source, domain, seen)
        with bar(f"{name}: read {source.dataset}", len(rows), "row") as moved:
            for row_number, row, parsed in _parsed(rows, source, str(there)):
                if (sample := rules.candidate(row, parsed)) is not None:
                    spill.add(as_record(sample, _identity(source, row_number), source), number)
                moved(1)
        if not len(rows) or rules.counts["unusable"] == rules.counts["read"]:
            why = f": {next(iter(rules.bad))}" if rules.bad else ""
            raise UserError(f"{there} holds no sample{why}; check its `fields`, `split` and `files` in the recipe")
        reports.append(SourceReport(source, rows, dataset_hash(there), rules.counts, rules.bad))
    return reports


class Draw:
    """Takes candidates in their random order until there are enough, and leaves out what may not be in."""

    def __init__(
        self,
        recipe: Recipe,
        domain: RecipeDomain,
        index: "NgramIndex | None",
        reports: Sequence[SourceReport],
        leaked: Callable[[Record], None],
    ) -> None:
        """Remembers the rules.

        Args:
            recipe: says whether near duplicates are sought.
            domain: says how many are wanted.
            index: what to search for, if anything.
            reports: counts of each data set.
            leaked: takes what was found, for each sample with a benchmark's text.
        """
        self._domain, self._index, self._reports, self._leaked = domain, index, reports, leaked
        self._near = None if recipe.near_duplicates is None else NearDuplicates(recipe.near_duplicates)

    def taken(self, spill: Spill, moved: Callable[[int], Any]) -> Iterator[Record]:
        """The samples, each counted in its data set's report."""
        taken: Counter[int] = Counter()
        for source, record in spill.drawn():
            counts = self._reports[source].counts
            most = self._domain.sources[source].samples
            if taken.total() == self._domain.samples or (most is not None and taken[source] == most):
                counts["not drawn"] += 1
                continue
            if (reason := self._unwanted(record)) is not None:
                counts[reason] += 1
                continue
            taken[source] += 1
            counts["kept"] += 1
            moved(1)
            yield record

    def _unwanted(self, record: Record) -> str | None:
        """Why a candidate may not be in."""
        texts = record_texts(record)
        if self._index is not None:
            for text in texts:
                if (hit := self._index.find(text)) is not None:
                    self._leaked({"id": record["id"], "hit": dataclasses.asdict(hit), "texts": texts})
                    return "benchmark leaks"
        if self._near is not None and self._near.take(record["id"], sketch("\n".join(texts))) is not None:
            return "near duplicates"
        return None


def write_split(directory: Path, name: str, recipe: Recipe, records: Iterable[Record]) -> None:
    """Writes the samples of a domain into its training and its validation file."""
    with (
        (directory / f"{name}.train.jsonl").open("w", encoding="utf-8") as train,
        (directory / f"{name}.valid.jsonl").open("w", encoding="utf-8") as valid,
    ):
        for record in records:
            _write(valid if in_valid(first_instruction(record), recipe.valid_fraction) else train, record)


def _parsed(rows: Any, source: RecipeSource, name: str) -> Iterator[tuple[int, dict[str, Any], Any]]:
    """Number, columns and sample of each row."""
    needed = needed_columns(rows.column_names, source.fields)
    others = [column for column in (*source.columns, *source.not_columns) if column not in needed]
    rows = rows.select_columns([*needed, *dict.fromkeys(others)])
    for block in table_blocks(name, rows.with_format("arrow").iter(ROWS), _BLOCK_BYTES):
        for index, (row, parsed) in enumerate(zip(block.items, parse_block(block, source.fields), strict=True)):
            yield block.first + index, row, parsed


def _identity(source: RecipeSource, number: int) -> str:
    subset = f"/{source.subset}" if source.subset else ""
    files = f"[{','.join(source.files)}]" if source.files else ""  # rows are counted in these alone
    return f"{source.dataset}{subset}/{source.split}{files}:{number}"


def _write(file: Any, record: Record) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
