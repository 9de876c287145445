"""One optimizer step of either stage. Both give the same sums; they differ in what carries gradients, and how.

Warm-up needs no backward through any specialist: the pipeline runs forward only, without keeping activations, and the
gate's gradient is taken in the last stage. Joint training is megatron-core's ordinary forward and backward. The loop
over the steps is `training.loop`; the optimizer is set up in `training.optimizer`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megafuser.config.compute import ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig, StageConfig
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow
from megafuser.training.gradient_norms import gradient_norms
from megafuser.training.gradients import finalize_gradients
from megafuser.training.load_balance import linear_terms, load_balance, mean_gate_weights
from megafuser.training.metrics import StepResult, training_columns, training_values
from megafuser.training.optimizer import build_optimizer, wrap_for_gradients
from megafuser.training.parameter_groups import LearningRates
from megafuser.training.pipeline import Model, run_pipeline, sum_by_domain


class Engine:
    """A stage's model, optimizer and schedule; `step` is one update.

    Attributes:
        skipped_steps: steps so far without an update, since loss or gradients were not finite.
        joint: whether this is joint training, whose checkpoints have all weights.
        has_backward: whether any specialist trains. Where none does, be it in warm-up or because all are frozen, the
            pipeline runs forward only.
    """

    def __init__(
        self,
        chunks: Sequence[FusedModel],
        settings: OptimizerConfig,
        stage: StageConfig,
        *,
        domains: int,
        joint: bool,
        parallel: ParallelConfig | None = None,
        bucket_size: int | None = None,
    ) -> None:
        """Sets the optimizer up over what the stage trains.

        Args:
            chunks: this rank's, weights loaded. In warm-up, the specialists lose their gradients here.
            settings: the optimizer's settings. States of the gate alone are never distributed: stages without trainable
                parameters could not checkpoint them.
            stage: steps and learning rates, and the specialists that joint training leaves as they are.
            domains: number of domains.
            joint: whether everything trains that is not frozen, or the gate alone.
            parallel: which of the joint stage's reductions and gatherings overlap with computing; none by default.
                The gate alone is too small to gain from it.
            bucket_size: of the gradients' buffers, as in `wrap_for_gradients`.
        """
        frozen = stage.frozen if isinstance(stage, JointConfig) else ()
        for chunk in chunks:
            chunk.set_trained([joint and name not in frozen for name in chunk.names])
        self.chunks = tuple(chunks)
        self.joint = joint
        self.has_backward = any(chunks[0].trained)
        self.device = next(chunks[0].parameters()).device
        self.domains = domains
        self.balance = stage.load_balance
        self.skipped_steps = 0
        self._means: torch.Tensor | None = None
        self.ddp: list[DistributedDataParallel] = wrap_for_gradients(
            chunks,
            distributed_optimizer=self.has_backward and settings.distributed,
            parallel=parallel if self.has_backward and parallel is not None else ParallelConfig(),
            bucket_size=bucket_size,
        )
        self.optimizer: MegatronOptimizer
        self.scheduler: OptimizerParamScheduler
        self.optimizer, self.scheduler = build_optimizer(self.ddp, settings, stage)
        self._learning_rates = LearningRates(self.ddp, self.optimizer)
        # what the schedules read, they read from the first chunk
        chunks[0].config.finalize_model_grads_func = finalize_gradients if self.has_backward else None
        chunks[0].config.grad_scale_func = None

    @property
    def model(self) -> FusedModel:
        """The last of this rank's chunks: it has the gate, if any has. With one chunk to a rank, the only one."""
        return self.chunks[-1]

    def gather_parameters(self) -> None:
        """Brings this rank's weights up to date where updates are gathered as the next forward needs them."""
        for ddp in self.ddp:
            if ddp.ddp_config.overlap_param_gather:
                ddp.start_param_sync(force_sync=True)

    def step(self, rows: Sequence[PackedRow]) -> StepResult:
        """One update from this rank's rows of the global step."""
        sums = self.compute_gradients(rows)
        # the stage's own, whatever groups the parts of the model have
        lr = self.scheduler.get_lr({})
        group_rates, group_norms = self._learning_rates.now(), gradient_norms(self.ddp)
        balance = load_balance(self._means) if self._means is not None else None
        # Before the update: afterwards the weights would be spoilt. The norms are of all ranks' gradients, and equal.
        skipped = not (all(map(math.isfinite, group_norms.values())) and bool(sums.isfinite().all()))
        grad_norm = math.nan if skipped else float(self.optimizer.step()[1])
        self.skipped_steps += skipped
        # The schedule goes by steps, skipped or not.
        self.scheduler.step(increment=1)
        return StepResult(sums, grad_norm, float(lr), skipped, group_norms, group_rates, load_balance=balance)

    def compute_gradients(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """Leaves the mean loss's gradient in every trainable parameter's `main_grad`; returns `StepResult.sums`."""
        if self.balance:
            self.gather_parameters()
            self._means = mean_gate_weights(self.chunks, rows)
        for ddp in self.ddp:
            ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        columns = (self.domains, training_columns(len(self.model.names)))
        if self.has_backward:
            return run_pipeline(self.ddp, rows, self._joint_step, forward_only=False, columns=columns)
        with torch.no_grad():
            sums = run_pipeline(self.ddp, rows, self._warmup_step, forward_only=True, columns=columns)
        finalize_gradients(self.ddp, self._own_tokens(rows))
        return sums

    def _joint_step(
        self, rows: Iterator[PackedRow], model: Model
    ) -> tuple[torch.Tensor | MixtureLoss, Callable[..., Any]]:
        row = next(rows)
        return model(row), partial(self._loss, row)

    def _warmup_step(
        self, rows: Iterator[PackedRow], model: Model
    ) -> tuple[torch.Tensor | MixtureLoss, Callable[..., Any]]:
        row = next(rows)
        chunk: FusedModel = model.module if isinstance(model, DistributedDataParallel) else model
        if not chunk.post_process:
            return chunk(row), partial(self._loss, row)
        streams = chunk.streams(row)
        with torch.enable_grad():
            output = chunk.loss(streams, row, with_diagnostics=False)
            self._objective(output).backward()
        return output, partial(self._loss, row)

    def _loss(self, row: PackedRow, output: MixtureLoss) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What megatron-core wants of a micro-batch: the summed loss, its number of tokens, and what to collect."""
        tokens = torch.tensor(row.targets.numel(), dtype=torch.int, device=row.targets.device)
        return self._objective(output), tokens, sum_by_domain(training_values(output), row, self.domains)

    def _objective(self, output: MixtureLoss) -> torch.Tensor:
        """What is differentiated, summed over the row's tokens."""
        if self._means is None:
            return output.fused.sum()
        assert output.attached_weights is not None
        return output.fused.sum() + (output.attached_weights * linear_terms(self._means, self.balance)).sum()

    def _own_tokens(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        tokens = sum(row.targets.numel() for row in rows) if parallel_state.is_pipeline_last_stage() else 0
        return torch.tensor(tokens, dtype=torch.int, device=rows[0].targets.device)
