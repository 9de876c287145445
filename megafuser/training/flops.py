"""Floating-point operations of a step's useful work: real tokens only, heads at response positions only.

A multiply-add counts as two operations; a backward costs two forwards (Kaplan et al., 2020). Attention scores count
2 · 2 · length² / 2 · heads · d for the causal half. Embedding look-ups, norms, biases and the gate are left out.
"""

from collections.abc import Sequence

import numpy as np

from megafuser.fusion.batch import PackedRow
from megafuser.specialist.card import ArchitectureCard


def forward_flops(card: ArchitectureCard, lengths: np.ndarray, response_tokens: int) -> float:
    """Operations of one specialist's forward.

    Args:
        card: its architecture.
        lengths: [n] tokens of each sample, in this specialist's view.
        response_tokens: positions that meet the output head.
    """
    head = card.vocab_size * card.hidden_size
    layers = card.num_layers * card.layer_matrix_count()
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    attention = 2.0 * card.num_layers * card.num_attention_heads * card.kv_channels * squares
    return 2.0 * layers * tokens + attention + 2.0 * head * response_tokens


def step_flops(cards: Sequence[ArchitectureCard], rows: Sequence[PackedRow], *, backward: bool) -> float:
    """Operations of one rank's rows through all specialists.

    Args:
        cards: of the specialists, in order.
        rows: the rank's micro-batches.
        backward: whether the specialists' gradients are computed (joint) or not (warm-up, validation).
    """
    total = 0.0
    for row in rows:
        for card, view in zip(cards, row.specialists, strict=True):
            lengths = np.diff(view.cu_seqlens[: view.segments + 1].cpu().numpy())
            total += forward_flops(card, lengths, row.targets.numel())
    return total * (3.0 if backward else 1.0)
