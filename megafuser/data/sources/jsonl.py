"""Lines of a JSONL file in blocks: not parsed, and never more of a line in memory than a sample may have.

Parsing them is `data.sources.samples`.
"""

from collections.abc import Iterator

from megafuser.data.sources.formats import GZIP_ERRORS, OpenFile, damaged_gzip, open_file, read_chunks
from megafuser.data.sources.records import LONGEST_RECORD, BadRecord, Block, too_long


def read_lines(path: str, block_bytes: int) -> Iterator[Block | BadRecord]:
    """Reads the lines of a file, blank ones included.

    Args:
        path: JSONL, or JSONL.gz.
        block_bytes: how much is read at once.

    Yields:
        Blocks of whole lines; a `BadRecord` for a line beyond the limit and for the place where a .gz is damaged.

    Raises:
        UserError: the file cannot be opened.
    """
    with open_file(path) as file:
        yield from _Lines(path, file, block_bytes).blocks()


class _Lines:
    """Cuts a file at its line ends; `rest` is the beginning of a line whose end is not read yet."""

    def __init__(self, path: str, file: OpenFile, block_bytes: int) -> None:
        self.path, self.file, self.block_bytes = path, file, block_bytes
        self.number = 1
        self.rest = bytearray()
        self.skipping = False
        self.position = 0

    def blocks(self) -> Iterator[Block | BadRecord]:
        """All of the file."""
        try:
            for chunk in read_chunks(self.file.contents, self.block_bytes):
                yield from self._cut(chunk)
        except GZIP_ERRORS as error:
            yield damaged_gzip(self.path, "line", self.number, error)
            return
        if self.rest and not self.skipping:
            yield self._block([bytes(self.rest)], torn=True)

    def _cut(self, chunk: bytes) -> Iterator[Block | BadRecord]:
        head, line_end, tail = chunk.rpartition(b"\n")
        if line_end:
            if self.skipping:
                # The line beyond the limit was told when the limit was reached.
                self.number += 1
                self.skipping = False
                _, line_end, head = head.partition(b"\n")
            if line_end:
                lines = (bytes(self.rest) + head).split(b"\n")
                yield from self._within_limit(lines)
            self.rest.clear()
        if not self.skipping:
            self.rest += tail
            if len(self.rest) > LONGEST_RECORD:
                yield too_long(self.path, "line", self.number)
                self.rest = bytearray()
                self.skipping = True

    def _within_limit(self, lines: list[bytes]) -> Iterator[Block | BadRecord]:
        start = 0
        for index, line in enumerate(lines):
            if len(line) > LONGEST_RECORD:
                if index > start:
                    yield self._block(lines[start:index])
                yield too_long(self.path, "line", self.number)
                self.number += 1
                start = index + 1
        if start < len(lines):
            yield self._block(lines[start:])

    def _block(self, lines: list[bytes], torn: bool = False) -> Block:
        position = self.file.raw.tell()
        block = Block(self.path, self.number, list(lines), "line", position - self.position, torn)
        self.position = position
        self.number += len(lines)
        return block
