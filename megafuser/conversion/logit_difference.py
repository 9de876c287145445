"""How far the logits of two models may be apart: one rule for every proof of a conversion.

The models are run by `conversion.logits` and `conversion.fused.logits`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megafuser.errors import UserError

# Largest difference of fp32 logits between two models that passes as rounding, in parts of the largest logit; of
# logits that are all below 1, the difference itself.
LOGITS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LogitDifference:
    """How far the logits of two models are apart.

    Attributes:
        largest: the largest absolute difference of any logit; NaN if one is not a number.
        tolerance: what passes as rounding for logits of this size: sums in another order differ in proportion to it.
    """

    largest: float
    tolerance: float

    @property
    def is_rounding(self) -> bool:
        """Whether the difference passes; NaN and infinity never do."""
        return self.largest <= self.tolerance

    def proof(self, *, of: str, whose: str, done: str) -> str:
        """What is told of a proof that has succeeded.

        Args:
            of: both models, as the refusal names them.
            whose: the model beside Megatron-Core's.
            done: what was done to the model, `converted` for one.

        Returns:
            A line that says how much the logits differ at most.

        Raises:
            UserError: by more than rounding explains.
        """
        if not self.is_rounding:
            raise UserError(
                f"fp32 logits of {of} differ by {self.largest:.3g}, more than {self.tolerance:.3g}; the model is not "
                f"{done} correctly, so nothing was kept; report it"
            )
        return f"logits: the largest difference between {whose} and Megatron-Core's in fp32 is {self.largest:.3g}"


def logit_difference(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> LogitDifference:
    """Compares logits of the same prompts.

    Args:
        pairs: for each prompt the reference's logits and the other model's, [S, V] each.
    """
    found = [((expected - other).abs().max(), expected.abs().max()) for expected, other in pairs]
    difference, size = (float(torch.stack(column).max()) for column in zip(*found, strict=True))
    return LogitDifference(difference, LOGITS_TOLERANCE * (max(1.0, size) if math.isfinite(size) else 1.0))
