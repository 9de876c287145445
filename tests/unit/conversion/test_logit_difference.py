"""Which differences of logits pass as rounding."""

import pytest
import torch

from megafuser.conversion.logit_difference import LOGITS_TOLERANCE, LogitDifference, logit_difference
from megafuser.errors import UserError


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [(0.0, LOGITS_TOLERANCE), (0.5, LOGITS_TOLERANCE), (1.0, LOGITS_TOLERANCE), (40.0, 40 * LOGITS_TOLERANCE)],
)
def test_the_tolerance_grows_with_the_largest_logit_from_one_on(size: float, tolerance: float) -> None:
    small, large = torch.zeros(2, 3, dtype=torch.float64), torch.full((1, 3), -size, dtype=torch.float64)
    for factor in (0.9, 1.1):
        found = logit_difference([(large, large), (small, small + factor * tolerance)])
        assert found.tolerance == pytest.approx(tolerance, rel=1e-6)
        assert found.largest == pytest.approx(factor * tolerance)
        assert found.is_rounding == (factor < 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_never_passes(value: float) -> None:
    right, wrong = torch.ones(2, 3), torch.tensor([[1.0, 1.0, 1.0], [1.0, value, 1.0]])
    for pair in ((right, wrong), (wrong, right), (wrong, wrong)):
        assert not logit_difference([(right, right), pair]).is_rounding


def test_what_is_told_of_it() -> None:
    named = {"of": "one and the other", "whose": "the one's", "done": "made"}
    found = LogitDifference(largest=0.00012, tolerance=0.0002)
    assert found.proof(**named) == (
        "logits: the largest difference between the one's and Megatron-Core's in fp32 is 0.00012"
    )
    found = LogitDifference(largest=0.25, tolerance=0.0002)
    with pytest.raises(UserError, match=r"^fp32 logits of one and the other differ by 0\.25, more than 0\.0002;"):
        found.proof(**named)
