"""Bins and their error."""

import pytest
import torch

from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.report.calibration import BINS, Calibration, token_columns


def calibration(confidence: list[float], correct: list[bool]) -> Calibration:
    count = len(confidence)
    loss = MixtureLoss(
        fused=torch.zeros(count),
        weights=torch.zeros(count, 2),
        specialists=torch.zeros(count, 2),
        confidence=torch.tensor(confidence),
        correct=torch.tensor(correct, dtype=torch.bool),
    )
    return Calibration.from_sums(token_columns(loss).double().sum(dim=0).tolist())


def test_by_hand() -> None:
    found = calibration([0.95, 0.99, 0.5, 0.5, 1.0], [True, False, True, False, True])
    # the last bin has 0.95, 0.99 and 1.0, of which two are right; that of 0.5 has two, of which one is
    assert [(own.tokens, own.accuracy) for own in found.bins if own.tokens] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    assert found.bins[-1].confidence == pytest.approx(0.98)
    assert found.error == pytest.approx((0 + abs(2 - 2.94)) / 5)
    assert (found.accuracy, found.confidence) == (0.6, pytest.approx(3.94 / 5))
    assert found.bins[0].accuracy is None


@pytest.mark.parametrize(("confidence", "place"), [(1.0, 14), (1e-30, 0), (0.0667, 1), (0.0666, 0), (0.2, 2)])
def test_every_probability_has_a_bin(confidence: float, place: int) -> None:
    assert [own.tokens for own in calibration([confidence], [True]).bins] == [int(i == place) for i in range(BINS)]


def test_a_row_without_tokens_adds_nothing() -> None:
    loss = MixtureLoss(
        torch.zeros(0),
        torch.zeros(0, 2),
        torch.zeros(0, 2),
        confidence=torch.zeros(0),
        correct=torch.zeros(0, dtype=torch.bool),
    )
    assert token_columns(loss).shape == (0, 3 * BINS)
