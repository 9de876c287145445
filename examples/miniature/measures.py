"""Reads a run's files into rows: for each model and seed its cross-entropies with intervals, and its right answers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.miniature.problems import read_completions, read_problems, right_by_kind
from examples.miniature.train import best_specialist
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


class Seed:
    """The files of one seed."""

    def __init__(self, out: Path, number: int):
        """`out` is the run's output directory."""
        self.out, self.number = out, number
        self.path = out / f"seed{number}"
        self._problems = read_problems(out)

    def single(self, name: str, template: str | None = None) -> Measure:
        """A single model, under the given template or the one that is best on dev."""
        evaluation = read_json(self.path / "evaluations" / f"{name}.json")
        note = ""
        if template is None:
            template = min(evaluation, key=lambda own: mean_losses(evaluation[own]["dev"])["mean"])
            note = f"{template} template" if len(evaluation) > 1 else ""
        own = evaluation[template]
        right = right_by_kind(own["answers"], self._problems)
        facts = self.path / "models" / name / "training.json"
        tokens = read_json(facts)["response_tokens"] if facts.exists() else None
        return Measure(mean_losses(own["test"]), intervals(own["test"], self.number), right, tokens, note)

    def specialist(self, name: str) -> Measure:
        """A specialist alone, in its own template."""
        return self.single(f"specialist-{name}", name)

    def fine_tuned(self) -> Measure:
        """The specialist that is best on dev before any fine-tuning, fine-tuned on all domains."""
        name = best_specialist(self.path / "evaluations")
        every = self.path / "evaluations" / f"fine-tune-{name}.json"
        own = self.single(f"fine-tune-{name}" if every.exists() else "fine-tune-best", name)
        return Measure(own.losses, own.intervals, own.right, own.response_tokens, f"{name} specialist")

    def fused(self, variant: str, stage: str, what: str = "fused") -> Measure:
        """A fused model by `megafuser report`; `what` is `fused`, `uniform` or `oracle`."""
        report = self.report(variant, stage)
        lines = {**report["domains"], "mean": report["mean"]}
        losses = {name: lines[name]["cross_entropy"][what] for name in COLUMNS}
        ends = {name: tuple(lines[name]["confidence_interval"]["cross_entropy"][what]) for name in COLUMNS}
        tokens, right = None, None
        if what == "fused":
            tokens = trained_tokens(self.path / "runs" / variant / "metrics.jsonl", stage)
            right = self._answers(f"{variant}-{stage}")
        elif what == "uniform":
            # the gate of the variant that never warmed up is untrained: equal weights
            right = self._answers("joint-only-warmup")
        return Measure(losses, ends, right, tokens)

    def mixture(self, mix: str) -> Measure:
        """The independent dense implementation."""
        test = read_json(self.path / "evaluations" / f"mixture-{mix}.json")["test"]
        return Measure(mean_losses(test), intervals(test, self.number))

    def report(self, variant: str, stage: str) -> dict[str, Any]:
        """A report on test."""
        return read_json(self.path / "reports" / f"{variant}-{stage}" / "report.json")

    def _answers(self, name: str) -> dict[str, list[bool]] | None:
        path = self.path / "answers" / f"{name}.jsonl"
        return right_by_kind(read_completions(path), self._problems) if path.exists() else None


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


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text("utf-8"))
