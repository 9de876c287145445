"""The whole configuration, `RunConfig`: frozen dataclasses that check their own values, most in a file for a section.

A key of the YAML file is a field's name without a trailing underscore (`async` is `async_`, a word that Python keeps
for itself). Reading it from a file is `config.load`.
"""

from dataclasses import dataclass, field
from typing import Literal

from megafuser.config.checkpoint import CheckpointConfig
from megafuser.config.compute import DebugConfig, MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.data import DataConfig
from megafuser.config.gate import GateConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.parameter_groups import check_parts
from megafuser.config.specialists import SpecialistConfig
from megafuser.config.stages import JointConfig, StageConfig, WarmupConfig
from megafuser.config.values import InvalidValue, Strict, at_least, not_empty
from megafuser.config.watching import LoggingConfig, ProfileConfig

STAGES = ("warmup", "joint")


@dataclass(frozen=True)
class EvaluationConfig(Strict):
    """Validation during training.

    Attributes:
        interval: steps between two validations.
        samples_per_domain: validation samples of each domain, the same every time: the first ones, in the order of its
            sources.
        patience: a stage ends early where the mean loss has not improved in so many validations; null: it never does.
    """

    interval: int = 250
    samples_per_domain: int = 256
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuses empty validations."""
        at_least("interval", self.interval, 1)
        at_least("samples_per_domain", self.samples_per_domain, 1)
        if self.patience is not None:
            at_least("patience", self.patience, 1)


@dataclass(frozen=True)
class FaultsConfig(Strict):
    """When a run that is in trouble ends.

    Attributes:
        skipped_steps: after so many steps in a row without a finite loss or gradient.
        silent_seconds: when a rank gives no sign for so long.
        stuck_minutes: when no rank makes a step, a validation or a save for so long.
    """

    skipped_steps: int = 5
    silent_seconds: float = 120.0
    stuck_minutes: float = 30.0

    def __post_init__(self) -> None:
        """Refuses what would end every run."""
        at_least("skipped_steps", self.skipped_steps, 1)
        for key in ("silent_seconds", "stuck_minutes"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InvalidValue(key, f"must be above 0, not {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Strict):
    """Everything a run needs; its two stages share it.

    Attributes:
        run_dir: directory that the run writes to.
        specialists: the K ≥ 2 models to fuse, in the order of the gate's scores.
        data: files and rows.
        seed: decides which samples a step takes, and the gate's first weights.
        gate: size of the gate.
        parallel: layout over the ranks.
        precision: number formats.
        memory: what is kept and what is computed again.
        device: where to compute; `auto` is CUDA where there is one.
        backend: whose layers; `auto` is Transformer Engine on CUDA, torch on a CPU.
        optimizer: AdamW's settings.
        warmup: stage 1.
        joint: stage 2.
        evaluation: validation during training.
        checkpoint: how often to save.
        faults: when a run that is in trouble ends.
        debug: checks of training itself.
        logging: what is shown of the run, and where.
        profile: PyTorch's profiler over a few steps; off by default.
    """

    run_dir: str
    specialists: tuple[SpecialistConfig, ...]
    data: DataConfig
    seed: int = 1234
    gate: GateConfig = field(default_factory=GateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    backend: Literal["auto", "transformer_engine", "torch"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig | None = None

    def __post_init__(self) -> None:
        """Refuses what no single part can see."""
        not_empty("run_dir", self.run_dir)
        if not 0 <= self.seed < 2**32:
            raise InvalidValue("seed", f"must be from 0 to 4294967295, not {self.seed}")
        if len(self.specialists) < 2:
            raise InvalidValue("specialists", f"must list at least 2 to fuse, not {len(self.specialists)}")
        names = [specialist.name for specialist in self.specialists]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise InvalidValue(
                    f"specialists.{index}.name", f"{name!r} is taken by specialists.{names.index(name)}; rename it"
                )
            # keys of weights begin with the name and a dot
            if above := [other for other in names if name.startswith(f"{other}.")]:
                raise InvalidValue(
                    f"specialists.{index}.name",
                    f"{name!r} begins with {above[0]!r} and a dot, so their weights could not be told apart; use "
                    f"{name.replace('.', '-')!r}",
                )
        check_parts(self.joint.groups, self.joint.frozen, names, self.optimizer.gate_lr_multiplier)
        if self.device == "cpu" and self.backend == "transformer_engine":
            raise InvalidValue("backend", "transformer_engine needs CUDA; use torch or auto with device cpu")
        for name, stage in (("warmup", self.warmup), ("joint", self.joint)):
            if stage.row_width is not None and stage.row_width < self.data.sequence_length:
                problem = f"must be at least data.sequence_length ({self.data.sequence_length}), not {stage.row_width}"
                raise InvalidValue(f"{name}.row_width", problem)
        if self.checkpoint.keep_best and self.checkpoint.interval % self.evaluation.interval:
            problem = (
                f"needs a validation at every checkpoint; make checkpoint.interval ({self.checkpoint.interval}) a "
                f"multiple of evaluation.interval ({self.evaluation.interval})"
            )
            raise InvalidValue("checkpoint.keep_best", problem)
        if self.parallel.overlap_param_gather and not self.optimizer.distributed:
            raise InvalidValue("parallel.overlap_param_gather", "needs optimizer.distributed: true, or set it to false")
        if self.precision.fp8 is not None:
            for key, value in (("backend", self.backend), ("device", self.device)):
                if value in ("torch", "cpu"):
                    problem = (
                        f"{self.precision.fp8!r} needs Transformer Engine on CUDA, not {key} {value}; set it to null"
                    )
                    raise InvalidValue("precision.fp8", problem)

    def trained(self, stage: str) -> tuple[str, ...]:
        """Names of the specialists that a stage trains, in order: none in warm-up."""
        names = (specialist.name for specialist in self.specialists)
        return tuple(name for name in names if stage == "joint" and name not in self.joint.frozen)

    def stage(self, name: str) -> StageConfig:
        """A stage's section, by its name."""
        return {"warmup": self.warmup, "joint": self.joint}[name]
