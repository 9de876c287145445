"""RMSNorm against its formula, and the mark that megatron-core's finalization reads."""

import dataclasses

import pytest
import torch

from megafuser.config.compute import ParallelConfig, PrecisionConfig
from megafuser.specialist.norm import RMSNorm
from megafuser.specialist.transformer_config import transformer_config
from tests.unit.specialist.small_card import CARD


def norm(parallel: ParallelConfig) -> RMSNorm:
    config = transformer_config(CARD, parallel=parallel, precision=PrecisionConfig(dtype="fp32"), backend="torch")
    return RMSNorm(config, hidden_size=48, eps=1e-2)


def test_formula() -> None:
    layer = norm(ParallelConfig())
    generator = torch.Generator().manual_seed(0)
    layer.weight.data = torch.randn(48, generator=generator)
    x = torch.randn(7, 1, 48, generator=generator)
    expected = x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 1e-2) * layer.weight
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_partial_gradients_are_marked_under_sequence_parallelism_only() -> None:
    whole, parts = ParallelConfig(tensor=2), ParallelConfig(tensor=2, sequence=True)
    assert not norm(ParallelConfig()).weight.sequence_parallel
    assert not norm(whole).weight.sequence_parallel
    assert norm(parts).weight.sequence_parallel
    assert not norm(dataclasses.replace(parts, tensor=1)).weight.sequence_parallel


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(7, 1, 48), (7, 3, 48), (1, 48)])
def test_gradients_equal_the_formulas_in_float64(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    layer = norm(ParallelConfig()).to(dtype)
    generator = torch.Generator().manual_seed(1)
    layer.weight.data = torch.randn(48, generator=generator).to(dtype)
    x = (2 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    factors = torch.randn(shape, generator=generator).to(dtype)
    wide, weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    expected = wide / torch.sqrt((wide**2).mean(dim=-1, keepdim=True) + 1e-2) * weight
    out = layer(x)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    out.backward(factors)
    expected.backward(factors.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=tolerance, atol=3 * tolerance)


def test_a_view_of_a_larger_tensor_is_normalized_too() -> None:
    """Queries and keys are parts of one projection's output."""
    layer = norm(ParallelConfig())
    whole = torch.randn(5, 2, 96, generator=torch.Generator().manual_seed(2)).requires_grad_()
    copied = whole.detach().clone().requires_grad_()
    layer(whole[..., 48:]).square().sum().backward()
    layer(copied[..., 48:].contiguous()).square().sum().backward()
    torch.testing.assert_close(whole.grad, copied.grad)
