"""Steps without a finite loss or gradient: where it is, and when to give up.

Whether a step is skipped is decided in `training.engine`.
"""

import logging
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import TrainingFailedError
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.row import PackedRow
from megafuser.runtime.distributed import is_rank_zero
from megafuser.training.engine import Engine
from megafuser.training.metrics import StepResult, training_columns, training_values
from megafuser.training.validation import evaluate_rows

logger = logging.getLogger(__name__)

_NAMED = 5  # samples; where weights are spoilt, all of them are


class NonfiniteSteps:
    """Counts a stage's steps in a row that were skipped, and knows where the last was not finite."""

    def __init__(self, stage: str, most: int) -> None:
        """Begins to count.

        Args:
            stage: `warmup` or `joint`.
            most: so many skipped steps in a row end the stage.
        """
        self._stage, self._most = stage, most
        self._in_a_row, self._where = 0, ""

    def after(
        self,
        step: int,
        result: StepResult,
        engine: Engine,
        rows: Sequence[PackedRow],
        domains: Sequence[TokenizedDomain],
    ) -> None:
        """Counts a step, and tells of one that was skipped; every rank calls it.

        Args:
            step: which, from 1.
            result: of the step.
            engine: of the stage, after the step.
            rows: this rank's of the step.
            domains: tokenized training data, by domain.
        """
        if not result.skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._where = where_not_finite(engine, rows, result, domains)
        if is_rank_zero():
            logger.warning("%s step %d is skipped: %s is not finite", self._stage, step, self._where)

    def give_up_if_too_many(self, step: int) -> None:
        """Ends the stage when too many steps in a row, up to this one, had no finite loss or gradient.

        Raises:
            TrainingFailedError: says where.
        """
        if self._in_a_row >= self._most:
            raise TrainingFailedError(
                f"{self._stage} step {step}: {self._most} steps in a row were skipped, the last since {self._where} is "
                "not finite; look at these samples, and run the same command again to go on from the last checkpoint, "
                "or lower lr in another run_dir"
            )


def where_not_finite(
    engine: Engine, rows: Sequence[PackedRow], result: StepResult, domains: Sequence[TokenizedDomain]
) -> str:
    """Says which ranks, domains and samples have no finite loss, or which parts of the model no finite gradient.

    Every rank calls it. The rows are run once more, forward only, with the weights of the skipped step.

    Args:
        engine: of the stage, after the step.
        rows: this rank's of the step.
        result: of the step.
        domains: tokenized training data, by domain.

    Returns:
        A part of a sentence, the same on every rank.
    """
    own: list[tuple[int, int]] = []

    def values(output: MixtureLoss, row: PackedRow) -> torch.Tensor:
        spoilt = row.samples[~output.fused.isfinite()].unique().tolist()
        own.extend((int(row.references[sample][0]), int(row.references[sample][1])) for sample in spoilt)
        return training_values(output)

    engine.gather_parameters()
    columns = training_columns(len(engine.model.names))
    evaluate_rows(engine.chunks, rows, values, domains=len(domains), columns=columns)
    found: list[list[tuple[int, int]]] = [[] for _ in range(dist.get_world_size())]
    # Ranks of one tensor-parallel group see the same rows.
    says = parallel_state.get_tensor_model_parallel_rank() == 0
    dist.all_gather_object(found, own if says else [])
    parts = []
    for rank, samples in enumerate(found):
        by_domain: dict[int, list[int]] = {}
        for domain, sample in samples:
            by_domain.setdefault(domain, []).append(sample)
        for domain, numbers in sorted(by_domain.items()):
            names = ", ".join(domains[domain].sample_id(number) for number in numbers[:_NAMED])
            more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
            parts.append(f"rank {rank}, domain {domains[domain].name}, {names}{more}")
    if parts:
        return f"the loss of {'; '.join(parts)}"
    groups = [name for name, norm in result.group_norms.items() if not math.isfinite(norm)]
    return f"the gradient of {', '.join(groups)}" if groups else "the loss, but not when it was computed again"
