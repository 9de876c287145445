"""The optimizer's states in checkpoints: as megatron-core shards them, and filled from what was loaded.

Which of two forms a checkpoint has is `training.optimizer_state_layout`.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megafuser.training.exact_states import keeps_remainders
from megafuser.training.optimizer_state_gather import gather_states

# The states are saved by parameter, so that they load at another tensor and pipeline size too; from one data-parallel
# rank, or every one would take memory for the states of all.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
}
BY_RANK = "dp_reshardable"


def parts_of(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Megatron-core chains one optimizer for dense parameters and one for experts, where there are any."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Gives Adam its moments, and PyTorch's its step counts, before they are saved, or filled from a checkpoint.

    Adam itself makes them with its first update; there is none yet on resuming, and where every step was skipped.
    Megatron-core's distributed optimizer reads PyTorch's step count while it describes what it wants loaded.
    """
    for inner in parts_of(optimizer):
        adam = inner.optimizer
        if inner.config.use_precision_aware_optimizer and not isinstance(adam, HybridDeviceOptimizer):
            for parameter in (each for group in adam.param_groups for each in group["params"]):
                if not adam.state[parameter]:
                    adam.initialize_state(parameter, keeps_remainders(adam, parameter))
        elif not isinstance(adam, HybridDeviceOptimizer):
            inner.init_state_fn(adam, inner.config)
        for state in _torch_states(inner):
            state.setdefault("step", torch.tensor(0.0))


def set_step_count(optimizer: MegatronOptimizer, state: dict[str, Any], count: int) -> None:
    """Puts Adam's step count where a plain optimizer's ranks find it when they load.

    Megatron-core saves what is common to all ranks from rank 0. PyTorch's Adam counts for each parameter, and the fused
    ones for each group that has any: where a stage of rank 0 has none, as of the gate alone, its count is missing, and
    the bias correction of the others would start over on resuming. A distributed optimizer sees to this itself.

    Args:
        optimizer: that gave the state.
        state: what `sharded_state` gave.
        count: updates so far.
    """
    (inner,) = parts_of(optimizer)
    if isinstance(inner, DistributedOptimizer):
        return
    adam = state.get("optimizer", state)
    if isinstance(inner.optimizer, torch.optim.Adam):
        adam["state"]["common_step"] = torch.tensor(float(count))
        return
    for group in adam["param_groups"]:
        group["step"] = count


def sharded_state(
    optimizer: MegatronOptimizer, model: dict[str, Any], *, is_loading: bool, reshardable: bool = True
) -> dict[str, Any]:
    """The optimizer's sharded state, to be saved or to be filled.

    Args:
        optimizer: as built.
        model: the model's sharded state with the same parameters.
        is_loading: whether it is to be filled.
        reshardable: by parameter, so that it loads at another tensor and pipeline size too; for this a distributed
            optimizer's states are gathered in host memory. Otherwise as its ranks hold them, for another data-parallel
            size only; see `megafuser.training.optimizer_state_layout`.
    """
    (inner,) = parts_of(optimizer)
    if not isinstance(inner, DistributedOptimizer):
        own: dict[str, Any] = optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_METADATA)
        return own
    if not reshardable:
        return _sharded_by_rank(inner, model, is_loading=is_loading)
    return _sharded_by_parameter(inner, model, is_loading=is_loading)


def _sharded_by_parameter(inner: DistributedOptimizer, model: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """Megatron-core's `fully_reshardable`, without the run of the garbage collector that it ends with.

    That takes as long as copying a gigabyte, while training stands still.
    """
    if is_loading:
        inner.load_state_dict(inner.state_dict())
    state = inner.state_dict() | {"param_state_sharding_type": _METADATA["distrib_optim_sharding_type"]}
    inner.get_parameter_state_dp_zero = partial(gather_states, inner)
    try:
        gathered = inner.sharded_param_state_fully_reshardable(model, is_loading, _METADATA)
    finally:
        del inner.get_parameter_state_dp_zero
    # the first data-parallel rank has it
    whole: dict[str, Any] = state if gathered is None else state | {"param_state": gathered}
    return whole


def _sharded_by_rank(inner: DistributedOptimizer, model: dict[str, Any], *, is_loading: bool) -> dict[str, Any]:
    """Megatron-core's `dp_reshardable`, without the pickled objects that it would put between the tensors.

    They repeat what is common to all ranks, and the sizes of buckets, which `refuse_other_layout` sees to.
    """
    if is_loading:
        inner.load_state_dict(inner.state_dict())
    state = inner.state_dict()
    shards = inner.sharded_param_state_dp_reshardable(model, is_loading)
    del shards["per_bucket_numel"], shards["per_bucket_numel_unpadded"]
    for buffer in shards.values():
        for part in (part for buckets in buffer.values() for bucket in buckets for part in bucket):
            if part["padding"].unwrap():
                for tensor in part.values():
                    if isinstance(tensor, ShardedTensor):
                        tensor.data.zero_()  # it would be whatever memory held
    by_rank: dict[str, Any] = state | {"param_state": shards, "param_state_sharding_type": BY_RANK}
    return by_rank


def fills_all_ranks(optimizer: MegatronOptimizer) -> bool:
    """Whether every data-parallel rank has a part of every bucket; every rank calls it, and all are told the same.

    Megatron-core's `dp_reshardable` cannot describe a rank that holds padding only, as of a tiny bucket.
    """
    (inner,) = parts_of(optimizer)
    maps = [places for ranges in inner.gbuf_ranges for buckets in ranges.values() for places in buckets]
    device = torch.cuda.current_device()
    filled = torch.tensor(all(places["param_map"] for places in maps), dtype=torch.int, device=device)
    dist.all_reduce(filled, op=dist.ReduceOp.MIN)
    return bool(filled.item())


def private_storages(optimizer: MegatronOptimizer, state: dict[str, Any]) -> set[int]:
    """Addresses of storages in `sharded_state` that were made for it, so that no update reaches them.

    Args:
        optimizer: that gave the state.
        state: what `sharded_state` gave, to be saved.
    """
    (inner,) = parts_of(optimizer)
    if not isinstance(inner, DistributedOptimizer) or state["param_state_sharding_type"] == BY_RANK:
        return set()
    gathered = nested_values(state.get("param_state") or {})
    return {part.data.untyped_storage().data_ptr() for part in gathered if hasattr(part, "data")}


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Takes what loading `sharded_state` gave.

    Megatron-core 0.16 misses PyTorch's Adam in two places: the distributed optimizer's moments do not load while the
    states have step counts, and it restores one tensor as the step count of all parameters, which Adam would then
    increment once per parameter and so silently spoil the bias correction. So the counts are set aside while the
    moments are loaded, and every parameter gets its own.

    Args:
        optimizer: with its states allocated.
        state: the loaded state; taken apart here.
    """
    (inner,) = parts_of(optimizer)
    moments = state.pop("param_state", None)
    by_rank = state.pop("param_state_sharding_type", None) == BY_RANK
    _adopt(inner.optimizer, state.get("optimizer", state))
    inner.load_state_dict(state)
    counts = [(entry, entry.pop("step")) for entry in _torch_states(inner)]
    if moments is not None and by_rank:
        with torch.no_grad():
            inner.load_parameter_state_from_dp_reshardable(moments)
        if isinstance(inner.optimizer, HybridDeviceOptimizer):
            inner.optimizer._sync_hdo_state_to_sub_optimizers()
    elif moments is not None:
        inner.load_parameter_state_from_fully_reshardable(moments)
    for entry, count in counts:
        entry["step"] = count.clone()
    if isinstance(inner.optimizer, HybridDeviceOptimizer):
        # its parts have it now, and count on; what stands here they would be given again before each step
        for group in inner.optimizer.param_groups:
            group.pop("step", None)


def _adopt(adam: Any, state: dict[str, Any]) -> None:
    """Makes a loaded state this Adam's own; another kind may have saved it, as on a CPU for GPUs.

    They count steps in different places, and their groups have settings that the others do not know.
    """
    common = state.get("state", {}).pop("common_step", None)
    counts = [group["step"] for group in state["param_groups"] if "step" in group]
    count = int(common if common is not None else max(counts, default=0))  # all are the same
    counts_by_parameter = isinstance(adam, torch.optim.Adam) and "state" in state
    if counts_by_parameter:
        state["state"]["common_step"] = torch.tensor(float(count))
    # those of every group, not what single groups have besides, such as a learning rate of their own
    own = adam.param_groups[0]
    names = () if isinstance(adam, HybridDeviceOptimizer) else adam.defaults.keys() & own.keys()
    for group in state["param_groups"]:
        for name in names:
            group.setdefault(name, own[name])
        group.pop("step", None)
        if not counts_by_parameter:
            group["step"] = count


def _torch_states(inner: MegatronOptimizer) -> list[dict[str, Any]]:
    """The states of the parameters, where PyTorch's own Adam is in use."""
    return list(inner.optimizer.state.values()) if isinstance(inner.optimizer, torch.optim.Adam) else []
