"""The loop over a stage's steps: rows, update, metrics, validation, checkpoints.

An update itself is `training.engine`; what the first step starts from is `training.stage_start`.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from megatron.core import parallel_state

from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.config.stages import StageConfig
from megafuser.data.loader import StepBatches, validation_rows, validation_sizes
from megafuser.data.stage_sampler import repetitions, stage_sampler
from megafuser.data.tokenized import TokenizedDomain
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow
from megafuser.runtime.distributed import is_rank_zero
from megafuser.runtime.heartbeat import Heartbeat
from megafuser.specialist.fp8 import width_multiple
from megafuser.training.checkpoint_saver import CheckpointSaver
from megafuser.training.engine import Engine
from megafuser.training.flops import step_flops
from megafuser.training.history import History
from megafuser.training.metric_sinks import Watch
from megafuser.training.metrics import (
    Line,
    StepCost,
    peak_memory_gib,
    training_columns,
    training_line,
    training_values,
    validation_line,
)
from megafuser.training.nonfinite_steps import NonfiniteSteps
from megafuser.training.pipeline import row_multiple
from megafuser.training.replicas import check_gate_replicas
from megafuser.training.session import Session
from megafuser.training.stop import Stop, leave
from megafuser.training.validation import evaluate_rows
from megafuser.watching.token_samples import Seen

logger = logging.getLogger(__name__)


def step_batches(config: RunConfig, stage: str, train: Sequence[TokenizedDomain]) -> StepBatches:
    """This rank's rows of a stage's steps; needs megatron-core's parallel state."""
    return StepBatches(
        train,
        stage_sampler(config, stage, train),
        config.stage(stage).row_width or config.data.sequence_length,
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_data_parallel_rank(),
        row_multiple(config.parallel),
        width_multiple(config.parallel, config.precision),
    )


class Loop:
    """Everything that one stage's steps share.

    Attributes:
        saver_type: what saves its checkpoints.
        watch: what shows its numbers; there while it runs.
    """

    saver_type: type[CheckpointSaver] = CheckpointSaver
    watch: Watch

    def __init__(
        self,
        session: Session,
        engine: Engine,
        stage: str,
        settings: StageConfig,
        *,
        done: int,
        train: Sequence[TokenizedDomain],
        valid: Sequence[TokenizedDomain],
        history: History,
        stop: Stop,
        heartbeat: Heartbeat,
    ) -> None:
        """Ties the engine to its data; no file is opened yet.

        Args:
            session: what the run was set up from.
            engine: the stage's updates.
            stage: `warmup` or `joint`.
            settings: its steps and samples.
            done: of the steps, those that are done already.
            train: tokenized training data, by domain.
            valid: tokenized validation data, by domain.
            history: of those that are done.
            stop: whether the stage shall end before its last step.
            heartbeat: tells the other ranks that this one gets on.
        """
        self.history, self.stop, self.heartbeat = history, stop, heartbeat
        self.session, self.engine, self.stage, self.settings = session, engine, stage, settings
        self.config = session.config
        self._nonfinite = NonfiniteSteps(stage, self.config.faults.skipped_steps)
        self.run_directory = RunDirectory(Path(self.config.run_dir))
        self.saver = self.saver_type(
            self.run_directory, stage, engine, session, train=train, valid=valid, on_outcome=heartbeat.mark
        )
        self.cards = [source.card for source in session.sources]
        self.batches = step_batches(self.config, stage, train)
        self.valid_rows = validation_rows(
            valid,
            self.config.evaluation.samples_per_domain,
            self.batches.width,
            self.batches.ranks,
            self.batches.rank,
            self.batches.row_multiple,
            self.batches.width_multiple,
        )
        self.done = done
        self._valid = valid
        self._valid_samples = sum(validation_sizes(valid, self.config.evaluation.samples_per_domain))

    def run(self) -> Path:
        """Runs the steps that are left; returns the last checkpoint's directory."""
        done, steps = self.done, self.settings.steps
        if is_rank_zero():
            for told in repetitions(self.batches.sampler, steps, self.session.domain_names):
                logger.warning("%s", told)
        checkpoint = self.run_directory.step_directory(self.stage, done)
        # not before the heartbeat beats: where rank 0 cannot open the files, the others notice that it is lost
        with closing(Watch(self.session, self.stage, steps=steps, done=done, valid=self._valid)) as self.watch:
            self._leave_if_asked(done, checkpoint if done else None)
            for step in range(done + 1, steps + 1):
                if (last := self._step(step)) is not None:
                    return last
        return checkpoint

    def _step(self, step: int) -> Path | None:
        """One step with all that follows it; returns the last checkpoint where the stage ends with it."""
        watch, steps = self.watch, self.settings.steps
        watch.profiler.before(step)
        line = self._train(step)
        watch.profiler.after(step)
        self.heartbeat.mark(step)
        if step % self.config.evaluation.interval == 0 or step == steps:
            valid, seen = self._validate(step)
            self._tell_of_other_samples(valid["samples"])
            self.history = self.history.validated(step, valid["loss"], valid["samples"])
            watch.write(line, valid, seen)
            self.heartbeat.mark(step)
        else:
            watch.write(line)
        self._nonfinite.give_up_if_too_many(step)
        self.saver.poll()
        if step == steps or self._has_run_out():
            watch.flush()
            return self.saver.finish(step, self.history)
        if (reason := self.stop.after_step(self.saver.exit_time)) is not None:
            watch.flush()
            raise leave(reason, self.stage, step, self.saver.finish(step, self.history))
        if step % self.config.checkpoint.interval == 0:
            watch.flush()
            self.saver.start(step, self.history)
        return None

    def _leave_if_asked(self, done: int, saved: Path | None) -> None:
        if (reason := self.stop.agreed()) is not None:
            raise leave(reason, self.stage, done, saved)

    def _train(self, step: int) -> Line:
        started = time.perf_counter()
        rows = [row.to(self.engine.device) for row in self.batches.rows(step)]
        result = self.engine.step(rows)
        self._nonfinite.after(step, result, self.engine, rows, self.batches.domains)
        if self.config.debug.gate_replicas:
            self.engine.gather_parameters()
            check_gate_replicas(self.engine.model.gate, step)
        seconds = time.perf_counter() - started
        counts = self.batches.counts(step)
        self.history = self.history.after(counts, skipped=result.skipped)
        cost = StepCost(
            seconds,
            self.saver.take_stall(),
            self._tflops_per_device(rows, seconds),
            self.watch.peak,
            peak_memory_gib(self.engine.device),
        )
        return training_line(
            self.stage,
            step,
            result,
            counts,
            cost,
            packing_efficiency=self.batches.packing_efficiency(step),
            domains=self.session.domain_names,
            specialists=self.session.specialist_names,
        )

    def _tflops_per_device(self, rows: Sequence[PackedRow], seconds: float) -> float:
        """Rank 0's rows stand for all: rows are dealt evenly."""
        model_parallel = self.config.parallel.tensor * self.config.parallel.pipeline
        return step_flops(self.cards, rows, backward=self.engine.model.trained) / model_parallel / seconds / 1e12

    def _has_run_out(self) -> bool:
        """Whether the stage is to end early; losses of other samples than are looked at now do not count."""
        record = self.history.validation
        return record.compares_with(self._valid_samples) and record.has_run_out(self.config.evaluation.patience)

    def _tell_of_other_samples(self, samples: int) -> None:
        record = self.history.validation
        if not record.compares_with(samples) and is_rank_zero():
            logger.warning(
                "validations look at %d samples from now on, not at %d: what is the best so far, and how long ago, is "
                "counted anew",
                *(samples, record.samples),
            )

    def _validate(self, step: int) -> tuple[Line, Seen | None]:
        self.engine.gather_parameters()
        collector = self.watch.collector()

        def values(output: MixtureLoss, row: PackedRow) -> torch.Tensor:
            if collector is not None:
                collector.take(output, row)
            return training_values(output)

        sums = evaluate_rows(
            self.engine.chunks,
            [row.to(self.engine.device) for row in self.valid_rows],
            values,
            domains=len(self.session.domain_names),
            columns=training_columns(len(self.session.sources)),
        )
        # ranks that disagreed by a bit could disagree about the end of the stage
        torch.distributed.broadcast(sums, src=0)
        names = (self.session.domain_names, self.session.specialist_names)
        line = validation_line(self.stage, step, self._valid_samples, sums, *names)
        return line, self.watch.gather(collector)
