"""Confidence intervals by the bootstrap: samples are drawn anew, with replacement, within each domain.

Samples and not tokens: the tokens of a sample are not independent observations. All quantities of a resample come from
the same samples, so the interval of a difference is a paired one. Which quantities get an interval is
`report.comparison`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval.

    Attributes:
        value: from all samples.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        """The two ends."""
        return [self.low, self.high]


def resample(tables: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums over samples drawn with replacement, as many as each domain has.

    Args:
        tables: by domain, [samples, columns].
        seed: of the draws.
        resamples: number of draws R.

    Returns:
        [R, domains, columns].
    """
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, len(tables), tables[0].shape[1]))
    for draw in range(resamples):
        for domain, table in enumerate(tables):
            chosen = random.integers(0, len(table), len(table))
            sums[draw, domain] = np.bincount(chosen, minlength=len(table)) @ table
    return sums


def estimate(value: float, draws: np.ndarray) -> Estimate:
    """The percentile interval of a value.

    Args:
        value: from all samples.
        draws: [R], the same from each resample; those that are not numbers do not count.
    """
    tail = 50 * (1 - LEVEL)
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (value, value)
    return Estimate(float(value), float(low), float(high))
