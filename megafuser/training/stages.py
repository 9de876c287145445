"""The two stages as commands: what each starts from, what it refuses, and the loop over steps that they share."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megafuser.checkpoint.atomic import write_text_atomic
from megafuser.checkpoint.manifest import read_manifest
from megafuser.checkpoint.specialist import load_specialist_weights
from megafuser.config.load import differences, load_config, to_yaml
from megafuser.config.run_directory import RunDirectory, resolve_checkpoint
from megafuser.config.schema import RunConfig
from megafuser.errors import UserError
from megafuser.fusion.model import FusedModel
from megafuser.runtime.distributed import distributed, is_rank_zero
from megafuser.training.checkpointing import latest_intact, load_training_state, load_weights_only
from megafuser.training.engine import Engine
from megafuser.training.loop import Loop
from megafuser.training.session import prepare
from megafuser.training.sources import SpecialistSource, check_references, sources_from_checkpoint, sources_from_config

logger = logging.getLogger(__name__)

# What a resumed stage may change: where and how it runs, and how long, but not what it computes.
_MAY_CHANGE = ("run_dir", "parallel", "device", "backend", "evaluation", "checkpoint", "warmup.steps", "joint.steps")
_OTHER_STAGE = {"warmup": "joint", "joint": "warmup"}


def run_warmup(config: RunConfig) -> int:
    """Stage 1: trains the gate with the specialists frozen. Resumes where the run's last checkpoint is.

    Raises:
        UserError: something that the user can mend, before anything is written.
    """
    sources = sources_from_config(config)
    run = RunDirectory(Path(config.run_dir))
    resumed = _latest_manifest(run, "warmup")
    if resumed is not None:
        check_references(sources, *resumed)

    def initialize(model: FusedModel) -> None:
        _load_converted(model, sources)

    return _run_stage(config, "warmup", sources, initialize)


def run_joint(config: RunConfig) -> int:
    """Stage 2: trains everything, from the warm-up's weights with a fresh optimizer. Resumes likewise.

    Raises:
        UserError: something that the user can mend, before anything is written.
    """
    run = RunDirectory(Path(config.run_dir))
    resumed = _latest_manifest(run, "joint")
    if resumed is not None:
        manifest, directory = resumed
        sources = sources_from_checkpoint(directory, manifest)
        return _run_stage(config, "joint", sources, None)
    sources = sources_from_config(config)
    start = _start_of_joint(config, run)
    manifest = read_manifest(start)
    check_references(sources, manifest, start)

    def initialize(model: FusedModel) -> None:
        if manifest.kind == "warmup":
            _load_converted(model, sources)
        load_weights_only(start, model, manifest.kind)
        logger.info("starting from %s", start)

    return _run_stage(config, "joint", sources, initialize)


def _run_stage(
    config: RunConfig,
    stage: str,
    sources: list[SpecialistSource],
    initialize: Callable[[FusedModel], None] | None,
) -> int:
    """Checks all inputs, then builds, loads and trains."""
    run = RunDirectory(Path(config.run_dir))
    check_same_run(config, run, stage)
    session = prepare(config, sources)
    train, valid = session.load_data("train"), session.load_data("valid")
    with distributed(config.parallel, seed=config.seed, device=session.device, world=session.world):
        latest = latest_intact(run, stage)
        done = read_manifest(latest, stage).content["step"] if latest else 0
        settings = config.warmup if stage == "warmup" else config.joint
        if done >= settings.steps:
            if is_rank_zero():
                print(f"{stage} is finished: {latest}")
            return 0
        model = session.build_model()
        if initialize is not None and (latest is None or stage == "warmup"):
            initialize(model)
        engine = Engine(model, config.optimizer, settings, domains=len(train), joint=stage == "joint")
        if latest is not None:
            load_training_state(latest, done, engine)
            logger.info("resuming from %s", latest)
        if is_rank_zero():
            run.path.mkdir(parents=True, exist_ok=True)
            write_text_atomic(run.config_file, to_yaml(config))
        last = Loop(session, engine, stage, settings, train=train, valid=valid).run(done)
        if is_rank_zero():
            print(f"{stage} is finished: {last}")
    return 0


def check_same_run(config: RunConfig, run: RunDirectory, stage: str) -> None:
    """Refuses to go on from a checkpoint of another configuration.

    Raises:
        UserError: lists what differs and matters; a changed layout, interval or number of steps does not.
    """
    latest = run.latest(stage)
    if latest is None or not (latest / "config.yaml").exists():
        return
    found = [
        line
        for line in differences(load_config(latest / "config.yaml", []), config)
        if not _is_under(line.split(":")[0], (*_MAY_CHANGE, _OTHER_STAGE[stage]))
    ]
    if found:
        raise UserError(
            f"{latest} is of another configuration ({'; '.join(found)}); set it back or choose another run_dir"
        )


def _is_under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _latest_manifest(run: RunDirectory, stage: str) -> tuple[Any, Path] | None:
    latest = run.latest(stage)
    return (read_manifest(latest, stage), latest) if latest else None


def _start_of_joint(config: RunConfig, run: RunDirectory) -> Path:
    """The checkpoint whose weights stage 2 starts from."""
    if config.joint.init_from:
        return resolve_checkpoint(config.joint.init_from)
    latest = run.latest("warmup")
    if latest is None:
        raise UserError(
            f"no warm-up checkpoint in {run.stage('warmup')}; run `megafuser warmup` first or set joint.init_from"
        )
    step = read_manifest(latest, "warmup").content["step"]
    if step < config.warmup.steps and is_rank_zero():
        print(
            f"megafuser: warning: the warm-up stopped at step {step} of {config.warmup.steps}; starting from it",
            file=sys.stderr,
        )
    return latest


def _load_converted(model: FusedModel, sources: list[SpecialistSource]) -> None:
    started = time.monotonic()
    for specialist, source in zip(model.specialists, sources, strict=True):
        load_specialist_weights(specialist, source.checkpoint)
    logger.info("loaded %d specialists in %.1f s", len(sources), time.monotonic() - started)
