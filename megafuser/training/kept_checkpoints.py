"""Which checkpoints a run has: the newest that can be read, the newest that is intact, and which are too old to keep.

Not here: what is in a checkpoint (`megafuser.training.checkpoint_contents`).
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megafuser.checkpoint.damage import disk_errors_told, find_damage
from megafuser.checkpoint.manifest import Manifest, OtherVersionError, first_harm, read_manifest, verify_files
from megafuser.checkpoint.read_lock import remove_unless_read
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.run_directory import RunDirectory, step_number
from megafuser.errors import UserError
from megafuser.runtime.atomic import remove_leftovers, write_text_atomic
from megafuser.runtime.distributed import on_rank_zero

logger = logging.getLogger(__name__)

DAMAGE_NAME = "damage.txt"


def newest_readable(run: RunDirectory, stage: str) -> tuple[Path, Manifest] | None:
    """The stage's newest checkpoint whose manifest, configuration and tokenizers are intact. Every rank may ask.

    The weights are looked at later, by `newest_intact`, which also tells the user of what is passed over here.

    Raises:
        UserError: the disk does not give them, or they are of another version, which is no reason to pass one over.
    """
    with disk_errors_told():
        for directory in _steps(run, stage):
            try:
                manifest = read_manifest(directory, stage)
            except OtherVersionError:
                raise
            except UserError:
                continue
            if first_harm(verify_files(directory, manifest, but_under="weights/")) is None:
                return directory, manifest
    return None


def newest_intact(run: RunDirectory, stage: str, *, without: str = "the stage starts over") -> Path | None:
    """The stage's newest checkpoint whose files are what its manifest says; every rank calls it.

    A damaged one is renamed to `step_NNNNNN.damaged`, with a warning, and the one before it is taken; its file
    `damage.txt` says which files are damaged, missing or extra. Files too many by themselves are no damage: network
    file systems and file managers leave some. `latest` is made to name what was found, and is gone where nothing was.

    Args:
        run: its directory.
        stage: `warmup` or `joint`.
        without: what follows where all are damaged, for the warning.

    Raises:
        UserError: the disk does not give a file, or the checkpoint is of another version; it is not renamed then, since
            it may well be intact.
    """
    candidates = on_rank_zero(lambda: _candidates(run, stage))
    for index, directory in enumerate(candidates):
        problems = _problems(directory, stage)
        if first_harm(problems) is None:
            on_rank_zero(partial(_make_latest, run, stage, directory))
            return directory
        using = str(candidates[index + 1]) if index + 1 < len(candidates) else f"none, {without}"
        on_rank_zero(partial(_set_aside, directory, problems, using))
    on_rank_zero(partial(_forget_all, run, stage))
    return None


def remove_old_checkpoints(run: RunDirectory, stage: str, keep: int, *, best: Sequence[Path] = ()) -> None:
    """Keeps the newest `keep` checkpoints of a stage, the best ones, if any are to be kept for that, and others.

    Never removed are the one that `latest` names, the newest complete one (those after it may be damaged), and those
    that somebody reads; the next call looks at these again.
    """
    steps = _steps(run, stage)
    kept = {*steps[:keep], run.latest(stage), next(filter(_looks_complete, steps), None), *best}
    for old in steps:
        if old not in kept:
            remove_unless_read(old)


def best_checkpoints(run: RunDirectory, stage: str) -> list[Path]:
    """The checkpoint of the lowest validation loss among those that were validated at their own step.

    The first of equals. Only manifests are looked at. Losses of other samples cannot be compared: there is one for each
    number of samples that validations have looked at, the latest first.
    """
    found: dict[int | None, list[tuple[float, int, Path]]] = {}
    samples: int | None = None
    for directory in _steps(run, stage):
        try:
            manifest = read_manifest(directory, stage)
        except UserError:
            continue
        record = ValidationRecord.resume(manifest)
        step = manifest.run["step"]
        if record.loss is not None and math.isfinite(record.loss) and record.step == step:
            # what did not say of how many is taken for what came after it
            samples = record.samples if record.samples is not None else samples
            found.setdefault(samples, []).append((record.loss, step, directory))
    return [min(own)[-1] for own in found.values()]


def write_latest(run: RunDirectory, stage: str, directory: Path) -> None:
    """Makes `latest` name a complete checkpoint."""
    write_text_atomic(run.latest_file(stage), directory.name + "\n")


def write_best(run: RunDirectory, stage: str, directory: Path | None) -> None:
    """Makes `best` name a checkpoint; there is no `best` where none is to be named."""
    if directory is not None:
        write_text_atomic(run.best_file(stage), directory.name + "\n")
    else:
        run.best_file(stage).unlink(missing_ok=True)


def _candidates(run: RunDirectory, stage: str) -> list[Path]:
    remove_leftovers(run.stage(stage))
    return _steps(run, stage)


def _problems(directory: Path, stage: str) -> list[str]:
    """What is wrong with a stage's checkpoint; every rank calls it, and gets the same."""
    manifest = on_rank_zero(lambda: _manifest_problem(directory, stage))
    return find_damage([directory], stage)[0] if manifest is None else [manifest]


def _manifest_problem(directory: Path, stage: str) -> str | None:
    with disk_errors_told():
        try:
            read_manifest(directory, stage)
        except OtherVersionError:
            raise
        except UserError as error:
            return str(error)
    return None


def _make_latest(run: RunDirectory, stage: str, directory: Path) -> None:
    if run.latest(stage) != directory:
        write_latest(run, stage, directory)
        _forget_best(run, stage)


def _forget_all(run: RunDirectory, stage: str) -> None:
    """Takes away what would name a checkpoint that is not there any more."""
    run.latest_file(stage).unlink(missing_ok=True)
    _forget_best(run, stage)


def _forget_best(run: RunDirectory, stage: str) -> None:
    """Takes away what names the best checkpoint where that was set aside; the next save looks for another."""
    if run.best(stage) is None:
        run.best_file(stage).unlink(missing_ok=True)


def _set_aside(directory: Path, problems: Sequence[str], using: str) -> None:
    damaged = directory.with_name(f"{directory.name}.damaged")
    for count in itertools.count(2):  # what was set aside earlier stays: much of it may be of use
        if not damaged.exists():
            break
        damaged = directory.with_name(f"{directory.name}.damaged.{count}")
    directory.rename(damaged)
    with contextlib.suppress(OSError):  # a disk that may not be written is no reason to stop
        (damaged / DAMAGE_NAME).write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
    logger.warning("damaged checkpoint %s; using %s", directory, using)


def _looks_complete(directory: Path) -> bool:
    """Whether a checkpoint has a manifest, and all files that it names; their content is not looked at."""
    try:
        manifest = read_manifest(directory)
    except UserError:
        return False
    return all((directory / name).is_file() for name in manifest.files)


def _steps(run: RunDirectory, stage: str) -> list[Path]:
    """The stage's step directories, newest first."""
    if not run.stage(stage).is_dir():
        return []
    found = [path for path in run.stage(stage).iterdir() if step_number(path.name) is not None and path.is_dir()]
    return sorted(found, key=lambda path: step_number(path.name) or 0, reverse=True)
