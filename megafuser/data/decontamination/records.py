"""What is searched of a line: every string in it, whatever its fields are called.

It makes no samples of a line: `data.sources.samples` does.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from megafuser.data.sources.records import BadRecord, Block

# The only way for half a pair into a line that is UTF-8.
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def is_blank(block: Block, index: int) -> bool:
    """Whether there is nothing on a line."""
    return not _line(block, index).strip()


def _line(block: Block, index: int) -> bytes:
    line: bytes = block.items[index]
    return line.removeprefix(b"\xef\xbb\xbf") if block.first + index == 1 else line


def read_record(block: Block, index: int) -> dict[str, Any] | BadRecord | None:
    """The object on a line; None of a blank line.

    Args:
        block: of lines.
        index: which of them.
    """
    line = _line(block, index)
    if not line.strip():
        return None
    where = block.where(index)
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(where, f"not UTF-8 (byte {error.start + 1} of the line); store the file as UTF-8", "not UTF-8")
    except (ValueError, RecursionError):
        return BadRecord(where, "not JSON; each line must be one JSON object", "not JSON")
    if not isinstance(record, dict):
        return BadRecord(where, "no JSON object; each line must be one", "not an object")
    if _ESCAPED_SURROGATE.search(line) and _has_half_a_pair(record):
        problem = "has half of a surrogate pair, which no text can hold; remove it"
        return BadRecord(where, problem, "half a surrogate pair")
    return record


def _has_half_a_pair(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def texts_of(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The strings in a record with the names of their fields: `instruction`, `messages[0].content`."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from texts_of(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from texts_of(part, f"{name}[{index}]")
