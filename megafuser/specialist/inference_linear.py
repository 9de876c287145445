"""Linear layers of the `torch` backend where a model only predicts: the product, and the sum over tensor parallelism.

megatron-core's prepare a backward in every call. Where a step has one token that takes as long as small products do.
Training's layers are megatron-core's own; `specialist.layer_specs` chooses.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

# So few that the weight's way from memory is what a product takes, or should.
FEW_ROWS = 64
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows · weightᵀ + bias, without a gradient.

    On a CPU, `torch.nn.functional.linear` leaves float32 to MKL, for which a handful of rows can take several times as
    long as one row does (on an AMD EPYC: 3 to 5 times for 8 rows); oneDNN needs but little more. It has no public name
    in PyTorch that takes plain weights, so where this one goes, all is left to `linear`.

    Args:
        rows: [..., h].
        weight: [n, h].
        bias: [n].

    Returns:
        [..., n].
    """
    width = rows.shape[-1]
    few = width < rows.numel() <= FEW_ROWS * width
    if few and _HAS_ONEDNN and rows.device.type == "cpu" and rows.dtype is torch.float32:
        flat = rows.reshape(-1, width)
        # oneDNN makes and keeps code for each number of rows, which steps change all the time: give it powers of two
        padded = torch.nn.functional.pad(flat, (0, 0, 0, (1 << (len(flat) - 1).bit_length()) - len(flat)))
        out = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
        outputs: torch.Tensor = out[: len(flat)].view(*rows.shape[:-1], len(weight))
        return outputs
    return torch.nn.functional.linear(rows, weight, bias)


class PredictingColumnParallelLinear(ColumnParallelLinear):
    """megatron-core's, for a forward without gradients and without sequence parallelism."""

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, h] → [S, B, n / TP], and the bias where others add it."""
        if weight is not None or runtime_gather_output or self.gather_output or self.sequence_parallel:
            raise ValueError("a layer that only predicts has its own weight, and gathers nothing")
        if self.skip_bias_add:
            return product(input_, self.weight), self.bias
        return product(input_, self.weight, self.bias), None


class PredictingRowParallelLinear(RowParallelLinear):
    """megatron-core's, for a forward without gradients and without sequence parallelism."""

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S, B, h / TP] → [S, B, n], and the bias where others add it."""
        if not self.input_is_parallel or self.sequence_parallel:
            raise ValueError("a layer that only predicts takes what the layer before it gave")
        out = product(input_, self.weight)
        if self.tp_group.size() > 1:
            torch.distributed.all_reduce(out, group=self.tp_group)
        if self.skip_bias_add:
            return out, self.bias
        return (out if self.bias is None else out + self.bias), None


def predicting(module: Any) -> Any:
    """What stands in for a module of a layer's spec where the model only predicts; else the module itself."""
    return {
        ColumnParallelLinear: PredictingColumnParallelLinear,
        RowParallelLinear: PredictingRowParallelLinear,
    }.get(module, module)
