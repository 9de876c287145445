"""Megatron-core's DDP, AdamW and cosine schedule, set up from the configuration."""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megafuser.config.schema import OptimizerConfig, StageConfig
from megafuser.fusion.model import FusedModel


def wrap_for_gradients(model: FusedModel, *, distributed_optimizer: bool) -> DistributedDataParallel:
    """Gives the trainable parameters gradient buffers in float32 that are reduced over data parallelism."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=distributed_optimizer, overlap_grad_reduce=False
    )
    return DistributedDataParallel(model.config, config, model)


def build_optimizer(
    model: DistributedDataParallel, settings: OptimizerConfig, stage: StageConfig
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """AdamW and its cosine schedule over the stage's steps.

    Biases and norms are not decayed (megatron-core's convention). Whether the optimizer's states are distributed is
    the model's wrapping to say.

    Args:
        model: the wrapped model; only parameters that require a gradient are optimized.
        settings: betas, weight decay, clipping.
        stage: learning rates and steps.
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
        bf16=model.config.params_dtype is torch.bfloat16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=model.ddp_config.use_distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(config, [model])
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
