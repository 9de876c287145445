"""Pieces of any blocks cover every row once, in order."""

import pytest
import torch

from megafuser.conversion.row_pieces import pieces
from megafuser.families.weight_mapping import RowRange


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_pieces_of_any_blocks_make_the_whole(step: int) -> None:
    ranges = [RowRange(0, 0, 4), RowRange(1, 0, 1), RowRange(2, 0, 1), RowRange(0, 4, 8), RowRange(1, 1, 2)]
    sources = [torch.arange(8), torch.arange(10, 12), torch.arange(20, 21)]
    whole = torch.tensor([0, 1, 2, 3, 10, 20, 4, 5, 6, 7, 11])
    for start in range(0, len(whole), step):
        stop = min(start + step, len(whole))
        block = torch.full((stop - start,), -1)
        for piece in pieces(ranges, start, stop):
            block[piece.place] = sources[piece.source][piece.rows]
        assert torch.equal(block, whole[start:stop])
