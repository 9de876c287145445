"""Invariants of packing and dealing."""

import numpy as np
import pytest

from megafuser.data.packing import deal, pack


def random_lengths(seed, samples, specialists, width):
    generator = np.random.default_rng(seed)
    return np.clip(
        generator.lognormal(4, 0.8, (samples, 1)) + generator.integers(1, 40, (samples, specialists)), 1, width
    )


def loads_of(lengths, packing):
    return np.array([lengths[row].sum(axis=0) for row in packing.rows])


@pytest.mark.parametrize(("rows_multiple", "width_multiple"), [(1, 1), (3, 1), (1, 16), (4, 32), (200, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_every_sample_once_and_no_view_over_its_width(seed, rows_multiple, width_multiple):
    lengths = random_lengths(seed, 150, 3, 512).astype(np.int32)
    packing = pack(lengths, 512, rows_multiple, width_multiple)
    assert sorted(np.concatenate(packing.rows).tolist()) == list(range(150))
    assert len(packing.rows) % rows_multiple == 0 and len(packing.widths) == 3
    for row in packing.rows:
        assert (np.diff(row) > 0).all()
    fullest = loads_of(lengths, packing).max(axis=0)
    for need, width in zip(fullest.tolist(), packing.widths, strict=True):
        assert width <= 512 and width % width_multiple == 0 and need <= width < need + width_multiple
    assert packing.efficiency == pytest.approx(lengths.sum() / (len(packing.rows) * sum(packing.widths)))
    again = pack(lengths, 512, rows_multiple, width_multiple)
    assert packing.widths == again.widths
    for mine, other in zip(packing.rows, again.rows, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("samples", [12, 48, 300])
@pytest.mark.parametrize("seed", range(6))
def test_few_rows_and_almost_no_pads(seed, samples):
    """Templates that differ by up to forty tokens; hardly more rows than the tokens ask for, 95 % of them real."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(4.6, 0.5, (samples, 1)).astype(np.int64), 8, 500) + np.array([4, 12, 40])
    packing = pack(lengths, 768)
    assert len(packing.rows) <= 1.04 * np.ceil(lengths.sum(axis=0).max() / 768) + 1
    assert packing.efficiency >= 0.95
    one_width = lengths.sum() / (3 * len(packing.rows) * max(packing.widths))
    assert one_width < 0.93, "with one width for all views, the templates' difference would be pads"


def test_swaps_make_rows_even_that_the_longest_first_rule_leaves_uneven():
    """8 7 6 5 4 go to two rows as 8 5 4 and 7 6; the even split is 8 7 and 6 5 4."""
    packing = pack(np.array([[8], [7], [6], [5], [4]]), 20)
    assert packing.widths == (15,) and packing.efficiency == 1.0
    assert sorted(row.tolist() for row in packing.rows) == [[0, 1], [2, 3, 4]]


def test_samples_are_paired_so_that_views_are_even_too():
    """By the longest view alone, the first two rows would do; then one view would have two long samples in a row."""
    packing = pack(np.array([[10, 2], [10, 2], [2, 10], [2, 10]]), 12)
    assert packing.widths == (12, 12) and packing.efficiency == 1.0


def test_a_row_is_full_when_any_specialist_is():
    assert len(pack(np.array([[1, 9], [1, 2]]), 10).rows) == 2
    assert len(pack(np.array([[1, 8], [1, 2]]), 10).rows) == 1


def test_the_dearest_attention_comes_first_and_empty_rows_last():
    packing = pack(np.array([[3], [3], [6], [1]]), 8, rows_multiple=5)
    costs = [int((np.array([3, 3, 6, 1])[row] ** 2).sum()) for row in packing.rows]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0 and costs[-2] == 1


def test_many_rows_are_packed_too():
    lengths = random_lengths(5, 3000, 2, 512).astype(np.int64)
    packing = pack(lengths, 512)
    assert loads_of(lengths, packing).max() <= 512
    assert len(packing.rows) <= 1.1 * np.ceil(lengths.sum(axis=0).max() / 512)


def test_nothing_packs_to_empty_rows_and_too_long_is_a_bug():
    nothing = pack(np.empty((0, 3), dtype=np.int32), 10, rows_multiple=2, width_multiple=4)
    assert [len(row) for row in nothing.rows] == [0, 0] and nothing.widths == (4, 4, 4)
    assert nothing.efficiency == 0
    with pytest.raises(ValueError, match="sample 1 has 11 positions"):
        pack(np.array([[3, 3], [3, 11]]), 10)
    with pytest.raises(ValueError, match="sample 0 has 9 positions, a row has 8"):
        pack(np.array([[9]]), 10, width_multiple=4)


@pytest.mark.parametrize(("count", "ranks"), [(4, 1), (6, 2), (6, 3), (7, 7)])
def test_all_ranks_have_as_many_rows_and_all_are_dealt(count, ranks):
    dealt = deal([np.array([index]) for index in range(count)], ranks)
    assert len(dealt) == ranks and {len(own) for own in dealt} == {count // ranks}
    assert sorted(int(row[0]) for own in dealt for row in own) == list(range(count))


def test_rows_are_dealt_back_and_forth():
    dealt = deal([np.array([index]) for index in range(6)], 2)
    assert [[row.tolist() for row in own] for own in dealt] == [[[0], [3], [4]], [[1], [2], [5]]]


def test_dealing_balances_attention():
    """A row's attention costs the sum of its squared lengths; rows dealt in blocks would be skewed."""
    lengths = random_lengths(1, 400, 1, 512).astype(np.int64)
    rows = pack(lengths, 512, rows_multiple=4).rows

    def skew(dealt):
        costs = [sum(int((lengths[row] ** 2).sum()) for row in own) for own in dealt]
        return max(costs) / (sum(costs) / len(costs))

    blocks = [rows[start : start + len(rows) // 4] for start in range(0, len(rows), len(rows) // 4)]
    assert skew(deal(rows, 4)) < 1.08 < 1.2 < skew(blocks)


def test_rows_that_do_not_divide_are_a_bug():
    for rows, ranks in (([np.array([0])], 2), ([], 0)):
        with pytest.raises(ValueError, match="dealt evenly"):
            deal(rows, ranks)
