"""A trial of a stage: a few of its steps with everything real but the checkpoints, below `RUN_DIR/trial/`.

The run itself, if there is one, is neither read beyond what the stage would start from nor written to, but for its
tokenized samples, which the stage would need as well. What is printed of it is `training.trial_summary`.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import yaml

from megafuser.checkpoint.damage import refuse_damaged
from megafuser.checkpoint.manifest import Manifest
from megafuser.checkpoint.read_lock import reading
from megafuser.checkpoint.specialist_sources import SpecialistSource, sources_from_config
from megafuser.config.load import to_yaml
from megafuser.config.run_directory import RunDirectory
from megafuser.config.schema import STAGES, RunConfig
from megafuser.data.stage_sampler import stage_sampler
from megafuser.data.tokenized import TokenizedDomain
from megafuser.errors import StoppedEarly, UserError, explained_paths, is_full_disk
from megafuser.fusion.model import FusedModel
from megafuser.runtime.atomic import remove_directory, write_text_atomic
from megafuser.runtime.distributed import distributed, is_rank_zero, on_rank_zero, rank_zero_leaves_last
from megafuser.training.checkpoint_contents import load_converted, load_run_weights
from megafuser.training.checkpoint_saver import CheckpointSaver
from megafuser.training.engine import Engine
from megafuser.training.history import History
from megafuser.training.loop import Loop
from megafuser.training.metrics import Line
from megafuser.training.run_lock import RunLock
from megafuser.training.session import Session
from megafuser.training.stage_start import prepare_stage, trial_start
from megafuser.training.stages import stage_engine, stage_heartbeat
from megafuser.training.stop import ExitTime, Stop
from megafuser.training.trial_summary import measured, summary
from megafuser.watching.events import recorded
from megafuser.watching.token_samples import Seen

logger = logging.getLogger(__name__)


def run_trial(config: RunConfig, stage: str, steps: int, *, time_limit: float | None = None) -> int:
    """Runs the first steps of a stage and prints what they took; saves nothing.

    Joint training starts from what it would start from, and where that is not there yet, from the converted
    specialists with a new gate. The directory of the trial before is replaced.

    Args:
        config: the run.
        stage: `warmup` or `joint`.
        steps: how many.
        time_limit: seconds from now, after which it ends.

    Raises:
        StoppedEarly: by a signal or the time limit.
        UserError: something that the user can mend.
    """
    started = time.monotonic()
    sources = sources_from_config(config)
    start = trial_start(config, stage, sources)
    own = trial_config(config)
    check_trial_directory(own)
    session = prepare_stage(own, sources, start)
    with (
        _TrialStop(session.device, time_limit, started) as stop,
        distributed(own.parallel, seed=own.seed, device=session.device, world=session.world),
        ExitStack() as stack,
    ):
        stop.meet()
        if start is not None:
            stack.enter_context(reading(start[0]))  # the run that it is of may be under way
        train, valid = session.load_data("train", "valid")
        stage_sampler(own, stage, train)  # refuses what cannot be drawn before anything large is loaded
        stack.enter_context(RunLock(RunDirectory(Path(own.run_dir))).held())  # what is measured is read back from there
        on_rank_zero(lambda: _begin_directory(own))
        with recorded(Path(own.run_dir), stage, writes=is_rank_zero()):
            came_from = start[0] if start is not None else "the converted specialists with a new gate"
            logger.info("a trial of %s, starting from %s; nothing is saved", stage, came_from)
            engine, history = _build(session, stage, start)
            loop = _loop(session, engine, stage, steps, history, train, valid, stop)
            with loop.heartbeat, loop.saver:
                loop.run()
            found = measured(loop, loop.valid_seconds)
        if is_rank_zero():
            print(f"trial: {steps} step{'s' * (steps > 1)} of {stage}, starting from {came_from}; saved nothing")
            print(*summary(session, stage, found), sep="\n")
            print(f"metrics: {RunDirectory(Path(own.run_dir)).metrics_file}; the next trial replaces them")
    return 0


def trial_config(config: RunConfig) -> RunConfig:
    """The run's configuration with a directory of the trial's own; the tokenized samples stay the run's.

    Nothing is sent to Weights & Biases, and the trial does not end before its last step.
    """
    run = RunDirectory(Path(config.run_dir))
    return replace(
        config,
        run_dir=str(run.trial),
        data=replace(config.data, cache_dir=config.data.cache_dir or str(run.samples)),
        evaluation=replace(config.evaluation, patience=None),
        logging=replace(config.logging, wandb=None),
    )


class _TrialSaver(CheckpointSaver):
    """Saves nothing."""

    def start(self, step: int, history: History) -> None:
        """Training goes on."""

    def finish(self, step: int, history: History) -> Path:
        """Where the checkpoint would be."""
        return self._run.step_directory(self._stage, step)


class _TrialStop(Stop):
    """Ends a trial that is asked to stop, with nothing saved."""

    def after_step(self, save: ExitTime | None) -> str | None:
        """Never a reason to save first.

        Raises:
            StoppedEarly: on every rank.
        """
        reason = super().after_step(save)
        if reason is None:
            return None
        rank_zero_leaves_last()
        message = f"the trial stopped, since {reason}; run the same command again to begin another"
        if is_rank_zero():
            logger.warning("%s", message)
        raise StoppedEarly(message)


class _TrialLoop(Loop):
    """Also takes the time of a validation, and saves nothing.

    Attributes:
        valid_seconds: of the last one.
    """

    saver_type = _TrialSaver
    valid_seconds = 0.0

    def _validate(self, step: int) -> tuple[Line, Seen | None]:
        started = time.perf_counter()
        found = super()._validate(step)
        self.valid_seconds = time.perf_counter() - started
        return found


def check_trial_directory(config: RunConfig) -> None:
    """Refuses a trial's directory in which is what no trial has left: it would be emptied.

    Args:
        config: what `trial_config` gives.

    Raises:
        UserError: says what is there.
    """
    run = RunDirectory(Path(config.run_dir))
    checkpoints = any(run.stage(stage).exists() for stage in STAGES)
    if checkpoints or run.samples.exists():
        what = "checkpoints" if checkpoints else "tokenized samples"
        raise UserError(f"{run.path} has {what}, so it is a run and no trial; move it, or choose another run_dir")
    with explained_paths():
        found = set(run.path.iterdir()) if run.path.is_dir() else set()
        if found - {run.lock_file} and not _is_of_a_trial(run):
            raise UserError(
                f"{run.path} holds what no trial has left (a trial's has a {run.config_file.name} of its own); move "
                "it, or choose another run_dir"
            )


def _is_of_a_trial(run: RunDirectory) -> bool:
    """Whether the configuration in a directory is a trial's, which may have been moved since or made by a release."""
    try:
        content = yaml.safe_load(run.config_file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and Path(str(content.get("run_dir", ""))).name == run.trial.name


def _begin_directory(config: RunConfig) -> None:
    """Empties the trial's directory, which may be a link to one, or makes it."""
    run = RunDirectory(Path(config.run_dir))
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        for old in run.path.iterdir():
            if old in (run.config_file, run.lock_file):
                continue  # the one says that it is a trial's, and is replaced below; the other keeps others out
            if old.is_dir() and not old.is_symlink():
                remove_directory(old)  # in the network, one that somebody has open files in can be moved only
            else:
                old.unlink()
        write_text_atomic(run.config_file, to_yaml(config))
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(f"{run.path} cannot be emptied and written ({error}); remove it") from None


def _build(session: Session, stage: str, start: tuple[Path, Manifest] | None) -> tuple[Engine, History]:
    """The stage's model, weights loaded, and its optimizer; every rank calls it."""
    chunks = session.build_model(trained=session.config.trained(stage))
    manifest = _load(chunks, session.sources, start)
    return stage_engine(session, stage, chunks), History.begin(session.domain_names, manifest)


def _load(
    chunks: Sequence[FusedModel], sources: list[SpecialistSource], start: tuple[Path, Manifest] | None
) -> Manifest | None:
    """Fills the model; a damaged checkpoint is refused here, and left to the stage to be put aside."""
    if start is None:
        load_converted(chunks, sources)
        return None
    directory, manifest = start
    refuse_damaged([directory])
    load_run_weights(directory, manifest, chunks, sources)
    return manifest


def _loop(
    session: Session, engine: Engine, stage: str, steps: int, history: History,
    train: Sequence[TokenizedDomain], valid: Sequence[TokenizedDomain], stop: Stop,
) -> _TrialLoop:  # fmt: skip
    """The stage's loop, but for fewer steps and a saver that saves nothing; learning rates are those of the stage."""
    config = session.config
    return _TrialLoop(
        session,
        engine,
        stage,
        replace(config.stage(stage), steps=steps, lr_warmup_steps=0),
        done=0,
        train=train,
        valid=valid,
        history=history,
        stop=stop,
        heartbeat=stage_heartbeat(config, RunDirectory(Path(config.run_dir)), stage),
    )
