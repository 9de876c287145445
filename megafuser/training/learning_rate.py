"""The learning rate over a stage's steps: megatron-core's schedule, warm-up and then a cosine.

What single parts of the model have instead is `training.parameter_groups`.
"""

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.stages import StageConfig


def build_schedule(
    optimizer: MegatronOptimizer, settings: OptimizerConfig, stage: StageConfig
) -> OptimizerParamScheduler:
    """From 0 to `lr` in `lr_warmup_steps`, then by a cosine to `min_lr` after the stage's last step.

    Step n, from 1, uses the schedule at n − 1, as Megatron-LM does: with `lr_warmup_steps` step 1 has the rate 0, and
    the first with `lr` itself is step `lr_warmup_steps` + 1. The last step's rate is just above `min_lr`,
    unless the rise takes all steps.

    Groups of parameters with rates of their own follow the same curve between theirs. Weight decay is constant.

    Args:
        optimizer: whose groups' rates it sets.
        settings: the weight decay.
        stage: learning rates and steps.
    """
    return OptimizerParamScheduler(
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
