"""A step's numbers: what is added up per token, and the line of `metrics.jsonl`, in the names that users rely on."""

from collections.abc import Sequence
from typing import Any

import psutil
import torch

from megafuser.fusion.mixture_loss import MixtureLoss

Line = dict[str, Any]

# The columns of `training_values` before the K gate weights and the K losses.
LOSS, COUNT, FIXED = range(3)


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
