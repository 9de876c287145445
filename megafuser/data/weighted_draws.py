"""Draws spread over parts by weight: which part each of an endless row of slots belongs to.

Which sample of a part comes next is `data.sampler`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from megafuser.errors import UserError

# The schedule of a block of slots is made slot by slot: about a tenth of a second for this many.
_MOST_SLOTS = 1 << 16


class Mixture:
    """Deals slots 0, 1, 2, … to parts, so that at every slot each part has had its share so far, as near as can be.

    Slots come in blocks whose counts follow from the block's number, and within a block the part that must come first
    comes first; so any slot can be asked for alone. Where the weights repeat within `_MOST_SLOTS` slots, as those with
    up to four decimals do, a part's count is at every slot less than one away from its exact share; otherwise, less
    than two.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float]):
        """Finds the length of a block.

        Args:
            names: of the parts, for messages.
            weights: of the parts, above 0; only their ratios matter. Decimals are taken as they are written.

        Raises:
            UserError: a weight is so small beside the others that its part would hardly ever be drawn.
        """
        exact = [Fraction(str(weight)) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ValueError(f"weights must be positive: {list(weights)}")
        self.shares = [weight / sum(exact) for weight in exact]
        for name, share in zip(names, self.shares, strict=True):
            if share * _MOST_SLOTS < 1:
                raise UserError(
                    f"{name}: its weight is {float(share):.2g} of all weights, less than one sample of {_MOST_SLOTS}; "
                    "leave it out or give it more"
                )
        self.block = min(_MOST_SLOTS, math.lcm(*(share.denominator for share in self.shares)))
        self._cached: tuple[tuple[int, ...], np.ndarray] | None = None

    def before(self, slot: int) -> np.ndarray:
        """Number `[parts]` int64 of the slots of each part among slots 0 … slot - 1."""
        block, offset = divmod(slot, self.block)
        counts = np.array(self._until(block), dtype=np.int64)
        if offset:
            counts += np.bincount(self._schedule(block)[:offset], minlength=len(self.shares))
        return counts

    def _until(self, block: int) -> list[int]:
        """Slots of each part in the blocks before `block`: the largest remainders are rounded up, the others down.

        No count falls from one block to the next, since each part has a slot or more in every block.
        """
        quotas = [share * self.block * block for share in self.shares]
        counts = [math.floor(quota) for quota in quotas]
        up = sorted(range(len(quotas)), key=lambda part: (counts[part] - quotas[part], part))
        for part in up[: self.block * block - sum(counts)]:
            counts[part] += 1
        return counts

    def _schedule(self, block: int) -> np.ndarray:
        """The part `[block]` of each slot of a block; most blocks have the same counts, and so the same schedule."""
        counts = tuple(end - start for start, end in zip(self._until(block), self._until(block + 1), strict=True))
        if self._cached is None or self._cached[0] != counts:
            self._cached = counts, _schedule(counts)
        return self._cached[1]


def _schedule(counts: Sequence[int]) -> np.ndarray:
    """Spreads `counts` of each part over sum(counts) slots.

    A part's item j may come once its share has passed j - 1, and must have come when its share reaches j. Of the items
    that may come, the one that must come first does; then every item comes in time, and the counts are never a whole
    slot away from the shares (the chairman assignment problem: Tijdeman, Discrete Mathematics 32, 1980; earliest due
    dates: Steiner and Yeomans, Management Science 39, 1993).
    """
    total = sum(counts)
    had = [0] * len(counts)
    due = [-(-total // count) for count in counts]
    parts = np.empty(total, dtype=np.int64)
    for slot in range(1, total + 1):
        ready = [part for part, count in enumerate(counts) if had[part] * total < slot * count]
        part = min(ready, key=due.__getitem__)
        had[part] += 1
        due[part] = -(-(had[part] + 1) * total // counts[part])
        parts[slot - 1] = part
    return parts
