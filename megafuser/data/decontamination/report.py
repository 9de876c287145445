"""What a cleaning did, for `report.json` and for the terminal.

The counting is `data.decontamination.clean`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megafuser.data.decontamination.clean import CleaningReport, Options
from megafuser.data.decontamination.ngrams import NgramIndex
from megafuser.figures.text_table import aligned

_REASONS = ("kept", "benchmark", "near duplicate", "bad")
_BOILERPLATE = 10  # an n-gram in more samples is worth a look


def document(
    report: CleaningReport, index: NgramIndex, inputs: Sequence[Path], benchmarks: Sequence[Path], options: Options
) -> dict[str, Any]:
    """For `report.json`.

    Args:
        report: what was counted.
        index: what was searched for.
        inputs: the files that were cleaned.
        benchmarks: files and directories, as the user gave them.
        options: how.
    """
    searched = Counter(item.source for item in index.items)
    short = Counter(item.source for item in index.too_short)
    return {
        "ngram": index.ngram,
        **asdict(options),
        "benchmarks": [str(path) for path in benchmarks],
        "files": [
            {"input": str(path), **{reason: file.counts[reason] for reason in _REASONS}}
            for path, file in zip(inputs, report.files, strict=True)
        ],
        "benchmark_files": [
            {
                "file": source,
                "texts": searched[source],
                "too_short": short[source],
                "items_found": len(report.found.get(source, {})),
                "found": dict(report.found.get(source, {})),
            }
            for source in dict.fromkeys([*searched, *short])
        ],
        "most_frequent_ngrams": [{"ngram": ngram, "samples": count} for ngram, count in report.frequent],
        "ignored_ngrams": report.ignored,
    }


def lines(told: dict[str, Any], most: int) -> Iterator[str]:
    """The same for people.

    Args:
        told: as `document` makes it.
        most: how many frequent n-grams are shown.
    """
    reasons = [one for one in _REASONS if one in _REASONS[:2] or any(file[one] for file in told["files"])]
    rows = [[file["input"], *(f"{file[reason]:,}" for reason in reasons)] for file in told["files"]]
    yield from aligned([["input", *reasons], *rows])
    yield ""
    columns = ("texts", "too_short", "items_found")
    rows = [[file["file"], *(f"{file[column]:,}" for column in columns)] for file in _whole(told["benchmark_files"])]
    yield from aligned([["benchmark", "texts", "too short", "items found"], *rows])
    frequent = [one for one in told["most_frequent_ngrams"][:most] if one["samples"] > _BOILERPLATE]
    if frequent:
        note = "" if told["frequent"] else "; what is boilerplate of yours, --frequent N lets pass"
        yield f"\nmost frequent n-grams{note}:"
        yield from (f"  {one['samples']:,} samples: {one['ngram']}" for one in frequent)
    yield ""


def _whole(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The benchmarks' files; a directory's, where there are many, as one."""
    by_directory: dict[Path, list[dict[str, Any]]] = {}
    for file in files:
        by_directory.setdefault(Path(file["file"]).parent, []).append(file)
    found = []
    for directory, own in by_directory.items():
        if len(own) <= 10:
            found += own
            continue
        sums = {key: sum(file[key] for file in own) for key in ("texts", "too_short", "items_found")}
        found.append({"file": f"{directory} ({len(own)} files)", **sums})
    return found
