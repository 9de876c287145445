"""Whether a stage's checkpoints will find room where the run directory lies."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from megafuser.checkpoint.sources import SpecialistSource
from megafuser.config.run_directory import RunDirectory, step_number
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.planning.disk import disk_space


def check_room(config: RunConfig, stage: str, sources: Sequence[SpecialistSource]) -> None:
    """Compares what the stage will still write with what the disk has free.

    A quota is not seen here.

    Raises:
        UserError: says how much is missing, and what to do.
    """
    run = RunDirectory(Path(config.run_dir))
    there = next(path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists())
    space = disk_space(config, stage, {source.name: source.card for source in sources})
    needed = (space.count - _present(run, stage)) * space.checkpoint
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"run_dir: {there} has {_shown(free)} free, but the checkpoints of {stage} need {_shown(needed)} more "
            f"({space.count} of {_shown(space.checkpoint)} at once); make room, choose another run_dir or lower "
            "checkpoint.keep"
        )


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
