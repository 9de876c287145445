"""The memory that reading a source takes: it is given back, in whatever order a target's rows come."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megafuser.conversion import source_rows
from megafuser.conversion.source_rows import SourceRows
from megafuser.conversion.tensor_accounting import Assignment, assign
from tests.unit.specialist.small_card import CARD

HELD_ROWS = 8


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_no_more_than_a_few_rows_are_held_and_none_at_the_end(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Phi-4's queries, keys and values are one matrix, of which a target reads three places in turn."""
    for assignment in assign(dataclasses.replace(CARD, family=family)):
        with monkeypatch.context() as patch:
            _read(assignment, patch)


def _read(assignment: Assignment, patch: pytest.MonkeyPatch) -> None:
    shapes = assignment.mapping.source_shapes(CARD)
    tensors = {key: torch.randn(shape) for key, shape in zip(assignment.sources, shapes, strict=True)}
    order = [
        tensors[assignment.sources[part.source]][row]
        for part in assignment.mapping.row_ranges(CARD)
        for row in range(part.start, part.stop)
    ]
    held: set[int] = set()

    def release(part: torch.Tensor) -> None:
        start, stop = part.data_ptr(), part.data_ptr() + part.nbytes
        held.difference_update([address for address in held if start <= address < stop])

    patch.setattr(source_rows, "release_pages", release)
    patch.setattr(source_rows, "_RELEASED_BYTES", HELD_ROWS * order[0].nbytes)
    source: Any = SimpleNamespace(tensor=tensors.__getitem__)
    rows = SourceRows(source, assignment, CARD)
    out = torch.empty(rows.shape)
    for at, row in enumerate(order):
        held.add(row.data_ptr())
        rows.fill(at, at + 1, out[at : at + 1])
        assert len(held) < HELD_ROWS * len(tensors), assignment.key
    assert not held, assignment.key
    assert torch.equal(out, torch.stack(order))
