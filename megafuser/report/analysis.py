"""All that a report says beside its means: intervals, calibration, the gate's faults, tokens, the verdict.

The means are `report.scores`; measuring is `report.measure`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megafuser.report.bootstrap import LEVEL
from megafuser.report.calibration import Calibration
from megafuser.report.comparison import Comparisons
from megafuser.report.extreme_tokens import ExtremeTokens
from megafuser.report.gate_checks import GateWarning, check_gate, paper_gate
from megafuser.report.scores import Scores
from megafuser.report.verdict import Decision, decide


@dataclass(frozen=True)
class Analysis:
    """What follows from the measurements.

    Attributes:
        comparisons: the fused model against its specialists, with intervals.
        calibration: by domain.
        overall_calibration: over the tokens of all domains.
        warnings: of a gate that does not do what it is for.
        paper_gate: the paper's mean weights by domain, where names are the paper's.
        tokens: those where fusion helps and hurts most.
        decision: the verdict.
    """

    comparisons: Comparisons
    calibration: dict[str, Calibration]
    overall_calibration: Calibration
    warnings: list[GateWarning]
    paper_gate: dict[str, dict[str, float]] | None
    tokens: ExtremeTokens
    decision: Decision

    def of_domain(self, name: str) -> dict[str, Any]:
        """The fields of a domain in `report.json` that come from here."""
        return {**self.comparisons.domains[name].to_dict(), "calibration": self.calibration[name].to_dict()}

    def of_all(self) -> dict[str, Any]:
        """Those of `overall`."""
        return {**self.comparisons.overall.to_dict(), "calibration": self.overall_calibration.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """The fields beside domains and `overall`."""
        own, mean = self.comparisons, self.comparisons.mean
        return {
            "mean": {
                "cross_entropy": {
                    "fused": mean.fused.value,
                    "uniform": mean.uniform.value,
                    "oracle": mean.oracle.value,
                    "specialists": {name: one.value for name, one in mean.specialists.items()},
                },
                **mean.to_dict(),
            },
            "single_specialist": own.single,
            "bootstrap": {"level": LEVEL, "resamples": own.resamples, "seed": own.seed},
            "warnings": [vars(warning) for warning in self.warnings],
            "paper_gate": self.paper_gate,
            "tokens": {
                "helped": [token.to_dict() for token in self.tokens.helped],
                "hurt": [token.to_dict() for token in self.tokens.hurt],
            },
            "verdict": self.decision.to_dict(),
        }


def analyse(
    scores: Mapping[str, Scores],
    comparisons: Comparisons,
    calibration: dict[str, Calibration],
    overall_calibration: Calibration,
    tokens: ExtremeTokens,
) -> Analysis:
    """Draws the conclusions."""
    specialists = list(next(iter(scores.values())).specialists)
    warnings = check_gate(scores)
    return Analysis(
        comparisons=comparisons,
        calibration=calibration,
        overall_calibration=overall_calibration,
        warnings=warnings,
        paper_gate=paper_gate(list(scores), specialists),
        tokens=tokens,
        decision=decide(comparisons, scores, warnings),
    )
