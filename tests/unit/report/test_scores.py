"""Sums to means, and what follows from them."""

import dataclasses
import json
import math

import pytest
import torch

from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.report.results import to_table
from megafuser.report.scores import Scores, columns, token_values
from tests.unit.report.made_up import DOMAINS, NAMES, report, scores


def loss() -> MixtureLoss:
    return MixtureLoss(
        fused=torch.tensor([1.0, 2.0, 6.0]),
        weights=torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]),
        specialists=torch.tensor([[3.0, 1.0], [2.0, 4.0], [1.0, 7.0]]),
        uniform=torch.tensor([2.0, 2.0, 5.0]),
    )


def test_means_over_tokens() -> None:
    values = token_values(loss())
    assert values.shape == (3, columns(2))
    found = Scores.from_sums(values.double().sum(dim=0), 2, NAMES)
    assert (found.samples, found.response_tokens) == (2, 3)
    assert (found.fused, found.uniform) == (3.0, 3.0)
    assert found.oracle == pytest.approx((1 + 2 + 1) / 3)
    assert found.specialists == dict(zip(NAMES, (2.0, 4.0), strict=True))
    assert list(found.gate.values()) == pytest.approx([1.7 / 3, 1.3 / 3])
    entropy = math.log(2) + 0.0 - (0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert found.gate_entropy == pytest.approx(entropy / 3)


def test_a_row_without_tokens_adds_nothing() -> None:
    empty = MixtureLoss(torch.zeros(0), torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))
    assert token_values(empty).sum(dim=0).tolist() == [0.0] * columns(2)


@pytest.mark.parametrize(
    ("fused", "first", "second", "gain"),
    [(1.5, 2.0, 3.0, 0.5), (2.5, 4.0, 2.0, -0.5), (0.5, 1.0, 3.0, 0.5)],
)
def test_the_gain_over_the_best_specialist(fused: float, first: float, second: float, gain: float) -> None:
    own = scores(fused, first, second, oracle=1.0)
    assert own.best_specialist == NAMES[first > second]
    assert own.gain == gain


def test_the_json_has_the_documented_fields() -> None:
    found = report().to_dict()
    assert list(found["domains"]) == DOMAINS
    for fields in (*found["domains"].values(), found["overall"]):
        measured = {"samples", "response_tokens", "cross_entropy", "gate", "gate_entropy"}
        compared = {"best_specialist", "gap_closed", "gap_closed_single", "minus_best", "minus_single", "minus_uniform"}
        assert fields.keys() == measured | compared | {"confidence_interval", "calibration"}
        assert fields["cross_entropy"].keys() == {"fused", "uniform", "oracle", "specialists"}
        assert list(fields["cross_entropy"]["specialists"]) == list(fields["gate"]) == NAMES


def test_a_mean_that_is_not_finite_is_null() -> None:
    own = dataclasses.replace(report(), overall=scores(math.nan, math.inf, 3.0, oracle=1.0))
    found = json.loads(json.dumps(own.to_dict(), allow_nan=False))["overall"]["cross_entropy"]
    assert found["fused"] is None and list(found["specialists"].values()) == [None, 3.0]


def test_the_table_marks_the_lowest_but_never_the_oracle() -> None:
    lines = to_table(report()).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("zebra & co  ")
    assert [line.count("*") for line in lines] == [0, 1, 1, 1]
    assert "1.5000*" in lines[1]
    assert "2.0000*" in lines[2]
    assert all("1.0000*" not in line for line in lines)
    ends = [line.index("2.5000") + 6 for line in lines[1:]]
    assert ends == [ends[0]] * 3 == [lines[0].index("uniform") + len("uniform")] * 3
