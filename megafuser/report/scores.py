"""The numbers of a report: from per-token values, added up over all ranks, to means by domain.

Glossary: K specialists, T response tokens.

Intervals are `report.comparison`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megafuser.fusion.mixture_loss import MixtureLoss

# The columns of `token_values` before the K losses and the K weights.
COUNT, FUSED, UNIFORM, ORACLE, ENTROPY, FIXED = range(6)


def columns(specialists: int) -> int:
    """Number of columns that `token_values` gives for K specialists."""
    return FIXED + 2 * specialists


def token_values(loss: MixtureLoss) -> torch.Tensor:
    """What a report adds up, per response token.

    Args:
        loss: with its diagnostics.

    Returns:
        [T, 5 + 2 K]: one; the losses of the fused model, of the uniform mixture and of the oracle, which is the
        specialist that gives the token the highest probability; the entropy of the gate; each specialist's loss; each
        specialist's weight. Natural logarithms throughout.
    """
    assert loss.specialists is not None and loss.uniform is not None, "a report needs the diagnostics of the loss"
    entropy = torch.special.entr(loss.weights).sum(dim=1)
    oracle = loss.specialists.amin(dim=1)
    single = torch.stack([torch.ones_like(entropy), loss.fused, loss.uniform, oracle, entropy], dim=1)
    return torch.cat([single, loss.specialists, loss.weights], dim=1)


@dataclass(frozen=True)
class Scores:
    """Means over the response tokens of one domain, or of all.

    Attributes:
        samples: number of samples.
        response_tokens: number of response tokens.
        fused: cross-entropy of the fused model, in nats.
        uniform: that of the mixture with equal weights.
        oracle: that of the best specialist at each token.
        specialists: that of each specialist alone.
        gate: mean weight of each specialist.
        gate_entropy: mean entropy of the weights, in nats; at most ln K.
    """

    samples: int
    response_tokens: int
    fused: float
    uniform: float
    oracle: float
    specialists: dict[str, float]
    gate: dict[str, float]
    gate_entropy: float

    @classmethod
    def from_sums(cls, sums: torch.Tensor | np.ndarray, samples: int, names: Sequence[str]) -> "Scores":
        """Means from the columns of `token_values`, [5 + 2 K], added up over at least one token."""
        values = sums.tolist()
        tokens = values[COUNT]
        means = [value / tokens for value in values]
        losses, weights = means[FIXED : FIXED + len(names)], means[FIXED + len(names) :]
        return cls(
            samples=samples,
            response_tokens=round(tokens),
            fused=means[FUSED],
            uniform=means[UNIFORM],
            oracle=means[ORACLE],
            specialists=dict(zip(names, losses, strict=True)),
            gate=dict(zip(names, weights, strict=True)),
            gate_entropy=means[ENTROPY],
        )

    @property
    def best_specialist(self) -> str:
        """The specialist with the lowest cross-entropy."""
        return min(self.specialists, key=self.specialists.__getitem__)

    @property
    def gain(self) -> float:
        """How much lower the fused model's cross-entropy is than the best specialist's, in nats."""
        return self.specialists[self.best_specialist] - self.fused

    def to_dict(self) -> dict[str, Any]:
        """The fields of `report.json`."""
        return {
            "samples": self.samples,
            "response_tokens": self.response_tokens,
            "cross_entropy": {
                "fused": self.fused,
                "uniform": self.uniform,
                "oracle": self.oracle,
                "specialists": self.specialists,
            },
            "gate": self.gate,
            "gate_entropy": self.gate_entropy,
        }
