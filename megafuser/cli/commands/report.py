"""`megafuser report`: the fused model against its specialists, domain by domain."""

import argparse
from pathlib import Path

from megafuser.cli.shared_arguments import CHECKPOINT, Parser, add_command, positive
from megafuser.errors import UserError
from megafuser.runtime.logs import configure_logs
from megafuser.runtime.world import detect_world

_DESCRIPTION = """\
Measures a checkpoint on the validation samples: per domain the cross-entropy of each specialist alone, of their
uniform mixture, of the fused model and of the best specialist at each token, with confidence intervals; the gate's
mean weights, its entropy and what is wrong with it; calibration; the tokens where fusion helps and hurts most. A
verdict, go, no-go or unclear, with its reasons, ends the output.

Writes OUT/report.json and OUT/report.html, a page of its own with plots and texts coloured by the gate.
"""


def add(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """`megafuser report`."""
    report = add_command(
        subparsers,
        "report",
        _run,
        summary="compare the fused model with its specialists, domain by domain",
        description=_DESCRIPTION,
        example="megafuser report --checkpoint runs/ultrafuser-13b --config config.yaml --out report",
        usage="megafuser report --checkpoint DIR --config FILE --out DIR [options] [key=value ...]",
    )
    report.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        help=CHECKPOINT,
    )
    report.add_argument("--out", metavar="DIR", required=True, help="directory to write; refused where it exists")
    report.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    report.add_argument(
        "--max-samples", metavar="N", type=positive, help="validation samples per domain at most (default: all)"
    )
    report.add_argument(
        "--training", action="store_true", help="also the run's learning rates and gradient norms, beside its curves"
    )
    report.add_argument("--tensor", metavar="N", type=positive, help="parallel.tensor, for this command")
    report.add_argument("--pipeline", metavar="N", type=positive, help="parallel.pipeline, for this command")


def _run(arguments: argparse.Namespace) -> int:
    from megafuser.config.load import load_config
    from megafuser.config.run_directory import resolve_checkpoint

    layout = [
        f"parallel.{key}={size}"
        for key, size in (("tensor", arguments.tensor), ("pipeline", arguments.pipeline))
        if size is not None
    ]
    config = load_config(arguments.config, [*arguments.overrides, *layout])
    resolve_checkpoint(arguments.checkpoint)
    if Path(arguments.out).exists() and not arguments.overwrite:
        raise UserError(f"--out {arguments.out} exists; choose another directory or give --overwrite")
    configure_logs(detect_world().rank)
    from megafuser.report.command import run_report

    return run_report(
        config,
        arguments.checkpoint,
        arguments.out,
        arguments.max_samples,
        overwrite=arguments.overwrite,
        training=arguments.training,
    )
