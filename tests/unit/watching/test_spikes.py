"""Loss spikes, against the same rule written out with NumPy over whole arrays."""

import math

import numpy as np
import pytest

from megafuser.watching.spikes import SpikeDetector


def dense_spikes(losses: np.ndarray) -> list[int]:
    """Steps above median + max(6 · 1.4826 · MAD, 5 % of the median) of the 50 before them, from the 11th on."""
    found = []
    for step in range(10, len(losses)):
        window = losses[max(0, step - 50) : step]
        middle = np.median(window)
        deviation = 1.4826 * np.median(np.abs(window - middle))
        if losses[step] > middle + max(6 * deviation, 0.05 * abs(middle)):
            found.append(step)
    return found


def spikes(losses: np.ndarray) -> list[int]:
    detector = SpikeDetector()
    return [step for step, loss in enumerate(losses) if detector.add(float(loss)) is not None]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_steps_as_the_dense_rule(seed: int) -> None:
    """A noisy curve that falls, with spikes of all sizes."""
    generator = np.random.default_rng(seed)
    losses = 2 + 3 * np.exp(-np.arange(400) / 80) + generator.normal(0, 0.05, 400)
    places = generator.choice(400, 40, replace=False)
    losses[places] += generator.uniform(0, 1.5, 40)
    assert spikes(losses) == dense_spikes(losses)
    assert 5 < len(spikes(losses)) < 40, "some are spikes and some are not"


def test_a_plain_curve_has_none_and_a_planted_one_is_found() -> None:
    generator = np.random.default_rng(0)
    losses = 2 + generator.normal(0, 0.05, 300)
    assert spikes(losses) == []
    losses[200] = 3.0
    assert spikes(losses) == [200]


def test_losses_that_hardly_vary_are_not_flagged_for_less_than_a_twentieth() -> None:
    assert spikes(np.array([2.0] * 20 + [2.09])) == []
    assert spikes(np.array([2.0] * 20 + [2.11])) == [20]


def test_a_loss_that_stays_high_becomes_the_new_normal() -> None:
    flagged = spikes(np.array([2.0] * 60 + [3.0] * 60))
    assert flagged == list(range(60, 85))


def test_a_loss_that_is_not_finite_is_no_spike_and_changes_nothing() -> None:
    detector = SpikeDetector([2.0] * 20)
    limit = detector.limit
    assert detector.add(math.nan) is None
    assert detector.add(math.inf) is None
    assert detector.limit == limit == pytest.approx(2.1)


def test_a_resumed_detector_goes_on_as_an_uninterrupted_one() -> None:
    losses = [2.0 + 0.01 * (step % 7) for step in range(80)]
    whole, resumed = SpikeDetector(), SpikeDetector(losses[:60][-50:])
    for loss in losses:
        whole.add(loss)
    for loss in losses[60:]:
        resumed.add(loss)
    assert whole.limit == resumed.limit
    assert whole.add(4.0) == resumed.add(4.0) == "loss 4.000 is above 2.208, the last 50 steps' median 2.030"
