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
        samples: that were looked at, of all domains; None: not known, of checkpoints of earlier releases.
    """

    step: int | None = None
    loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    since: int = 0
    samples: int | None = None

    @classmethod
    def resume(cls, manifest: Manifest) -> "ValidationRecord":
        """What a checkpoint recorded; nothing, where its stage had not been validated yet."""
        return cls(**manifest.run.get("validation", {}))

    def after(self, step: int, loss: float, samples: int | None = None) -> "ValidationRecord":
        """The record with one more validation. A loss that is not a number is not an improvement.

        The losses of other samples cannot be compared: with another number of them the record begins anew.
        """
        if self.compares_with(samples):
            before = dataclasses.replace(self, samples=samples)
        else:
            before = ValidationRecord(samples=samples)
        if not math.isfinite(loss):
            return dataclasses.replace(before, step=step, loss=None, since=before.since + 1)
        if before.best_loss is None or loss < before.best_loss:
            return ValidationRecord(step, loss, best_step=step, best_loss=loss, samples=samples)
        return dataclasses.replace(before, step=step, loss=loss, since=before.since + 1)

    def compares_with(self, samples: int | None) -> bool:
        """Whether the losses of so many samples can be compared with these, as far as is known."""
        return self.samples is None or samples is None or self.samples == samples

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
