"""The configuration as frozen dataclasses that check their own values.

A key of the YAML file is a field's name without a trailing underscore (`async` is `async_`, a word that Python keeps
for itself).
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

BUILT_IN_TEMPLATES = ("ultralm", "codellama", "alpaca", "chatml", "hf", "plain")

_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class InvalidValue(ValueError):
    """An impossible value.

    Attributes:
        key: the key's dotted name, below the dataclass that raises.
        problem: what is wrong, and what would be right.
    """

    def __init__(self, key: str, problem: str) -> None:
        """Keeps both parts, so that the loader can put the path of the dataclass in front of the key."""
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def nearest(name: str, valid: Iterable[str], above: str = "") -> str:
    """What to say about a name that is none of the valid ones: the nearest, or all of them.

    Args:
        name: what the user wrote.
        valid: what could have been meant.
        above: dotted key that the names stand below.
    """
    prefix = f"{above}." if above else ""
    close = difflib.get_close_matches(name, valid := list(valid), n=1)
    if close:
        return f"the nearest valid one is {prefix + close[0]!r}"
    return f"valid are {', '.join(prefix + item for item in valid)}"


def yaml_key(field_name: str) -> str:
    """The YAML key of a dataclass's field."""
    return field_name.rstrip("_")


class _Strict:
    """How pydantic builds these dataclasses: it converts no types, refuses unknown keys, NaN and infinity."""

    __pydantic_config__: ClassVar[Any] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "alias_generator": yaml_key,
    }


def _at_least(key: str, value: float, least: float) -> None:
    # Not `value < least`: NaN and infinity must fail too.
    if not (value >= least and math.isfinite(value)):
        raise InvalidValue(key, f"must be at least {least}, not {value}")


def _not_empty(key: str, text: str | None) -> None:
    if text is not None and not text.strip():
        raise InvalidValue(key, "must not be empty")


def _safe_name(key: str, name: str) -> None:
    if not _SAFE_NAME.fullmatch(name) or name in (".", ".."):
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "name"
        problem = f"{name!r} cannot name files and metrics; use letters, digits, '_', '.' and '-' only, e.g. {safe!r}"
        raise InvalidValue(key, problem)


@dataclass(frozen=True)
class TemplateConfig(_Strict):
    """A prompt template of the user's own.

    Attributes:
        prompt: Jinja text over `instruction` and `system`.
    """

    prompt: str

    def __post_init__(self) -> None:
        """Refuses an empty prompt."""
        _not_empty("prompt", self.prompt)


@dataclass(frozen=True)
class SpecialistConfig(_Strict):
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
        _safe_name("name", self.name)
        _not_empty("checkpoint", self.checkpoint)
        if isinstance(self.template, str) and self.template not in BUILT_IN_TEMPLATES:
            close = difflib.get_close_matches(self.template, BUILT_IN_TEMPLATES, n=1)
            hint = f"the nearest is {close[0]!r}; " if close else ""
            known = ", ".join(BUILT_IN_TEMPLATES)
            problem = f"no template {self.template!r}; {hint}built in are {known}; or give a mapping with `prompt`"
            raise InvalidValue("template", problem)


@dataclass(frozen=True)
class GateConfig(_Strict):
    """The gate: a two-layer MLP of this hidden size (paper: 512)."""

    hidden_size: int = 512

    def __post_init__(self) -> None:
        """Refuses a gate without units."""
        _at_least("hidden_size", self.hidden_size, 1)


@dataclass(frozen=True)
class DomainConfig(_Strict):
    """The JSONL files of one domain."""

    train: tuple[str, ...]
    valid: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses empty lists."""
        for key, paths in (("train", self.train), ("valid", self.valid)):
            if not paths:
                raise InvalidValue(key, "must list at least one file")
            for index, path in enumerate(paths):
                _not_empty(f"{key}.{index}", path)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Strict):
    """What is trained and validated on.

    Attributes:
        domains: files by domain.
        sequence_length: width of a packed row, in tokens; also the limit of a sample.
        balanced: as many samples of each domain in every step; otherwise in proportion to the domains' sizes.
        end_token: the token that ends a response, where the tokenizers have no common EOS.
    """

    domains: dict[str, DomainConfig]
    sequence_length: int = 4096
    balanced: bool = True
    end_token: str | None = None

    def __post_init__(self) -> None:
        """Refuses rows without tokens and names that cannot be part of a metric's name."""
        _at_least("sequence_length", self.sequence_length, 1)
        _not_empty("end_token", self.end_token)
        if not self.domains:
            raise InvalidValue("domains", "must hold at least one domain")
        for name in self.domains:
            _safe_name("domains", name)


@dataclass(frozen=True)
class ParallelConfig(_Strict):
    """The layout; data parallel is the world size / (tensor · pipeline).

    Attributes:
        tensor: tensor-parallel size.
        pipeline: pipeline stages.
        sequence: sequence parallelism among the tensor-parallel ranks.
    """

    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes below 1."""
        _at_least("tensor", self.tensor, 1)
        _at_least("pipeline", self.pipeline, 1)


@dataclass(frozen=True)
class PrecisionConfig(_Strict):
    """Number formats: `dtype` of weights and activations, `fp8` recipe of the matrix products, if any."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    fp8: Literal["delayed", "tensorwise", "blockwise"] | None = None

    def __post_init__(self) -> None:
        """Refuses FP8 beside fp32."""
        if self.fp8 is not None and self.dtype == "fp32":
            raise InvalidValue("fp8", f"{self.fp8!r} needs dtype bf16, not fp32; set dtype to bf16 or fp8 to null")


@dataclass(frozen=True)
class OptimizerConfig(_Strict):
    """AdamW, for both stages.

    Attributes:
        distributed: states sharded over the data-parallel ranks.
        weight_decay: decoupled weight decay.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        clip_grad: largest global gradient norm; 0 clips nothing.
    """

    distributed: bool = True
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what Adam cannot work with."""
        _at_least("weight_decay", self.weight_decay, 0.0)
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise InvalidValue(f"betas.{index}", f"must be at least 0 and below 1, not {beta}")
        if not (self.eps > 0.0 and math.isfinite(self.eps)):
            raise InvalidValue("eps", f"must be above 0, not {self.eps}")
        _at_least("clip_grad", self.clip_grad, 0.0)


@dataclass(frozen=True)
class StageConfig(_Strict):
    """One training stage, with a cosine schedule.

    Attributes:
        steps: optimizer steps.
        samples_per_domain: samples of each domain in a step, over all ranks.
        lr: highest learning rate.
        min_lr: learning rate at the end.
        lr_warmup_steps: steps in which the learning rate rises from 0.
    """

    steps: int
    samples_per_domain: int
    lr: float = 2e-5
    min_lr: float = 0.0
    lr_warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuses schedules that cannot be followed."""
        _at_least("steps", self.steps, 1)
        _at_least("samples_per_domain", self.samples_per_domain, 1)
        _at_least("lr", self.lr, 0.0)
        _at_least("min_lr", self.min_lr, 0.0)
        _at_least("lr_warmup_steps", self.lr_warmup_steps, 0)
        if self.min_lr > self.lr:
            raise InvalidValue("min_lr", f"must be at most lr ({self.lr}), not {self.min_lr}")
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
    """

    steps: int = 5000
    samples_per_domain: int = 32
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Refuses an empty path beside what every stage refuses."""
        super().__post_init__()
        _not_empty("init_from", self.init_from)


@dataclass(frozen=True)
class EvaluationConfig(_Strict):
    """Validation during training: every `interval` steps, on `samples_per_domain` samples of each domain."""

    interval: int = 250
    samples_per_domain: int = 256

    def __post_init__(self) -> None:
        """Refuses empty validations."""
        _at_least("interval", self.interval, 1)
        _at_least("samples_per_domain", self.samples_per_domain, 1)


@dataclass(frozen=True)
class CheckpointConfig(_Strict):
    """Checkpoints: one every `interval` steps, the last `keep` kept, written beside the training where `async_`."""

    interval: int = 500
    keep: int = 3
    async_: bool = True

    def __post_init__(self) -> None:
        """Refuses to keep nothing."""
        _at_least("interval", self.interval, 1)
        _at_least("keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Strict):
    """Everything a run needs; its two stages share it.

    Attributes:
        run_dir: directory that the run writes to.
        specialists: the K ≥ 2 models to fuse, in the order of the gate's scores.
        data: files and rows.
        seed: decides which samples a step takes, and the gate's first weights.
        gate: size of the gate.
        parallel: layout over the ranks.
        precision: number formats.
        device: where to compute; `auto` is CUDA where there is one.
        backend: whose layers; `auto` is Transformer Engine on CUDA, torch on a CPU.
        optimizer: AdamW's settings.
        warmup: stage 1.
        joint: stage 2.
        evaluation: validation during training.
        checkpoint: how often to save.
    """

    run_dir: str
    specialists: tuple[SpecialistConfig, ...]
    data: DataConfig
    seed: int = 1234
    gate: GateConfig = field(default_factory=GateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    backend: Literal["auto", "transformer_engine", "torch"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        """Refuses what no single part can see."""
        _not_empty("run_dir", self.run_dir)
        if not 0 <= self.seed < 2**32:
            raise InvalidValue("seed", f"must be from 0 to 4294967295, not {self.seed}")
        if len(self.specialists) < 2:
            raise InvalidValue("specialists", f"must list at least 2 to fuse, not {len(self.specialists)}")
        names = [specialist.name for specialist in self.specialists]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise InvalidValue(f"specialists.{index}.name", f"{name!r} is taken by specialists.{names.index(name)}")
        if self.device == "cpu" and self.backend == "transformer_engine":
            raise InvalidValue("backend", "transformer_engine needs CUDA; use torch or auto with device cpu")
        if self.precision.fp8 is not None:
            for key, value in (("backend", self.backend), ("device", self.device)):
                if value in ("torch", "cpu"):
                    problem = (
                        f"{self.precision.fp8!r} needs Transformer Engine on CUDA, not {key} {value}; set it to null"
                    )
                    raise InvalidValue("precision.fp8", problem)
