"""`megafuser warmup` and `megafuser joint`: the two stages of training.

Arguments, help, and whether a stage is finished already: the work is `training.stages`, that of a trial
`training.trial`.
"""

import argparse
import time
from typing import TYPE_CHECKING

from megafuser.cli.shared_arguments import (
    BAD_INPUT,
    CANNOT_CONTINUE,
    DONE,
    STOPPED_EARLY,
    Parser,
    add_command,
    duration,
    positive,
)
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.signals import leaving_at_a_signal
from megafuser.runtime.world import detect_world

if TYPE_CHECKING:
    from megafuser.config.schema import RunConfig

_WARMUP = """\
Stage 1: trains the gate that mixes the specialists' logits; the specialists stay as they are.

Writes checkpoints to RUN_DIR/warmup/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl, curves to
RUN_DIR/tensorboard/ and the resolved configuration to RUN_DIR/config.yaml. Run again, it goes on from the last
checkpoint; a finished stage says so and ends at once.

With --trial N it runs the first N steps with everything real and saves nothing: it says how long a step takes and how
much memory, beside what was planned. Its metrics go to RUN_DIR/trial/, which the next trial replaces; the run itself is
left alone.
"""


_JOINT = """\
Stage 2: trains the gate and all specialists, from the run's last warm-up checkpoint or from joint.init_from.

Writes checkpoints to RUN_DIR/joint/step_NNNNNN/, a line per step to RUN_DIR/metrics.jsonl and curves to
RUN_DIR/tensorboard/. Run again, it goes on from the last checkpoint; a finished stage says so and ends at once.

With --trial N it runs the first N steps with everything real and saves nothing: it says how long a step takes and how
much memory, beside what was planned. It starts where the stage begins, from joint.init_from or the last warm-up
checkpoint, and where there is none yet, from the converted specialists with a new gate. Its metrics go to
RUN_DIR/trial/, which the next trial replaces; the run itself is left alone.
"""


def add_warmup(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser warmup`: stage 1."""
    command = add_command(
        subparsers,
        "warmup",
        _run_warmup,
        summary="stage 1: train the gate, specialists frozen",
        description=_WARMUP,
        example="megafuser warmup --config config.yaml warmup.steps=20",
        exits=(DONE, CANNOT_CONTINUE, BAD_INPUT, STOPPED_EARLY),
    )
    _add_options(command)


def add_joint(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser joint`: stage 2."""
    command = add_command(
        subparsers,
        "joint",
        _run_joint,
        summary="stage 2: train everything",
        description=_JOINT,
        example="megafuser joint --config config.yaml joint.lr=1e-5",
        exits=(DONE, CANNOT_CONTINUE, BAD_INPUT, STOPPED_EARLY),
    )
    _add_options(command)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trial", type=positive, metavar="N", help="run N steps, save nothing, and say what they took (e.g. 20)"
    )
    command.add_argument(
        "--time-limit",
        type=duration,
        metavar="HH:MM",
        help="save (but in a trial) and exit with 75 before this much time has passed; also HH:MM:SS",
    )


def _run_warmup(arguments: argparse.Namespace) -> int:
    return _run("warmup", arguments)


def _run_joint(arguments: argparse.Namespace) -> int:
    return _run("joint", arguments)


def _run(stage: str, arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    from megafuser.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    trial: int | None = arguments.trial
    if trial is None and _is_finished(config, stage):
        return 0
    world = detect_world()
    configure_logs(world.rank)
    with leaving_at_a_signal(world):  # until the stage takes them over
        if trial is not None:
            from megafuser.training.trial import run_trial

            return run_trial(config, stage, trial, time_limit=_left(arguments.time_limit, started))
        from megafuser.training.stages import run_joint, run_warmup

        run = {"warmup": run_warmup, "joint": run_joint}[stage]
        return run(config, time_limit=_left(arguments.time_limit, started))


def _left(time_limit: float | None, started: float) -> float | None:
    """What is left of the limit: importing torch takes seconds, from a disk in the network many."""
    return None if time_limit is None else time_limit - (time.monotonic() - started)


def _is_finished(config: "RunConfig", stage: str) -> bool:
    """Whether there is nothing left to do, which is then said; without the seconds that importing torch takes."""
    from megafuser.config.run_directory import finished_checkpoint

    checkpoint = finished_checkpoint(config, stage)
    if checkpoint is None:
        return False
    if detect_world().rank == 0:
        print(f"{stage} is finished: {checkpoint}")
    return True
