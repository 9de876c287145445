"""Layouts that do not fit are refused with the quantity that does not divide, and the nearest that does."""

import pytest

from megafuser.config.compute import ParallelConfig
from megafuser.errors import UserError
from megafuser.specialist.transformer_config import check_layout, nearest_divisor
from tests.unit.specialist.small_card import CARD


@pytest.mark.parametrize(
    ("parallel", "width", "says"),
    [
        (
            ParallelConfig(tensor=4),
            64,
            "parallel.tensor: 4 does not divide the 6 attention heads of specialist code; the nearest that does is 3",
        ),
        (ParallelConfig(tensor=3), 64, "3 does not divide the 2 key-value heads of specialist code; .* is 2"),
        (ParallelConfig(pipeline=4), 64, "parallel.pipeline: 4 does not divide the 2 layers of .* code; .* is 2"),
        (ParallelConfig(tensor=2, sequence=True), 63, "data.sequence_length: 63 is no multiple of parallel.tensor 2"),
    ],
)
def test_refused(parallel: ParallelConfig, width: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_layout("code", CARD, parallel, width)


@pytest.mark.parametrize(
    ("parallel", "width"),
    [
        (ParallelConfig(), 63),
        (ParallelConfig(tensor=2, pipeline=2), 63),
        (ParallelConfig(tensor=2, sequence=True), 64),
        (ParallelConfig(sequence=True), 63),
    ],
)
def test_accepted(parallel: ParallelConfig, width: int) -> None:
    check_layout("code", CARD, parallel, width)


@pytest.mark.parametrize(("amount", "wanted", "nearest"), [(40, 16, 20), (40, 8, 8), (6, 4, 3), (2, 9, 2), (7, 3, 1)])
def test_nearest_divisor(amount: int, wanted: int, nearest: int) -> None:
    assert nearest_divisor(amount, wanted) == nearest
