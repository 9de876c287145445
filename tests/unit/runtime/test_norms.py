"""Norms of tensors that are too large for sums in float32, against float64."""

import pytest
import torch

from megafuser.runtime.norms import multi_tensor_l2_norm, sum_of_squares


@pytest.fixture(scope="module")
def tensors() -> list[torch.Tensor]:
    """One as large as a small embedding, and others that are no multiple of a block; PyTorch's norm is off by 1e-4."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((16000, 768), (70001,), (3, 5), ())]


def test_the_norm_of_large_tensors_is_that_of_float64(tensors: list[torch.Tensor]) -> None:
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors)
    assert float(sum_of_squares(tensors)) == pytest.approx(exact, rel=2e-6)
    norm, _ = multi_tensor_l2_norm(65536, torch.zeros(1), [tensors], False)
    assert norm.shape == (1,) and norm.dtype == torch.float32
    assert float(norm) == pytest.approx(exact**0.5, rel=1e-6)


def test_a_tensors_halves_have_its_norm(tensors: list[torch.Tensor]) -> None:
    """As tensor parallelism cuts it."""
    (large, *_) = tensors
    halves = sum(float(sum_of_squares([half])) for half in large.chunk(2, dim=1))
    assert halves == pytest.approx(float(sum_of_squares([large])), rel=1e-6)
