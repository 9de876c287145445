"""Whether a stage's checkpoints will find room where the run directory lies.

What a checkpoint takes is `planning.disk`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.config.load import load_config
from megafuser.config.run_directory import CONFIG, RunDirectory, step_number
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.planning.disk import disk_space
from megafuser.runtime.output_checks import disk_size
from megafuser.training.kept_checkpoints import best_checkpoints


def check_room(config: RunConfig, stage: str, sources: Sequence[SpecialistSource]) -> None:
    """Compares what the stage will still write with what the disk has free.

    A quota is not seen here.

    Raises:
        UserError: says how much is missing, and what to do.
    """
    run = RunDirectory(Path(config.run_dir))
    there = next(path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists())
    present = _steps_present(run, stage)
    cards = {source.name: source.card for source in sources}
    space = disk_space(config, stage, cards, present, other_bests=_other_bests(config, run, stage))
    needed = (space.count - len(present)) * space.checkpoint
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"run_dir: {there} has {disk_size(free)} free, but the checkpoints of {stage} need {disk_size(needed)} "
            f"more ({space.count} of {disk_size(space.checkpoint)} at once); make room, choose another run_dir or "
            "lower checkpoint.keep"
        )


def _other_bests(config: RunConfig, run: RunDirectory, stage: str) -> int:
    """How many best checkpoints stay beside the one of the samples that are validated from now on."""
    bests = best_checkpoints(run, stage) if config.checkpoint.keep_best else []
    latest = run.latest(stage)
    if not bests or latest is None:
        return len(bests)
    try:
        before = load_config(latest / CONFIG).evaluation.samples_per_domain
    except UserError:
        before = None
    # the newest is the first; of other samples, it stays, and there will be one more
    return len(bests) - (before == config.evaluation.samples_per_domain)


def _steps_present(run: RunDirectory, stage: str) -> list[int]:
    directory = run.stage(stage)
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return [step for name in names if (step := step_number(name)) is not None]
