"""The two stages as commands: what each starts from, what it refuses; the steps are `megafuser.training.loop`."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from megafuser.checkpoint.manifest import Manifest, gate_config, read_manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.sources import (
    SpecialistSource,
    check_references,
    sources_from_checkpoint,
    sources_from_config,
)
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.load import differences, load_config, to_yaml
from megafuser.config.run_directory import CONFIG, RunDirectory, resolve_checkpoint
from megafuser.config.schema import RunConfig
from megafuser.data.stage_sampler import check_weights, stage_sampler
from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel
from megafuser.runtime.atomic import check_can_be_written, write_text_atomic
from megafuser.runtime.distributed import distributed, is_rank_zero
from megafuser.runtime.heartbeat import Heartbeat
from megafuser.runtime.kernels import describe
from megafuser.runtime.world import detect_world
from megafuser.specialist.fp8 import recipes_in_use
from megafuser.training.checkpoint_contents import load_converted, load_run_weights, load_training_state
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.kept_checkpoints import newest_intact, newest_readable, refuse_damaged
from megafuser.training.loop import Loop
from megafuser.training.metric_sinks import check_watching
from megafuser.training.optimizer_state_layout import refuse_other_layout
from megafuser.training.session import Session, prepare
from megafuser.training.stop import Stop
from megafuser.watching.events import record as record_event
from megafuser.watching.events import recorded

logger = logging.getLogger(__name__)

# What a resumed stage may change: where and how it runs, and how long, but not what it computes.
_MAY_CHANGE = (
    *("run_dir", "parallel", "memory", "device", "backend", "evaluation", "checkpoint", "debug"),
    *("logging", "profile", "faults"),
    *("data.workers", "data.cache_dir"),
    *(f"{stage}.{key}" for stage in ("warmup", "joint") for key in ("steps", "row_width")),
)
_OTHER_STAGE = {"warmup": "joint", "joint": "warmup"}


def run_warmup(config: RunConfig, *, time_limit: float | None = None) -> int:
    """Stage 1: trains the gate with the specialists frozen. Resumes where the run's last checkpoint is.

    Args:
        config: the run.
        time_limit: seconds from now; the stage stops, with everything saved, before they are over.

    Raises:
        StoppedEarly: by a signal or the time limit.
        UserError: something that the user can mend, before anything is written.
    """
    return _run_stage(config, "warmup", time_limit)


def run_joint(config: RunConfig, *, time_limit: float | None = None) -> int:
    """Stage 2: trains everything, from the warm-up's weights with a fresh optimizer. Resumes likewise.

    Args:
        config: the run.
        time_limit: seconds from now; the stage stops, with everything saved, before they are over.

    Raises:
        StoppedEarly: by a signal or the time limit.
        UserError: something that the user can mend, before anything is written.
    """
    return _run_stage(config, "joint", time_limit)


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
    check_same_run(config, sources, stage)
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
    start = _start_of_joint(config, run, intact=False)
    return start, read_manifest(start)


def check_same_run(config: RunConfig, sources: list[SpecialistSource], stage: str) -> None:
    """Refuses to go on from a checkpoint of another configuration or of other specialists.

    Raises:
        UserError: lists what differs and matters; a changed layout, interval or number of steps does not.
    """
    resumable = newest_readable(RunDirectory(Path(config.run_dir)), stage)
    if resumable is None:
        return
    directory, manifest = resumable
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


def _run_stage(config: RunConfig, stage: str, time_limit: float | None) -> int:
    started = time.monotonic()
    with recorded(Path(config.run_dir), stage, writes=detect_world().rank == 0):
        return _train(config, stage, check_start(config, stage), time_limit, started)


def _train(
    config: RunConfig, stage: str, sources: list[SpecialistSource], time_limit: float | None, started: float
) -> int:
    """Checks all inputs, then builds, loads and trains.

    Args:
        config: the run's configuration.
        stage: `warmup` or `joint`.
        sources: the specialists.
        time_limit: in seconds from `started`.
        started: in seconds of `time.monotonic`.
    """
    run = RunDirectory(Path(config.run_dir))
    check_writable(run.path)
    check_weights(config.data)
    session = prepare(config, sources, begins_from(config, stage))
    check_watching(config, session.world.size)
    with (
        Stop(session.device, time_limit, started) as stop,
        distributed(config.parallel, seed=config.seed, device=session.device, world=session.world),
    ):
        readable = newest_readable(run, stage)
        expected = readable[1].content.get("data") if readable else None
        train, valid = session.load_data("train", "valid", expected=expected)
        stage_sampler(config, stage, train)  # refuses what cannot be drawn before anything large is loaded
        _say_kernels(session, stage)
        resume = _find_resume(run, stage, session)
        if resume is not None and resume.is_over(config, stage):
            latest, record = resume.directory, resume.record
        else:
            engine, history = _build(run, stage, session, resume)
            _write_config(run, session)
            loop = Loop(
                session,
                engine,
                stage,
                config.stage(stage),
                done=resume.step if resume is not None else 0,
                train=train,
                valid=valid,
                history=history,
                stop=stop,
                heartbeat=stage_heartbeat(config, run, stage),
            )
            with loop.heartbeat, loop.saver:
                latest, record = loop.run(), loop.history.validation
        if is_rank_zero():
            _say_finished(run, config, stage, latest, record)
    return 0


@dataclass(frozen=True)
class _Resume:
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
        step: int = self.manifest.content["step"]
        return step

    @property
    def record(self) -> ValidationRecord:
        """What validation has found so far."""
        return ValidationRecord.resume(self.manifest)

    def is_over(self, config: RunConfig, stage: str) -> bool:
        """Whether nothing of the stage is left to do."""
        return self.step >= config.stage(stage).steps or self.record.has_run_out(config.evaluation.patience)


def _find_resume(run: RunDirectory, stage: str, session: Session) -> _Resume | None:
    """What the stage goes on from, read whole and compared with its hashes; every rank calls it."""
    latest = newest_intact(run, stage)
    if latest is None:
        return None
    manifest = read_manifest(latest, stage)
    refuse_other_layout(latest, manifest, session.config.parallel, session.world.size)
    return _Resume(latest, manifest)


def _build(run: RunDirectory, stage: str, session: Session, resume: _Resume | None) -> tuple[Engine, History]:
    """The model with its weights, the optimizer, and what the stage has seen: where it begins, or goes on."""
    config = session.config
    chunks = session.build_model(trained=config.trained(stage))
    start = None
    if stage == "warmup":
        # never in a warm-up checkpoint, so they are loaded whether it resumes or not
        load_converted(chunks, session.sources)
    elif resume is None:
        directory = _start_of_joint(config, run, intact=True)
        start = read_manifest(directory)
        with reading(directory):
            load_run_weights(directory, start, chunks, session.sources)
        logger.info("starting from %s", directory)
    engine = stage_engine(session, stage, chunks)
    if resume is None:
        return engine, History.begin(session.domain_names, start)
    with reading(resume.directory):
        load_training_state(resume.directory, resume.manifest, engine)
    logger.info("resuming from %s", resume.directory)
    return engine, History.resume(session.domain_names, resume.manifest)


def stage_engine(session: Session, stage: str, chunks: list[FusedModel]) -> Engine:
    """The updates of a stage's model, whose weights are loaded."""
    config = session.config
    return Engine(
        chunks,
        config.optimizer,
        config.stage(stage),
        domains=len(session.domain_names),
        joint=stage == "joint",
        parallel=config.parallel,
    )


def _say_kernels(session: Session, stage: str) -> None:
    trained = session.config.trained(stage)
    recipes = recipes_in_use(session.config.precision, {name: name in trained for name in session.specialist_names})
    for line in describe(session.backend, recipes):
        logger.info("%s", line)


def _say_finished(run: RunDirectory, config: RunConfig, stage: str, latest: Path, record: ValidationRecord) -> None:
    last = run.step_directory(stage, config.stage(stage).steps)
    if record.has_run_out(config.evaluation.patience) and latest != last:
        print(f"{stage} stopped early: {record}")
    print(f"{stage} is finished: {latest}")


def stage_heartbeat(config: RunConfig, run: RunDirectory, stage: str) -> Heartbeat:
    """What notices that a rank is lost or stuck, and notes it in the run."""
    return Heartbeat(
        config.faults.silent_seconds,
        config.faults.stuck_minutes * 60,
        lost=lambda found: record_event(run.path, "failed", stage, found) if is_rank_zero() else None,
    )


def check_writable(directory: Path) -> None:
    """Refuses a run directory that could not be made or written to, before anything is loaded."""
    check_can_be_written(directory, "run_dir:")


def _write_config(run: RunDirectory, session: Session) -> None:
    if is_rank_zero():
        run.path.mkdir(parents=True, exist_ok=True)
        write_text_atomic(run.config_file, to_yaml(session.config))


def _check_start_of_joint(config: RunConfig, run: RunDirectory, sources: list[SpecialistSource]) -> None:
    """Refuses, before anything is loaded, a start that is none or that was made with other specialists."""
    start = _start_of_joint(config, run, intact=False)
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
    step = manifest.content["step"]
    ended = ValidationRecord.resume(manifest).has_run_out(config.evaluation.patience)
    if manifest.kind == "warmup" and step < config.warmup.steps and not ended and is_rank_zero():
        logger.warning("the warm-up stopped at step %d of %d; starting from it", step, config.warmup.steps)


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
    start = _start_of_joint(config, run, intact=False)
    return start, read_manifest(start)


def _start_of_joint(config: RunConfig, run: RunDirectory, *, intact: bool) -> Path:
    """The checkpoint whose weights stage 2 starts from; `intact` looks at every byte and needs all ranks."""
    if config.joint.init_from:
        start = resolve_checkpoint(config.joint.init_from)
        if intact:
            refuse_damaged([start])
        return start
    if intact:
        newest = newest_intact(run, "warmup")
    else:
        readable = newest_readable(run, "warmup")
        newest = readable[0] if readable else None
    if newest is None:
        raise UserError(
            f"no warm-up checkpoint in {run.stage('warmup')}; run `megafuser warmup` first or set joint.init_from"
        )
    return newest
