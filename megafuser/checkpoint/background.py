"""Saving beside training: every rank's thread writes its part, rank 0's makes the checkpoint appear when all have.

No thread takes part in a collective; they talk through a `Board`. Whether a save has succeeded is decided by rank 0's
thread alone, so that all ranks are told the same. When a stage saves is decided by `training.loop`; what a rank writes
is its `checkpoint.snapshot`.
"""

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megafuser.checkpoint.snapshot import Snapshot, WritingStoppedError, Written
from megafuser.config.run_directory import WEIGHTS
from megafuser.errors import UserError
from megafuser.runtime.atomic import atomic_directory
from megafuser.runtime.message_board import Board, NothingPostedError

# How long a rank that has written waits for the others: file systems that many share differ by minutes, not by hours.
_PATIENCE_SECONDS = 3600.0

# Given the directory and the hashes of the files in it; adds the rest, the manifest included.
Complete = Callable[[Path, Mapping[str, str]], None]


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on all ranks.

    Attributes:
        target: the checkpoint's directory.
        error: why there is none; None where it is complete.
        is_bug: whether the error is none of the disk's or of the other ranks'.
        is_refused: whether it is one of the target, which room on the disk would not mend.
        nbytes: of all ranks' files.
        seconds: from the start of the writing to its end.
    """

    target: Path
    error: str | None = None
    is_bug: bool = False
    is_refused: bool = False
    nbytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Report:
    """What a rank tells rank 0 of its writing."""

    written: Written | None = None
    error: str | None = None
    is_bug: bool = False


class BackgroundSave:
    """One save, from its start to its outcome."""

    def __init__(
        self,
        snapshot: Snapshot,
        target: Path,
        complete: Complete,
        publish: Callable[[], None],
        *,
        overwrite: bool = True,
    ) -> None:
        """Starts the thread; every rank does.

        Args:
            snapshot: this rank's part of the state.
            target: the checkpoint's directory, on a file system that all ranks share.
            complete: called on rank 0 when all ranks have written, before the directory appears.
            publish: called on rank 0 when it has appeared.
            overwrite: whether what is at `target` by then is replaced.
        """
        self._snapshot: Snapshot | None = snapshot
        self._target = target
        self._complete, self._publish, self._overwrite = complete, publish, overwrite
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._board = Board()
        self._stop = threading.Event()
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, name=f"save {target.name}", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> Outcome | None:
        """Waits for the outcome; None where there is none in that time."""
        self._thread.join(seconds)
        return self._outcome if self.done else None

    def cancel(self) -> None:
        """Ends the save as soon as may be; rank 0 removes what there is of it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._outcome = self._lead() if self._rank == 0 else self._follow()
        except NothingPostedError as error:
            self._outcome = Outcome(self._target, f"no answer about {error}")
        except BaseException:
            self._outcome = Outcome(self._target, f"rank {self._rank}: {traceback.format_exc()}", is_bug=True)
        finally:
            self._snapshot = None

    def _lead(self) -> Outcome:
        started = time.monotonic()
        outcome = Outcome(self._target)
        try:
            with atomic_directory(self._target, overwrite=self._overwrite) as directory:
                nbytes = self._fill(directory)
            self._publish()
            outcome = Outcome(self._target, nbytes=nbytes, seconds=time.monotonic() - started)
        except (OSError, UserError, _OtherRankError, WritingStoppedError) as error:
            is_bug = isinstance(error, _OtherRankError) and error.is_bug
            is_refused = isinstance(error, UserError)
            outcome = Outcome(self._target, str(error) or "it was stopped", is_bug=is_bug, is_refused=is_refused)
        except BaseException:
            outcome = Outcome(self._target, f"rank 0: {traceback.format_exc()}", is_bug=True)
        self._board.post("outcome", outcome)
        return outcome

    def _fill(self, directory: Path) -> int:
        """Everything between the making of the directory and its appearing; returns the bytes of all ranks' files."""
        (directory / WEIGHTS).mkdir()
        self._board.post("directory", str(directory))
        # Also after an error here: the others may be writing, and must be done before their directory is removed.
        reports = [self._write(directory), *(self._report_of(rank) for rank in range(1, self._ranks))]
        for rank, report in enumerate(reports):
            if report.error is not None:
                raise _OtherRankError(f"rank {rank}: {report.error}" if rank else report.error, report.is_bug)
        assert self._snapshot is not None
        written = [report.written for report in reports if report.written is not None]
        hashes = self._snapshot.complete(directory / WEIGHTS, written)
        self._complete(directory, {f"{WEIGHTS}/{name}": value for name, value in hashes.items()})
        return sum(part.nbytes for part in written)

    def _report_of(self, rank: int) -> _Report:
        key = f"report {rank}"
        try:
            _, report = self._board.wait([key], self._stop, _PATIENCE_SECONDS)
        except NothingPostedError:
            return _Report(error="it did not say that it has written its part")
        self._board.remove(key)
        written: _Report = report
        return written

    def _follow(self) -> Outcome:
        key, message = self._board.wait(["outcome", "directory"], self._stop, _PATIENCE_SECONDS)
        if key == "directory":
            self._board.post(f"report {self._rank}", self._write(Path(message)))
            _, message = self._board.wait(["outcome"], self._stop, 2 * _PATIENCE_SECONDS)
        outcome: Outcome = message
        return outcome

    def _write(self, directory: Path) -> _Report:
        assert self._snapshot is not None
        try:
            return _Report(self._snapshot.write(directory / WEIGHTS, self._stop))
        except OSError as error:
            return _Report(error=str(error))
        except WritingStoppedError:
            return _Report(error="it was stopped")
        except BaseException:
            return _Report(error=traceback.format_exc(), is_bug=True)


class _OtherRankError(Exception):
    """A rank could not write its part."""

    def __init__(self, message: str, is_bug: bool) -> None:
        super().__init__(message)
        self.is_bug = is_bug
