"""The end of the last stage: what gate and mixture loss keep, and their chunk of logits."""

from collections.abc import Mapping

from megafuser.planning.activations import Row, Setting
from megafuser.planning.parameters import padded_rows
from megafuser.specialist.card import ArchitectureCard

_MIB = 1 << 20
_FLOAT32 = 4


def loss_saved(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting, gate_hidden_size: int) -> float:
    """Bytes that one micro-batch leaves between the loss's forward and its backward."""
    tokens, hidden = row.response_tokens, sum(card.hidden_size for card in cards.values())
    states = setting.element * tokens * hidden
    gate = _FLOAT32 * tokens * (hidden + len(cards) * gate_hidden_size)
    gradients = _FLOAT32 * tokens * hidden
    return states + gate + gradients


def loss_chunk(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting) -> float:
    """Bytes of the logits of a chunk of tokens, at most `memory.loss_chunk_mib`."""
    rows = padded_rows(cards, setting.parallel.tensor) / setting.parallel.tensor
    whole = _FLOAT32 * row.response_tokens * rows * (len(cards) + 1)
    return min(setting.memory.loss_chunk_mib * _MIB, whole)
