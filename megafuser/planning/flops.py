"""Floating-point operations of a step's useful work: real tokens only, heads at response positions only.

A multiply-add counts as two operations; a backward costs two forwards (Kaplan et al., 2020). Attention scores count
2 · 2 · length² / 2 · heads · d for the causal half. Embedding look-ups, norms, biases and the gate are left out. The
time of a step is `planning.compute`; for steps that were taken, `training.flops` counts.
"""

import numpy as np

from megafuser.specialist.card import ArchitectureCard


def forward_flops(card: ArchitectureCard, lengths: np.ndarray, response_tokens: int) -> float:
    """Operations of one specialist's forward.

    Args:
        card: its architecture.
        lengths: [n] tokens of each sample, in this specialist's view.
        response_tokens: positions that meet the output head.
    """
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    return layer_flops(card, tokens) + attention_flops(card, squares) + head_flops(card, response_tokens)


def layer_flops(card: ArchitectureCard, tokens: float) -> float:
    """Operations of the forward products of all layers with that many tokens, attention scores left out."""
    return 2.0 * card.num_layers * card.layer_matrix_count() * tokens


def attention_flops(card: ArchitectureCard, squares: float) -> float:
    """Operations of the attention scores of all layers, and of their product with the values.

    Args:
        card: the architecture.
        squares: sum over the samples of length².
    """
    return 2.0 * card.num_layers * card.query_width * squares


def head_flops(card: ArchitectureCard, response_tokens: float) -> float:
    """Operations of the output head with that many tokens."""
    return 2.0 * card.vocab_size * card.hidden_size * response_tokens
