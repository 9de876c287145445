"""Texts of benchmark files as their publishers ship them, told apart by their fields.

The search for them is `data.decontamination.ngrams`; data sets of the hub are read by `data.recipe.leaks`.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megafuser.config.data import SourceConfig
from megafuser.data.decontamination.ngrams import BenchmarkItem
from megafuser.data.sources.reading import read_blocks
from megafuser.data.sources.records import BadRecord
from megafuser.errors import UserError

# What tells a layout, and the fields whose texts are searched for. The first that fits is taken. AlpacaEval's outputs
# are a model's, but its sets are told apart by them no less.
_LAYOUTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("HumanEval", ("task_id", "prompt", "canonical_solution"), ("prompt", "canonical_solution")),
    ("SAT-Math of AGIEval", ("passage", "question", "options", "label"), ("passage", "question", "options")),
    ("AQuA-RAT", ("question", "options", "rationale"), ("question", "rationale", "options")),
    (
        "TruthfulQA",
        ("Question", "Best Answer"),
        ("Question", "Best Answer", "Correct Answers", "Incorrect Answers"),
    ),
    (
        "TruthfulQA of the hub",
        ("question", "best_answer"),
        ("question", "best_answer", "correct_answers", "incorrect_answers"),
    ),
    ("TruthfulQA's choices", ("question", "mc1_targets"), ("question", "mc1_targets", "mc2_targets")),
    ("GSM8K", ("question", "answer"), ("question", "answer")),
    ("MATH", ("problem", "solution"), ("problem", "solution")),
    ("AlpacaEval", ("instruction", "output"), ("instruction", "output")),
    ("instructions", ("instruction", "response"), ("instruction", "response")),
    ("texts", ("text",), ("text",)),
)
# GSM8K's calculator annotations and its mark of the result, which training sets may have without them.
_ANNOTATIONS = re.compile(r"<<[^<>]*>>|####")
# Of TruthfulQA's CSV: several answers in one field.
_ENDINGS = (".json", ".jsonl", ".parquet", ".csv")
_LISTED = {"Correct Answers", "Incorrect Answers"}


def read_benchmarks(paths: Sequence[str | Path]) -> Iterator[BenchmarkItem]:
    """Reads benchmark texts.

    Args:
        paths: files (JSONL, JSONL.gz, JSON array, Parquet, CSV, one JSON object), or directories of them (MATH has a
            file for each problem).

    Yields:
        A text for each field that is searched for; empty ones are left out.

    Raises:
        UserError: a file is missing, damaged or without a text, or has a layout that is none of those known.
    """
    for given in paths:
        path = Path(given)
        files = _files_below(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no file of {', '.join(_ENDINGS)}; give a benchmark's files")
        for file in files:
            items = 0
            for item in _read_file(file):
                items += 1
                yield item
            if not items:
                raise UserError(f"{file} holds no text; give a benchmark's files")


def _files_below(directory: Path) -> list[Path]:
    return sorted(
        file
        for file in directory.rglob("*")
        if file.is_file() and Path(file.name.removesuffix(".gz")).suffix.lower() in _ENDINGS
    )


def _read_file(path: Path) -> Iterator[BenchmarkItem]:
    for where, record in _records(path):
        fields = _fields(record, where)
        for field in fields:
            for text in _texts(field, record.get(field)):
                if text.strip():
                    yield BenchmarkItem(str(path), where, field, text)


def _texts(field: str, value: Any) -> Iterator[str]:
    """Every text in a field: of a list each, and of choices with their labels the choices."""
    if isinstance(value, str):
        if field == "answer" and _ANNOTATIONS.search(value):
            yield _ANNOTATIONS.sub(" ", value)
        yield from value.split(";") if field in _LISTED else (value,)
    elif isinstance(value, dict):
        # {"choices": […], "labels": […]} on the hub, {"a choice": 1, …} from the publishers
        yield from _texts(field, value["choices"] if "choices" in value else list(value))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(field, one)


def _fields(record: Any, where: str) -> tuple[str, ...]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: no JSON object; each item of a benchmark must be one")
    for _, telling, fields in _LAYOUTS:
        if all(field in record for field in telling):
            return fields
    there = ", ".join(str(key) for key in record) or "no field"
    known = ", ".join(name for name, _, _ in _LAYOUTS)
    raise UserError(
        f"{where}: the layout of no benchmark that is known ({known}): it has {there}; give the file of a known one"
    )


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Items with their places."""
    if path.suffix.lower() == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for number, row in enumerate(csv.DictReader(file), start=2):
                    yield f"{path}:{number}", row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as CSV ({error}); download it again") from None
        return
    if path.suffix.lower() == ".json" and (whole := _one_object(path)) is not None:
        yield str(path), whole
        return
    for block in read_blocks(SourceConfig(path=str(path))):
        if isinstance(block, BadRecord):
            raise UserError(str(block))
        for index, item in enumerate(block.items):
            if block.unit != "line":
                yield block.where(index), item
            elif item.strip():
                yield block.where(index), _parsed(item, block.where(index))


def _one_object(path: Path) -> dict[str, Any] | None:
    """The object of a file that holds one and nothing else, over several lines perhaps; else None."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give another path") from None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        raise UserError(f"{where}: not JSON; each line must be one JSON object") from None
