"""The fused model against its specialists, with confidence intervals: by domain, over all tokens, over the domains.

Glossary: D domains, K specialists, R resamples, C columns of `scores.token_values`.

Drawing the samples anew is `report.bootstrap`; what to make of the differences is `report.verdict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megafuser.report import scores
from megafuser.report.bootstrap import Estimate, estimate, resample

# Counts of tokens are exact, so a smaller gap than this is none.
_NO_GAP = 1e-9


@dataclass(frozen=True)
class Comparison:
    """What was measured on one domain, or over several.

    Attributes:
        best: the specialist with the lowest cross-entropy here.
        fused: cross-entropy of the fused model, in nats per token.
        uniform: of the mixture with equal weights.
        oracle: of the best specialist at each token.
        specialists: of each specialist alone.
        minus_best: fused less the best specialist's; negative where fusing helps.
        minus_single: fused less that of the specialist that is the best single one over the domains.
        minus_uniform: fused less the uniform mixture's.
        gap_closed: how much of the way from `best` to the oracle the fused model goes; None where there is no way.
        gap_closed_single: likewise from the best single specialist.
    """

    best: str
    fused: Estimate
    uniform: Estimate
    oracle: Estimate
    specialists: dict[str, Estimate]
    minus_best: Estimate
    minus_single: Estimate
    minus_uniform: Estimate
    gap_closed: Estimate | None
    gap_closed_single: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The fields that `report.json` has beside the means."""
        single = {
            "gap_closed": self.gap_closed,
            "gap_closed_single": self.gap_closed_single,
            "minus_best": self.minus_best,
            "minus_single": self.minus_single,
            "minus_uniform": self.minus_uniform,
        }
        losses = {"fused": self.fused, "uniform": self.uniform, "oracle": self.oracle}
        return {
            "best_specialist": self.best,
            **{name: own.value if own else None for name, own in single.items()},
            "confidence_interval": {
                "cross_entropy": {name: own.interval for name, own in losses.items()}
                | {"specialists": {name: own.interval for name, own in self.specialists.items()}},
                **{name: own.interval if own else None for name, own in single.items()},
            },
        }


@dataclass(frozen=True)
class Comparisons:
    """All of a report.

    Attributes:
        single: the specialist with the lowest mean of the domains' cross-entropies.
        domains: by name.
        overall: over the tokens of all domains.
        mean: of the domains' means: each counts the same, however many tokens it has.
        seed: of the resamples.
        resamples: their number.
    """

    single: str
    domains: dict[str, Comparison]
    overall: Comparison
    mean: Comparison
    seed: int
    resamples: int


def compare(tables: Mapping[str, np.ndarray], names: Sequence[str], seed: int) -> Comparisons:
    """Compares by per-sample sums.

    Args:
        tables: by domain, [samples, C].
        names: the K specialists'.
        seed: of the resamples.
    """
    sums = np.stack([table.sum(axis=0) for table in tables.values()])
    draws = resample(list(tables.values()), seed)
    means, drawn = _means(sums), _means(draws)
    single = int(np.argmin(_specialists(means.mean(axis=0), len(names))))

    def own(values: np.ndarray, resampled: np.ndarray) -> Comparison:
        return _comparison(values, resampled, names, single)

    return Comparisons(
        single=names[single],
        domains={name: own(means[index], drawn[:, index]) for index, name in enumerate(tables)},
        overall=own(_means(sums.sum(axis=0)), _means(draws.sum(axis=1))),
        mean=own(means.mean(axis=0), drawn.mean(axis=1)),
        seed=seed,
        resamples=len(draws),
    )


def _means(sums: np.ndarray) -> np.ndarray:
    means: np.ndarray = sums / sums[..., scores.COUNT, None]
    return means


def _specialists(means: np.ndarray, count: int) -> np.ndarray:
    return means[..., scores.FIXED : scores.FIXED + count]


def _comparison(means: np.ndarray, draws: np.ndarray, names: Sequence[str], single: int) -> Comparison:
    """From means [C] and those of the resamples, [R, C]. Which specialist is the best is not chosen anew in each."""
    losses, drawn = _specialists(means, len(names)), _specialists(draws, len(names))
    best = int(np.argmin(losses))

    def column(index: int) -> Estimate:
        return estimate(means[index], draws[:, index])

    def minus(value: float, resampled: np.ndarray) -> Estimate:
        return estimate(means[scores.FUSED] - value, draws[:, scores.FUSED] - resampled)

    def closed(specialist: int) -> Estimate | None:
        gap = losses[specialist] - means[scores.ORACLE]
        if gap < _NO_GAP:
            return None
        gaps = drawn[:, specialist] - draws[:, scores.ORACLE]
        gains = np.where(gaps < _NO_GAP, np.nan, drawn[:, specialist] - draws[:, scores.FUSED])
        return estimate((losses[specialist] - means[scores.FUSED]) / gap, gains / np.maximum(gaps, _NO_GAP))

    return Comparison(
        best=names[best],
        fused=column(scores.FUSED),
        uniform=column(scores.UNIFORM),
        oracle=column(scores.ORACLE),
        specialists={name: column(scores.FIXED + index) for index, name in enumerate(names)},
        minus_best=minus(losses[best], drawn[:, best]),
        minus_single=minus(losses[single], drawn[:, single]),
        minus_uniform=minus(means[scores.UNIFORM], draws[:, scores.UNIFORM]),
        gap_closed=closed(best),
        gap_closed_single=closed(single),
    )
