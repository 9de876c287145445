"""Reads a run's files: for each model and seed its cross-entropies with intervals, and its right answers."""

from pathlib import Path
from typing import Any

from examples.miniature.problems import read_completions, read_problems, right_by_kind
from examples.miniature.train import best_specialist
from examples.shared.files import read_json
from examples.shared.measures import COLUMNS, Measure, intervals, mean_losses, trained_tokens


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
        report: dict[str, Any] = read_json(self.path / "reports" / f"{variant}-{stage}" / "report.json")
        return report

    def _answers(self, name: str) -> dict[str, list[bool]] | None:
        path = self.path / "answers" / f"{name}.jsonl"
        return right_by_kind(read_completions(path), self._problems) if path.exists() else None
