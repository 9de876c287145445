"""Balance, epochs and determinism of the sampler."""

import tracemalloc

import numpy as np
import pytest

from megafuser.data.sampler import Sampler


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
