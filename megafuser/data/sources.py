"""Samples from JSONL files; every mistake in a file is told with the file and the line number."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megafuser.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One instruction sample or chat, before any template.

    Attributes:
        turns: (instruction, response) pairs, at least one.
        system: the system prompt, if there is one.
        id: the line's `id`, else FILE_NAME:LINE.
    """

    turns: tuple[tuple[str, str], ...]
    system: str | None
    id: str


def read_samples(paths: Sequence[str], domain: str) -> list[Sample]:
    """Reads the samples of one domain, in the order of the files and their lines; blank lines are skipped.

    Args:
        paths: JSONL files, each line `{"instruction", "response"}` or `{"messages"}`, optional `system` and `id`.
        domain: name of the domain, for messages.

    Raises:
        UserError: a file is missing or empty, or a line is not as documented.
    """
    if not paths:
        raise UserError(f"data.domains.{domain} lists no file; give at least one JSONL file")
    samples: list[Sample] = []
    for path in paths:
        samples.extend(_read_file(Path(path), domain))
    return samples


def _read_file(path: Path, domain: str) -> list[Sample]:
    samples = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    samples.append(_read_line(line, path, number))
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path} {reason}; correct data.domains.{domain}") from None
    if not samples:
        raise UserError(f"{path} is empty; data.domains.{domain} needs a file with one JSON object a line")
    return samples


def _read_line(line: bytes, path: Path, number: int) -> Sample:
    where = f"{path}:{number}"
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; store the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        detail = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"{where}: not JSON ({detail}); each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {_kind(record)}, not an object; each line must be one JSON object")
    identity = record.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise UserError(f"{where}: `id` must be a string or an integer, not {_kind(identity)}")
    system = None if record.get("system") is None else _text(record, "system", where)
    if "messages" not in record:
        turns: tuple[tuple[str, str], ...] = (
            (_text(record, "instruction", where), _response(record, "response", where)),
        )
    elif "instruction" in record or "response" in record:
        raise UserError(f"{where}: has both `messages` and `instruction` or `response`; keep one form")
    else:
        own_system, turns = _read_messages(record["messages"], where)
        if own_system is not None and system is not None:
            raise UserError(f"{where}: has both `system` and a system message; keep one of them")
        system = own_system if system is None else system
    # An empty system prompt says nothing; taking it for none keeps templates from writing empty brackets.
    return Sample(turns=turns, system=system or None, id=f"{path.name}:{number}" if identity is None else str(identity))


def _read_messages(messages: Any, where: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """System prompt and turns of a chat: an optional system message, then user and assistant in turn."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: `messages` must be a non-empty list of objects with `role` and `content`")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise UserError(f"{where}: messages[{index}] is {_kind(message)}, not an object with `role` and `content`")
    system = None
    rest = list(enumerate(messages))
    if messages[0].get("role") == "system":
        system = _text(messages[0], "content", f"{where}: messages[0]")
        rest = rest[1:]
    for place, (index, message) in enumerate(rest):
        expected = "assistant" if place % 2 else "user"
        if message.get("role") != expected:
            raise UserError(
                f"{where}: messages[{index}] has role {message.get('role')!r} where {expected!r} must be; "
                "after an optional system message, user and assistant alternate"
            )
    if not rest or len(rest) % 2:
        raise UserError(f"{where}: `messages` must end with an assistant message")
    turns = [
        (_text(user, "content", f"{where}: messages[{i}]"), _response(assistant, "content", f"{where}: messages[{j}]"))
        for (i, user), (j, assistant) in zip(rest[::2], rest[1::2], strict=True)
    ]
    return system, tuple(turns)


def _response(record: dict[str, Any], field: str, where: str) -> str:
    text = _text(record, field, where)
    if not text.strip():
        raise UserError(f"{where}: `{field}` is empty; a sample needs a response to learn from")
    return text


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(f"{where}: lacks `{field}`; a line has `instruction` and `response`, or `messages`")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: `{field}` must be a string, not {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: `{field}` has half of a surrogate pair, which no text can hold") from None
    return text


def _kind(value: Any) -> str:
    """JSON's name of the value's type."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return {int: "number", float: "number", str: "string", list: "list", dict: "object"}[type(value)]
