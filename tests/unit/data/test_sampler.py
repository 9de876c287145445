"""Balance, epochs and determinism of the sampler."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.data.sampler import Sampler, SourceShares


def drawn(sampler, steps):
    return np.concatenate([sampler.step(n) for n in range(1, steps + 1)])


def test_balanced_steps_have_as_many_of_each_domain():
    sampler = Sampler([7, 100, 13], 5, True, 1234, "warmup")
    for n in range(1, 30):
        assert np.bincount(sampler.step(n)[:, 0]).tolist() == [5, 5, 5]


def test_each_domain_sees_every_sample_once_an_epoch():
    sizes = [7, 10, 4]
    references = drawn(Sampler(sizes, 5, True, 3, "joint"), 28)
    for domain, size in enumerate(sizes):
        samples = references[references[:, 0] == domain, 1]
        epochs = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
        assert len(epochs) >= 14
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert any(not np.array_equal(epochs[0], epoch) for epoch in epochs)


def test_a_step_may_hold_several_epochs():
    samples = Sampler([3], 8, True, 0, "joint").step(1)[:, 1]
    assert sorted(samples[:3]) == sorted(samples[3:6]) == [0, 1, 2]


def test_pooled_steps_follow_the_domains_sizes():
    sizes = [60, 30, 10]
    references = drawn(Sampler(sizes, 2, False, 5, "joint"), 100)
    assert len(references) == 600
    for start in range(0, 600, 100):
        epoch = references[start : start + 100]
        assert np.bincount(epoch[:, 0]).tolist() == sizes
        assert len({tuple(pair) for pair in epoch.tolist()}) == 100
    assert len(set(references[:6, 0].tolist())) > 1, "the pool is shuffled across domains"


@pytest.mark.parametrize("balanced", [True, False])
def test_a_step_depends_on_seed_stage_and_number_alone(balanced):
    make = lambda seed=1, stage="joint": Sampler([11, 5], 3, balanced, seed, stage)  # noqa: E731
    forward = [make().step(n) for n in range(1, 20)]
    sampler = make()
    for n in (17, 2, 9, 2, 19, 1):
        np.testing.assert_array_equal(sampler.step(n), forward[n - 1])
    assert any(not np.array_equal(make(seed=2).step(n), forward[n - 1]) for n in range(1, 4))
    assert any(not np.array_equal(make(stage="warmup").step(n), forward[n - 1]) for n in range(1, 4))


def test_the_order_stays_what_it_was():
    """A changed order would break the resumption of every run: these numbers are pinned on purpose."""
    assert Sampler([5, 6], 2, True, 1234, "warmup").step(1).tolist() == [[0, 0], [0, 3], [1, 3], [1, 1]]


def test_domains_of_one_size_have_orders_of_their_own():
    references = Sampler([50, 50], 50, True, 1, "joint").step(1)
    assert not np.array_equal(references[:50, 1], references[50:, 1])


def test_first_positions_are_uniform():
    firsts = [Sampler([4], 1, True, seed, "joint").step(1)[0, 1] for seed in range(800)]
    counts = np.bincount(firsts, minlength=4)
    assert counts.min() > 150 and counts.max() < 250


def test_memory_does_not_grow_with_steps():
    sampler = Sampler([1000], 500, True, 1, "joint")
    sampler.step(1)
    tracemalloc.start()
    for n in range(2, 200):
        sampler.step(n)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 64 * 1024


def test_impossible_arguments():
    for sizes, count in (([], 1), ([3, 0], 1), ([3], 0)):
        with pytest.raises(ValueError, match="must be positive"):
            Sampler(sizes, count, True, 1, "joint")
    with pytest.raises(ValueError, match="counted from 1"):
        Sampler([3], 1, True, 1, "joint").step(0)


WEIGHTS = {"text": 0.5, "code": 0.3, "math": 0.2}
SHARES = SourceShares(("a.jsonl", "b.jsonl"), (4, 9), (0.75, 0.25))


def test_weights_hold_at_every_step():
    """Each domain's count over the first steps is within one sample of its share, and a step's size never changes."""
    sampler = Sampler([7, 100, 13], 7, True, 1234, "warmup", weights=WEIGHTS)
    seen = np.zeros(3)
    for n in range(1, 60):
        counts = np.bincount(sampler.step(n)[:, 0], minlength=3)
        assert counts.sum() == 21
        seen += counts
        assert (abs(seen - n * 21 * np.array([0.5, 0.3, 0.2])) < 1).all()
        assert [own.draws for own in sampler.draws(n)] == seen.tolist()


def test_equal_weights_draw_as_balance_does():
    equal = Sampler([7, 100], 4, False, 3, "joint", weights={"text": 2, "code": 2})
    balanced = Sampler([7, 100], 4, True, 3, "joint")
    for n in range(1, 10):
        np.testing.assert_array_equal(equal.step(n), balanced.step(n))


def test_weighted_domains_see_every_sample_once_an_epoch():
    sizes = [7, 10, 4]
    references = drawn(Sampler(sizes, 3, False, 3, "joint", weights=WEIGHTS), 40)
    for domain, size in enumerate(sizes):
        samples = references[references[:, 0] == domain, 1]
        epochs = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
        assert len(epochs) > 5 and all(sorted(epoch) == list(range(size)) for epoch in epochs)


@pytest.mark.parametrize("mode", ["balanced", "weights", "pooled"])
def test_sources_with_weights_have_their_shares_and_epochs(mode):
    """Three quarters of the domain's samples come from its small source, whatever decides about the domains."""
    weights = {"text": 0.6, "code": 0.4} if mode == "weights" else None
    sampler = Sampler([20, 13], 5, mode == "balanced", 3, "joint", weights=weights, sources=[None, SHARES])
    taken = np.empty(0, dtype=np.int64)
    for n in range(1, 80):
        step = sampler.step(n)
        assert len(step) == 10
        taken = np.concatenate([taken, step[step[:, 0] == 1, 1]])
        first = int((taken < 4).sum())
        assert abs(first - 0.75 * len(taken)) < 1
        text, *own = sampler.draws(n)
        assert (text.source, text.size, text.draws) == (None, 20, 10 * n - len(taken))
        assert [(source.source, source.size, source.draws) for source in own] == [
            ("a.jsonl", 4, first),
            ("b.jsonl", 9, len(taken) - first),
        ]
    for low, high in ((0, 4), (4, 13)):
        samples = taken[(taken >= low) & (taken < high)]
        size = high - low
        epochs = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
        assert len(epochs) > 5 and all(sorted(epoch) == list(range(low, high)) for epoch in epochs)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    count=st.integers(1, 12),
    mode=st.sampled_from(["balanced", "pooled", "weights"]),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
    start=st.integers(1, 500),
)
def test_resuming_at_any_step_gives_the_same_rest(sizes, count, mode, parts, seed, start):
    """A fresh sampler that is asked for a step first gives what one gives that drew all steps before it."""
    weights = {str(index): 1 + index / 10 for index in range(len(sizes))} if mode == "weights" else None
    split = min(parts, sizes[0])
    own = SourceShares(tuple("abc"[:split]), (*[1] * (split - 1), sizes[0] - split + 1), tuple(range(1, split + 1)))
    sources = [own if split > 1 else None, *[None] * (len(sizes) - 1)]

    def make():
        return Sampler(sizes, count, mode == "balanced", seed, "joint", weights=weights, sources=sources)

    begun = make()
    for n in range(max(1, start - 5), start):
        begun.step(n)
    fresh = make()
    for n in range(start, start + 3):
        step = fresh.step(n)
        np.testing.assert_array_equal(step, begun.step(n))
        assert len(step) == count * len(sizes)
        assert (step[:, 1] >= 0).all() and (step[:, 1] < np.array(sizes)[step[:, 0]]).all()
        counts = np.bincount(step[:, 0], minlength=len(sizes))
        if mode == "balanced":
            assert (counts == count).all()
        before, after = make().draws(n - 1), make().draws(n)
        gained = np.zeros(len(sizes), dtype=int)
        for old, new in zip(before, after, strict=True):
            gained[new.domain] += new.draws - old.draws
        assert (gained == counts).all()


def test_weights_and_sources_must_fit_the_domains():
    with pytest.raises(ValueError, match="2 domains have 1 weights"):
        Sampler([3, 4], 1, True, 1, "joint", weights={"text": 1})
    with pytest.raises(ValueError, match="cannot make up a domain of 12"):
        Sampler([12], 1, True, 1, "joint", sources=[SHARES])


def test_sources_of_one_size_have_orders_of_their_own():
    shares = SourceShares(("a", "b"), (50, 50), (1, 1))
    samples = Sampler([100], 100, True, 1, "joint", sources=[shares]).step(1)[:, 1]
    assert sorted(samples[:50]) == list(range(50)) and sorted(samples[50:]) == list(range(50, 100))
    assert not np.array_equal(samples[:50], samples[50:] - 50)


def test_the_order_by_weights_stays_what_it_is():
    """Pinned like the balanced order, for the runs that are to be resumed."""
    shares = SourceShares(("x", "y"), (2, 3), (2, 1))
    sampler = Sampler([5, 6], 2, True, 1234, "warmup", weights={"a": 3, "b": 1}, sources=[shares, None])
    assert sampler.step(1).tolist() == [[0, 1], [0, 0], [0, 3], [1, 3]]
    assert sampler.step(2).tolist() == [[0, 1], [0, 0], [0, 2], [1, 1]]
