"""A step's microbatches over any number of ranks, and the rows of validation."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafuser.data import loader
from megafuser.data.loader import StepBatches, validation_rows
from megafuser.data.packing import pack
from megafuser.data.sampler import Sampler
from tests.unit.data.made_up import make_domain

WIDTH = 160


@pytest.fixture(scope="module")
def domains():
    return [make_domain("text", 20, 0), make_domain("code", 9, 1), make_domain("math", 14, 2)]


def batches(domains, ranks=1, rank=0, row_multiple=1, balanced=True):
    sampler = Sampler([len(domain) for domain in domains], 6, balanced, 7, "joint")
    return StepBatches(domains, sampler, WIDTH, ranks, rank, row_multiple)


def samples_of(rows):
    return Counter(tuple(reference) for row in rows for reference in row.references.tolist())


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(("ranks", "row_multiple"), [(1, 1), (2, 1), (3, 2), (8, 1)])
def test_a_step_is_the_same_over_any_number_of_ranks(domains, ranks, row_multiple, balanced):
    for step in (1, 2, 11):
        whole = batches(domains, balanced=balanced)
        shares = [batches(domains, ranks, rank, row_multiple, balanced).rows(step) for rank in range(ranks)]
        assert len({len(rows) for rows in shares}) == 1 and len(shares[0]) % row_multiple == 0
        rows = [row for share in shares for row in share]
        assert samples_of(rows) == samples_of(whole.rows(step))
        assert samples_of(rows) == Counter(tuple(pair) for pair in whole.sampler.step(step).tolist())
        counts = whole.counts(step)
        assert batches(domains, ranks, ranks - 1, row_multiple, balanced).counts(step) == counts
        assert sum(len(row.references) for row in rows) == counts.samples == 18
        assert sum(len(row.targets) for row in rows) == counts.response_tokens
        per_domain = sum(np.bincount(row.domains.numpy(), minlength=3) for row in rows)
        assert tuple(per_domain.tolist()) == counts.domain_response_tokens
        by_row = [(row.references[:, 0], row) for row in rows]
        assert counts.domain_samples == tuple(
            sum(int((of == d).sum()) for of, _ in by_row) for d in range(len(domains))
        )
        longest = [
            sum(
                max(len(domain.view(sample, k)[0]) for k in range(3))
                for _, row in by_row
                for of, sample in row.references
                if of == d
            )
            for d, domain in enumerate(domains)
        ]
        assert list(counts.domain_tokens) == longest and counts.tokens == sum(longest)


@pytest.mark.parametrize(("ranks", "row_multiple", "width_multiple"), [(1, 1, 1), (2, 1, 1), (3, 2, 8)])
def test_all_rows_of_a_step_are_alike_and_their_pads_are_counted(domains, ranks, row_multiple, width_multiple):
    sampler = Sampler([len(domain) for domain in domains], 6, True, 7, "joint")
    for step in (1, 2):
        shares = [StepBatches(domains, sampler, WIDTH, ranks, r, row_multiple, width_multiple) for r in range(ranks)]
        rows = [row for share in shares for row in share.rows(step)]
        widths = {tuple(view.input_ids.shape[1] for view in row.specialists) for row in rows}
        assert len(widths) == 1 and not any(width % width_multiple for width in next(iter(widths)))
        real = sum(view.used for row in rows for view in row.specialists)
        efficiencies = {share.packing_efficiency(step) for share in shares}
        assert len(efficiencies) == 1
        assert efficiencies.pop() == pytest.approx(real / (len(rows) * sum(next(iter(widths)))))
        assert {row.width for row in rows} == {max(next(iter(widths)))}


def test_steps_can_be_asked_for_in_any_order(domains):
    forward = batches(domains)
    first = [forward.rows(step) for step in range(1, 6)]
    again = batches(domains)
    for step in (5, 1, 3):
        for one, other in zip(first[step - 1], again.rows(step), strict=True):
            np.testing.assert_array_equal(one.references, other.references)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize(("count", "sizes"), [(10, [10, 9, 10]), (None, [20, 9, 14]), (1, [1, 1, 1])])
def test_validation_takes_the_first_samples_of_each_domain(domains, ranks, count, sizes):
    shares = [validation_rows(domains, count, WIDTH, ranks, rank) for rank in range(ranks)]
    assert len({len(rows) for rows in shares}) == 1
    taken = samples_of(row for share in shares for row in share)
    assert taken == Counter((domain, sample) for domain, size in enumerate(sizes) for sample in range(size))


def test_a_step_is_packed_once(domains, monkeypatch):
    """Rows, efficiency and counts of one step come from one draw and one packing."""
    calls = []
    monkeypatch.setattr(loader, "pack", lambda *arguments: calls.append(arguments) or pack(*arguments))
    own = batches(domains)
    for step in (1, 2, 1):
        own.rows(step), own.packing_efficiency(step), own.counts(step)
    assert len(calls) == 3
    assert own.packing_efficiency(2) == batches(domains).packing_efficiency(2)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 20),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    specialists=st.integers(1, 4),
    ranks=st.integers(1, 5),
    row_multiple=st.integers(1, 3),
    width_multiple=st.sampled_from([1, 8]),
    count=st.integers(1, 6),
    step=st.integers(1, 300),
)
def test_rows_hold_every_token_once_and_the_same_responses_in_every_view(
    seed, sizes, specialists, ranks, row_multiple, width_multiple, count, step
):
    """Against the samples themselves: what each segment of each row holds, and what its positions predict."""
    made = [make_domain(f"d{index}", size, seed + index, specialists) for index, size in enumerate(sizes)]
    sampler = Sampler(sizes, count, True, 7, "joint")
    shares = [
        StepBatches(made, sampler, WIDTH, ranks, rank, row_multiple, width_multiple).rows(step) for rank in range(ranks)
    ]
    assert len({len(rows) for rows in shares}) == 1 and len(shares[0]) % row_multiple == 0
    rows = [row for share in shares for row in share]
    references = [tuple(pair) for row in rows for pair in row.references.tolist()]
    assert Counter(references) == Counter(tuple(pair) for pair in sampler.step(step).tolist())
    assert np.bincount([domain for domain, _ in references], minlength=len(sizes)).tolist() == [count] * len(sizes)
    for row in rows:
        chosen = [(made[domain], sample) for domain, sample in row.references.tolist()]
        targets = np.concatenate([[], *(domain.targets(sample) for domain, sample in chosen)])
        assert row.targets.tolist() == targets.tolist()
        for specialist, view in enumerate(row.specialists):
            bounds, ids = view.cu_seqlens.tolist(), view.input_ids[0].numpy()
            assert view.segments == len(chosen) and bounds[0] == 0 and bounds[-1] == len(ids)
            for start, end, (domain, sample) in zip(bounds, bounds[1:], chosen, strict=False):
                np.testing.assert_array_equal(ids[start:end], domain.view(sample, specialist)[0])
                np.testing.assert_array_equal(view.position_ids[0, start:end], np.arange(end - start))
            assert not ids[bounds[len(chosen)] :].any(), "pads are at the tail, and only there"
            check_predictions(view, bounds[: len(chosen) + 1], targets)


def check_predictions(view, bounds, targets):
    """A position predicts the token behind it; a sample's last response token is predicted within the sample."""
    positions = view.response_positions.numpy()
    assert (view.input_ids[0].numpy()[positions + 1] == targets).all()
    segments = np.searchsorted(bounds, positions, side="right")
    assert (segments == np.searchsorted(bounds, positions + 1, side="right")).all()
