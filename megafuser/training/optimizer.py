"""Megatron-core's DDP and AdamW, set up from the configuration.

The groups of parameters are `training.parameter_groups`; states in checkpoints are `training.optimizer_state`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megafuser.config.compute import ParallelConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import JointConfig, StageConfig
from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel
from megafuser.training.exact_states import show_numbers
from megafuser.training.learning_rate import build_schedule
from megafuser.training.optimizer_state import parts_of
from megafuser.training.overlap import set_overlap
from megafuser.training.parameter_groups import group_overrides

# of Adam's moments; megatron-core takes FP8 values as bytes
_MOMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}


def wrap_for_gradients(
    chunks: Sequence[FusedModel],
    *,
    distributed_optimizer: bool,
    parallel: ParallelConfig,
    bucket_size: int | None = None,
) -> list[DistributedDataParallel]:
    """Gives the trainable parameters gradient buffers in float32 that are reduced over data parallelism.

    Args:
        chunks: this rank's, in order.
        distributed_optimizer: whether each data-parallel rank keeps, and updates, its share of the parameters only.
        parallel: which reductions and gatherings overlap with computing.
        bucket_size: elements that are reduced at once, in place of megatron-core's own choice; without
            `parallel.overlap_grad_reduce` all are.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and distributed_optimizer,
    )
    if bucket_size is not None:
        config.bucket_size = bucket_size
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
    for inner in parts_of(optimizer):
        if isinstance(inner.optimizer, torch.optim.Adam):
            for group in inner.optimizer.param_groups:
                group["fused"] = True  # one pass over parameters and states instead of ten
        if hasattr(inner.optimizer, "store_param_remainders") and inner.config.use_precision_aware_optimizer:
            show_numbers(inner)
    return optimizer, build_schedule(optimizer, settings, stage)


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
