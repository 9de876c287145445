"""PyTorch's profiler over a few steps, by configuration: traces for Perfetto, chrome://tracing or TensorBoard.

The operations a second in `metrics.jsonl` do not come from here: `training.flops`.
"""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from megafuser.config.watching import ProfileConfig

logger = logging.getLogger(__name__)


class StepProfiler:
    """Records the configured steps of one stage on the configured ranks, and does nothing else."""

    def __init__(self, settings: ProfileConfig | None, stage: str, rank: int, directory: Path) -> None:
        """Nothing is recorded yet.

        Args:
            settings: which steps and ranks; None: none.
            stage: `warmup` or `joint`.
            rank: this process's.
            directory: for the traces; made when there is one.
        """
        mine = settings is not None and settings.stage == stage and rank in settings.ranks
        self._settings = settings if mine else None
        self._directory, self._name = directory, f"{stage}.rank{rank}"
        self._running: profile | None = None
        self._first = self._last = 0

    def before(self, step: int) -> None:
        """Starts where the first wanted step comes, or a later one of them with which a resumed run begins."""
        wanted = self._settings
        if wanted is None or self._running is not None or not wanted.start <= step < wanted.start + wanted.steps:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._first = step
        self._running = profile(activities=activities, record_shapes=wanted.shapes, profile_memory=wanted.memory)
        self._running.start()

    def after(self, step: int) -> None:
        """Writes the trace after the last wanted step."""
        self._last = step
        if self._settings is not None and step >= self._settings.start + self._settings.steps - 1:
            self.close()

    def close(self) -> None:
        """Writes what there is, where a stage ends before its last wanted step."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self._name}.steps{self._first}-{self._last}.pt.trace.json"
        running.export_chrome_trace(str(path))
        logger.info("profile of steps %d to %d: %s", self._first, self._last, path)
