"""A source cut into blocks, which other processes parse, and the lines that cannot be used.

What a line says is `data.sources.samples`.
"""

from dataclasses import dataclass
from typing import Any

# A longer line or item is refused instead of held; the longest samples of public sets have less than a twentieth.
LONGEST_RECORD = 16 << 20


@dataclass(frozen=True)
class Block:
    """A few hundred consecutive items of a source.

    Attributes:
        source: path or data set, as messages name it.
        first: number of the first item, from 1; lines count blank ones, too.
        items: raw lines of JSONL without their ends, else parsed values.
        unit: "line", "item" or "row": how messages number the items.
        bytes_read: of the source's bytes, those read since the block before; what a progress bar moves by.
        torn: the file ends behind the last item without a line end.
    """

    source: str
    first: int
    items: list[Any]
    unit: str
    bytes_read: int = 0
    torn: bool = False

    def where(self, index: int) -> str:
        """Place of item `index` of the block, for messages."""
        return place(self.source, self.unit, self.first + index)


@dataclass(frozen=True)
class BadRecord:
    """A line or an item that cannot be used.

    Attributes:
        where: its place, `FILE:12`.
        problem: what is wrong and what to do.
        kind: the same in a few words, for counts.
    """

    where: str
    problem: str
    kind: str

    @property
    def number(self) -> int:
        """Of its line or item, as `place` has written it."""
        return int(self.where.replace(":", " ").rsplit(" ", 1)[-1])

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.where}: {self.problem}"


def place(source: str, unit: str, number: int) -> str:
    """`FILE:12` of a line, `FILE: item 12` of anything else."""
    return f"{source}:{number}" if unit == "line" else f"{source}: {unit} {number}"


def too_long(source: str, unit: str, number: int) -> BadRecord:
    """What is said of a line or item beyond `LONGEST_RECORD`."""
    problem = f"the {unit} is longer than {LONGEST_RECORD >> 20} MiB, which no sample is; remove or split it"
    return BadRecord(place(source, unit, number), problem, f"{unit} too long")
