"""Invariants of packing and dealing."""

import numpy as np
import pytest

from megafuser.data.packing import deal, pack


def random_lengths(seed, samples, specialists, width):
    generator = np.random.default_rng(seed)
    return np.clip(
        generator.lognormal(4, 0.8, (samples, 1)) + generator.integers(1, 40, (samples, specialists)), 1, width
    )


@pytest.mark.parametrize("seed", range(8))
def test_every_sample_once_and_no_row_over_width_for_any_specialist(seed):
    lengths = random_lengths(seed, 150, 3, 512).astype(np.int32)
    rows = pack(lengths, 512)
    assert sorted(np.concatenate(rows).tolist()) == list(range(150))
    for row in rows:
        assert len(row) and (lengths[row].sum(axis=0) <= 512).all()
        assert (np.diff(row) > 0).all()
    for mine, again in zip(rows, pack(lengths, 512), strict=True):
        np.testing.assert_array_equal(mine, again)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_well_filled(seed):
    lengths = random_lengths(seed, 300, 3, 512).astype(np.int32)
    bound = int(np.ceil(lengths.sum(axis=0).max() / 512))
    assert len(pack(lengths, 512)) <= 1.12 * bound + 1


def test_best_fit_takes_the_fullest_row_that_has_room():
    lengths = np.array([[6], [5], [4], [5], [3]])
    assert [row.tolist() for row in pack(lengths, 10)] == [[0, 2], [1, 3], [4]]
    lengths = np.array([[7], [8], [2]])
    assert [row.tolist() for row in pack(lengths, 10)] == [[1, 2], [0]]


def test_a_row_is_full_when_any_specialist_is():
    lengths = np.array([[1, 9], [9, 1], [1, 1]])
    assert [row.tolist() for row in pack(lengths, 10)] == [[0, 1], [2]]
    lengths = np.array([[1, 9], [1, 2]])
    assert [row.tolist() for row in pack(lengths, 10)] == [[0], [1]]


def test_nothing_packs_to_nothing_and_too_long_is_a_bug():
    assert pack(np.empty((0, 3), dtype=np.int32), 10) == []
    with pytest.raises(ValueError, match="sample 1 has 11 positions"):
        pack(np.array([[3, 3], [3, 11]]), 10)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 23])
@pytest.mark.parametrize(("ranks", "multiple"), [(1, 1), (2, 1), (4, 1), (3, 2), (1, 4)])
def test_all_ranks_have_as_many_microbatches_and_all_rows_are_dealt(count, ranks, multiple):
    rows = [np.array([index]) for index in range(count)]
    dealt = deal(rows, ranks, multiple)
    sizes = {len(own) for own in dealt}
    assert len(dealt) == ranks and len(sizes) == 1
    size = sizes.pop()
    assert size >= 1 and size % multiple == 0 and size < max(1, -(-count // ranks)) + multiple
    assert sorted(int(row[0]) for own in dealt for row in own if len(row)) == list(range(count))
    filled = [sum(len(row) > 0 for row in own) for own in dealt]
    assert max(filled) - min(filled) <= 1


def test_rows_are_dealt_back_and_forth():
    dealt = deal([np.array([index]) for index in range(7)], 2)
    assert [[row.tolist() for row in own] for own in dealt] == [[[0], [3], [4], []], [[1], [2], [5], [6]]]


def test_dealing_balances_attention():
    """A row's attention costs the sum of its squared lengths; rows dealt in blocks would be skewed."""
    lengths = random_lengths(1, 400, 1, 512).astype(np.int64)
    rows = pack(lengths, 512)
    rows = rows[: len(rows) // 4 * 4]

    def skew(dealt):
        costs = [sum(int((lengths[row] ** 2).sum()) for row in own) for own in dealt]
        return max(costs) / (sum(costs) / len(costs))

    blocks = [rows[start : start + len(rows) // 4] for start in range(0, len(rows), len(rows) // 4)]
    assert skew(deal(rows, 4)) < 1.08 < 1.2 < skew(blocks)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="must be positive"):
        deal([], 0)
