"""Row-aligned packing: which samples share a row, and which data-parallel rank gets which rows."""

from collections.abc import Sequence

import numpy as np


def pack(lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Packs samples into rows by best-fit decreasing; a row is full when any specialist's is.

    Samples are taken in the order of their longest view, and each goes to the row that it leaves with the least room
    in that row's fullest specialist. Ties go to the earlier sample and the earlier row, so the result is a function
    of the lengths alone.

    Args:
        lengths: `[n, K]`, length of each sample in each specialist's view.
        width: positions of a row, S.

    Returns:
        One array of sample indices per row, ascending within the row; every sample is in exactly one row.

    Raises:
        ValueError: a sample is longer than a row (the data's limit should have dropped it).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) == 0:
        return []
    longest = lengths.max(axis=1)
    if longest.max() > width:
        raise ValueError(f"sample {int(longest.argmax())} has {int(longest.max())} positions, a row has {width}")
    free = np.full(lengths.shape, width, dtype=np.int64)
    rows: list[list[int]] = []
    for sample in np.argsort(-longest, kind="stable"):
        room = (free[: len(rows)] - lengths[sample]).min(axis=1)
        room = np.where(room >= 0, room, width + 1)
        row = int(room.argmin()) if len(rows) and room.min() <= width else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(int(sample))
        free[row] -= lengths[sample]
    return [np.array(sorted(row), dtype=np.int64) for row in rows]


def deal(rows: Sequence[np.ndarray], ranks: int, multiple: int = 1) -> list[list[np.ndarray]]:
    """Deals rows to data-parallel ranks, the same number of microbatches to each, at least one.

    Rows come from `pack` with their longest samples first, hence with the most expensive attention first: they are
    dealt back and forth (0 … R-1, R-1 … 0), so that no rank gets the dear row of every round.

    Args:
        rows: arrays of sample indices.
        ranks: number of data-parallel ranks, R.
        multiple: the number of microbatches is a multiple of this (interleaved pipelines need it).

    Returns:
        For each rank its rows; missing ones are empty arrays.
    """
    if ranks < 1 or multiple < 1:
        raise ValueError(f"ranks and multiple must be positive: {ranks}, {multiple}")
    dealt: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for index, row in enumerate(rows):
        turn, place = divmod(index, ranks)
        dealt[place if turn % 2 == 0 else ranks - 1 - place].append(row)
    count = max(1, -(-len(rows) // ranks))
    count = -(-count // multiple) * multiple
    for own in dealt:
        own.extend(np.empty(0, dtype=np.int64) for _ in range(count - len(own)))
    return dealt
