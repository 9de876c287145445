"""The sections `warmup` and `joint`: steps, samples, learning rates.

What the stages do is in `training.stages`.
"""

from dataclasses import dataclass, field

from megafuser.config.parameter_groups import GroupConfig
from megafuser.config.values import InvalidValue, Strict, at_least, not_empty


@dataclass(frozen=True)
class StageConfig(Strict):
    """One training stage, with a cosine schedule.

    Attributes:
        steps: optimizer steps.
        samples_per_domain: samples of each domain in a step, over all ranks.
        lr: highest learning rate.
        min_lr: learning rate at the end.
        lr_warmup_steps: steps in which the learning rate rises from 0.
        row_width: widest packed row of this stage, in tokens; `data.sequence_length` where it is not given.
        load_balance: coefficient of the load-balance loss; 0, as in the paper, is none.
    """

    steps: int
    samples_per_domain: int
    lr: float = 2e-5
    min_lr: float = 0.0
    lr_warmup_steps: int = 0
    row_width: int | None = None
    load_balance: float = 0.0

    def __post_init__(self) -> None:
        """Refuses schedules that cannot be followed."""
        at_least("steps", self.steps, 1)
        at_least("samples_per_domain", self.samples_per_domain, 1)
        at_least("lr", self.lr, 0.0)
        at_least("min_lr", self.min_lr, 0.0)
        at_least("lr_warmup_steps", self.lr_warmup_steps, 0)
        at_least("load_balance", self.load_balance, 0.0)
        if self.min_lr > self.lr:
            raise InvalidValue("min_lr", f"must be at most lr ({self.lr}), not {self.min_lr}")
        if self.row_width is not None:
            at_least("row_width", self.row_width, 1)
        if self.lr_warmup_steps > self.steps:
            raise InvalidValue("lr_warmup_steps", f"must be at most steps ({self.steps}), not {self.lr_warmup_steps}")


@dataclass(frozen=True)
class WarmupConfig(StageConfig):
    """Stage 1, the gate alone (defaults: paper, schedule)."""

    steps: int = 400
    samples_per_domain: int = 64


@dataclass(frozen=True)
class JointConfig(StageConfig):
    """Stage 2, everything (defaults: paper, schedule).

    Attributes:
        init_from: checkpoint to start from; without it, the run's last warm-up checkpoint.
        groups: by `gate` or a specialist's name, its own learning rate or weight decay.
        frozen: names of specialists that keep the weights they start with.
    """

    steps: int = 5000
    samples_per_domain: int = 32
    init_from: str | None = None
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an empty path beside what every stage refuses."""
        super().__post_init__()
        not_empty("init_from", self.init_from)
