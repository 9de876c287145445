"""Groups of parameters with learning rates and weight decays of their own, as megatron-core's optimizer takes them."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_standard_config_overrides
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from megafuser.config.compute import OptimizerConfig
from megafuser.config.parameter_groups import GATE, GroupConfig
from megafuser.config.schema import JointConfig, StageConfig


def group_overrides(
    config: MegatronOptimizerConfig,
    specialists: Sequence[str],
    settings: OptimizerConfig,
    stage: StageConfig,
    *,
    joint: bool,
) -> dict[ParamKey, Any]:
    """megatron-core's groups (with and without weight decay), those of the gate apart from the specialists'.

    A specialist that has settings of its own is a group of its own. Megatron-core tells the groups of a checkpoint from
    each other by four of their fields alone, whatever their learning rates: `wd_mult` and `is_expert_parallel`, which
    mean something, `is_decoupled_lr`, which marks the gate, and `lr_mult`, which nothing in megatron-core 0.16 reads.
    It holds a specialist's number here, from 2 on, so that no two groups look alike and each finds its own back.

    Args:
        config: megatron-core's, with the stage's learning rates.
        specialists: names, in order.
        settings: the optimizer's.
        stage: learning rates of the stage, and of joint training's parts.
        joint: whether specialists train, or could: the gate's multiplier is of joint training.
    """
    groups = stage.groups if isinstance(stage, JointConfig) else {}
    multiplier = settings.gate_lr_multiplier if joint else 1.0
    gate = {
        "is_decoupled_lr": True,
        "max_lr": config.lr * multiplier,
        "min_lr": config.min_lr * multiplier,
        **_own(groups.get(GATE), stage),
    }
    overrides = {**get_standard_config_overrides(config), _key(GATE, "gate."): gate}
    for index, name in enumerate(specialists):
        if name in groups:
            label = {"lr_mult": float(index + 2)}
            overrides[_key(name, f"specialists.{index}.")] = {**label, **_own(groups[name], stage)}
    return overrides


def _own(group: GroupConfig | None, stage: StageConfig) -> dict[str, float]:
    """A part's own values, in the names of megatron-core's scheduler."""
    own: dict[str, float] = {}
    if group is not None and group.lr is not None:
        own |= {"max_lr": group.lr, "min_lr": stage.min_lr * group.lr / stage.lr if stage.lr else 0.0}
    if group is not None and group.weight_decay is not None:
        own |= {"start_wd": group.weight_decay, "end_wd": group.weight_decay}
    return own


def _key(name: str, prefix: str) -> ParamKey:
    def belongs(_: torch.nn.Parameter, parameter: str) -> bool:
        return parameter.removeprefix("module.").startswith(prefix)

    return ParamKey(with_name_predicate=ParamWithNamePredicate(name=name, fn=belongs))
