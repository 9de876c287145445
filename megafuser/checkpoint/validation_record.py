"""What validation has found so far: the best loss, and how long ago that was; early stopping and `best` follow from it.

It is in every checkpoint's manifest, so that a run that goes on decides as one that was never interrupted. The losses
come from `training.validation`; the file `best` is written by `training.kept_checkpoints`.
"""

import dataclasses
import math
from dataclasses import dataclass

from megafuser.checkpoint.manifest import Manifest


@dataclass(frozen=True)
class ValidationRecord:
    """A stage's validations up to some step.

    Attributes:
        step: of the last one; None before the first.
        loss: its mean loss over all response tokens; None where it was not finite.
        best_step: of the one with the lowest loss, the first of equals.
        best_loss: that loss.
        since: number of validations after the best.
    """

    step: int | None = None
    loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    since: int = 0

    @classmethod
    def resume(cls, manifest: Manifest) -> "ValidationRecord":
        """What a checkpoint recorded; nothing, where its stage had not been validated yet."""
        return cls(**manifest.run.get("validation", {}))

    def after(self, step: int, loss: float) -> "ValidationRecord":
        """The record with one more validation. A loss that is not a number is not an improvement."""
        if not math.isfinite(loss):
            return dataclasses.replace(self, step=step, loss=None, since=self.since + 1)
        if self.best_loss is None or loss < self.best_loss:
            return ValidationRecord(step, loss, best_step=step, best_loss=loss)
        return dataclasses.replace(self, step=step, loss=loss, since=self.since + 1)

    def has_run_out(self, patience: int | None) -> bool:
        """Whether the last `patience` validations have all been no better than the best before them."""
        return patience is not None and self.since >= patience

    def __str__(self) -> str:
        """In words, for the user who asks why a stage is over."""
        if self.best_loss is None:
            return "not validated yet" if self.step is None else "no validation loss was finite"
        best = f"the best validation loss is {self.best_loss:.4f}, of step {self.best_step}"
        if self.since == 0:
            return best
        later = f"the {self.since} validations since then were" if self.since > 1 else "the one since then was"
        return f"{best}, and {later} no better"
