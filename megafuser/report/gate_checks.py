"""What a gate looks like that has learned nothing, or that has collapsed; and the paper's gate, to compare with.

What follows for joint training is `report.verdict`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megafuser.report.scores import Scores

UNUSED, DOMINANT = 0.01, 0.99
# Of ln K: a gate that starts at zero begins at 1, and leaves it within a few steps.
EQUAL = 0.999

# Mean weights of the text, code and math specialists on validation data of each domain, as the paper gives them.
PAPER = {
    "text": {"text": 0.45, "code": 0.29, "math": 0.26},
    "code": {"text": 0.23, "code": 0.59, "math": 0.18},
    "math": {"text": 0.18, "code": 0.39, "math": 0.43},
}


@dataclass(frozen=True)
class GateWarning:
    """Something about the gate that a reader should know.

    Attributes:
        kind: `unused_specialist`, `dominant_specialist`, `equal_weights` or `other_specialist`.
        text: a sentence.
    """

    kind: str
    text: str


def check_gate(domains: Mapping[str, Scores]) -> list[GateWarning]:
    """Looks at the mean weights and their entropy in every domain."""
    names = list(next(iter(domains.values())).gate)
    found = []
    most = math.log(len(names))
    if all(scores.gate_entropy >= EQUAL * most for scores in domains.values()):
        text = "The gate gives equal weights at every token: it has learned nothing and mixes uniformly."
        found.append(GateWarning("equal_weights", text))
    for name in names:
        weights = [scores.gate[name] for scores in domains.values()]
        if max(weights) < UNUSED:
            text = f"The gate does not use {name}: its mean weight is below {UNUSED:.0%} in every domain."
            found.append(GateWarning("unused_specialist", text))
        if min(weights) > DOMINANT:
            text = f"The gate has collapsed on {name}: its mean weight is above {DOMINANT:.0%} in every domain."
            found.append(GateWarning("dominant_specialist", text))
    for domain, scores in domains.items():
        largest = max(scores.gate, key=scores.gate.__getitem__)
        if domain in names and scores.gate[largest] > scores.gate[domain]:
            text = (
                f"On {domain} the gate gives {largest} more weight ({scores.gate[largest]:.2f}) than the domain's own "
                f"specialist ({scores.gate[domain]:.2f})."
            )
            found.append(GateWarning("other_specialist", text))
    return found


def paper_gate(domains: Sequence[str], specialists: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """The paper's mean weights where domains and specialists have the names of the paper's; else None."""
    if set(specialists) != set(PAPER) or not set(PAPER) <= set(domains):
        return None
    return {domain: {name: PAPER[domain][name] for name in specialists} for domain in domains if domain in PAPER}
