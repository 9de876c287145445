"""The configuration as frozen dataclasses that check their own values.

A key of the YAML file is a field's name without a trailing underscore (`async` is `async_`, a word that Python keeps
for itself).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from megafuser.config.builtin_templates import BUILT_IN
from megafuser.config.compute import DebugConfig, MemoryConfig, ParallelConfig, PrecisionConfig
from megafuser.config.data import DataConfig
from megafuser.config.optimizer import OptimizerConfig
from megafuser.config.parameter_groups import GroupConfig, check_parts
from megafuser.config.values import InvalidValue, Strict, at_least, nearest, not_empty, safe_name
from megafuser.config.watching import LoggingConfig, ProfileConfig

STAGES = ("warmup", "joint")
# `hf` is the tokenizer's own chat template.
BUILT_IN_TEMPLATES = (*BUILT_IN, "hf")


@dataclass(frozen=True)
class TemplateConfig(Strict):
    """A prompt template of the user's own.

    Attributes:
        prompt: Jinja text over `instruction` and `system`.
    """

    prompt: str

    def __post_init__(self) -> None:
        """Refuses an empty prompt."""
        not_empty("prompt", self.prompt)


def template_problem(name: str) -> str | None:
    """Why no specialist can have a template of this name; None for a built-in one's."""
    if name in BUILT_IN_TEMPLATES:
        return None
    hint, known = nearest(name, BUILT_IN_TEMPLATES, otherwise="choose another"), ", ".join(BUILT_IN_TEMPLATES)
    problem = f"no template {name!r}; {hint}; built in are {known}; or give a mapping with `prompt`"
    return problem


@dataclass(frozen=True)
class SpecialistConfig(Strict):
    """One finished model.

    Attributes:
        name: its name in metrics, reports and files.
        checkpoint: directory of its converted checkpoint.
        template: a built-in template's name, or a template.
    """

    name: str
    checkpoint: str
    template: str | TemplateConfig

    def __post_init__(self) -> None:
        """Refuses unsafe names and unknown templates."""
        safe_name("name", self.name)
        not_empty("checkpoint", self.checkpoint)
        if isinstance(self.template, str) and (problem := template_problem(self.template)):
            raise InvalidValue("template", problem)


@dataclass(frozen=True)
class GateConfig(Strict):
    """The gate: a two-layer MLP.

    Attributes:
        hidden_size: its units (paper: 512).
        temperature: what its scores are divided by before the softmax; a part of the model, in training and after.
        init: of its last layer: `zero`, so that training starts from exactly equal weights, or `random`.
    """

    hidden_size: int = 512
    temperature: float = 1.0
    init: Literal["zero", "random"] = "zero"

    def __post_init__(self) -> None:
        """Refuses a gate without units, and a temperature that scores cannot be divided by."""
        at_least("hidden_size", self.hidden_size, 1)
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise InvalidValue("temperature", f"must be above 0, not {self.temperature}")


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


@dataclass(frozen=True)
class CheckpointConfig(Strict):
    """Checkpoints.

    Attributes:
        interval: steps between two of them; the last step has one too.
        keep: how many of the last ones are kept.
        async_: write them beside training, which then stands still for a copy to host memory only.
        reshardable: `always`: every checkpoint loads at any layout; `on_exit`: those between two steps have the
            distributed optimizer's states as its ranks hold them, which takes no gathering, but load at the same
            tensor and pipeline sizes only (see `megafuser reshard`).
        keep_best: keep the one with the lowest validation loss too, however old it is.
    """

    interval: int = 500
    keep: int = 3
    async_: bool = True
    reshardable: Literal["always", "on_exit"] = "always"
    keep_best: bool = False

    def __post_init__(self) -> None:
        """Refuses to keep nothing."""
        at_least("interval", self.interval, 1)
        at_least("keep", self.keep, 1)


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
