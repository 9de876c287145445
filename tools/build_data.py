#!/usr/bin/env python3
"""Builds each domain's training and validation files from public data sets, by a recipe. No GPU.

Nothing is tokenized: prepare_data.py does that for the files that a run's configuration names.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megafuser.cli.shared_arguments import Parser
from megafuser.cli.tool import guarded, run_tool
from megafuser.errors import UserError
from megafuser.runtime.output_checks import Mark, check_output

_EPILOG = """\
For each domain of the recipe: its data sets are read, filtered, freed of duplicates, and shuffled by the recipe's seed;
samples are taken until there are enough, except those that hold a benchmark's text. OUT gets DOMAIN.train.jsonl,
DOMAIN.valid.jsonl (told apart by a hash of the instruction), leaks.jsonl (what was left out, and the benchmark's text),
and report.json (counts, licences, commits). The same recipe and data sets give the same files. OUT appears only when
all of it is complete.

Data sets are fetched from the Hugging Face hub (pip install "megafuser[datasets]"), or read from --local DIR, where
DIR/ORG/NAME holds the same files, such as `hf download --repo-type dataset ORG/NAME --local-dir DIR/ORG/NAME` makes.

examples:
  tools/build_data.py --recipe examples/ultrafuser-13b/data.yaml --out data
  tools/build_data.py --recipe data.yaml --out data --benchmarks HumanEval.jsonl.gz alpaca_eval.json
  tools/build_data.py --recipe data.yaml --out data --local /mirror/datasets

exit codes: 0 done; 2 bad input, said in one line; 75 the disk filled up, and nothing is left of the output; anything
else is a bug or a failure of the machine
"""
_EARLIER = Mark("report.json", "recipe")
_LEFT_BY_SYSTEMS = (".nfs*", ".DS_Store")
_MADE = ("*.train.jsonl", "*.valid.jsonl", "leaks.jsonl", "report.json")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog=_EPILOG)
    parser.add_argument("--recipe", required=True, type=Path, metavar="FILE", help="what is built: a YAML file")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to make")
    parser.add_argument("--local", type=Path, metavar="DIR", help="read data sets from DIR/ORG/NAME, not from the hub")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="benchmark files as their publishers ship them, to search for beside those that the recipe names",
    )
    parser.add_argument("--no-decontamination", action="store_true", help="search for no benchmark at all")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output that is already at --out")
    return parser.parse_args(arguments)


def _build(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    if options.no_decontamination and options.benchmarks:
        raise UserError("--no-decontamination leaves no use for --benchmarks; give one of them")
    if options.local is not None and not options.local.is_dir():
        raise UserError(f"--local {options.local} is not a directory; give the one that holds ORG/NAME")
    local = [] if options.local is None else [("--local", options.local)]
    kept = [("--recipe", options.recipe), *local, *(("--benchmarks", path) for path in options.benchmarks)]
    check_output(options.out, {}, options.overwrite, _EARLIER, kept=kept)
    _refuse_others_files(options.out)
    from megafuser.data.recipe.load import load_recipe

    recipe = load_recipe(options.recipe)
    _quiet()
    from megafuser.data.recipe.build import Options, build_data

    chosen = Options(
        options.out,
        local=None if options.local is None else str(options.local),
        benchmarks=tuple(options.benchmarks),
        decontaminate=not options.no_decontamination,
        overwrite=options.overwrite,
    )
    report = build_data(recipe, chosen, _bar)
    print(report.table())
    for warning in report.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.out / 'report.json'}")
    return 0


def _refuse_others_files(out: Path) -> None:
    """Refuses to replace a directory into which somebody has put more than a build makes, such as a token cache."""
    others = sorted(path.name for path in out.glob("*") if not any(map(path.match, (*_MADE, *_LEFT_BY_SYSTEMS))))
    if others:
        raise UserError(
            f"--out {out} holds {', '.join(others[:3])}{', …' if others[3:] else ''}, which no build made and which "
            "would be lost; move it away or choose another output"
        )


def _quiet() -> None:
    """Keeps the bars and retries of `datasets` to terminals, so that a log holds our own lines."""
    try:
        import datasets
        import huggingface_hub
    except ImportError:
        return  # said with its remedy where the first data set is read
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.logging.set_verbosity_error()


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=description, total=total, unit=f" {unit}s", unit_scale=True, disable=None) as bar:
        yield bar.update


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    return guarded(_build, arguments)


if __name__ == "__main__":
    run_tool(main)
