"""Masters from bfloat16 weights and the 16 bits that these lack, and back: to the bit."""

import pytest
import torch

from megafuser.training.exact_states import join, split
from tests.parallel.fused_adam import master_of


def masters() -> torch.Tensor:
    """Of all sizes, both signs, those in the middle between two bfloat16 and those beside it."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(4096, generator=generator) * 10.0 ** torch.randint(-38, 38, (4096,), generator=generator)
    edges = torch.tensor([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    highs = torch.tensor([0x0000, 0x3F80, 0x3FFF, 0x0001, -0x8000, -0x4080, -0x4001], dtype=torch.int32)
    between = ((highs[:, None] << 16) | edges).flatten().view(torch.float32)
    return torch.cat([sizes, between])


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32 if values.dtype is torch.float32 else torch.int16)


def test_nothing_is_lost() -> None:
    weight, remainder = split(masters())
    assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(bits(join(weight, remainder)), bits(masters()))
    assert torch.equal(bits(master_of(weight, remainder)), bits(masters()))


def test_the_weight_is_the_rounded_master() -> None:
    """Halves go away from zero, where PyTorch rounds to even."""
    weight, _ = split(masters())
    half = (bits(masters()) & 0xFFFF) == 0x8000
    assert half.sum() == 7
    assert torch.equal(bits(weight[~half]), bits(masters()[~half].bfloat16()))
    assert (weight[half].float().abs() > masters()[half].abs()).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_the_shape_stays(shape: tuple[int, ...]) -> None:
    weight, remainder = split(torch.ones(shape))
    assert weight.shape == remainder.shape == join(weight, remainder).shape == shape
