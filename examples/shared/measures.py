"""A model's cross-entropies with their intervals and its right answers, and how they come from a run's files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.quickstart.samples import DOMAINS

COLUMNS = (*DOMAINS, "mean")
RESAMPLES = 2000
# What 95 % of a normal distribution is within, in standard deviations.
NORMAL_95 = 1.959964
Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """One model of one seed on test.

    Attributes:
        losses: cross-entropy in nats per response token by domain, and `mean` over the domains.
        intervals: of each, 95 % over samples.
        right: for each kind of problem whether each answer was right; None where none were asked.
        response_tokens: what was trained on after the specialists; for a model from scratch, all; None where nothing.
        note: what the reader must know.
    """

    losses: Mapping[str, float]
    intervals: Mapping[str, Interval]
    right: Mapping[str, Sequence[bool]] | None = None
    response_tokens: int | None = None
    note: str = ""


@dataclass
class Row:
    """One model over the seeds.

    Attributes:
        title: of the table's row.
        seeds: what was measured, by seed.
        contender: whether it may be the best of a column; an oracle may not.
    """

    title: str
    seeds: dict[int, Measure] = field(default_factory=dict)
    contender: bool = True


def trained_tokens(metrics: Path, stage: str) -> int:
    """Response tokens that a fused run trained on up to the end of a stage, steps that change nothing left out."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    stages = ("warmup",) if stage == "warmup" else ("warmup", "joint")
    train = [line for line in lines if line["split"] == "train" and line["stage"] in stages]
    return sum(line["response_tokens"] for line in train if line["stage"] == "joint" or _trains(train))


def _trains(lines: Sequence[Mapping[str, Any]]) -> bool:
    return any(line["lr"] > 0 for line in lines if line["stage"] == "warmup")


def mean_losses(part: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Per domain the mean over all response tokens, and the mean over the domains."""
    losses = {domain: sum(part[domain]["sums"]) / sum(part[domain]["tokens"]) for domain in DOMAINS}
    return losses | {"mean": sum(losses.values()) / len(losses)}


def intervals(part: Mapping[str, Mapping[str, Sequence[float]]], seed: int) -> dict[str, Interval]:
    """95 % percentile intervals; whole samples are drawn within each domain, as `megafuser report` does."""
    random = np.random.default_rng(seed)
    draws = {}
    for domain in DOMAINS:
        sums, tokens = (np.asarray(part[domain][key], dtype=float) for key in ("sums", "tokens"))
        chosen = random.integers(len(sums), size=(RESAMPLES, len(sums)))
        draws[domain] = sums[chosen].sum(1) / tokens[chosen].sum(1)
    draws["mean"] = np.mean([draws[domain] for domain in DOMAINS], axis=0)
    return {name: percentiles(draws[name]) for name in COLUMNS}


def right_interval(right: Sequence[bool]) -> Interval:
    """95 % interval of the share of right answers, over problems (Wilson, 1927).

    Unlike the bootstrap's, it has a width where no answer or every answer was right.
    """
    count, share = len(right), sum(right) / len(right)
    middle = share + NORMAL_95**2 / (2 * count)
    reach = NORMAL_95 * math.sqrt(share * (1 - share) / count + (NORMAL_95 / (2 * count)) ** 2)
    scale = 1 + NORMAL_95**2 / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def percentiles(values: np.ndarray) -> Interval:
    """The 2.5th and the 97.5th."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
