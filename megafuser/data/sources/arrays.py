"""Items of a file that is one JSON array, which is never in memory as a whole.

A sample is made of an item in `data.sources.samples`; files of lines are `data.sources.jsonl`.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

from megafuser.data.sources.formats import BYTE_ORDER_MARK, GZIP_ERRORS, damaged_gzip, open_file
from megafuser.data.sources.records import LONGEST_RECORD, BadRecord, Block, place, too_long

# The halves of a surrogate pair as JSON escapes them, and the bytes of both.
_FIRST_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_SECOND_HALF = re.compile(rb"\\u[dD][c-fC-F]")
_PAIR_BYTES = 12


def read_array(path: str, block_bytes: int) -> Iterator[Block | BadRecord]:
    """Reads the items of a JSON array.

    Args:
        path: .json, or .json.gz.
        block_bytes: about what a block holds of the file's bytes.

    Yields:
        Blocks of parsed items; a `BadRecord` where the file is not JSON any more, behind which nothing is read.

    Raises:
        UserError: the file cannot be opened.
    """
    import ijson

    with open_file(path) as (contents, raw):
        watched = _Watched(contents)
        items: list[Any] = []
        number, behind, begun = 1, 0, 0
        bad = None
        try:
            for item in ijson.items(watched, "item"):
                watched.since_item = 0
                items.append(item)
                if watched.position - begun >= block_bytes:
                    yield Block(path, number, items, "item", raw.tell() - behind)
                    number, behind, begun = number + len(items), raw.tell(), watched.position
                    items = []
        except GZIP_ERRORS as error:
            bad = damaged_gzip(path, "item", number + len(items), error)
        except _TooLong:
            bad = too_long(path, "item", number + len(items))
        except (ijson.JSONError, UnicodeError, _HalfPair) as error:
            bad = _no_json(path, number + len(items), error)
        if items:
            yield Block(path, number, items, "item", raw.tell() - behind)
        if bad is not None:
            yield bad


class _TooLong(Exception):
    """An item is beyond the limit."""


class _HalfPair(Exception):
    """A text has half of a surrogate pair, for which the parser would put a question mark."""


class _Watched:
    """A file as ijson reads it, which says when an item is too long to hold or has what the parser would change."""

    def __init__(self, contents: io.BufferedIOBase) -> None:
        self.contents = contents
        self.position = self.since_item = 0
        self.tail = b""

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if self.since_item > LONGEST_RECORD:
            raise _TooLong
        data = self.contents.read(size)
        if self.position == 0:
            data = data.removeprefix(BYTE_ORDER_MARK)
        self.position += len(data)
        self.since_item += len(data)
        self._refuse_half_pairs(data)
        return data

    def _refuse_half_pairs(self, data: bytes) -> None:
        """Looks through the bytes read, but for the last few, where the second half may be still to come."""
        seen = self.tail + data
        for match in _FIRST_HALF.finditer(seen):
            if data and match.start() + _PAIR_BYTES > len(seen):
                break
            # A backslash that is itself escaped begins no escape.
            escaped = _backslashes(seen, match.start()) % 2
            if not escaped and not _SECOND_HALF.match(seen, match.end()):
                raise _HalfPair
        start = max(0, len(seen) - 2 * _PAIR_BYTES)
        self.tail = seen[start - _backslashes(seen, start) :]


def _backslashes(data: bytes, end: int) -> int:
    """How many of them stand right before a position."""
    start = end
    while start and data[start - 1 : start] == b"\\":
        start -= 1
    return end - start


def _no_json(path: str, number: int, error: Exception) -> BadRecord:
    where = place(path, "item", number)
    rest = "nothing behind it is read"
    if isinstance(error, _HalfPair):
        problem = (
            f"this item or one soon behind it has half of a surrogate pair, which no text can hold; {rest}; remove it"
        )
        return BadRecord(where, problem, "half a surrogate pair")
    reason = str(error).removeprefix("b'").removeprefix('b"').split("\n")[0].split("\\n")[0]
    if "premature EOF" in reason or "Incomplete" in reason:
        return BadRecord(
            where, "the file ends inside the array, as if its writing was cut off; write it again", "torn file"
        )
    if "UTF8" in reason or isinstance(error, UnicodeError):
        return BadRecord(where, f"not UTF-8; {rest}; store the file as UTF-8", "not UTF-8")
    return BadRecord(where, f"not JSON ({reason}); {rest}; the file must be one JSON array of objects", "not JSON")
