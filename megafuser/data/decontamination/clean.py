"""Cleans training files of benchmark texts and of near duplicates.

Two passes over each file: the first, in parallel, only finds which lines share an n-gram with a benchmark; the second
writes the others as they are, byte for byte, and tells of each dropped one why. So memory holds the index of the
benchmarks, and of the data nothing but what a few blocks have (and, where near duplicates are sought, a sketch of each
kept line).

Searching a block is `data.decontamination.scan`; what is told of it all is `data.decontamination.report`.
"""

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from megafuser.config.data import SourceConfig
from megafuser.data.decontamination.hit_file import HitFile
from megafuser.data.decontamination.ngrams import NgramIndex
from megafuser.data.decontamination.records import is_blank, read_record, texts_of
from megafuser.data.decontamination.scan import (
    search_block,
    search_in_worker,
    sketch_block,
    start_worker,
)
from megafuser.data.near_duplicates import NearDuplicates
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord, Block
from megafuser.data.workers import in_order, worker_pool
from megafuser.errors import UserError

DROPPED, REPORT, HITS = "dropped.jsonl", "report.json", ".hits"
_MOST_HITS = 10  # that are written of one sample; many items begin alike
_MOST_FREQUENT = 20

Moved = Callable[[int], Any]
Bar = Callable[[str], contextlib.AbstractContextManager[Moved]]


@dataclass(frozen=True)
class Options:
    """How files are cleaned.

    Attributes:
        frequent: n-grams in more lines than this are boilerplate, and no leak; None: every one counts.
        near_duplicates: share of common 5-grams from which on a line repeats an earlier one; None: not sought.
        on_error: `stop` at a line that cannot be read, or `skip` it: it is dropped and counted.
        workers: processes.
    """

    frequent: int | None = None
    near_duplicates: float | None = None
    on_error: str = "stop"
    workers: int = 1


@dataclass
class FileReport:
    """One file's counts.

    Attributes:
        name: of the file.
        counts: lines that are `kept`, or dropped as `benchmark`, `near duplicate` or `bad`.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class CleaningReport:
    """What was done.

    Attributes:
        files: in order.
        found: benchmark items that were found, by source, each as often as there are lines that share with it.
        frequent: the n-grams that most lines have, with their numbers, ignored ones included.
        ignored: how many n-grams were taken for boilerplate.
    """

    files: list[FileReport] = field(default_factory=list)
    found: dict[str, Counter[str]] = field(default_factory=dict)
    frequent: list[tuple[str, int]] = field(default_factory=list)
    ignored: int = 0


def clean(files: Sequence[Path], index: NgramIndex, directory: Path, options: Options, bar: Bar) -> CleaningReport:
    """Writes each file without what is dropped, under its own name, and `dropped.jsonl`.

    Args:
        files: JSONL or JSONL.gz, of different names.
        index: what to search for.
        directory: an existing, empty one.
        options: how.
        bar: makes a progress bar of a description; it is moved by bytes of the files.

    Raises:
        UserError: a line cannot be read and `on_error` is `stop`, a file is empty, or a library is missing.
    """
    near = None if options.near_duplicates is None else NearDuplicates(options.near_duplicates)
    report = CleaningReport()
    with HitFile(directory / HITS) as hits:
        with bar("search") as moved:
            bad = _search(files, index, hits, options, moved)
        ignored = hits.above(options.frequent)
        report.ignored = len(ignored)
        report.frequent = [(index.spelled(key), count) for key, count in hits.lines_with.most_common(_MOST_FREQUENT)]
        with bar("write") as moved, _text_file(directory / DROPPED) as dropped:
            for number, path in enumerate(files):
                writer = _Writer(number, path, files, index, ignored, near, bad[number], report, dropped)
                with _opened(directory / path.name) as out:
                    writer.write(hits.lines_of(number, ignored), out, options.workers, moved)
    return report


def _search(
    files: Sequence[Path], index: NgramIndex, hits: HitFile, options: Options, moved: Moved
) -> list[dict[int, BadRecord]]:
    """The first pass; returns the bad lines of each file by their numbers."""

    def blocks() -> Iterator[tuple[int, Block | BadRecord]]:
        for number, path in enumerate(files):
            for block in read_blocks(SourceConfig(path=str(path))):
                yield number, block

    lines = [0] * len(files)
    bad: list[dict[int, BadRecord]] = [{} for _ in files]
    with worker_pool(
        options.workers, lambda block: search_block(index, block), search_in_worker, start_worker, (index,)
    ) as submit:
        for (number, block), found in in_order(
            blocks(), lambda item: None if isinstance(item[1], BadRecord) else submit(item[1]), options.workers
        ):
            if isinstance(block, BadRecord):
                _check(block, options)
                lines[number] += 1
                continue
            assert found is not None
            moved(block.bytes_read)
            lines[number] += found.lines
            for at, one in sorted(found.bad.items()):
                _check(one, options)
                bad[number][block.first + at] = one
            for at, keys in sorted(found.hits.items()):
                hits.add(number, block.first + at, keys)
    for path, count in zip(files, lines, strict=True):
        if not count:
            raise UserError(f"{path} is empty; give files that hold samples")
    return bad


def _check(bad: BadRecord, options: Options) -> None:
    if options.on_error == "stop":
        raise UserError(f"{bad}, or pass --on-error skip")


class _Writer:
    """The second pass over one file."""

    def __init__(
        self,
        number: int,
        path: Path,
        files: Sequence[Path],
        index: NgramIndex,
        ignored: set[int],
        near: NearDuplicates | None,
        bad: dict[int, BadRecord],
        report: CleaningReport,
        dropped: Any,
    ) -> None:
        self.number, self.path, self.files = number, path, files
        self.index, self.ignored, self.near, self.bad = index, ignored, near, bad
        self.whole, self.report, self.dropped = report, FileReport(path.name), dropped
        report.files.append(self.report)

    def write(self, leaks: set[int], out: BinaryIO, workers: int, moved: Moved) -> None:
        """Writes what is kept to `out`.

        Args:
            leaks: numbers of the lines that share an n-gram with a benchmark.
            out: takes the lines.
            workers: processes for the sketches.
            moved: called with the bytes that were read.
        """
        blocks = read_blocks(SourceConfig(path=str(self.path)))
        with worker_pool(workers if self.near else 1, sketch_block, sketch_block, _nothing, ()) as submit:

            def sketches(block: Block | BadRecord) -> Any:
                if self.near is None or isinstance(block, BadRecord):
                    return None
                return submit(block, [at for at in range(len(block.items)) if block.first + at not in leaks])

            for block, made in in_order(blocks, sketches, workers):
                if isinstance(block, BadRecord):
                    self._drop(block.where, "bad", {"problem": block.problem})
                    continue
                waiting = iter(made or ())
                for at, line in enumerate(block.items):
                    leaked = block.first + at in leaks
                    own = None if leaked or self.near is None else next(waiting)
                    if self._keep(block, at, leaked, own):
                        last = block.torn and at == len(block.items) - 1
                        out.write(line if last else line + b"\n")
                moved(block.bytes_read)

    def _keep(self, block: Block, at: int, leaked: bool, sketch: Any) -> bool:
        number = block.first + at
        if number in self.bad:
            self._drop(self.bad[number].where, "bad", {"problem": self.bad[number].problem})
            return False
        if leaked:
            self._drop(block.where(at), "benchmark", self._explained(_record(block, at)))
            return False
        if sketch is not None and self.near is not None:
            found = self.near.take((self.number, number), sketch)
            if found is not None:
                (file, line), share = found
                told = {"repeats": f"{self.files[file]}:{line}", "similarity": round(share, 3)}
                self._drop(block.where(at), "near duplicate", {**told, "texts": dict(texts_of(_record(block, at)))})
                return False
        self.report.counts["kept"] += not is_blank(block, at)
        return True

    def _explained(self, record: dict[str, Any]) -> dict[str, Any]:
        """All that a line shares with benchmarks, with the texts of both."""
        hits, texts, met = [], {}, set()
        for name, text in texts_of(record):
            for hit in self.index.find_all(text, self.ignored):
                texts[name] = text
                met.add((hit.item.source, hit.item.where))
                benchmark = {"file": hit.item.source, "item": hit.item.where, "field": hit.item.field}
                hits.append(
                    {
                        "field": name,
                        "ngram": hit.ngram,
                        "ngrams": hit.count,
                        "benchmark": {**benchmark, "text": hit.item.text},
                    }
                )
        for source, where in met:
            self.whole.found.setdefault(source, Counter())[where] += 1
        return {"items": len(met), "hits": hits[:_MOST_HITS], "texts": texts}

    def _drop(self, where: str, reason: str, more: dict[str, Any]) -> None:
        self.report.counts[reason] += 1
        self.dropped.write(json.dumps({"line": where, "reason": reason, **more}, ensure_ascii=False) + "\n")


def _record(block: Block, at: int) -> dict[str, Any]:
    record = read_record(block, at)
    assert isinstance(record, dict)  # the first pass has read it, too
    return record


def _text_file(path: Path) -> TextIO:
    """A file to write text to, names of files that are not UTF-8 included."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _nothing() -> None:
    """A worker that sketches needs nothing."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to write, compressed where its name says so; the same lines give the same bytes."""
    with path.open("wb", buffering=1 << 20) as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield raw
