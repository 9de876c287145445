"""One pass of rows through the pipeline by megatron-core's schedules, and the sums that come out of its last stage.

It updates nothing: `training.engine` does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func

from megafuser.config.compute import ParallelConfig
from megafuser.fusion.mixture_loss import MixtureLoss
from megafuser.fusion.model import FusedModel
from megafuser.fusion.row import PackedRow

Model: TypeAlias = FusedModel | DistributedDataParallel
ForwardStep: TypeAlias = Callable[[Iterator[PackedRow], Model], tuple[torch.Tensor | MixtureLoss, Callable[..., Any]]]


def run_pipeline(
    chunks: Sequence[Model],
    rows: Sequence[PackedRow],
    forward_step: ForwardStep,
    *,
    forward_only: bool,
    columns: tuple[int, int],
) -> torch.Tensor:
    """Runs this rank's rows through the pipeline, one micro-batch each.

    Args:
        chunks: this rank's pieces in order, wrapped for gradients or not.
        rows: at least one; as many on every data-parallel rank; with several chunks a multiple of the pipeline size.
        forward_step: megatron-core's forward step function.
        forward_only: whether to skip the schedule's backward; the pieces are in evaluation mode meanwhile.
        columns: shape (domains, values) of the sums that the last stage returns for each row.

    Returns:
        [domains, values] float64: the sums over all rows of all data-parallel ranks, the same on every rank.
    """
    device = rows[0].targets.device
    with _evaluating(chunks) if forward_only else nullcontext():
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(rows) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(rows),
            seq_length=rows[0].width,
            micro_batch_size=1,
            forward_only=forward_only,
        )
    total = torch.zeros(columns, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        total = torch.stack(outputs).sum(dim=0)
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    broadcast_from_last_stage(total)
    return total


@contextmanager
def _evaluating(chunks: Sequence[Model]) -> Iterator[None]:
    """Puts pieces into evaluation mode for a pass that no backward follows.

    In training mode `memory.recompute` would prepare for one. Transformer Engine keeps the scales of `fp8: delayed` for
    each layer that is to be computed again, first in, first out: the next step would get those of this pass.
    """
    before = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, mode in zip(chunks, before, strict=True):
            chunk.train(mode)


def row_multiple(parallel: ParallelConfig) -> int:
    """What the number of a rank's rows must be a multiple of: interleaved schedules take them stage by stage."""
    return parallel.pipeline if parallel.virtual_pipeline > 1 else 1


def broadcast_from_last_stage(tensor: torch.Tensor) -> None:
    """Gives every pipeline stage the last one's values, in place."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            tensor,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )


def sum_by_domain(values: torch.Tensor, row: PackedRow, domains: int) -> torch.Tensor:
    """Adds up per-token values [T, C] by the domain of each token: [domains, C] float64."""
    sums = torch.zeros(domains, values.shape[1], dtype=torch.float64, device=values.device)
    return sums.index_add_(0, row.domains, values.double())
