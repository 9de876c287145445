"""Whether the fused model's probabilities can be believed: expected calibration error of its most probable token.

The tokens are put into bins by the probability of the most probable token; in a calibrated model, that token is the
right one as often as its probability says (Guo et al., "On Calibration of Modern Neural Networks", 2017, Eq. 3).
Drawing it is `report.plots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megafuser.fusion.mixture_loss import MixtureLoss

BINS = 15
COLUMNS = 3 * BINS


def token_columns(loss: MixtureLoss) -> torch.Tensor:
    """What calibration adds up, per response token.

    Args:
        loss: with its parts.

    Returns:
        [T, 3 · 15]: one, the largest probability, and whether it is the target's; each in the column of its bin. Bin i
        holds the probabilities above i / 15 up to (i + 1) / 15.
    """
    assert loss.confidence is not None and loss.correct is not None, "calibration needs the parts of the loss"
    places = (torch.ceil(loss.confidence * BINS).long() - 1).clamp(0, BINS - 1)
    one = torch.nn.functional.one_hot(places, BINS).to(loss.confidence.dtype)
    return torch.cat([one, one * loss.confidence[:, None], one * loss.correct[:, None]], dim=1)


@dataclass(frozen=True)
class Bin:
    """The tokens of one bin.

    Attributes:
        low: lower end of the probabilities.
        high: upper end.
        tokens: how many.
        confidence: mean probability of the most probable token; None where there is no token.
        accuracy: share of tokens whose most probable token is the right one; likewise.
    """

    low: float
    high: float
    tokens: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Of one domain, or of all.

    Attributes:
        error: expected calibration error, from 0 to 1.
        accuracy: share of tokens whose most probable token is the right one.
        confidence: mean probability of the most probable token.
        bins: from the least to the most probable.
    """

    error: float
    accuracy: float
    confidence: float
    bins: tuple[Bin, ...]

    @classmethod
    def from_sums(cls, sums: Sequence[float]) -> "Calibration":
        """From the columns of `token_columns`, added up over at least one token."""
        tokens, confidence, correct = sums[:BINS], sums[BINS : 2 * BINS], sums[2 * BINS :]
        bins = tuple(
            Bin(
                low=index / BINS,
                high=(index + 1) / BINS,
                tokens=round(tokens[index]),
                confidence=confidence[index] / tokens[index] if tokens[index] else None,
                accuracy=correct[index] / tokens[index] if tokens[index] else None,
            )
            for index in range(BINS)
        )
        total = sum(tokens)
        return cls(
            error=sum(abs(a - b) for a, b in zip(correct, confidence, strict=True)) / total,
            accuracy=sum(correct) / total,
            confidence=sum(confidence) / total,
            bins=bins,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields of `report.json`."""
        return {
            "expected_calibration_error": self.error,
            "accuracy": self.accuracy,
            "confidence": self.confidence,
            "bins": [vars(own) for own in self.bins],
        }
