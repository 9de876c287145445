"""The section `checkpoint`: when a stage saves, and what is kept.

Saving is `training.checkpoint_saver`.
"""

from dataclasses import dataclass
from typing import Literal

from megafuser.config.values import Strict, at_least


@dataclass(frozen=True)
class CheckpointConfig(Strict):
    """Checkpoints.

    Attributes:
        interval: steps between two of them; the last step has one too.
        keep: how many of the last ones are kept.
        async_: write them beside training, which then stands still for a copy to host memory only.
        reshardable: `always`: every checkpoint loads at any layout; `on_exit`: those between two steps have the
            distributed optimizer's states as its ranks hold them, which takes no gathering, but load at the same
            tensor and pipeline sizes only (see `megafuser reshard`).
        keep_best: keep the one with the lowest validation loss too, however old it is.
    """

    interval: int = 500
    keep: int = 3
    async_: bool = True
    reshardable: Literal["always", "on_exit"] = "always"
    keep_best: bool = False

    def __post_init__(self) -> None:
        """Refuses to keep nothing."""
        at_least("interval", self.interval, 1)
        at_least("keep", self.keep, 1)
