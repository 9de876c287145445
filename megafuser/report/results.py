"""All of a report: what was measured on what, as the content of `report.json` and as a table.

Measuring is `report.measure`; the page is `report.html`.
"""

from dataclasses import dataclass
from typing import Any

from megafuser.report.analysis import Analysis
from megafuser.report.scores import Scores
from megafuser.runtime.json_values import json_safe


@dataclass(frozen=True)
class Report:
    """All numbers of a report, and what they were measured on.

    Attributes:
        checkpoint: directory of the checkpoint.
        stage: `warmup` or `joint`.
        step: optimizer steps of the stage.
        shared_vocabulary: number of ids that are scored.
        max_samples: most samples of a domain that were taken; None: all.
        version: megafuser's.
        domains: by name.
        overall: over the tokens of all domains.
        analysis: what follows from the measurements.
    """

    checkpoint: str
    stage: str
    step: int
    shared_vocabulary: int
    max_samples: int | None
    version: str
    domains: dict[str, Scores]
    overall: Scores
    analysis: Analysis

    @property
    def specialists(self) -> list[str]:
        """The specialists' names, in order."""
        return list(self.overall.specialists)

    @property
    def lines(self) -> list[tuple[str, Scores]]:
        """The domains, and `overall` below them; no mapping, since a domain may have that name too."""
        return [*self.domains.items(), ("overall", self.overall)]

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`; a mean that is not finite is null."""
        content: dict[str, Any] = json_safe(self._content())
        return content

    def _content(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "stage": self.stage,
            "step": self.step,
            "shared_vocabulary": self.shared_vocabulary,
            "max_samples": self.max_samples,
            "megafuser": self.version,
            "domains": {
                name: {**scores.to_dict(), **self.analysis.of_domain(name)} for name, scores in self.domains.items()
            },
            "overall": {**self.overall.to_dict(), **self.analysis.of_all()},
            **self.analysis.to_dict(),
        }


def to_table(report: Report) -> str:
    """The cross-entropies as text, a line per domain; the lowest of a line, the oracle apart, carries a star."""
    header = ["domain", "samples", "tokens", *report.specialists, "uniform", "fused", "oracle"]
    lines = [header]
    for name, scores in report.lines:
        losses = [*scores.specialists.values(), scores.uniform, scores.fused]
        marks = ["*" if loss == min(losses) else " " for loss in losses]
        cells = [f"{loss:.4f}{mark}" for loss, mark in zip(losses, marks, strict=True)]
        lines.append([name, str(scores.samples), str(scores.response_tokens), *cells, f"{scores.oracle:.4f} "])
    widths = [max(len(line[column].strip()) + 1 for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else (cell if cell[-1] in "* " else cell + " ").rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def to_text(report: Report) -> str:
    """The warnings and the verdict with its reasons, which ends the output."""
    analysis = report.analysis
    lines = [f"gate: {warning.text}" for warning in analysis.warnings]
    lines += [f"verdict: {analysis.decision.verdict}: {analysis.decision.explanation}"]
    return "\n".join([*lines, *(f"  {reason.points_to}: {reason.text}" for reason in analysis.decision.reasons)])
