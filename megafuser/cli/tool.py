"""What the programs in `tools/` share: how they end, and the options of the two that convert.

Their other options are in `tools/`; converting is `conversion`.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from megafuser.cli.main import run_guarded
from megafuser.errors import explained_paths

# Signals that have asked this process to end. What they raise may be lost, or come out as another exception, where C++
# or Rust has just called back into Python: reading a tensor, torch has taken an interrupt for a file without `read`.
_asked: list[int] = []


def _leave_if_asked() -> None:
    if _asked:
        raise SystemExit(128 + _asked[0])


def _ask(number: int, _: FrameType | None) -> None:
    _asked.append(number)
    _leave_if_asked()


def add_conversion_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Adds `--dtype`, `--verify` and `--overwrite`, which mean the same in both directions.

    Args:
        parser: of a tool that converts.
        source: what the conversion reads, for the help.
    """
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16", "keep"),
        default="keep",
        help=f"dtype of the weights to write; keep (the default) is bitwise what the {source} has",
    )
    parser.add_argument(
        "--verify",
        choices=("none", "weights", "logits"),
        default="weights",
        help="weights (the default): read back what was written and compare every element bit by bit; logits: "
        "besides, run both models in fp32 and compare their logits, to 1e-4 of the largest (needs memory for both)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output that is already at --out")


def guarded(work: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None) -> int:
    """Does a tool's work; a mistake of the user's, a path among them, becomes one line and exit code 2.

    Args:
        work: takes the arguments, parses them, and returns the exit code.
        arguments: None for the command line's.
    """

    def explained() -> int:
        try:
            with explained_paths():
                return work(arguments)
        except Exception:
            _leave_if_asked()
            raise

    return run_guarded(explained)


@contextmanager
def conversion_progress() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """A bar in bytes with the rate and the remaining time, on standard error where that is a terminal.

    Yields:
        What to call with the phase, the bytes done and the bytes in all; and what to call with a line to show.
    """
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        shown = ""

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal shown
            _leave_if_asked()
            if phase != shown:
                shown = phase
                bar.set_description(phase, refresh=False)  # `reset` shows it
                bar.reset(total)
            bar.update(done - bar.n)

        yield progress, bar.write


def run_tool(main: Callable[[], int]) -> NoReturn:
    """Runs a tool as a program; a conversion that is ended, or whose session hangs up, takes its output with it."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _ask)
    sys.exit(main())
