"""The distributed optimizer's states, brought together on one data-parallel rank of each place in the layout.

What becomes of them in a checkpoint is `training.optimizer_state`.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_KEYS = ("param", "exp_avg", "exp_avg_sq")


def gather_states(
    inner: DistributedOptimizer, *, empty_data: bool = False, return_on_all_ranks: bool = False, **_: Any
) -> dict[Any, Any] | None:
    """Stands in for `DistributedOptimizer.get_parameter_state_dp_zero`, with its arguments.

    It differs in two things. Megatron-core 0.16 takes the padding at the ends of buckets out, and its reader then looks
    for each parameter at its position with the padding: with more than one bucket (a tied embedding that stands on two
    stages has its own) all parameters after the first padding would be saved as their neighbours. And it needs two to
    three times the memory of what it gathers; this needs that, and one rank's share of a bucket.

    Args:
        inner: the optimizer.
        empty_data: make room only, to be filled by loading.
        return_on_all_ranks: make it on every data-parallel rank.

    Returns:
        Buffer → dtype → state → [elements of the buffer] float32 in host memory; None on data-parallel ranks above 0,
        unless they are asked to have it.
    """
    group = inner.data_parallel_group_gloo
    is_first = group.rank() == 0
    state: dict[Any, Any] = {}
    for index, ranges in enumerate(inner.gbuf_ranges):
        buffer = inner.buffers[index]
        ((dtype, maps),) = ranges.items()
        has_whole = is_first or return_on_all_ranks
        # Positions between parameters and after them are never read; clearing them would take as long as the copy.
        whole = {key: torch.empty(buffer.numel, dtype=torch.float32) for key in _KEYS} if has_whole else None
        state[index] = {dtype: whole}
        if empty_data:
            continue
        for bucket, places in zip(buffer.buckets, maps, strict=True):
            share = bucket.grad_data.numel() // group.size()
            rooms = {
                key: [values[bucket.offset + rank * share :][:share] for rank in range(group.size())]
                for key, values in (whole or {}).items()
                if is_first
            }
            if group.size() == 1:
                _fill(inner, places["param_map"], {key: room[0] for key, room in rooms.items()})
                continue
            own = {key: torch.empty(share, dtype=torch.float32) for key in _KEYS}
            _fill(inner, places["param_map"], own)
            for key in _KEYS:
                dist.gather(own[key], rooms.get(key), dst=dist.get_process_group_ranks(group)[0], group=group)
    return state if is_first or return_on_all_ranks else None


def _fill(inner: DistributedOptimizer, places: dict[Any, Any], room: dict[str, torch.Tensor]) -> None:
    """Copies this rank's states of a bucket to where its share of the bucket has them."""
    for parameter, ranges in places.items():
        tensors = inner._get_main_param_and_optimizer_states(parameter)
        local = ranges["gbuf_local"]
        for key, values in room.items():
            values[local.start : local.end].copy_(tensors[key].detach())
