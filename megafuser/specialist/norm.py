"""RMSNorm for the `torch` backend: megatron-core's own wrapper refuses sequence parallelism.

Norms of gradients are `runtime.norms`.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019), with megatron-core's constructor.

    Under sequence parallelism each rank sees a part of the tokens, so the weight's gradient is a partial sum; the mark
    `sequence_parallel` makes megatron-core's finalization add the parts up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        """Makes a weight of ones, [hidden_size]."""
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalizes [..., hidden_size]."""
        normalized: torch.Tensor
        if not torch.is_grad_enabled():
            normalized, _ = torch.ops.aten._fused_rms_norm(hidden, hidden.shape[-1:], self.weight, self.eps)
        else:
            normalized = _RMSNorm.apply(hidden, self.weight, self.eps)
        return normalized


class _RMSNorm(torch.autograd.Function):
    """On a CPU, PyTorch has a fused forward but leaves the backward to autograd, which takes a dozen passes."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out: torch.Tensor
        out, inverse = torch.ops.aten._fused_rms_norm(hidden, hidden.shape[-1:], weight, eps)
        ctx.save_for_backward(hidden, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """With x the input, r = 1 / rms(x), y = x·r·w: dw = Σ g·x·r and dx = r·(g·w) − x·r³·⟨g·w, x⟩ / h."""
        hidden, weight, inverse = ctx.saved_tensors
        width = hidden.shape[-1]
        # the arithmetic is in float32, whatever the dtype; ⟨g·w, x⟩ = ⟨g·x, w⟩ comes out of the product that dw needs
        wide = hidden.float().reshape(-1, width)
        upstream = gradient.float().reshape(-1, width)
        inverse = inverse.reshape(-1, 1)
        products = upstream * wide
        of_weight = torch.mv(products.T, inverse[:, 0])
        scale = torch.mv(products, weight.float()).unsqueeze(1).mul_(inverse**3).div_(-width)
        of_hidden = torch.mul(upstream, weight.float(), out=products).mul_(inverse).addcmul_(wide, scale)
        return of_hidden.view_as(hidden).to(hidden.dtype), of_weight.to(weight.dtype), None
