"""RMSNorm for the `torch` backend: megatron-core's own wrapper refuses sequence parallelism."""

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
        return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], self.weight, self.eps)
