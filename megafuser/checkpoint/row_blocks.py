"""Weights in blocks of rows: what a conversion holds in memory at a time, whatever the model's size."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megafuser.families.weight_mapping import RowRange

# Small enough that the C library keeps freed blocks (its threshold is at most 32 MiB): fresh memory is cleared first,
# which would take half as long as all the copying.
BLOCK_BYTES = 16 << 20


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


def row_blocks(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Splits the rows of a tensor into blocks of at most `BLOCK_BYTES` (of one row, where that is larger)."""
    row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


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
