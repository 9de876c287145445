"""The rules of the verdict, and the warnings of a gate that does not do what it is for."""

import numpy as np
import pytest

from megafuser.report.comparison import compare
from megafuser.report.gate_checks import PAPER, check_gate, paper_gate
from megafuser.report.scores import Scores
from megafuser.report.verdict import decide

NAMES = ["text", "code"]


def table(fused: float, text: float, code: float, oracle: float, spread: float = 0.02, samples: int = 50) -> np.ndarray:
    """Samples of ten tokens whose mean losses are those given; each model has noise of its own."""
    random = np.random.default_rng(round(fused * 1000))
    noise = random.normal(0, spread, (samples, 3))
    means = np.zeros((samples, 9))
    means[:, [1, 5, 6]] = np.array([fused, text, code]) + noise - noise.mean(axis=0)
    means[:, 0], means[:, 2], means[:, 3] = 1.0, 3.0, oracle
    means[:, 4], means[:, 7], means[:, 8] = 0.3, 0.5, 0.5
    return 10 * means


def verdict(**tables: np.ndarray) -> tuple[str, list[str]]:
    scores = {name: Scores.from_sums(own.sum(axis=0), len(own), NAMES) for name, own in tables.items()}
    decision = decide(compare(tables, NAMES, seed=1), scores, check_gate(scores))
    assert decision.verdict == decision.reasons[0].points_to
    return decision.verdict, [reason.text for reason in decision.reasons if reason.points_to == decision.verdict]


def test_go_where_it_beats_any_single_specialist_and_loses_no_domain() -> None:
    decision, reasons = verdict(text=table(1.95, 2.0, 3.0, 1.5), code=table(2.01, 3.0, 2.0, 1.5))
    assert decision == "go"
    assert "The fused model is better than any single specialist" in reasons[0]
    assert "code comes off worst: 2.0100 against 2.0000 of code, 0.5% worse" in reasons[-1]


def test_no_go_where_a_single_specialist_is_better() -> None:
    decision, reasons = verdict(text=table(2.5, 2.0, 2.1, 1.5), code=table(2.6, 2.2, 2.0, 1.5))
    assert decision == "no-go"
    assert reasons == [reason for reason in reasons if "A single specialist is better" in reason]


def test_no_go_where_there_is_nothing_to_win() -> None:
    decision, reasons = verdict(text=table(1.98, 2.0, 3.0, 1.99, spread=0.001))
    assert decision == "no-go"
    assert "next to nothing to win" in reasons[0]


def test_unclear_where_the_interval_holds_zero() -> None:
    decision, reasons = verdict(text=table(1.999, 2.0, 3.0, 1.5, spread=0.5))
    assert decision == "unclear"
    assert "is open" in reasons[0]


def test_unclear_where_a_domain_loses_more_than_a_percent() -> None:
    decision, reasons = verdict(text=table(1.9, 2.0, 3.0, 1.5), code=table(2.03, 3.0, 2.0, 1.5))
    assert decision == "unclear"
    assert "On code the fused model is 1.5% worse than code: 2.0300 against 2.0000" in reasons[0]


def test_unclear_with_few_samples() -> None:
    decision, reasons = verdict(text=table(1.9, 2.0, 3.0, 1.5, samples=29), code=table(1.9, 3.0, 2.0, 1.5, samples=30))
    assert decision == "unclear"
    assert reasons == ["Fewer than 30 samples of text: the intervals say little."]


def test_unclear_where_a_loss_is_no_number() -> None:
    """NaN is the least of all to numpy, and no rule's limit is below it or above it."""
    own = table(1.9, 2.0, 3.0, 1.5)
    own[0, [1, 3, 6]] = np.nan
    decision, reasons = verdict(text=own, code=table(1.9, 3.0, 2.0, 1.5))
    assert decision == "unclear"
    assert reasons == ["A cross-entropy is not a finite number (null in report.json), so nothing can be compared."]


def scores(entropy: float = 0.3, **gate: float) -> Scores:
    return Scores(1, 1, 1.0, 1.0, 1.0, dict.fromkeys(gate, 1.0), gate, entropy)


@pytest.mark.parametrize(
    ("domains", "kinds"),
    [
        ({"text": scores(text=0.7, code=0.3), "code": scores(text=0.4, code=0.6)}, []),
        ({"text": scores(text=0.4, code=0.6), "prose": scores(text=0.4, code=0.6)}, ["other_specialist"]),
        ({"a": scores(0.6931, text=0.5, code=0.5), "b": scores(0.6931, text=0.5, code=0.5)}, ["equal_weights"]),
        ({"a": scores(0.6931, text=0.5, code=0.5), "b": scores(0.6, text=0.5, code=0.5)}, []),
        ({"a": scores(text=0.995, code=0.005), "b": scores(text=0.98, code=0.02)}, []),
        (
            {"a": scores(text=0.995, code=0.005), "b": scores(text=0.992, code=0.008)},
            ["dominant_specialist", "unused_specialist"],
        ),
        (
            {"a": scores(text=0.595, code=0.005, math=0.4), "b": scores(text=0.595, code=0.005, math=0.4)},
            ["unused_specialist"],
        ),
    ],
)
def test_warnings(domains: dict[str, Scores], kinds: list[str]) -> None:
    assert [warning.kind for warning in check_gate(domains)] == kinds


def test_a_collapsed_gate_is_no_go_ahead() -> None:
    tables = {"a": table(1.9, 2.0, 3.0, 1.5)}
    tables["a"][:, 7:] = [9.95, 0.05]
    decision, reasons = verdict(**tables)
    assert (decision, len(reasons)) == ("unclear", 1)
    assert reasons[0].startswith("The gate has collapsed on text")


def test_the_papers_gate_is_shown_where_names_are_the_papers() -> None:
    found = paper_gate(["math", "other", "code", "text"], ["math", "code", "text"])
    assert found is not None
    assert list(found) == ["math", "code", "text"]
    assert list(found["math"].items()) == [("math", 0.43), ("code", 0.39), ("text", 0.18)]
    assert all(sum(weights.values()) == pytest.approx(1) for weights in PAPER.values())
    assert paper_gate(["text", "code"], ["text", "code", "math"]) is None
    assert paper_gate(["text", "code", "math"], ["text", "code"]) is None
