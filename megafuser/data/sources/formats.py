"""Which format a file has, and its bytes, uncompressed where it is a .gz.

Items are cut out of the bytes by `data.sources.jsonl`, `data.sources.arrays` and `data.sources.parquet`.
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from megafuser.data.sources.records import BadRecord, place
from megafuser.errors import UserError

Format = Literal["jsonl", "array", "parquet"]

# What a truncated or damaged .gz raises while it is read; BadGzipFile is an OSError.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNREADABLE = (".arrow", ".bz2", ".csv", ".feather", ".tar", ".tsv", ".xlsx", ".xz", ".zip", ".zst")


class OpenFile(NamedTuple):
    """A file being read: its contents, and the file on the disk, whose position says how far reading is."""

    contents: io.BufferedIOBase
    raw: BinaryIO


def file_format(path: str) -> Format:
    """JSONL, JSON array or Parquet, by the ending; a .json may hold lines as well, which its first byte tells.

    Raises:
        UserError: the ending is that of another format, or the file cannot be read.
    """
    ending = Path(path.removesuffix(".gz")).suffix.lower()
    if ending == ".parquet":
        return "parquet"
    if ending in _UNREADABLE:
        raise UserError(
            f"{path}: {ending} is not read; give JSONL (.jsonl, .jsonl.gz), a JSON array (.json) or .parquet"
        )
    return "array" if ending == ".json" and _first_byte(path) == b"[" else "jsonl"


@contextlib.contextmanager
def open_file(path: str) -> Iterator[OpenFile]:
    """Opens a file for reading its uncompressed bytes.

    Raises:
        UserError: it is missing or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(Path(path).open("rb"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        yield OpenFile(gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw, raw)


def read_chunks(contents: io.BufferedIOBase, size: int) -> Iterator[bytes]:
    """The bytes of a file in pieces of about `size`; those before a damaged place are given before it raises."""
    if not isinstance(contents, gzip.GzipFile):
        while chunk := contents.read(size):
            yield chunk
        return
    held = bytearray()
    while True:
        try:
            # Unlike read, read1 does not lose what it uncompressed before the damaged place.
            piece = contents.read1(size)
        except GZIP_ERRORS:
            yield bytes(held)
            raise
        held += piece
        if not piece or len(held) >= size:
            if held:
                yield bytes(held)
            held.clear()
        if not piece:
            return


def damaged_gzip(path: str, unit: str, number: int, error: Exception) -> BadRecord:
    """What is said where the uncompressed bytes end too early."""
    reason = str(error).strip().rstrip(".") or type(error).__name__
    problem = f"the gzip file is damaged or cut off from here on ({reason}); nothing behind it is read; fetch it again"
    return BadRecord(place(path, unit, number), problem, "damaged gzip")


def _first_byte(path: str) -> bytes:
    """The first byte that is neither white space nor part of a byte order mark; nothing in a damaged or blank file."""
    with open_file(path) as (contents, _):
        try:
            start = contents.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip()
        except GZIP_ERRORS:
            return b""
        return start[:1]
