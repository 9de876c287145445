"""Which rows of a weight's sources make a block of its rows, in either direction of a conversion.

It moves nothing: `conversion.source_rows` and `conversion.mcore_to_hf` do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megafuser.families.weight_mapping import RowRange


@dataclass(frozen=True)
class Piece:
    """Rows that are contiguous both in a source and in a block of its target.

    Attributes:
        source: which of the mapping's sources.
        rows: its rows.
        place: where they are in the block, counted from the block's first row.
    """

    source: int
    rows: slice
    place: slice


def pieces(ranges: Iterable[RowRange], start: int, stop: int) -> Iterator[Piece]:
    """The parts of a target's rows [start, stop), each with where it comes from.

    Args:
        ranges: the mapping's `row_ranges`.
        start: first row of the block.
        stop: the row behind its last.
    """
    at = 0
    for part in ranges:
        first, last = max(start, at), min(stop, at + part.stop - part.start)
        if first < last:
            shift = part.start - at
            yield Piece(part.source, slice(first + shift, last + shift), slice(first - start, last - start))
        at += part.stop - part.start
        if at >= stop:
            return
