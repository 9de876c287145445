"""What standard error says while a stage runs: a bar on a terminal, plain lines in a batch job's log.

The log itself is `runtime.logs`.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import nan
from typing import Any, Protocol

from tqdm import tqdm

logger = logging.getLogger(__name__)

Line = Mapping[str, Any]


class Progress(Protocol):
    """One of the two ways to show steps."""

    def update(self, line: Line) -> None:
        """One step done, with its metrics."""

    def validated(self, line: Line) -> None:
        """A validation done, with its metrics."""

    def close(self) -> None:
        """No more steps."""


def start_progress(
    stage: str, done: int, steps: int, domains: Sequence[str], specialists: Sequence[str], every: float
) -> Progress:
    """A bar where standard error is a terminal, else lines.

    Args:
        stage: `warmup` or `joint`.
        done: steps that are done already.
        steps: in all.
        domains: names, in order.
        specialists: names, in order.
        every: seconds between two lines.
    """
    if sys.stderr.isatty():
        return ProgressBar(stage, done, steps, domains, specialists)
    return LogLines(stage, done, steps, domains, specialists, every)


class ProgressBar:
    """Steps done and to do, on standard error."""

    def __init__(self, stage: str, done: int, steps: int, domains: Sequence[str], specialists: Sequence[str]) -> None:
        """Starts at `done` of `steps`."""
        self._domains, self._specialists = domains, specialists
        self._bar = tqdm(total=steps, initial=done, desc=stage, unit="step", mininterval=1.0, dynamic_ncols=True)

    def update(self, line: Line) -> None:
        """Moves on."""
        gate = gate_text(line, self._domains, self._specialists)
        packed = f"{100 * line['packing_efficiency']:.0f} % packed"
        self._bar.set_postfix_str(f"loss {line.get('loss', nan):.3f}, {packed}, gate {gate}", refresh=False)
        self._bar.update()

    def validated(self, line: Line) -> None:
        """A line above the bar."""
        losses = losses_text(line, self._domains)
        self._bar.write(f"{line['stage']} step {line['step']}: validation {losses}", sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


class LogLines:
    """A line in the log for the first step, the last one, and in between after a time; one for each validation."""

    def __init__(
        self, stage: str, done: int, steps: int, domains: Sequence[str], specialists: Sequence[str], every: float
    ) -> None:
        """See `start_progress`."""
        self._stage, self._first, self._steps, self._every = stage, done, steps, every
        self._domains, self._specialists = domains, specialists
        self._started = self._now()
        self._shown: float | None = None

    def _now(self) -> float:
        return time.monotonic()

    def update(self, line: Line) -> None:
        """Says where the stage is, if it is time to."""
        step, now = line["step"], self._now()
        if self._shown is not None and step != self._steps and now - self._shown < self._every:
            return
        self._shown = now
        per_step = (now - self._started) / (step - self._first)
        parts = [
            f"{self._stage} {step}/{self._steps}: {losses_text(line, self._domains)}",
            f"gate {gate_text(line, self._domains, self._specialists)}",
            f"{line['tokens_per_second']:,.0f} tokens/s",
            f"{line['step_seconds']:.2f} s/step",
        ]
        if "mfu" in line:
            parts.append(f"MFU {line['mfu']:.1%}")
        if step < self._steps:
            parts.append(f"ETA {eta_text((self._steps - step) * per_step)}")
        logger.info("%s", ", ".join(parts))

    def validated(self, line: Line) -> None:
        """Every validation is worth a line."""
        logger.info("%s %d/%d: validation %s", self._stage, line["step"], self._steps, losses_text(line, self._domains))

    def close(self) -> None:
        """The last line is said already."""


def losses_text(line: Line, domains: Sequence[str]) -> str:
    """`loss 1.234 (text 1.2, code 1.3)`; a domain without a token in the step is left out."""
    own = ", ".join(f"{domain} {line[f'loss/{domain}']:.3f}" for domain in domains if f"loss/{domain}" in line)
    return f"loss {line.get('loss', nan):.3f} ({own})"


def gate_text(line: Line, domains: Sequence[str], specialists: Sequence[str]) -> str:
    """`text 0.80/0.10/0.10, code …`: the mean weights of the specialists, in order, by domain."""
    return ", ".join(
        f"{domain} " + "/".join(f"{line[f'gate/{domain}/{name}']:.2f}" for name in specialists)
        for domain in domains
        if f"gate/{domain}/{specialists[0]}" in line
    )


def eta_text(seconds: float, now: datetime | None = None) -> str:
    """What remains, and the local time when it is over: `5:03:20 (Sun 02:13)`."""
    remaining = timedelta(seconds=round(seconds))
    return f"{remaining} ({(now or datetime.now()) + remaining:%a %H:%M})"
