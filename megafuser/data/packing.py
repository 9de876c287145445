"""Row-aligned packing: which samples share a row, how wide the rows are, and which data-parallel rank gets which.

All rows of a step are alike, so a step wants as few rows as its samples need, all equally full. Two things decide how
much of a row is pads: how evenly the samples are spread, and that the K views of a sample differ in length by their
templates. The first is a matter of search; the second costs nothing, since each view has a width of its own. Nothing
but lengths is known here: the tensors are made by `data.row_building`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A row's load in one view, in 1024ths of the rows' mean. Whole numbers, since all ranks must find the same packing,
# and floating-point functions differ from one processor to another.
_UNIT = 1024
# A long validation set has thousands of rows: what the search may cost there. A step's few rows never come near.
_MOST_SWAPS = 2000
_PARTNERS = 64


@dataclass(frozen=True)
class Packing:
    """Samples in rows.

    Attributes:
        rows: sample indices of each row, ascending, the row with the most expensive attention first; empty rows last.
        widths: K positions, the width of each specialist's view of every row.
        positions: real positions in all views of all rows.
    """

    rows: list[np.ndarray]
    widths: tuple[int, ...]
    positions: int

    @property
    def efficiency(self) -> float:
        """Share of the rows' positions that are real, over all views."""
        return self.positions / (len(self.rows) * sum(self.widths))


def pack(lengths: np.ndarray, width: int, rows_multiple: int = 1, width_multiple: int = 1) -> Packing:
    """Packs samples into as few rows as hold them, evenly; a row is full when any specialist's view is.

    The number of rows is the smallest multiple of `rows_multiple` that the samples are found to fit into. They are
    spread over the rows longest first, each to the row that is then least full (Graham's rule), and swapped until no
    swap with the fullest row makes the rows more even. A view is as wide as its fullest row needs.

    Args:
        lengths: `[n, K]`, length of each sample in each specialist's view.
        width: positions that a view has at most, S.
        rows_multiple: the number of rows is a multiple of this, and at least this.
        width_multiple: the views' widths are multiples of this.

    Raises:
        ValueError: a sample is longer than a row (the data's limit should have dropped it).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    limit = width // width_multiple * width_multiple
    if len(lengths) == 0:
        none = np.empty(0, dtype=np.int64)
        return Packing([none] * rows_multiple, (width_multiple,) * lengths.shape[1], 0)
    longest = lengths.max(axis=1)
    if longest.max() > limit:
        raise ValueError(f"sample {int(longest.argmax())} has {int(longest.max())} positions, a row has {limit}")
    needed = -(-int(lengths.sum(axis=0).max()) // limit)
    count = -(-needed // rows_multiple) * rows_multiple
    while True:
        row_of = _even_out(lengths, _spread(lengths, count), count)
        loads = _loads(lengths, row_of, count)
        if loads.max() <= limit:
            break
        # thousands of rows need not be tried one by one: a 64th more of them costs little
        count += -(-max(count // 64, 1) // rows_multiple) * rows_multiple
    cost = _loads(lengths**2, row_of, count).sum(axis=1)
    rows = [np.flatnonzero(row_of == row) for row in np.argsort(-cost, kind="stable")]
    widths = np.maximum(-(-loads.max(axis=0) // width_multiple), 1) * width_multiple
    return Packing(rows, tuple(widths.tolist()), int(lengths.sum()))


def _loads(lengths: np.ndarray, row_of: np.ndarray, count: int) -> np.ndarray:
    """Positions `[count, K]` in each row's views."""
    loads = np.zeros((count, lengths.shape[1]), dtype=np.int64)
    np.add.at(loads, row_of, lengths)
    return loads


def _spread(lengths: np.ndarray, count: int) -> np.ndarray:
    """The row `[n]` of each sample: longest first, each to the row whose fullest view it leaves the emptiest."""
    loads = np.zeros((count, lengths.shape[1]), dtype=np.int64)
    row_of = np.empty(len(lengths), dtype=np.int64)
    for sample in np.argsort(-lengths.max(axis=1), kind="stable"):
        row = int((loads + lengths[sample]).max(axis=1).argmin())
        row_of[sample] = row
        loads[row] += lengths[sample]
    return row_of


def _even_out(lengths: np.ndarray, row_of: np.ndarray, count: int) -> np.ndarray:
    """Moves samples out of the fullest row, or swaps them for others, as long as that makes the rows more even.

    How uneven rows are is told by the sum over rows and views of the load's fourth power, in units of the view's mean.
    """
    if count == 1:
        return row_of
    row_of = row_of.copy()
    mean = np.maximum(-(-lengths.sum(axis=0) // count), 1)
    loads = _loads(lengths, row_of, count)
    mean *= _coarser(loads, mean)
    for _ in range(min(4 * len(lengths), _MOST_SWAPS)):
        order = (loads * _UNIT // mean).max(axis=1).argsort(kind="stable")
        fullest, partners = int(order[-1]), np.sort(order[:-1][:_PARTNERS])
        own = np.flatnonzero(row_of == fullest)
        # what may come in exchange for a sample: one of another row, or nothing from any row
        others = np.flatnonzero(np.isin(row_of, partners))
        rows = np.concatenate([row_of[others], partners])
        come = np.concatenate([lengths[others], np.zeros((len(partners), lengths.shape[1]), dtype=np.int64)])
        change = lengths[own][:, None] - come[None]
        before = _unevenness(loads[fullest], mean) + _unevenness(loads[rows], mean)
        after = _unevenness(loads[fullest] - change, mean) + _unevenness(loads[rows] + change, mean)
        gain = before - after
        out, into = divmod(int(gain.argmax()), len(rows))
        if gain[out, into] <= 0:
            return row_of
        row_of[own[out]] = rows[into]
        if into < len(others):
            row_of[others[into]] = fullest
        loads[fullest] -= change[out, into]
        loads[rows[into]] += change[out, into]
    return row_of


def _coarser(loads: np.ndarray, mean: np.ndarray) -> int:
    """How many times larger the unit must be for sums of fourth powers to stay below 2^62: once for rows alike.

    Rows that were asked for without samples to fill them make the mean small beside the fullest row. A swap can double
    a load at most, and the powers of two rows and K views are added.
    """
    most = math.isqrt(math.isqrt((1 << 62) // (2 * loads.shape[1])))
    return max(1, -(-2 * _UNIT * int((loads // mean + 1).max()) // most))


def _unevenness(loads: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of loads `[..., K]`: the sum over the views of the fourth powers."""
    square = (loads * _UNIT // mean) ** 2
    sums: np.ndarray = (square**2).sum(axis=-1)
    return sums


def deal(rows: Sequence[np.ndarray], ranks: int) -> list[list[np.ndarray]]:
    """Deals rows to data-parallel ranks, as many to each.

    Rows come from `pack` with the most expensive attention first: they are dealt back and forth (0 … R-1, R-1 … 0), so
    that no rank gets the dear row of every round.

    Args:
        rows: arrays of sample indices.
        ranks: number of data-parallel ranks, R, which divides that of the rows.
    """
    if ranks < 1 or len(rows) % ranks:
        raise ValueError(f"{len(rows)} rows cannot be dealt evenly to {ranks} ranks")
    dealt: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for index, row in enumerate(rows):
        turn, place = divmod(index, ranks)
        dealt[place if turn % 2 == 0 else ranks - 1 - place].append(row)
    return dealt
