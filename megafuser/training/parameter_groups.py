"""Gate and specialists as groups of parameters, as megatron-core's optimizer takes them; their learning rates.

What a configuration may say of a part is `config.parameter_groups`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_standard_config_overrides
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.parameter_groups import GATE, GroupConfig
from megafuser.config.stages import JointConfig, StageConfig


def group_of(name: str, specialists: Sequence[str]) -> str:
    """`gate`, or the specialist that a parameter belongs to.

    Args:
        name: of the parameter, in the fused model or in its wrapping for gradients.
        specialists: names, in order.
    """
    parts = name.removeprefix("module.").split(".")
    return specialists[int(parts[1])] if parts[0] == "specialists" else GATE


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


class LearningRates:
    """Which of the optimizer's groups gate and specialists are in; the groups are the same on every rank."""

    def __init__(self, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """Asks all ranks, as no rank has parameters of all groups; every rank calls it.

        Args:
            chunks: this rank's, in order.
            optimizer: that was built over them.
        """
        self._optimizer = optimizer
        names = chunks[0].module.names
        (inner,) = getattr(optimizer, "chained_optimizers", [optimizer])
        groups = {id(parameter): index for parameter, index in _group_indices(inner)}
        own: dict[str, int] = {}
        for chunk in chunks:
            for name, parameter in chunk.module.named_parameters():
                if id(parameter) in groups:
                    # a group's decayed and undecayed parameters have one learning rate
                    own.setdefault(group_of(name, names), groups[id(parameter)])
        found: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
        merged = {name: index for part in reversed(found) for name, index in part.items()}
        self._groups = {name: merged[name] for name in (GATE, *names) if name in merged}

    def now(self) -> dict[str, float]:
        """The learning rates that the next update uses, of `gate` and of the specialists that train."""
        groups = self._optimizer.param_groups
        return {name: float(groups[index]["lr"]) for name, index in self._groups.items()}


def _group_indices(inner: Any) -> list[tuple[torch.nn.Parameter, int]]:
    """The model's parameters that this rank updates, each with the index of its group, whatever the optimizer."""
    if hasattr(inner, "model_param_group_index_map"):  # distributed
        return [(parameter, index) for parameter, (index, _) in inner.model_param_group_index_map.items()]
    if hasattr(inner, "float16_groups"):
        both = zip(inner.float16_groups, inner.fp32_from_fp32_groups, strict=True)
        return [(parameter, index) for index, own in enumerate(both) for part in own for parameter in part]
    return [
        (parameter, index)
        for index, group in enumerate(inner.optimizer.param_groups if inner.optimizer else [])
        for parameter in group["params"]
    ]
