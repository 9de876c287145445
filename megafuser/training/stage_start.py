"""What a stage starts from, and what is looked at before anything large is loaded or written.

Building the model and loading its weights is `training.stages`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megafuser.checkpoint.damage import disk_errors_told, refuse_damaged
from megafuser.checkpoint.manifest import Manifest, gate_config, read_manifest
from megafuser.checkpoint.specialist_sources import (
    SpecialistSource,
    check_references,
    sources_from_checkpoint,
    sources_from_config,
)
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.load import WITHOUT_EFFECT_ON_RESULTS, differences, load_config, other_templates_than
from megafuser.config.run_directory import CONFIG, RunDirectory, resolve_checkpoint
from megafuser.config.schema import RunConfig
from megafuser.data.cache.loading import refuse_other_samples
from megafuser.data.stage_sampler import check_weights
from megafuser.errors import UserError
from megafuser.runtime.atomic import check_can_be_written
from megafuser.runtime.distributed import all_or_none, is_rank_zero
from megafuser.runtime.world import detect_world
from megafuser.training.kept_checkpoints import newest_intact, newest_readable
from megafuser.training.metric_sinks import check_watching
from megafuser.training.optimizer_state_layout import refuse_other_layout
from megafuser.training.session import Session, prepare

logger = logging.getLogger(__name__)

# What a resumed stage may change: where and how it runs, and how long, but not what it computes.
_MAY_CHANGE = (
    *WITHOUT_EFFECT_ON_RESULTS,
    *("run_dir", "device", "backend"),
    *(f"{stage}.{key}" for stage in ("warmup", "joint") for key in ("steps", "row_width")),
)
_OTHER_STAGE = {"warmup": "joint", "joint": "warmup"}


def check_start(config: RunConfig, stage: str) -> list[SpecialistSource]:
    """Looks at what a stage would start from, without weights; nothing is written.

    Returns:
        The specialists.

    Raises:
        UserError: a specialist is missing, there is nothing to start from, or what is there does not fit.
    """
    run = RunDirectory(Path(config.run_dir))
    resumable = newest_readable(run, stage) if stage == "joint" else None
    # A joint checkpoint is self-contained: going on from it does not need the converted specialists any more.
    sources = sources_from_checkpoint(*resumable) if resumable else sources_from_config(config)
    _check_same_run(config, sources, stage)
    if stage == "joint" and resumable is None:
        _check_start_of_joint(config, run, sources)
    return sources


def begins_from(config: RunConfig, stage: str) -> tuple[Path, Manifest] | None:
    """The checkpoint that a stage goes on from or takes its weights from, with its manifest, as far as can be told now.

    Where its weights turn out to be damaged it will be the one before it. None where warm-up begins.

    Raises:
        UserError: joint training has none.
    """
    run = RunDirectory(Path(config.run_dir))
    resumable = newest_readable(run, stage)
    if resumable is not None or stage == "warmup":
        return resumable
    start = start_of_joint(config, run, intact=False)
    return start, read_manifest(start)


def trial_start(config: RunConfig, stage: str, sources: list[SpecialistSource]) -> tuple[Path, Manifest] | None:
    """The checkpoint that a trial of a stage takes its weights from, with its manifest.

    None: the converted specialists and a new gate, as in warm-up, and in joint training where no warm-up has ended yet.

    Raises:
        UserError: there is one that does not fit.
    """
    run = RunDirectory(Path(config.run_dir))
    if stage == "warmup" or (not config.joint.init_from and newest_readable(run, "warmup") is None):
        return None
    _check_start_of_joint(config, run, sources)
    start = start_of_joint(config, run, intact=False)
    return start, read_manifest(start)


def prepare_stage(config: RunConfig, sources: list[SpecialistSource], start: tuple[Path, Manifest] | None) -> Session:
    """The session of a stage, once all is checked that needs no weights: stage, trial and preflight refuse the same.

    Args:
        config: the run's, or the trial's own.
        sources: the specialists.
        start: the checkpoint whose weights are to be loaded, if any, and its manifest.

    Raises:
        UserError: the run directory cannot be written, a weight of the data or what is to be watched makes no sense,
            or `prepare` refuses it.
    """
    check_can_be_written(Path(config.run_dir), "run_dir:")
    check_weights(config.data)
    session = prepare(config, sources, start)
    check_watching(config, session.world.size)
    return session


@dataclass(frozen=True)
class Resume:
    """What a stage goes on from.

    Attributes:
        directory: its newest intact checkpoint.
        manifest: that one's.
    """

    directory: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.manifest.run["step"]

    @property
    def record(self) -> ValidationRecord:
        """What validation has found so far."""
        return ValidationRecord.resume(self.manifest)

    def is_over(self, config: RunConfig, stage: str, samples: int) -> bool:
        """Whether nothing of the stage is left to do, where validations look at so many samples."""
        has_run_out = self.record.compares_with(samples) and self.record.has_run_out(config.evaluation.patience)
        return self.step >= config.stage(stage).steps or has_run_out


def find_resume(
    run: RunDirectory, stage: str, session: Session, keys: Mapping[str, Mapping[str, str]]
) -> Resume | None:
    """What the stage goes on from, read whole and compared with its hashes; every rank calls it.

    It may have been saved since `check_start`, by whoever was training in the run's directory then: it is looked at
    again whether it is of this run.

    Args:
        run: the run's directory.
        stage: `warmup` or `joint`.
        session: the stage's.
        keys: see `sample_keys`.

    Raises:
        UserError: it is of another configuration, of other samples or specialists, or at another layout.
    """
    latest = newest_intact(run, stage)
    if latest is None:
        return None

    def compare() -> Manifest:
        with disk_errors_told():
            manifest = read_manifest(latest, stage)
            _check_checkpoint(session.config, session.sources, stage, latest, manifest)
        for domain, splits in keys.items():
            for split, key in splits.items():
                refuse_other_samples(domain, split, key, manifest.run.get("data", {}))
        return manifest

    # a file system in the network may not show all ranks the same yet
    return Resume(latest, all_or_none(compare))


def start_of_joint(config: RunConfig, run: RunDirectory, *, intact: bool) -> Path:
    """The checkpoint whose weights stage 2 starts from; `intact` looks at every byte and needs all ranks."""
    if config.joint.init_from:
        start = resolve_checkpoint(config.joint.init_from)
        if intact:
            refuse_damaged([start])
        return start
    if intact:
        newest = newest_intact(run, "warmup", without="and joint training needs one")
    else:
        readable = newest_readable(run, "warmup")
        newest = readable[0] if readable else None
    if newest is None:
        raise UserError(
            f"no warm-up checkpoint in {run.stage('warmup')}; run `megafuser warmup` first or set joint.init_from"
        )
    return newest


def _check_same_run(config: RunConfig, sources: list[SpecialistSource], stage: str) -> None:
    """Looks at the checkpoint that a stage would go on from, if there is one; see `_check_checkpoint`."""
    resumable = newest_readable(RunDirectory(Path(config.run_dir)), stage)
    if resumable is not None:
        _check_checkpoint(config, sources, stage, *resumable)


def _check_checkpoint(
    config: RunConfig, sources: list[SpecialistSource], stage: str, directory: Path, manifest: Manifest
) -> None:
    """Refuses to go on from a checkpoint of another configuration or of other specialists.

    Raises:
        UserError: lists what differs and matters; a changed layout, interval or number of steps does not.
    """
    saved = load_config(directory / CONFIG) if (directory / CONFIG).exists() else config
    accepted = (*_MAY_CHANGE, _OTHER_STAGE[stage])
    found = [line for line in differences(saved, config) if not _may_change(line.split(":")[0], accepted)]
    if found:
        raise UserError(
            f"{directory} is of another configuration ({'; '.join(found)}); set it back or choose another run_dir"
        )
    check_references(sources, manifest, directory)
    refuse_other_layout(directory, manifest, config.parallel, detect_world().size)


def _may_change(key: str, prefixes: tuple[str, ...]) -> bool:
    """Where a specialist lies may change too: what it is, its content hash says."""
    if key.startswith("specialists.") and key.endswith(".checkpoint"):
        return True
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _check_start_of_joint(config: RunConfig, run: RunDirectory, sources: list[SpecialistSource]) -> None:
    """Refuses, before anything is loaded, a start that is none or that was made with other specialists."""
    start = start_of_joint(config, run, intact=False)
    manifest = read_manifest(start)
    if manifest.kind == "specialist":
        raise UserError(f"joint.init_from: {start} is a specialist; give a warm-up or joint checkpoint")
    check_references(sources, manifest, start)
    gate = gate_config(manifest)
    if gate.hidden_size != config.gate.hidden_size:
        raise UserError(
            f"gate.hidden_size: {config.gate.hidden_size}, but the gate of {start} has {gate.hidden_size}; set it to "
            "that"
        )
    if gate.temperature != config.gate.temperature:
        raise UserError(
            f"gate.temperature: {config.gate.temperature}, but the gate of {start} was trained at {gate.temperature}; "
            f"set gate.temperature={gate.temperature}"
        )
    for told in other_templates_than(start / CONFIG, config) if is_rank_zero() else ():
        logger.warning("%s", told)
    step = manifest.run["step"]
    ended = ValidationRecord.resume(manifest).has_run_out(config.evaluation.patience)
    if manifest.kind == "warmup" and step < config.warmup.steps and not ended and is_rank_zero():
        logger.warning("the warm-up stopped at step %d of %d; starting from it", step, config.warmup.steps)
