"""A step's numbers: from sums per domain to a line of `metrics.jsonl`, in the names that users rely on."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from megafuser.runtime.atomic import write_text_atomic
from megafuser.watching.json_lines import read_lines

logger = logging.getLogger(__name__)

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
        peak: float = memory.peak_wset / 2**30
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MetricsFile:
    """`metrics.jsonl`: a line per step, across restarts, no step twice.

    A disk that is full does not end a run: the lines wait for room, which is said once.
    """

    def __init__(self, path: Path, stage: str, last_step: int) -> None:
        """Opens the file to go on after `last_step` of the stage; lines of later steps were lost with their state."""
        self._path = path
        lines = read_lines(path, ("stage", "step"))  # a kill may have cut the last one
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= last_step]
        write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        # without a buffer, so that what a full disk took of a line is known
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._is_told = False

    def write(self, line: Line) -> None:
        """Appends a line, visible to readers at once."""
        self._waiting += json.dumps(line).encode() + b"\n"
        self._try(self._put)

    def flush(self) -> None:
        """Flushes to the disk, before a checkpoint that goes on after these lines."""
        self._try(self._put, lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        """Flushes to the disk and closes."""
        self.flush()
        if self._waiting:
            logger.warning("%s lacks its last lines, for which there was no room", self._path)
        self._file.close()

    def _put(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]

    def _try(self, *actions: Callable[[], None]) -> None:
        try:
            for action in actions:
                action()
            self._is_told = False
        except OSError as error:
            if not self._is_told:
                logger.warning("%s cannot be written (%s); its lines wait for room", self._path, error)
            self._is_told = True
