"""The answers of an unfinished `megafuser generate --file`, kept beside --out until all are there.

OUT.partial is JSONL: the settings that the answers depend on, then one line per answer, written as it comes. A command
that was cut off goes on with what it finds there, and takes the file away when it has written --out. The answers of an
evaluation are `harness.answers`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megafuser.checkpoint.manifest import checkpoint_identity
from megafuser.config.run_directory import resolve_checkpoint
from megafuser.errors import UserError, is_full_disk
from megafuser.inference.open_model import Opening
from megafuser.inference.prompt_file import PromptLine
from megafuser.inference.sampling import SamplingParameters
from megafuser.runtime.append_log import AppendLog
from megafuser.runtime.atomic import saving, write_text_atomic
from megafuser.runtime.file_lock import lock

_SUFFIX = ".partial"
_KIND = "megafuser generate"


class PartialAnswers:
    """Answers by the prompt's index.

    Attributes:
        path: OUT.partial.
        settings: what the answers depend on, JSON.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Touches nothing yet.

        Args:
            out: the file that will hold all answers.
            settings: see `answer_settings`.
        """
        self._out = out.resolve()  # a link stays one
        self.path = self._out.with_name(self._out.name + _SUFFIX)
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._known: dict[int, dict[str, Any]] = {}
        self._log: AppendLog | None = None

    def check(self, *, overwrite: bool) -> None:
        """Refuses what is there and is not this command's, or a place that cannot be written; writes nothing.

        Raises:
            UserError: says what is there.
        """
        if self._out.exists() and not self._out.is_file():  # replacing a device or a pipe would take it from everybody
            raise UserError(f"--out {self._out} is not a file; choose another one")
        parent = next(path for path in self._out.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"--out {self._out} cannot be written, because of {parent}; choose another file")
        if not self.path.exists():
            return
        found = self._stored_settings()
        if found is None:
            raise UserError(f"{self.path} is in the way: it holds no answers; remove it, or choose another --out")
        if found != self.settings and not overwrite:
            differing = [key for key, value in self.settings.items() if found.get(key) != value]
            raise UserError(
                f"{self.path} holds unfinished answers with other settings ({', '.join(differing)}); choose another "
                "--out, or give --overwrite to begin again"
            )

    def begin(self, *, overwrite: bool) -> None:
        """Opens the file, or makes it; takes what is there, unless it is to be overwritten.

        Raises:
            UserError: it cannot be written, another process writes it, or one has finished since `check`.
            OSError: the disk is full.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._begin_anew()
            elif overwrite:
                with self.path.open("r+b") as old:
                    lock(old)  # whoever still writes it would go on in a file that has no name any more
                    self._begin_anew()
            self._log = AppendLog(self.path, _is_ours, exclusive=True)
        except BlockingIOError:
            raise UserError(f"{self.path} is being written by another process; choose another --out") from None
        except OSError as error:
            if is_full_disk(error):
                raise
            raise UserError(f"{self.path} cannot be written ({error.strerror}); choose another --out") from None
        self._look_again(overwrite)
        self._known = {record["index"]: record["answer"] for record in self._log.records if "kind" not in record}

    def _look_again(self, overwrite: bool) -> None:
        """The model was loaded since `check`, minutes in which another command may have come to its end, or begun."""
        assert self._log is not None
        is_mine = self._log.records[:1] == [self._header()]
        is_new = not self._log.records  # it was taken away before it was opened
        finished = self._out.exists() and not overwrite
        if is_mine and not finished:
            return
        if is_new:
            self.path.unlink()
        self._log.close()
        raise UserError(
            f"another command has written {self._out if finished or is_new else self.path} meanwhile; choose another "
            "--out, or give --overwrite"
        )

    def _header(self) -> dict[str, Any]:
        return {"kind": _KIND, "settings": self.settings}

    def _begin_anew(self) -> None:
        write_text_atomic(self.path, json.dumps(self._header()) + "\n")

    def __len__(self) -> int:
        """How many there are."""
        return len(self._known)

    def __contains__(self, index: int) -> bool:
        """Whether an answer is there."""
        return index in self._known

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The answer."""
        return self._known[index]

    def keep(self, index: int, answer: dict[str, Any]) -> None:
        """Keeps an answer, on disk from now on.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        assert self._log is not None, "nothing has begun"
        with saving(self.path):
            self._log.append({"index": index, "answer": answer})
        self._known[index] = answer

    def finish(self, text: str) -> None:
        """Writes --out, whole or not at all, and takes the partial file away.

        Args:
            text: what --out will hold.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        assert self._log is not None, "nothing has begun"
        with saving(self._out):
            write_text_atomic(self._out, text)
            self.path.unlink()
            self._log.close()

    def _stored_settings(self) -> dict[str, Any] | None:
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline())
        except (OSError, ValueError):
            return None
        is_ours = isinstance(header, dict) and header.get("kind") == _KIND and isinstance(header.get("settings"), dict)
        return header["settings"] if is_ours else None


def _is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a line is the first one, with the settings, or an answer."""
    return record.get("kind") == _KIND or {"index", "answer"} <= record.keys()


def answer_settings(
    opening: Opening,
    *,
    prompts: Sequence[PromptLine],
    raw: bool,
    max_new_tokens: int,
    sampling: SamplingParameters,
    stop: tuple[str, ...],
    show_gate: bool,
) -> dict[str, Any]:
    """What the answers depend on: checkpoint and prompts by their content, which may have moved; not the layout.

    Raises:
        UserError: there is no checkpoint.
    """
    records = json.dumps([line.record for line in prompts])  # not the file's bytes: a pipe is read once
    return {
        "checkpoint": checkpoint_identity(resolve_checkpoint(opening.checkpoint)),
        "file": hashlib.sha256(records.encode()).hexdigest(),
        "force": opening.force,
        "overrides": list(opening.overrides),
        "raw": raw,
        "max_new_tokens": max_new_tokens,
        **dataclasses.asdict(sampling),
        "stop": list(stop),
        "show_gate": show_gate,
    }
