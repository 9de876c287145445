"""The end of the last stage: what gate and mixture loss keep, and their chunk of logits.

The loss itself is `fusion.mixture_loss`; what the layers keep is `planning.activations`.
"""

from collections.abc import Collection, Mapping

from megafuser.planning.activations import Row, Setting
from megafuser.planning.parameters import padded_rows
from megafuser.specialist.card import ArchitectureCard

_MIB = 1 << 20
_FLOAT32 = 4


def gate_saved(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting, units: int) -> float:
    """Bytes that one micro-batch leaves for the gate's backward, which is in float32 whatever the dtype.

    The hidden states at the response positions, the inner values, the weights, and a float32 copy of fc1 for each
    specialist.
    """
    hidden, count = [card.hidden_size for card in cards.values()], len(cards)
    inner = row.response_tokens * (sum(hidden) + count * units + count)
    width = max(hidden)
    copies = 0 if setting.precision.dtype == "fp32" else count * units * width
    projected = 0.0
    if len(set(hidden)) > 1:
        projected = row.response_tokens * count * width
        copies += 0 if setting.precision.dtype == "fp32" else sum(hidden) * width
    return _FLOAT32 * (inner + projected + copies)


def loss_saved(
    cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting, units: int, *, trained: Collection[str]
) -> float:
    """Bytes that one micro-batch holds at the end of the loss's forward.

    The gate's and the hidden states; of specialists that train their gradients, too, which come out of the same pass,
    and a tensor of each head's size, which stands for its gradient in the backward.

    Args:
        cards: the specialists.
        row: the micro-batch.
        setting: layout and number formats.
        units: of the gate.
        trained: names of the specialists that train; none in warm-up.
    """
    rows = padded_rows(cards, setting.parallel.tensor) / setting.parallel.tensor
    elements = 0.0
    for name, card in cards.items():
        elements += card.hidden_size * (row.response_tokens + (row.response_tokens + rows if name in trained else 0))
    return gate_saved(cards, row, setting, units) + setting.element * elements


def loss_chunk(cards: Mapping[str, ArchitectureCard], row: Row, setting: Setting) -> float:
    """Bytes of the logits of a chunk of tokens, at most `memory.loss_chunk_mib`.

    A token takes its K logits, their mixture and a scratch row in float32, and two copies in a shorter dtype.
    """
    rows = padded_rows(cards, setting.parallel.tensor) / setting.parallel.tensor
    copies = 0 if setting.precision.dtype == "fp32" else 2 * setting.element
    token = rows * (_FLOAT32 * (len(cards) + 2) + copies)
    return min(setting.memory.loss_chunk_mib * _MIB, row.response_tokens * token)


def head_product(cards: Mapping[str, ArchitectureCard], setting: Setting, *, trained: Collection[str]) -> float:
    """Bytes of a chunk's part of one head's gradient, in float32, before it is added to the rest.

    On GPUs, where products of a shorter dtype come in float32 as a tensor of their own; one specialist after another.

    Args:
        cards: the specialists.
        setting: layout and number formats.
        trained: names of the specialists that train; none in warm-up.
    """
    if setting.precision.dtype == "fp32":
        return 0.0
    rows = padded_rows(cards, setting.parallel.tensor) / setting.parallel.tensor
    return _FLOAT32 * rows * max((card.hidden_size for name, card in cards.items() if name in trained), default=0)
