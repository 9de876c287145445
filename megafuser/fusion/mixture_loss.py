"""Mixture cross-entropy: −log softmax(Σ_k w_k W_k h_k)[target], with the heads' rows spread over tensor parallelism.

The logits are mixed and the softmax comes after (paper, Eq. 1). Σ_k w_k W_k h_k is one linear head over the w_k h_k,
so this is a chunked linear cross-entropy: for each chunk of tokens the logits, the losses and all gradients in one
pass. Logits of all tokens never exist, and nothing is computed twice.

With dz = p − onehot: dh_k = w_k W_kᵀ dz, dw_k = ⟨dz, z_k⟩, dW_k = dzᵀ (w_k h_k).

The arithmetic of a chunk is in `fusion.vocabulary_parallel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megafuser.fusion.head_gradient import HeadGradient
from megafuser.fusion.vocabulary_parallel import SharedRows, VocabularyChunk, add_head_gradient, hidden_gradient


@dataclass(frozen=True)
class MixtureLoss:
    """Per response token, in natural logarithms.

    Attributes:
        fused: [T] float32, the loss of the fused distribution; carries the gradient.
        weights: [T, K] float32, the gate's weights, detached.
        specialists: [T, K] float32, each specialist's own loss over the shared vocabulary.
        uniform: [T] float32, the loss of the mixture with equal weights; only where asked for.
        confidence: [T] float32, the fused distribution's largest probability; likewise.
        correct: [T] bool, whether the target is the token that has it; likewise.
        attached_weights: `weights` not detached, for what is to be added to the loss.
    """

    fused: torch.Tensor
    weights: torch.Tensor
    specialists: torch.Tensor
    uniform: torch.Tensor | None = None
    attached_weights: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    correct: torch.Tensor | None = None


def mixture_cross_entropy(
    hidden: Sequence[torch.Tensor],
    heads: Sequence[torch.Tensor],
    weights: torch.Tensor,
    targets: torch.Tensor,
    *,
    shared_vocabulary: int,
    chunk_bytes: int,
    with_diagnostics: bool = False,
) -> MixtureLoss:
    """Loss of each response token.

    Gradients are computed here where grad mode is on and an input wants them. They are those of the *sum* of the
    losses: the backward must start from exactly that, and says so otherwise. A head's goes straight into its
    `main_grad`, where it has one.

    Args:
        hidden: per specialist, [T, h_k], the same on every tensor-parallel rank. Their gradient comes back whole: the
            heads' part is summed over the ranks here.
        heads: per specialist, this rank's rows of the output head, [padded V / TP, h_k]; all padded alike, so that a
            row means the same id for every specialist.
        weights: [T, K] float32, the gate's weights.
        targets: [T] int64, ids below `shared_vocabulary`.
        shared_vocabulary: ids from here on (padding, tokens that only some specialists have) get no probability.
        chunk_bytes: most memory that the logits of a chunk of tokens may take.
        with_diagnostics: also give the uniform mixture's loss and the fused distribution's top token, without gradient.
    """
    assert len({len(head) for head in heads}) == 1, "a row must mean the same id in every head"
    rows = SharedRows.of_this_rank(heads[0].shape[0], shared_vocabulary)
    each = VocabularyChunk.bytes_per_token(heads[0].shape[0], len(heads), heads[0].dtype)
    chunks = -(-len(targets) // max(1, chunk_bytes // each))
    plan = _Plan(
        rows=rows,
        # as even as can be: a last chunk of a few tokens would cost a pass over all heads
        chunk=-(-len(targets) // max(1, chunks)) or 1,
        gradients=torch.is_grad_enabled(),
        diagnostics=with_diagnostics,
    )
    fused, specialists, uniform, confidence, correct = _MixtureCrossEntropy.apply(
        plan, targets, weights, *hidden, *heads
    )
    return MixtureLoss(
        fused=fused,
        weights=weights.detach(),
        attached_weights=weights,
        specialists=specialists,
        uniform=uniform if with_diagnostics else None,
        confidence=confidence if with_diagnostics else None,
        correct=correct if with_diagnostics else None,
    )


@dataclass(frozen=True)
class _Plan:
    """What the one pass is to do.

    Attributes:
        rows: this rank's rows of shared ids.
        chunk: tokens at a time.
        gradients: whether there will be a backward.
        diagnostics: whether the uniform mixture's loss and the top token are wanted.
    """

    rows: SharedRows
    chunk: int
    gradients: bool
    diagnostics: bool


class _MixtureCrossEntropy(torch.autograd.Function):
    """One pass for losses and gradients; the backward only hands the gradients out."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, targets: torch.Tensor, weights: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Takes the K hidden states, then the K heads."""
        count = weights.shape[1]
        hidden, heads = tensors[:count], tensors[count:]
        wants = ctx.needs_input_grad if plan.gradients else [False] * len(ctx.needs_input_grad)
        gradients = _Gradients(plan.rows, weights, hidden, heads, wants)
        losses = torch.empty(count + 1, len(targets), dtype=torch.float32, device=targets.device)
        uniform = torch.empty(len(targets) if plan.diagnostics else 0, dtype=torch.float32, device=targets.device)
        confidence, correct = torch.empty_like(uniform), torch.empty_like(uniform, dtype=torch.bool)
        shared = [head[: plan.rows.count] for head in heads]
        chunk = VocabularyChunk(plan.rows, count, plan.chunk, targets.device)
        for start in range(0, len(targets), plan.chunk):
            part = slice(start, start + plan.chunk)
            states, own = [h[part] for h in hidden], targets[part]
            chunk.fill(states, shared, weights[part])
            losses[:, part], most, is_target = chunk.losses(own)
            if gradients.wanted:
                gradients.add(part, chunk.to_gradient(own), chunk)
            if plan.diagnostics:
                confidence[part], correct[part] = most, is_target
                chunk.mix(torch.full_like(weights[part], 1 / count))
                uniform[part] = chunk.losses(own)[0][-1]
        ctx.gradients = gradients.finish()
        fused, specialists = losses[-1].clone(), losses[:-1].T.contiguous()
        ctx.mark_non_differentiable(specialists, uniform, confidence, correct)
        return fused, specialists, uniform, confidence, correct

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Hands out what the forward computed."""
        torch._assert_async((upstream == 1).all(), "the mixture loss's gradients are those of the sum of its losses")
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradients of a mixture loss can be taken once"
        return (None, None, *gradients)


class _Gradients:
    """The gradients that are wanted, as they grow from chunk to chunk."""

    def __init__(
        self,
        rows: SharedRows,
        weights: torch.Tensor,
        hidden: Sequence[torch.Tensor],
        heads: Sequence[torch.Tensor],
        wants: Sequence[bool],
    ) -> None:
        """Makes room.

        Args:
            rows: this rank's rows of shared ids.
            weights: [T, K].
            hidden: per specialist, [T, h_k].
            heads: per specialist, this rank's rows.
            wants: as autograd's `needs_input_grad`: of plan, targets, weights, hidden states, heads.
        """
        count = len(hidden)
        self._rows, self._weights, self._hidden, self._heads = rows, weights, hidden, heads
        of_hidden, of_heads = wants[3 : 3 + count], wants[3 + count :]
        self.wanted = any(wants)
        self._of_weights = torch.empty_like(weights) if wants[2] else None
        self._of_hidden = [torch.empty_like(h) if want else None for h, want in zip(hidden, of_hidden, strict=True)]
        self._of_heads = [HeadGradient(head) if want else None for head, want in zip(heads, of_heads, strict=True)]

    def add(self, part: slice, gradient: torch.Tensor, chunk: VocabularyChunk) -> None:
        """Takes a chunk's dz, [C, R] float32."""
        if self._of_weights is not None:
            self._of_weights[part] = chunk.weight_gradient(gradient)
        if not (any(h is not None for h in self._of_hidden) or any(head is not None for head in self._of_heads)):
            return  # warm-up: nothing to round for
        rounded = gradient.to(self._heads[0].dtype)
        for k, (of_hidden, of_head) in enumerate(zip(self._of_hidden, self._of_heads, strict=True)):
            weight = self._weights[part, k]
            if of_hidden is not None:
                of_hidden[part] = hidden_gradient(rounded, self._heads[k][: self._rows.count], weight)
            if of_head is not None:
                states = self._hidden[k][part]
                weighted = (states * weight[:, None]).to(states.dtype)
                add_head_gradient(of_head.total[: self._rows.count], rounded, weighted)

    def finish(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients of weights, hidden states and heads."""
        heads = [of_head.finish() if of_head is not None else None for of_head in self._of_heads]
        return (self._of_weights, *self._of_hidden, *heads)
