"""`megafuser reshard`: a checkpoint that loads at its own layout only becomes one for any.

Arguments and help only: the work is `training.reshard`.
"""

import argparse

from megafuser.cli.shared_arguments import BAD_INPUT, DONE, MODEL_OVERRIDES, STOPPED_EARLY, Parser, add_command
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Converts a checkpoint that was saved between two steps with `checkpoint.reshardable: on_exit`, so that the run can go on
at another tensor or pipeline size. Needs as many processes as the tensor and pipeline sizes that it was saved at, or a
multiple; the configuration is the checkpoint's own, and key=value replaces keys of it, e.g. device=cpu.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser reshard`."""
    reshard = add_command(
        subparsers,
        "reshard",
        _run,
        summary="make a checkpoint load at any tensor and pipeline size",
        description=_DESCRIPTION,
        example="torchrun --nproc-per-node 4 -m megafuser reshard --checkpoint runs/x/joint/step_000500 --out new",
        usage="megafuser reshard --checkpoint DIR --out DIR [--overwrite] [key=value ...]",
        has_config=False,
        overrides=MODEL_OVERRIDES,
        exits=(DONE, BAD_INPUT, STOPPED_EARLY),
    )
    reshard.add_argument("--checkpoint", metavar="DIR", required=True, help="a joint step's directory, or as in report")
    reshard.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    reshard.add_argument(
        "--overwrite", action="store_true", help="replace an existing --out, which may be the checkpoint itself"
    )


def _run(arguments: argparse.Namespace) -> int:
    configure_logs(detect_world().rank)
    from megafuser.training.reshard import run_reshard

    return run_reshard(arguments.checkpoint, arguments.out, arguments.overrides, overwrite=arguments.overwrite)
