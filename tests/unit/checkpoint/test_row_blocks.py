"""Blocks and pieces cover every row once, in order."""

import pytest
import torch

from megafuser.checkpoint import row_blocks as module
from megafuser.checkpoint.row_blocks import pieces, row_blocks
from megafuser.families.weight_mapping import RowRange


def test_blocks_are_as_large_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    assert list(row_blocks((7, 8), torch.float32)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(row_blocks((7, 8), torch.bfloat16)) == [(0, 4), (4, 7)]
    assert list(row_blocks((40,), torch.float32)) == [(0, 16), (16, 32), (32, 40)]
    assert list(row_blocks((2, 100), torch.float32)) == [(0, 1), (1, 2)], "a row is never split"


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
