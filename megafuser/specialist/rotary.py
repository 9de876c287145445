"""RoPE: its frequencies, plain or scaled, by the formulas that the published models were trained with; the rotation.

megatron-core's own scaling is not used: it knows one kind, with Llama 3.1's constants written in. Reading the scaling
from a config.json is `families.config_json`.
"""

import math
from typing import Any

import torch

from megafuser.specialist.card import ArchitectureCard


def inverse_frequencies(card: ArchitectureCard) -> torch.Tensor:
    """The angle by which each pair of channels turns from one position to the next.

    Plain: θ^(−2i/d) for pair i of d/2 (Su et al., 2021). `linear` divides all by the factor (Chen et al., 2023).
    `llama3` divides those that make fewer than `low_freq_factor` turns within the original context, leaves those that
    make more than `high_freq_factor`, and goes from one to the other linearly in the number of turns (source:
    transformers' `modeling_rope_utils`). The operations and their order are transformers', so that roundings are too.

    Args:
        card: the architecture.

    Returns:
        [kv_channels / 2] radians, float32.
    """
    # on the CPU whatever the default device is: a model on the meta device has these all the same
    channels = torch.arange(0, card.kv_channels, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / card.rotary_base ** (channels / card.kv_channels)
    scaling = card.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind != "llama3":
        raise ValueError(f"unknown RoPE scaling {scaling.kind!r}")
    context, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert context is not None and low is not None and high is not None, "llama3 scaling has all its fields"
    turns = context / (2 * math.pi / frequencies)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """RoPE (Su et al., 2021): turns each pair (channel i, channel i + d / 2) by its position's angle.

    Args:
        x: [S, heads, d].
        cosines: of the angles, [S, 1, d / 2].
        sines: of the angles, [S, 1, d / 2].
    """
    if not torch.is_grad_enabled():
        return _rotated(x, cosines, sines, sign=1)
    rotated: torch.Tensor = _Rotate.apply(x, cosines, sines)
    return rotated


class _Rotate(torch.autograd.Function):
    """Four passes; it keeps nothing of the tensor for the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Turns."""
        ctx.save_for_backward(cosines, sines)
        return _rotated(x, cosines, sines, sign=1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Turns back."""
        cosines, sines = ctx.saved_tensors
        return _rotated(gradient, cosines, sines, sign=-1), None, None


def _rotated(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, sign: int) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (first, second), (of_first, of_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cosines, out=of_first)
    of_first.addcmul_(second, sines, value=-sign)
    torch.mul(second, cosines, out=of_second)
    of_second.addcmul_(first, sines, value=sign)
    return out
