"""The section `gate`.

The gate itself is `fusion.gate`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from megafuser.config.values import InvalidValue, Strict, at_least


@dataclass(frozen=True)
class GateConfig(Strict):
    """The gate: a two-layer MLP.

    Attributes:
        hidden_size: its units (paper: 512).
        temperature: what its scores are divided by before the softmax; a part of the model, in training and after.
        init: of its last layer: `zero`, so that training starts from exactly equal weights, or `random`.
    """

    hidden_size: int = 512
    temperature: float = 1.0
    init: Literal["zero", "random"] = "zero"

    def __post_init__(self) -> None:
        """Refuses a gate without units, and a temperature that scores cannot be divided by."""
        at_least("hidden_size", self.hidden_size, 1)
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise InvalidValue("temperature", f"must be above 0, not {self.temperature}")
