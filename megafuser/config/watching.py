"""The sections that say what a run shows of itself; none of them changes a number of the training.

Showing it is `watching`.
"""

from dataclasses import dataclass
from typing import Literal

from megafuser.config.values import InvalidValue, Strict, at_least, not_empty


@dataclass(frozen=True)
class WandbConfig(Strict):
    """Weights & Biases, for those who want it: `pip install "megafuser[wandb]"`.

    Attributes:
        project: name of the project that the run goes to.
        entity: user or team; the account's own where it is not given.
        name: the run's name there; the run directory's where it is not given.
        mode: `offline` writes files only, to be sent by `wandb sync`.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    mode: Literal["online", "offline"] = "online"

    def __post_init__(self) -> None:
        """Refuses empty names."""
        for key in ("project", "entity", "name"):
            not_empty(key, getattr(self, key))


@dataclass(frozen=True)
class LoggingConfig(Strict):
    """What is shown, and where.

    Attributes:
        every_seconds: time between two lines of progress where standard error is not a terminal.
        samples: whether a validation shows texts with the gate's weights in TensorBoard.
        wandb: Weights & Biases; off by default.
    """

    every_seconds: float = 30.0
    samples: bool = True
    wandb: WandbConfig | None = None

    def __post_init__(self) -> None:
        """Refuses negative times."""
        at_least("every_seconds", self.every_seconds, 0.0)


@dataclass(frozen=True)
class ProfileConfig(Strict):
    """PyTorch's profiler over a few steps of a stage; traces go to `RUN_DIR/profile/`.

    Attributes:
        stage: which stage's steps.
        start: the first step, from 1; the first ones are slower than the rest.
        steps: how many.
        ranks: of which processes.
        shapes: record the shapes of operators' inputs.
        memory: record allocations.
    """

    stage: Literal["warmup", "joint"] = "joint"
    start: int = 10
    steps: int = 3
    ranks: tuple[int, ...] = (0,)
    shapes: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        """Refuses what selects nothing."""
        at_least("start", self.start, 1)
        at_least("steps", self.steps, 1)
        if not self.ranks:
            raise InvalidValue("ranks", "must list at least one rank, e.g. [0]; set profile to null for none")
        for index, rank in enumerate(self.ranks):
            at_least(f"ranks.{index}", rank, 0)
