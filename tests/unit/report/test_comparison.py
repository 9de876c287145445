"""Intervals by the bootstrap over samples: against draws that are written out again, and against theory."""

import math

import numpy as np
import pytest

from megafuser.report.bootstrap import RESAMPLES, estimate, resample
from megafuser.report.comparison import compare
from tests.unit.report.made_up import NAMES

# Columns: tokens, fused, uniform, oracle, entropy, two losses, two weights.
FUSED, ORACLE, FIRST, SECOND = 1, 3, 5, 6


def made_up_table(samples: int, seed: int, second_is_best: bool = False) -> np.ndarray:
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 30, samples).astype(float)
    hardness = random.normal(2.0, 0.8, samples)
    table = np.zeros((samples, 9))
    table[:, 0] = tokens
    for column, offset in ((FUSED, 0.3), (2, 0.5), (ORACLE, 0.0), (4, 0.1), (FIRST, 0.4), (SECOND, 1.0), (7, 0.0)):
        table[:, column] = tokens * (hardness + offset + random.normal(0, 0.05, samples))
    if second_is_best:
        table[:, [FIRST, SECOND]] = table[:, [SECOND, FIRST]]
    return table


TABLES = {"a": made_up_table(40, 1), "b": made_up_table(70, 2, second_is_best=True)}


def test_draws_are_of_whole_samples_within_their_domain() -> None:
    one = [np.array([[1.0, 0.0], [100.0, 0.0]]), np.array([[0.0, 7.0]])]
    sums = resample(one, seed=0, resamples=50)
    assert set(sums[:, 0, 0]) <= {2.0, 101.0, 200.0}
    assert len(set(sums[:, 0, 0])) == 3
    assert (sums[:, 1] == [0.0, 7.0]).all()


def test_the_intervals_are_those_of_a_bootstrap_written_out() -> None:
    found = compare(TABLES, NAMES, seed=5)
    random = np.random.default_rng(5)
    fused, difference, closed, single = [], [], [], []
    assert found.resamples == RESAMPLES >= 1000
    for _ in range(RESAMPLES):
        a, b = (table[random.integers(0, len(table), len(table))] for table in TABLES.values())
        fused.append(a[:, FUSED].sum() / a[:, 0].sum())
        difference.append((a[:, FUSED].sum() - a[:, FIRST].sum()) / a[:, 0].sum())
        closed.append((a[:, FIRST] - a[:, FUSED]).sum() / (a[:, FIRST] - a[:, ORACLE]).sum())
        # the specialist that is the best single one over both: see below
        means = [(own[:, FUSED] - own[:, FIRST]).sum() / own[:, 0].sum() for own in (a, b)]
        single.append(sum(means) / 2)
    a, b = TABLES.values()
    means = [sum(own[:, k].sum() / own[:, 0].sum() for own in (a, b)) for k in (FIRST, SECOND)]
    assert found.single == NAMES[int(np.argmin(means))] == NAMES[0]
    for ours, draws in (
        (found.domains["a"].fused, fused),
        (found.domains["a"].minus_best, difference),
        (found.domains["a"].gap_closed, closed),
        (found.mean.minus_single, single),
    ):
        assert ours is not None
        assert ours.interval == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=1e-12)
    assert found.domains["a"].gap_closed.value == pytest.approx(0.25, abs=0.05)
    assert (found.domains["a"].best, found.domains["b"].best) == (NAMES[0], NAMES[1])


def test_the_best_single_specialist_need_not_be_a_domains_best() -> None:
    found = compare(TABLES, NAMES, seed=5).domains["b"]
    assert found.best == NAMES[1], "the best single one is the other"
    table = TABLES["b"].sum(axis=0)
    for single, value in ((FIRST, found.gap_closed_single), (SECOND, found.gap_closed)):
        assert value is not None
        assert value.value == pytest.approx((table[single] - table[FUSED]) / (table[single] - table[ORACLE]))
    for single, value in ((FIRST, found.minus_single), (SECOND, found.minus_best)):
        assert value.value == pytest.approx((table[FUSED] - table[single]) / table[0])
        assert value.low < value.value < value.high
    assert found.gap_closed_single.low > found.gap_closed.high


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(0, 1, 400)
    table = np.zeros((400, 9))
    table[:, 0], table[:, FUSED], table[:, FIRST] = 1.0, values, 1.0
    low, high = compare({"a": table}, NAMES, seed=1).overall.fused.interval
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)


def test_a_difference_is_paired() -> None:
    # the samples differ far more from each other than the models do on any of them
    own = compare(TABLES, NAMES, seed=1).domains["a"]
    apart = (own.fused.high - own.fused.low) + (own.specialists[NAMES[0]].high - own.specialists[NAMES[0]].low)
    assert own.minus_best.high - own.minus_best.low < 0.2 * apart


def test_without_a_gap_there_is_nothing_to_close() -> None:
    table = np.tile([2.0, 2.0, 2.0, 2.0, 0.0, 2.0, 4.0, 1.0, 1.0], (5, 1))
    own = compare({"a": table}, NAMES, seed=1).domains["a"]
    assert own.gap_closed is None
    assert own.to_dict()["gap_closed"] is None
    assert own.to_dict()["confidence_interval"]["gap_closed"] is None


def test_draws_without_a_gap_do_not_count() -> None:
    table = np.tile([1.0, 2.0, 2.0, 2.0, 0.0, 2.0, 4.0, 1.0, 1.0], (3, 1))
    # only the first sample has a gap; on the second one the fused model is worse
    table[0, [FUSED, ORACLE]] = 1.25, 1.0
    table[1, FUSED] = 2.5
    own = compare({"a": table}, NAMES, seed=1).domains["a"].gap_closed
    random = np.random.default_rng(1)
    draws = [table[random.integers(0, 3, 3)].sum(axis=0) for _ in range(RESAMPLES)]
    shares = [
        (draw[FIRST] - draw[FUSED]) / (draw[FIRST] - draw[ORACLE]) for draw in draws if draw[FIRST] > draw[ORACLE]
    ]
    assert len(shares) < 0.8 * RESAMPLES
    assert own is not None
    assert own.value == pytest.approx(0.25)
    assert own.interval == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=1e-12)


def test_draws_that_are_no_numbers_do_not_count() -> None:
    assert estimate(1.0, np.array([np.nan, 1.0, 3.0, np.inf])).interval == [1.05, 2.95]
