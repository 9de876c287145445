"""Floating-point operations of a step, as `megafuser.planning.flops` counts them, from the rows that it took.

The peak that they are compared with is `planning.gpus`.
"""

from collections.abc import Sequence

import numpy as np

from megafuser.fusion.row import PackedRow
from megafuser.planning.flops import forward_flops
from megafuser.specialist.card import ArchitectureCard


def step_flops(
    cards: Sequence[ArchitectureCard], rows: Sequence[PackedRow], *, backward: bool | Sequence[bool]
) -> float:
    """Operations of one rank's rows through all specialists.

    Args:
        cards: of the specialists, in order.
        rows: the rank's micro-batches.
        backward: whether the specialists' gradients are computed (joint) or not (warm-up, validation), of all or of
            each.
    """
    backwards = [backward] * len(cards) if isinstance(backward, bool) else backward
    total = 0.0
    for row in rows:
        for card, view, trained in zip(cards, row.specialists, backwards, strict=True):
            lengths = np.diff(view.cu_seqlens[: view.segments + 1].cpu().numpy())
            total += forward_flops(card, lengths, row.targets.numel()) * (3.0 if trained else 1.0)
    return total
