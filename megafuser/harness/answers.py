"""What the harness has been told already, on disk, so that an evaluation that was cut off goes on where it was.

Those of `megafuser generate` are `inference.partial_answers`.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from megafuser.runtime.append_log import AppendLog
from megafuser.runtime.atomic import saving

logger = logging.getLogger(__name__)


class Answers:
    """Answers by request, one JSON line each, written as they come.

    A request's key holds all that its answer depends on, so that an answer is never given for another model or mode.
    """

    def __init__(self, path: Path | None, identity: Any) -> None:
        """Reads what is there.

        Args:
            path: JSONL, made where it is absent; None: nothing is kept beyond the process.
            identity: of model and settings, JSON.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        self._identity = json.dumps(identity, sort_keys=True)
        self._known: dict[str, Any] = {}
        self._log: AppendLog | None = None
        if path is None:
            return
        with saving(path):
            log = self._log = AppendLog(path, lambda record: {"key", "answer"} <= record.keys())
            self._known = {record["key"]: record["answer"] for record in log.records}
            if log.damaged:
                logger.warning("%s is damaged after %d answers; the others are computed again", path, len(self._known))

    def __enter__(self) -> "Answers":
        """Nothing more to open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes the file."""
        if self._log is not None:
            with saving(self._log.path):
                self._log.close()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._known)

    def key(self, kind: str, arguments: Sequence[Any], repeat: int = 0) -> str:
        """A request's name.

        Args:
            kind: the harness's method.
            arguments: the request's.
            repeat: which of the equal requests it is, where answers are drawn.
        """
        text = json.dumps([self._identity, kind, list(arguments), repeat], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        """Whether an answer is there."""
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        """The answer."""
        return self._known[key]

    def __setitem__(self, key: str, answer: Any) -> None:
        """Keeps an answer, on disk from now on.

        Raises:
            NotSavedError: the disk is full or fails.
        """
        self._known[key] = answer
        if self._log is not None:
            with saving(self._log.path):
                self._log.append({"key": key, "answer": answer})
