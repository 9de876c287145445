"""TensorBoard's event files: curves of every number, and what a validation shows of the gate.

The pictures are drawn by `watching.gate_pictures`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from megafuser.watching.excerpt_markdown import markdown
from megafuser.watching.token_samples import Seen

logger = logging.getLogger(__name__)

P = ParamSpec("P")

LABELS = ("stage", "split", "step")

_BINS: Any = np.linspace(0, 1, 41)


def _kept_going(
    method: Callable[Concatenate["TensorBoardLog", P], None],
) -> Callable[Concatenate["TensorBoardLog", P], None]:
    """Does nothing where there is no writer, and gives the writer up where the disk does not take what it writes."""

    @wraps(method)
    def keep_going(self: "TensorBoardLog", /, *arguments: P.args, **named: P.kwargs) -> None:
        if self._writer is None:
            return
        try:
            method(self, *arguments, **named)
        except OSError as error:
            self._give_up(error)

    return keep_going


class TensorBoardLog:
    """One directory of event files a stage; tags are `SPLIT/METRIC`.

    A disk that is full does not end a run: what cannot be written is left out, which is said once, and a new file is
    begun as soon as there is room.
    """

    def __init__(self, directory: Path, last_step: int, stage: str) -> None:
        """Goes on after `last_step`: what an interrupted run wrote beyond it is hidden."""
        self._directory = str(directory / stage)
        self._writer: Any = SummaryWriter(self._directory, purge_step=last_step + 1)

    @_kept_going
    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of `metrics.jsonl`."""
        for key, value in line.items():
            if key not in LABELS and isinstance(value, int | float):
                self._writer.add_scalar(f"{line['split']}/{key}", value, line["step"])

    @_kept_going
    def gate(self, line: Mapping[str, Any], domains: Sequence[str], specialists: Sequence[str]) -> None:
        """Adds the mean weights of a line as a picture."""
        # matplotlib is for validations; the first step needs none of it
        from megafuser.watching.gate_pictures import gate_matrix

        weights = [[line.get(f"gate/{domain}/{name}", np.nan) for name in specialists] for domain in domains]
        picture = gate_matrix(np.array(weights), domains, specialists)
        self._writer.add_image(f"{line['split']}/gate_matrix", picture, line["step"], dataformats="HWC")

    @_kept_going
    def tokens(self, seen: Seen, step: int, domains: Sequence[str], specialists: Sequence[str]) -> None:
        """Adds what a validation showed of single tokens: histograms of the weights, and samples."""
        from megafuser.watching.gate_pictures import coloured_text

        named = [(f"{domain}/", values) for domain, values in zip(domains, seen.weights, strict=True)]
        for prefix, values in (("", np.concatenate(seen.weights)), *named):
            finite = values[np.isfinite(values).all(axis=1)]
            for k, specialist in enumerate(specialists if len(finite) else ()):
                # the same bins at every step, so that the histograms can be compared
                tag = f"valid/gate_weight/{prefix}{specialist}"
                self._writer.add_histogram(tag, finite[:, k], step, bins=_BINS)
        counts = dict.fromkeys(domains, 0)
        for excerpt in seen.excerpts:
            tag = f"valid/sample/{excerpt.domain}/{counts[excerpt.domain]}"
            counts[excerpt.domain] += 1
            self._writer.add_text(tag, markdown(excerpt, specialists), step)
            self._writer.add_image(tag, coloured_text(excerpt, specialists), step, dataformats="HWC")

    def flush(self) -> None:
        """Gives readers, and the disk, what was written so far."""
        if self._writer is None:
            self._begin_again()
        self._flush()

    @_kept_going
    def _flush(self) -> None:
        self._writer.flush()

    @_kept_going
    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s cannot be written (%s); curves are left out until there is room", self._directory, error)
        writer, self._writer = self._writer, None
        with suppress(OSError):  # what it still had is lost
            writer.close()

    def _begin_again(self) -> None:
        writer = None
        with suppress(OSError):  # there is still no room
            writer = SummaryWriter(self._directory)
        self._writer = writer
