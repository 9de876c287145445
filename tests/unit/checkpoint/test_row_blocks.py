"""Blocks cover every row once, in order."""

import pytest
import torch

from megafuser.checkpoint import row_blocks as module
from megafuser.checkpoint.row_blocks import row_blocks


def test_blocks_are_as_large_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    assert list(row_blocks((7, 8), torch.float32)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(row_blocks((7, 8), torch.bfloat16)) == [(0, 4), (4, 7)]
    assert list(row_blocks((40,), torch.float32)) == [(0, 16), (16, 32), (32, 40)]
    assert list(row_blocks((2, 100), torch.float32)) == [(0, 1), (1, 2)], "a row is never split"
