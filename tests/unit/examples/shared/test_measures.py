"""The examples' measures: intervals, and the tokens that a run trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.shared.measures import intervals, right_interval, trained_tokens


def test_an_interval_is_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(1)
    sums = random.normal(3.0, 1.0, 400)
    part = {name: {"sums": sums.tolist(), "tokens": [1] * 400} for name in ("text", "code", "math")}
    ends = intervals(part, 1)
    for name, independent in (("text", 1), ("mean", 3)):
        low, high = ends[name]
        assert (low + high) / 2 == pytest.approx(sums.mean(), abs=0.02)
        assert high - low == pytest.approx(2 * 1.96 * sums.std() / (400 * independent) ** 0.5, rel=0.15)


@pytest.mark.parametrize(("right", "count"), [(0, 200), (3, 200), (100, 200), (10, 10)])
def test_the_interval_of_right_answers_holds_what_the_answers_do_not_contradict(right: int, count: int) -> None:
    share = right / count
    for end in right_interval([True] * right + [False] * (count - right)):
        if 1e-9 < end < 1 - 1e-9:
            # the score test's statistic is just at its bound there
            assert abs(share - end) / (end * (1 - end) / count) ** 0.5 == pytest.approx(1.96, abs=1e-3)
        else:
            assert end == pytest.approx(share)


def test_tokens_of_a_gate_that_was_not_trained_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [("warmup", 0.0, 5), ("joint", 1.0, 7), ("joint", 0.0, 8)]

    def write(first_rate: float) -> None:
        made = [
            {
                "split": "train",
                "stage": stage,
                "lr": first_rate if stage == "warmup" else rate,
                "response_tokens": count,
            }
            for stage, rate, count in lines
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*made, {"split": "valid"}]), "utf-8")

    write(0.0)
    assert (trained_tokens(path, "warmup"), trained_tokens(path, "joint")) == (0, 15)
    write(0.1)
    assert (trained_tokens(path, "warmup"), trained_tokens(path, "joint")) == (5, 20)
