"""Tensors that live while one layer computes; estimates from the layers' code, not measured.

What a layer keeps for its backward is `planning.activations`.
"""

from collections.abc import Mapping

from megafuser.planning.activations import Row, Setting
from megafuser.specialist.card import ArchitectureCard


def stream_bytes(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting) -> float:
    """The K hidden streams of one micro-batch side by side, as they travel between stages."""
    return setting.element * setting.kept_width(row.width) * sum(card.hidden_size for card in cards.values())


def layer_working_set(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting) -> float:
    """The most that a layer has beside what is kept: its MLP's inner tensors, or their gradients, and the whole input.

    The torch backend has five tensors of the MLP's width at once, Transformer Engine's fused kernels three.
    """
    tensor, wide, e = setting.parallel.tensor, row.width, setting.element
    inner = 3 if setting.backend == "transformer_engine" else 5
    return max(e * wide * (inner * card.ffn_hidden_size / tensor + 2 * card.hidden_size) for card in cards.values())
