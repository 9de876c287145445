"""Loss spikes: a training loss far above what the last steps had.

Far is robust: more than `DEVIATIONS` standard deviations above the median of the window, the deviation estimated from
the median absolute deviation (× 1.4826, as for a normal distribution), and at least `SHARE` of the median, so that
losses that hardly vary are not flagged for nothing. A spike joins the window like any other loss: up to half of the
window may be spikes before the median follows, and a loss that stays high is the new normal then.

A loss that is not finite is `training.nonfinite_steps`.
"""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW = 50
LEAST = 10
"""Steps before the first verdict."""
DEVIATIONS = 6.0
SHARE = 0.05

_NORMAL = 1.4826


class SpikeDetector:
    """Watches the losses of a stage."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """Goes on after the `losses` of earlier steps, so that a resumed run flags what an uninterrupted one does."""
        self._window: deque[float] = deque((loss for loss in losses if math.isfinite(loss)), maxlen=WINDOW)

    @property
    def median(self) -> float:
        """Of the window's losses."""
        return median(self._window)

    @property
    def limit(self) -> float:
        """The highest loss that is not a spike; infinite while there are too few losses."""
        if len(self._window) < LEAST:
            return math.inf
        middle = self.median
        deviation = _NORMAL * median(abs(loss - middle) for loss in self._window)
        return middle + max(DEVIATIONS * deviation, SHARE * abs(middle))

    def add(self, loss: float) -> str | None:
        """Takes the next step's loss; what is not finite is not a spike but a fault, and leaves the window as it is.

        Returns:
            What to say of a spike; None for any other loss.
        """
        if not math.isfinite(loss):
            return None
        limit, said = self.limit, None
        if loss > limit:
            said = f"loss {loss:.3f} is above {limit:.3f}, the last {len(self._window)} steps' median {self.median:.3f}"
        self._window.append(loss)
        return said
