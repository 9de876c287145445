"""The gated activation against its formula in float64."""

import pytest
import torch

from megafuser.specialist.activation import GatedSiLU


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_outputs_and_gradients_equal_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    both = (3 * torch.randn(5, 1, 14, generator=generator)).to(dtype).requires_grad_()
    factors = torch.randn(5, 1, 7, generator=generator).to(dtype)
    reference = both.detach().double().requires_grad_()
    gate, up = reference[..., :7], reference[..., 7:]
    out, expected = GatedSiLU(None)(both), gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    out.backward(factors)
    expected.backward(factors.double())
    torch.testing.assert_close(both.grad.double(), reference.grad, rtol=tolerance, atol=tolerance)


def test_only_the_input_is_kept_for_the_backward() -> None:
    kept = []
    both = torch.randn(5, 1, 14, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        GatedSiLU(None)(both)
    assert [tensor.data_ptr() for tensor in kept] == [both.data_ptr()]
