"""The directory of an evaluation: what it is of, whether it is finished, and whether a command may go on in it.

The table in it is made by `harness.results`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megafuser.errors import UserError, is_full_disk
from megafuser.runtime.atomic import check_can_be_written, saving, write_text_atomic
from megafuser.runtime.file_lock import lock
from megafuser.runtime.json_values import json_safe
from megafuser.runtime.world import whereabouts

_STATE = "evaluation.json"
_LOCK = "evaluation.lock"  # stays: a lock on a file that was removed keeps nobody out
_ANSWERS, _SAMPLES, _RESULTS, _TABLE = "answers", "samples", "results.json", "table.md"


@dataclass(frozen=True)
class EvaluationDirectory:
    """An evaluation's directory.

    Attributes:
        directory: it.
        settings: what the results depend on, JSON.
    """

    directory: Path
    settings: dict[str, Any]

    def check(self, *, overwrite: bool) -> None:
        """Refuses what is there and is not this evaluation, unfinished, and what cannot be written; writes nothing.

        Args:
            overwrite: what is there may be any evaluation.

        Raises:
            UserError: says what is there.
        """
        check_can_be_written(self.directory, "--out")
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise UserError(f"--out {self.directory} is not a directory; choose another one")
        if [path.name for path in self.directory.iterdir()] == [_LOCK]:
            return  # of one for whose first file the disk had no room
        state = self._state()
        if overwrite:
            if state is None and any(self.directory.iterdir()):
                raise UserError(f"--out {self.directory} holds no evaluation, so it is not overwritten; choose another")
        elif state is None or state["finished"]:
            raise UserError(f"--out {self.directory} exists; choose another directory or give --overwrite")
        elif state["settings"] != self.settings:
            differing = [key for key in self.settings if state["settings"].get(key) != self.settings[key]]
            raise UserError(
                f"--out {self.directory} holds an unfinished evaluation with other settings ({', '.join(differing)}); "
                "choose another directory, or give --overwrite"
            )

    @contextmanager
    def begin(self, *, overwrite: bool) -> Iterator[None]:
        """Makes the directory, and keeps other evaluations out of it while its body runs.

        Takes away the evaluation that is to be overwritten, also this one, unfinished.

        Raises:
            UserError: it cannot be written, another process is at it, or one was meanwhile.
            OSError: the disk is full.
        """
        is_there = self.directory.exists()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = (self.directory / _LOCK).open("a")
        except OSError as error:
            if is_full_disk(error):
                raise
            raise self._refusal(error) from None
        with file:
            try:
                lock(file)
            except BlockingIOError:
                raise UserError(
                    f"--out {self.directory} is being written by another evaluation; wait for it, or choose another one"
                ) from None
            if is_there:
                self.check(overwrite=overwrite)
            try:
                if overwrite:
                    self._clear()
                self._write_state(finished=False)
            except OSError as error:
                if is_full_disk(error):
                    raise
                raise self._refusal(error) from None
            yield

    def _clear(self) -> None:
        for name in (_ANSWERS, _SAMPLES):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        for name in (_RESULTS, _TABLE, _STATE):
            (self.directory / name).unlink(missing_ok=True)

    def _refusal(self, error: OSError) -> UserError:
        return UserError(f"--out {self.directory} cannot be written ({error.strerror or error}); choose another one")

    def answers_file(self, model: str) -> Path:
        """Where a model's answers are kept."""
        return self.directory / _ANSWERS / f"{model}.jsonl"

    def write_samples(self, model: str, samples: dict[str, list[dict[str, Any]]]) -> None:
        """Every question with its answers and scores, a file for each task.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        with saving(self.directory / _SAMPLES):
            for task, records in samples.items():
                path = self.directory / _SAMPLES / model / f"{task.replace('/', '_')}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = (json.dumps(json_safe(record), ensure_ascii=False) + "\n" for record in records)
                write_text_atomic(path, "".join(lines))

    def finish(self, results: dict[str, Any], table: str) -> None:
        """Writes results and table; the evaluation is finished then.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        with saving(self.directory):
            write_text_atomic(self.directory / _TABLE, table)
            text = json.dumps(json_safe(results), indent=2, ensure_ascii=False)
            write_text_atomic(self.directory / _RESULTS, text + "\n")
            self._write_state(finished=True)

    def _state(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self.directory / _STATE).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return state if isinstance(state, dict) and {"finished", "settings"} <= state.keys() else None

    def _write_state(self, *, finished: bool) -> None:
        # by its number, a job that Slurm starts again knows its own
        state = {"finished": finished, "settings": self.settings, "slurm_job": whereabouts().get("slurm_job")}
        write_text_atomic(self.directory / _STATE, json.dumps(state, indent=2) + "\n")
