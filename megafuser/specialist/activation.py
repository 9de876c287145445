"""The gated activation of the `torch` backend: SiLU(gate) · up, in few passes over memory.

Which layers take it is `specialist.layer_specs`.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class GatedSiLU:
    """SwiGLU's activation (Shazeer, 2020), in the place that megatron-core's MLP has for Transformer Engine's.

    Both halves come in one tensor, the gate's first. Only that tensor is kept for the backward; autograd would keep
    SiLU(gate) too, and take twice as many passes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Takes megatron-core's configuration; nothing of it matters here. No module: it has nothing to save."""

    def __call__(self, both: torch.Tensor) -> torch.Tensor:
        """[..., 2 · width] to [..., width]."""
        gated: torch.Tensor = _GatedSiLU.apply(both)
        return gated


class _GatedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        of_gate, of_up = out.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        torch.mul(gradient, activated, out=of_up)
        of_activated = torch.mul(gradient, up, out=activated)
        torch.ops.aten.silu_backward.grad_input(of_activated, gate, grad_input=of_gate)
        return out
