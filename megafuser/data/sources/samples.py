"""What makes a sample of a line or a row; every mistake in one is told with its place.

Templates are not applied here, nor ids made: `data.templates` and `data.tokenization`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megafuser.config.data import FIELDS
from megafuser.config.values import closest
from megafuser.data.sources.records import BadRecord, Block

# Names of the two sides of a chat; those of ShareGPT beside the usual ones.
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_KINDS = {int: "number", float: "number", str: "string", list: "list", dict: "object", bytes: "binary"}

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """One instruction sample or chat, before any template.

    Attributes:
        turns: (instruction, response) pairs, at least one.
        system: the system prompt, if there is one.
        id: the line's `id`, else FILE_NAME:LINE.
        where: its place, as messages name it.
        named: whether the id is the line's own.
    """

    turns: Turns
    system: str | None
    id: str
    where: str = ""
    named: bool = False


class _Unusable(Exception):
    """Why an item makes no sample: the problem, and its kind."""

    def __init__(self, problem: str, kind: str) -> None:
        super().__init__(problem)
        self.problem, self.kind = problem, kind


def parse_block(block: Block, fields: Mapping[str, str]) -> list[Sample | BadRecord]:
    """Makes samples of a block's items, in order; blank lines are skipped.

    Args:
        block: as `read_blocks` gives them.
        fields: names of the fields in this source, where they are not ours.
    """
    parser = _Parser(fields)
    name = Path(block.source).name if block.unit == "line" else block.source
    parsed: list[Sample | BadRecord] = []
    for index, item in enumerate(block.items):
        number = block.first + index
        try:
            if block.unit == "line":
                torn = block.torn and index == len(block.items) - 1
                record = _parse_line(item, first=number == 1, torn=torn)
                if record is _BLANK:
                    continue
            else:
                record = item
            parsed.append(parser.sample(record, f"{name}:{number}", block.where(index), block.unit))
        except _Unusable as reason:
            parsed.append(BadRecord(block.where(index), reason.problem, reason.kind))
    return parsed


_BLANK = object()


def _parse_line(line: bytes, *, first: bool, torn: bool) -> Any:
    if first:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if not line.strip():
        return _BLANK
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        if torn and isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise _Unusable(
                "the file ends inside this line, as if its writing was cut off; write it again or remove the line",
                "torn last line",
            ) from None
        if isinstance(error, UnicodeDecodeError):
            raise _Unusable(
                f"not UTF-8 (byte {error.start + 1} of the line); store the file as UTF-8", "not UTF-8"
            ) from None
        detail = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise _Unusable(f"not JSON ({detail}); each line must be one JSON object", "not JSON") from None


class _Parser:
    """Makes samples of parsed items whose fields have the names that a source gives them."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.names = {name: fields.get(name, name) for name in FIELDS}
        chat = any(name in fields for name in ("messages", "role", "content"))
        single = any(name in fields for name in ("instruction", "response"))
        # Where only one form's fields are mapped, that form is meant, whatever else an item has.
        self.form = None if chat == single else "chat" if chat else "single"

    def sample(self, record: Any, fallback_id: str, where: str, unit: str) -> Sample:
        """The sample of one item.

        Raises:
            _Unusable: it is none.
        """
        if not isinstance(record, dict):
            remedy = "each line must be one JSON object" if unit == "line" else f"each {unit} must be an object"
            raise _Unusable(f"a JSON {_kind(record)}, not an object; {remedy}", "not an object")
        identity = self._identity(record)
        name = self.names["system"]
        system = None if record.get(name) is None else self._text(record, "system")
        if self._is_chat(record):
            own_system, turns = self._messages(record[self.names["messages"]])
            if own_system is not None and system is not None:
                raise _Unusable(f"has both `{name}` and a system message; keep one of them", "two system prompts")
            system = own_system if system is None else system
        else:
            instruction = self._filled(record, "instruction")
            turns = ((instruction, self._filled(record, "response")),)
        # An empty system prompt says nothing; taking it for none keeps templates from writing empty brackets.
        named = identity is not None
        return Sample(turns, system or None, str(identity) if named else fallback_id, where, named)

    def _identity(self, record: dict[str, Any]) -> Any:
        name = self.names["id"]
        identity = record.get(name)
        if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
            raise _Unusable(f"`{name}` must be a string or an integer, not {_kind(identity)}", "`id` of another type")
        if isinstance(identity, str):
            _refuse_surrogates(identity, f"`{name}`")
        return identity

    def _is_chat(self, record: dict[str, Any]) -> bool:
        instruction, response, messages = (self.names[name] for name in ("instruction", "response", "messages"))
        if self.form is not None:
            if self.form == "chat" and messages not in record:
                raise self._missing(record, "messages", "")
            return self.form == "chat"
        single = record.get(instruction) is not None or record.get(response) is not None
        if record.get(messages) is None:
            # Tables have every column in every row; one that is null is taken for missing where the other form is.
            return messages in record and not single
        if single:
            raise _Unusable(
                f"has both `{messages}` and `{instruction}` or `{response}`; keep one form, or name the fields of one "
                "in the source's `fields`",
                "two forms",
            )
        return True

    def _messages(self, messages: Any) -> tuple[str | None, Turns]:
        """System prompt and turns of a chat: an optional system message, then user and assistant in turn."""
        listed, role, content = (self.names[name] for name in ("messages", "role", "content"))
        if not isinstance(messages, list) or not messages:
            problem = f"`{listed}` must be a non-empty list of objects with `{role}` and `{content}`"
            raise _Unusable(problem, "no messages")
        for index, message in enumerate(messages):
            if not isinstance(message, dict):
                problem = (
                    f"{listed}[{index}] is {_kind(message)}, not an object with `{role}` and `{content}`; make it one"
                )
                raise _Unusable(problem, "a message is not an object")
        system = None
        rest = list(enumerate(messages))
        if messages[0].get(role) == "system":
            system = self._text(messages[0], "content", f"{listed}[0]: ")
            rest = rest[1:]
        for position, (index, message) in enumerate(rest):
            expected = "assistant" if position % 2 else "user"
            self._check_role(message, expected, f"{listed}[{index}]")
        if not rest or len(rest) % 2:
            raise _Unusable(f"`{listed}` must end with an assistant message", "no response at the end")
        turns = [
            (
                self._filled(user, "content", f"{listed}[{i}]: ", "instruction"),
                self._filled(assistant, "content", f"{listed}[{j}]: ", "response"),
            )
            for (i, user), (j, assistant) in zip(rest[::2], rest[1::2], strict=True)
        ]
        return system, tuple(turns)

    def _check_role(self, message: dict[str, Any], expected: str, name: str) -> None:
        role = self.names["role"]
        if role not in message:
            raise self._missing(message, "role", f"{name}: ")
        given = message[role]
        if not isinstance(given, str) or _ROLES.get(given) != expected:
            raise _Unusable(
                f"{name} has role {given!r} where {expected!r} must be; "
                "after an optional system message, user and assistant alternate",
                "roles do not alternate",
            )

    def _filled(self, record: dict[str, Any], field: str, prefix: str = "", part: str | None = None) -> str:
        """Text that says something; `part` is what the field is of its turn, where its name does not say."""
        part = part or field
        text = self._text(record, field, prefix)
        if not text.strip():
            use = "to answer" if part == "instruction" else "to learn from"
            article = "an instruction" if part == "instruction" else "a response"
            raise _Unusable(
                f"{prefix}`{self.names[field]}` is empty; give {article} {use}, or remove the sample", f"empty {part}"
            )
        return text

    def _text(self, record: dict[str, Any], field: str, prefix: str = "") -> str:
        name = self.names[field]
        if name not in record:
            raise self._missing(record, field, prefix)
        text = record[name]
        if not isinstance(text, str):
            raise _Unusable(f"{prefix}`{name}` must be a string, not {_kind(text)}", f"`{field}` is not text")
        _refuse_surrogates(text, f"{prefix}`{name}`")
        return text

    def _missing(self, record: dict[str, Any], field: str, prefix: str) -> _Unusable:
        """That a field lacks, with the name that was perhaps meant."""
        name = self.names[field]
        chat = _alias(record, "messages") if field in ("instruction", "response") else None
        near = chat or _alias(record, field) or closest(name, map(str, record))
        has = f"the nearest field that is there is {near!r}" if near else f"it has {_listed(record)}"
        remedy = f"`fields: {{{'messages' if chat else field}: {near or 'NAME'}}}`"
        return _Unusable(f"{prefix}lacks `{name}`; {has}; name it in the source's {remedy}", f"lacks `{field}`")


# Names of the same thing in the public instruction sets.
_ALIASES = {
    "instruction": ("prompt", "question", "problem", "query", "input"),
    "response": ("output", "answer", "solution", "completion", "target"),
    "messages": ("conversations", "conversation", "chat", "dialog"),
    "role": ("from", "speaker"),
    "content": ("value", "text"),
}


def _alias(record: dict[str, Any], field: str) -> str | None:
    return next((name for name in _ALIASES.get(field, ()) if name in record), None)


def _listed(record: dict[str, Any], most: int = 8) -> str:
    names = [str(name) for name in record]
    return (", ".join(names[:most]) + (", …" if len(names) > most else "")) if names else "no field"


def _refuse_surrogates(text: str, name: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        problem = f"{name} has half of a surrogate pair, which no text can hold; remove it"
        raise _Unusable(problem, "half a surrogate pair") from None


def _kind(value: Any) -> str:
    """JSON's name of the value's type, or Python's of one that JSON does not have."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return _KINDS.get(type(value), type(value).__name__)
