"""Mixture cross-entropy: −log softmax(Σ_k w_k W_k h_k)[target], with the heads' rows spread over tensor parallelism.

The logits are mixed and the softmax comes after (paper, Eq. 1). This form materializes the logits of one microbatch,
[T, V/TP], and leaves the gradients to autograd. A chunked form may take its place behind the same function.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, vocab_parallel_cross_entropy


@dataclass(frozen=True)
class MixtureLoss:
    """Per response token, in natural logarithms.

    Attributes:
        fused: [T] float32, the loss of the fused distribution; carries the gradient.
        weights: [T, K] float32, the gate's weights, detached.
        specialists: [T, K] float32, each specialist's own loss over the shared vocabulary; only where asked for.
        uniform: [T] float32, the loss of the mixture with equal weights; only where asked for.
    """

    fused: torch.Tensor
    weights: torch.Tensor
    specialists: torch.Tensor | None = None
    uniform: torch.Tensor | None = None


def mixture_cross_entropy(
    hidden: Sequence[torch.Tensor],
    heads: Sequence[torch.Tensor],
    weights: torch.Tensor,
    targets: torch.Tensor,
    *,
    shared_vocabulary: int,
    with_parts: bool = False,
) -> MixtureLoss:
    """Loss of each response token.

    Args:
        hidden: per specialist, [T, h_k], the same on every tensor-parallel rank. Their gradient comes back whole: the
            heads' part is summed over the ranks here.
        heads: per specialist, this rank's rows of the output head, [padded V / TP, h_k]; all padded alike, so that a
            row means the same id for every specialist.
        weights: [T, K] float32, the gate's weights.
        targets: [T] int64, ids below `shared_vocabulary`.
        shared_vocabulary: ids from here on (padding, tokens that only some specialists have) get no probability.
        with_parts: also give the specialists' own losses and the uniform mixture's, without gradient.
    """
    # Each rank sees only its rows of the vocabulary, so its gradients of h and w are partial sums over them.
    logits = [
        _head_logits(copy_to_tensor_model_parallel_region(h), head) for h, head in zip(hidden, heads, strict=True)
    ]
    partial_weights = copy_to_tensor_model_parallel_region(weights)
    excluded = _excluded_rows(heads[0], shared_vocabulary)
    mixed = _weighted_sum(partial_weights, logits)
    fused = _cross_entropy(mixed, targets, excluded)
    specialists = uniform = None
    if with_parts:
        with torch.no_grad():
            specialists = torch.stack([_cross_entropy(logit, targets, excluded) for logit in logits], dim=-1)
            equal_weights = torch.full_like(weights, 1 / len(logits))
            uniform = _cross_entropy(_weighted_sum(equal_weights, logits), targets, excluded)
    return MixtureLoss(fused=fused, weights=weights.detach(), specialists=specialists, uniform=uniform)


def _weighted_sum(weights: torch.Tensor, logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_k w_k z_k, [T, rows], of weights [T, K] and K logits [T, rows]."""
    mixed = weights[:, 0, None] * logits[0]
    for k, logit in enumerate(logits[1:], start=1):
        mixed = mixed + weights[:, k, None] * logit
    return mixed


def _head_logits(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits [T, rows] in float32 of hidden states [T, h] and head rows [rows, h]."""
    return torch.nn.functional.linear(hidden, head).float()


def _excluded_rows(head: torch.Tensor, shared_vocabulary: int) -> torch.Tensor:
    """[rows] bool: which of this rank's rows lie outside the shared vocabulary."""
    first = head.shape[0] * parallel_state.get_tensor_model_parallel_rank()
    return torch.arange(first, first + head.shape[0], device=head.device) >= shared_vocabulary


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """[T] losses of this rank's logits [T, rows]; the masked copy also shields `logits` from in-place work below."""
    masked = logits.masked_fill(excluded, -torch.inf)
    return vocab_parallel_cross_entropy(masked.unsqueeze(1), targets.unsqueeze(1)).squeeze(1)
