"""The nearest change that makes a plan fit: fewest overrides first, then the shortest step.

What a change would take is computed by `planning.plan`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megafuser.config.schema import STAGES
from megafuser.config.values import InvalidValue
from megafuser.errors import UserError
from megafuser.planning.gpus import PER_NODE
from megafuser.planning.plan import Task, plan_stage

Overrides = Mapping[str, Any]

_MOST_GPUS = 1024
_OFFLOADED = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Advice:
    """A change that fits.

    Attributes:
        overrides: dotted keys and values.
        gpus: number of GPUs; another one than asked for where no setting fits that many.
        peak: bytes of the fullest rank of either stage with it.
        seconds: of a joint step with it; None where the rate is unknown.
        host_per_node: bytes of host memory that it takes on a node.
    """

    overrides: dict[str, Any]
    gpus: int
    peak: float
    seconds: float | None
    host_per_node: float

    @property
    def text(self) -> str:
        """What to type."""
        settings = " ".join(f"{key}={_yaml(value)}" for key, value in self.overrides.items())
        return settings if settings else "the same settings"


def advise(task: Task, limit: float, *, most_gpus: int = _MOST_GPUS) -> Advice | None:
    """The nearest change that fits, on as many GPUs or, where none does, on twice as many, and so on.

    Args:
        task: a plan that does not fit.
        limit: bytes that a rank has.
        most_gpus: how many are tried at most, beside the task's own number; many take a minute.

    Returns:
        None where nothing up to so many GPUs fits.
    """
    gpus = task.gpus
    while gpus <= max(most_gpus, task.gpus):
        if found := _nearest(dataclasses.replace(task, gpus=gpus), limit):
            return found
        gpus *= 2
    return None


def _nearest(task: Task, limit: float) -> Advice | None:
    levers = [list(lever) for lever in (_layouts(task), _recompute(task), _optimizers(task))]
    combined = [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*levers)]
    combined.sort(key=len)
    for _, group in itertools.groupby(combined, key=len):
        fits = [advice for overrides in group if (advice := _try(task, overrides, limit))]
        if fits:
            return min(fits, key=lambda advice: advice.peak if advice.seconds is None else advice.seconds)
    return None


def _try(task: Task, overrides: Overrides, limit: float) -> Advice | None:
    """The change as advice, if it is one that works and fits."""
    try:
        changed = dataclasses.replace(task, config=_override(task.config, overrides))
        changed.check()
    except (InvalidValue, UserError):
        return None
    stages = []
    for stage in STAGES[::-1]:  # joint training first: it is what does not fit
        stages.append(plan_stage(changed, stage))
        if stages[-1].peak > limit:
            return None
    joint = stages[0]
    peak = max(stage.peak for stage in stages)
    return Advice(dict(overrides), task.gpus, peak, joint.time.seconds, joint.host_per_node)


def _layouts(task: Task) -> Iterator[Overrides]:
    current = task.config.parallel
    layers = min(card.num_layers for card in task.cards.values())
    tensors = [size for size in (1, 2, 4, 8) if size <= PER_NODE and task.gpus % size == 0]
    pipelines = [size for size in range(1, min(layers, task.gpus) + 1) if task.gpus % size == 0]
    sizes = itertools.product(
        dict.fromkeys([current.tensor, *tensors]),
        dict.fromkeys([current.pipeline, *pipelines]),
        dict.fromkeys([current.virtual_pipeline, 1, 2]),
        dict.fromkeys([current.sequence, True]),
    )
    names = ("tensor", "pipeline", "virtual_pipeline", "sequence")
    for values in sizes:
        wanted = dict(zip(names, values, strict=True))
        yield {f"parallel.{key}": value for key, value in wanted.items() if value != getattr(current, key)}


def _recompute(task: Task) -> Iterator[Overrides]:
    current = task.config.memory.recompute
    for value in dict.fromkeys([current, "none", "selective", "full"]):
        yield {} if value == current else {"memory.recompute": value}


def _optimizers(task: Task) -> Iterator[Overrides]:
    """More and more of the states away from the GPU's memory; the last ones need CUDA."""
    settings = task.config.optimizer
    yield {}
    spread: dict[str, Any] = {} if settings.distributed else {"optimizer.distributed": True}
    if spread:
        yield spread
    if task.gpu is None:
        return
    if settings.offload_fraction == 0:
        aware = spread | ({} if settings.precision_aware else {"optimizer.precision_aware": True})
        if not settings.precision_aware:
            yield aware
        if settings.moments_dtype == "fp32":
            yield aware | {"optimizer.moments_dtype": "bf16"}
    # megatron-core's offloading keeps moments in float32
    wide = {} if settings.moments_dtype == "fp32" else {"optimizer.moments_dtype": "fp32"}
    for fraction in _OFFLOADED:
        if fraction > settings.offload_fraction:
            yield spread | wide | {"optimizer.offload_fraction": fraction}


def _override(config: Any, overrides: Overrides) -> Any:
    """The configuration with other values; its dataclasses check themselves again."""
    by_section: dict[str, dict[str, Any]] = {}
    for key, value in overrides.items():
        section, name = key.split(".")
        by_section.setdefault(section, {})[name] = value
    sections = {
        section: dataclasses.replace(getattr(config, section), **values) for section, values in by_section.items()
    }
    return dataclasses.replace(config, **sections)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
