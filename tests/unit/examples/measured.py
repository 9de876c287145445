"""Measures of models with given losses."""

from typing import Any

from examples.shared.measures import Measure


def measure(text: float, code: float, math: float, **others: Any) -> Measure:
    """A model whose intervals reach 0.1 to either side."""
    losses = {"text": text, "code": code, "math": math}
    losses["mean"] = sum(losses.values()) / 3
    ends = {name: (value - 0.1, value + 0.1) for name, value in losses.items()}
    return Measure(losses, ends, **others)
