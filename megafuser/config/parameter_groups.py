"""Stage 2 by part: learning rate and weight decay of the gate and of each specialist, and which do not train.

The optimizer's groups are made of it in `training.parameter_groups`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megafuser.config.values import InvalidValue, Strict, at_least, nearest

GATE = "gate"


@dataclass(frozen=True)
class GroupConfig(Strict):
    """What one part of the model has of its own; the rest is the stage's and the optimizer's.

    Attributes:
        lr: highest learning rate; the lowest, `min_lr`, changes in proportion.
        weight_decay: decoupled weight decay.
    """

    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuses what AdamW cannot work with, and a group that says nothing."""
        for key in ("lr", "weight_decay"):
            if getattr(self, key) is not None:
                at_least(key, getattr(self, key), 0.0)
        if self.lr is None and self.weight_decay is None:
            raise InvalidValue("lr", "is missing, and so is weight_decay; give one of them or take the group away")


def check_parts(
    groups: Mapping[str, GroupConfig], frozen: Sequence[str], specialists: Sequence[str], gate_lr_multiplier: float
) -> None:
    """Refuses names that are not part of the model, and settings of a part that contradict each other.

    Args:
        groups: `joint.groups`.
        frozen: `joint.frozen`.
        specialists: names, in order.
        gate_lr_multiplier: `optimizer.gate_lr_multiplier`.

    Raises:
        InvalidValue: with the key below the whole configuration.
    """
    if GATE in specialists:
        key = f"specialists.{list(specialists).index(GATE)}.name"
        raise InvalidValue(key, f"{GATE!r} is what metrics and joint.groups call the gate; rename the specialist")
    for name in groups:
        key = f"joint.groups.{name}"
        if name not in (GATE, *specialists):
            valid = [GATE, *specialists]
            raise InvalidValue(key, f"is not part of the model; {nearest(name, valid, 'joint.groups')}")
        if name in frozen:
            raise InvalidValue(key, "is of a specialist that joint.frozen names; take it away from one of them")
    for index, name in enumerate(frozen):
        key = f"joint.frozen.{index}"
        if name not in specialists:
            raise InvalidValue(key, f"{name!r} is not a specialist; {nearest(name, specialists)}")
        if name in frozen[:index]:
            raise InvalidValue(key, f"{name!r} is named twice; take one away")
    gate = groups.get(GATE)
    if gate is not None and gate.lr is not None and gate_lr_multiplier != 1.0:
        problem = (
            f"the gate's learning rate is optimizer.gate_lr_multiplier's ({gate_lr_multiplier}) too; set that to 1"
        )
        raise InvalidValue(f"joint.groups.{GATE}.lr", problem)
