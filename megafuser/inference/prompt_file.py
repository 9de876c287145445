"""The lines of `megafuser generate --file`: prompts or chats, checked before any model is loaded.

Ids are made of them by `inference.prompts`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megafuser.errors import UserError
from megafuser.inference.prompts import Message


@dataclass(frozen=True)
class PromptLine:
    """One line.

    Attributes:
        record: as read.
        where: FILE:LINE.
        messages: what is asked; a `prompt` is one message of the user's.
    """

    record: dict[str, Any]
    where: str
    messages: tuple[Message, ...]


def read_prompts(path: Path, *, raw: bool) -> list[PromptLine]:
    """Reads all lines; blank ones are skipped.

    Args:
        path: a JSONL file.
        raw: whether the prompts go to all specialists as they are, which chats cannot.

    Raises:
        UserError: the file cannot be read or a line cannot be used; names it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--file {path} cannot be read: {error.strerror}; give another file") from None
    found = [_prompt_line(line, f"{path}:{number}", raw) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(f"--file {path} has no line; give one prompt a line")
    return found


def _prompt_line(line: bytes, where: str, raw: bool) -> PromptLine:
    try:
        record = json.loads(line.decode("utf-8-sig"))
        # it is written again: NaN, infinity and halves of surrogate pairs would only be found out then
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON in UTF-8 ({error}); write one JSON object a line") from None
    if not isinstance(record, dict):
        raise UserError(f'{where} is not a JSON object; write {{"prompt": ...}} or {{"messages": [...]}}')
    prompt, messages = record.get("prompt"), record.get("messages")
    if (prompt is None) == (messages is None):
        raise UserError(f"{where} must have either prompt or messages")
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: prompt must be a text that is not empty")
        return PromptLine(record, where, (Message("user", prompt),))
    if raw:
        raise UserError(f"{where} has messages, which need templates; leave --raw out")
    return PromptLine(record, where, as_messages(messages, where))


def as_messages(messages: Any, where: str) -> tuple[Message, ...]:
    """Messages out of JSON.

    Raises:
        UserError: they are not; begins with `where`.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list that is not empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where}: messages.{index} must have role and content, both texts")
    return tuple(Message(message["role"], message["content"]) for message in messages)
