"""Draws by weight: never far from the exact shares, at any slot, and each slot by itself."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.data.weighted_draws import Mixture
from megafuser.errors import UserError

decimals = st.integers(1, 300).map(lambda cents: cents / 100)


def mixture(weights):
    return Mixture([f"part {index}" for index in range(len(weights))], weights)


def away(made, weights, slot):
    """How far the counts are from the exact shares, in slots."""
    exact = [Fraction(str(weight)) for weight in weights]
    counts = made.before(slot).tolist()
    assert sum(counts) == slot
    return max(abs(count - slot * weight / sum(exact)) for count, weight in zip(counts, exact, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(decimals, min_size=1, max_size=6), st.integers(0, 10**7))
def test_counts_stay_within_one_of_the_exact_shares_and_never_fall(weights, start):
    made = mixture(weights)
    last = made.before(start)
    for slot in range(start, start + 40):
        assert away(made, weights, slot) < 1
        now = made.before(slot)
        assert (now >= last).all()
        last = now


def test_every_slot_of_two_blocks():
    weights = [0.5, 0.3, 0.17, 0.03]
    made = mixture(weights)
    assert made.block == 100
    assert all(away(made, weights, slot) < 1 for slot in range(201))
    assert made.before(100).tolist() == [50, 30, 17, 3]


def test_one_part_has_all():
    assert mixture([0.7]).before(12345).tolist() == [12345]


def test_equal_weights_take_turns():
    made = mixture([2, 2, 2])
    dealt = [np.flatnonzero(made.before(slot + 1) - made.before(slot)).item() for slot in range(6)]
    assert sorted(dealt[:3]) == sorted(dealt[3:]) == [0, 1, 2]


def test_weights_that_do_not_repeat_soon_do_not_drift():
    """Sizes as weights: their block is rounded, and the next ones make up for it, however far one goes."""
    weights = [103482, 97113, 110001]
    made = mixture(weights)
    for block in (0, 1, 2, 7, 1000, 10**6):
        slots = [block * made.block + offset for offset in (0, 1, 5, 30000)]
        assert all(away(made, weights, slot) < 2 for slot in slots)
        steps = np.diff([made.before(slot) for slot in slots], axis=0)
        assert (steps >= 0).all()
        assert away(made, weights, block * made.block) < 1


def test_a_slot_does_not_depend_on_what_was_asked_before():
    weights = [3.14159, 1, 0.001]
    forward = mixture(weights)
    ahead = {slot: forward.before(slot).tolist() for slot in (3, 70000, 200001)}
    again = mixture(weights)
    assert {slot: again.before(slot).tolist() for slot in (200001, 3, 70000)} == {
        slot: ahead[slot] for slot in (200001, 3, 70000)
    }


def test_a_weight_that_is_next_to_nothing_is_refused():
    with pytest.raises(UserError, match=r"part 1: its weight is 1e-06 of all weights.*give it more"):
        mixture([1, 1e-6])
    for weights in ([], [1, 0]):
        with pytest.raises(ValueError, match="must be positive"):
            mixture(weights)
