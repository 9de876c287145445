"""Weights in blocks of rows: what a conversion holds in memory at a time, whatever the model's size.

It counts only: the rows are moved by `checkpoint.stream_writer` and `conversion.mcore_to_hf`.
"""

from collections.abc import Iterator, Sequence

import torch

# Small enough that the C library keeps freed blocks (its threshold is at most 32 MiB): fresh memory is cleared first,
# which would take half as long as all the copying.
BLOCK_BYTES = 16 << 20


def row_blocks(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Splits the rows of a tensor into blocks of at most `BLOCK_BYTES` (of one row, where that is larger)."""
    row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
