#!/usr/bin/env python3
"""Drops training samples that share 13 words in a row with a benchmark, and says which and why. No GPU.

Nothing is downloaded: what build_data.py fetches, it searches itself.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megafuser.cli.shared_arguments import Parser, ngram_size, positive, share
from megafuser.cli.tool import guarded, run_tool
from megafuser.errors import UserError
from megafuser.runtime.output_checks import Mark, check_output

_EPILOG = """\
Every string of a sample is searched, whatever its field is called. Words are lower case, without punctuation:
"Don't STOP(3,000)" has the words dont, stop, 3000. A benchmark's text of 8 to 12 words counts as a whole; a shorter one
is not searched for.

OUT gets each input under its own name, kept lines byte for byte as they were; dropped.jsonl, a line for each dropped
sample with its texts, the words in common, and the benchmark's text; and report.json. OUT appears only when all of it
is complete. Inputs are never changed.

Benchmarks are files as their publishers ship them, told apart by their fields: HumanEval, GSM8K, MATH (a file, or its
directories), AQuA-RAT, SAT-Math of AGIEval, TruthfulQA (CSV or JSON), AlpacaEval; and any JSONL with `instruction` and
`response`, or `text`.

examples:
  tools/decontaminate.py --input text.jsonl code.jsonl.gz --benchmarks HumanEval.jsonl.gz gsm8k/test.jsonl --out clean
  tools/decontaminate.py --input math.jsonl --benchmarks MATH/test --out clean --near-duplicates 0.8
  tools/decontaminate.py --input code.jsonl --benchmarks HumanEval.jsonl.gz --out clean --frequent 100

exit codes: 0 done, whether or not anything was dropped; 2 bad input, said in one line; 75 the disk filled up, and
nothing is left of the output; anything else is a bug or a failure of the machine
"""
_SHOWN = 5
_EARLIER = Mark("report.json", "ngram")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=_EPILOG)
    add = parser.add_argument
    add("--input", required=True, nargs="+", type=Path, metavar="FILE", help="training files: JSONL or JSONL.gz")
    add("--benchmarks", required=True, nargs="+", type=Path, metavar="FILE", help="benchmark files or directories")
    add("--out", required=True, type=Path, metavar="DIR", help="directory to make")
    add("--ngram", default=13, type=ngram_size, metavar="N", help="words in a row that make a leak (default 13)")
    add(
        "--frequent",
        type=positive,
        metavar="N",
        help="n-grams that more than N samples have are boilerplate, and no leak (default: every one counts)",
    )
    add(
        "--near-duplicates",
        type=share,
        metavar="SHARE",
        help="drop samples, too, that have this share of word 5-grams (Jaccard, by MinHash) in common with an earlier "
        "one, e.g. 0.8 (default: not sought)",
    )
    add("--on-error", choices=("stop", "skip"), default="stop", help="at a line that cannot be read (default stop)")
    add("--workers", type=positive, metavar="N", help="processes (default: as many as there are cores)")
    add("--overwrite", action="store_true", help="replace an earlier output that is already at --out")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Refuses what cannot be, before anything is read."""
    from megafuser.data.decontamination.clean import DROPPED, HITS, REPORT
    from megafuser.data.sources.formats import file_format

    names: dict[str, Path] = {}
    for path in options.input:
        if not path.is_file():
            raise UserError(
                f"--input {path} {'is not a file' if path.exists() else 'does not exist'}; give JSONL files"
            )
        if path.name in names:
            raise UserError(f"--input {path} has the name of {names[path.name]}; rename one, their outputs would meet")
        if path.name in (DROPPED, HITS, REPORT):
            raise UserError(f"--input {path} has the name of a file that is written to --out; rename it")
        if path.resolve() in {benchmark.resolve() for benchmark in options.benchmarks}:
            raise UserError(f"{path} is given as input and as benchmark; give it as one of them")
        names[path.name] = path
        if file_format(str(path)) != "jsonl":
            raise UserError(f"--input {path} holds no lines; give JSONL or JSONL.gz, a sample a line")
    inputs = [("--input", path) for path in options.input] + [("--benchmarks", path) for path in options.benchmarks]
    check_output(options.out, {}, options.overwrite, _EARLIER, kept=inputs)


def _decontaminate(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    _check(options)
    from megafuser.data.decontamination import NgramIndex, read_benchmarks
    from megafuser.data.decontamination.clean import REPORT, Options, clean
    from megafuser.data.decontamination.report import document, lines
    from megafuser.data.workers import available_cores
    from megafuser.runtime.atomic import atomic_directory

    # The benchmarks first: they are small, and a mistake in them must not cost an hour.
    index = NgramIndex(read_benchmarks(options.benchmarks), options.ngram)
    chosen = Options(options.frequent, options.near_duplicates, options.on_error, options.workers or available_cores())
    total = sum(path.stat().st_size for path in options.input)
    with atomic_directory(options.out, overwrite=options.overwrite) as directory:
        report = clean(options.input, index, directory, chosen, lambda name: _bar(name, total))
        told = document(report, index, options.input, options.benchmarks, chosen)
        (directory / REPORT).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in lines(told, _SHOWN):
        print(line)
    print(f"{options.out / REPORT}")
    return 0


@contextmanager
def _bar(name: str, total: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        yield bar.update


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    return guarded(_decontaminate, arguments)


if __name__ == "__main__":
    run_tool(main)
