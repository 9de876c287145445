"""A step's numbers: from sums per domain to a line of `metrics.jsonl`, in the names that users rely on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from megafuser.checkpoint.atomic import write_text_atomic

Line = dict[str, Any]


def loss_metrics(sums: torch.Tensor, domains: Sequence[str], specialists: Sequence[str]) -> Line:
    """Losses and mean gate weights, over all response tokens and per domain.

    Args:
        sums: [domains, 2 + 2 K]: loss, count, gate weights and the specialists' own losses, added up over response
            tokens.
        domains: names, in order.
        specialists: names, in order.

    Returns:
        `loss`, `loss/D`, `gate/D/S`, `specialist_loss/D/S`; a domain without a token in this step has none.
    """
    total = sums.sum(dim=0)
    line: Line = {"loss": float(total[0] / total[1])}
    present = [(name, values) for name, values in zip(domains, sums.tolist(), strict=True) if values[1]]
    line |= {f"loss/{name}": values[0] / values[1] for name, values in present}
    for name, values in present:
        means = [value / values[1] for value in values[2:]]
        for kind, own in (("gate", means[: len(specialists)]), ("specialist_loss", means[len(specialists) :])):
            line |= {f"{kind}/{name}/{specialist}": mean for specialist, mean in zip(specialists, own, strict=True)}
    return line


def peak_memory_gib(device: torch.device) -> float:
    """The device's peak memory; on a CPU the process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MetricsFile:
    """`metrics.jsonl`: a line per step, across restarts, no step twice."""

    def __init__(self, path: Path, stage: str, last_step: int) -> None:
        """Opens the file to go on after `last_step` of the stage; lines of later steps were lost with their state."""
        self._path = path
        kept = [line for line in self._lines() if line["stage"] != stage or line["step"] <= last_step]
        write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def _lines(self) -> list[Line]:
        """The file's whole lines; a kill may have cut the last one."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def write(self, line: Line) -> None:
        """Appends a line, visible to readers at once."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes to the disk and closes."""
        os.fsync(self._file.fileno())
        self._file.close()
