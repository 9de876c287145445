"""What a person sees while a stage runs: one bar with loss, gate weights and remaining time; TensorBoard's curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class ProgressBar:
    """Steps done and to do, on standard error."""

    def __init__(self, stage: str, first_step: int, steps: int, *, shown: bool) -> None:
        """Starts at `first_step` of `steps`; ranks that do not print pass `shown=False`."""
        self._bar = tqdm(total=steps, initial=first_step, desc=stage, unit="step", disable=not shown, mininterval=1.0)

    def update(self, line: Mapping[str, Any], domains: Sequence[str], specialists: Sequence[str]) -> None:
        """One step done.

        Args:
            line: the step's metrics.
            domains: names, in order.
            specialists: names, in order.
        """
        gates = [
            f"{domain} " + "/".join(f"{line[f'gate/{domain}/{name}']:.2f}" for name in specialists)
            for domain in domains
            if f"gate/{domain}/{specialists[0]}" in line
        ]
        packed = f"{100 * line['packing_efficiency']:.0f} % packed"
        self._bar.set_postfix_str(f"loss {line['loss']:.3f}, {packed}, gate {', '.join(gates)}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


class Curves:
    """TensorBoard's event files; one directory a stage, tags are `SPLIT/METRIC`."""

    def __init__(self, directory: Path, last_step: int, stage: str) -> None:
        """Goes on after `last_step`: what an interrupted run wrote beyond it is hidden."""
        self._writer = SummaryWriter(str(directory / stage), purge_step=last_step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds a line of `metrics.jsonl`."""
        labels = ("stage", "split", "step")
        for key, value in line.items():
            if key not in labels:
                self._writer.add_scalar(f"{line['split']}/{key}", value, line["step"])

    def flush(self) -> None:
        """Gives readers, and the disk, what was written so far."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
