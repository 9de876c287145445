#!/usr/bin/env python3
"""Tokenizes a run's data before training does, and tells what is in it; or shows samples as each specialist sees them.

No weights are loaded and no GPU is needed. Texts of benchmarks stay in: decontaminate.py drops them.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megafuser.cli.parser import parse
from megafuser.cli.shared_arguments import Parser, positive
from megafuser.cli.tool import guarded, run_tool
from megafuser.errors import UserError
from megafuser.runtime.atomic import check_can_be_written
from megafuser.runtime.output_checks import Mark, check_output

if TYPE_CHECKING:
    from megafuser.checkpoint.specialist_sources import SpecialistSource
    from megafuser.config.schema import RunConfig

_EPILOG = """\
Look first: --show prints samples in every specialist's template, with the tokens that are trained on marked, and builds
nothing. Then build: the caches are those that `megafuser warmup` and `megafuser joint` would build at their start, one
for each domain and split, in RUN_DIR/data or data.cache_dir; those that are there already are opened. What was counted
is printed as a table and written to statistics.json and statistics.html.

examples:
  tools/prepare_data.py --config config.yaml --show 3
  tools/prepare_data.py --config config.yaml --show 1 --ids data.sequence_length=2048
  tools/prepare_data.py --config config.yaml
  tools/prepare_data.py --config config.yaml data.on_error=skip data.workers=8 --out statistics

key=value takes the place of the configuration's value, as in every command that has --config.

exit codes: 0 done; 2 bad input, said in one line; 75 the disk filled up, and the same command goes on; anything else is
a bug or a failure of the machine
"""
_EARLIER = Mark("statistics.json", "sequence_length")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    usage = "%(prog)s --config FILE [--show N [--ids]] [--out DIR] [--overwrite] [key=value ...]"
    parser = Parser(usage=usage, description=__doc__, epilog=_EPILOG)
    parser.set_defaults(parser=parser)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's configuration")
    parser.add_argument(
        "--show", type=positive, metavar="N", help="print the first N samples of each domain, and build nothing"
    )
    parser.add_argument("--ids", action="store_true", help="with --show: every token with its id")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the statistics; by default RUN_DIR/data/statistics, anew"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace statistics that are already at --out")
    return parse(parser, sys.argv[1:] if arguments is None else arguments)


def _prepare(arguments: Sequence[str] | None) -> int:
    options = _parse(arguments)
    if options.ids and options.show is None:
        raise UserError("--ids belongs to --show; give --show N too")
    if options.show is not None and options.out is not None:
        raise UserError("--out belongs to the statistics, which --show does not make; leave one of them out")
    from megafuser.config.load import load_config

    config = load_config(options.config, options.overrides)
    if options.show is None:
        _check_output(config, options)
    from megafuser.runtime.logs import configure_logs

    configure_logs(rank=0)  # before the libraries that have something to say when they are imported
    from megafuser.checkpoint.specialist_sources import sources_from_config
    from megafuser.data.sources.files import check_sources
    from megafuser.data.stage_sampler import check_weights

    sources = sources_from_config(config)
    check_weights(config.data)
    check_sources(config.data)
    if options.show is not None:
        _show(config, sources, options.show, options.ids)
    else:
        _build(config, sources, _statistics(config, options))
    return 0


def _statistics(config: "RunConfig", options: argparse.Namespace) -> Path:
    """The directory that is made."""
    return options.out or Path(config.run_dir) / "data" / "statistics"


def _check_output(config: "RunConfig", options: argparse.Namespace) -> None:
    """Refuses to replace anything but earlier statistics; those of the run itself are made anew without --overwrite."""
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is not a directory; choose another output")
    directory, overwrite = _statistics(config, options), options.overwrite or options.out is None
    check_output(directory, {}, overwrite, _EARLIER, kept=_kept(config, options))
    check_can_be_written(directory, "run_dir:" if options.out is None else "--out", replaced=True)


def _kept(config: "RunConfig", options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """What must not be replaced, with the option or key that names it."""
    from megafuser.config.run_directory import RunDirectory

    yield "--config", Path(options.config)
    yield "run_dir", Path(config.run_dir)
    yield "data.cache_dir", Path(config.data.cache_dir or RunDirectory(Path(config.run_dir)).samples)
    for index, specialist in enumerate(config.specialists):
        yield f"specialists.{index}.checkpoint", Path(specialist.checkpoint)
    for name, domain in config.data.domains.items():
        for split in ("train", "valid"):
            for index, source in enumerate(domain.sources(split)):
                path = Path(source.path or source.dataset or "")
                if path.exists():  # a data set may be one of the hub
                    yield f"data.domains.{name}.{split}.{index}", path


def _show(config: "RunConfig", sources: "list[SpecialistSource]", count: int, ids: bool) -> None:
    """Prints the first samples of each domain; all are read before the first is printed."""
    from megafuser.data.first_samples import first_kept
    from megafuser.data.preview import PLAIN, TERMINAL, show

    tokenizers = _tokenizers(sources)
    rows, positions = _sizes(sources)
    domains = [first_kept(config, name, tokenizers, rows, positions, count) for name in config.data.domains]
    style = TERMINAL if sys.stdout.isatty() else PLAIN
    print(f"{style.legend}\n")
    for domain in domains:
        for sample in range(min(count, len(domain))):
            lines = show(domain, sample, list(tokenizers.values()), list(tokenizers), style=style, ids=ids)
            print("\n".join(lines))
        for reason, refused in domain.refused.items():
            print(f"{domain.name}: {refused} of the first samples left out: {reason}\n")


def _build(config: "RunConfig", sources: "list[SpecialistSource]", directory: Path) -> None:
    """Builds or opens all caches, prints and writes the statistics."""
    from megafuser.data.cache.loading import load_data
    from megafuser.data.statistics import gather
    from megafuser.data.statistics_page import render
    from megafuser.data.statistics_table import to_text

    tokenizers = _tokenizers(sources)
    rows, positions = _sizes(sources)
    train, valid = load_data(config, tokenizers, rows, positions, ("train", "valid"))
    document = gather(config, train, valid)
    print(to_text(document))
    _write(directory, {"statistics.json": json.dumps(document, indent=1) + "\n", "statistics.html": render(document)})
    print(f"{directory / 'statistics.html'}")


def _write(directory: Path, files: dict[str, str]) -> None:
    """Writes all files or none, in place of what is there."""
    from megafuser.runtime.atomic import atomic_directory

    with atomic_directory(directory, overwrite=True) as made:
        for name, text in files.items():
            (made / name).write_text(text, encoding="utf-8")


def _tokenizers(sources: "list[SpecialistSource]") -> dict[str, Any]:
    from megafuser.data.tokenization import load_tokenizers

    return load_tokenizers({source.name: source.huggingface for source in sources})


def _sizes(sources: "list[SpecialistSource]") -> tuple[dict[str, int], dict[str, int]]:
    """Embedding rows and longest positions of each specialist."""
    rows = {source.name: source.card.vocab_size for source in sources}
    return rows, {source.name: source.card.max_position_embeddings for source in sources}


def _prepare_until_read(arguments: Sequence[str] | None) -> int:
    try:
        return _prepare(arguments)
    except BrokenPipeError:
        # The reader has seen enough, as `head` does; what is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    return guarded(_prepare_until_read, arguments)


if __name__ == "__main__":
    run_tool(main)
