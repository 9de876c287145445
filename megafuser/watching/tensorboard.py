"""TensorBoard's event files: curves of every number, and what a validation shows of the gate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from megafuser.watching.gate_pictures import coloured_text, gate_matrix
from megafuser.watching.gate_text import markdown
from megafuser.watching.tokens import Seen

LABELS = ("stage", "split", "step")

_BINS: Any = np.linspace(0, 1, 41)


class Curves:
    """One directory of event files a stage; tags are `SPLIT/METRIC`."""

    def __init__(self, directory: Path, last_step: int, stage: str) -> None:
        """Goes on after `last_step`: what an interrupted run wrote beyond it is hidden."""
        self._writer = SummaryWriter(str(directory / stage), purge_step=last_step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of `metrics.jsonl`."""
        for key, value in line.items():
            if key not in LABELS and isinstance(value, int | float):
                self._writer.add_scalar(f"{line['split']}/{key}", value, line["step"])

    def gate(self, line: Mapping[str, Any], domains: Sequence[str], specialists: Sequence[str]) -> None:
        """Adds the mean weights of a line as a picture."""
        weights = [[line.get(f"gate/{domain}/{name}", np.nan) for name in specialists] for domain in domains]
        picture = gate_matrix(np.array(weights), domains, specialists)
        self._writer.add_image(f"{line['split']}/gate_matrix", picture, line["step"], dataformats="HWC")

    def tokens(self, seen: Seen, step: int, domains: Sequence[str], specialists: Sequence[str]) -> None:
        """Adds what a validation showed of single tokens: histograms of the weights, and samples."""
        named = [(f"{domain}/", values) for domain, values in zip(domains, seen.weights, strict=True)]
        for prefix, values in (("", np.concatenate(seen.weights)), *named):
            for k, specialist in enumerate(specialists if len(values) else ()):
                # the same bins at every step, so that the histograms can be compared
                tag = f"valid/gate_weight/{prefix}{specialist}"
                self._writer.add_histogram(tag, values[:, k], step, bins=_BINS)
        counts = dict.fromkeys(domains, 0)
        for excerpt in seen.excerpts:
            tag = f"valid/sample/{excerpt.domain}/{counts[excerpt.domain]}"
            counts[excerpt.domain] += 1
            self._writer.add_text(tag, markdown(excerpt, specialists), step)
            self._writer.add_image(tag, coloured_text(excerpt, specialists), step, dataformats="HWC")

    def flush(self) -> None:
        """Gives readers, and the disk, what was written so far."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
