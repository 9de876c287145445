"""The norms of the gradients of the gate and of each specialist.

The global norm is megatron-core's. These are parts of it: it is the root of the sum of their squares.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from megafuser.config.parameter_groups import GATE
from megafuser.runtime.norms import sum_of_squares
from megafuser.training.parameter_groups import group_of


@torch.no_grad()
def gradient_norms(chunks: Sequence[DistributedDataParallel]) -> dict[str, float]:
    """The norm of the gradient of the gate and of each specialist, before clipping; every rank calls it.

    It reads the reduced and divided gradients where they are. A parameter counts once, as in the global norm: a copy
    on another tensor-parallel rank or of a tied embedding does not. With a distributed optimizer each data-parallel
    rank has the final values of its own part of a buffer only, and adds that part.

    Args:
        chunks: this rank's, in order, with final gradients.

    Returns:
        `gate` (the first) and the specialists that train, in order; the same on every rank.
    """
    names = chunks[0].module.names
    groups = [*names, GATE]
    parts: dict[str, list[torch.Tensor]] = {group: [] for group in groups}
    trained: set[str] = set()
    for chunk in chunks:
        for name, parameter in chunk.module.named_parameters():
            if not (parameter.requires_grad and param_is_not_shared(parameter)):
                continue
            group = group_of(name, names)
            trained.add(group)
            if param_is_not_tensor_parallel_duplicate(parameter):
                parts[group].extend(_own_gradient(chunk, parameter))
    device = next(chunks[0].module.parameters()).device
    # of each group, whether it trains and the sum of squares
    sums = torch.zeros(2, len(groups), dtype=torch.float64, device=device)
    for index, group in enumerate(groups):
        sums[0, index] = float(group in trained)
        if parts[group]:
            sums[1, index] = sum_of_squares(parts[group])
    if chunks[0].ddp_config.use_distributed_optimizer:
        dist.all_reduce(sums)
    else:
        dist.all_reduce(sums, group=parallel_state.get_model_parallel_group())
    is_trained, squares = sums.tolist()
    order = [len(groups) - 1, *range(len(names))]
    return {groups[index]: math.sqrt(squares[index]) for index in order if is_trained[index]}


def _own_gradient(chunk: DistributedDataParallel, parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """What this rank has of a parameter's final gradient: all, or the piece that lies in its part of the buffer."""
    if not chunk.ddp_config.use_distributed_optimizer:
        return [parameter.main_grad]  # type: ignore[attr-defined]
    (buffer,) = (buffer for buffer in chunk.buffers if parameter in buffer.param_index_map)
    start, end, index = buffer.param_index_map[parameter]
    bucket = buffer.buckets[index]
    length = bucket.grad_data.numel() // buffer.data_parallel_world_size
    first = bucket.offset + length * dist.get_rank(buffer.data_parallel_group)
    start, end = max(start, first), min(end, first + length)
    return [bucket.grad_data[start - bucket.offset : end - bucket.offset]] if start < end else []
