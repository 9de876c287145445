"""`megafuser preflight`: whether a stage could run, on every rank.

Arguments, help and the exit only: the work is `preflight.command`.
"""

import argparse
import os
import sys

from megafuser.cli.shared_arguments import BAD_INPUT, DONE, STOPPED_EARLY, Parser, add_command, duration, positive
from megafuser.errors import UserError
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Looks whether a stage could run, in seconds and without writing anything: versions, devices, the configuration, the
layout, specialists, data, room on the disk and, on several processes, whether they reach each other. What is wrong is
one line each, with the nodes that have it; what only costs time or may fail later is a warning.

Under srun every rank looks, and all go or none does; the job scripts in slurm/ begin with it. As one process it looks
at this machine alone.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser preflight`."""
    preflight = add_command(
        subparsers,
        "preflight",
        _run,
        summary="look whether a stage could run, before it does",
        description=_DESCRIPTION,
        example="megafuser preflight warmup --config config.yaml parallel.tensor=1 parallel.pipeline=1",
        usage="megafuser preflight STAGE --config FILE [key=value ...]",
        launch="Runs in one process, or by `srun python -m megafuser ...`.",
        exits=(DONE, "1 a machine fails", BAD_INPUT, STOPPED_EARLY),
    )
    preflight.add_argument("stage", metavar="STAGE", choices=("warmup", "joint"), help="warmup or joint")
    preflight.add_argument(
        "--trial", metavar="N", type=positive, help="as for the stage: a trial needs no room for checkpoints"
    )
    preflight.add_argument(
        "--time-limit", metavar="HH:MM", type=duration, help="taken since the stage's command has it; not looked at"
    )


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.preflight.command import Asked, run_preflight

    asked = Asked(arguments.stage, arguments.config, arguments.overrides, trial=arguments.trial is not None)
    code = run_preflight(asked)
    if _several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread may still wait in a collective operation that will never end
    return code


def _several() -> bool:
    """Whether there are other ranks; where the launcher's variables are wrong, that has been told."""
    try:
        return detect_world().size > 1
    except UserError:
        return False
