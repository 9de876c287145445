"""Go or no-go: whether the numbers of a report say that fusing these specialists is worth joint training.

The rules are in docs/report.md; each gives a reason in words, whichever way it goes. The faults of a gate are found by
`report.gate_checks`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megafuser.report.bootstrap import LEVEL, Estimate
from megafuser.report.comparison import Comparison, Comparisons
from megafuser.report.gate_checks import GateWarning
from megafuser.report.scores import Scores

# Shares of a cross-entropy.
TOLERATED_LOSS = 0.01
LEAST_PROMISE = 0.01
# Below so many samples, an interval over samples says little.
FEWEST_SAMPLES = 30

GO, NO_GO, UNCLEAR = "go", "no-go", "unclear"
# What any of these says, the gate does not do what it is for.
_COLLAPSES = ("equal_weights", "dominant_specialist")


@dataclass(frozen=True)
class Reason:
    """What one rule says.

    Attributes:
        points_to: `go`, `no-go` or `unclear`.
        text: a sentence with the numbers.
    """

    points_to: str
    text: str


@dataclass(frozen=True)
class Decision:
    """The verdict.

    Attributes:
        verdict: `no-go` where a reason says so, else `unclear` where one says so, else `go`.
        reasons: those that decide first.
    """

    verdict: str
    reasons: tuple[Reason, ...]

    @classmethod
    def from_reasons(cls, reasons: Sequence[Reason]) -> "Decision":
        """The strictest of the reasons decides."""
        order = (NO_GO, UNCLEAR, GO)
        ordered = sorted(reasons, key=lambda reason: order.index(reason.points_to))
        return cls(ordered[0].points_to, tuple(ordered))

    @property
    def explanation(self) -> str:
        """What the verdict means, in words."""
        return {
            GO: "fusing helps these specialists; the fused model is better than any single one.",
            NO_GO: "fusing these specialists with this gate is not worth further GPU hours.",
            UNCLEAR: "the numbers do not decide; look at the reasons.",
        }[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The fields of `report.json`."""
        return {
            "decision": self.verdict,
            "text": self.explanation,
            "reasons": [{"points_to": reason.points_to, "text": reason.text} for reason in self.reasons],
        }


def decide(found: Comparisons, scores: Mapping[str, Scores], warnings: Sequence[GateWarning]) -> Decision:
    """Applies the rules."""
    if not all(math.isfinite(own.value) for own in (found.mean.fused, *found.mean.specialists.values())):
        text = "A cross-entropy is not a finite number (null in report.json), so nothing can be compared."
        return Decision.from_reasons([Reason(UNCLEAR, text)])
    losing = [reason for name, own in found.domains.items() if (reason := _losing(name, own)) is not None]
    reasons = [_against_single(found), _promise(found), *(losing or [_none_loses(found)])]
    reasons += [Reason(UNCLEAR, warning.text) for warning in warnings if warning.kind in _COLLAPSES]
    few = [name for name, own in scores.items() if own.samples < FEWEST_SAMPLES]
    if few:
        text = f"Fewer than {FEWEST_SAMPLES} samples of {', '.join(few)}: the intervals say little."
        reasons.append(Reason(UNCLEAR, text))
    return Decision.from_reasons(reasons)


def _against_single(found: Comparisons) -> Reason:
    """The fused model against the best single specialist, on the mean of the domains."""
    mean = found.mean
    difference, single = mean.minus_single, mean.specialists[found.single].value
    text = (
        f"over the domains: fused {mean.fused.value:.4f}, best single specialist ({found.single}) {single:.4f}, "
        f"difference {_interval(difference)} nats, {LEVEL:.0%} interval"
    )
    if difference.high < 0:
        return Reason(GO, f"The fused model is better than any single specialist {text}.")
    if difference.low > 0:
        return Reason(NO_GO, f"A single specialist is better than the fused model {text}.")
    return Reason(UNCLEAR, f"Whether the fused model is better than a single specialist is open {text}.")


def _promise(found: Comparisons) -> Reason:
    """Whether there is anything to win: the oracle against the best single specialist."""
    mean = found.mean
    single, oracle = mean.specialists[found.single].value, mean.oracle.value
    share = (single - oracle) / single if single > 0 else 0.0
    text = f"choosing the best specialist at each token would be {share:.1%} better than {found.single} throughout"
    got = mean.gap_closed_single
    closed = f"; the gate has got {got.value:.0%} of that" if got is not None and got.value > 0 else ""
    if share < LEAST_PROMISE:
        return Reason(NO_GO, f"There is next to nothing to win: {text}.")
    return Reason(GO, f"There is something to win: {text}{closed}.")


def _losing(name: str, own: Comparison) -> Reason | None:
    """A domain that loses more than is tolerated against its best specialist."""
    if _loss(own) <= TOLERATED_LOSS:
        return None
    return Reason(
        UNCLEAR,
        f"On {name} the fused model is {_percent(_loss(own))} than {own.best}: {own.fused.value:.4f} against "
        f"{_best(own).value:.4f}, difference {_interval(own.minus_best)} nats.",
    )


def _none_loses(found: Comparisons) -> Reason:
    worst = max(found.domains, key=lambda name: _loss(found.domains[name]))
    own = found.domains[worst]
    return Reason(
        GO,
        f"No domain is more than {TOLERATED_LOSS:.0%} worse than its best specialist. {worst} comes off worst: "
        f"{own.fused.value:.4f} against {_best(own).value:.4f} of {own.best}, {_percent(_loss(own))}.",
    )


def _best(own: Comparison) -> Estimate:
    return own.specialists[own.best]


def _loss(own: Comparison) -> float:
    """How much worse the fused model is than the best specialist, as a share."""
    return own.minus_best.value / _best(own).value if _best(own).value > 0 else 0.0


def _percent(share: float) -> str:
    return f"{abs(share):.1%} {'worse' if share > 0 else 'better'}"


def _interval(own: Estimate) -> str:
    return f"{own.value:+.4f} [{own.low:+.4f}, {own.high:+.4f}]"
