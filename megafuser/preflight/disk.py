"""Whether a stage's checkpoints will find room where the run directory lies."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from megafuser.checkpoint.sources import SpecialistSource
from megafuser.config.run_directory import RunDirectory, step_number
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.fusion.gate_shapes import gate_shapes

_MASTER_AND_MOMENTS = 12  # bytes of a trained parameter: float32, three times
_WEIGHT = {"fp32": 4, "bf16": 2}
_BESIDES = 64 << 20  # tokenizers, indices, metrics


def checkpoint_bytes(config: RunConfig, stage: str, sources: Sequence[SpecialistSource]) -> int:
    """Bytes of one checkpoint, at most: weights, their float32 masters and both moments of what the stage trains."""
    shapes = gate_shapes([source.card.hidden_size for source in sources], config.gate.hidden_size)
    gate = sum(math.prod(shape) for shape in shapes.values())
    whole = gate if stage == "warmup" else gate + sum(source.card.parameter_count() for source in sources)
    return whole * (_WEIGHT[config.precision.dtype] + _MASTER_AND_MOMENTS) + _BESIDES


def check_room(config: RunConfig, stage: str, sources: Sequence[SpecialistSource]) -> None:
    """Compares what the stage will still write with what the disk has free.

    A quota is not seen here.

    Raises:
        UserError: says how much is missing, and what to do.
    """
    run = RunDirectory(Path(config.run_dir))
    there = next(path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists())
    size = checkpoint_bytes(config, stage, sources)
    most = _most_at_once(config, stage)
    needed = (most - _present(run, stage)) * size
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"run_dir: {there} has {_shown(free)} free, but the checkpoints of {stage} need {_shown(needed)} more "
            f"({most} of {_shown(size)} at once); make room, choose another run_dir or lower checkpoint.keep"
        )


def _most_at_once(config: RunConfig, stage: str) -> int:
    """Those that are kept, the best one among them or not, and one that is being written."""
    steps = config.stage(stage).steps
    kept = config.checkpoint.keep + config.checkpoint.keep_best
    return min(kept + 1, math.ceil(steps / config.checkpoint.interval))


def _present(run: RunDirectory, stage: str) -> int:
    directory = run.stage(stage)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sum(step_number(name) is not None for name in names)


def _shown(size: float) -> str:
    size = max(size, 0)
    for unit in ("MiB", "GiB"):
        size /= 1024 if unit == "GiB" else 2**20
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
