"""Invariants of packing and dealing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megafuser.data.packing as packing_module
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


def test_rows_that_stay_empty_do_not_spoil_the_search():
    """More rows than samples, as many ranks ask for: a row's load is up to 63 times the mean, its power beyond 2^63.

    Each sample can have a row of its own, so no view need be wider than its longest sample.
    """
    short = (
        "7 21 11  8 20 19  12 21 10  22 9 6  4 23 12  15 18 21  16 11 17  3 15 11  17 10 4  21 13 20  3 17 17 "
        "21 7 19  9 12 1  22 3 21  22 11 22  19 21 9  10 23 7  2 2 4  18 19 4  20 15 7  11 9 4  20 7 14  9 3 "
        "11  12 5 14  16 5 4  5 16 17  21 18 13  5 23 4  17 21 11  15 1 2  20 6 11  10 6 21  6 4 7  12 8 20 "
        "9 3 20  9 17 12 "
    )
    long = "1177 3850 2569  2068 721 439  1576 3201 98  "
    lengths = np.array((long + short).split(), dtype=int).reshape(-1, 3)
    assert pack(lengths, 4096, rows_multiple=63).widths == tuple(lengths.max(axis=0))


@pytest.mark.parametrize("rows", [1, 60, 400, 100_000])
def test_unevenness_is_what_whole_numbers_without_bounds_give(rows):
    lengths = np.array([[4000, 4096, 3], [4096, 9, 1]])
    mean = np.maximum(-(-lengths.sum(axis=0) // rows), 1)
    mean = mean * packing_module._coarser(lengths, mean)
    loads = 2 * lengths
    exact = [sum((int(load) * 1024 // int(one)) ** 4 for load, one in zip(row, mean, strict=True)) for row in loads]
    assert packing_module._unevenness(loads, mean).tolist() == exact
    assert sum(exact) < 2**63


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda views: st.lists(st.lists(st.integers(1, 96), min_size=views, max_size=views), min_size=1, max_size=40)
    ),
    st.integers(1, 6),
    st.sampled_from([1, 4, 16]),
)
def test_any_lengths_are_packed_whole(lengths, rows_multiple, width_multiple):
    lengths = np.array(lengths)
    packing = pack(lengths, 96, rows_multiple, width_multiple)
    assert sorted(np.concatenate(packing.rows).tolist()) == list(range(len(lengths)))
    assert len(packing.rows) % rows_multiple == 0
    assert (loads_of(lengths, packing) <= np.array(packing.widths)).all() and max(packing.widths) <= 96
    assert 0 < packing.efficiency <= 1
