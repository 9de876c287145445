"""Packed attention against a dense one, written out, in float64."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.runtime.distributed import single_process_cpu
from megafuser.specialist.core_attention import PackedSegments, SegmentAttention, packed_segments
from megafuser.specialist.rotary import rotate
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


@pytest.mark.parametrize("boundaries", [[0, 5, 6, 13], [0, WIDTH], [0, 10, WIDTH]])
def test_positions_restart_at_every_segment(boundaries: list[int]) -> None:
    """Also where the table is as long as the row, at which megatron-core's own stops restarting."""
    ends = boundaries if boundaries[-1] == WIDTH else [*boundaries, WIDTH]
    row = packed_segments(torch.tensor(ends, dtype=torch.int32), max_seqlen=WIDTH, segments=len(boundaries) - 1)
    frequencies = 100.0 ** -torch.arange(0, 1, 2 / D, dtype=torch.float64)
    table = torch.arange(WIDTH)[:, None] * torch.cat([frequencies, frequencies])
    row.turn_by(table[:, None, None].float(), torch.float32)
    positions = [p for start, end in itertools.pairwise(ends) for p in range(end - start)]
    x = torch.randn(WIDTH, HEADS, D, generator=torch.Generator().manual_seed(3)).requires_grad_()
    reference = x.detach().double().requires_grad_()
    angles = torch.tensor(positions)[:, None, None] * frequencies
    pairs = torch.complex(reference[..., : D // 2], reference[..., D // 2 :]) * torch.exp(1j * angles)
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, *row.rotation).double(), expected, rtol=1e-5, atol=1e-5)
    out = rotate(x, *row.rotation)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    factors = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    out.backward(factors)
    expected.backward(factors.double())
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=1e-5, atol=1e-5)


def test_the_rotation_is_made_once_for_all_layers_and_turns_queries_and_keys(attention: SegmentAttention) -> None:
    row = packed(BOUNDARIES)
    table = torch.randn(WIDTH, 1, 1, D // 2, generator=torch.Generator().manual_seed(5)).repeat(1, 1, 1, 2)
    row.turn_by(table, torch.float32)
    made = row.rotation
    row.turn_by(table + 1, torch.float32)
    assert row.rotation is made
    q, k, v = random_qkv(2)
    found = attention(q, k, v, None, packed_seq_params=row)
    expected = dense(rotate(q, *made).double(), rotate(k, *made).double(), v.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def operations(attention: SegmentAttention, boundaries: list[int], width: int) -> int:
    """Forward and backward, as PyTorch counts them."""
    ends = torch.tensor(boundaries, dtype=torch.int32)
    row = packed_segments(ends, max_seqlen=int(ends.diff().max()), segments=len(boundaries) - 1)
    tensors = [torch.randn(width, HEADS, D).requires_grad_() for _ in range(3)]
    aten = torch.ops.aten
    counts = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        attention(*tensors, None, packed_seq_params=row).sum().backward()
    return counter.get_total_flops()


def test_the_work_grows_with_the_sum_of_squared_lengths_not_with_the_rows_square(attention: SegmentAttention) -> None:
    one = operations(attention, [0, 64], 64)
    assert one > 0
    assert operations(attention, [0, 64, 128, 192, 256], 256) == 4 * one
    assert operations(attention, [0, 256], 256) == 16 * one
