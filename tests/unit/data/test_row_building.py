"""The tensors of a packed row, sample by sample against the views they are made of."""

import numpy as np
import pytest
import torch

from megafuser.data.row_building import build_row
from tests.unit.data.made_up import make_domain

REFERENCES = np.array([[1, 3], [0, 2], [1, 0], [0, 5]])


@pytest.fixture(scope="module")
def domains():
    return [make_domain("text", 8, 0), make_domain("code", 6, 1)]


def pad_segments(pads: int) -> list[int]:
    return [min(64, pads - start) for start in range(0, pads, 64)]


def test_each_specialists_row_holds_the_samples_densely(domains):
    row = build_row(domains, REFERENCES, 256)
    assert len(row.specialists) == 3
    for specialist, own in enumerate(row.specialists):
        views = [domains[domain].view(sample, specialist) for domain, sample in REFERENCES]
        ids = [int(token) for view, _ in views for token in view]
        assert own.used == len(ids)
        assert own.input_ids.shape == own.position_ids.shape == (1, 256)
        assert own.input_ids[0].tolist() == ids + [0] * (256 - len(ids))
        lengths = [len(view) for view, _ in views] + pad_segments(256 - len(ids))
        assert own.position_ids[0].tolist() == [position for length in lengths for position in range(length)]
        assert own.cu_seqlens.tolist() == [sum(lengths[:index]) for index in range(len(lengths) + 1)]
        assert own.max_seqlen == max(lengths) and own.segments == len(views)
        assert own.cu_seqlens.dtype == torch.int32 and own.input_ids.dtype == own.position_ids.dtype == torch.int64


def test_every_specialist_predicts_the_same_targets(domains):
    row = build_row(domains, REFERENCES, 256)
    assert row.targets.tolist() == [
        int(token) for domain, sample in REFERENCES for token in domains[domain].targets(sample)
    ]
    for own in row.specialists:
        assert torch.equal(own.input_ids[0, own.response_positions + 1], row.targets)
        segments = torch.searchsorted(own.cu_seqlens.long(), own.response_positions, right=True) - 1
        assert torch.equal(segments, row.samples), "a target is predicted from within its own sample"


def test_response_tokens_know_their_domain_and_sample(domains):
    row = build_row(domains, REFERENCES, 256)
    lengths = [int(domains[domain].response_lengths[sample]) for domain, sample in REFERENCES]
    assert row.domains.tolist() == [
        d for (d, _), length in zip(REFERENCES.tolist(), lengths, strict=True) for d in [d] * length
    ]
    assert row.samples.tolist() == [index for index, length in enumerate(lengths) for _ in range(length)]
    np.testing.assert_array_equal(row.references, REFERENCES)


def test_a_row_that_is_full_has_no_tail(domains):
    width = int(domains[0].lengths[2, 2])
    row = build_row(domains, np.array([[0, 2]]), width)
    assert row.specialists[2].cu_seqlens.tolist() == [0, width] and row.specialists[2].used == width
    first = row.specialists[0]
    assert first.segments == 1 and first.cu_seqlens.tolist()[1:] == [first.used, width]


def test_every_view_has_a_width_of_its_own(domains):
    widths = (200, 256, 230)
    row, wide = build_row(domains, REFERENCES, widths), build_row(domains, REFERENCES, 256)
    assert row.width == 256 and torch.equal(row.targets, wide.targets)
    for width, own, other in zip(widths, row.specialists, wide.specialists, strict=True):
        assert own.input_ids.shape == own.position_ids.shape == (1, width) and own.used == other.used
        assert torch.equal(own.input_ids, other.input_ids[:, :width])
        assert torch.equal(own.response_positions, other.response_positions)
        assert own.segments == other.segments and own.cu_seqlens[-1] == width
        assert torch.equal(own.cu_seqlens[: own.segments + 1], other.cu_seqlens[: own.segments + 1])


def test_an_empty_row_is_all_pads(domains):
    row = build_row(domains, np.empty(0, dtype=np.int64), 16)
    assert row.targets.shape == row.domains.shape == row.samples.shape == (0,)
    assert row.references.shape == (0, 2)
    assert row.targets.dtype == row.domains.dtype == row.samples.dtype == torch.int64
    for own in row.specialists:
        assert own.input_ids.tolist() == [[0] * 16] and own.used == 0 and own.max_seqlen == 16
        assert own.cu_seqlens.tolist() == [0, 16] and own.response_positions.shape == (0,)
        assert own.response_positions.dtype == torch.int64


def test_pads_are_short_segments(domains):
    """Packed attention on a GPU works on pads too, and an empty row as one segment would cost its width's square."""
    for own in build_row(domains, np.empty(0, dtype=np.int64), 1000).specialists:
        assert own.segments == 0 and own.max_seqlen == 64
        assert own.cu_seqlens.diff().tolist() == pad_segments(1000)


def test_to_moves_every_tensor(domains):
    row = build_row(domains, REFERENCES, 256).to("meta")
    tensors = [row.targets, row.domains, row.samples]
    for own in row.specialists:
        tensors += [own.input_ids, own.position_ids, own.cu_seqlens, own.response_positions]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_samples_that_do_not_fit_are_a_bug(domains):
    with pytest.raises(ValueError, match="a row has 20"):
        build_row(domains, REFERENCES, 20)
