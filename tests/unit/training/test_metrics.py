"""Numbers of metrics.jsonl: what they say."""

import psutil
import torch

from megafuser.training.metrics import loss_metrics, peak_memory_gib


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
