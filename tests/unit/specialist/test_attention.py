"""Packed attention against a dense one, written out, in float64."""

import pytest
import torch

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.attention import PackedSegments, SegmentAttention, packed_segments
from megafuser.specialist.transformer_config import transformer_config
from tests.unit.specialist.small_card import CARD

HEADS, D = 6, 16
BOUNDARIES = [0, 5, 6, 13]
WIDTH = 20


@pytest.fixture(scope="module")
def attention():
    with single_process_cpu():
        config = transformer_config(
            CARD, parallel=ParallelConfig(), precision=PrecisionConfig(dtype="fp32"), backend="torch"
        )
        yield SegmentAttention(config, layer_number=1, attn_mask_type=None, attention_type="self")


def packed(boundaries: list[int]) -> PackedSegments:
    """The boundaries of the samples, and the pads up to the row's end as the last segment."""
    ends = torch.tensor([*boundaries, WIDTH], dtype=torch.int32)
    return packed_segments(ends, max_seqlen=int(ends.diff().max()), segments=len(boundaries) - 1)


def random_qkv(groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(groups)
    return [torch.randn(WIDTH, heads, D, generator=generator).requires_grad_() for heads in (HEADS, groups, groups)]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One softmax per head over the whole row; what is of another sample, or later, is masked."""
    sample = torch.bucketize(torch.arange(BOUNDARIES[-1]), torch.tensor(BOUNDARIES[1:]), right=True)
    position = torch.arange(BOUNDARIES[-1])
    allowed = (sample[:, None] == sample[None, :]) & (position[:, None] >= position[None, :])
    out = q.new_zeros(WIDTH, HEADS, D)
    for head in range(HEADS):
        group = head // (HEADS // k.shape[1])
        used = slice(0, BOUNDARIES[-1])
        scores = q[used, head] @ k[used, group].T / D**0.5
        probabilities = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
        out[used, head] = probabilities @ v[used, group]
    return out.flatten(1)


@pytest.mark.parametrize("groups", [6, 2, 1])
def test_outputs_and_gradients_equal_dense_attention(attention: SegmentAttention, groups: int) -> None:
    ours = random_qkv(groups)
    reference = [tensor.detach().double().requires_grad_() for tensor in ours]
    out, expected = attention(*ours, None, packed_seq_params=packed(BOUNDARIES)), dense(*reference)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    (out * factors).sum().backward()
    (expected * factors.double()).sum().backward()
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_pads_are_exactly_zero_whatever_stands_there(attention: SegmentAttention) -> None:
    q, k, v = random_qkv(2)
    with torch.no_grad():
        for tensor in (q, k, v):
            tensor[BOUNDARIES[-1] :] = torch.nan
    out = attention(q, k, v, None, packed_seq_params=packed(BOUNDARIES))
    assert not out[BOUNDARIES[-1] :].any()
    out.sum().backward()
    for tensor in (q, k, v):
        assert torch.isfinite(tensor.grad).all() and not tensor.grad[BOUNDARIES[-1] :].any()


def test_a_row_of_pads_alone(attention: SegmentAttention) -> None:
    """Gradients are zero, and there are some: a reduction that overlaps with the backward waits for every weight's."""
    qkv = random_qkv(2)
    out = attention(*qkv, None, packed_seq_params=packed([0]))
    assert out.shape == (WIDTH, HEADS * D) and not out.any()
    out.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in qkv)


def test_rows_must_be_packed(attention: SegmentAttention) -> None:
    with pytest.raises(ValueError, match="packed_seq_params"):
        attention(*random_qkv(2), None)
