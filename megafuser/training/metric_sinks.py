"""Where the loop's numbers go: `metrics.jsonl`, TensorBoard, Weights & Biases, standard error, the run's events.

The numbers are made in `training.metrics`; how each place shows them is `watching`.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import UserError
from megafuser.planning.gpus import peak_flops
from megafuser.runtime.distributed import is_rank_zero
from megafuser.runtime.json_values import finite
from megafuser.training.metrics import Line
from megafuser.training.session import Session
from megafuser.watching.events import record_start
from megafuser.watching.json_lines import read_lines
from megafuser.watching.metrics_file import MetricsFile
from megafuser.watching.profiler import StepProfiler
from megafuser.watching.progress import start_progress
from megafuser.watching.spikes import SpikeDetector
from megafuser.watching.tensorboard import TensorBoardLog
from megafuser.watching.token_samples import Seen, TokenCollector
from megafuser.watching.wandb_log import WandbLog, check_wandb

logger = logging.getLogger(__name__)


def check_watching(config: RunConfig, ranks: int) -> None:
    """Refuses what could not be shown, before anything is loaded.

    Args:
        config: the run's.
        ranks: number of processes.

    Raises:
        UserError: a package is missing, or there is no such rank.
    """
    check_wandb(config.logging)
    if config.profile is not None and max(config.profile.ranks) >= ranks:
        raise UserError(f"profile.ranks: no rank {max(config.profile.ranks)} among {ranks}; give {ranks - 1} or less")


class Watch:
    """What one start of a stage shows; every rank has one, rank 0's writes."""

    def __init__(
        self, session: Session, stage: str, *, steps: int, done: int, valid: Sequence[TokenizedDomain]
    ) -> None:
        """Opens the files to go on after `done` of the stage's `steps`.

        Args:
            session: what the run was set up from.
            stage: `warmup` or `joint`.
            steps: of the stage.
            done: of them, those that a checkpoint has.
            valid: validation data.
        """
        self._session, self._stage, self._steps, self._valid = session, stage, steps, valid
        self._config = session.config
        self._domains, self._specialists = session.domain_names, session.specialist_names
        run = RunDirectory(Path(self._config.run_dir))
        self._writer = _Writer(session, run, stage, steps=steps, done=done) if is_rank_zero() else None
        self.profiler = StepProfiler(self._config.profile, stage, dist.get_rank(), run.path / "profile")
        self.peak = peak_flops(session.device_name, fp8=self._config.precision.fp8 is not None)

    def collector(self) -> TokenCollector | None:
        """What is to look at the rows of a validation; None where nothing of them is shown."""
        if not self._config.logging.samples:
            return None
        return TokenCollector(self._valid, self._config.evaluation.samples_per_domain, len(self._specialists))

    def gather(self, collector: TokenCollector | None) -> Seen | None:
        """What a validation's collector saw; every rank calls it."""
        return collector.gather(self._session.tokenizers[self._specialists[0]]) if collector is not None else None

    def write(self, train: Line, valid: Line | None = None, seen: Seen | None = None) -> None:
        """A step's numbers, and those of the validation after it; what is not finite is left out everywhere."""
        if self._writer is not None:
            self._writer.train(finite(train))
            if valid is not None:
                self._writer.valid(finite(valid), seen)

    def flush(self) -> None:
        """Gives readers, and the disk, what was written so far."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Closes everything."""
        self.profiler.close()
        if self._writer is not None:
            self._writer.close()


class _Writer:
    """Rank 0's files and lines."""

    def __init__(self, session: Session, run: RunDirectory, stage: str, *, steps: int, done: int) -> None:
        config = session.config
        self._domains, self._specialists = session.domain_names, session.specialist_names
        self._metrics = MetricsFile(run.metrics_file, stage, done)
        kept = read_lines(run.metrics_file, ("stage", "split"))
        before = [line for line in kept if (line["stage"], line["split"]) == (stage, "train")]
        self._spikes = SpikeDetector(line.get("loss", math.nan) for line in before)
        self._spiked = bool(before and before[-1].get("loss_spike"))
        self._tensorboard = TensorBoardLog(run.tensorboard, done, stage)
        wandb = config.logging.wandb
        self._wandb = WandbLog(wandb, run.path, dataclasses.asdict(config)) if wandb is not None else None
        every = config.logging.every_seconds
        self._progress = start_progress(stage, done, steps, self._domains, self._specialists, every)
        record_start(run.path, stage, step=done, steps=steps, ranks=session.world.size)

    def train(self, line: Line) -> None:
        """A training line; a spike is told of where it begins."""
        spike = self._spikes.add(line.get("loss", math.nan))
        line["loss_spike"] = int(spike is not None)
        if spike is not None and not self._spiked:
            logger.warning("loss spike at %s step %d: %s", line["stage"], line["step"], spike)
        self._spiked = spike is not None
        self._everywhere(line)
        self._progress.update(line)

    def valid(self, line: Line, seen: Seen | None) -> None:
        """A validation line, and what it showed of single tokens."""
        self._everywhere(line)
        self._tensorboard.gate(line, self._domains, self._specialists)
        if seen is not None:
            self._tensorboard.tokens(seen, line["step"], self._domains, self._specialists)
        self._progress.validated(line)

    def _everywhere(self, line: Line) -> None:
        self._metrics.write(line)
        self._tensorboard.write(line)
        if self._wandb is not None:
            self._wandb.write(line)

    def flush(self) -> None:
        self._metrics.flush()
        self._tensorboard.flush()

    def close(self) -> None:
        for output in (self._progress, self._metrics, self._tensorboard, self._wandb):
            if output is not None:
                output.close()
