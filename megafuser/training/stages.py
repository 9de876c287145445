"""The two stages as commands: built from what they start from, run, resumed; the steps are `megafuser.training.loop`.

What a stage starts from and what it refuses is `megafuser.training.stage_start`.
"""

import logging
import time
from pathlib import Path

from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.specialist_sources import SpecialistSource
from megafuser.checkpoint.validation_record import ValidationRecord
from megafuser.config.load import to_yaml
from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import RunConfig
from megafuser.data.loader import validation_sizes
from megafuser.data.stage_sampler import stage_sampler
from megafuser.data.tokenized import sample_keys
from megafuser.fusion.model import FusedModel
from megafuser.runtime.atomic import write_text_atomic
from megafuser.runtime.distributed import distributed, is_rank_zero, on_rank_zero, rank_zero_leaves_last
from megafuser.runtime.heartbeat import Heartbeat
from megafuser.runtime.kernels import describe
from megafuser.runtime.world import detect_world
from megafuser.specialist.fp8 import recipes_in_use
from megafuser.training.checkpoint_contents import load_converted, load_run_weights, load_training_state
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.kept_checkpoints import newest_readable
from megafuser.training.loop import Loop
from megafuser.training.run_lock import RunLock
from megafuser.training.session import Session
from megafuser.training.stage_start import Resume, begins_from, check_start, find_resume, prepare_stage, start_of_joint
from megafuser.training.stop import Stop
from megafuser.watching.events import record as record_event
from megafuser.watching.events import recorded

logger = logging.getLogger(__name__)


def run_warmup(config: RunConfig, *, time_limit: float | None = None) -> int:
    """Stage 1: trains the gate with the specialists frozen. Resumes where the run's last checkpoint is.

    Args:
        config: the run.
        time_limit: seconds from now; the stage stops, with everything saved, before they are over.

    Raises:
        StoppedEarly: by a signal or the time limit.
        UserError: something that the user can mend, before anything is written.
        NotSavedError: the disk is full.
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
        NotSavedError: the disk is full.
    """
    return _run_stage(config, "joint", time_limit)


def _run_stage(config: RunConfig, stage: str, time_limit: float | None) -> int:
    started = time.monotonic()
    run = RunDirectory(Path(config.run_dir))
    lock = RunLock(run)
    with recorded(run.path, stage, writes=detect_world().rank == 0, is_anothers=lock.is_anothers):
        return _train(config, stage, check_start(config, stage), lock, time_limit, started)


def _train(
    config: RunConfig,
    stage: str,
    sources: list[SpecialistSource],
    lock: RunLock,
    time_limit: float | None,
    started: float,
) -> int:
    """Checks all inputs, then builds, loads and trains.

    Args:
        config: the run's configuration.
        stage: `warmup` or `joint`.
        sources: the specialists.
        lock: on the run's directory, not taken yet.
        time_limit: in seconds from `started`.
        started: in seconds of `time.monotonic`.
    """
    run = RunDirectory(Path(config.run_dir))
    session = prepare_stage(config, sources, begins_from(config, stage))
    with (
        Stop(session.device, time_limit, started) as stop,
        distributed(config.parallel, seed=config.seed, device=session.device, world=session.world),
    ):
        stop.meet()
        readable = newest_readable(run, stage)
        expected = readable[1].run.get("data") if readable else None
        train, valid = session.load_data("train", "valid", expected=expected)
        stage_sampler(config, stage, train)  # refuses what cannot be drawn before anything large is loaded
        _say_kernels(session, stage)
        samples = sum(validation_sizes(valid, config.evaluation.samples_per_domain))
        with lock.held():
            resume = find_resume(run, stage, session, sample_keys(train, valid))
            if resume is not None and resume.is_over(config, stage, samples):
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
                    rank_zero_leaves_last()
        if is_rank_zero():
            _say_finished(run, config, stage, latest, record)
    return 0


def _build(run: RunDirectory, stage: str, session: Session, resume: Resume | None) -> tuple[Engine, History]:
    """The model with its weights, the optimizer, and what the stage has seen: where it begins, or goes on."""
    config = session.config
    chunks = session.build_model(trained=config.trained(stage))
    start = None
    if stage == "warmup":
        # never in a warm-up checkpoint, so they are loaded whether it resumes or not
        load_converted(chunks, session.sources)
    elif resume is None:
        directory = start_of_joint(config, run, intact=True)
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


def _write_config(run: RunDirectory, session: Session) -> None:
    # The first file that a start makes anew, before those that are only gone on with: a full disk is met here.
    on_rank_zero(lambda: write_text_atomic(run.config_file, to_yaml(session.config)))
