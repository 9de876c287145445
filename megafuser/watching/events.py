"""`RUN_DIR/events.jsonl`: when the run was started, what it warned of, and how it ended, a line each.

`{"time": …, "event": …, "stage": …, "message": …}`; events are `started`, `warning`, `error` (said in the log),
`failed` (what ended it), `stopped` (early, on purpose) and `finished`. Time is in seconds since 1970. A line is written
at once, by rank 0, and never taken back: what happened in steps that are done again did happen. It is not part of what
makes a run the same as another.

The numbers of the steps are `watching.metrics_file`.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megafuser.config.run_directory import RunDirectory
from megafuser.errors import StoppedEarly, UserError
from megafuser.runtime.world import whereabouts
from megafuser.watching.json_lines import read_lines

LOGGER = "megafuser"


def record(run_directory: Path, event: str, stage: str, message: str = "", **more: Any) -> None:
    """Appends an event to a run's file.

    Args:
        run_directory: the run's; where it is not there yet, nothing is written.
        event: see above.
        stage: `warmup` or `joint`.
        message: one line for a person.
        more: further fields.
    """
    if not run_directory.is_dir():
        return
    line = {"time": round(time.time(), 3), "event": event, "stage": stage, "message": message, **more}
    path = RunDirectory(run_directory).events_file
    try:
        # a full disk may have cut the line before
        begin = "\n" if _is_cut(path) else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(begin + json.dumps(line) + "\n")
    except OSError as error:
        # Not by the log, whose warnings come here. What the event is about, such as a full disk, matters more.
        print(f"megafuser: warning: {path} cannot be written ({error})", file=sys.stderr, flush=True)


def _is_cut(path: Path) -> bool:
    """Whether a file ends within a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def record_start(run_directory: Path, stage: str, *, step: int, steps: int, ranks: int) -> None:
    """Notes that a stage's steps begin now, and where.

    Args:
        run_directory: the run's.
        stage: `warmup` or `joint`.
        step: done already.
        steps: in all.
        ranks: processes.
    """
    text = f"step {step} of {steps} done"
    record(run_directory, "started", stage, text, step=step, steps=steps, ranks=ranks, **whereabouts())


class _Recorder(logging.Handler):
    """Writes warnings of the program's log to the run's events."""

    def __init__(self, run_directory: Path, stage: str) -> None:
        super().__init__(logging.WARNING)
        self._run_directory, self._stage = run_directory, stage

    def emit(self, entry: logging.LogRecord) -> None:
        event = "error" if entry.levelno >= logging.ERROR else "warning"
        record(self._run_directory, event, self._stage, entry.getMessage())


def _has_finished(run_directory: Path, stage: str) -> bool:
    """Whether the last event says so already; a finished stage that is started again does nothing."""
    found: dict[str, Any] = next(reversed(read_lines(RunDirectory(run_directory).events_file)), {})
    return (found.get("event"), found.get("stage")) == ("finished", stage)


@contextmanager
def recorded(
    run_directory: Path, stage: str, *, writes: bool, is_anothers: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Writes warnings that are logged meanwhile to the run's events, and how it ends.

    Args:
        run_directory: the run's.
        stage: `warmup` or `joint`.
        writes: whether this is the process that writes; the others' warnings are on standard error only.
        is_anothers: asked at an early end: whether the run is another process's, so that this end is none of the run's.
    """

    def record_end(event: str, message: str) -> None:
        if not is_anothers():
            record(run_directory, event, stage, message)

    if not writes:
        yield
        return
    handler = _Recorder(run_directory, stage)
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        yield
    except UserError:
        raise  # a wrong command; what is wrong with it is not an event of the run
    except KeyboardInterrupt:
        record_end("stopped", "interrupted")
        raise
    except StoppedEarly as reason:
        record_end("stopped", str(reason))
        raise
    except Exception as error:
        record_end("failed", f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    else:
        if not _has_finished(run_directory, stage):
            record(run_directory, "finished", stage)
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
