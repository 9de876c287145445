"""Numbers of metrics.jsonl: what they say."""

import psutil
import torch

from megafuser.data.loader import StepCounts
from megafuser.training.metrics import (
    StepCost,
    StepResult,
    loss_metrics,
    peak_memory_gib,
    training_line,
    validation_line,
)

SUMS = torch.tensor([[3.0, 6.0, 6.0, 12.0], [1.0, 2.0, 2.0, 3.0]], dtype=torch.float64)


def line(result: StepResult, cost: StepCost) -> dict[str, object]:
    counts = StepCounts((2, 3), (40, 60), (6, 2))
    names = {"domains": ["x", "y"], "specialists": ["a"]}
    return training_line("joint", 7, result, counts, cost, packing_efficiency=0.5, **names)


def test_the_line_of_a_step() -> None:
    norms, rates = {"gate": 0.5, "a": 1.0}, {"gate": 3e-4, "a": 3e-5}
    result = StepResult(SUMS, 1.5, 3e-5, group_norms=norms, group_rates=rates, load_balance=1.25)
    found = line(result, StepCost(2.0, 0.25, 200.0, 400e12, 60.0))
    losses = loss_metrics(SUMS, ["x", "y"], ["a"])
    assert list(found.items())[:3] == [("stage", "joint"), ("split", "train"), ("step", 7)]
    assert {name: found[name] for name in losses} == losses
    assert {name: value for name, value in found.items() if name not in losses} == {
        **{"stage": "joint", "split": "train", "step": 7, "grad_norm": 1.5, "lr": 3e-5, "load_balance": 1.25},
        **{"grad_norm/gate": 0.5, "grad_norm/a": 1.0, "lr/gate": 3e-4, "lr/a": 3e-5},
        **{"samples": 5, "tokens": 100, "response_tokens": 8, "response_tokens/x": 6, "response_tokens/y": 2},
        **{"packing_efficiency": 0.5, "tokens_per_second": 50.0, "step_seconds": 2.0},
        **{"checkpoint_stall_seconds": 0.25, "tflops_per_device": 200.0, "mfu": 0.5, "peak_memory_gib": 60.0},
    }


def test_what_is_not_known_or_did_not_happen_is_left_out() -> None:
    cost = StepCost(2.0, 0.0, 200.0, None, 60.0)
    plain = line(StepResult(SUMS, 1.5, 3e-5), cost)
    assert not {"mfu", "load_balance", "skipped"} & plain.keys()
    skipped = line(StepResult(SUMS, float("nan"), 3e-5, skipped=True), cost)
    assert list(skipped)[-1] == "skipped" and skipped["skipped"] == 1


def test_the_line_of_a_validation() -> None:
    found = validation_line("warmup", 20, 7, SUMS, ["x", "y"], ["a"])
    losses = loss_metrics(SUMS, ["x", "y"], ["a"])
    assert found == {"stage": "warmup", "split": "valid", "step": 20, "samples": 7} | losses


def test_means_over_tokens_not_over_domains() -> None:
    # loss, count, weights of a and b, losses of a and b; 2 tokens of x, 6 of y
    sums = torch.tensor([[4.0, 2.0, 0.5, 1.5, 8.0, 6.0], [3.0, 6.0, 4.5, 1.5, 9.0, 12.0]], dtype=torch.float64)
    assert loss_metrics(sums, ["x", "y"], ["a", "b"]) == {
        "loss": 7 / 8,
        "loss/x": 2.0,
        "loss/y": 0.5,
        "gate/x/a": 0.25,
        "gate/x/b": 0.75,
        "gate/y/a": 0.75,
        "gate/y/b": 0.25,
        "specialist_loss/x/a": 4.0,
        "specialist_loss/x/b": 3.0,
        "specialist_loss/y/a": 1.5,
        "specialist_loss/y/b": 2.0,
    }


def test_a_domain_without_a_token_has_no_number() -> None:
    sums = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 6.0, 6.0, 12.0]], dtype=torch.float64)
    only_y = {"loss": 0.5, "loss/y": 0.5, "gate/y/a": 1.0, "specialist_loss/y/a": 2.0}
    assert loss_metrics(sums, ["x", "y"], ["a"]) == only_y


def test_peak_memory_of_a_process_on_a_cpu() -> None:
    """In GiB: at least what is resident now, not 2^10 times as much."""
    resident = psutil.Process().memory_info().rss / 2**30
    assert 0.99 * resident <= peak_memory_gib(torch.device("cpu")) < 100 * resident
