"""A step's numbers: what is added up per token, and the line of `metrics.jsonl`, in the names that users rely on.

Where they go is `training.metric_sinks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from megafuser.data.loader import StepCounts
from megafuser.fusion.mixture_loss import MixtureLoss

Line = dict[str, Any]

# The columns of `training_values` before the K gate weights and the K losses.
LOSS, COUNT, FIXED = range(3)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the metrics.

    Attributes:
        sums: [domains, 2 + 2 K] float64, see `training_values`; the same on every rank.
        grad_norm: global norm of the gradients before clipping.
        lr: the learning rate that the step used.
        skipped: whether loss or gradients were not finite, so that nothing was updated; the same on every rank.
        group_norms: of `grad_norm`, the parts of the gate and of each specialist that trains.
        group_rates: the learning rates of the same.
        load_balance: K · Σ_k m_k² of the mean gate weights; only where the stage has that loss.
    """

    sums: torch.Tensor
    grad_norm: float
    lr: float
    skipped: bool = False
    group_norms: dict[str, float] = field(default_factory=dict)
    group_rates: dict[str, float] = field(default_factory=dict)
    load_balance: float | None = None


@dataclass(frozen=True)
class StepCost:
    """What a step took, as rank 0 saw it.

    Attributes:
        seconds: of its rows, the update and its checks.
        checkpoint_stall_seconds: that steps have waited for a checkpoint since the line before.
        tflops: 10¹² floating-point operations a second and device, by the formula of `flops`.
        peak_flops: of the device, a second; None where that is unknown.
        memory_gib: peak so far.
    """

    seconds: float
    checkpoint_stall_seconds: float
    tflops: float
    peak_flops: float | None
    memory_gib: float


def training_columns(specialists: int) -> int:
    """Number of columns that `training_values` gives for K specialists."""
    return FIXED + 2 * specialists


def training_values(output: MixtureLoss) -> torch.Tensor:
    """What a step adds up, per response token.

    Args:
        output: of the fused model, with or without its diagnostics.

    Returns:
        [T, 2 + 2 K]: the loss; one; each specialist's gate weight; each specialist's own loss.
    """
    loss = output.fused.detach().unsqueeze(1)
    return torch.cat([loss, torch.ones_like(loss), output.weights, output.specialists], dim=1)


def training_line(
    stage: str,
    step: int,
    result: StepResult,
    counts: StepCounts,
    cost: StepCost,
    *,
    packing_efficiency: float,
    domains: Sequence[str],
    specialists: Sequence[str],
) -> Line:
    """The line of a training step; `docs/generator/metrics.py` says what each of its names means.

    Args:
        stage: `warmup` or `joint`.
        step: the number of the step, from 1.
        result: what it computed.
        counts: its samples and tokens, over all ranks.
        cost: what it took.
        packing_efficiency: tokens / positions of its rows.
        domains: names, in order.
        specialists: names, in order.
    """
    by_domain = zip(domains, counts.domain_response_tokens, strict=True)
    return {
        "stage": stage,
        "split": "train",
        "step": step,
        **loss_metrics(result.sums, domains, specialists),
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        **{f"grad_norm/{name}": norm for name, norm in result.group_norms.items()},
        **{f"lr/{name}": rate for name, rate in result.group_rates.items()},
        **({} if result.load_balance is None else {"load_balance": result.load_balance}),
        "samples": counts.samples,
        "tokens": counts.tokens,
        "response_tokens": counts.response_tokens,
        "packing_efficiency": packing_efficiency,
        **{f"response_tokens/{name}": tokens for name, tokens in by_domain},
        "tokens_per_second": counts.tokens / cost.seconds,
        "step_seconds": cost.seconds,
        "checkpoint_stall_seconds": cost.checkpoint_stall_seconds,
        "tflops_per_device": cost.tflops,
        **({"mfu": cost.tflops * 1e12 / cost.peak_flops} if cost.peak_flops else {}),
        "peak_memory_gib": cost.memory_gib,
        **({"skipped": 1} if result.skipped else {}),
    }


def validation_line(
    stage: str, step: int, samples: int, sums: torch.Tensor, domains: Sequence[str], specialists: Sequence[str]
) -> Line:
    """The line of a validation of so many samples, from its `sums` as `loss_metrics` takes them."""
    losses = loss_metrics(sums, domains, specialists)
    return {"stage": stage, "split": "valid", "step": step, **losses, "samples": samples}


def loss_metrics(sums: torch.Tensor, domains: Sequence[str], specialists: Sequence[str]) -> Line:
    """Losses and mean gate weights, over all response tokens and per domain.

    Args:
        sums: [domains, 2 + 2 K], the columns of `training_values` added up over response tokens.
        domains: names, in order.
        specialists: names, in order.

    Returns:
        `loss`, `loss/D`, `gate/D/S`, `specialist_loss/D/S`; a domain without a token in this step has none.
    """
    total = sums.sum(dim=0)
    line: Line = {"loss": float(total[LOSS] / total[COUNT])}
    present = [(name, values) for name, values in zip(domains, sums.tolist(), strict=True) if values[COUNT]]
    line |= {f"loss/{name}": values[LOSS] / values[COUNT] for name, values in present}
    for name, values in present:
        means = [value / values[COUNT] for value in values[FIXED:]]
        for kind, own in (("gate", means[: len(specialists)]), ("specialist_loss", means[len(specialists) :])):
            line |= {f"{kind}/{name}/{specialist}": mean for specialist, mean in zip(specialists, own, strict=True)}
    return line


def peak_memory_gib(device: torch.device) -> float:
    """The device's peak memory; on a CPU the process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        peak: float = memory.peak_wset / 2**30
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
