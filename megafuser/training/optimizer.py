"""Megatron-core's DDP, AdamW and cosine schedule, set up from the configuration."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megafuser.config.compute import OptimizerConfig, ParallelConfig
from megafuser.config.schema import JointConfig, StageConfig
from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel
from megafuser.training.optimizer_gather import gather_states
from megafuser.training.overlap import set_overlap
from megafuser.training.parameter_groups import group_overrides

# of Adam's moments; megatron-core takes FP8 values as bytes
_MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}
# The states are saved by parameter, so that they load at another tensor and pipeline size too; from one data-parallel
# rank, or every one would take memory for the states of all.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
}
BY_RANK = "dp_reshardable"


def wrap_for_gradients(
    chunks: Sequence[FusedModel], *, distributed_optimizer: bool, parallel: ParallelConfig
) -> list[DistributedDataParallel]:
    """Gives the trainable parameters gradient buffers in float32 that are reduced over data parallelism.

    Args:
        chunks: this rank's, in order.
        distributed_optimizer: whether each data-parallel rank keeps, and updates, its share of the parameters only.
        parallel: which reductions and gatherings overlap with computing.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and distributed_optimizer,
    )
    # Buckets in the first chunk only, as in megatron-core's own training: while the others' gradients are reduced, the
    # chunks before them still compute.
    wrapped = [
        DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    set_overlap(wrapped)
    return wrapped


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], settings: OptimizerConfig, stage: StageConfig
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW and its cosine schedule over the stage's steps.

    Biases and norms are not decayed (megatron-core's convention). Gate and specialists are groups of their own. Whether
    the optimizer's states are distributed is the model's wrapping to say.

    Args:
        chunks: wrapped, in order; only parameters that require a gradient are optimized.
        settings: betas, weight decay, clipping; the gate's learning rate where specialists train beside it.
        stage: learning rates and steps, and those of single parts of the model.
    """
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=stage.lr,
        min_lr=stage.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        # without clipping the norm is still wanted for the metrics
        clip_grad=settings.clip_grad or float("inf"),
        bf16=chunks[0].config.params_dtype is torch.bfloat16,
        params_dtype=chunks[0].config.params_dtype,
        use_distributed_optimizer=chunks[0].ddp_config.use_distributed_optimizer,
        overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
        **_memory_settings(chunks[0], settings),
    )
    groups = group_overrides(config, chunks[0].module.names, settings, stage, joint=_is_joint(chunks, stage))
    optimizer = get_megatron_optimizer(config, list(chunks), config_overrides=groups)
    for inner in _parts(optimizer):
        if isinstance(inner.optimizer, torch.optim.Adam):
            for group in inner.optimizer.param_groups:
                group["fused"] = True  # one pass over parameters and states instead of ten
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=stage.lr,
        min_lr=stage.min_lr,
        lr_warmup_steps=stage.lr_warmup_steps,
        lr_decay_steps=max(stage.steps, stage.lr_warmup_steps + 1),
        lr_decay_style="cosine",
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
    return optimizer, scheduler


def _is_joint(chunks: Sequence[DistributedDataParallel], stage: StageConfig) -> bool:
    """Joint training, where all specialists may be frozen."""
    if isinstance(stage, JointConfig):
        return True
    return any(parameter.requires_grad for chunk in chunks for parameter in chunk.module.specialists.parameters())


def _memory_settings(chunk: DistributedDataParallel, settings: OptimizerConfig) -> dict[str, Any]:
    """What a distributed optimizer's states are, and where they live; see `check_optimizer`.

    Megatron-core's offloading reuses the code path of precision-aware states, with states in float32.
    """
    if not chunk.ddp_config.use_distributed_optimizer:
        return {}
    offload = settings.offload_fraction > 0.0
    return {
        "fp8_recipe": chunk.config.fp8_recipe if chunk.config.fp8 else None,
        "use_precision_aware_optimizer": settings.precision_aware or offload,
        "exp_avg_dtype": _MOMENTS[settings.moments_dtype],
        "exp_avg_sq_dtype": _MOMENTS[settings.moments_dtype],
        "optimizer_cpu_offload": offload,
        "optimizer_offload_fraction": settings.offload_fraction,
    }


def check_optimizer(settings: OptimizerConfig, device: torch.device) -> None:
    """Refuses what megatron-core's optimizer cannot do here, before anything is loaded.

    Args:
        settings: the configuration's.
        device: this rank's.

    Raises:
        UserError: says what is missing.
    """
    if settings.precision_aware and (device.type != "cuda" or find_spec("transformer_engine") is None):
        lacks = f"device is {device.type}" if device.type != "cuda" else "it is not installed"
        raise UserError(
            f"optimizer.precision_aware: needs the fused Adam of Transformer Engine on CUDA, but {lacks}; "
            "set it to false, and moments_dtype to fp32"
        )
    if settings.offload_fraction > 0.0 and device.type != "cuda":
        raise UserError(
            f"optimizer.offload_fraction: {settings.offload_fraction} needs device cuda, not {device.type}, where all "
            "states are in host memory anyway; set it to 0"
        )


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Gives PyTorch's Adam its moments and step counts before a checkpoint fills them.

    Megatron-core's distributed optimizer reads the step count while it describes what it wants loaded.
    """
    for inner in _parts(optimizer):
        if isinstance(inner.optimizer, torch.optim.Adam):
            inner.init_state_fn(inner.optimizer, inner.config)
        for state in _torch_states(inner):
            state.setdefault("step", torch.tensor(0.0))


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
            size only; see `megafuser.training.optimizer_layout`.
    """
    (inner,) = _parts(optimizer)
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
    (inner,) = _parts(optimizer)
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
    (inner,) = _parts(optimizer)
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
    (inner,) = _parts(optimizer)
    moments = state.pop("param_state", None)
    by_rank = state.pop("param_state_sharding_type", None) == BY_RANK
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


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Megatron-core chains one optimizer for dense parameters and one for experts, where there are any."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _torch_states(inner: MegatronOptimizer) -> list[dict[str, Any]]:
    """The states of the parameters, where PyTorch's own Adam is in use."""
    return list(inner.optimizer.state.values()) if isinstance(inner.optimizer, torch.optim.Adam) else []
