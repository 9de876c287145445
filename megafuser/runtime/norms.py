"""Norms of gradients that do not depend on how large the tensors are.

PyTorch's norm of a float32 tensor on a CPU adds millions of squares to a few float32 sums. Once these are large, small
squares are rounded away: of 25 million normal values the norm comes out 7e-4 too small, and differently where tensor
parallelism has cut the tensor. CUDA's kernels add up blocks first. Which gradients are put together is
`training.gradient_norms`; the layer RMSNorm is `specialist.norm`.
"""

from collections.abc import Sequence
from typing import Any

import torch

BLOCK = 2**16
"""Elements whose squares are added up in float32 on a CPU; the error is then below 1e-6, and the time hardly more."""


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the squares of all elements, a float64 scalar.

    Args:
        tensors: one or more, of any shapes, on one device.
    """
    if tensors[0].device.type == "cpu":
        tensors = [block for tensor in tensors for block in tensor.reshape(-1).split(BLOCK)]
    return torch.stack(torch._foreach_norm(list(tensors))).double().square().sum()


def multi_tensor_l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: Sequence[Sequence[torch.Tensor]], *_: Any
) -> tuple[torch.Tensor, None]:
    """Stands in for `amp_C.multi_tensor_l2norm`, as megatron-core's clipping calls it: the norm, [1] float32."""
    squares = [sum_of_squares(tensors) for tensors in tensor_lists if tensors]
    return torch.stack(squares).sum().sqrt().float().reshape(1), None
